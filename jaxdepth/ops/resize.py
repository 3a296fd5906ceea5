"""Resizing: bilinear, area mean, and area mean over valid depth.

Axes 1 and 2 are the spatial ones, in (b, h, w) and (b, h, w, c) arrays. The result is a
JAX array for JAX input and a NumPy array for NumPy input. All resizing is separable:
one matrix per axis.
"""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Real

Size: TypeAlias = tuple[int, int]
# jax.Array or np.ndarray. Input and output are of the same kind, which a union type
# could not express.
AnyArray: TypeAlias = Any


@functools.lru_cache(maxsize=256)
def _area_weights(n_in: int, n_out: int) -> np.ndarray:
    # In units of 1 / (n_in * n_out) of the axis all edges are integers. A pixel and a
    # cell that only touch get exactly 0; `masked_area` decides validity by that.
    cell = np.arange(n_out)[:, None] * n_in
    pixel = np.arange(n_in)[None, :] * n_out
    begin = np.maximum(cell, pixel)
    end = np.minimum(cell + n_in, pixel + n_out)
    return np.maximum(end - begin, 0) / n_in


@functools.lru_cache(maxsize=256)
def _bilinear_weights(n_in: int, n_out: int) -> np.ndarray:
    position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, n_in - 1)
    weights, rows = np.zeros((n_out, n_in)), np.arange(n_out)
    weights[rows, low] = 1 - (position - low)
    weights[rows, high] += position - low
    return weights


def area_matrix(n_in: int, n_out: int) -> Float[np.ndarray, "o i"]:
    """Overlap-weighted mean along an axis as a (n_out, n_in) float32 matrix.

    Output cell k covers the input range [k, k + 1) * n_in / n_out. The weight of a
    pixel is the share of the cell that it covers. Rows sum to 1.
    """
    return _area_weights(n_in, n_out).astype(np.float32)


def resize_bilinear(x: Real[AnyArray, "b h w *c"], size: Size) -> Real[AnyArray, "..."]:
    """Interpolate bilinearly to `size`: half-pixel centres, no corner alignment.

    Output k is at the input position (k + 0.5) * n_in / n_out - 0.5; edges are
    repeated. Equals PyTorch's `interpolate(mode="bilinear", align_corners=False)` and
    TensorFlow 2's `tf.image.resize`, both without antialiasing.

    Args:
      x: (b, h, w) or (b, h, w, c), JAX or NumPy, any real type.
      size: output (height, width).

    Returns: the same kind of array, float64 for float64 input, else float32.
    """
    return _resize(_bilinear_weights, x, size)


def resize_area(x: Real[AnyArray, "b h w *c"], size: Size) -> Real[AnyArray, "..."]:
    """Resize by the mean over each output cell, weighted by the overlap area.

    Cells may be fractional. The mean over the image is preserved. For integer factors,
    the result is the mean over blocks. Enlarging repeats entries, and mixes two where a
    cell overlaps both.

    Args and returns: as `resize_bilinear`.
    """
    return _resize(_area_weights, x, size)


def masked_area(
    depth: Real[AnyArray, "b h w"], valid: Bool[AnyArray, "b h w"], size: Size
) -> tuple[Float[AnyArray, "b i j"], Bool[AnyArray, "b i j"]]:
    """Mean depth over the valid area of each output cell.

        depth[cell] = sum(overlap * valid * depth) / sum(overlap * valid)

    Depth is not interpolated across holes: a cell without valid area is invalid and 0.

    Args:
      depth: metres (or any unit), JAX or NumPy; ignored where `valid` is False, also
        if it is NaN.
      valid: True where `depth` was measured.
      size: output (height, width); cells may be fractional.

    Returns: depth, float64 for float64 input, else float32; True where it is valid.
    """
    xp = jnp if isinstance(depth, jax.Array) else np
    dtype = _dtype(depth)
    valid_depth = xp.where(valid, depth, xp.zeros_like(depth))
    total = _resize(_area_weights, valid_depth, size)
    area = _resize(_area_weights, valid.astype(dtype), size)
    has_any = area > 0
    mean = total / xp.where(has_any, area, xp.ones_like(area))
    return xp.where(has_any, mean, xp.zeros_like(mean)), has_any


def _dtype(x):
    return np.float64 if x.dtype == np.float64 else np.float32


def _resize(weights, x, size: Size):
    if x.ndim not in (3, 4):
        raise ValueError(f"resize: expected (b, h, w) or (b, h, w, c), got {x.shape}")
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
    if axis == x.ndim - 1:
        # A plain matrix product. In the other form, the product's result is transposed,
        # which XLA's CPU backend computes eight times slower.
        return jnp.matmul(x, matrix.T, precision=jax.lax.Precision.HIGHEST)
    y = jnp.tensordot(matrix, x, (1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(y, 0, axis)
