"""Residual networks without pooling and classifier: images to features."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxdepth.models.layers import BatchNorm, Layer, batch_norm, conv_norm
from jaxdepth.ops import platform
from jaxdepth.ops.batch_norm import normalise, statistics
from jaxdepth.ops.conv import Conv, Kernel
from jaxdepth.ops.folded_norm import folded_norm
from jaxdepth.ops.pool import max_pool, same_padding

# Platform -> widest input, in channels, of the 1x1 convolutions that training computes
# together with their batch normalisation. Compiled for an H100 (64 images), 256 instead
# of 128 channels save 22 MB an image, 3 %, and take 68 more kernels.
FOLDED = {"tpu": math.inf, "gpu": 128}


class FoldedNorm(BatchNorm):
    """Batch normalisation of a 1x1 convolution, by `folded_norm`.

    It takes the input and the kernel of the convolution. Parameters, statistics and
    result equal those of the two separate modules.
    """

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Array, "b h w c"],
        kernel: Float[Array, "1 1 c d"],
        residual: Float[Array, "b h w d"] | None = None,
    ) -> Float[Array, "b h w d"]:
        y, mean, variance = folded_norm(
            x.astype(self.dtype),
            kernel[0, 0],
            *self.scale_and_offset(kernel.shape[-1]),
            residual,
            epsilon=self.epsilon,
            **self.over_devices(),
        )
        self.update_running(mean, variance)
        return y


class PooledNorm(BatchNorm):
    """Batch normalisation, ReLU and pooling of a convolution, in training; pools first.

        relu(norm(x)) after the pooling = relu(norm(maximum of x)),   x = conv(image)

    Normalisation with a positive scale and ReLU never decrease, so they commute with
    the maximum, and only the pooled map is normalised: the normalised map of full size
    is not stored, and the sums of the gradient are taken over the pooled map. For
    channels with a negative scale, the kernel of the convolution changes its sign.
    Parameters, statistics and result equal those of the separate operations.
    """

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        conv: Conv,
        image: Float[Array, "b h w 3"],
        pool: Callable[[Array], Array],
    ) -> Float[Array, "b i j c"]:
        """The pooled map; `pool` is a max-pooling."""
        scale, offset = self.scale_and_offset(conv.features)
        sign = jnp.where(scale < 0, -1.0, 1.0)
        x = conv(image, (sign, jnp.zeros_like(scale)))
        values = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        # Two reductions. As one, as in `batch_norm`, they would take the stem from 23
        # to 332 MB an image (v5e), because the compiler fuses neither.
        mean, variance = statistics(
            jnp.mean(values, (0, 1, 2)),
            jnp.mean(values * values, (0, 1, 2)),
            **self.over_devices(),
        )
        self.update_running(sign * mean, variance)
        factor = sign * scale * lax.rsqrt(variance + self.epsilon)
        y = normalise(pool(x), mean, factor, offset)
        return nn.relu(y.astype(self.dtype))


def pointwise_norm(
    x: Float[Array, "b h w c"],
    *,
    features: int,
    stride: int,
    conv: Layer,
    norm: functools.partial,
    names: tuple[str, str],
    residual: Float[Array, "b i j d"] | None = None,
) -> Float[Array, "b i j d"]:
    """1x1 convolution and batch normalisation, for convolutions that add channels.

    With a residual, the result is the ReLU of the sum.

    On TPU, and in bfloat16 on GPU, training computes both as one operation,
    `folded_norm`; otherwise they are two modules. Compiler estimates per image for the
    second block of stage 1, forward and gradients: 35 instead of 45 MB, 0.103 instead
    of 0.123 Mcycles (v5e, 128 images); 43 instead of 53 MB (H100, 64 images).

    Args:
      features, stride: of the convolution.
      conv: convolution layer.
      norm: `batch_norm` with `use_running_average` bound.
      names: of convolution and normalisation, in the calling module.
      residual: added before the ReLU; None for neither.
    """
    conv_name, norm_name = names
    train = not norm.keywords["use_running_average"]
    widest = FOLDED.get(platform.current(), 0)
    # On GPU, float32 products are inexact (TF32), and the variance is a difference.
    is_exact = platform.current() != "gpu" or norm.keywords["dtype"] == jnp.bfloat16
    if not train or x.shape[-1] > widest or not is_exact:
        layers = conv(features, (1, 1), stride, name=conv_name), norm(name=norm_name)
        return conv_norm(*layers, x, residual=residual, relu=residual is not None)
    kernel = Kernel((1, 1, x.shape[-1], features), name=conv_name)()
    folded = functools.partial(FoldedNorm, **norm.keywords)
    return folded(name=norm_name)(x[:, ::stride, ::stride], kernel, residual)


class Bottleneck(nn.Module):
    """Bottleneck block: relu(shortcut + 1x1, 3x3 and 1x1 convolutions).

    Attributes:
      width: channels of the inner convolutions; the block outputs four times as many.
      stride: of the block.
      dilation: of the 3x3 convolution.
      stride_in: the convolution with the stride, "3x3" or "1x1" (the first one).
      project: True for a 1x1 convolution as shortcut, False for the identity.
      conv: convolution layer.
      norm: `batch_norm` with `use_running_average` bound.
    """

    width: int
    stride: int
    dilation: int
    stride_in: str
    project: bool
    conv: Layer
    norm: functools.partial

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        first, second = self.stride, 1
        if self.stride_in == "3x3":
            first, second = second, first
        conv = self.conv(self.width, (1, 1), first, name="conv1")
        y = conv_norm(conv, self.norm(name="bn1"), x, relu=True)
        conv = self.conv(
            self.width, (3, 3), second, dilation=self.dilation, name="conv2"
        )
        y = conv_norm(conv, self.norm(name="bn2"), y, relu=True)
        pointwise = functools.partial(
            pointwise_norm, features=4 * self.width, conv=self.conv
        )
        # The last scale starts at zero, so that a block starts as its shortcut and deep
        # networks train as fast as shallow ones (Goyal et al. 2017, section 5.1).
        zero_scale = functools.partial(self.norm, scale_init=nn.initializers.zeros)
        if self.project:
            names = ("conv_proj", "bn_proj")
            x = pointwise(x, stride=self.stride, names=names, norm=self.norm)
        names = ("conv3", "bn3")
        return pointwise(y, stride=1, names=names, norm=zero_scale, residual=x)


class ResNet(nn.Module):
    """Residual network of bottleneck blocks, without pooling and classifier.

    A 7x7 convolution of stride 2, batch normalisation, ReLU and a 3x3 max-pool of
    stride 2, followed by stages of bottlenecks. Each stage but the first halves the
    size and doubles the width. All sizes round up: ResNet-50 maps (h, w) to
    (ceil(h/32), ceil(w/32)), 228x304 to 8x10, and has 23,508,032 parameters without a
    stem bias.

    Parameter names are an interface: `conv_init`, `bn_init`, then
    `stage{i}_block{j}` (from 1) with `conv1`, `bn1`, `conv2`, `bn2`, `conv3`, `bn3`
    and, in the first block of a stage, `conv_proj`, `bn_proj`.

    With an output stride below that of the last stage, the last stages keep the size
    of the map: they have stride 1, and dilation instead, which keeps the receptive
    field. The first block of such a stage has the dilation of the stage before, as in
    torchvision. Parameters are the same.

    Convolutions start from He's normal distribution over the fan out, and the last
    scale of each block starts at zero. With all scales at one, `upproj` was no better
    than the mean depth map after a hundred steps.

    Attributes:
      stage_sizes: blocks per stage; (3, 4, 6, 3) is ResNet-50.
      width: of the first stage; its blocks output four times as many channels.
      output_stride: largest stride of the features; a power of two, at least 4.
      stride_in: "3x3" (v1.5, torchvision) or "1x1" (v1, He et al.).
      stem_bias: whether the first convolution has a bias.
      pool_padding: "torch" (1 on every side) or "same" (TensorFlow's).
      every_size: whether to return the last map of every size, see `__call__`.
      conv: convolution layer; `Conv` with fields bound, such as the dtype.
      norm: normalisation layer, from `batch_norm`.

    Source: He et al. 2015, table 1; dilation: Chen et al. 2017 (Rethinking Atrous
    Convolution), section 3.1.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    output_stride: int = 32
    stride_in: str = "3x3"
    stem_bias: bool = False
    pool_padding: str = "torch"
    every_size: bool = False
    conv: Layer = Conv
    norm: functools.partial = batch_norm()

    @nn.compact
    def __call__(
        self, image: Float[Array | np.ndarray, "b h w 3"], *, train: bool = False
    ) -> Any:
        """The features, (b, i, j, c).

        With `every_size`, a tuple of the last map of every size: that of the stem
        before pooling, at half the size of the image (rounded up), and those of the
        stages; a stage with dilation replaces the stage before it.
        """
        norm = functools.partial(self.norm, use_running_average=not train)
        x, *maps = self._stem(jnp.asarray(image), norm)
        for stage, blocks in enumerate(self.stage_sizes):
            stride, *dilations = self._strides(stage)
            if stride > 1:
                maps.append(x)
            for block in range(blocks):
                x = Bottleneck(
                    self.width * 2**stage,
                    stride=stride if block == 0 else 1,
                    dilation=dilations[min(block, 1)],
                    stride_in=self.stride_in,
                    project=block == 0,
                    conv=self.conv,
                    norm=norm,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x)
        return (*maps, x) if self.every_size else x

    def _stem(self, image, norm: Layer):
        """The pooled map; with `every_size`, also the one before pooling."""
        conv = self.conv(
            self.width, (7, 7), 2, use_bias=self.stem_bias, name="conv_init"
        )
        train = not norm.keywords["use_running_average"]

        def pool(x):
            padding = ((1, 1), (1, 1))
            if self.pool_padding == "same":
                padding = same_padding(*x.shape[1:3], size=3)
            return max_pool(x, 3, padding=padding)

        if train and platform.current() == "tpu" and not self.every_size:
            pooled = functools.partial(PooledNorm, **norm.keywords)
            return (pooled(name="bn_init")(conv, image, pool),)
        x = conv_norm(conv, norm(name="bn_init"), image, relu=True)
        return (pool(x), x) if self.every_size else (pool(x),)

    def _strides(self, stage: int) -> tuple[int, int, int]:
        """Stride of a stage (from 0), dilation of its first block and of the others."""
        if stage == 0:
            return 1, 1, 1
        # Pixels between two entries, without dilation, over the output stride.
        before, after = (
            max(1, 2**k // self.output_stride) for k in (stage + 1, stage + 2)
        )
        return (2 if after == 1 else 1), before, after

    @property
    def dilated_stages(self) -> int:
        """Number of the stages that have dilation instead of a stride."""
        return sum(self._strides(i)[2] > 1 for i in range(len(self.stage_sizes)))

    @property
    def stride(self) -> int:
        """Pixels of the image between two entries of the features."""
        return min(self.output_stride, 2 ** (len(self.stage_sizes) + 1))

    def output_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the features for an image of `image_size`."""
        height, width = image_size
        return -(-height // self.stride), -(-width // self.stride)
