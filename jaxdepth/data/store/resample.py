"""One frame as a store keeps it: whole millimetres, at the training size.

Arrays in, arrays out; what is read and where it goes is `packing.py`'s.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt16

from jaxdepth.data.sources import Frame
from jaxdepth.ops import resize

VERSION = 2  # of what comes out; caches made by another one are made again


def millimetres(depth: np.ndarray) -> UInt16[np.ndarray, "h w"]:
    """Metres to whole millimetres; what uint16 can't hold, or is not there, is 0."""
    scaled = np.round(np.asarray(depth, np.float64) * 1000)
    good = np.isfinite(scaled) & (scaled > 0) & (scaled <= 65535)
    return np.where(good, scaled, 0).astype(np.uint16)


def without_extremes(
    depth: np.ndarray, *, unit: float, max_mm: int
) -> UInt16[np.ndarray, "h w"] | None:
    """Whole millimetres without the pixels at a frame's own smallest and largest.

    Args:
      depth: metres.
      unit: the source's own integers per metre: depths that share one are the same.
        Where they are no finer than millimetres, those are.
      max_mm: farther truth is none of the two.

    None where nothing would be left.
    """
    kept = millimetres(depth)
    valid = (kept > 0) & (kept <= max_mm)
    if not valid.any():
        return None
    own = np.round(depth.astype(np.float64) * unit) if unit > 1000 else kept
    extremes = own[valid].min(), own[valid].max()
    kept[valid & np.isin(own, extremes)] = 0
    return kept if kept[valid].any() else None


def to_size(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cover `size` and cut to its aspect about the centre; keeps the dtype.

    Colours, (h, w, 3), by area mean, or bilinearly where they grow; depth, (h, w), by
    the mean over valid area, or the nearest where it grows: never across holes.
    """
    if array.shape[:2] == size:
        return array
    array = _cut_to_aspect(array, size)
    factors = {old / new for old, new in zip(array.shape[:2], size, strict=True)}
    if len(factors) == 1 and (factor := factors.pop()).is_integer():
        return _shrink_by(array, int(factor))
    array = array[None]
    if array.ndim == 4:
        shrunk = min(array.shape[1], size[0]), min(array.shape[2], size[1])
        small = resize.resize_area(array.astype(np.float32), shrunk)
        small = resize.resize_bilinear(small, size)
        return np.floor(np.asarray(small[0]) + 0.5).clip(0, 255).astype(np.uint8)
    if array.shape[1] < size[0] or array.shape[2] < size[1]:
        rows, columns = (
            ((2 * np.arange(n) + 1) * old) // (2 * n)  # by the pixels' centres
            for n, old in zip(size, array.shape[1:], strict=True)
        )
        return array[0][np.ix_(rows, columns)]
    depth, valid = resize.masked_area(array.astype(np.float32), array > 0, size)
    return np.where(valid, np.round(depth), 0)[0].astype(np.uint16)


def intrinsics(frame: Frame, size: tuple[int, int]) -> tuple[float, ...] | None:
    """The frame's fx, fy, cx, cy after `to_size`, pixels; None where not known."""
    if frame.intrinsics is None:
        return None
    fx, fy, cx, cy = frame.intrinsics
    top, left, rows, columns = _box(frame.rgb.shape[:2], size)
    sy, sx = size[0] / rows, size[1] / columns
    # A pixel's centre, not its corner, has the whole number.
    return (
        fx * sx, fy * sy,
        (cx - left + 0.5) * sx - 0.5, (cy - top + 0.5) * sy - 0.5,
    )  # fmt: skip


def frame_intrinsics(
    camera: Sequence[float], size: tuple[int, int], frame_size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy of a frame, from what `intrinsics` made of them at `size`."""
    fx, fy, cx, cy = camera
    top, left, rows, columns = _box(frame_size, size)
    sy, sx = rows / size[0], columns / size[1]
    return (
        fx * sx, fy * sy,
        (cx + 0.5) * sx - 0.5 + left, (cy + 0.5) * sy - 0.5 + top,
    )  # fmt: skip


def _shrink_by(array: np.ndarray, factor: int) -> np.ndarray:
    """What `to_size` does for a whole factor, in integers: several times faster."""
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


def _cut_to_aspect(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left, rows, columns = _box(array.shape[:2], size)
    return array[top : top + rows, left : left + columns]


def _box(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest middle part with `size`'s aspect."""
    height, width = shape
    scale = min(height / size[0], width / size[1])
    rows = min(height, max(1, round(size[0] * scale)))
    columns = min(width, max(1, round(size[1] * scale)))
    # One pixel of rounding is no reason to cut.
    rows = height if height - rows <= 1 else rows
    columns = width if width - columns <= 1 else columns
    return (height - rows) // 2, (width - columns) // 2, rows, columns
