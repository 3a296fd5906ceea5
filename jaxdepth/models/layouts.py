"""Layouts: named sets of details in which versions of the same network differ.

Also the input normalisation and the conversion of raw output to metres, which depend on
the layout.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped

from jaxdepth.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """Details of a network that its weights depend on.

    Attributes:
      stride_in: the convolution of a bottleneck with the stride: "3x3" (ResNet v1.5,
        as torchvision) or the first "1x1" (v1, He et al. 2015).
      stem_bias: whether the first convolution has a bias.
      bn_epsilon: added to the variance in batch normalisation.
      pool_padding: of the 3x3 max-pool in the stem: "torch" pads 1 on every side,
        "same" as TensorFlow does (even sizes at the end only).
      up_bias: whether the decoder's convolutions before a batch normalisation have
        biases: (2, 2, features) for an up-convolution, one per channel for others.
      padding_side: of the up-convolution, see `jaxdepth.ops.upconv`.
      head: function from raw output to metres: "softplus" or "relu".
      rgb_mean: per channel, subtracted from colours of 0 to 255.
      rgb_std: per channel, divisor after the subtraction.
    """

    stride_in: str
    stem_bias: bool
    bn_epsilon: float
    pool_padding: str
    up_bias: bool
    padding_side: str
    head: str
    rgb_mean: tuple[float, float, float]
    rgb_std: tuple[float, float, float]


# The published network of Laina et al. 2016 (TensorFlow, trained on NYU). Its input is
# raw colours; the first batch normalisation absorbs their scale.
_FCRN = Layout(
    stride_in="1x1",
    stem_bias=True,
    bn_epsilon=1e-4,
    pool_padding="same",
    up_bias=True,
    padding_side="top_left",
    head="relu",
    rgb_mean=(0.0, 0.0, 0.0),
    rgb_std=(1.0, 1.0, 1.0),
)

LAYOUTS: dict[str, Layout] = {
    # ImageNet mean and deviation of torchvision, (0.485, 0.456, 0.406) and
    # (0.229, 0.224, 0.225), times 255.
    "torchvision": Layout(
        stride_in="3x3",
        stem_bias=False,
        bn_epsilon=1e-5,
        pool_padding="torch",
        up_bias=False,
        padding_side="bottom_right",
        head="softplus",
        rgb_mean=(123.675, 116.28, 103.53),
        rgb_std=(58.395, 57.12, 57.375),
    ),
    "fcrn": _FCRN,
    # The same authors' network for Make3D, which convolves unpooled maps by 5x5.
    "fcrn_make3d": dataclasses.replace(_FCRN, padding_side="bottom_right"),
}


def layout_named(name: str | Layout) -> Layout:
    """The layout of that name; a `Layout` is returned unchanged.

    Raises: UserError for an unknown name.
    """
    if isinstance(name, Layout):
        return name
    if name not in LAYOUTS:
        raise UserError(f"layout={name}: expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def normalize(
    rgb: Shaped[ArrayLike, "b h w 3"], layout: str | Layout
) -> Float[Array, "b h w 3"]:
    """Normalise colours to network input: (rgb - mean) / std per channel, float32.

    Args:
      rgb: colours from 0 to 255, uint8 or float.
      layout: layout or its name; gives mean and std.
    """
    settings = layout_named(layout)
    mean = jnp.array(settings.rgb_mean, jnp.float32)[None, None, None]
    std = jnp.array(settings.rgb_std, jnp.float32)[None, None, None]
    return (jnp.asarray(rgb, jnp.float32) - mean) / std


def depth_from_raw(raw: Float[Array, "b h w"], head: str) -> Float[Array, "b h w"]:
    """Convert a network's raw (linear) output to metres, float32.

    "softplus" is log(1 + exp(raw)): positive (down to raw = -100, where float32 rounds
    it to 0), close to raw above 2 m, and without dead units. It is our choice for all
    losses. "relu" is max(raw, 0), as in the published FCRN network.
    """
    raw = raw.astype(jnp.float32)
    return jax.nn.softplus(raw) if head == "softplus" else jax.nn.relu(raw)


def raw_from_depth(depth: float, head: str) -> float:
    """The raw output for a depth in metres: the inverse of `depth_from_raw`.

    Raises: UserError if `depth` is not above 0.
    """
    if not depth > 0:
        raise UserError(f"init_depth={depth}: must be above 0 metres")
    # log(exp(depth) - 1), without overflow.
    return depth + math.log(-math.expm1(-depth)) if head == "softplus" else depth
