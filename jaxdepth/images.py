"""Reading of photos of any format as upright arrays (H, W, 3) uint8."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from jaxdepth.runtime.errors import UserError

# Suffixes of the image files that are searched for in folders.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif")
# The formats of these files. Pillow is not allowed to open others: some start programs
# (Ghostscript for EPS), and each format that is not needed is a decoder to attack.
# (The plugin of JPEG opens MPO, two photos of a stereo camera, as the first one.)
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")


def read(path: str | Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file and apply its EXIF orientation.

    Grey, palette, CMYK and transparent images become RGB; 16-bit ones are scaled to 8.

    Raises: UserError, naming the file, if it is not an image or is damaged.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns about large photos, and raises for decompression bombs.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return _to_rgb(_upright(image))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not an image") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image that can be read") from None
    except Exception as error:  # damaged bytes make decoders raise errors of many types
        raise UserError(f"{path} can't be read as an image: {error}") from None


def as_rgb(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Convert a path, a PIL image or an array to RGB.

    Args:
      image: arrays are uint8, (H, W, 3), (H, W, 4) or grey (H, W).

    Raises: UserError for an array of another type or shape; as `read` for a path.
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
            f"the image is {array.dtype}: give uint8 values of 0 to 255, or a path"
        )
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] not in (3, 4) or 0 in array.shape:
        raise UserError(
            f"the image has shape {array.shape}: give (height, width, 3), one image"
        )
    return array[..., :3]


def find(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """List image files: paths of files, and the images in paths of folders.

    Folders are searched by suffix, without their sub-folders.

    Returns: the files; notes on what was left out of folders.
    Raises: UserError for a path that does not exist, or a folder without images.
    """
    files: list[Path] = []
    notes = []
    for path in map(Path, paths):
        try:
            entries = sorted(path.iterdir()) if path.is_dir() else None
            exists = entries is not None or path.exists()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        if not exists:
            raise UserError(f"{path}: there is no such file")
        if entries is None:
            files.append(path)
            continue
        visible = [p for p in entries if not p.name.startswith(".")]
        images = [p for p in visible if is_photo(p)]
        if not images:
            raise UserError(f"{path} holds no image ({', '.join(SUFFIXES)})")
        files += images
        if len(images) < len(visible):
            folders = sum(p.is_dir() for p in visible)
            others = len(visible) - len(images) - folders
            notes.append(
                f"of {path} {others} other files and {folders} folders are left out"
            )
    return files, notes


def is_photo(path: Path) -> bool:
    """Whether the path is a file with an image suffix, and not hidden."""
    named = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    return named and path.is_file()


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


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; the image is unchanged if EXIF can't be read.

    ImageOps.exif_transpose rewrites all of EXIF, and fails if any tag has a wrong type.
    """
    try:
        method = _ORIENTATIONS.get(image.getexif().get(0x0112))  # pyright: ignore
    except Exception:  # damaged bytes cause errors of many types
        return image
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float32)
        if image.mode == "F" and values.max(initial=0) <= 1:
            values = values * 255
        # In modes I and F, only the values show whether they have 8 or 16 bits.
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values = values / 257.0  # 65535 -> 255
        grey = np.clip(np.round(values), 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))
