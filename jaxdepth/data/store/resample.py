"""Resamples frames for a store: depth codes, training size, cameras."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt16

from jaxdepth.camera import Camera, covering_scale
from jaxdepth.data.sources import Frame
from jaxdepth.ops import resize

VERSION = 4  # part of a store's key: increase it when outputs change


def to_codes(depth: np.ndarray, depth_unit: int = 1000) -> UInt16[np.ndarray, "h w"]:
    """Convert metres to the codes of a store: round(depth * depth_unit).

    Invalid depth, and depth beyond 65535 / `depth_unit` metres, becomes 0 (missing).
    Valid depth below half a code becomes 1, since 0 would be missing.
    """
    metres = np.asarray(depth, np.float64)
    codes = np.round(metres * depth_unit)
    valid = np.isfinite(codes) & (metres > 0) & (codes <= 65535)
    return np.where(valid, np.maximum(codes, 1), 0).astype(np.uint16)


def within(
    codes: UInt16[np.ndarray, "h w"], last_code: int
) -> UInt16[np.ndarray, "h w"]:
    """Set depth beyond `last_code` to 0, so that `to_size` leaves it out."""
    return np.where(codes <= last_code, codes, 0).astype(np.uint16)


def without_extremes(
    depth: np.ndarray, *, unit: float, last_code: int, depth_unit: int = 1000
) -> UInt16[np.ndarray, "h w"] | None:
    """Convert to codes and remove a frame's minimum and maximum (set them to 0).

    Args:
      depth: metres.
      unit: stored integers per metre in the source. The extremes are compared as such
        integers if they are finer than the store's codes, else as codes.
      last_code: depth beyond this code is not a candidate for the maximum.
      depth_unit: codes per metre.

    Returns: None if no depth would be left.
    """
    masked = to_codes(depth, depth_unit)
    valid = (masked > 0) & (masked <= last_code)
    if not valid.any():
        return None
    finer = unit > depth_unit
    stored = np.round(depth.astype(np.float64) * unit) if finer else masked
    extremes = stored[valid].min(), stored[valid].max()
    masked[valid & np.isin(stored, extremes)] = 0
    return masked if masked[valid].any() else None


def training_frame(
    frame: Mapping[str, np.ndarray], size: tuple[int, int], *, last_code: int
) -> dict[str, np.ndarray]:
    """Resample a frame of a store to the training size by `to_size`.

    Args:
      frame: "rgb" and the codes of each kind of depth, at full size.
      size: (height, width).
      last_code: depth beyond this code is missing.
    """
    valid = {k: x if k == "rgb" else within(x, last_code) for k, x in frame.items()}
    return {kind: to_size(array, size) for kind, array in valid.items()}


def to_size(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centre-crop to the aspect ratio of `size` and resize; keeps the dtype.

    Colour, (h, w, 3), is averaged over areas when it shrinks and interpolated
    bilinearly when it grows. Depth, (h, w), is averaged over the valid part of each
    area, or taken from the nearest pixel: never interpolated across holes. Invalid
    depth must be 0 already.
    """
    if array.shape[:2] == size:
        return array
    array = _crop_to_aspect(array, size)
    factors = {old / new for old, new in zip(array.shape[:2], size, strict=True)}
    if len(factors) == 1 and (factor := factors.pop()).is_integer():
        return _shrink_by(array, int(factor))
    array = array[None]
    if array.ndim == 4:
        smaller = min(array.shape[1], size[0]), min(array.shape[2], size[1])
        resized = resize.resize_area(array.astype(np.float32), smaller)
        resized = resize.resize_bilinear(resized, size)
        return np.floor(np.asarray(resized[0]) + 0.5).clip(0, 255).astype(np.uint8)
    if array.shape[1] < size[0] or array.shape[2] < size[1]:
        rows, columns = (
            ((2 * np.arange(n) + 1) * old) // (2 * n)  # by pixel centres
            for n, old in zip(size, array.shape[1:], strict=True)
        )
        return array[0][np.ix_(rows, columns)]
    depth, valid = resize.masked_area(array.astype(np.float32), array > 0, size)
    return np.where(valid, np.round(depth), 0)[0].astype(np.uint16)


def crop_notes(frames: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[str]:
    """The note on what `to_size` cuts off; [] if it is less than 2 % of every frame.

    Args:
      frames: the distinct (height, width) of frames.
    """
    cut = {}
    for height, width in frames:
        _, _, rows, columns = _box((height, width), size)
        cut[height, width] = 1 - rows * columns / (height * width)
    if not cut or max(cut.values()) < 0.02:
        return []
    height, width = max(cut, key=lambda frame: cut[frame])
    scale = max(size[0] / height, size[1] / width)
    whole = round(height * scale), round(width * scale)
    return [
        f"frames are cropped to their central part: of {height}x{width}, "
        f"{cut[height, width]:.0%} is cut off; --size={whole[0]}x{whole[1]} of "
        f"prepare-data, or --size={19 * whole[0] // 20}x{19 * whole[1] // 20} of run, "
        "keeps all of it"
    ]


def camera_at(frame: Frame, size: tuple[int, int]) -> Camera | None:
    """Return the camera of a frame after `to_size`; None if it is unknown.

    Both axes are scaled by the covering scale, which rounding changes by less than a
    pixel of the width or height.
    """
    if frame.intrinsics is None:
        return None
    shape = frame.rgb.shape[0], frame.rgb.shape[1]
    return camera_from(Camera(*frame.intrinsics), shape, size)


def camera_from(
    camera: Camera, shape: tuple[int, int], size: tuple[int, int]
) -> Camera:
    """`camera_at` for the camera of a frame of (height, width) `shape`."""
    top, left, _, _ = _box(shape, size)
    scale = covering_scale(shape, size)
    return camera.shifted(top, left).scaled(scale, scale)


def frame_camera(
    camera: Camera, size: tuple[int, int], shape: tuple[int, int]
) -> Camera:
    """Invert `camera_at`: the camera of the frame of (height, width) `shape`."""
    top, left, _, _ = _box(shape, size)
    scale = 1 / covering_scale(shape, size)
    return camera.scaled(scale, scale).shifted(-top, -left)


def _shrink_by(array: np.ndarray, factor: int) -> np.ndarray:
    """`to_size` for an integer factor, in faster integer arithmetic."""
    blocks = [array[i::factor, j::factor] for i in range(factor) for j in range(factor)]
    total = np.zeros(blocks[0].shape, np.uint32)
    for block in blocks:
        total += block
    if array.ndim == 3:
        area = factor * factor
        return ((2 * total + area) // (2 * area)).astype(np.uint8)
    valid = np.zeros(total.shape, np.uint32)
    for block in blocks:
        valid += block > 0
    return np.round(total / np.maximum(valid, 1)).astype(np.uint16)


def _crop_to_aspect(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left, rows, columns = _box(array.shape[:2], size)
    return array[top : top + rows, left : left + columns]


def _box(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest central crop with `size`'s aspect."""
    height, width = shape
    scale = min(height / size[0], width / size[1])
    rows = min(height, max(1, round(size[0] * scale)))
    columns = min(width, max(1, round(size[1] * scale)))
    # A difference of one pixel may be rounding: do not crop.
    rows = height if height - rows <= 1 else rows
    columns = width if width - columns <= 1 else columns
    return (height - rows) // 2, (width - columns) // 2, rows, columns
