"""Progress, tables and logs on a terminal and in a pipe."""

import contextlib
import io
import logging
import re

import pytest

from jaxdepth.runtime import terminal


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 80 columns, to redirect stdout to."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")  # no colour codes in the text
    return Terminal()


@contextlib.contextmanager
def logged():
    """The log of the package, as a list of lines."""
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
    """A clock that the test sets."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def test_progress_lines_are_seconds_apart_and_include_the_last(clock):
    with logged() as texts, terminal.progress(100) as bar:
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
def test_the_remaining_time_is_in_minutes_and_hours(clock, seconds, text):
    with logged() as texts, terminal.progress(3) as bar:
        bar.update(1, loss=1.0, images_per_s=None)
        clock[0] += seconds if seconds > 5 else 10
        bar.update(2, loss=1.0, images_per_s=None)
    left = text if seconds > 5 else "0:10"
    assert texts[-1] == f"step 2/3  loss 1.0000  left {left}"


def test_a_resumed_run_counts_from_its_first_step(clock):
    with logged() as texts, terminal.progress(100, start=50) as bar:
        bar.update(51, loss=float("nan"), images_per_s=None)
    assert texts == ["step 51/100  loss nan"]


def test_the_progress_bar_fits_the_terminal(screen, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with (
        contextlib.redirect_stdout(screen),
        logged() as texts,
        terminal.progress(1200, start=3) as bar,
    ):
        bar.update(600, loss=0.1234567, images_per_s=1234.5)
    assert texts == []
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).splitlines()[-1]
    assert "600/1200" in last and "loss 0.1235  1234.5 images/s  left" in last
    assert len(last) <= 80


def test_counter_logs_the_rate_and_the_remaining_time(clock):
    counter = terminal.Counter()
    clock[0] = 100.0
    with logged() as texts:
        counter("rendering", 0, 64)
        clock[0] += 30.0  # compilation, left out of the rate
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


def test_a_table_in_a_pipe_is_plain_and_complete(capsys):
    terminal.print_table(TITLE, COLUMNS, ROWS)
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title == TITLE
    assert head.split()[2:] == list(COLUMNS[1:])
    assert rows[0].split()[2:] == ["0.812", "0.950", "0.990", "0.123", "0.573", "0.055"]
    assert rows[1].endswith(" -") and len(rows) == 2
    assert len({len(line) for line in (head, *rows)}) == 1
    "".join([head, *rows]).encode("ascii")


def test_a_table_on_80_columns_keeps_every_number(screen):
    with contextlib.redirect_stdout(screen):
        terminal.print_table(TITLE, COLUMNS, ROWS)
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for word in (*COLUMNS[1:], "0.812", "0.573", "0.055", "10.500", "[m]", "per_image"):
        assert word in text
    assert "…" not in text


def test_the_log_file_is_appended_with_the_time(tmp_path):
    path = tmp_path / "run.log"
    logger = logging.getLogger("jaxdepth.somewhere")
    with logged():
        for text in ("first", "second"):
            with terminal.log_file() as begin:
                logger.info("before " + text)
                begin(path)
                logger.info(text)
        logger.info("after")
        with terminal.log_file():
            logger.info("not opened")
    written = path.read_text().splitlines()
    assert [line.split(" ", 3)[2:] for line in written] == [
        ["INFO", "before first"],
        ["INFO", "first"],
        ["INFO", "before second"],
        ["INFO", "second"],
    ]


def test_the_log_goes_to_stdout_and_warnings_to_stderr(capsys):
    package = logging.getLogger("jaxdepth")
    before = package.handlers[:], package.level, package.propagate
    try:
        terminal.log_to_terminal()
        terminal.log_to_terminal()  # the second call has no effect
        package.getChild("x").info("logged")
        package.getChild("x").warning("warned")
        package.getChild("x").debug("not logged")
    finally:
        package.handlers[:], package.level, package.propagate = before
    out = capsys.readouterr()
    assert (out.out, out.err) == ("logged\n", "warned\n")


def test_control_characters_are_never_printed(capsys, tmp_path):
    package = logging.getLogger("jaxdepth")
    before = package.level, package.propagate, list(package.handlers)
    try:
        terminal.log_to_terminal()
        with terminal.log_file() as begin:
            begin(tmp_path / "run.log")
            package.info("%s\ntwo lines", "a\x1b[2J")
        terminal.print_table("title", ["name"], [["b\x1b[2J"]])
    finally:
        package.level, package.propagate, package.handlers[:] = before
    printed = capsys.readouterr().out
    assert r"b\x1b[2J" in printed
    for text in (printed, (tmp_path / "run.log").read_text()):
        assert r"a\x1b[2J" in text and "\ntwo lines" in text and "\x1b" not in text
