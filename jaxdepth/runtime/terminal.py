"""Terminal output: progress, log lines and tables; and the log file of a run."""

import contextlib
import logging
import logging.handlers
import sys
import time
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

from jaxdepth.runtime import hosts
from jaxdepth.runtime.errors import printable

logger = logging.getLogger(__name__)
PLAIN_EVERY = 5.0  # seconds between progress lines if there is no terminal


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
            # The log, which may come minutes apart, updates the bar.
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
    """Progress as plain lines, at least `PLAIN_EVERY` seconds apart."""

    def __init__(self, total: int):
        self._total = total
        self._last = time.monotonic()
        self._first: tuple[int, float] | None = None

    def update(self, step: int, *, loss: float, images_per_s: float | None) -> None:
        now = time.monotonic()
        if self._first is None:  # it includes compilation: left out of the rate
            self._first = step, now
        elif now - self._last < PLAIN_EVERY and step < self._total:
            return
        self._last = now
        rate = f"  {images_per_s:.1f} images/s" if images_per_s else ""
        left = self._left(step, now)
        logger.info(f"step {step}/{self._total}  loss {loss:.4f}{rate}{left}")

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
    """Show a progress bar on a terminal, plain lines elsewhere.

    Yields: the bar; call its `update` after each logged step.
    """
    on_terminal = console().is_terminal and hosts.is_first_host()
    bar = _Bar(total, start) if on_terminal else _Lines(total)
    try:
        yield bar
    finally:
        bar.close()


class Counter:
    """Progress callback that logs lines with the rate and the remaining time.

    "preparing rooms: 64 of 528, 21.3/s, left 0:22", the first after one second. The
    time before the second call is left out of the rate, because it may include
    compilation. A call with another `what` starts a new count.
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
    """Return a rich console for stdout."""
    return Console(file=sys.stdout, highlight=False)


class _Formatter(logging.Formatter):
    """Escapes control characters, which could come from names of files.

    Line breaks are kept: tracebacks have several lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return "\n".join(printable(line, None) for line in lines)


class _TerminalHandler(logging.Handler):
    """Prints log lines above the progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        stream: TextIO = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(self.format(record), file=stream, flush=True)


def log_to_terminal() -> None:
    """Print the log of this package: plain lines on stdout, warnings on stderr."""
    package = logging.getLogger("jaxdepth")
    package.setLevel(logging.DEBUG)  # the log file contains tracebacks
    package.propagate = False
    if not any(isinstance(h, _TerminalHandler) for h in package.handlers):
        handler = _TerminalHandler()
        handler.setFormatter(_Formatter())
        handler.setLevel(logging.INFO)
        package.addHandler(handler)


def only_errors_to_terminal() -> None:
    """Print errors only, on hosts other than host 0, which prints the same log."""
    for handler in logging.getLogger("jaxdepth").handlers:
        if isinstance(handler, _TerminalHandler):
            handler.setLevel(logging.ERROR)


@contextlib.contextmanager
def log_file() -> Iterator[Callable[[Path], None]]:
    """Append the log of this package to a file, with the time of each line.

    Yields: a function that opens the file. Lines logged before that call, while the
    folder does not exist yet, are written first.
    """
    package = logging.getLogger("jaxdepth")
    if package.level == logging.NOTSET:
        package.setLevel(logging.INFO)
    buffer = logging.handlers.MemoryHandler(10**6, flushLevel=logging.CRITICAL + 1)
    package.addHandler(buffer)

    def begin(path: Path) -> None:
        handler = logging.FileHandler(path)
        layout = "%(asctime)s %(levelname)s %(message)s"
        handler.setFormatter(_Formatter(layout))
        buffer.setTarget(handler)
        buffer.flush()
        package.removeHandler(buffer)
        package.addHandler(handler)
        stack.callback(_close_quietly, handler)
        stack.callback(package.removeHandler, handler)

    with contextlib.ExitStack() as stack:
        try:
            yield begin
        finally:
            # Without a target, buffered lines are dropped.
            buffer.setTarget(None)
            package.removeHandler(buffer)
            buffer.close()


def _close_quietly(handler: logging.Handler) -> None:
    """Close a log file; ignore errors of a full disk, which lose its last lines."""
    with contextlib.suppress(OSError):
        handler.close()


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Print a table; floats have three decimals, None is a dash.

    On a narrow terminal the first column wraps, the others don't. In a pipe there are
    no borders and nothing wraps.
    """
    out = console()
    if not out.is_terminal:
        out.print(_plain_table(title, columns, rows), markup=False, soft_wrap=True)
        return
    # Text, because rich interprets square brackets in a string as markup.
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
    """Format a table as lines of text with two spaces between columns."""
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
    return f"{value:.3f}" if isinstance(value, float) else printable(value, None)
