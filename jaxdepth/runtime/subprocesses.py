"""Child processes: run a command, forward signals to it, relay its stderr."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Completed:
    """How a child process ended.

    Attributes:
      code: the exit code; -N if signal N killed the process.
      reason: the last line on stderr, or the signal that killed the process; "" if
        there is neither.
      stopped: this process received a signal and forwarded it.
      timed_out: the child was stopped at its time limit.
    """

    code: int
    reason: str
    stopped: bool
    timed_out: bool = False


def write_stderr(line: str) -> None:
    """Write a line to this process's stderr at once."""
    sys.stderr.write(line)
    sys.stderr.flush()


def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    on_stderr: Callable[[str], None] = write_stderr,
    log: IO[Any] | None = None,
    pipe_stdin: bool = False,
    timeout: float | None = None,
    grace: float = 0.0,
) -> Completed:
    """Run a command until it ends; forward SIGINT, SIGTERM and SIGHUP to it.

    The child has its own process group, so that Ctrl-C in a terminal reaches only this
    process, which forwards it once: the first Ctrl-C stops a training run after the
    current step, the second one at once.

    Args:
      on_stderr: called for each line that the child writes to stderr.
      log: a file for the child's stdout and stderr, in place of `on_stderr`. Without
        it the child inherits stdout.
      pipe_stdin: connect the child's stdin to a pipe, which closes when this process
        ends, even by SIGKILL.
      timeout: seconds until the child gets SIGINT. Requires `log`.
      grace: seconds from that SIGINT until the child's process group is killed.
    """
    with (
        _SignalForwarder() as forwarder,
        subprocess.Popen(
            argv,
            stdin=subprocess.PIPE if pipe_stdin else None,
            stdout=log,
            stderr=subprocess.PIPE if log is None else subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environment),
            start_new_session=True,
        ) as process,
    ):
        forwarder.attach(process)
        last, timed_out = "", False
        try:
            if process.stderr is not None:
                last = _relay(process.stderr, on_stderr)
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code, timed_out = _stop(process, grace), True
        except BaseException:
            _stop(process, grace)
            raise
    killed = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
    return Completed(code, killed or last, forwarder.received, timed_out)


def _relay(lines: Iterable[str], on_line: Callable[[str], None]) -> str:
    """Call `on_line` for each line; return the last line that is not blank."""
    last = ""
    for line in lines:
        on_line(line)
        last = line.strip() or last
    return last


def _stop(process: subprocess.Popen, grace: float) -> int:
    """Interrupt a process; after `grace` seconds kill it and its children."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


class _SignalForwarder:
    """Sends the signals that this process receives to a child process.

    `attach` sends the signals that arrived before it. Outside the main thread Python
    installs no handlers, so nothing is forwarded. An ignored SIGHUP (nohup) stays
    ignored; an ignored SIGINT does not, because the child would inherit that.
    """

    def __init__(self) -> None:
        self._pending: list[int] = []
        self._process: subprocess.Popen | None = None
        self.received = False

    def __enter__(self) -> "_SignalForwarder":
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in FORWARDED:
                ignored = signal.getsignal(number) == signal.SIG_IGN
                if not (ignored and number == signal.SIGHUP):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def attach(self, process: subprocess.Popen) -> None:
        """Set the process that gets the signals."""
        self._process = process
        self._send_pending()

    def _handle(self, number: int, _: Any) -> None:
        self.received = True
        self._pending.append(number)
        if self._process is not None:
            self._send_pending()

    def _send_pending(self) -> None:
        assert self._process is not None
        for number in self._pop_pending():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _pop_pending(self) -> Iterator[int]:
        # A handler may run between any two instructions: pop before sending.
        with contextlib.suppress(IndexError):
            while True:
                yield self._pending.pop(0)
