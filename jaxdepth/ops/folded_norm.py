"""A 1x1 convolution and the batch normalisation after it, as one convolution.

The function has no parameters: the caller passes kernel, scale and offset and keeps the
running statistics.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdepth.ops import platform
from jaxdepth.ops.batch_norm import Groups, statistics
from jaxdepth.ops.conv import conv2d

EXACT = lax.Precision.HIGHEST  # bfloat16 products would be inaccurate


def folded_norm(
    x: Float[Array, "b h w cin"],
    kernel: Float[Array, "cin cout"],
    scale: Float[Array, "cout"],
    offset: Float[Array, "cout"],
    residual: Float[Array, "b h w cout"] | None = None,
    *,
    epsilon: float,
    axis_name: str | None,
    axis_index_groups: Groups | None = None,
) -> tuple[Float[Array, "b h w cout"], Float[Array, "cout"], Float[Array, "cout"]]:
    """Batch normalisation of a 1x1 convolution, without storing the convolution.

        y = x kernel;   out = (y - mean(y)) / sqrt(var(y) + epsilon) * scale + offset

    A 1x1 convolution is linear in each entry, so the statistics of y follow from the
    first and second moments of x, and normalisation rescales the kernel:

        mean(y) = mean(x) kernel
        mean(y^2)_f = sum_cd kernel_cf mean(x_c x_d) kernel_df
        out = x (kernel a) + (offset - mean(y) a),   a = scale / sqrt(var(y) + epsilon)

    This saves storing y and reading it three times, at the cost of two cin x cin
    products. It pays where cout is several times cin and memory bandwidth is the limit.
    Values and gradients equal those of the two operations up to rounding.

    Args:
      x: features, in the dtype of the computation.
      kernel, scale, offset: float32.
      residual: in the dtype of x. If given, out is relu(out + residual).
      epsilon, axis_name, axis_index_groups: as in `batch_norm`.

    Returns: out in the dtype of x; mean and (biased) variance of y, float32.
    """
    mean, square = _output_moments(x, kernel)
    mean, variance = statistics(mean, square, axis_name, axis_index_groups)
    factor = scale * lax.rsqrt(variance + epsilon)
    kernel, offset = kernel * factor[None], offset - mean * factor
    if platform.current() == "gpu":
        return _affine_sum(x, kernel, offset, residual), mean, variance
    out = _affine(x, kernel, offset)
    if residual is not None:
        out = jax.nn.relu(residual + out)
    return out, mean, variance


@jax.custom_vjp
def _output_moments(x, kernel):
    """Means of y = x kernel and of y^2 over the entries on this device, float32.

    The custom gradient fixes the dtypes: products with maps in that of x, sums in
    float32. It uses that the second moment is symmetric.
    """
    return _output_moments_forward(x, kernel)[0]


def _output_moments_forward(x, kernel):
    entries = math.prod(x.shape[:3])
    first = jnp.sum(x, axis=(0, 1, 2), dtype=jnp.float32) / entries
    second = jnp.einsum("bhwc,bhwd->cd", x, x, preferred_element_type=jnp.float32)
    mixed = jnp.einsum("cd,df->cf", second, kernel, precision=EXACT) / entries
    mean = jnp.einsum("c,cf->f", first, kernel, precision=EXACT)
    return (mean, jnp.sum(kernel * mixed, axis=0)), (x, kernel, first, mixed)


def _output_moments_back(saved, gradients):
    x, kernel, first, mixed = saved
    mean_grad, square_grad = gradients
    entries = math.prod(x.shape[:3])
    kernel_grad = first[:, None] * mean_grad[None] + 2 * mixed * square_grad[None]
    first_grad = jnp.einsum("cf,f->c", kernel, mean_grad, precision=EXACT) / entries
    scaled = kernel * (2 / entries * square_grad)[None]
    second_grad = jnp.einsum("cf,df->cd", scaled, kernel, precision=EXACT)
    constant = first_grad.astype(x.dtype)[None, None, None]
    return _pointwise(x, second_grad.astype(x.dtype)) + constant, kernel_grad


_output_moments.defvjp(_output_moments_forward, _output_moments_back)


@jax.custom_vjp
def _affine(x, kernel, offset):
    """x kernel + offset in the dtype of x, from a float32 kernel and offset.

    The custom gradient fixes the dtypes: the kernel gradient stays in float32, because
    the gradient of the variance is a difference of its sums.
    """
    y = jnp.einsum(
        "bhwc,cf->bhwf",
        x,
        kernel.astype(x.dtype),
        preferred_element_type=jnp.float32,
    )
    return (y + offset[None, None, None]).astype(x.dtype)


def _affine_back(residuals, gradient):
    x, kernel = residuals
    kernel_grad = jnp.einsum(
        "bhwc,bhwf->cf", x, gradient, preferred_element_type=jnp.float32
    )
    offset_grad = jnp.sum(gradient, axis=(0, 1, 2), dtype=jnp.float32)
    x_grad = jnp.einsum("bhwf,cf->bhwc", gradient, kernel.astype(x.dtype))
    return x_grad, kernel_grad, offset_grad


_affine.defvjp(lambda x, k, o: (_affine(x, k, o), (x, k)), _affine_back)


@jax.custom_vjp
def _affine_sum(x, kernel, offset, residual):
    """`_affine`, plus the residual and the ReLU, as one convolution of cuDNN.

    XLA compiles a convolution, the sum with a bias and a map, and a ReLU into one
    kernel if all have the dtype of the convolution. Gradients have those of `_affine`.
    """
    return _affine_sum_forward(x, kernel, offset, residual)[0]


def _affine_sum_forward(x, kernel, offset, residual):
    out = _pointwise(x, kernel) + offset.astype(x.dtype)[None, None, None]
    if residual is not None:
        # The barrier: as in `batch_norm`.
        out = lax.optimization_barrier(jax.nn.relu(out + residual))
    return out, (x, kernel, None if residual is None else out)


def _affine_sum_back(saved, gradient):
    x, kernel, out = saved
    if out is not None:
        gradient = jnp.where(out > 0, gradient, jnp.zeros_like(gradient))
    offset_grad = jnp.sum(gradient, axis=(0, 1, 2), dtype=jnp.float32)
    kernel_grad = jnp.einsum(
        "bhwc,bhwf->cf", x, gradient, preferred_element_type=jnp.float32
    )
    x_grad = _pointwise(gradient, kernel.T)
    return x_grad, kernel_grad, offset_grad, None if out is None else gradient


def _pointwise(x, kernel):
    kernel = kernel.astype(x.dtype)
    if platform.current() == "gpu":  # XLA fuses sums into convolutions of cuDNN
        return conv2d(x, kernel[None, None])
    return jnp.einsum("bhwc,cf->bhwf", x, kernel)


_affine_sum.defvjp(_affine_sum_forward, _affine_sum_back)
