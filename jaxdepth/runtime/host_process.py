"""A parent for each of several hosts' processes, that tells in one line how it died.

Where a host does not come, or goes, JAX ends the process from within C++, with a stack
trace and no word to Python. So on several hosts the work is done by a child process.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from jaxdepth.runtime.errors import MachineError, UserError

NOTES = "JAXDEPTH_NOTES"  # file in which the child says how far it is
_FATAL = re.compile(rb"F\d{4} \d\d:\d\d:|terminate called|\[\d+\] .*FATAL")
_OWN = re.compile(r"error: |stopped: |interrupted|Traceback ")  # see jaxdepth/cli.py
_MET = "the hosts have met"


def inside() -> bool:
    """Whether this process has such a parent."""
    return NOTES in os.environ


def run(argv: Sequence[str], *, met_at: str | None = None) -> int:
    """`python -m ARGV` as a child; its exit code.

    Signals go on to the child. Its stderr comes through, but for what C++ says when it
    ends the process.

    Args:
      met_at: the coordinator's address, for the message where hosts don't meet.

    Raises: MachineError where the child was ended, UserError where the hosts were
      numbered wrongly.
    """
    with tempfile.TemporaryDirectory(prefix="jaxdepth-") as folder:
        notes = Path(folder) / "notes"
        child = subprocess.Popen(
            [sys.executable, "-m", *argv],
            env={**os.environ, NOTES: str(notes), "TF_CPP_MIN_LOG_LEVEL": "3"},
            # Held open while this process lives: see `leave_with_parent`.
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A terminal sends Ctrl-C to its whole group: the child hears it from here.
            start_new_session=True,
        )
        assert child.stderr is not None
        with child, _passing_on(child):
            held = _relay(child.stderr)
            code = child.wait()
        if code >= 0:
            sys.stderr.write("".join(_own(held)))
            return code
        said = notes.read_text() if notes.exists() else ""
    raise _explained(-code, "".join(held), said, met_at)


@contextlib.contextmanager
def _passing_on(child: subprocess.Popen) -> Iterator[None]:
    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _relay(stream: BinaryIO | Iterable[bytes]) -> list[str]:
    """Pass lines on to stderr, until C++ says its last words, which are returned."""
    held: list[str] = []
    for line in stream:
        if held or _FATAL.match(line):
            held.append(line.decode(errors="replace"))
            continue
        sys.stderr.write(line.decode(errors="replace"))
        sys.stderr.flush()
    return held


def _own(held: Sequence[str]) -> Sequence[str]:
    """What Python said while C++ was speaking: both may see a peer go."""
    first = next((i for i, line in enumerate(held) if _OWN.match(line)), len(held))
    return held[first:]


def _explained(
    number: int, words: str, notes: str, met_at: str | None
) -> MachineError | UserError:
    """The death of a child by signal `number`, in one line."""
    status = re.search(r"absl::Status: (.*)", words)
    reason = status[1].strip() if status else ""
    name = signal.Signals(number).name
    if number != signal.SIGABRT or not reason:
        what = f"this host's process was ended by {name}"
        what += ": too little memory?" if number == signal.SIGKILL else ""
    elif _MET not in notes:
        return _not_met(reason, met_at or "the coordinator")
    else:
        first = re.split(r"\. |\[type|: The following", reason)[0]
        what = f"lost peer: another host was ended or can't be reached ({first})"
    folder = notes.replace(_MET, "").strip()
    return MachineError(f"{what}; {_last_good(folder)}" if folder else what)


def _last_good(folder: str) -> str:
    from jaxdepth.training.checkpoint import last_in  # Orbax takes seconds to import

    return last_in(folder)


def _not_met(reason: str, where: str) -> MachineError | UserError:
    if reason.startswith("ALREADY_EXISTS"):
        return UserError("two hosts have one number: give each its own --host")
    if "Unexpected task" in reason:
        return UserError("the hosts were given different --hosts=N")
    return MachineError(
        f"lost peer: not all hosts came to {where} in time ({reason}): run the same "
        "command on each, and let them reach that address"
    )


def note(checkpoints: str = "") -> None:
    """Tell the parent that the hosts have met, and where their checkpoints are."""
    if inside():
        with contextlib.suppress(OSError):
            Path(os.environ[NOTES]).write_text(f"{_MET}\n{checkpoints}")


def leave_with_parent() -> None:
    """End this process when its parent is gone, however that came about."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
