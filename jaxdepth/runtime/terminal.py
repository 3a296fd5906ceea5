"""What a run writes while it goes: metrics.jsonl, TensorBoard events, log, progress."""

import contextlib
import importlib
import json
import logging
import logging.handlers
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from jaxdepth.runtime import hosts, atomic
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.workdir import METRICS, plain

logger = logging.getLogger(__name__)
EVENTS_EVERY = 10.0  # seconds between writes of buffered events to disk
PLAIN_EVERY = 5.0  # seconds between progress lines where there is no terminal


class MetricsWriter:
    """metrics.jsonl and TensorBoard events in a work directory.

    Args:
      folder: of the run.
      resume_from: records of later steps, of a run that was cut off, are dropped.

    Raises MachineError where metrics.jsonl can't be written.
    """

    def __init__(self, folder: Path, *, resume_from: int = 0):
        self.path = folder / METRICS
        self._lines = _lines_until(self.path, resume_from)
        self._events = _Events(folder / "events", resume_from)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for file in (self._lines, self._events):
            try:
                file.close()
            except OSError as error:
                # What stopped the run comes first; here it is most often the same.
                if kind is None:
                    raise _cannot_write(self.path.parent, error) from error

    def write(self, step: int, record: dict[str, Any]) -> None:
        """Append the record of a logged step; non-finite numbers become null.

        Raises MachineError where storage fails.
        """
        try:
            self._lines.write(json.dumps(plain({"step": step, **record})) + "\n")
            self._lines.flush()
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._scalars("train", step, record)

    def write_evaluation(self, step: int, entry: dict[str, Any]) -> None:
        """Add an entry of results.json to the events. MachineError as for `write`."""
        self._scalars(
            f"{entry['protocol']}_{entry['averaging']}", step, entry["metrics"]
        )

    def _scalars(self, prefix: str, step: int, values: dict[str, Any]) -> None:
        numbers = {
            f"{prefix}/{name}": float(value)
            for name, value in values.items()
            # What is not finite says so in metrics.jsonl, as null.
            if isinstance(value, int | float) and math.isfinite(value)
        }
        try:
            self._events.write(step, numbers)
        except OSError as error:
            raise _cannot_write(self._events.folder, error) from error


class _Events:
    """A TensorBoard event file of scalars, written where it is called.

    tensorboardX's own SummaryWriter hands events to a thread; where storage fails
    the thread dies and the run then waits for it for ever.
    """

    def __init__(self, folder: Path, step: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._proto = importlib.import_module("tensorboardX.proto.event_pb2")
            scalars = importlib.import_module("tensorboardX.proto.summary_pb2")
            from tensorboardX.event_file_writer import EventsWriter
        self.folder, self._summary = folder, scalars.Summary
        self._flushed = -math.inf
        try:
            folder.mkdir(exist_ok=True)
            # File names count seconds: the step tells two quick restarts apart.
            self._file = EventsWriter(str(folder / "events"), f".{step}")
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            # TensorBoard hides what an earlier file has from this step on.
            self._write(step + 1, session_log=start)
        except OSError as error:
            raise _cannot_write(folder, error) from error

    def write(self, step: int, numbers: dict[str, float]) -> None:
        value = [
            self._summary.Value(tag=name, simple_value=number)
            for name, number in numbers.items()
        ]
        self._write(step, summary=self._summary(value=value))

    def _write(self, step: int, **content: Any) -> None:
        event = self._proto.Event(wall_time=time.time(), step=step, **content)
        self._file.write_event(event)
        if time.monotonic() - self._flushed >= EVENTS_EVERY:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a line that was cut off is left out."""
    path = folder / METRICS
    records = []
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def _lines_until(path: Path, step: int) -> TextIO:
    """metrics.jsonl, open at its end, with the records up to `step` alone."""
    try:
        if path.exists():
            kept = [r for r in read_metrics(path.parent) if r["step"] <= step]
            with atomic.replacing(path) as file:
                file.write("".join(json.dumps(r) + "\n" for r in kept).encode())
        return open(path, "a")
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> MachineError:
    return MachineError(f"{path} could not be written: {error.strerror}")


class _Bar:
    """A progress bar on a terminal."""

    def __init__(self, total: int, start: int):
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]}left"),
            TimeRemainingColumn(),
            console=console(),
            expand=True,
            # Updates come with the log, which may be minutes apart.
            speed_estimate_period=1800,
        )
        self._progress.start()
        self._task = self._progress.add_task(
            "", total=total, completed=start, loss="-", rate=""
        )

    def update(self, step: int, *, loss: float, images_per_s: float | None) -> None:
        self._progress.update(
            self._task,
            completed=step,
            loss=f"{loss:.4f}",
            rate=f"{images_per_s:.1f} images/s  " if images_per_s else "",
        )

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """Progress as plain lines, some seconds apart."""

    def __init__(self, total: int, start: int):
        self._total, self._start = total, start
        self._began = self._last = time.monotonic()
        self._first: tuple[int, float] | None = None

    def update(self, step: int, *, loss: float, images_per_s: float | None) -> None:
        now = time.monotonic()
        if self._first is None:  # the first step compiles: no measure of the others
            self._first = step, now
        elif now - self._last < PLAIN_EVERY and step < self._total:
            return
        self._last = now
        rate = f"  {images_per_s:.1f} images/s" if images_per_s else ""
        line = (
            f"step {step}/{self._total}  loss {loss:.4f}{rate}{self._left(step, now)}"
        )
        logger.info(line)

    def _left(self, step: int, now: float) -> str:
        assert self._first is not None
        first, since = self._first
        if step <= first:
            return ""
        left = (now - since) / (step - first) * (self._total - step)
        return f"  left {_clock(left)}"

    def close(self) -> None:
        pass


@contextlib.contextmanager
def progress(total: int, *, start: int = 0) -> Iterator[_Bar | _Lines]:
    """A bar on a terminal, plain lines elsewhere; `update` after each logged step."""
    bar = (_Bar if console().is_terminal and hosts.first() else _Lines)(total, start)
    try:
        yield bar
    finally:
        bar.close()


class Counter:
    """Progress of one thing after another, its rate and the time left, as lines.

    "preparing rooms: 64 of 528, 21.3/s, left 0:22", first after a second. What comes
    before the second call, as compiling, is no measure of the others.
    """

    def __init__(self):
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._since, self._next = what, None, now + 1
        elif self._since is None:
            self._since, self._next = (done, now), now + 1
        if done < total and now < self._next:
            return
        self._next = now + PLAIN_EVERY
        logger.info("%s: %d of %d%s", what, done, total, self._rate(done, total, now))

    def _rate(self, done: int, total: int, now: float) -> str:
        if self._since is None or done <= self._since[0] or now <= self._since[1]:
            return ""
        rate = (done - self._since[0]) / (now - self._since[1])
        left = f", left {_clock((total - done) / rate)}" if done < total else ""
        return f", {rate:.1f}/s{left}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )


def console() -> Console:
    """The terminal, or a pipe, as rich sees it."""
    return Console(file=sys.stdout, highlight=False)


class _TerminalHandler(logging.Handler):
    """Log lines on the terminal, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        stream: TextIO = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)


def log_to_terminal() -> None:
    """Show what this package says: plain lines on stdout, warnings on stderr."""
    package = logging.getLogger("jaxdepth")
    package.setLevel(logging.DEBUG)  # for the log file, which keeps tracebacks
    package.propagate = False
    if not any(isinstance(h, _TerminalHandler) for h in package.handlers):
        handler = _TerminalHandler()
        handler.setLevel(logging.INFO)
        package.addHandler(handler)


def only_errors_to_terminal() -> None:
    """Leave the terminal to another host, which says the same."""
    for handler in logging.getLogger("jaxdepth").handlers:
        if isinstance(handler, _TerminalHandler):
            handler.setLevel(logging.ERROR)


@contextlib.contextmanager
def log_file() -> Iterator[Callable[[Path], None]]:
    """Append everything that this package says to a file, with the time.

    Yields: a function that opens the file. What was said before that, while its folder
    was still to be made, is written first.
    """
    package = logging.getLogger("jaxdepth")
    if package.level == logging.NOTSET:
        package.setLevel(logging.INFO)
    waiting = logging.handlers.MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1)
    package.addHandler(waiting)

    def begin(path: Path) -> None:
        handler = logging.FileHandler(path)
        layout = "%(asctime)s %(levelname)s %(message)s"
        handler.setFormatter(logging.Formatter(layout))
        waiting.setTarget(handler)
        waiting.flush()
        package.removeHandler(waiting)
        package.addHandler(handler)
        stack.callback(_close_quietly, handler)
        stack.callback(package.removeHandler, handler)

    with contextlib.ExitStack() as stack:
        try:
            yield begin
        finally:
            # Without the target: what nobody asked to keep is not written on closing.
            waiting.setTarget(None)
            package.removeHandler(waiting)
            waiting.close()


def _close_quietly(handler: logging.Handler) -> None:
    """On a full disk the end of the log is lost; whatever else is lost says so."""
    with contextlib.suppress(OSError):
        handler.close()


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """A table on the terminal; numbers with three places, None as a dash.

    Where it is narrow the first column wraps, numbers never do. In a pipe there are
    no frames and nothing is folded.
    """
    out = console()
    if not out.is_terminal:
        out.print(_plain_table(title, columns, rows), markup=False, soft_wrap=True)
        return
    # As Text: in a string, rich takes square brackets for markup.
    table = Table(
        title=Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    for k, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if k else "left",
            no_wrap=k > 0,
            overflow="fold",
            min_width=len(column) if k else None,
        )
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    out.print(table)


def _plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> str:
    """The table as lines of text, columns two spaces apart."""
    lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([title, *texts])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def check_new_file(path: str | Path, *, flag: str) -> None:
    """UserError where a file that a flag asks for could not be made at its end."""
    path = Path(path).expanduser()
    if path.exists():
        raise UserError(f"--{flag}={path} exists: name another file")
    if not path.parent.is_dir():
        raise UserError(f"--{flag}={path}: there is no folder {path.parent}")


def check_apart(**paths: str | Path) -> None:
    """UserError where two flags name one file, which the second would replace."""
    seen: dict[Path, str] = {}
    for flag, path in paths.items():
        other = seen.setdefault(Path(path).expanduser().resolve(), flag)
        if other != flag:
            raise UserError(f"--{other} and --{flag} both name {path}: name two files")


def check_ours(path: Path, mark: str, *, flag: str) -> None:
    """UserError where a file is in the way that does not begin with our mark.

    The mark is looked for in the first 4096 bytes.
    """
    try:
        with open(path, "rb") as file:
            ours = mark.encode() in file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--{flag}: {path}: {error.strerror}") from None
    if not ours:
        raise UserError(
            f"{path} is there and was not written by this command: name another "
            f"--{flag}"
        )


def write_text(path: str | Path, text: str) -> None:
    """A text file, whole or not at all; MachineError where it can't be.

    Names of files that are not UTF-8 are written with escapes.
    """
    path = Path(path).expanduser()
    try:
        with atomic.replacing(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise MachineError(f"{path} can't be written: {error.strerror}") from error
