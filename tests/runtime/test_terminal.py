"""What a run writes while it goes, read back by other means."""

import contextlib
import importlib
import io
import json
import logging
import re
import subprocess
import sys

import numpy as np
import pytest

from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import MachineError


class Terminal(io.StringIO):
    """Stands in for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns, to redirect stdout to."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # no colours between the letters
    return Terminal()


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def all_events(folder):
    """What the event files hold: records of TensorFlow's framing, taken apart here."""
    event_class = importlib.import_module("tensorboardX.proto.event_pb2").Event
    found = []
    for path in sorted((folder / "events").iterdir()):
        data = path.read_bytes()
        while data:  # length (8 bytes), its checksum (4), record, checksum (4)
            length = int.from_bytes(data[:8], "little")
            found.append(event_class.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def events(folder):
    """(tag, step) -> value of all event files."""
    return {
        (value.tag, event.step): value.simple_value
        for event in all_events(folder)
        for value in event.summary.value
    }


def test_a_record_is_a_line_at_once(tmp_path):
    with terminal.MetricsWriter(tmp_path) as writer:
        writer.write(10, {"loss": 0.5, "images": 8})
        assert lines(tmp_path) == [{"step": 10, "loss": 0.5, "images": 8}]
        writer.write(20, {"loss": np.float32(0.25)})
    assert lines(tmp_path)[1] == {"step": 20, "loss": 0.25}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32(np.nan)])
def test_numbers_that_are_not_finite_are_null(tmp_path, value):
    with terminal.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": value, "grad_norm": 2.0})
    assert lines(tmp_path) == [{"step": 1, "loss": None, "grad_norm": 2.0}]
    assert ("train/loss", 1) not in events(tmp_path)
    assert events(tmp_path)["train/grad_norm", 1] == 2.0


def test_events_hold_training_and_evaluation(tmp_path):
    entry = {
        "protocol": "laina",
        "averaging": "pooled",
        "metrics": {"rmse": 0.75, "log10": None},
    }
    with terminal.MetricsWriter(tmp_path) as writer:
        writer.write(5, {"loss": 0.5})
        writer.write_evaluation(5, entry)
    expected = {("train/loss", 5): 0.5, ("laina_pooled/rmse", 5): 0.75}
    assert events(tmp_path) == expected


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    with terminal.MetricsWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": float(step)})
    with terminal.MetricsWriter(tmp_path, resume_from=20) as writer:
        writer.write(30, {"loss": 0.0})
    found = [(r["step"], r["loss"]) for r in lines(tmp_path)]
    assert found == [(10, 10.0), (20, 20.0), (30, 0.0)]


def test_resuming_after_a_line_that_was_cut_off(tmp_path):
    with terminal.MetricsWriter(tmp_path) as writer:
        writer.write(10, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 20, "lo')
    assert [r["step"] for r in terminal.read_metrics(tmp_path)] == [10]
    with terminal.MetricsWriter(tmp_path, resume_from=10) as writer:
        writer.write(20, {"loss": 0.5})
    assert [r["step"] for r in lines(tmp_path)] == [10, 20]


def test_a_run_from_the_start_keeps_nothing(tmp_path):
    with terminal.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
    with terminal.MetricsWriter(tmp_path):
        assert lines(tmp_path) == []


def test_a_restart_hides_later_events_of_the_file_before(tmp_path):
    proto = importlib.import_module("tensorboardX.proto.event_pb2")
    for resume_from in (0, 10):
        with terminal.MetricsWriter(tmp_path, resume_from=resume_from) as writer:
            writer.write(resume_from + 10, {"loss": 1.0})
    starts = [
        event.step
        for event in all_events(tmp_path)
        if event.session_log.status == proto.SessionLog.START
    ]
    assert starts == [1, 11]
    assert set(events(tmp_path)) == {("train/loss", 10), ("train/loss", 20)}


def test_no_metrics_no_records(tmp_path):
    assert terminal.read_metrics(tmp_path) == []


FULL = """
import resource, sys
from pathlib import Path
from jaxdepth import writers
from jaxdepth.errors import MachineError
if sys.argv[2] == "events":
    writers.EVENTS_EVERY = 0.0
try:
    with writers.MetricsWriter(Path(sys.argv[1])) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        for step in range(4000 if sys.argv[2] == "lines" else 30):
            writer.write(step, {"loss": 1.0} | {f"{k}": 0.5 for k in range(9)})
except MachineError as error:
    print(error)
"""


@pytest.mark.parametrize("which", ["lines", "events", "close"])
def test_a_full_disk_ends_in_one_line_and_never_hangs(tmp_path, which):
    # A limit on file sizes stops root as well, which file modes would not.
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), which],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert "could not be written: File too large" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MachineError, match=r"absent/metrics\.jsonl"):
        terminal.MetricsWriter(tmp_path / "absent")


@contextlib.contextmanager
def said():
    """What the package logs, as a list of lines."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())
    package = logging.getLogger("jaxdepth")
    before = package.level
    package.setLevel(logging.DEBUG)
    package.addHandler(handler)
    try:
        yield texts
    finally:
        package.removeHandler(handler)
        package.setLevel(before)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_lines_in_a_pipe_come_seconds_apart_and_at_the_end(clock):
    with said() as texts, terminal.progress(100) as bar:
        for step in range(10, 101, 10):
            clock[0] += 2.0
            bar.update(step, loss=0.5, images_per_s=4.0)
    assert [text.split()[1] for text in texts] == [
        "10/100",
        "40/100",
        "70/100",
        "100/100",
    ]
    # 30 steps took 6 s after the first one, so the other 60 take 12.
    assert texts[1] == "step 40/100  loss 0.5000  4.0 images/s  left 0:12"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.7, "1:00"), (600, "10:00"), (3725, "1:02:05")],
)
def test_time_left_in_minutes_and_hours(clock, seconds, text):
    with said() as texts, terminal.progress(3) as bar:
        bar.update(1, loss=1.0, images_per_s=None)
        clock[0] += seconds if seconds > 5 else 10
        bar.update(2, loss=1.0, images_per_s=None)
    left = text if seconds > 5 else "0:10"
    assert texts[-1] == f"step 2/3  loss 1.0000  left {left}"


def test_a_resumed_run_goes_on_counting(clock):
    with said() as texts, terminal.progress(100, start=50) as bar:
        bar.update(51, loss=float("nan"), images_per_s=None)
    assert texts == ["step 51/100  loss nan"]


def test_a_terminal_gets_a_bar_that_fits(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with (
        contextlib.redirect_stdout(terminal),
        said() as texts,
        terminal.progress(1200, start=3) as bar,
    ):
        bar.update(600, loss=0.1234567, images_per_s=1234.5)
    assert texts == []
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).splitlines()[-1]
    assert "600/1200" in last and "loss 0.1235  1234.5 images/s  left" in last
    assert len(last) <= 80


def test_counter_tells_the_rate_and_what_is_left(clock):
    counter = terminal.Counter()
    clock[0] = 100.0
    with said() as texts:
        counter("rendering", 0, 64)
        clock[0] += 30.0  # compiling: no measure of the others
        for done in range(8, 65, 8):
            counter("rendering", done, 64)
            clock[0] += 2.0
        counter("looking", 0, 2)
        counter("looking", 2, 2)
    assert texts == [
        "rendering: 16 of 64, 4.0/s, left 0:12",
        "rendering: 40 of 64, 4.0/s, left 0:06",
        "rendering: 64 of 64, 4.0/s",
        "looking: 2 of 2",
    ]


COLUMNS = (
    "protocol, averaging",
    "delta1",
    "delta2",
    "delta3",
    "abs_rel",
    "rmse",
    "log10",
)
ROWS = [
    ("laina@114x152, pooled", 0.8124, 0.95, 0.99, 0.123, 0.573, 0.055),
    ("constant_delta (laina@114x152, per_image) [/x]", 0.1, 0.2, 0.3, 10.5, 1.5, None),
]
TITLE = "nyu_depth_v2_labeled, split tune, 81 images, truth filled; rmse in metres [m]"


def test_table_in_a_pipe_is_plain_and_whole(capsys):
    terminal.print_table(TITLE, COLUMNS, ROWS)
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title == TITLE
    assert head.split()[2:] == list(COLUMNS[1:])
    assert rows[0].split()[2:] == ["0.812", "0.950", "0.990", "0.123", "0.573", "0.055"]
    assert rows[1].endswith(" -") and len(rows) == 2
    assert len({len(line) for line in (head, *rows)}) == 1
    "".join([head, *rows]).encode("ascii")


def test_table_on_a_terminal_keeps_every_number_on_80_columns(terminal):
    with contextlib.redirect_stdout(terminal):
        terminal.print_table(TITLE, COLUMNS, ROWS)
    text = terminal.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for word in (*COLUMNS[1:], "0.812", "0.573", "0.055", "10.500", "[m]", "per_image"):
        assert word in text
    assert "…" not in text


def test_log_file_appends_with_the_time(tmp_path):
    path = tmp_path / "run.log"
    logger = logging.getLogger("jaxdepth.somewhere")
    with said():
        for text in ("first", "second"):
            with terminal.log_file() as begin:
                logger.info("before " + text)
                begin(path)
                logger.info(text)
        logger.info("after")
        with terminal.log_file():
            logger.info("never begun")
    written = path.read_text().splitlines()
    assert [line.split(" ", 3)[2:] for line in written] == [
        ["INFO", "before first"],
        ["INFO", "first"],
        ["INFO", "before second"],
        ["INFO", "second"],
    ]


def test_terminal_gets_plain_lines_and_warnings_apart(capsys):
    package = logging.getLogger("jaxdepth")
    before = package.handlers[:], package.level, package.propagate
    try:
        terminal.log_to_terminal()
        terminal.log_to_terminal()  # twice is once
        package.getChild("x").info("said")
        package.getChild("x").warning("warned")
        package.getChild("x").debug("not said")
    finally:
        package.handlers[:], package.level, package.propagate = before
    out = capsys.readouterr()
    assert (out.out, out.err) == ("said\n", "warned\n")


def test_text_is_written_whole_at_home_and_with_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    terminal.write_text("~/a.txt", "caf\udce9 \u00e9")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\\udce9 \xc3\xa9"
    with pytest.raises(MachineError, match="can't be written"):
        terminal.write_text(tmp_path / "none" / "a.txt", "")
