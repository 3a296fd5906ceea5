"""Real data sets with one file damaged, and what their readers make of it.

`outcomes` runs in a process of its own: a reader that crashes or never ends must not
take the tests with it.
"""

import dataclasses
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np

from jaxdepth.data.sources import BrokenFrame, Frame, Source, open_source
from jaxdepth.runtime.errors import UserError

TEXT = b"<html><body>404 Not Found</body></html>\n" * 20
LONGEST = 20  # seconds that one case may take


@dataclasses.dataclass(frozen=True)
class Subject:
    """A data set in a folder of its own, and the files of it that are damaged.

    Attributes:
      data_format: the reader.
      path: what is opened, below `root`.
      files: below `root`.
    """

    data_format: str
    root: Path
    path: str
    files: tuple[str, ...]


def outcomes(
    subject: Subject, scratch: Path, seeds: range, swaps: list[Path]
) -> list[tuple[str, str, str]]:
    """(file's kind, damage, outcome) of one case per seed.

    The outcome is "told" (nothing can be opened), "broken" (a BrokenFrame), "refused"
    (another UserError), "unharmed" or "changed" (valid frames); anything else starts
    with "FAILED".
    """
    root = scratch / subject.data_format
    shutil.copytree(subject.root, root, copy_function=shutil.copy)
    signal.signal(signal.SIGALRM, _too_long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_source(root / subject.path, data_format=subject.data_format)
        intact = [source.frame(row) for row in range(len(source.infos))]
        found = []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            name = subject.files[rng.integers(len(subject.files))]
            how = list(DAMAGES)[rng.integers(len(DAMAGES))]
            outcome = _outcome(subject, root, root / name, how, rng, swaps, intact)
            if outcome.startswith("FAILED"):
                outcome += f" (seed {seed})"
            found.append((Path(name).suffix, how, outcome))
    return found


def _outcome(subject, root, file, how, rng, swaps, intact) -> str:
    content = file.read_bytes()
    others = [path for path in swaps if path.suffix != file.suffix]
    file.write_bytes(DAMAGES[how](content, rng, others))
    signal.alarm(LONGEST)
    try:
        source = open_source(root / subject.path, data_format=subject.data_format)
        return _read(source, intact)
    except UserError as error:
        return _said(error, "told")
    except BaseException as error:
        return f"FAILED {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        file.write_bytes(content)


def _read(source: Source, intact: list[Frame]) -> str:
    """The worst of the frames' outcomes."""
    seen = {"unharmed" if len(source.infos) == len(intact) else "changed"}
    for row in range(len(source.infos)):
        try:
            frame = source.frame(row)
        except BrokenFrame as error:
            seen.add(_said(error, "broken"))
        except UserError as error:
            seen.add(_said(error, "refused"))
        else:
            seen.add(_judged(frame, intact))
    for outcome in ("broken", "refused", "changed", "unharmed"):
        failed = [said for said in seen if said.startswith("FAILED")]
        if failed:
            return failed[0]
        if outcome in seen:
            return outcome
    raise AssertionError(seen)


def _said(error: UserError, outcome: str) -> str:
    text = str(error)
    return f"FAILED lines: {text!r}" if "\n" in text or not text else outcome


def _judged(frame: Frame, intact: list[Frame]) -> str:
    """Whether it is a valid frame, and one of those that were there."""
    shape = frame.rgb.shape
    valid = len(shape) == 3 and shape[2] == 3 and 0 not in shape
    valid &= frame.rgb.dtype == np.uint8 and bool(frame.depths)
    for depth in frame.depths.values():
        valid &= depth.dtype == np.float32 and depth.shape == shape[:2]
        valid &= bool(np.isfinite(depth).all() and (depth >= 0).all())
    if not valid:
        return f"FAILED frame: {shape} {frame.rgb.dtype}"
    return "unharmed" if any(_same(frame, one) for one in intact) else "changed"


def _same(one: Frame, other: Frame) -> bool:
    return (
        np.array_equal(one.rgb, other.rgb)
        and one.depths.keys() == other.depths.keys()
        and all(np.array_equal(d, other.depths[k]) for k, d in one.depths.items())
    )


def _too_long(*_):
    raise TimeoutError(f"longer than {LONGEST} s")


def _truncated(content, rng, _):
    return content[: rng.integers(len(content))]


def _flipped(content, rng, _):
    damaged = bytearray(content)
    # As often in the first kilobyte, where headers are, as anywhere.
    end = len(damaged) if rng.random() < 0.5 else min(len(damaged), 1024)
    for place in rng.integers(end, size=int(rng.choice([1, 4, 32]))):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _zeroed(content, rng, _):
    damaged, length = bytearray(content), int(rng.choice([16, 512, 4096]))
    place = int(rng.integers(max(1, len(content) - length)))
    damaged[place : place + length] = bytes(len(damaged[place : place + length]))
    return bytes(damaged)


DAMAGES = {
    "truncated": _truncated,
    "bits flipped": _flipped,
    "block zeroed": _zeroed,
    "emptied": lambda *_: b"",
    "text instead": lambda *_: TEXT,
    "wrong magic": lambda content, rng, _: rng.bytes(8) + content[8:],
    "another format": lambda _, rng, others: others[
        rng.integers(len(others))
    ].read_bytes(),
}
