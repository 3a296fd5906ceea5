"""Logged scalars, read back by other means."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from jaxdepth.runtime.errors import MachineError
from jaxdepth.training import metrics_writer


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def all_events(folder):
    """What the event files hold: records of TensorFlow's framing, taken apart here."""
    event_class = importlib.import_module("tensorboardX.proto.event_pb2").Event
    events = []
    for path in sorted((folder / "events").iterdir()):
        data = path.read_bytes()
        while data:  # length (8 bytes), its checksum (4), record, checksum (4)
            length = int.from_bytes(data[:8], "little")
            events.append(event_class.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def events(folder):
    """(tag, step) -> value of all event files."""
    return {
        (value.tag, event.step): value.simple_value
        for event in all_events(folder)
        for value in event.summary.value
    }


def test_a_record_is_a_line_at_once(tmp_path):
    with metrics_writer.MetricsWriter(tmp_path) as writer:
        writer.write(10, {"loss": 0.5, "images": 8})
        assert lines(tmp_path) == [{"step": 10, "loss": 0.5, "images": 8}]
        writer.write(20, {"loss": np.float32(0.25)})
    assert lines(tmp_path)[1] == {"step": 20, "loss": 0.25}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32(np.nan)])
def test_numbers_that_are_not_finite_are_null(tmp_path, value):
    with metrics_writer.MetricsWriter(tmp_path) as writer:
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
    with metrics_writer.MetricsWriter(tmp_path) as writer:
        writer.write(5, {"loss": 0.5})
        writer.write_evaluation(5, entry)
    expected = {("train/loss", 5): 0.5, ("laina_pooled/rmse", 5): 0.75}
    assert events(tmp_path) == expected


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    with metrics_writer.MetricsWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": float(step)})
    with metrics_writer.MetricsWriter(tmp_path, resume_from=20) as writer:
        writer.write(30, {"loss": 0.0})
    actual = [(r["step"], r["loss"]) for r in lines(tmp_path)]
    assert actual == [(10, 10.0), (20, 20.0), (30, 0.0)]


def test_resuming_after_a_line_that_was_cut_off(tmp_path):
    with metrics_writer.MetricsWriter(tmp_path) as writer:
        writer.write(10, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("[" * 100_000 + '\n{"step": ' + "9" * 5000 + '}\n{"step": 20, "lo')
    assert [r["step"] for r in metrics_writer.read_metrics(tmp_path)] == [10]
    with metrics_writer.MetricsWriter(tmp_path, resume_from=10) as writer:
        writer.write(20, {"loss": 0.5})
    assert [r["step"] for r in lines(tmp_path)] == [10, 20]


def test_a_run_from_the_start_keeps_nothing(tmp_path):
    with metrics_writer.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
    with metrics_writer.MetricsWriter(tmp_path):
        assert lines(tmp_path) == []


def test_a_restart_hides_later_events_of_the_file_before(tmp_path):
    proto = importlib.import_module("tensorboardX.proto.event_pb2")
    for resume_from in (0, 10):
        with metrics_writer.MetricsWriter(tmp_path, resume_from=resume_from) as writer:
            writer.write(resume_from + 10, {"loss": 1.0})
    starts = [
        event.step
        for event in all_events(tmp_path)
        if event.session_log.status == proto.SessionLog.START
    ]
    assert starts == [1, 11]
    assert set(events(tmp_path)) == {("train/loss", 10), ("train/loss", 20)}


def test_no_metrics_no_records(tmp_path):
    assert metrics_writer.read_metrics(tmp_path) == []


FULL = """
import resource, sys
from pathlib import Path
from jaxdepth.training import metrics_writer
from jaxdepth.runtime.errors import MachineError
if sys.argv[2] == "events":
    metrics_writer.EVENTS_EVERY = 0.0
try:
    with metrics_writer.MetricsWriter(Path(sys.argv[1])) as writer:
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
        metrics_writer.MetricsWriter(tmp_path / "absent")
