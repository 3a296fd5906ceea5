"""The networks, by name. To add one, add its entry to `ARCHS`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdepth.config import ModelConfig
from jaxdepth.models.cnn import CNN, CNNFC
from jaxdepth.models.layouts import LAYOUTS, Layout, layout_named, normalize
from jaxdepth.models.upproj import UpProj
from jaxdepth.ops.batch_norm import Groups
from jaxdepth.ops.upconv import FORMS, UNPOOLS
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.registry import Registry
from jaxdepth.runtime.trees import PyTree

__all__ = [
    "ARCHS",
    "LAYOUTS",
    "Arch",
    "Layout",
    "arch_named",
    "create",
    "create_model",
    "normalize",
    "output_size",
    "predict",
    "register_arch",
    "scaled_widths",
]

OUTPUT_STRIDES = (32, 16, 8)
FREEZE = ("none", "encoder", "bn_stats")
# Fields of the networks that are numbers of channels.
WIDTHS = ("width", "decoder_in", "decoder_features", "features", "hidden")


@dataclasses.dataclass(frozen=True)
class Arch:
    """A network that `--arch` names.

    Attributes:
      module: constructor of the Flax module. It receives those arguments of
        `create_model` that the module declares as fields. The module's `__call__(image,
        *, train=False, keys=None)` takes (b, h, w, 3) float32 from `normalize` and
        returns (b, i, j) float32 metres; its `output_size((h, w))` is (i, j).
      layouts: names of the layouts that it supports.
      init: values of --init that it supports besides "random".
      fixed_size: True for a network that is built for one input size; whole frames are
        stretched to it.
      min_size: smallest height and width of its input.
    """

    module: Callable[..., nn.Module]
    layouts: tuple[str, ...] = ("torchvision",)
    init: tuple[str, ...] = ()
    fixed_size: bool = False
    min_size: int = 1

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields that the module declares."""
        module = self.module
        cls = module.func if isinstance(module, functools.partial) else module
        return frozenset(getattr(cls, "__dataclass_fields__", ()))

    @property
    def dropout(self) -> float:
        """The dropout rate that the module has by default."""
        return getattr(self.module(), "dropout", 0.0)

    def check(self, model: ModelConfig) -> None:
        """Raise UserError for options that this network does not support."""
        if model.init not in ("random", *self.init):
            raise UserError(
                f"--init={model.init}: {model.arch} has no ResNet-50 to initialise; "
                "give --arch=upproj or --init=random"
            )
        self.check_options(
            model.arch,
            layout=model.layout,
            unpool=model.unpool,
            output_stride=model.output_stride,
            skips=model.skips,
        )
        if model.init == "nyu" and (model.output_stride != 32 or model.skips):
            raise UserError(
                "--init=nyu: the weights are those of a network of output stride 32 "
                "without skip connections; leave --output_stride and --skips out, or "
                "give --init=imagenet"
            )
        if model.is_resnet50:
            return
        if "stage_sizes" not in self.fields:
            raise UserError(
                f"--width and --stage_sizes: {model.arch} has no ResNet; give "
                "--arch=upproj"
            )
        if model.init != "random":
            raise UserError(
                f"--init={model.init}: the weights are those of ResNet-50; leave "
                "--width and --stage_sizes out"
            )

    def check_options(
        self,
        arch: str,
        *,
        layout: str | Layout,
        unpool: str,
        output_stride: int,
        skips: bool,
    ) -> None:
        """Raise UserError for values that it does not support."""
        layout_named(layout)  # raises for an unknown name
        _check_one_of("output_stride", output_stride, OUTPUT_STRIDES)
        if isinstance(layout, str) and layout not in self.layouts:
            raise UserError(f"--layout={layout} is a layout of upproj, not of {arch}")
        if unpool != "zero" and "unpool" not in self.fields:
            raise UserError(
                f"--unpool={unpool}: {arch} has no unpooling; give --arch=upproj"
            )
        if output_stride != 32 and "output_stride" not in self.fields:
            raise UserError(
                f"--output_stride={output_stride}: {arch} has no ResNet; give "
                "--arch=upproj"
            )
        if skips and "skips" not in self.fields:
            raise UserError(f"--skips: {arch} has no decoder; give --arch=upproj")


ARCHS: Registry[Arch] = Registry("arch")
ARCHS.register("cnn_fc", Arch(CNNFC, fixed_size=True, min_size=39))
ARCHS.register("cnn", Arch(CNN))
ARCHS.register("cnn_trans", Arch(functools.partial(CNN, transposed=True)))
ARCHS.register("upproj", Arch(UpProj, layouts=tuple(LAYOUTS), init=("imagenet", "nyu")))


def register_arch(
    name: str, module: Callable[..., nn.Module], **properties: Any
) -> Callable[..., nn.Module]:
    """Register a network under a name for `--arch` and `create_model`.

    Args:
      name: name of the network.
      module: see `Arch`.
      **properties: other attributes of `Arch`.

    Returns: `module`.
    Raises: ValueError for a name that is registered already.
    """
    ARCHS.register(name, Arch(module, **properties))
    return module


def arch_named(name: str) -> Arch:
    """The network of that name. Raises UserError for an unknown name."""
    return ARCHS.named(name)


def create(
    model: ModelConfig,
    *,
    init_depth: float = 2.7,
    bn_axis: str | None = None,
    bn_groups: Groups | None = None,
) -> nn.Module:
    """The network that a resolved configuration describes.

    Args:
      model: section of the configuration.
      init_depth: depth in metres that it predicts before training.
      bn_axis, bn_groups: device axis and groups of devices for batch statistics, from
        `training.sharding.Placement.statistics`; None for statistics per device.
    """
    assert model.dropout != "auto"
    widths: dict[str, Any] = {}
    if not model.is_resnet50:
        factor = Fraction(model.width, ModelConfig().width)
        widths = scaled_widths(arch_named(model.arch).module(), factor)
        widths["stage_sizes"] = model.blocks
    return create_model(
        model.arch,
        layout=model.layout,
        unpool=model.unpool,
        upconv=model.upconv,
        output_stride=model.output_stride,
        skips=model.skips,
        dropout=model.dropout,
        dtype=jnp.bfloat16 if model.precision == "bf16" else jnp.float32,
        image_size=model.image_size,
        init_depth=init_depth,
        bn_axis=bn_axis,
        bn_groups=bn_groups,
        freeze=model.freeze,
        **widths,
    )


def create_model(
    arch: str = "upproj",
    *,
    layout: str | Layout = "torchvision",
    unpool: str = "zero",
    upconv: str = "auto",
    output_stride: int = 32,
    skips: bool = False,
    dropout: float | None = None,
    dtype: Any = jnp.float32,
    image_size: tuple[int, int] = (228, 304),
    init_depth: float = 2.7,
    bn_axis: str | None = None,
    bn_groups: Groups | None = None,
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
    typed PRNG keys, one per image, needed for dropout only.

    Args:
      arch: name in `ARCHS`.
      layout: name in `LAYOUTS`; all but "torchvision" are layouts of upproj only.
      unpool: "zero" or "average"; only upproj unpools.
      upconv: algorithm of the up-convolution; ignored by networks without one.
      output_stride: largest stride of upproj's encoder, 32, 16 or 8: the last stages
        have dilation instead, and the decoder has fewer up-projections.
      skips: skip connections from upproj's encoder to its decoder.
      dropout: dropout rate before the last layer; None: 0.5 in cnn_fc, 0 in others.
      dtype: dtype of the computation. Results are float32 always.
      image_size: (height, width) that cnn_fc is built for; the others take any size.
      init_depth: depth in metres that an untrained network predicts: the mean of the
        training depth. 2.7 is close to NYU's.
      bn_axis: device axis over which batch statistics are averaged.
      bn_groups: indices on that axis of the devices that share batch statistics, one
        tuple for each group; None: all devices.
      freeze: "none"; "encoder" or "bn_stats": in training, the batch normalisations of
        the encoder or of the network use and keep their running statistics. Freezing
        the parameters is up to the optimizer.
      **widths: other fields of the module, for smaller networks: `stage_sizes`,
        `width`, `decoder_in`, `decoder_features`; `features`, `hidden`.

    Raises: UserError for unknown or incompatible values.
    """
    entry = arch_named(arch)
    _check_one_of("unpool", unpool, UNPOOLS)
    _check_one_of("upconv", upconv, ("auto", *FORMS))
    _check_one_of("freeze", freeze, FREEZE)
    entry.check_options(
        arch, layout=layout, unpool=unpool, output_stride=output_stride, skips=skips
    )
    if min(image_size) < entry.min_size:
        height, width = image_size
        raise UserError(
            f"--size={height}x{width}: too small for {arch}, which needs at least "
            f"{entry.min_size}x{entry.min_size}"
        )
    options: dict[str, Any] = {
        "layout": layout_named(layout),
        "unpool": unpool,
        "upconv": upconv,
        "output_stride": output_stride,
        "skips": skips,
        "dtype": dtype,
        "image_size": image_size,
        "init_depth": init_depth,
        "bn_axis": bn_axis,
        "bn_groups": bn_groups,
        "freeze": freeze,
    }
    if dropout is not None:
        if not 0 <= dropout < 1:
            raise UserError(f"--dropout={dropout}: expected at least 0 and below 1")
        options["dropout"] = dropout
    declared = {k: v for k, v in options.items() if k in entry.fields}
    return entry.module(**declared, **widths)


def scaled_widths(model: nn.Module, factor: Fraction) -> dict[str, Any]:
    """The fields of a network that are numbers of channels, times `factor`.

    Rounded down, and at least 1.
    """
    widths = {name: getattr(model, name) for name in WIDTHS if hasattr(model, name)}
    return jax.tree.map(lambda width: max(1, int(width * factor)), widths)


def output_size(arch: str, image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the depth that `arch` predicts for an image of `image_size`.

    228x304: upproj 128x160, cnn and cnn_trans 57x76, cnn_fc 55x74 (built for it).
    """
    return arch_named(arch).module().output_size(image_size)  # pyright: ignore


def predict(
    model: nn.Module, variables: PyTree, rgb: Float[Array, "b h w 3"], *, layout: str
) -> Float[Array, "b i j"]:
    """Predict depth in metres, at the network's output size, from colours 0 to 255."""
    return model.apply(variables, normalize(rgb, layout))  # pyright: ignore[reportReturnType]


def _check_one_of(flag: str, value: str | int, values: Sequence[str | int]) -> None:
    if value not in values:
        raise UserError(
            f"--{flag}={value}: expected one of {', '.join(map(str, values))}"
        )
