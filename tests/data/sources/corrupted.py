"""Outcomes of reading real data sets in which one file is damaged.

`outcomes` runs in a separate process, so that a reader that crashes or hangs does not
stop the tests.
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
LONGEST = 20  # time limit of one case, seconds


@dataclasses.dataclass(frozen=True)
class Subject:
    """A data set in a folder, and the files of it to damage.

    Attributes:
      data_format: name of its format.
      path: the data's path below `root`.
      files: paths below `root`.
    """

    data_format: str
    root: Path
    path: str
    files: tuple[str, ...]


def outcomes(
    subject: Subject, scratch: Path, seeds: range, swaps: list[Path]
) -> list[tuple[str, str, str]]:
    """(suffix, damage, outcome) of one case per seed.

    The outcome is "rejected" (UserError on opening), "broken" (a BrokenFrame),
    "refused" (another UserError), "unharmed" or "changed" (valid frames); any other
    result is a failure and starts with "FAILED".
    """
    root = scratch / subject.data_format
    shutil.copytree(subject.root, root, copy_function=shutil.copy)
    signal.signal(signal.SIGALRM, _too_long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_source(root / subject.path, data_format=subject.data_format)
        intact = [source.frame(row) for row in range(len(source.infos))]
        cases = []
        for seed in seeds:
            rng = np.random.default_rng(seed)
            name = subject.files[rng.integers(len(subject.files))]
            how = list(DAMAGES)[rng.integers(len(DAMAGES))]
            outcome = _outcome(subject, root, root / name, how, rng, swaps, intact)
            if outcome.startswith("FAILED"):
                outcome += f" (seed {seed})"
            cases.append((Path(name).suffix, how, outcome))
    return cases


def _outcome(subject, root, file, how, rng, swaps, intact) -> str:
    content = file.read_bytes()
    others = [path for path in swaps if path.suffix != file.suffix]
    file.write_bytes(DAMAGES[how](content, rng, others))
    signal.alarm(LONGEST)
    try:
        source = open_source(root / subject.path, data_format=subject.data_format)
        return _read(source, intact)
    except UserError as error:
        return _checked(error, "rejected")
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
            seen.add(_checked(error, "broken"))
        except UserError as error:
            seen.add(_checked(error, "refused"))
        else:
            seen.add(_compared(frame, intact))
    for outcome in ("broken", "refused", "changed", "unharmed"):
        failed = [text for text in seen if text.startswith("FAILED")]
        if failed:
            return failed[0]
        if outcome in seen:
            return outcome
    raise AssertionError(seen)


def _checked(error: UserError, outcome: str) -> str:
    """The outcome, or a failure if the message is not one line."""
    text = str(error)
    return f"FAILED lines: {text!r}" if "\n" in text or not text else outcome


def _compared(frame: Frame, intact: list[Frame]) -> str:
    """Whether the frame is valid, and equals one of the intact frames."""
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
    # Half of the cases damage the first kilobyte, the headers.
    end = len(damaged) if rng.random() < 0.5 else min(len(damaged), 1024)
    for offset in rng.integers(end, size=int(rng.choice([1, 4, 32]))):
        damaged[offset] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _zeroed(content, rng, _):
    damaged, length = bytearray(content), int(rng.choice([16, 512, 4096]))
    start = int(rng.integers(max(1, len(content) - length)))
    damaged[start : start + length] = bytes(len(damaged[start : start + length]))
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
