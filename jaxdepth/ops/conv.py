"""Convolutions in NHWC and HWIO, with the padding of PyTorch and Caffe."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxdepth.ops import platform

Padding = tuple[tuple[int, int], tuple[int, int]]

# Entries of an output map up to which, on CPU, the convolution is a matrix product.
# Forward and gradients of 3x3, 512 channels, in ms there (convolution / product):
# 2x3 batch 16: 1022 / 17; 3x4 batch 8: 26 / 17; 6x8 batch 8, 256 channels: 15 / 16.
TINY_MAP = 16

# Taps times channels out up to which, on CPU, a convolution is a matrix product for all
# taps and the sum of its shifted parts. 3x3 to one channel, the head of three networks:
# 3 to 5 % of their training steps.
FEW_PRODUCTS = 32

# He et al. 2015, for the backward pass: variance 2 / (k * k * features).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv2d(
    x: Float[Array, "b h w cin"],
    kernel: Float[Array, "kh kw cin cout"],
    *,
    stride: int = 1,
    padding: Padding | None = None,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "b i j cout"]:
    """Cross-correlation, as networks mean by convolution.

    On CPU a 1x1 kernel is applied as a dot product over the channels of every
    `stride`-th entry: measured 2 to 5 times faster in the kernel gradient than the
    convolution that XLA makes of it, and equal. Outputs of at most `TINY_MAP` entries
    an image are computed there as a product of patches and kernel, and kernels of at
    most `FEW_PRODUCTS` taps and channels out as one of map and taps.

    Args:
      x: feature map.
      kernel: height, width, channels in, channels out.
      stride: of both axes.
      padding: zeros ((top, bottom), (left, right)). None: (k - 1) // 2 on every side
        whatever the stride, as in PyTorch and Caffe; with stride 2 this is not
        TensorFlow's SAME, which pads even sizes at the end alone.
      precision: of the products, as in `jax.lax.conv_general_dilated`.

    Returns: i = (h + top + bottom - kh) // stride + 1, and j likewise.
    """
    height, width = kernel.shape[:2]
    if padding is None:
        row, column = (height - 1) // 2, (width - 1) // 2
        padding = ((row, row), (column, column))
    pointwise = (height, width) == (1, 1) and padding == ((0, 0), (0, 0))
    if pointwise and platform.current() == "cpu":
        return _pointwise(x[:, ::stride, ::stride], kernel[0, 0], precision)
    if platform.current() == "cpu":
        (top, bottom), (left, right) = padding
        rows = (x.shape[1] + top + bottom - height) // stride + 1
        columns = (x.shape[2] + left + right - width) // stride + 1
        if 0 < rows * columns <= TINY_MAP:
            return _by_patches(x, kernel, stride, padding, (rows, columns), precision)
        if stride == 1 and height * width * kernel.shape[3] <= FEW_PRODUCTS:
            return _by_taps(x, kernel, padding, precision)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pointwise(x, kernel, precision):
    """The dot product over channels, (b, h, w, cin) and (cin, cout)."""
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())), precision=precision)


def _pointwise_forward(x, kernel, precision):
    return _pointwise(x, kernel, precision), (x, kernel)


def _pointwise_backward(precision, saved, gradient):
    # JAX's own rule asks for the kernel's gradient with channels out first. XLA then
    # has the gradient of the map transposed by whoever computes it, at an eighth of
    # the speed of memory.
    x, kernel = saved
    entries = x.reshape(-1, x.shape[-1])
    outputs = gradient.reshape(-1, gradient.shape[-1])

    def product(a, b, axes):
        return lax.dot_general(a, b, (axes, ((), ())), precision=precision)

    to_input = product(outputs, kernel, ((1,), (1,))).reshape(x.shape)
    return to_input, product(entries, outputs, ((0,), (0,)))


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _by_patches(x, kernel, stride, padding, size, precision):
    """The convolution as one matrix product of patches and kernel."""
    height, width, _, features = kernel.shape
    rows, columns = size
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    taps = [
        x[
            :,
            a : a + stride * (rows - 1) + 1 : stride,
            b : b + stride * (columns - 1) + 1 : stride,
        ]
        for a in range(height)
        for b in range(width)
    ]
    patches = jnp.concatenate(taps, axis=-1)
    contract = (((3,), (0,)), ((), ()))
    flat = kernel.reshape(-1, features)
    return lax.dot_general(patches, flat, contract, precision=precision)


def _by_taps(x, kernel, padding, precision):
    """What each tap makes of each entry, in one product; then the sums over taps."""
    height, width, channels, features = kernel.shape
    (top, bottom), (left, right) = padding
    rows = x.shape[1] + top + bottom - height + 1
    columns = x.shape[2] + left + right - width + 1
    side_by_side = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    parts: Any = _pointwise(x, side_by_side, precision)
    parts = jnp.pad(parts, ((0, 0), *padding, (0, 0)))
    parts = parts.reshape(*parts.shape[:3], height, width, features)
    shifted = [
        parts[:, a : a + rows, b : b + columns, a, b]
        for a in range(height)
        for b in range(width)
    ]
    return functools.reduce(jnp.add, shifted)


def transposed_conv2x(
    x: Float[Array, "b h w cin"],
    kernel: Float[Array, "3 3 cin cout"],
    *,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "b h2 w2 cout"]:
    """Transposed 3x3 convolution of stride 2: to exactly twice the size.

        y[p, q] = sum_{a,b=0..2} kernel[a, b] u[p + a - 1, q + b - 1],
        u[2i, 2j] = x[i, j], 0 elsewhere and outside

    PyTorch's `conv_transpose2d(x, k, stride=2, padding=1, output_padding=1)` with k
    the kernel turned by 180 degrees. Per axis the even outputs read one entry (tap 1)
    and the odd ones two (taps 0 and 2), so it is computed as one 2x2 convolution to
    four phases; the uneven count is what gives this layer its grid pattern.

    Returns: (b, 2h, 2w, cout).
    """
    for axis in (0, 1):
        first, middle, last = (
            lax.slice_in_dim(kernel, tap, tap + 1, axis=axis) for tap in range(3)
        )
        even = jnp.concatenate([middle, jnp.zeros_like(middle)], axis)
        odd = jnp.concatenate([first, last], axis)
        kernel = jnp.concatenate([even, odd], axis=-1)
    y = conv2d(x, kernel, padding=((0, 1), (0, 1)), precision=precision)
    b, h, w, _ = y.shape
    # Channels are (column phase, row phase, cout), in the order of packing.
    y = y.reshape(b, h, w, 2, 2, -1).transpose(0, 1, 4, 2, 3, 5)
    return y.reshape(b, 2 * h, 2 * w, -1)


class Conv(nn.Module):
    """Convolution layer on `conv2d`; parameters `kernel` (HWIO) and `bias`, float32.

    Attributes:
      features: channels out.
      kernel_size: (height, width).
      stride: of both axes.
      padding: as in `conv2d`.
      use_bias: add a bias per channel.
      dtype: to compute in, and of the result.
      kernel_init: He normal over the fan out by default.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Padding | None = None
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Float[Array, "b h w cin"]) -> Float[Array, "b i j cout"]:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
        )
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)[None, None, None]
        return y


class Kernel(nn.Module):
    """The kernel of a `Conv` alone, under the same name, for who applies it otherwise.

    Attributes:
      shape: height, width, channels in, channels out.
    """

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> Float[Array, "kh kw cin cout"]:
        return self.param("kernel", he_normal_fan_out, self.shape, jnp.float32)
