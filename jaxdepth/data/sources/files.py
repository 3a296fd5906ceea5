"""Helpers for data formats: image and depth files, sizes, units, fingerprints."""

import contextlib
import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxdepth import images as images_lib
from jaxdepth.camera import Camera
from jaxdepth.data import units
from jaxdepth.data.sources import BrokenFrame, arrays, check_unit, unit_is_checked
from jaxdepth.runtime import quiet, regular
from jaxdepth.runtime.errors import UserError, one_line, printable

SAMPLE = 8  # frames that are inspected before all are read
LARGEST = arrays.LARGEST
FARTHEST = 65535 / 256  # metres; the farthest depth that a store can hold
# Largest relative difference of aspect ratios: 0.4 % between ScanNet's 1296x968 images
# and 640x480 depth.
MAX_SQUEEZE = 0.01
LEAST_SHRINK = 1.2  # smaller factors indicate a crop
# Errors of the storage or the process, not of the file.
MACHINE_ERRORS = frozenset(
    {
        errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE,
        errno.ETIMEDOUT, errno.ENOTCONN, errno.ENETDOWN, errno.EHOSTDOWN,
    }
)  # fmt: skip
ORIENTATION, UPRIGHT = 0x0112, 1  # EXIF tag, and its default value
QUARTERS = (5, 6, 7, 8)  # EXIF orientations with a quarter turn
ORIENTED = 64  # images whose EXIF is read for a note
T = TypeVar("T")


def read_rgb(file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file, or an `.npy` file of colours, as RGB.

    An array is (H, W, 3): uint8, or floating-point from 0 to 1. The EXIF orientation is
    not applied, because depth is stored in the orientation of the sensor.

    Raises: BrokenFrame if the file can't be read, see `broken`; UserError for an array
      of another shape or range.
    """
    if file.suffix.lower() == ".npy":
        return _as_colours(_array(file), file)
    with _opened(file) as image:
        with contextlib.suppress(Exception):  # damaged EXIF, which `pil_photo` ignores
            image.getexif()[ORIENTATION] = UPRIGHT
        return np.ascontiguousarray(images_lib.pil_photo(image).rgb)


def size_of(file: Path) -> tuple[int, int]:
    """(height, width) of an image file, as its pixels are stored.

    Raises: BrokenFrame if the file can't be read.
    """
    if file.suffix.lower() in arrays.READERS:
        height, width = (*_array(file).shape, 1, 1)[:2]
        return height, width
    with _opened(file) as image:
        return image.height, image.width


def orientation(file: Path) -> int:
    """The EXIF orientation of an image file, 2 to 8; 1 (`UPRIGHT`) if it has none."""
    if file.suffix.lower() in arrays.READERS:
        return UPRIGHT
    with contextlib.suppress(Exception), _opened(file) as image:
        stored = image.getexif().get(ORIENTATION)
        return int(stored) if stored in range(1, 9) else UPRIGHT  # pyright: ignore
    return UPRIGHT


def orientation_notes(images: Sequence[Path]) -> list[str]:
    """Return a note if any of up to `ORIENTED` images has an EXIF orientation."""
    rows = sorted({int(k) for k in np.linspace(0, len(images) - 1, ORIENTED)})
    looked = [images[k] for k in rows] if images else []
    turned = [file for file in looked if orientation(file) != UPRIGHT]
    if not turned:
        return []
    return [
        f"{len(turned)} of {len(looked)} images have an EXIF orientation, first "
        f"{turned[0]}: image and depth are paired as their pixels are stored; "
        "jaxdepth inspect-data shows whether they match"
    ]


def read_depth(file: Path) -> np.ndarray:
    """Read the stored values (H, W) of an image of one channel, or of an array file.

    Array files are those of `arrays.READERS`.

    Raises: BrokenFrame if the file can't be read, UserError if it is not a depth map.
    """
    mode, values = _stored(file)
    if mode is None and (values.ndim != 2 or values.dtype.kind not in "uif"):
        raise UserError(
            f"{file} has shape {values.shape} of {values.dtype}: expected one depth "
            "map (H, W)"
        )
    if values.ndim != 2 or mode in ("P", "1"):
        raise UserError(
            f"{file} is a colour image (mode {mode}): depth is one channel, 16-bit"
        )
    return values


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
    return _stored(file)[1]


def to_metres(values: np.ndarray, scale: float = 1.0) -> Float[np.ndarray, "h w"]:
    """Convert stored values to metres (values / `scale`), float32, 0 = missing.

    Values that are not finite or not positive, and saturated codes, are missing; see
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

    Integer types: the largest value of the type, and 65535 in types wider than 16 bits.
    Floating-point types: 65535, and 65.535, the same code in metres.
    """
    if values.dtype.kind == "f":
        codes = [65535, 65.535]
    else:
        largest = np.iinfo(values.dtype).max
        codes = [largest] if largest < 65535 else [largest, 65535]
    return np.isin(values, np.array(codes).astype(values.dtype))


def name_of(path: Path) -> str:
    """Name of the data set at a path, as given in results."""
    return path.absolute().name or str(path)


def match_size(
    rgb: UInt8[np.ndarray, "h w 3"],
    depth: Float[np.ndarray, "i j"],
    image: Path,
    depth_file: Path,
    camera: tuple[float, float, float, float] | None = None,
) -> tuple[UInt8[np.ndarray, "i j 3"], Camera | None]:
    """Downsample an image that is larger than its depth map, by area averaging.

    Phones and some scanners store depth at a fraction of the image's size. Depth is
    never resized: interpolation would create false surfaces at depth edges.

    Args:
      camera: fx, fy, cx, cy in pixels of the image.

    Returns: the image at the size of `depth`, and its camera.
    Raises: UserError if depth is larger than its image; if it shows another view, that
      is, its aspect ratio differs by more than 1 %, or its size by a factor below 1.2
      (a crop); or if the EXIF orientation of the image is a quarter turn that may apply
      to depth, too: only one of the two is landscape, or depth is square.
    """
    square = depth.shape[0] == depth.shape[1]
    known = None if camera is None else Camera(*camera)
    if rgb.shape[:2] == depth.shape and not square:
        return rgb, known
    if (square or _is_wide(rgb) != _is_wide(depth)) and orientation(image) in QUARTERS:
        raise UserError(
            f"{image} has EXIF orientation {orientation(image)}, a quarter turn, and "
            f"the size of {depth_file} does not show whether the depth is rotated, "
            "too: save the image as upright pixels, in the orientation of its depth"
        )
    if rgb.shape[:2] == depth.shape:
        return rgb, known
    sy, sx = (new / old for new, old in zip(depth.shape, rgb.shape[:2], strict=True))
    sizes = (
        f"{image} is {rgb.shape[0]}x{rgb.shape[1]} and {depth_file} is "
        f"{depth.shape[0]}x{depth.shape[1]}: "
    )
    if abs(sx / sy - 1) > MAX_SQUEEZE or 1 / LEAST_SHRINK < sx <= 1:
        raise UserError(
            f"{sizes}image and depth must have the same size or aspect ratio; crop the "
            "image to what the depth shows"
        )
    if sx > 1:
        raise UserError(
            f"{sizes}depth is not resized: use images of its size or larger, or depth "
            "as the camera stored it"
        )
    from jaxdepth.ops import resize  # imports JAX, which most data do not need

    small = resize.resize_area(rgb[None].astype(np.float32), depth.shape)[0]
    rgb = np.floor(small + 0.5).clip(0, 255).astype(np.uint8)
    return rgb, known and known.scaled(sy, sx)


def _is_wide(pixels: np.ndarray) -> bool:
    return pixels.shape[1] > pixels.shape[0]


def size_notes(pairs: Iterable[tuple[Path, Path]]) -> list[str]:
    """Return a note if the first readable image is larger than its depth map."""
    for image, depth_file in itertools.islice(pairs, SAMPLE):
        with contextlib.suppress(UserError):
            large, small = read_rgb(image).shape, read_depth(depth_file).shape
            if large[0] <= small[0] or large[1] <= small[1]:
                return []
            return [
                f"images are shrunk to the size of their depth, {small[0]}x{small[1]} "
                f"(the first is {large[0]}x{large[1]})"
            ]
    return []


def broken(file: Path, what: str, error: object) -> BrokenFrame:
    """Create a BrokenFrame, with one line, for a file that can't be read as `what`.

    Raises: `error` itself if the storage or the process caused it, because the file may
      be intact.
    """
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        raise error
    cause = error.strerror if isinstance(error, OSError) and error.strerror else error
    return BrokenFrame(f"{file} can't be read as {what}: {reason_of(cause)}")


def reason_of(error: object) -> str:
    """The text of an error in one line of at most 160 characters."""
    text = one_line(error)[:160].strip("'\"")
    return text or type(error).__name__


def sample(read: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """Read up to `SAMPLE` evenly spaced items, skipping broken frames.

    Raises: UserError if all of them are broken.
    """
    values, errors = [], []
    for k in spaced(len(items)):
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


def check_metres(
    depths: Sequence[np.ndarray],
    *,
    where: str,
    hint: str,
    scale: float | None = None,
    name: str = "",
) -> list[str]:
    """Apply `check_unit` to sampled depth maps in metres, 0 = missing.

    Args:
      scale: stored units per metre that the maps were read with; None for a format
        that holds metres.
      name: path of a depth file in the data.

    Returns: a note if depth is implausible for a room or appears to be encoded; none
      within `any_unit`, where the caller checks the unit.
    """
    summary = units.Summary()
    for depth in depths:
        summary.add(units.Summary.of(depth))
    if not summary.valid or not unit_is_checked():
        return []
    whole = all(units.is_whole(depth, scale) for depth in depths)
    hints = [units.EncodingHints.of(depth, scale=scale) for depth in depths]
    table = "" if scale is None else units.candidates(summary, scale=scale, whole=whole)
    implausible = units.implausibility(summary) is not None
    encoding = units.suspected_encoding(hints, implausible=implausible, name=name)
    check_unit(
        summary.median,
        largest=summary.largest,
        where=where,
        hint=hint,
        listed="; ".join(text for text in (encoding, table) if text),
    )
    note = units.advice(summary, hints, scale=scale, whole=whole, name=name)
    return [] if note is None else [note]


def constant_notes(depths: Sequence[np.ndarray], file: Path | str) -> list[str]:
    """Return a note if no sampled depth map has two different depths.

    Args:
      depths: 0 = missing. Maps without any depth are ignored.
      file: a depth file, for the note.
    """
    present = [depth[depth > 0] for depth in depths if (depth > 0).any()]
    if not present or any((depth != depth[0]).any() for depth in present):
        return []
    return [
        f"each of {len(present)} sampled depth maps has one value in all pixels, such "
        f"as {printable(file)}: is this depth?"
    ]


def stamp(files: Iterable[Path]) -> dict[str, Any]:
    """The number of files, and a digest of their names, sizes and modification times.

    Missing files count, too.
    """
    digest, count = hashlib.sha256(), 0
    for file in files:
        count += 1
        try:
            status = file.stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
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
            status = os.stat(folder)
            inode = status.st_dev, status.st_ino
            if inode in visited:
                subfolders.clear()
                continue
            visited.add(inode)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        paths += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(paths)


def name_in(root: Path, path: Path) -> str | None:
    """The path of a file relative to a folder, with slashes; None if it is outside.

    As `Path.relative_to`, which takes too long for the files of a large data set.
    """
    base, text = str(root), str(path)
    if base == ".":
        return None if path.is_absolute() else path.as_posix()
    prefix = base if base.endswith(os.sep) else base + os.sep
    return text[len(prefix) :].replace(os.sep, "/") if text.startswith(prefix) else None


def spaced(count: int) -> list[int]:
    """At most `SAMPLE` indices below `count`, evenly spaced from first to last."""
    return sorted({int(k) for k in np.linspace(0, count - 1, SAMPLE)}) if count else []


def is_file(path: Path) -> bool:
    """`Path.is_file`, but False for a name that the file system does not allow."""
    try:
        return path.is_file()
    except OSError:
        return False


def _check_regular(file: Path) -> None:
    """Raise BrokenFrame for a missing or special file; see `runtime.regular.check`."""
    try:
        regular.check(file)
    except (OSError, ValueError) as error:
        raise broken(file, "a file", error) from None


def _stored(file: Path) -> tuple[str | None, np.ndarray]:
    """Read the mode of an image (None for an array file) and the stored values."""
    if file.suffix.lower() in arrays.READERS:
        return None, _array(file)
    with _opened(file) as image:
        values = np.asarray(image)
        native = values.dtype.newbyteorder("=")
        return image.mode, values.astype(native, copy=False)


def _array(file: Path) -> np.ndarray:
    """Read an array file; a single map with an extra axis becomes (H, W)."""
    _check_regular(file)
    suffix = file.suffix.lower()
    try:
        with quiet.without_warnings():  # about odd headers
            values = arrays.READERS[suffix](file)
    except UserError:
        raise
    except Exception as error:  # damaged headers cause errors of many types
        raise broken(file, suffix[1:], error) from None
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    return values


def _as_colours(values: np.ndarray, file: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an array of colours to uint8. Raises UserError for other arrays."""
    if values.ndim != 3 or values.shape[-1] != 3 or 0 in values.shape:
        raise UserError(f"{file} has shape {values.shape}: expected an image (H, W, 3)")
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    # Resized images can slightly exceed the range.
    if values.dtype.kind != "f" or not (low >= -0.01 and high <= 1.01):
        raise UserError(
            f"{file} holds {values.dtype} from {low:.4g} to {high:.4g}: expected "
            "colours as uint8, or floating-point from 0 to 1"
        )
    return np.round(values.clip(0, 1) * 255).astype(np.uint8)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open an image and check its format and size; pixels are not decoded yet.

    Raises: BrokenFrame, also for errors in the body of the with statement.
    """
    _check_regular(file)
    try:
        with (
            open(file, "rb") as stream,
            quiet.without_warnings(),  # about large images and odd metadata
            images_lib.open_image(stream, LARGEST) as image,
        ):
            yield image
    except UserError:
        raise
    except Exception as error:  # damaged bytes make decoders raise errors of many types
        raise broken(file, "an image", error) from None
