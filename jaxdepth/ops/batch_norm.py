"""Batch normalisation, residual sum and ReLU as one operation with its own gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_AXES = (0, 1, 2)
# For each group of devices that share statistics, their indices on the device axis.
Groups = tuple[tuple[int, ...], ...]


def batch_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, "c"],
    offset: Float[Array, "c"],
    residual: Float[Array, "b h w c"] | None = None,
    *,
    relu: bool,
    epsilon: float,
    axis_name: str | None,
    axis_index_groups: Groups | None = None,
) -> tuple[Float[Array, "b h w c"], Float[Array, "c"], Float[Array, "c"]]:
    """Normalise by the statistics of the batch, add the residual, apply the ReLU.

        out = relu((x - mean) / sqrt(variance + epsilon) * scale + offset + residual)

    Value and gradient equal those of the separate operations up to rounding. The
    gradient takes two passes over the maps, one for its two sums and one for the
    result. The ReLU's mask is computed again from x; with a residual, it comes from the
    result, and the masked gradient is stored, because it is the residual's gradient.
    XLA's gradient of the separate operations takes three passes.

    Reverse mode only. No gradient passes through the returned statistics.

    Args:
      x: features, in the dtype of the computation.
      scale, offset: float32.
      residual: added before the ReLU; in the dtype of x.
      relu: whether to apply the ReLU.
      epsilon: added to the variance.
      axis_name: the device axis over which the statistics are shared; None for
        statistics per device.
      axis_index_groups: indices on that axis of the devices that share them; None for
        all.

    Returns: out in the dtype of x; mean and (biased) variance of x, float32.
    """
    shared = (relu, epsilon, axis_name, axis_index_groups)
    return _batch_norm(x, scale, offset, residual, shared)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _batch_norm(x, scale, offset, residual, shared):
    return _forward(x, scale, offset, residual, shared)[0]


def _forward(x, scale, offset, residual, shared):
    relu, epsilon, *devices = shared
    values = x.astype(_sum_dtype(x))
    entries = x.size // x.shape[-1]
    sums = _sums(values, values * values)
    mean, variance = statistics(*(s / entries for s in sums), *devices)
    inverse = lax.rsqrt(variance + epsilon)
    out = normalise(x, mean, inverse * scale, offset)
    if residual is not None:
        # Rounded first, as the separate operations are.
        out = out.astype(x.dtype).astype(out.dtype) + residual
    if relu:
        out = jax.nn.relu(out)
    out = out.astype(x.dtype)
    mask_of = None
    if relu and residual is not None:
        # The next convolution reads the result from memory. Without the barrier, XLA
        # would also store it in float32, for the next residual sum, and the mask.
        out = mask_of = lax.optimization_barrier(out)
    saved = x, scale, offset, mean, inverse, mask_of, residual is not None
    return (out, mean, variance), saved


def _backward(shared, saved, gradients):
    relu, _, *devices = shared
    x, scale, offset, mean, inverse, mask_of, has_residual = saved
    gradient = gradients[0].astype(_sum_dtype(x))
    if relu:
        if has_residual:
            # The result is not negative. Compiled for GPU, a comparison would be a
            # kernel of its own, which stores the mask.
            gradient = gradient * jnp.sign(mask_of).astype(gradient.dtype)
        else:
            out = normalise(x, mean, inverse * scale, offset)
            gradient = jnp.where(out > 0, gradient, 0.0)
    normalised = normalise(x, mean, inverse, jnp.zeros_like(mean))
    entries = x.size // x.shape[-1]
    offset_grad, scale_grad = _sums(gradient, gradient * normalised)
    first, second = _mean_over_devices(offset_grad, scale_grad, *devices)
    stored = gradient
    if has_residual:
        # The barrier: so that the second pass reads this instead of computing it again.
        stored = lax.optimization_barrier(gradient.astype(x.dtype))
    # Dividing here and not the vectors saves a kernel on GPU.
    mean_of_both = (_spread(first) + normalised * _spread(second)) * (1 / entries)
    x_grad = ((stored - mean_of_both) * _spread(inverse * scale)).astype(x.dtype)
    residual_grad = stored if has_residual else None
    return x_grad, scale_grad, offset_grad, residual_grad


_batch_norm.defvjp(_forward, _backward)


def _sums(first, second):
    """Sums over all entries, as one reduction: XLA compiles two kernels, not three."""

    def add(a, b):
        return a[0] + b[0], a[1] + b[1]

    zero = jnp.zeros((), first.dtype)
    return lax.reduce((first, second), (zero, zero), add, _AXES)


def _sum_dtype(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _spread(channels: Any) -> Any:
    return channels[None, None, None]


def normalise(
    x: Float[Array, "b h w c"],
    mean: Float[Array, "c"],
    factor: Float[Array, "c"],
    offset: Float[Array, "c"],
) -> Float[Array, "b h w c"]:
    """(x - mean) * factor + offset per channel, in the dtype of the statistics."""
    return (x - _spread(mean)) * _spread(factor) + _spread(offset)


def statistics(
    mean: Float[Array, "c"],
    square: Float[Array, "c"],
    axis_name: str | None,
    axis_index_groups: Groups | None = None,
) -> tuple[Float[Array, "c"], Float[Array, "c"]]:
    """Mean and (biased) variance over all devices, from the moments on each device.

    Args:
      mean, square: means of x and of x^2 over the entries on this device, float32.
      axis_name, axis_index_groups: as in `batch_norm`.
    """
    mean, square = _mean_over_devices(mean, square, axis_name, axis_index_groups)
    return mean, jnp.maximum(0.0, square - mean * mean)


def _mean_over_devices(first, second, axis_name, axis_index_groups):
    """Two vectors, averaged over devices in one collective.

    Devices have equal numbers of entries, so the average of their means is the mean of
    the whole batch. Sums, once divided by the entries per device, are such means.
    """
    if axis_name is None:
        return first, second
    both = jnp.stack([first, second])
    mean = lax.pmean(both, axis_name, axis_index_groups=axis_index_groups)
    return mean[0], mean[1]
