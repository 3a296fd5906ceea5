"""What a run writes while it goes: metrics.jsonl, TensorBoard events, log, progress."""

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

logger = logging.getLogger(__name__)
EVENTS_EVERY = 10.0  # seconds between writes of buffered events to disk
PLAIN_EVERY = 5.0  # seconds between progress lines where there is no terminal


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
