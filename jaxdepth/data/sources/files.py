"""What several formats share: image and depth files, lists of them, units, stamps."""

import contextlib
import errno
import hashlib
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxdepth import images as images_lib
from jaxdepth.data.sources import BrokenFrame, check_unit
from jaxdepth.runtime.errors import UserError

SAMPLE = 8  # frames looked at before all are read
LARGEST = 1 << 26  # pixels of a frame; damaged sizes would fill the memory
OF_THE_MACHINE = frozenset(
    {
        errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE,
        errno.ETIMEDOUT, errno.ENOTCONN, errno.ENETDOWN, errno.EHOSTDOWN,
    }
)  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"
T = TypeVar("T")


def read_rgb(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """An image file as RGB. BrokenFrame where it can't be read; see `broken`."""
    _check_png(file)
    try:
        return np.ascontiguousarray(images_lib.read(file))
    except UserError as error:
        raise BrokenFrame(" ".join(str(error).split())) from None
    except Exception as error:  # a decoder raises what it meets in damaged bytes
        raise broken(file, "an image", error) from None


def read_depth(file: Path) -> np.ndarray:
    """The stored values (H, W) of a `.npy` or a picture of one channel.

    Raises: BrokenFrame where the file can't be read, UserError where it holds
      something else.
    """
    return _load_npy(file) if file.suffix.lower() == ".npy" else _load_picture(file)


def to_metres(values: np.ndarray, scale: float = 1.0) -> Float[np.ndarray, "h w"]:
    """Stored values / `scale` as float32; what is no positive number becomes 0."""
    # Damaged floats hold signalling NaNs and numbers that float32 has not.
    with np.errstate(all="ignore"):
        if scale != 1:
            values = np.divide(values, scale, dtype=np.float64)
        metres = values.astype(np.float32)
        return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))


def name_of(path: Path) -> str:
    """What results call data that lie there."""
    return path.absolute().name or str(path)


def check_same_size(
    rgb: np.ndarray, depth: np.ndarray, image: Path, depth_file: Path
) -> None:
    """UserError, naming both files, for an image and depth of two sizes."""
    if depth.shape != rgb.shape[:2]:
        raise UserError(
            f"{image} is {rgb.shape[0]}x{rgb.shape[1]} and {depth_file} is "
            f"{depth.shape[0]}x{depth.shape[1]}: image and depth must have one size"
        )


def broken(file: Path, what: str, error: object) -> BrokenFrame:
    """One line: which file can't be read as what, and why.

    An OSError of the machine's is raised as it is: frames whose storage went away
    are not broken.
    """
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        raise error
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return BrokenFrame(f"{file} can't be read as {what}: {reason_of(said)}")


def reason_of(error: object) -> str:
    """What an error says, in one line of bounded length."""
    said = " ".join(str(error).split())[:160].strip("'\"")
    return said or type(error).__name__


def sample(read: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """What is read of some items from first to last; broken frames are passed over.

    UserError where all of them are broken.
    """
    places = {int(k) for k in np.linspace(0, len(items) - 1, SAMPLE)} if items else ()
    found, failed = [], []
    for place in sorted(places):
        try:
            found.append(read(items[place]))
        except BrokenFrame as error:
            failed.append(error)
    if failed and not found:
        raise UserError(f"no frame could be read; the first tried: {failed[0]}")
    return found


def kind_of(depths: Sequence[np.ndarray]) -> str:
    """ "filled" or "raw": filled maps have no holes, a sensor's have some percent.

    A map without any depth is no truth, and says nothing of the others.
    """
    holes = [np.mean(depth == 0) for depth in depths if (depth > 0).any()]
    return "raw" if holes and np.mean(holes) > 0.001 else "filled"


def check_metres(depths: Sequence[np.ndarray], *, where: str, hint: str) -> None:
    """UserError for depth (sampled, metres, 0 = missing) that can't be metres."""
    valid = np.concatenate([np.zeros(0), *(depth[depth > 0] for depth in depths)])
    if len(valid):
        check_unit(
            float(np.median(valid)),
            largest=float(valid.max()),
            where=where,
            hint=hint,
        )


def stamp(files: Iterable[Path]) -> dict[str, Any]:
    """What changes when one of the files does: their number, and a digest of names,
    sizes and times."""
    digest, count = hashlib.sha256(), 0
    for file in files:
        count += 1
        try:
            stat = file.stat()
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except (OSError, ValueError):  # not there: reading it will tell
            state = "none"
        digest.update(f"{file} {state}\n".encode(errors="surrogateescape"))
    return {"files": count, "digest": digest.hexdigest()}


def read_list(file: Path) -> list[tuple[int, list[str]]]:
    """(line number from 1, columns) of a list of files.

    Columns stand between commas where the line has one, else between blanks; empty
    lines and # comments are left out. UserError where it can't be read as text.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text, so it lists no frames") from None
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}") from None
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            columns = line.split(",") if "," in line else line.split()
            found.append((number, [column.strip() for column in columns]))
    return found


def peek_list(file: Path, lines: int = 20) -> list[list[str]]:
    """The columns of a list's first lines; none where it is no list. Never raises."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(1 << 14)
        whole = len(head) < 1 << 14
        text = head.decode("utf-8-sig", errors="strict" if whole else "ignore")
    except (OSError, ValueError):
        return []
    found = [line.strip() for line in text.splitlines()]
    found = [line for line in found if line and not line.startswith("#")][:lines]
    return [line.split(",") if "," in line else line.split() for line in found]


def in_folder(root: Path, name: str) -> Path:
    """The file that a list names; a leading slash means the data's folder, too."""
    return root / name.strip().lstrip("/")


def below(root: Path) -> list[Path]:
    """The files below a folder, in the order of their paths; hidden ones left out.

    Folders that are links are entered, each place once.
    """
    found = []
    seen = set()
    for folder, inside, names in os.walk(root, followlinks=True):
        with contextlib.suppress(OSError):
            stat = os.stat(folder)
            place = stat.st_dev, stat.st_ino
            if place in seen:
                inside.clear()
                continue
            seen.add(place)
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found)


def find_root(
    start: Path, names: Sequence[str], below: Sequence[str] = ("",)
) -> Path | None:
    """The folder from which the names of a list are files; None where there is none.

    `start` and its parents are tried, in each the folders `below` it: the first from
    which any of some of the names is there.
    """
    places = {int(k) for k in np.linspace(0, len(names) - 1, SAMPLE)} if names else ()
    some = [names[k] for k in sorted(places)]
    for base in (start, *start.absolute().parents):
        for inner in below:
            if any(is_file(in_folder(base / inner, name)) for name in some):
                return base / inner
    return None


def is_file(path: Path) -> bool:
    """`Path.is_file`, False where the name is none that a file can have."""
    try:
        return path.is_file()
    except OSError:
        return False


def _check_png(file: Path) -> None:
    """BrokenFrame for a PNG with a wrong checksum: Pillow skips those of the pixels."""
    try:
        with open(file, "rb") as stream:
            content = memoryview(stream.read())
    except (OSError, ValueError) as error:
        raise broken(file, "an image", error) from None
    if content[: len(PNG)] != PNG:
        return
    place, kind = len(PNG), b""
    while kind != b"IEND":
        head = content[place : place + 8]
        if len(head) < 8:
            raise broken(file, "an image", "it is cut short")
        (length,), kind = struct.unpack(">I", head[:4]), bytes(head[4:])
        end = place + 8 + length
        known = bytes(content[end : end + 4])
        if len(known) < 4:
            raise broken(file, "an image", "it is cut short")
        if zlib.crc32(content[place + 4 : end]).to_bytes(4, "big") != known:
            raise broken(file, "an image", f"the checksum of its {kind!r} is wrong")
        place = end + 4


def _load_picture(file: Path) -> np.ndarray:
    _check_png(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata
            with Image.open(file) as image:
                mode, values = image.mode, np.asarray(image)
    except Exception as error:  # a decoder raises what it meets in damaged bytes
        raise broken(file, "an image", error) from None
    if values.ndim != 2 or mode in ("P", "1"):
        raise UserError(
            f"{file} is a colour picture (mode {mode}): depth is one channel, 16-bit"
        )
    return values


def _load_npy(file: Path) -> np.ndarray:
    try:
        with open(file, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd headers
            values = np.load(stream, allow_pickle=False)
    except Exception as error:  # from the header's parser, whatever
        raise broken(file, "npy", error) from None
    if not isinstance(values, np.ndarray):
        raise UserError(f"{file} is an npz archive: one npy array is wanted")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise UserError(
            f"{file} has shape {values.shape} of {values.dtype}: one depth map (H, W) "
            "is wanted"
        )
    return values
