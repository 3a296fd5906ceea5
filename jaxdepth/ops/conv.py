"""Convolutions in NHWC and HWIO, with the padding of PyTorch and Caffe."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxdepth.ops import platform

Padding = tuple[tuple[int, int], tuple[int, int]]
# Scale and offset per output channel.
Affine = tuple[Array, Array]

# On CPU, output maps of at most this many entries are computed as one matrix product.
# Forward and gradients of 3x3, 512 channels, in ms (convolution / product):
# 2x3, batch 16: 1022 / 17; 3x4, batch 8: 26 / 17; 6x8, batch 8, 256 channels: 15 / 16.
TINY_MAP = 16

# On CPU, kernels with at most this many taps times output channels are computed as one
# matrix product for all taps and the sum of its shifted parts. For 3x3 to one channel,
# the head of three networks, this saves 3 to 5 % of the training step.
FEW_PRODUCTS = 32

# On CPU, kernel gradients of more than nine taps and at most this many input channels
# have one product per row of taps. Stem of ResNet, batch 4, in ms (per row, YNNPACK,
# Eigen, per tap): 8.7, 9.0, 13, 14; YNNPACK has ten times the error, 5e-6. But 3x3, 3
# to 32 channels at 228x304: 5.7 by Eigen, 9.4 per tap.
FEW_CHANNELS = 8

# On CPU, kernel gradients of 1x1 are summed over products per image if the batch has at
# least this many entries per channel. Two cores compute a product of few channels and
# many entries at half their rate. 57x76, batch 4, in ms (one product / per image): 64
# to 256 channels 4.2 / 2.2, 256 to 64 5.2 / 3.5; 29x38, 512 to 256: 4.6 / 4.4.
MANY_ENTRIES = 8

# He et al. 2015, variant for the backward pass: variance 2 / (k * k * features).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv2d(
    x: Float[Array, "b h w cin"],
    kernel: Float[Array, "kh kw cin cout"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding | None = None,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "b i j cout"]:
    """2D convolution (cross-correlation, as usual in neural networks).

    On CPU, four cases are computed as matrix products, with equal results:

    - 1x1 kernels, over the channels of every `stride`-th entry. The kernel gradient is
      2 to 5 times faster than that of XLA's convolution (measured).
    - outputs of at most `TINY_MAP` entries per image, from patches and kernel.
    - kernels of at most `FEW_PRODUCTS` taps times output channels, from map and taps.
    - float32 with dilation and stride 1, as one product per tap.

    There, gradients have the forms that are fastest with YNNPACK and Eigen.

    Args:
      x: feature map.
      kernel: height, width, input channels, output channels.
      stride: of both axes.
      dilation: distance of neighbouring taps on the map, in both axes.
      padding: zeros ((top, bottom), (left, right)). None for dilation * (k - 1) // 2 on
        every side and any stride, as in PyTorch and Caffe. With stride 2, TensorFlow's
        SAME differs: it pads even sizes at the end only.
      precision: of the products, as in `jax.lax.conv_general_dilated`.

    Returns: (b, i, j, cout) with i = (h + top + bottom - r) // stride + 1, where r =
      dilation * (kh - 1) + 1; j likewise.
    """
    height, width = kernel.shape[:2]
    if padding is None:
        row, column = dilation * (height - 1) // 2, dilation * (width - 1) // 2
        padding = ((row, row), (column, column))
    if dilation > 1:
        return _dilated(x, kernel, stride, dilation, padding, precision)
    if platform.current() == "cpu":
        if (height, width) == (1, 1) and padding == ((0, 0), (0, 0)):
            return _pointwise(x[:, ::stride, ::stride], kernel[0, 0], precision)
        (top, bottom), (left, right) = padding
        rows = (x.shape[1] + top + bottom - height) // stride + 1
        columns = (x.shape[2] + left + right - width) // stride + 1
        if 0 < rows * columns <= TINY_MAP:
            return _by_patches(x, kernel, stride, padding, (rows, columns), precision)
        if stride == 1 and height * width * kernel.shape[3] <= FEW_PRODUCTS:
            return _by_taps(x, kernel, padding, precision)
        if jnp.finfo(x.dtype).bits >= 32:
            return _cheap_gradients(x, kernel, stride, padding, precision)
    return _convolve(x, kernel, stride, padding, precision)


def _convolve(x, kernel, stride, padding, precision, *, dilation=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _dilated(x, kernel, stride, dilation, padding, precision) -> Any:
    """The convolution with dilation above 1.

    On CPU, forward and gradients of 3x3 by products per tap take 0.3 to 0.9 times as
    long as by XLA's convolution. In ms, batch 8 (convolution / products): 8x10, 512
    channels, dilation 2: 785 / 488; dilation 4: 489 / 300; 15x19, 512 channels,
    dilation 4: 3587 / 1074.
    """
    pads = zip(kernel.shape[:2], padding, strict=True)
    is_within = all(max(pad) <= dilation * (size - 1) for size, pad in pads)
    is_wide = jnp.finfo(x.dtype).bits >= 32
    if platform.current() == "cpu" and stride == 1 and is_within and is_wide:
        return _by_dilated_taps(x, kernel, dilation, padding, precision)
    return _convolve(x, kernel, stride, padding, precision, dilation=dilation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _by_dilated_taps(x, kernel, dilation, padding, precision) -> Any:
    return sum_over_taps(x, kernel, padding, precision, dilation=dilation)


def _dilated_forward(x, kernel, dilation, padding, precision):
    return _by_dilated_taps(x, kernel, dilation, padding, precision), (x, kernel)


def _dilated_backward(dilation, padding, precision, residuals, gradient):
    x, kernel = residuals
    size = kernel.shape[:2]
    pads = [
        (dilation * (k - 1) - low, dilation * (k - 1) - high)
        for k, (low, high) in zip(size, padding, strict=True)
    ]
    options: dict[str, Any] = {"precision": precision, "dilation": dilation}
    x_grad = sum_over_taps(gradient, kernel, pads, flip=True, **options)
    kernel_grad = _kernel_gradient_by_taps(
        x, gradient, size, stride=1, padding=padding, **options
    )
    return x_grad, kernel_grad


_by_dilated_taps.defvjp(_dilated_forward, _dilated_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _cheap_gradients(x, kernel, stride, padding, precision):
    """The convolution, with gradients in the forms that are cheapest on CPU."""
    if stride == 1 and has_large_kernel(x):
        return sum_over_taps(x, kernel, padding, precision)
    return _convolve(x, kernel, stride, padding, precision)


def _cheap_forward(x, kernel, stride, padding, precision):
    return _cheap_gradients(x, kernel, stride, padding, precision), (x, kernel)


def _cheap_backward(stride, padding, precision, residuals, gradient):
    x, kernel = residuals
    *size, channels, _ = kernel.shape
    options = {"padding": padding, "precision": precision}

    def convolve(x, kernel):
        return _convolve(x, kernel, stride, padding, precision)

    pads = [
        (k - 1 - low, k - 1 - high)
        for k, (low, high) in zip(size, padding, strict=True)
    ]
    if stride == 1 and min(min(pad) for pad in pads) >= 0:
        if has_large_kernel(gradient):
            x_grad = sum_over_taps(gradient, kernel, pads, precision, flip=True)
        else:
            x_grad = _convolve(gradient, flipped(kernel), 1, pads, precision)
    else:
        (x_grad,) = jax.vjp(lambda x: convolve(x, kernel), x)[1](gradient)
    if channels <= FEW_CHANNELS and math.prod(size) > 9:
        by_rows = _kernel_gradient_by_rows
        kernel_grad = by_rows(x, gradient, tuple(size), stride=stride, **options)
    elif stride > 1:
        by_taps = _kernel_gradient_by_taps
        kernel_grad = by_taps(x, gradient, tuple(size), stride=stride, **options)
    else:
        kernel_grad = kernel_gradient(x, gradient, **options)
    return x_grad, kernel_grad


_cheap_gradients.defvjp(_cheap_forward, _cheap_backward)


def has_large_kernel(x: Any) -> bool:
    """Whether products per tap are faster than convolutions with stride 1 on CPU.

    In ms for the up-convolution of 8x10, 1024 to 512 channels, batch 4 (convolutions of
    the phases by YNNPACK, by Eigen, products per tap): output 35, 26, 23; input
    gradient 35, 28, 22. For 16x20, 512 to 256: 21, 23, 23 and 22, 24, 24.
    """
    batch, height, width, channels = x.shape
    return height * width > TINY_MAP and batch * height * width <= channels


def sum_over_taps(x, kernel, padding, precision, *, dilation=1, flip=False):
    """`conv2d` of stride 1 as a sum of one matrix product per tap.

    Args:
      dilation: as in `conv2d`.
      flip: convolve with `flipped(kernel)`, without writing it.
    """
    height, width = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows = x.shape[1] - dilation * (height - 1)
    columns = x.shape[2] - dilation * (width - 1)

    def product(a, b):
        top, left = dilation * a, dilation * b
        entries = x[:, top : top + rows, left : left + columns]
        tap = kernel[height - 1 - a, width - 1 - b] if flip else kernel[a, b]
        contract = (((3,), (1 if flip else 0,)), ((), ()))
        return lax.dot_general(entries, tap, contract, precision=precision)

    taps = (product(a, b) for a in range(height) for b in range(width))
    return functools.reduce(jnp.add, taps)


def _kernel_gradient_by_taps(
    x, gradient, size, *, stride, padding, precision, dilation=1
):
    """One product per tap, of the entries that it reads and the outputs."""
    height, width = size
    _, rows, columns, features = gradient.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    down, right = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    outputs = gradient.reshape(-1, features)

    def product(a, b):
        top, left = dilation * a, dilation * b
        entries = x[:, top : top + down : stride, left : left + right : stride]
        entries = entries.reshape(-1, x.shape[3])
        contract = (((0,), (0,)), ((), ()))
        return lax.dot_general(entries, outputs, contract, precision=precision)

    taps = [product(a, b) for a in range(height) for b in range(width)]
    return jnp.stack(taps).reshape(height, width, x.shape[3], features)


def _kernel_gradient_by_rows(x, gradient, size, *, stride, padding, precision):
    """One product per row of taps, of the entries that they read and the outputs."""
    height, width = size
    batch, rows, columns, features = gradient.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    down, right = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    shifted = [x[:, :, b : b + right : stride] for b in range(width)]
    shifted = jnp.concatenate(shifted, -1)
    outputs = gradient.reshape(batch, -1, features)

    def product(a):
        entries = shifted[:, a : a + down : stride]
        entries = entries.reshape(batch, -1, width * x.shape[3])
        contract = (((1,), (1,)), ((0,), (0,)))
        parts = lax.dot_general(entries, outputs, contract, precision=precision)
        return jnp.sum(parts, 0)

    taps = jnp.stack([product(a) for a in range(height)])
    return taps.reshape(height, width, x.shape[3], features)


def flipped(kernel: Float[Array, "kh kw cin cout"]) -> Float[Array, "kh kw cout cin"]:
    """The kernel of the input gradient: taps in reverse, channels exchanged.

    On CPU, where XLA transposes at a tenth of the memory bandwidth, blocks of 16 output
    channels (a cache line) are gathered first: 5.6 instead of 18.3 ms for 5x5, 1024 to
    512 channels.
    """
    kernel = lax.rev(kernel, (0, 1))
    height, width, channels, features = kernel.shape
    if platform.current() != "cpu" or features % 16:
        return kernel.swapaxes(2, 3)
    blocks = kernel.reshape(height, width, channels, features // 16, 16)
    # The barrier: XLA would make one transposition of the two.
    blocks = lax.optimization_barrier(blocks.swapaxes(2, 3))
    return blocks.swapaxes(3, 4).reshape(height, width, features, channels)


def kernel_gradient(x, gradient, *, padding, precision):
    """The kernel gradient of a convolution of stride 1, by Eigen where possible.

    It is a convolution of the map with a window of the size of the output. YNNPACK
    takes up to twice as long as Eigen and computes no window that is larger than the
    map, so zeros are added to one axis of the window. XLA would exchange map and window
    if the window had more entries, so the map's other axis includes its padding.

    Args:
      x: (b, h, w, cin).
      gradient: of the output, (b, i, j, cout).
      padding, precision: of the convolution.
    """
    (top, bottom), (left, right) = padding
    _, height, width, _ = x.shape
    _, rows, columns, _ = gradient.shape
    more = max(1, height - rows + 1)
    if (rows + more) * columns <= height * (width + left + right):
        x = jnp.pad(x, ((0, 0), (0, 0), (left, right), (0, 0)))
        gradient = jnp.pad(gradient, ((0, 0), (0, more), (0, 0), (0, 0)))
        padding = ((top, bottom + more), (0, 0))
    result = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        gradient.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    return result.transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _pointwise(x, kernel, precision):
    """The dot product over channels, (b, h, w, cin) and (cin, cout)."""
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())), precision=precision)


def _pointwise_forward(x, kernel, precision):
    return _pointwise(x, kernel, precision), (x, kernel)


def _pointwise_backward(precision, residuals, gradient):
    # JAX's rule computes the kernel gradient with output channels first. XLA then
    # transposes the gradient of the map, at an eighth of the memory bandwidth.
    x, kernel = residuals
    contract = (((3,), (1,)), ((), ()))
    x_grad = lax.dot_general(gradient, kernel, contract, precision=precision)
    parts = (
        x.shape[0] if math.prod(x.shape[:3]) >= MANY_ENTRIES * max(kernel.shape) else 1
    )
    entries = x.reshape(parts, -1, x.shape[3])
    outputs = gradient.reshape(parts, -1, gradient.shape[3])
    contract = (((1,), (1,)), ((0,), (0,)))
    products = lax.dot_general(entries, outputs, contract, precision=precision)
    return x_grad, jnp.sum(products, 0)


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


def _by_patches(x, kernel, stride, padding, size, precision):
    """The convolution as one matrix product of patches and kernel."""
    height, width, _, features = kernel.shape
    rows, columns = size
    down, right = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    taps = [
        x[:, a : a + down : stride, b : b + right : stride]
        for a in range(height)
        for b in range(width)
    ]
    patches = jnp.concatenate(taps, axis=-1)
    contract = (((3,), (0,)), ((), ()))
    flat = kernel.reshape(-1, features)
    return lax.dot_general(patches, flat, contract, precision=precision)


def _by_taps(x, kernel, padding, precision):
    """One matrix product of all entries and taps, then the sums over taps."""
    height, width, channels, features = kernel.shape
    (top, bottom), (left, right) = padding
    rows = x.shape[1] + top + bottom - height + 1
    columns = x.shape[2] + left + right - width + 1
    all_taps = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    products: Any = _pointwise(x, all_taps, precision)
    products = jnp.pad(products, ((0, 0), *padding, (0, 0)))
    products = products.reshape(*products.shape[:3], height, width, features)
    shifted = [
        products[:, a : a + rows, b : b + columns, a, b]
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
    """Transposed 3x3 convolution of stride 2, to exactly twice the size.

        y[p, q] = sum_{a,b=0..2} kernel[a, b] u[p + a - 1, q + b - 1],
        u[2i, 2j] = x[i, j];   u = 0 elsewhere

    Equals PyTorch's `conv_transpose2d(x, k, stride=2, padding=1, output_padding=1)`
    with k the kernel rotated by 180 degrees. Along each axis, even outputs read one
    entry (tap 1) and odd outputs two (taps 0 and 2), so it is computed as one 2x2
    convolution to four phases. The unequal counts cause the layer's grid pattern.

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
    # The loop over axes ordered the channels as (column phase, row phase, cout).
    y = y.reshape(b, h, w, 2, 2, -1).transpose(0, 1, 4, 2, 3, 5)
    return y.reshape(b, 2 * h, 2 * w, -1)


def apply_affine(
    affine: Affine | None, kernel: Float[Array, "kh kw cin cout"], bias: Array | None
) -> tuple[Array, Array | None]:
    """Kernel and bias of scale * convolution + offset.

    Args:
      affine: (scale, offset) per output channel; None for (1, 0).
      kernel: of the convolution.
      bias: of the convolution, output channels last, or None.
    """
    if affine is None:
        return kernel, bias
    scale, offset = affine
    axes = (None,) * 3
    if bias is None:
        return kernel * scale[axes], offset
    axes_of_bias = (None,) * (bias.ndim - 1)
    return kernel * scale[axes], bias * scale[axes_of_bias] + offset[axes_of_bias]


class Conv(nn.Module):
    """Convolution layer on `conv2d`; parameters `kernel` (HWIO) and `bias`, float32.

    Attributes:
      features: output channels.
      kernel_size: (height, width).
      stride: of both axes.
      padding: as in `conv2d`.
      use_bias: whether to add a bias per channel.
      dtype: of the computation and the result.
      kernel_init: initializer; He normal over the fan out by default.
      dilation: as in `conv2d`.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Padding | None = None
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = he_normal_fan_out
    dilation: int = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w cin"], affine: Affine | None = None
    ) -> Float[Array, "b i j cout"]:
        """The convolution of x; `affine` is applied to the kernel and the bias.

        Args:
          x: feature map.
          affine: (scale, offset) per output channel, float32: the result is scale *
            convolution + offset.
        """
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = None
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (self.features,), jnp.float32)
        kernel, bias = apply_affine(affine, kernel, bias)
        y = conv2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
        )
        if bias is not None:
            y = y + bias.astype(self.dtype)[None, None, None]
        return y


class Kernel(nn.Module):
    """The kernel parameter of a `Conv`, for callers that apply it themselves.

    Attributes:
      shape: height, width, input channels, output channels.
    """

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> Float[Array, "kh kw cin cout"]:
        return self.param("kernel", he_normal_fan_out, self.shape, jnp.float32)
