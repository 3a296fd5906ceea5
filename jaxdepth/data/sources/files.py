"""Functions shared by the formats: image and depth files, lists, units, stamps."""

import contextlib
import errno
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError

from jaxdepth import images as images_lib
from jaxdepth.data.sources import BrokenFrame, check_unit
from jaxdepth.runtime.errors import UserError

SAMPLE = 8  # frames that are inspected before all are read
LARGEST = 1 << 26  # pixels of a frame; a damaged size could exhaust the memory
FARTHEST = 65535 / 256  # metres; the farthest depth that a store can hold
# Errors of the storage or the process, not of the file.
MACHINE_ERRORS = frozenset(
    {
        errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE,
        errno.ETIMEDOUT, errno.ENOTCONN, errno.ENETDOWN, errno.EHOSTDOWN,
    }
)  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\xaeB`\x82"  # the checksum of the last chunk
T = TypeVar("T")


def read_rgb(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file as RGB. Raises BrokenFrame; see `broken`."""
    _check_png(file)
    try:
        return np.ascontiguousarray(images_lib.read(file))
    except UserError as error:
        raise BrokenFrame(" ".join(str(error).split())) from None
    except Exception as error:  # damaged bytes make decoders raise errors of many types
        raise broken(file, "an image", error) from None


def read_depth(file: Path) -> np.ndarray:
    """Read the stored values (H, W) of a `.npy` file or of an image of one channel.

    Raises: BrokenFrame if the file can't be read, UserError if it is not a depth map.
    """
    return _load_npy(file) if file.suffix.lower() == ".npy" else _load_image(file)


def read_mask(file: Path) -> np.ndarray:
    """Read a mask or confidence map (H, W): integers or bool.

    Raises: BrokenFrame if the file can't be read, UserError if it is not a map.
    """
    values = read_any(file)
    if values.ndim != 2 or values.dtype.kind not in "uifb":
        raise UserError(
            f"{file} has shape {values.shape} of {values.dtype}: expected one mask "
            "(H, W)"
        )
    return values


def read_any(file: Path) -> np.ndarray:
    """Read the stored values of a depth or mask file, without checking their kind.

    Raises: BrokenFrame if the file can't be read.
    """
    return (
        _npy_values(file) if file.suffix.lower() == ".npy" else _image_values(file)[1]
    )


def to_metres(values: np.ndarray, scale: float = 1.0) -> Float[np.ndarray, "h w"]:
    """Stored values / `scale` as float32, 0 = missing.

    Missing are values that are not finite or not positive, and saturated codes; see
    `_saturated`.
    """
    # Damaged floats can be signalling NaNs, or exceed the range of float32.
    with np.errstate(all="ignore"):
        valid = ~_saturated(values)
        if scale != 1:
            values = np.divide(values, scale, dtype=np.float64)
        metres = values.astype(np.float32)
        valid &= np.isfinite(metres) & (metres > 0)
        return np.where(valid, metres, np.float32(0))


def _saturated(values: np.ndarray) -> np.ndarray:
    """Mask of the codes that cameras and converters store where depth is unknown.

    These are the largest value of the integer type; 65535, the largest of 16 bits, in
    wider types too; and 65.535, the same code in metres, in floating-point types.
    """
    if values.dtype.kind == "f":
        codes = [65535, 65.535]
    else:
        largest = np.iinfo(values.dtype).max
        codes = [largest] if largest < 65535 else [largest, 65535]
    return np.isin(values, np.array(codes).astype(values.dtype))


def name_of(path: Path) -> str:
    """The name of the data at a path, for results."""
    return path.absolute().name or str(path)


def check_same_size(
    rgb: np.ndarray, depth: np.ndarray, image: Path, depth_file: Path
) -> None:
    """Raise UserError if image and depth differ in size."""
    if depth.shape != rgb.shape[:2]:
        raise UserError(
            f"{image} is {rgb.shape[0]}x{rgb.shape[1]} and {depth_file} is "
            f"{depth.shape[0]}x{depth.shape[1]}: image and depth must have one size"
        )


def broken(file: Path, what: str, error: object) -> BrokenFrame:
    """The BrokenFrame for a file that can't be read as `what`; one line.

    Raises: the error itself if storage or process caused it, since the file may be
      intact.
    """
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        raise error
    cause = error.strerror if isinstance(error, OSError) and error.strerror else error
    return BrokenFrame(f"{file} can't be read as {what}: {reason_of(cause)}")


def reason_of(error: object) -> str:
    """The text of an error in one line of at most 160 characters."""
    text = " ".join(str(error).split())[:160].strip("'\"")
    return text or type(error).__name__


def sample(read: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """Read up to `SAMPLE` evenly spaced items, skipping broken frames.

    Raises: UserError if all of them are broken.
    """
    values, errors = [], []
    for k in _spaced(len(items)):
        try:
            values.append(read(items[k]))
        except BrokenFrame as error:
            errors.append(error)
    if errors and not values:
        raise UserError(f"no frame could be read; the first error: {errors[0]}")
    return values


def kind_of(depths: Sequence[np.ndarray]) -> str:
    """Classify depth maps: "raw" if they have holes, else "filled".

    Depth beyond `FARTHEST` counts as a hole: some data store a large number where depth
    is unknown. Maps without any depth are ignored.
    """
    measured = [(depth > 0) & (depth <= FARTHEST) for depth in depths]
    holes = [np.mean(~valid) for valid in measured if valid.any()]
    return "raw" if holes and np.mean(holes) > 0.001 else "filled"


def check_metres(depths: Sequence[np.ndarray], *, where: str, hint: str) -> None:
    """Apply `check_unit` to the valid pixels of sampled depth maps (0 = missing)."""
    valid = np.concatenate([np.zeros(0), *(depth[depth > 0] for depth in depths)])
    if len(valid):
        check_unit(
            float(np.median(valid)),
            largest=float(valid.max()),
            where=where,
            hint=hint,
        )


def stamp(files: Iterable[Path]) -> dict[str, Any]:
    """The number of files, and a digest of their names, sizes and modification times.

    Missing files count, too.
    """
    digest, count = hashlib.sha256(), 0
    for file in files:
        count += 1
        try:
            stat = file.stat()
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except (OSError, ValueError):
            state = "none"
        digest.update(f"{file} {state}\n".encode(errors="surrogateescape"))
    return {"files": count, "digest": digest.hexdigest()}


def below(root: Path) -> list[Path]:
    """The files below a folder, sorted by path, without hidden ones.

    Links to folders are followed; each folder is entered once.
    """
    paths = []
    visited = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        with contextlib.suppress(OSError):
            stat = os.stat(folder)
            inode = stat.st_dev, stat.st_ino
            if inode in visited:
                subfolders.clear()
                continue
            visited.add(inode)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(paths)


def _spaced(count: int) -> list[int]:
    """At most `SAMPLE` indices below `count`, evenly spaced from first to last."""
    return sorted({int(k) for k in np.linspace(0, count - 1, SAMPLE)}) if count else []


def is_file(path: Path) -> bool:
    """`Path.is_file`, but False for a name that the file system does not allow."""
    try:
        return path.is_file()
    except OSError:
        return False


def _check_png(file: Path) -> None:
    """Raise BrokenFrame for a PNG with a wrong checksum.

    Decoding skips the checksums of pixel data, and `verify` skips that of the last
    chunk.
    """
    try:
        with open(file, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and odd metadata
            if stream.read(len(PNG)) != PNG:
                return
            stream.seek(0)
            Image.open(stream).verify()
            if stream.read(len(PNG_END)) != PNG_END:
                raise ValueError("truncated PNG file")
    except UnidentifiedImageError:  # its text names the stream, not the problem
        raise broken(file, "an image", "damaged PNG header") from None
    except Exception as error:  # damaged bytes make decoders raise errors of many types
        raise broken(file, "an image", error) from None


def _load_image(file: Path) -> np.ndarray:
    mode, values = _image_values(file)
    if values.ndim != 2 or mode in ("P", "1"):
        raise UserError(
            f"{file} is a colour image (mode {mode}): depth is one channel, 16-bit"
        )
    return values


def _image_values(file: Path) -> tuple[str, np.ndarray]:
    """The mode of an image, and its values."""
    _check_png(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and odd metadata
            with Image.open(file) as image:
                return image.mode, np.asarray(image)
    except Exception as error:  # damaged bytes make decoders raise errors of many types
        raise broken(file, "an image", error) from None


def _npy_values(file: Path) -> np.ndarray:
    """The array of a .npy file, (H, W) if it is one map with an extra axis."""
    try:
        with open(file, "rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd headers
            values = np.load(stream, allow_pickle=False)
    except Exception as error:  # damaged headers cause errors of many types
        raise broken(file, "npy", error) from None
    if not isinstance(values, np.ndarray):
        raise UserError(f"{file} is an npz archive: expected one npy array")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def _load_npy(file: Path) -> np.ndarray:
    values = _npy_values(file)
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise UserError(
            f"{file} has shape {values.shape} of {values.dtype}: expected one depth "
            "map (H, W)"
        )
    return values
