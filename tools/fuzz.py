"""Damage small files at random and read them: python tools/fuzz.py --seconds=600

Each case damages (`fuzz_damages.py`) one file of a small input of one reader
(`fuzz_readers.py`) and reads it in a worker process with limits on time and memory.
Case K of a reader depends on --seed and K only. The outcomes:

  identical  read as if intact
  different  read with different content; the file has no checksum
  rejected   an error of one line
  silent     read with different content, although the file has a checksum: a failure
  message    an error whose message is not one line: a failure
  traceback, crash, hang, memory   failures

Exit code 1 if there was a failure.
"""

import argparse
import collections
import dataclasses
import faulthandler
import fnmatch
import hashlib
import importlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Also runs in a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from jaxdepth.runtime.errors import MachineError, UserError
from tools.fuzz_damages import damaged

OUTCOMES = ("identical", "different", "rejected")
FAILURES = ("silent", "message", "traceback", "crash", "hang", "memory")
START = 300  # seconds that a worker may take to import, and to write an input


def digest(value: Any) -> str:
    """A hash of arrays in nested containers."""
    if isinstance(value, Mapping):
        parts = [f"{key}:{digest(x)}" for key, x in value.items()]
        text = "{" + ",".join(sorted(parts))
    elif isinstance(value, list | tuple):
        text = "[" + ",".join(map(digest, value))
    elif hasattr(value, "shape"):
        array = np.asarray(value)
        raw = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        text = f"{array.dtype}{array.shape}{raw}"
    else:
        text = repr(value)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def attempt(
    read: Callable[[Path], dict[str, Any]],
    folder: Path,
    intact: Mapping[str, str],
    *,
    checked: bool,
) -> tuple[str, str]:
    """Read an input; return the outcome, and its message.

    Args:
      intact: digests of the parts of the intact input.
      checked: whether the damaged file has a checksum.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parts = {name: digest(x) for name, x in read(folder).items()}
    except (UserError, MachineError) as error:
        text = str(error)
        # Commands escape other control characters when they print a message.
        return "rejected" if text and "\n" not in text else "message", repr(text)
    except BaseException:
        return "traceback", traceback.format_exc()
    changed = [name for name in parts if parts[name] != intact.get(name)]
    if changed and checked:
        return "silent", f"changed: {', '.join(changed)[:200]}"
    return ("identical" if parts == intact else "different"), ""


@dataclasses.dataclass(frozen=True)
class Case:
    """One damaged input: case `number` of a reader. It is written to `folder`."""

    reader: str
    number: int
    seed: int
    folder: Path


def work(connection: Any, module: str, inputs: Path) -> None:
    """Run a worker process: attempt the cases that arrive on the connection.

    Sends (damage, memory in use) before each case, (outcome, message, memory) after it.
    """
    os.environ |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    log = open(inputs / "log", "w")  # noqa: SIM115
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    faulthandler.enable()
    readers = importlib.import_module(module).READERS
    intact: dict[str, dict[str, str]] = {}
    while (case := connection.recv()) is not None:
        reader, source = readers[case.reader], inputs / case.reader
        if not source.exists():
            source.mkdir()
            reader.write(source)
        if case.reader not in intact:
            content = reader.read(source)
            intact[case.reader] = {name: digest(x) for name, x in content.items()}
        shutil.copytree(source, case.folder)
        key = [case.seed, case.number, zlib.crc32(case.reader.encode())]
        rng = np.random.default_rng(key)
        files = sorted(
            path
            for path in case.folder.rglob("*")
            if path.is_file() and _matches(path, reader.damage)
        )
        file = files[int(rng.integers(len(files)))]
        damage = damaged(file, rng)
        checked = _matches(file, reader.checksums) and damage != "png_header"
        before = _memory()
        connection.send((f"{damage} of {file.relative_to(case.folder)}", before))
        result = attempt(reader.read, case.folder, intact[case.reader], checked=checked)
        connection.send((*result, _memory(peak=True) - before))


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


def _memory(pid: int | str = "self", *, peak: bool = False) -> int:
    """Resident memory of a process in bytes; 0 where the system does not report it.

    Args:
      peak: return the peak since the last call of this process without `peak`.
    """
    try:
        if pid == "self" and not peak:
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s*(\d+)", status)
    return int(match[1]) << 10 if match else 0


class Worker:
    """A process that attempts many cases; restarted after a crash or a hang.

    Args:
      module: the module with `READERS`.
      inputs: folder of intact inputs.
      seconds, memory: limits of a case; memory in bytes.
    """

    def __init__(self, module: str, inputs: Path, *, seconds: float, memory: int):
        self._arguments, self._log = (module, inputs), inputs / "log"
        self._seconds, self._most = seconds, memory
        self._process: Any = None

    def run(self, case: Case) -> tuple[str, str, str]:
        """Attempt a case; return the damage, the outcome and its message."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, end = context.Pipe()
            arguments = (end, *self._arguments)
            self._process = context.Process(target=work, args=arguments, daemon=True)
            self._process.start()
            end.close()
        what = "no damage yet"
        try:
            self._pipe.send(case)
            if not self._pipe.poll(START):
                return what, *self._end("hang", f"longer than {START} s")
            what, before = self._pipe.recv()
            deadline = time.monotonic() + self._seconds
            while not self._pipe.poll(0.02):
                if _memory(self._process.pid) - before > self._most:
                    return what, *self._end("memory", f"above {self._most >> 20} MiB")
                if time.monotonic() > deadline:
                    return what, *self._end("hang", f"longer than {self._seconds:g} s")
            outcome, text, used = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            code, log = self._process.exitcode, self._log.read_text(errors="replace")
            return what, *self._end("crash", f"exit code {code}\n{log[-2000:]}")
        if used > self._most:
            return what, "memory", f"{used >> 20} MiB"
        return what, outcome, text

    def _end(self, outcome: str, text: str) -> tuple[str, str]:
        self.close()
        return outcome, text

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def table(counts: Mapping[tuple[str, str], int], readers: list[str]) -> str:
    """The number of cases by reader and outcome."""
    columns = (*OUTCOMES, *FAILURES)
    lines = [f"{'reader':14}" + "".join(f"{c:>11}" for c in columns)]
    for reader in readers:
        row = [counts.get((reader, column), 0) for column in columns]
        lines.append(f"{reader:14}" + "".join(f"{n:11d}" for n in row))
    sums = [sum(counts.get((r, c), 0) for r in readers) for c in columns]
    return "\n".join([*lines, f"{'all':14}" + "".join(f"{n:11d}" for n in sums)])


def _cases(
    options: argparse.Namespace, readers: list[str]
) -> Iterator[tuple[str, int]]:
    """Yield (reader, number) in turn, until the time is up."""
    if options.only is not None:
        yield from ((reader, options.only) for reader in readers)
        return
    end, number = time.monotonic() + options.seconds, 0
    while options.cases is None or number < options.cases:
        for reader in readers:
            if time.monotonic() > end:
                return
            yield reader, number
        number += 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="time to spend")
    parser.add_argument("--cases", type=int, help="cases per reader, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="one reader; repeatable")
    parser.add_argument("--only", type=int, metavar="K", help="only case K")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that failed")
    parser.add_argument("--limit", type=float, default=10, help="seconds per case")
    parser.add_argument("--memory", type=int, default=2048, help="MiB per case")
    parser.add_argument("--readers", default="tools.fuzz_readers", help="their module")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and print the table; return 1 if there was a failure."""
    options = _options(arguments)
    readers = options.reader or list(importlib.import_module(options.readers).READERS)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="jaxdepth-fuzz-") as scratch:
        inputs, folder = Path(scratch) / "inputs", Path(scratch) / "case"
        inputs.mkdir()
        limits = {"seconds": options.limit, "memory": options.memory << 20}
        worker = Worker(options.readers, inputs, **limits)
        for reader, number in _cases(options, readers):
            case = Case(reader, number, options.seed, folder / f"{reader}-{number}")
            what, outcome, text = worker.run(case)
            counts[reader, outcome] += 1
            if outcome in FAILURES:
                print(f"{outcome}: {what}\n{text.rstrip()}")
                print(f"  again: python tools/fuzz.py --seed={options.seed} "
                      f"--reader={reader} --only={number}\n", flush=True)  # fmt: skip
                if options.keep is not None and case.folder.exists():
                    shutil.copytree(case.folder, options.keep / case.folder.name,
                                    dirs_exist_ok=True)  # fmt: skip
            elif options.only is not None:
                print(f"{reader}: {what}: {outcome} {text}")
            shutil.rmtree(case.folder, ignore_errors=True)
        worker.close()
    print(table(counts, readers))
    return int(any(counts[reader, f] for reader in readers for f in FAILURES))


if __name__ == "__main__":
    sys.exit(main())
