"""Run each host of a multi-host run in a child process, to report a crash in one line.

If a host does not join, or is lost, JAX aborts the process from C++ with a stack trace;
Python gets no exception. The parent process turns that into a message of one line.
"""

import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxdepth.runtime import subprocesses
from jaxdepth.runtime.errors import MachineError, UserError

NOTES = "JAXDEPTH_NOTES"  # the file in which the child records its progress
_FATAL = re.compile(r"F\d{4} \d\d:\d\d:|terminate called|\[\d+\] .*FATAL")
# The first words of messages from Python: see jaxdepth/commands/cli.py.
_PYTHON = re.compile(r"error: |stopped: |interrupted|Traceback ")
_CONNECTED = "the hosts are connected"


def is_child() -> bool:
    """Whether this process was started by `run`."""
    return NOTES in os.environ


def run(
    argv: Sequence[str],
    *,
    last_checkpoint: Callable[[str], str],
    coordinator: str | None = None,
) -> int:
    """Run `python -m ARGV` as a child process; return its exit code.

    Signals are forwarded to the child. Its stderr is relayed, except for the output of
    a C++ abort.

    Args:
      last_checkpoint: describes the newest checkpoint in the folder that the child
        recorded by `record_progress`.
      coordinator: HOST:PORT, for the message if the hosts can't connect.

    Raises:
      MachineError: a signal ended the child.
      UserError: --host or --hosts is wrong on a host.
    """
    stderr = _StderrFilter()
    with tempfile.TemporaryDirectory(prefix="jaxdepth-") as folder:
        notes = Path(folder) / "notes"
        completed = subprocesses.run(
            [sys.executable, "-m", *argv],
            environment={
                **os.environ,
                NOTES: str(notes),
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            on_stderr=stderr.write,
            pipe_stdin=True,  # for `exit_with_parent`
        )
        if completed.code >= 0:
            sys.stderr.write("".join(stderr.python_lines()))
            return completed.code
        progress = notes.read_text() if notes.exists() else ""
    error = _cause(-completed.code, "".join(stderr.lines), progress, coordinator)
    checkpoints = progress.replace(_CONNECTED, "").strip()
    if checkpoints:
        raise MachineError(f"{error}; {last_checkpoint(checkpoints)}")
    raise error


class _StderrFilter:
    """Relays lines to stderr until C++ reports a fatal error; keeps the rest."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        if self.lines or _FATAL.match(line):
            self.lines.append(line)
        else:
            subprocesses.write_stderr(line)

    def python_lines(self) -> Sequence[str]:
        """Return Python's lines after those of C++: both may report a lost peer."""
        indices = (k for k, line in enumerate(self.lines) if _PYTHON.match(line))
        return self.lines[next(indices, len(self.lines)) :]


def _cause(
    number: int, stderr: str, progress: str, coordinator: str | None
) -> MachineError | UserError:
    """Describe in one line why signal `number` ended the child."""
    status = re.search(r"absl::Status: (.*)", stderr)
    reason = status[1].strip() if status else ""
    name = signal.Signals(number).name
    if number != signal.SIGABRT or not reason:
        memory = ": too little memory?" if number == signal.SIGKILL else ""
        return MachineError(f"the process of this host was killed by {name}{memory}")
    if _CONNECTED not in progress:
        return _connection_error(reason, coordinator or "the coordinator")
    first = re.split(r"\. |\[type|: The following", reason)[0]
    return MachineError(
        f"lost peer: another host has ended or can't be reached ({first})"
    )


def _connection_error(reason: str, coordinator: str) -> MachineError | UserError:
    if reason.startswith("ALREADY_EXISTS"):
        return UserError("two hosts have the same index: give each its own --host")
    if "Unexpected task" in reason:
        return UserError("--hosts differs between the hosts: give the same --hosts=N")
    return MachineError(
        f"lost peer: not all hosts connected to {coordinator} in time ({reason}): run "
        "the same command on each, and make that address reachable"
    )


def record_progress(checkpoints: str = "") -> None:
    """Record for the parent that the hosts are connected, and the checkpoint folder."""
    if is_child():
        with contextlib.suppress(OSError):
            Path(os.environ[NOTES]).write_text(f"{_CONNECTED}\n{checkpoints}")


def exit_with_parent() -> None:
    """End this process as soon as its parent ends, even by SIGKILL."""

    def watch() -> None:
        # The parent holds the other end of stdin.
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
