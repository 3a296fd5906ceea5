"""The networks, by name. Whoever adds one adds it to `ARCHS`."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxdepth.models.cnn import CNN, CNNFC
from jaxdepth.models.layouts import LAYOUTS, Layout, layout_named, normalize
from jaxdepth.models.upproj import UpProj
from jaxdepth.ops.upconv import FORMS, UNPOOLS
from jaxdepth.runtime.errors import UserError

__all__ = [
    "ARCHS",
    "LAYOUTS",
    "Layout",
    "create_model",
    "normalize",
    "output_size",
]

ARCHS: dict[str, Callable[..., nn.Module]] = {
    "cnn_fc": CNNFC,
    "cnn": CNN,
    "cnn_trans": functools.partial(CNN, transposed=True),
    "upproj": UpProj,
}
FREEZE = ("none", "encoder", "bn_stats")


def create_model(
    arch: str = "upproj",
    *,
    layout: str = "torchvision",
    unpool: str = "zero",
    upconv: str = "auto",
    dropout: float | None = None,
    dtype: Any = jnp.float32,
    image_size: tuple[int, int] = (228, 304),
    init_depth: float = 2.7,
    bn_axis: str | None = None,
    freeze: str = "none",
    **widths: Any,
) -> nn.Module:
    """A network by name: a Flax module from normalised images to metres.

        model = create_model("upproj")
        variables = model.init(jax.random.key(0), image)
        depth = model.apply(variables, image)  # (b, h, w) float32
        depth, changed = model.apply(
            variables, image, train=True, keys=keys, mutable=["batch_stats"]
        )

    `variables` holds `params`, with `encoder`, `decoder` (upproj and cnn_fc) and
    `head`, and `batch_stats`; both float32. `image` comes from `normalize`; `keys` are
    typed PRNG keys, one per image, and needed for dropout alone.

    Args:
      arch: name in `ARCHS`.
      layout: name in `LAYOUTS`; all but "torchvision" are of upproj alone.
      unpool: "zero" or "average"; upproj alone unpools.
      upconv: form of the up-convolution; other networks have none and ignore it.
      dropout: share dropped before the last layer while training; None: 0.5 in
        cnn_fc, 0 in others.
      dtype: to compute in. Results are float32 always.
      image_size: (height, width) that cnn_fc is built for; others take any.
      init_depth: metres that an untrained network predicts: the training mean. 2.7 is
        near that of NYU.
      bn_axis: name of the device axis over which batch statistics are taken together.
      freeze: "encoder" or "bn_stats" keep the encoder's or all running statistics,
        and normalise by them, while training. Parameters are the optimizer's matter.
      **widths: other fields of the module, for smaller networks: `stage_sizes`,
        `width`, `decoder_in`, `decoder_features`; `features`, `hidden`.

    Raises: UserError on values that are unknown or do not go together.
    """
    _one_of("arch", arch, ARCHS)
    _one_of("unpool", unpool, UNPOOLS)
    _one_of("upconv", upconv, ("auto", *FORMS))
    _one_of("freeze", freeze, FREEZE)
    fields: dict[str, Any] = {
        "layout": layout_named(layout),
        "dtype": dtype,
        "init_depth": init_depth,
        "bn_axis": bn_axis,
        "freeze": freeze,
        **widths,
    }
    if dropout is not None:
        if not 0 <= dropout < 1:
            raise UserError(f"dropout={dropout}: at least 0 and below 1")
        fields["dropout"] = dropout
    if arch == "upproj":
        fields |= {"unpool": unpool, "upconv": upconv}
    else:
        if layout != "torchvision":
            raise UserError(f"layout={layout} is a layout of upproj, not of {arch}")
        if unpool != "zero":
            raise UserError(f"unpool={unpool} belongs to upproj: {arch} has none")
    if arch == "cnn_fc":
        height, width = image_size
        if min(height, width) < 39:
            raise UserError(
                f"image size {height}x{width}: too small for cnn_fc, whose three pools "
                "need at least 39x39"
            )
        fields["image_size"] = (height, width)
    return ARCHS[arch](**fields)


def output_size(arch: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the depth that `arch` gives for an image of `image_size`.

    228x304: upproj 128x160, cnn and cnn_trans 57x76, cnn_fc 55x74 (built for it).
    """
    _one_of("arch", arch, ARCHS)
    return ARCHS[arch]().output_size(image_size)  # pyright: ignore


def _one_of(what: str, name: str, known: Any) -> None:
    if name not in known:
        raise UserError(f"{what}={name}: one of {', '.join(known)}")
