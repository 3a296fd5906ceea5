"""Photos of any kind as arrays: (H, W, 3) uint8, upright."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from jaxdepth.runtime.errors import UserError

# What a folder is searched for.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif")


def read(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file, turned as its EXIF tag says.

    Grey, palette, CMYK and transparent images become RGB; 16-bit ones are scaled to 8.
    Raises UserError, naming the file, where it is no image or is cut short.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of large photos; of bombs it raises an error.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return _to_rgb(_upright(image))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not an image") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image that can be read") from None
    except Exception as error:  # a decoder raises what it meets in damaged bytes
        raise UserError(f"{path} can't be read as an image: {error}") from None


def as_rgb(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """A path, a PIL image or an array as RGB.

    Arrays are (H,W,3), (H,W,4) or grey (H,W), uint8. Raises UserError otherwise.
    """
    if isinstance(image, str | Path):
        return read(image)
    if isinstance(image, Image.Image):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _to_rgb(_upright(image))
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise UserError(
            f"the image is {array.dtype}: give uint8 colours of 0 to 255 (or a path)"
        )
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] not in (3, 4) or 0 in array.shape:
        raise UserError(
            f"the image has shape {array.shape}: give (height, width, 3), one image"
        )
    return array[..., :3]


def find(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """The image files among the paths: files as named, folders searched by suffix.

    Returns: the files, and what was left out of folders, in words.
    Raises UserError for a path that does not exist, or where nothing is found.
    """
    found: list[Path] = []
    notes = []
    for path in map(Path, paths):
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else None
            there = inside is not None or path.exists()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        if not there:
            raise UserError(f"{path}: there is no such file")
        if inside is None:
            found.append(path)
            continue
        shown = [p for p in inside if not p.name.startswith(".")]
        images = [p for p in shown if is_photo(p)]
        if not images:
            raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)})")
        found += images
        if len(images) < len(shown):
            folders = sum(p.is_dir() for p in shown)
            others = len(shown) - len(images) - folders
            notes.append(
                f"of {path} {others} other files and {folders} folders are left out"
            )
    return found, notes


def is_photo(path: Path) -> bool:
    """Whether it is a file with an image's suffix; hidden ones are none."""
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and path.is_file()


# What undoes each orientation of EXIF.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; as it is where that can't be read.

    ImageOps.exif_transpose would write all of EXIF anew, and fails where one tag, any
    one, has another type than it should.
    """
    try:
        turn = _TURNS.get(image.getexif().get(0x0112))  # pyright: ignore
    except Exception:  # whatever the damaged bytes lead to
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float32)
        if image.mode == "F" and values.max(initial=0) <= 1:
            values = values * 255
        # Of mode I and F only the values tell whether they have 8 or 16 bits.
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values / 257.0  # 65535 -> 255
        grey = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))
