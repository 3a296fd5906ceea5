"""`upproj`: a residual network followed by up-projection blocks."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Key

from jaxdepth.models.dropout import drop
from jaxdepth.models.layouts import LAYOUTS, Layout, depth_from_raw, raw_from_depth
from jaxdepth.models.resnet import ResNet, batch_norm
from jaxdepth.ops.conv import Conv, he_normal_fan_out
from jaxdepth.ops.upconv import add_phase_bias, upconv


class UpConv(nn.Module):
    """Up-convolution layer: `kernel` (5, 5, cin, features), `bias` (2, 2, features).

    Attributes:
      features: channels out.
      unpool, padding_side, form: as in `jaxdepth.ops.upconv.upconv`.
      use_bias: add a bias per output phase.
      dtype: to compute in.
    """

    features: int
    unpool: str
    padding_side: str
    form: str
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        shape = (5, 5, x.shape[-1], self.features)
        kernel = self.param("kernel", up_kernel_init, shape, jnp.float32)
        y = upconv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            unpool=self.unpool,
            padding_side=self.padding_side,
            form=self.form,
        )
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (2, 2, self.features), jnp.float32)
            y = add_phase_bias(y, bias)
        return y


# He's normal over the fan out of 25 features: the batch normalisation that follows
# takes out the scale, so that the quarter of taps that meet an entry does not matter.
up_kernel_init = he_normal_fan_out


class UpProjection(nn.Module):
    """Up-projection block: doubles the size.

        relu(bn(conv3x3(relu(bn(up_main(x))))) + bn(up_side(x)))

    with `up_main` and `up_side` up-convolutions of the same input, kept apart:
    computing both at once was no faster where measured (CPU) or estimated (TPU).

    Names: `up_main`, `bn_main`, `conv`, `bn`, `up_side`, `bn_side`.

    Attributes: as in `UpProj`.
    Source: Laina et al. 2016, section 3.2, figure 2(c).
    """

    features: int
    layout: Layout
    unpool: str
    upconv: str
    dtype: Any
    bn_axis: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b h2 w2 d"]:
        up = functools.partial(
            UpConv,
            self.features,
            unpool=self.unpool,
            padding_side=self.layout.padding_side,
            form=self.upconv,
            use_bias=self.layout.up_bias,
            dtype=self.dtype,
        )
        norm = batch_norm(
            train=train,
            epsilon=self.layout.bn_epsilon,
            dtype=self.dtype,
            axis_name=self.bn_axis,
        )
        conv = Conv(
            self.features,
            use_bias=self.layout.up_bias,
            dtype=self.dtype,
            name="conv",
        )
        main = nn.relu(norm(name="bn_main")(up(name="up_main")(x)))
        main = norm(name="bn")(conv(main))
        side = norm(name="bn_side")(up(name="up_side")(x))
        return nn.relu(main + side)


class Decoder(nn.Module):
    """1x1 convolution and batch normalisation, then up-projection blocks.

    No ReLU follows the 1x1 convolution, as in the published network.

    Names: `conv_in`, `bn_in`, `up1`, `up2`, ...

    Attributes: as in `UpProj`.
    """

    in_features: int
    features: tuple[int, ...]
    layout: Layout
    unpool: str
    upconv: str
    dtype: Any
    bn_axis: str | None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b i j d"]:
        norm = batch_norm(
            train=train,
            epsilon=self.layout.bn_epsilon,
            dtype=self.dtype,
            axis_name=self.bn_axis,
        )
        x = Conv(
            self.in_features,
            (1, 1),
            use_bias=self.layout.up_bias,
            dtype=self.dtype,
            name="conv_in",
        )(x)
        x = norm(name="bn_in")(x)
        for block, features in enumerate(self.features):
            x = UpProjection(
                features,
                layout=self.layout,
                unpool=self.unpool,
                upconv=self.upconv,
                dtype=self.dtype,
                bn_axis=self.bn_axis,
                name=f"up{block + 1}",
            )(x, train=train)
        return x


class ConvHead(nn.Module):
    """The last convolution, 3x3 to one channel, linear: raw output in float32.

    Names: `conv/kernel` and `bias` (1,). The bias is added in float32: in bfloat16,
    2.7 has steps of 1.6 cm.

    Attributes:
      init_bias: what the output starts at.
      dtype: of the convolution.
    """

    init_bias: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
        small = nn.initializers.normal(0.001)
        raw = Conv(1, kernel_init=small, dtype=self.dtype, name="conv")(x)
        constant = nn.initializers.constant(self.init_bias)
        bias = self.param("bias", constant, (1,), jnp.float32)
        return raw[..., 0].astype(jnp.float32) + bias[0]


class UpProj(nn.Module):
    """Fully convolutional residual network with up-projections (`--arch=upproj`).

    ResNet-50 without pooling and classifier, a 1x1 convolution to 1024 channels,
    up-projections to 512, 256, 128 and 64, each doubling the size, a 3x3 convolution
    to one channel: 228x304 -> 8x10 -> 128x160. Any input of (h, w) gives
    (16 ceil(h/32), 16 ceil(w/32)). In layout `fcrn` it is the published network and
    has 63,572,737 parameters.

    The paper fixes all of these; ours are dropout of 0 by default (0.5 was used in
    training the published network), He initialisation, and, outside layout `fcrn`,
    the softplus head and no biases before a batch normalisation.

    Attributes:
      layout: see `jaxdepth.models.layouts`.
      unpool: "zero" or "average".
      upconv: form of the up-convolution, "auto" or one of `ops.upconv.FORMS`.
      dropout: share dropped before the last convolution while training.
      init_depth: metres that an untrained network predicts.
      dtype: to compute in; parameters, statistics and the result are float32.
      bn_axis: devices that share batch statistics, None for each its own.
      freeze: "none"; "encoder" or "bn_stats": the encoder's or all batch
        normalisations use and keep their running statistics while training.
      stage_sizes, width: of the `ResNet`.
      decoder_in, decoder_features: channels after the 1x1 convolution and after each
        up-projection.

    Source: Laina et al. 2016, table 1 and figure 1.
    """

    layout: Layout = LAYOUTS["torchvision"]
    unpool: str = "zero"
    upconv: str = "auto"
    dropout: float = 0.0
    init_depth: float = 2.7
    dtype: Any = jnp.float32
    bn_axis: str | None = None
    freeze: str = "none"
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    decoder_in: int = 1024
    decoder_features: tuple[int, ...] = (512, 256, 128, 64)

    def setup(self):
        self.encoder = ResNet(
            stage_sizes=self.stage_sizes,
            width=self.width,
            stride_in=self.layout.stride_in,
            stem_bias=self.layout.stem_bias,
            pool_padding=self.layout.pool_padding,
            epsilon=self.layout.bn_epsilon,
            dtype=self.dtype,
            bn_axis=self.bn_axis,
        )
        self.decoder = Decoder(
            self.decoder_in,
            self.decoder_features,
            layout=self.layout,
            unpool=self.unpool,
            upconv=self.upconv,
            dtype=self.dtype,
            bn_axis=self.bn_axis,
        )
        bias = raw_from_depth(self.init_depth, self.layout.head)
        self.head = ConvHead(bias, dtype=self.dtype)

    def __call__(
        self,
        image: Float[Array | np.ndarray, "b h w 3"],
        train: bool = False,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b i j"]:
        """Depth in metres, float32.

        Args:
          image: normalised colours.
          train: batch statistics in use and updated (`mutable=["batch_stats"]`),
            dropout on.
          keys: one typed PRNG key per image, needed for dropout alone.
        """
        x = self.encoder(image, train=train and self.freeze == "none")
        if self.freeze == "encoder":  # it needs no backward pass
            x = lax.stop_gradient(x)
        x = self.decoder(x, train=train and self.freeze != "bn_stats")
        x = drop(x, keys, rate=self.dropout, train=train)
        return depth_from_raw(self.head(x), self.layout.head)

    def output_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the depth of an image of `image_size`."""
        encoder = ResNet(stage_sizes=self.stage_sizes, parent=None)
        height, width = encoder.output_size(image_size)
        grow = 2 ** len(self.decoder_features)
        return grow * height, grow * width
