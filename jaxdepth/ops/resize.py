"""Resizing with stated rules: bilinear, area mean, and area mean over valid depth.

Axes 1 and 2 are the spatial ones, of (b, h, w) and (b, h, w, c) arrays alike. JAX
arrays give JAX arrays, NumPy arrays NumPy arrays. Everything is separable and applied
as a matrix per axis; those matrices are public.
"""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Real

Size: TypeAlias = tuple[int, int]
# jax.Array or np.ndarray; what comes in is what goes out, which no union would say.
AnyArray: TypeAlias = Any


@functools.lru_cache(maxsize=256)
def _area_weights(n_in: int, n_out: int) -> np.ndarray:
    # Counted in 1 / (n_in * n_out) of the axis, where all edges are integers: cells
    # that only touch get exactly 0, which decides about validity in `masked_area`.
    cell = np.arange(n_out)[:, None] * n_in
    pixel = np.arange(n_in)[None, :] * n_out
    begin = np.maximum(cell, pixel)
    end = np.minimum(cell + n_in, pixel + n_out)
    return np.maximum(end - begin, 0) / n_in


@functools.lru_cache(maxsize=256)
def _bilinear_weights(n_in: int, n_out: int) -> np.ndarray:
    at = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, n_in - 1)
    weights, rows = np.zeros((n_out, n_in)), np.arange(n_out)
    weights[rows, low] = 1 - (at - low)
    weights[rows, high] += at - low
    return weights


def area_matrix(n_in: int, n_out: int) -> Float[np.ndarray, "o i"]:
    """Overlap-weighted mean along an axis as a (n_out, n_in) float32 matrix.

    Output cell k covers [k, k + 1) * n_in / n_out of the input's pixels; each pixel
    counts by the share of the cell it covers. Rows sum to 1.
    """
    return _area_weights(n_in, n_out).astype(np.float32)


def bilinear_matrix(n_in: int, n_out: int) -> Float[np.ndarray, "o i"]:
    """Linear interpolation along an axis as a (n_out, n_in) float32 matrix.

    Half-pixel centres: output k lies at (k + 0.5) * n_in / n_out - 0.5. Past the
    outermost centres the edge is repeated. No smoothing when shrinking. Rows sum to 1.
    """
    return _bilinear_weights(n_in, n_out).astype(np.float32)


def resize_bilinear(x: Real[AnyArray, "b h w *c"], size: Size) -> Real[AnyArray, "..."]:
    """Interpolate bilinearly to `size`: half-pixel centres, no corner alignment.

    Equals PyTorch's `interpolate(mode="bilinear", align_corners=False)` and
    TensorFlow 2's `tf.image.resize`. Shrinking does not smooth (`antialias=False`).

    Args:
      x: (b, h, w) or (b, h, w, c), JAX or NumPy, any real type.
      size: (height, width) wanted.

    Returns: float32, or float64 for float64, of the same kind of array.
    """
    return _resize(_bilinear_weights, x, size)


def resize_area(x: Real[AnyArray, "b h w *c"], size: Size) -> Real[AnyArray, "..."]:
    """Resize by the mean over each output cell, overlaps weighted by their area.

    Cells may be fractional. The mean over the image stays what it was, and so does a
    constant. At integer factors the plain mean of blocks. When enlarging, entries are
    repeated, mixed where a cell straddles two.

    Args and returns: as `resize_bilinear`.
    """
    return _resize(_area_weights, x, size)


def masked_area(
    depth: Real[AnyArray, "b h w"], valid: Bool[AnyArray, "b h w"], size: Size
) -> tuple[Float[AnyArray, "b i j"], Bool[AnyArray, "b i j"]]:
    """Mean depth over the valid area of each output cell.

        depth[cell] = sum(overlap * valid * depth) / sum(overlap * valid)

    Nothing is interpolated across holes: a cell without valid area is invalid, and 0.

    Args:
      depth: metres (or any unit), JAX or NumPy; ignored where `valid` is False, NaN
        included.
      valid: True where `depth` was measured.
      size: (height, width) wanted; cells may be fractional.

    Returns: depth in float32 (float64 for float64) and where it is valid.
    """
    xp = jnp if isinstance(depth, jax.Array) else np
    dtype = _dtype(depth)
    known = xp.where(valid, depth, xp.zeros_like(depth))
    total = _resize(_area_weights, known, size)
    area = _resize(_area_weights, valid.astype(dtype), size)
    has_any = area > 0
    mean = total / xp.where(has_any, area, xp.ones_like(area))
    return xp.where(has_any, mean, xp.zeros_like(mean)), has_any


def _dtype(x):
    return np.float64 if x.dtype == np.float64 else np.float32


def _resize(weights, x, size: Size):
    if x.ndim not in (3, 4):
        raise ValueError(f"resize: (b, h, w) or (b, h, w, c) expected, not {x.shape}")
    dtype = _dtype(x)
    x = x.astype(dtype)
    for axis, n_out in zip((1, 2), size, strict=True):
        n_in = x.shape[axis]
        if n_in != n_out:
            x = _apply(weights(n_in, n_out).astype(dtype), x, axis)
    return x


def _apply(matrix: np.ndarray, x, axis: int):
    if isinstance(x, np.ndarray):
        return np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
    y = jnp.tensordot(
        jnp.asarray(matrix), x, (1, axis), precision=jax.lax.Precision.HIGHEST
    )
    return jnp.moveaxis(y, 0, axis)
