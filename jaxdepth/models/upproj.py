"""`upproj`: a residual network followed by up-projection blocks."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Key

from jaxdepth.models.dropout import drop
from jaxdepth.models.layers import DepthNetwork, Layer, bind_layers, conv_norm
from jaxdepth.models.layouts import depth_from_raw, raw_from_depth
from jaxdepth.models.resnet import ResNet
from jaxdepth.ops.conv import Affine, Conv, apply_affine, he_normal_fan_out
from jaxdepth.ops.upconv import add_phase_bias, upconv


class UpConv(nn.Module):
    """Up-convolution layer: `kernel` (5, 5, cin, features), `bias` (2, 2, features).

    Attributes:
      features: output channels.
      unpool, padding_side, form: as in `jaxdepth.ops.upconv.upconv`.
      use_bias: whether to add a bias per output phase.
      dtype: of the computation.
    """

    features: int
    unpool: str
    padding_side: str
    form: str
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], affine: Affine | None = None
    ) -> Float[Array, "b h2 w2 d"]:
        shape = (5, 5, x.shape[-1], self.features)
        # The fan out counts 25 taps although outputs read only a quarter of them: the
        # batch normalisation that follows removes the scale.
        kernel = self.param("kernel", he_normal_fan_out, shape, jnp.float32)
        bias = None
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = self.param("bias", zeros, (2, 2, self.features), jnp.float32)
        kernel, bias = apply_affine(affine, kernel, bias)
        y = upconv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            unpool=self.unpool,
            padding_side=self.padding_side,
            form=self.form,
        )
        if bias is None:
            return y
        if bias.ndim == 1:
            return y + bias.astype(self.dtype)[None, None, None]
        return add_phase_bias(y, bias)


class UpProjection(nn.Module):
    """Up-projection block: doubles the size.

        relu(bn(conv3x3(relu(bn(up_main(x))))) + bn(up_side(x)))

    `up_main` and `up_side` are separate up-convolutions of the same input: computing
    them together was no faster where measured (CPU) or estimated (TPU).

    Names: `up_main`, `bn_main`, `conv`, `bn`, `up_side`, `bn_side`.

    Attributes:
      features: output channels.
      conv, up: convolution and up-convolution layers.
      norm: normalisation layer with `use_running_average` bound.

    Source: Laina et al. 2016, section 3.2, figure 2(c).
    """

    features: int
    conv: Layer
    norm: Layer
    up: Layer

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        up_main = self.up(self.features, name="up_main")
        main = conv_norm(up_main, self.norm(name="bn_main"), x, relu=True)
        up_side = self.up(self.features, name="up_side")
        side = conv_norm(up_side, self.norm(name="bn_side"), x)
        conv = self.conv(self.features, name="conv")
        norm = self.norm(name="bn")
        return conv_norm(conv, norm, main, residual=side, relu=True)


class Skip(nn.Module):
    """Skip connection: adds features of the encoder to a map of the decoder.

        up[:, :i, :j] + bn(conv1x1(features))

    Both maps start at the upper left corner of the image, so cutting the larger one
    keeps their entries aligned.

    Names: `conv`, `bn`.

    Attributes:
      conv, norm: convolution and normalisation layers.

    Source: Lin et al. 2017 (feature pyramid networks), section 3 and figure 3.
    """

    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(
        self, features: Float[Array, "b i j c"], up: Float[Array, "b h w d"]
    ) -> Float[Array, "b i j d"]:
        """The sum; i <= h and j <= w."""
        _, height, width, _ = features.shape
        conv = self.conv(up.shape[-1], (1, 1), name="conv")
        up = up[:, :height, :width]
        return conv_norm(conv, self.norm(name="bn"), features, residual=up)


class Decoder(nn.Module):
    """1x1 convolution and batch normalisation, then up-projection blocks.

    As in the published network, no ReLU follows the 1x1 convolution.

    Names: `conv_in`, `bn_in`, `up1`, `up2`, ..., and `skip1`, ... for the sums after
    `up1`, ....

    Attributes:
      in_features: channels after the 1x1 convolution.
      features: channels after each up-projection.
      conv, norm, up: convolution, normalisation and up-convolution layers.
    """

    in_features: int
    features: tuple[int, ...]
    conv: Layer
    norm: Layer
    up: Layer

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        skips: Sequence[Float[Array, "b _h _w _c"]] = (),
        *,
        train: bool = False,
    ) -> Float[Array, "b i j d"]:
        """The decoded map.

        Args:
          x: last map of the encoder.
          skips: maps to add after the first up-projections, each of at most twice the
            size of the one before.
          train: whether to use batch statistics.
        """
        norm = functools.partial(self.norm, use_running_average=not train)
        conv_in = self.conv(self.in_features, (1, 1), name="conv_in")
        x = conv_norm(conv_in, norm(name="bn_in"), x)
        for block, features in enumerate(self.features, start=1):
            up = UpProjection(features, self.conv, norm, self.up, name=f"up{block}")
            x = up(x)
            if block <= len(skips):
                x = Skip(self.conv, norm, name=f"skip{block}")(skips[block - 1], x)
        return x


class ConvHead(nn.Module):
    """The last convolution, 3x3 to one channel, linear: raw output in float32.

    Names: `conv/kernel` and `bias` (1,). The bias is added in float32: near 2.7,
    bfloat16 values are 1.6 cm apart.

    Attributes:
      init_bias: initial value of the bias, and so of the output.
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


class UpProj(DepthNetwork):
    """Fully convolutional residual network with up-projections (`--arch=upproj`).

    ResNet-50 without pooling and classifier, a 1x1 convolution to 1024 channels,
    up-projections to 512, 256, 128 and 64, each doubling the size, and a 3x3
    convolution to one channel: 228x304 -> 8x10 -> 128x160. An input of (h, w) gives
    (16 ceil(h/32), 16 ceil(w/32)).

    With a smaller output stride s of the encoder, the decoder's first widths are left
    out: for s = 16, a 1x1 convolution to 512 channels and up-projections to 256, 128
    and 64. The output is (s/2 ceil(h/s), s/2 ceil(w/s)).

    With skip connections, the last map of the encoder of every size is added to the
    up-projection of that size, which is cut to it. The last one is the stem's before
    pooling, and the output is (ceil(h/2), ceil(w/2)).

    Layout `fcrn` is the published network and has 63,572,737 parameters.

    The paper fixes all of these. Our choices: dropout of 0 by default (the published
    network was trained with 0.5), He initialisation, and, outside layout `fcrn`, the
    softplus head and no biases before a batch normalisation.

    Attributes:
      unpool: "zero" or "average".
      upconv: form of the up-convolution, "auto" or one of `ops.upconv.FORMS`.
      stage_sizes, width, output_stride: of the `ResNet`.
      decoder_in, decoder_features: channels after the 1x1 convolution and after each
        up-projection, for an encoder without dilation.
      skips: whether there are skip connections.
      others: as in `DepthNetwork`.

    Source: Laina et al. 2016, table 1 and figure 1.
    """

    unpool: str = "zero"
    upconv: str = "auto"
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    decoder_in: int = 1024
    decoder_features: tuple[int, ...] = (512, 256, 128, 64)
    output_stride: int = 32
    skips: bool = False

    def setup(self):
        layout = self.layout
        conv, norm = bind_layers(layout, self.dtype, self.bn_axis, self.bn_groups)
        up = functools.partial(
            UpConv,
            unpool=self.unpool,
            padding_side=layout.padding_side,
            form=self.upconv,
            use_bias=layout.up_bias,
            dtype=self.dtype,
        )
        self.encoder = ResNet(
            stage_sizes=self.stage_sizes,
            width=self.width,
            output_stride=self.output_stride,
            stride_in=layout.stride_in,
            stem_bias=layout.stem_bias,
            pool_padding=layout.pool_padding,
            every_size=self.skips,
            conv=conv,
            norm=norm,
        )
        in_features, *features = self._decoder_widths()
        self.decoder = Decoder(
            in_features,
            tuple(features),
            conv=functools.partial(conv, use_bias=layout.up_bias),
            norm=norm,
            up=up,
        )
        bias = raw_from_depth(self.init_depth, self.layout.head)
        self.head = ConvHead(bias, dtype=self.dtype)

    def __call__(
        self,
        image: Float[Array | np.ndarray, "b h w 3"],
        train: bool = False,
        keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b i j"]:
        """Predict depth in metres, float32.

        Args:
          image: normalised colours.
          train: use dropout and batch statistics, and update the running statistics
            (`mutable=["batch_stats"]`).
          keys: one typed PRNG key per image; needed for dropout only.
        """
        features = self.encoder(image, train=train and self.freeze == "none")
        if self.freeze == "encoder":  # no backward pass
            features = lax.stop_gradient(features)
        *larger, x = features if self.skips else (features,)
        learns = train and self.freeze != "bn_stats"
        x = self.decoder(x, larger[::-1], train=learns)
        x = drop(x, keys, rate=self.dropout, train=train)
        return depth_from_raw(self.head(x), self.layout.head)

    def output_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the depth for an image of `image_size`."""
        height, width = image_size
        return self._output_length(height), self._output_length(width)

    def _output_length(self, pixels: int) -> int:
        """Entries of the output along an axis of that many pixels."""
        stride = self._sized_encoder().stride
        length = math.ceil(pixels / stride)
        for _ in self._decoder_widths()[1:]:
            stride, length = stride // 2, 2 * length
            if self.skips and stride >= 2:  # cut to the encoder's map
                length = math.ceil(pixels / stride)
        return length

    def _decoder_widths(self) -> tuple[int, ...]:
        """Channels after the 1x1 convolution and after each up-projection."""
        widths = (self.decoder_in, *self.decoder_features)
        return widths[self._sized_encoder().dilated_stages :]

    def _sized_encoder(self) -> ResNet:
        """A `ResNet` with the stages and strides of the encoder."""
        return ResNet(
            stage_sizes=self.stage_sizes, output_stride=self.output_stride, parent=None
        )
