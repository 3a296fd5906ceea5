"""A 1x1 convolution and the batch normalisation after it, as one convolution.

The function has no parameters: the caller passes kernel, scale and offset and keeps the
running statistics.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

EXACT = lax.Precision.HIGHEST  # bfloat16 products would be inaccurate


def folded_norm(
    x: Float[Array, "b h w cin"],
    kernel: Float[Array, "cin cout"],
    scale: Float[Array, "cout"],
    offset: Float[Array, "cout"],
    *,
    epsilon: float,
    axis_name: str | None,
    residual=None,
    fuse: bool = False,
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
      epsilon: added to the variance.
      axis_name: the device axis over which batch statistics are shared; None for
        statistics per device.

    Returns: out in the dtype of x; mean and (biased) variance of y, float32.
    """
    mean, square = _output_moments(x, kernel)
    if axis_name is not None:
        mean, square = lax.pmean(jnp.stack([mean, square]), axis_name)
    variance = jnp.maximum(0.0, square - mean * mean)
    factor = scale * lax.rsqrt(variance + epsilon)
    if fuse:
        out = _conv_add(x, kernel * factor[None], offset - mean * factor, residual)
        return out, mean, variance
    out = _affine(x, kernel * factor[None], offset - mean * factor)
    return out, mean, variance


def _output_moments(x, kernel):
    """Means of y = x kernel and of y^2 over the entries on this device."""
    entries = x.shape[0] * x.shape[1] * x.shape[2]
    first, second = _moments(x)
    mean = jnp.einsum("c,cf->f", first / entries, kernel, precision=EXACT)
    mixed = jnp.einsum("cd,df->cf", second / entries, kernel, precision=EXACT)
    return mean, jnp.sum(kernel * mixed, axis=0)


@jax.custom_vjp
def _moments(x):
    """Sum of x and sum of its outer product with itself, in float32.

    The custom gradient fixes the dtypes: products in that of x, sums in float32.
    """
    second = _per_image(x, x)
    return jnp.sum(x, axis=(0, 1, 2), dtype=jnp.float32), second


def _moments_back(x, gradients):
    first, second = gradients
    symmetric = (second + second.T).astype(x.dtype)
    constant = first.astype(x.dtype)[None, None, None]
    return (_conv1(x, symmetric) + constant,)


_moments.defvjp(lambda x: (_moments(x), x), _moments_back)


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
def _conv_add(x, kernel, offset, residual):
    return _conv_add_forward(x, kernel, offset, residual)[0]


def _conv1(x, k):
    return lax.conv_general_dilated(x, k[None, None], (1, 1), ((0, 0), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _conv_add_forward(x, kernel, offset, residual):
    y = _conv1(x, kernel.astype(x.dtype)) + offset.astype(x.dtype)[None, None, None]
    if residual is not None:
        y = jax.nn.relu(y + residual)
        y = lax.optimization_barrier(y)
    return y, (x, kernel, None if residual is None else y)


def _conv_add_backward(saved, g):
    x, kernel, out = saved
    if out is not None:
        g = jnp.where(out > 0, g, jnp.zeros_like(g))
    offset_grad = lax.reduce(g.astype(jnp.float32), jnp.float32(0), lax.add, (0, 1, 2))
    g = lax.optimization_barrier(g)
    kernel_grad = _per_image(x, g)
    x_grad = _conv1(g, kernel.astype(x.dtype).T)
    return x_grad, kernel_grad, offset_grad, None if out is None else g


_conv_add.defvjp(_conv_add_forward, _conv_add_backward)


def _per_image(x, y):
    return jnp.einsum("bhwc,bhwf->cf", x, y, preferred_element_type=jnp.float32)
    b, h, w, _ = x.shape
    each = jnp.einsum("bnc,bnf->bcf", x.reshape(b, h * w, -1), y.reshape(b, h * w, -1), preferred_element_type=jnp.float32)
    return each.sum(0)
