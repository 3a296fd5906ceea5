"""`cnn_fc`, `cnn` and `cnn_trans`: the plain convolutional networks.

Batch normalisation and ReLU follow every convolution but the last.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Key

from jaxdepth.models.dropout import drop
from jaxdepth.models.layers import (
    BatchNorm,
    DepthNetwork,
    Layer,
    bind_layers,
    conv_norm,
)
from jaxdepth.models.layouts import depth_from_raw, raw_from_depth
from jaxdepth.models.upproj import ConvHead
from jaxdepth.ops.conv import Conv, Padding, transposed_conv2x
from jaxdepth.ops.dense import dense_product
from jaxdepth.ops.pool import max_pool
from jaxdepth.runtime.errors import UserError

Size = tuple[int, int]


class ConvBlock(nn.Module):
    """Convolution without bias, batch normalisation, ReLU. Names: `conv`, `bn`.

    Attributes:
      features, kernel_size, stride, padding: of the convolution.
      conv: convolution layer.
      norm: normalisation layer with `use_running_average` bound.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Padding | None = None
    conv: Layer = Conv
    norm: Layer = BatchNorm

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        conv = self.conv(
            self.features, self.kernel_size, self.stride, self.padding, name="conv"
        )
        return conv_norm(conv, self.norm(name="bn"), x, relu=True)


def max_pool_up(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    """2x2 max-pool of stride 2, rounding up: an odd last row or column is kept."""
    _, height, width, _ = x.shape
    return max_pool(x, 2, padding=((0, height % 2), (0, width % 2)))


class ConvEncoder(nn.Module):
    """Convolution blocks, some followed by a max-pool. Names: `block1`, `block2`, ...

    Attributes:
      blocks: `ConvBlock` with all fields bound but `conv`, `norm` and `name`.
      pool_after: indices of the blocks that a pool follows.
      pool: 2x2 max-pool.
      conv, norm: convolution and normalisation layers.
    """

    blocks: tuple[functools.partial, ...]
    pool_after: tuple[int, ...]
    pool: Callable[[Array], Array]
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(
        self, image: Float[Array | np.ndarray, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b i j c"]:
        norm = functools.partial(self.norm, use_running_average=not train)
        x = jnp.asarray(image)
        for index, block in enumerate(self.blocks):
            x = block(conv=self.conv, norm=norm, name=f"block{index + 1}")(x)
            if index in self.pool_after:
                x = self.pool(x)
        return x


class CNNFC(DepthNetwork):
    """Convolutions and two fully connected layers (`--arch=cnn_fc`).

    Convolutions 11x11 stride 4 without padding (96), 5x5 (256), 3x3 (384, 384, 256)
    with 2x2 max-pools (rounding down) after the first, the second and the last; a
    fully connected layer of 4096, ReLU, dropout; one output per pixel of the first
    convolution's grid. At 228x304: 55x74 -> 27x37 -> 13x18 -> 6x9 -> 4096 -> 55x74,
    3,745,824 convolution and 73,293,824 fully connected weights.

    The fully connected layers are built for one input size, `image_size`.

    The paper fixes batch normalisation after every convolution, dropout of 0.5 and the
    parameter counts, which equal those of the coarse network of Eigen et al. 2014 and
    determine the layers. The text of the paper says six convolutions, but its counts
    match five. The paper resizes the output to the size of the ground truth; this
    package resizes the ground truth to the size of the output. The softplus head and
    He initialisation are our choices.

    Names: `encoder/block{i}/{conv,bn}`, `decoder/{kernel,bias}` (4096),
    `head/kernel`, `head/bias`.

    Attributes:
      image_size: (height, width) of the input.
      features: of the convolutions.
      hidden: units of the first fully connected layer.
      others: as in `DepthNetwork`.
    """

    image_size: Size = (228, 304)
    dropout: float = 0.5
    features: tuple[int, ...] = (96, 256, 384, 384, 256)
    hidden: int = 4096

    def setup(self):
        height, width = self.output_size(self.image_size)
        conv, norm = bind_layers(self.layout, self.dtype, self.bn_axis, self.bn_groups)
        first, second, *others = self.features
        zero = ((0, 0), (0, 0))
        blocks = (
            functools.partial(ConvBlock, first, (11, 11), stride=4, padding=zero),
            functools.partial(ConvBlock, second, (5, 5)),
            *(functools.partial(ConvBlock, features) for features in others),
        )
        pool_after = (0, 1, len(blocks) - 1)
        pool = functools.partial(max_pool, size=2)
        self.encoder = ConvEncoder(blocks, pool_after, pool, conv, norm)
        he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.decoder = nn.Dense(
            self.hidden,
            dtype=self.dtype,
            kernel_init=he_normal,
            dot_general=dense_product,
        )
        bias = raw_from_depth(self.init_depth, self.layout.head)
        self.head = DenseHead(height * width, bias, dtype=self.dtype)

    def __call__(
        self,
        image: Float[Array | np.ndarray, "b h w 3"],
        train: bool = False,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b i j"]:
        """Predict depth in metres, float32; arguments as in `upproj.UpProj`.

        Raises: UserError if the image is not of `image_size`.
        """
        if image.shape[1:3] != self.image_size:
            expected = "x".join(map(str, self.image_size))
            actual = "x".join(map(str, image.shape[1:3]))
            raise UserError(
                f"cnn_fc was built for {expected} and got {actual}: resize the image, "
                "or build the network for that size"
            )
        x = self.encoder(image, train=train and self.freeze == "none")
        if self.freeze == "encoder":  # no backward pass
            x = lax.stop_gradient(x)
        x = nn.relu(self.decoder(x.reshape(x.shape[0], -1)))
        x = drop(x, keys, rate=self.dropout, train=train)
        raw = self.head(x).reshape(-1, *self.output_size(self.image_size))
        return depth_from_raw(raw, self.layout.head)

    def output_size(self, image_size: Size) -> Size:
        """The size after the first convolution: 11x11, stride 4, no padding."""
        height, width = image_size
        return (height - 11) // 4 + 1, (width - 11) // 4 + 1


class DenseHead(nn.Module):
    """The last fully connected layer, linear: raw output in float32.

    Attributes:
      features: number of outputs.
      init_bias: initial value of the biases, and so of the outputs.
      dtype: of the product; the bias is added in float32.
    """

    features: int
    init_bias: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b d"]:
        small = nn.initializers.normal(0.001)
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", small, shape, jnp.float32)
        constant = nn.initializers.constant(self.init_bias)
        bias = self.param("bias", constant, (self.features,), jnp.float32)
        raw = dense_product(x.astype(self.dtype), kernel.astype(self.dtype))
        return raw.astype(jnp.float32) + bias[None]


class TransposedHead(nn.Module):
    """A transposed 3x3 convolution to one channel at twice the size, linear.

    Names: `kernel` (3, 3, c, 1), `bias` (1,). Attributes as in `upproj.ConvHead`.
    """

    init_bias: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2"]:
        small = nn.initializers.normal(0.001)
        shape = (3, 3, x.shape[-1], 1)
        kernel = self.param("kernel", small, shape, jnp.float32)
        constant = nn.initializers.constant(self.init_bias)
        bias = self.param("bias", constant, (1,), jnp.float32)
        raw = transposed_conv2x(x.astype(self.dtype), kernel.astype(self.dtype))
        return raw[..., 0].astype(jnp.float32) + bias[0]


class CNN(DepthNetwork):
    """Eight 3x3 convolutions (`--arch=cnn`; `--arch=cnn_trans` with `transposed`).

    2x2 max-pools reduce the size to a quarter, rounded up: 228x304 -> 57x76. With
    `transposed`, one more pool follows the seventh convolution and the last one is a
    transposed convolution that doubles the size, cut at the bottom and right to the
    same output: 57x76 -> 29x38 -> 58x76 -> 57x76.

    The paper fixes the number of convolutions, their size of 3x3, batch normalisation
    and ReLU, and pooling down to the size of the depth map. Our choices: the widths;
    the pools directly after the first and the second convolution, which gives the
    largest receptive field (58 pixels of the image; 3.9 GMAC forward at 228x304); no
    batch normalisation and ReLU after the last convolution; the 3x3 kernel of the
    transposed convolution; no dropout before the last convolution by default.

    Names: `encoder/block{i}/{conv,bn}`, `head`.

    Attributes:
      transposed: whether the last convolution is a transposed one.
      features: of the seven convolutions before the last.
      pools: number of the first convolutions that a pool follows.
      others: as in `DepthNetwork`.
    """

    transposed: bool = False
    features: tuple[int, ...] = (32, 64, 128, 128, 128, 128, 256)
    pools: int = 2

    def setup(self):
        conv, norm = bind_layers(self.layout, self.dtype, self.bn_axis, self.bn_groups)
        blocks = tuple(functools.partial(ConvBlock, n) for n in self.features)
        pool_after = tuple(range(self.pools))
        self.encoder = ConvEncoder(blocks, pool_after, max_pool_up, conv, norm)
        bias = raw_from_depth(self.init_depth, self.layout.head)
        head = TransposedHead if self.transposed else ConvHead
        self.head = head(bias, dtype=self.dtype)

    def __call__(
        self,
        image: Float[Array | np.ndarray, "b h w 3"],
        train: bool = False,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b i j"]:
        """Predict depth in metres, float32; arguments as in `upproj.UpProj`."""
        x = self.encoder(image, train=train and self.freeze == "none")
        if self.freeze == "encoder":  # no backward pass
            x = lax.stop_gradient(x)
        height, width = x.shape[1:3]
        if self.transposed:
            x = max_pool_up(x)
        x = drop(x, keys, rate=self.dropout, train=train)
        raw = self.head(x)[:, :height, :width]
        return depth_from_raw(raw, self.layout.head)

    def output_size(self, image_size: Size) -> Size:
        """(height, width) of the depth for an image of `image_size`."""
        height, width = image_size
        return -(-height // 2**self.pools), -(-width // 2**self.pools)
