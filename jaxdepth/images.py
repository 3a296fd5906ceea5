"""Reading of photos of any kind and format as upright arrays (H, W, 3) uint8."""

import importlib
import io
import logging
import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin
from PIL.JpegImagePlugin import JpegImageFile

from jaxdepth import image_arrays
from jaxdepth.runtime import quiet, regular
from jaxdepth.runtime.errors import UserError, one_line, printable

logger = logging.getLogger(__name__)
Stream = IO[bytes] | io.BytesIO  # an open file that can seek
# Suffixes of the image files that are searched for in folders.
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif",
    ".heic", ".heif", ".avif",
)  # fmt: skip
# The formats of these files; HEIF is added where its library is installed. Others are
# not opened: some start programs (Ghostscript for EPS), and each further decoder adds
# attack surface. (Pillow's JPEG plugin also opens MPO, two photos of a stereo camera,
# and reads the first one.)
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "AVIF")

# What `as_photo` converts, for messages.
ACCEPTED = (
    "a path, the bytes of an image file, a file open in binary mode, a PIL image, or "
    f"an array of shape {image_arrays.SHAPES}, {image_arrays.TYPES}"
)
LARGEST = 1 << 25  # pixels; larger photos are read at reduced size
LARGEST_FILE = 1 << 29  # bytes; some decoders read the whole file
# Largest number of pixels to decode: at 4 to 8 bytes each, they take about 1 GB.
LIMIT = 178_956_970
# Lower limits: formats that take up to 16 bytes per pixel, slow codecs of Pillow.
LIMITS = {
    "WEBP": 1 << 26, "AVIF": 1 << 26, "HEIF": 1 << 26,
    "bmp_rle": 1 << 24, "ppm": 1 << 22, "ppm_plain": 1 << 22,
}  # fmt: skip
SCAN_PIXELS = 1 << 32  # pixels times scans of a progressive JPEG
NAMED = 20  # largest number of left-out files that a note names
FILM_DIAGONAL = 43.27  # mm, of 35 mm film
# EXIF tags: the group of camera tags; focal length in mm; its equivalent for 35 mm
# film; pixels per unit on the sensor and that unit; width of the photo as it was taken.
_EXIF, _FOCAL_LENGTH, _FOCAL_LENGTH_35MM = 0x8769, 0x920A, 0xA405
_SENSOR_RESOLUTION, _SENSOR_UNIT, _TAKEN_WIDTH = 0xA20E, 0xA210, 0xA002
_SENSOR_UNITS = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # in mm
PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\xaeB`\x82"  # the checksum of the last chunk
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF


class Photo(NamedTuple):
    """A photo as it is shown, upright.

    Attributes:
      rgb: (H, W, 3) uint8.
      reduced: factor by which a large photo was reduced; H and W are its size divided
        by this.
      fx: focal length in pixels of the photo before it was reduced, from its EXIF data;
        None if they do not give it.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    reduced: int = 1
    fx: float | None = None


def read(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of `read_photo`."""
    return read_photo(path).rgb


def read_photo(path: str | Path) -> Photo:
    """Read an image file and apply its EXIF orientation.

    Grey, palette, CMYK and transparent images become RGB; 16-bit ones are scaled to 8.
    Photos of more than `LARGEST` pixels are reduced by an integer factor, with a note
    in the log.

    Raises: UserError, naming the file, if it is not an image, is damaged, or has more
      pixels than can be decoded.
    """
    path = Path(path)
    name = printable(path, None)
    try:
        regular.check(path)
        with open(path, "rb") as stream:
            return _decode(stream, name)
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder, not an image") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise _unreadable(name, error) from None


def _decode(stream: Stream, name: str) -> Photo:
    """Decode an image file. Raises UserError, with its name, for a damaged one."""
    try:
        with quiet.without_warnings(), open_image(stream) as image:  # odd metadata
            method = _orientation(image)
            size = image.size if method in _TURNS else image.size[::-1]
            fx = _focal_length(image)
            rgb = _to_rgb(_transposed(_reduced(image), method))
    except Exception as error:  # damaged bytes make decoders raise errors of many types
        raise _unreadable(name, error) from None
    factor = round(max(size) / max(rgb.shape[:2]))
    if factor > 1:
        logger.warning(
            "note: %s is %dx%d, which is too large: its depth is predicted at %dx%d",
            name, *size, *rgb.shape[:2],
        )  # fmt: skip
    return Photo(rgb, factor, fx)


def _unreadable(name: str, error: Exception) -> UserError:
    problem = getattr(error, "strerror", None) or error
    reason = printable(one_line(problem) or type(error).__name__, 300)
    return UserError(f"{name} can't be read as an image: {reason}")


def as_photo(image: Any) -> Photo:
    """Convert an image of any kind in `ACCEPTED` to a photo.

    Args:
      image: a path; the content of an image file as bytes; a file that is open in
        binary mode, which is read from its start if it can seek; a PIL image; or an
        array (`image_arrays.to_rgb`). A `Photo` is returned as it is. EXIF orientation
        is applied, and the focal length read, for all but arrays.

    Raises: UserError for anything else; as `read_photo` for files.
    """
    if isinstance(image, Photo):
        return image
    if isinstance(image, str | os.PathLike):
        return read_photo(os.fsdecode(image))
    if isinstance(image, bytes | bytearray | memoryview):
        content = bytes(image)
        return _decode(io.BytesIO(content), f"the content of {len(content):,} bytes")
    if isinstance(image, Image.Image):
        try:
            photo = pil_photo(image)
        except Exception as error:  # its file may be damaged, or closed
            raise _unreadable("the PIL image", error) from None
        if 0 in photo.rgb.shape:
            raise UserError(f"the PIL image is empty: its size is {image.size}")
        return photo
    if hasattr(image, "read"):
        return _read_open_file(image)
    if image_arrays.is_array(image):
        return Photo(image_arrays.to_rgb(image))
    raise UserError(f"{_described(image)} is not an image: expected {ACCEPTED}")


def several(x: Any) -> list[Any] | None:
    """The images of a list, a tuple or a 4-D array; None if `x` is one image."""
    if isinstance(x, list | tuple) and not isinstance(x, Photo):
        return list(x)
    if getattr(x, "ndim", None) == 4:
        return list(image_arrays.to_numpy(x))
    return None


def as_photos(images: Sequence[Any]) -> Iterator[Photo]:
    """Convert the images of a list as `as_photo`; errors give their index."""
    for k, image in enumerate(images):
        try:
            yield as_photo(image)
        except UserError as error:
            raise UserError(f"image {k} of {len(images)}: {error}") from None


def pil_photo(image: Image.Image) -> Photo:
    """Convert a PIL image. Damaged files raise errors of many types."""
    with quiet.without_warnings():
        rgb = _to_rgb(_transposed(image, _orientation(image)))
        return Photo(rgb, fx=_focal_length(image))


def _read_open_file(file: Any) -> Photo:
    """Read an image from an open file. Raises UserError if it is damaged, or text."""
    label = getattr(file, "name", None)
    name = printable(label, None) if isinstance(label, str) else "the open file"
    content = bytearray()
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        while chunk := file.read(1 << 20):
            if not isinstance(chunk, bytes):
                raise ValueError(
                    f"its read() returns {type(chunk).__name__}, not bytes; open it in "
                    'binary mode, "rb"'
                )
            content += chunk
            if len(content) > LARGEST_FILE:
                break  # `open_image` rejects it
    except Exception as error:  # of a library that provides the file
        raise _unreadable(name, error) from None
    return _decode(io.BytesIO(content), name)


def _described(x: Any) -> str:
    """The type and the value of an object, in a few words."""
    return f"{printable(repr(x), 60)} of type {type(x).__qualname__}"


def focal_length(path: str | Path) -> float | None:
    """The focal length of an image file by its EXIF data, in pixels; None if unknown.

    It is sqrt(width^2 + height^2) * F / 43.27 for the equivalent F of 35 mm film, whose
    diagonal has 43.27 mm; or else the focal length in mm times the pixels per mm of the
    sensor. None, too, if the file can't be read.
    """
    try:
        regular.check(path)
        with open(path, "rb") as stream, open_image(stream) as image:
            return _focal_length(image)
    except Exception:  # damaged bytes make decoders raise errors of many types
        return None


def find(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """List image files: the given files, and the images in the given folders.

    Folders are searched by suffix, without their sub-folders.

    Returns: the files; notes that name what was left out of folders.
    Raises: UserError for a path that does not exist, or a folder without images.
    """
    files: list[Path] = []
    notes = []
    for path in map(Path, paths):
        name = printable(path, None)
        try:
            if not path.is_dir():
                path.stat()
                files.append(path)
                continue
            entries = sorted(path.iterdir())
            images = [entry for entry in entries if is_photo(entry)]
            others = [_shown(entry) for entry in entries if not is_photo(entry)]
        except FileNotFoundError:
            raise UserError(f"{name}: there is no such file") from None
        except OSError as error:
            raise UserError(f"{name}: {error.strerror}") from None
        if not images:
            raise UserError(f"{name} holds no image ({', '.join(SUFFIXES)})")
        files += images
        if others:
            more = f" and {len(others) - NAMED} others" if others[NAMED:] else ""
            listed = ", ".join(others[:NAMED])
            notes.append(f"skipped in {name} (hidden or no image): {listed}{more}")
    return files, notes


def is_photo(path: Path) -> bool:
    """Whether the path is a file with an image suffix, and not hidden."""
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and path.is_file()


def _shown(path: Path) -> str:
    """The name of a file, or of a folder with a slash."""
    return printable(path.name) + ("/" if path.is_dir() else "")


def open_image(stream: Stream, most: int | None = None) -> Image.Image:
    """Open an image of one of `FORMATS`; its pixels are not decoded yet.

    `Image.open` rejects every photo of more than `LIMIT` pixels. Here the limit depends
    on the memory that the decoder needs. The checksums of a PNG are verified.

    Args:
      stream: a file.
      most: largest number of pixels; default: as many as are decoded in about 1 GB.

    Raises: ValueError with the problem; damaged bytes cause errors of other types.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if size > LARGEST_FILE:
        raise ValueError(
            f"the file has {size >> 20} MiB, more than {LARGEST_FILE >> 20} MiB"
        )
    check_png(stream)
    prefix = stream.read(16)
    Image.init()  # loads the plugins
    problem = f"damaged, or none of the formats {', '.join(FORMATS)}, HEIF"
    for name in (*FORMATS, "HEIF"):
        if name == "HEIF" and not _register_heif(prefix):
            continue
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(prefix)
        if isinstance(accepted, str):
            problem = f"this Pillow can't read {name}: pip install --upgrade pillow"
        elif accepted:
            stream.seek(0)
            try:
                image = factory(stream, "")
            except SyntaxError as error:
                problem = f"damaged {name} ({error})"
                continue
            except Image.DecompressionBombError as error:  # raised by WebP's plugin
                raise ValueError(str(error).split(",")[0]) from None
            _check_size(image, stream, most)
            return image
    raise ValueError(problem)


def check_png(stream: Stream) -> None:
    """Raise an error for a PNG with a wrong checksum; rewind the stream.

    Decoding skips the checksums of pixel data, and `verify` skips that of the last
    chunk.
    """
    if stream.read(len(PNG)) == PNG:
        stream.seek(0)
        try:
            image = PngImagePlugin.PngImageFile(stream)
        except Exception as error:  # damaged bytes cause errors of many types
            raise ValueError(f"damaged PNG header ({error})") from None
        image.verify()
        if stream.read(len(PNG_END)) != PNG_END:
            raise ValueError("truncated PNG file")
    stream.seek(0)


def _register_heif(prefix: bytes) -> bool:
    """Register the HEIF reader if the file starts like HEIF; else return False.

    Raises: ValueError if its library is not installed.
    """
    if prefix[4:8] != b"ftyp" or prefix[8:10] not in (b"he", b"mi", b"ms"):
        return False
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise ValueError("reading HEIC needs `pip install pillow-heif`") from None
    return True


def _check_size(image: Image.Image, stream: Stream, most: int | None) -> None:
    """Raise ValueError if decoding the image would need too much memory or time."""
    kind = image.format or ""
    codecs = [tile[0] for tile in getattr(image, "tile", [])]
    limit = min(LIMITS.get(name, LIMIT) for name in (kind, *codecs))
    if isinstance(image, JpegImageFile):
        if _in_one_scan(stream):
            limit = 64 * LARGEST  # decoded by rows, at an eighth of the size
        else:
            stream.seek(0)
            scans = len(re.findall(b"\xff\xda", stream.read()))
            kind = f"JPEG, with {scans} scans"
            limit = min(LIMIT, SCAN_PIXELS // max(1, scans))
    limit = min(limit, most or limit)
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(TILE_WIDTH, 1), tags.get(TILE_LENGTH, 1)
    for width, height in (image.size, tile):  # tiles can be larger than the image
        if width * height > limit:
            raise ValueError(
                f"{height}x{width} pixels, more than the limit of {limit / 1e6:.0f} "
                f"million for this kind of {kind}; save a smaller copy"
            )


def _in_one_scan(stream: Stream) -> bool:
    """Whether a JPEG is sequential, with all components in its first scan.

    Otherwise the decoder keeps the whole photo in memory. The result is False for
    anything unusual.
    """
    stream.seek(2)
    components = b""
    while len(head := stream.read(4)) == 4:
        marker, length = struct.unpack(">HH", head)
        if not 0xFFC0 <= marker < 0xFFFF or 0xFFD0 <= marker <= 0xFFD9 or length < 2:
            return False  # not a segment
        body = stream.read(length - 2)
        if marker in (0xFFC0, 0xFFC1):
            components = body[5:6]
        elif marker == 0xFFDA:
            return body[:1] == components != b""
        elif marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            return False  # progressive, or a rare kind
    return False


def _reduced(image: Image.Image) -> Image.Image:
    """Reduce an image of more than `LARGEST` pixels by an integer factor.

    JPEG is reduced by its decoder (2, 4 or 8), others by averaging, in strips.
    """
    width, height = image.size
    factor = 1
    while math.ceil(width / factor) * math.ceil(height / factor) > LARGEST:
        factor += 1
    if factor == 1:
        return image
    if isinstance(image, JpegImageFile):
        factor = 1 << (factor - 1).bit_length()
        image.draft(None, (width // factor, height // factor))
        return image
    highest = float(image.getextrema()[1]) if image.mode in ("I", "F") else None  # pyright: ignore
    strips = []
    for top in range(0, height, 256 * factor):
        box = (0, top, width, min(top + 256 * factor, height))
        strip = Image.fromarray(_to_rgb(image.crop(box), highest))
        strips.append(np.asarray(strip.reduce(factor)))
    return Image.fromarray(np.concatenate(strips))


# The transposition that undoes each EXIF orientation.
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS = {_ORIENTATIONS[k] for k in (5, 6, 7, 8)}  # those that swap height and width


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """The transposition that undoes the EXIF orientation; None if it can't be read.

    ImageOps.exif_transpose rewrites all of EXIF, and fails if any tag has a wrong type.
    """
    try:
        return _ORIENTATIONS.get(image.getexif().get(0x0112))  # pyright: ignore
    except Exception:  # damaged bytes cause errors of many types
        return None


def _focal_length(image: Image.Image) -> float | None:
    """`focal_length` of an open image."""
    try:
        exif = image.getexif().get_ifd(_EXIF)
        film = float(exif.get(_FOCAL_LENGTH_35MM) or 0)
        if film > 0:
            focal = math.hypot(*image.size) * film / FILM_DIAGONAL
        else:
            per_unit = float(exif[_SENSOR_RESOLUTION])
            per_mm = per_unit / _SENSOR_UNITS[int(exif.get(_SENSOR_UNIT, 2))]
            # The resolution is that of the photo as it was taken.
            resized = image.size[0] / float(exif.get(_TAKEN_WIDTH) or image.size[0])
            focal = float(exif[_FOCAL_LENGTH]) * per_mm * resized
    except Exception:  # missing tags; damaged ones cause errors of many types
        return None
    # Outside these bounds, the field of view would be above 168 or below 0.6 degrees.
    plausible = 0.05 < focal / max(image.size) < 100
    return focal if plausible else None


def _transposed(image: Image.Image, method: Image.Transpose | None) -> Image.Image:
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, highest: float | None = None) -> np.ndarray:
    """Convert an image to RGB.

    Args:
      highest: largest value of an image in mode I or F; default: that of `image`.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float32))
        # In modes I and F, only the values show whether they have 8 or 16 bits.
        highest = float(values.max(initial=0)) if highest is None else highest
        if image.mode == "F" and highest <= 1:
            values = values * 255
        elif image.mode.startswith("I;16") or highest > 255:
            values = values / 257.0  # 65535 -> 255
        grey = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))
