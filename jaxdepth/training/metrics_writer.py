"""Scalars that a run logs: metrics.jsonl and TensorBoard events."""

import contextlib
import importlib
import json
import math
import socket
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

from jaxdepth.runtime import atomic, storage
from jaxdepth.workdir import METRICS, plain

EVENTS_EVERY = 10.0  # seconds between writes of buffered events to disk


class MetricsWriter:
    """metrics.jsonl and TensorBoard events in a work directory.

    Args:
      folder: folder of the run.
      resume_from: step to resume from; records of later steps are dropped.

    Raises MachineError if metrics.jsonl can't be written.
    """

    def __init__(self, folder: Path, *, resume_from: int = 0):
        self.path = folder / METRICS
        self._lines = _lines_until(self.path, resume_from)
        self._events = _Events(folder / "events", resume_from)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for file in (self._lines, self._events):
            # An error that stopped the run takes precedence: usually the same.
            errors = storage.write_errors(self.path.parent)
            with contextlib.suppress(OSError) if kind else errors:
                file.close()

    def write(self, step: int, record: dict[str, Any]) -> None:
        """Append the record of a logged step; non-finite numbers become null.

        Raises MachineError if storage fails.
        """
        with storage.write_errors(self.path):
            self._lines.write(json.dumps(plain({"step": step, **record})) + "\n")
            self._lines.flush()
        self._scalars("train", step, record)

    def write_evaluation(self, step: int, entry: dict[str, Any]) -> None:
        """Add an entry of results.json to the events. Raises as `write`."""
        self._scalars(
            f"{entry['protocol']}_{entry['averaging']}", step, entry["metrics"]
        )

    def _scalars(self, prefix: str, step: int, values: dict[str, Any]) -> None:
        numbers = {
            f"{prefix}/{name}": float(value)
            for name, value in values.items()
            # Values that are not finite are null in metrics.jsonl.
            if isinstance(value, int | float) and math.isfinite(value)
        }
        with storage.write_errors(self._events.folder):
            self._events.write(step, numbers)


class _Events:
    """A TensorBoard event file of scalars, written in the calling thread.

    tensorboardX's SummaryWriter writes in a background thread; if storage fails, that
    thread dies and the run waits for it forever.
    """

    def __init__(self, folder: Path, step: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._proto = importlib.import_module("tensorboardX.proto.event_pb2")
            scalars = importlib.import_module("tensorboardX.proto.summary_pb2")
            from tensorboardX.record_writer import RecordWriter
        self.folder, self._summary = folder, scalars.Summary
        self._flushed = -math.inf
        with storage.write_errors(folder):
            folder.mkdir(exist_ok=True)
            # The step distinguishes files of restarts within one second.
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
            self._file = RecordWriter(str(folder / f"{name}.{step}"))
            self._write(0, file_version="brain.Event:2")
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            # TensorBoard then hides events of earlier files from this step on.
            self._write(step + 1, session_log=start)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        value = [
            self._summary.Value(tag=name, simple_value=number)
            for name, number in numbers.items()
        ]
        self._write(step, summary=self._summary(value=value))

    def _write(self, step: int, **content: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), step=step, **content)
        self._file.write(event.SerializeToString())
        if time.monotonic() - self._flushed >= EVENTS_EVERY:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the records of metrics.jsonl; damaged lines are skipped."""
    path = folder / METRICS
    records = []
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def _lines_until(path: Path, step: int) -> TextIO:
    """Drop records after `step` from metrics.jsonl, and open it for appending."""
    with storage.write_errors(path):
        if path.exists():
            records = [r for r in read_metrics(path.parent) if r["step"] <= step]
            with atomic.atomic_write(path) as file:
                file.write("".join(json.dumps(r) + "\n" for r in records).encode())
        return open(path, "a")
