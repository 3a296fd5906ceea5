"""A command as a process of its own: our signals go on to it, its last words stay."""

import contextlib
import dataclasses
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      code: its exit code; negative: minus the signal that killed it.
      reason: its last line on stderr, or what killed it; "" where it said nothing.
      stopped: whether we were told to stop meanwhile.
    """

    code: int
    reason: str
    stopped: bool


def launch(argv: Sequence[str], *, environment: Mapping[str, str]) -> Ended:
    """Run a command to its end; stdout and stderr are ours.

    It has its own process group, so that Ctrl-C in a terminal reaches us alone and
    goes on to it once: the first stops a run after its step, the second at once.
    """
    with _Signals() as signals:
        with subprocess.Popen(
            argv,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=dict(environment),
            start_new_session=True,
        ) as process:
            signals.pass_on_to(process)
            assert process.stderr is not None
            last = _copy(process.stderr)
            code = process.wait()
        killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
        return Ended(code, killed or last, signals.received)


def _copy(lines: Iterable[str]) -> str:
    """Put lines on stderr as they come; returns the last one with a word in it."""
    last = ""
    for line in lines:
        sys.stderr.write(line)
        sys.stderr.flush()
        last = line.strip() or last
    return last


class _Signals:
    """Hands the signals that stop us on to a process. Off the main thread: none."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._process: subprocess.Popen | None = None
        self.received = False

    def __enter__(self) -> "_Signals":
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._note) for n in STOPS}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_on_to(self, process: subprocess.Popen) -> None:
        self._process = process
        for number in self._taken():
            process.send_signal(number)

    def _note(self, number: int, _: Any) -> None:
        self.received = True
        self._waiting.append(number)
        if self._process is not None:
            for waiting in self._taken():
                self._process.send_signal(waiting)

    def _taken(self) -> Iterator[int]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._waiting.pop(0)
