"""Residual networks without pooling and classifier: images to features."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdepth.ops import platform
from jaxdepth.ops.conv import Conv, Kernel
from jaxdepth.ops.folded_norm import folded_norm
from jaxdepth.ops.pool import max_pool, same_padding


def batch_norm(
    *, train: bool, epsilon: float, dtype: Any, axis_name: str | None
) -> functools.partial:
    """Batch normalisation as all networks here use it, to be called with a name.

    Running statistics decay by 0.9 a step (ours; PyTorch's default momentum of 0.1),
    are float32 and hold the biased variance. Scale starts at one, offset at zero.

    Args:
      train: normalise by the batch's statistics, and update the running ones.
      epsilon: added to the variance.
      dtype: of the result; statistics are computed in float32.
      axis_name: devices whose batches count as one; None: each its own.
    """
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        axis_name=axis_name,
    )


class FoldedNorm(nn.BatchNorm):
    """`BatchNorm` of a 1x1 convolution, given its input and kernel: `folded_norm`.

    Parameters, statistics and result are those of the two modules it stands for.
    """

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Array, "b h w c"], kernel: Float[Array, "1 1 c d"]
    ) -> Float[Array, "b h w d"]:
        shape = (kernel.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        offset = self.param("bias", self.bias_init, shape, jnp.float32)
        running = {
            "mean": self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32),
            "var": self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32),
        }
        y, mean, variance = folded_norm(
            x.astype(self.dtype),
            kernel[0, 0],
            scale,
            offset,
            epsilon=self.epsilon,
            axis_name=None if self.is_initializing() else self.axis_name,
        )
        if self.is_initializing():
            return y
        for name, now in (("mean", mean), ("var", variance)):
            before = running[name].value
            running[name].value = self.momentum * before + (1 - self.momentum) * now
        return y


def pointwise_norm(
    x: Float[Array, "b h w c"],
    *,
    features: int,
    stride: int,
    norm: functools.partial,
    names: tuple[str, str],
    dtype: Any,
    train: bool,
) -> Float[Array, "b i j d"]:
    """1x1 convolution and its batch normalisation, for convolutions that widen.

    While training on TPU as one operation, `folded_norm`; elsewhere as two. By the
    compiler's estimate (v5e, 128 images, forward and gradients of the second block of
    stage 1) 35 instead of 45 MB and 0.103 instead of 0.123 Mcycles an image.

    Args:
      features, stride: of the convolution.
      norm: of `batch_norm`.
      names: of convolution and normalisation, in the module that calls this.
      dtype: to compute in.
      train: by the batch's statistics.
    """
    conv, bn = names
    if not train or platform.current() != "tpu":
        return norm(name=bn)(Conv(features, (1, 1), stride, dtype=dtype, name=conv)(x))
    kernel = Kernel((1, 1, x.shape[-1], features), name=conv)()
    folded = functools.partial(FoldedNorm, **norm.keywords)
    return folded(name=bn)(x[:, ::stride, ::stride], kernel)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut: relu(shortcut + branch).

    Attributes:
      width: channels inside; four times as many come out.
      stride: of the block.
      stride_in: the convolution that strides, "3x3" or "1x1".
      project: whether the shortcut is a 1x1 convolution; the identity otherwise.
      epsilon, dtype, bn_axis: as in `ResNet`.
    """

    width: int
    stride: int
    stride_in: str
    project: bool
    epsilon: float
    dtype: Any
    bn_axis: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b i j d"]:
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = batch_norm(
            train=train,
            epsilon=self.epsilon,
            dtype=self.dtype,
            axis_name=self.bn_axis,
        )
        pointwise = functools.partial(
            pointwise_norm, features=4 * self.width, dtype=self.dtype, train=train
        )
        first, second = self.stride, 1
        if self.stride_in == "3x3":
            first, second = second, first
        y = conv(self.width, (1, 1), first, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.width, (3, 3), second, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y))
        # Its scale starts at zero (Goyal et al. 2017, section 5.1): a block starts as
        # its shortcut, and fifty layers learn as fast as a few.
        zero = functools.partial(norm, scale_init=nn.initializers.zeros)
        y = pointwise(y, stride=1, names=("conv3", "bn3"), norm=zero)
        if self.project:
            x = pointwise(
                x, stride=self.stride, names=("conv_proj", "bn_proj"), norm=norm
            )
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Residual network of bottlenecks, to the features of its last stage.

    A 7x7 convolution of stride 2, batch normalisation, ReLU, 3x3 max-pool of stride
    2, then stages of bottlenecks; each stage but the first halves the size and doubles
    the width. All sizes round up: ResNet-50 takes (h, w) to (ceil(h/32), ceil(w/32)),
    228x304 to 8x10, and has 23,508,032 parameters without a bias in the stem.

    Parameter names are an interface: `conv_init`, `bn_init`, then
    `stage{i}_block{j}` (from 1) with `conv1`, `bn1`, `conv2`, `bn2`, `conv3`, `bn3`
    and, in the first block of a stage, `conv_proj`, `bn_proj`.

    Convolutions start from He's normal distribution over the fan out, the last scale
    of each block from zero: with all at one, `upproj` was no better than the mean depth
    map after a hundred steps.

    Attributes:
      stage_sizes: blocks per stage; (3, 4, 6, 3) is ResNet-50.
      width: of the first stage; its blocks put out four times as many channels.
      stride_in: "3x3" (v1.5, torchvision) or "1x1" (v1, He et al.).
      stem_bias: bias in the first convolution.
      pool_padding: "torch" (1 on every side) or "same" (TensorFlow's).
      epsilon: of batch normalisation.
      dtype: to compute in. Parameters and statistics are float32.
      bn_axis: as `axis_name` of `batch_norm`.

    Source: He et al. 2015, table 1.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    stride_in: str = "3x3"
    stem_bias: bool = False
    pool_padding: str = "torch"
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    bn_axis: str | None = None

    @nn.compact
    def __call__(
        self, image: Float[Array | np.ndarray, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b i j c"]:
        x = self._stem(jnp.asarray(image), train)
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                x = Bottleneck(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    stride_in=self.stride_in,
                    project=block == 0,
                    epsilon=self.epsilon,
                    dtype=self.dtype,
                    bn_axis=self.bn_axis,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train=train)
        return x

    def _stem(self, image, train: bool):
        conv = Conv(
            self.width,
            (7, 7),
            2,
            use_bias=self.stem_bias,
            dtype=self.dtype,
            name="conv_init",
        )
        norm = batch_norm(
            train=train, epsilon=self.epsilon, dtype=self.dtype, axis_name=self.bn_axis
        )
        x = nn.relu(norm(name="bn_init")(conv(image)))
        padding = ((1, 1), (1, 1))
        if self.pool_padding == "same":
            padding = same_padding(*x.shape[1:3], size=3)
        return max_pool(x, 3, padding=padding)

    def output_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the features of an image of `image_size`."""
        shrink = 2 ** (len(self.stage_sizes) + 1)
        height, width = image_size
        return -(-height // shrink), -(-width // shrink)
