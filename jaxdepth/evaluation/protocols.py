"""Evaluation protocols: input, region, range, clamp, resizing and averaging.

Published numbers of one network differ by several percent between protocols, so that
each protocol states all its choices. The functions are pure, and can be jitted with the
protocol as a constant.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from jaxdepth.config import Config, training_frame
from jaxdepth.evaluation import breakdown, metrics
from jaxdepth.ops import resize
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.registry import Registry

Size = tuple[int, int]

NYU_FRAME: Size = (480, 640)
ALL_PIXELS = "all"  # key of all pixels, beside the names in `breakdown.PARTS`

# Crop of a NYU frame at half its size, 240x320. Laina et al. 2016.
LAINA_ROWS, LAINA_COLUMNS = slice(6, 234), slice(8, 312)
LAINA_SIZE: Size = (228, 304)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """An evaluation protocol.

    Attributes:
      name: value of `--protocol`.
      truth: kind of ground truth: "filled" or "raw", or "given", the kind that the run
        trains on.
      input_rule: "laina_crop" takes the central crop of the half-size frame,
        "whole_frame" the frame at the training scale.
      averaging: averaging that its authors report; results have both.
      region: (top, bottom, left, right) of a 480x640 frame, half open; None: all.
      valid_range: metres; ground truth strictly inside counts. None: above 0.
      max_depth: metres; ground truth up to and including it counts. None: no bound.
      clamp: (low, high) in metres for predictions, or None.
      clamp_at: "output" clamps the network's output; "frame" clamps after flip
        averaging and resizing, where NaN becomes `low`.
      flip_average: flip test-time augmentation: average with the prediction for the
        flipped input.
      masked: False if the ground truth should have no holes. Pixels without ground
        truth are excluded in any case, and counted as `unscored`.
      rel: denominator of abs_rel.
      source: publication or code that defines it.
    """

    name: str
    truth: Literal["filled", "raw", "given"]
    input_rule: Literal["laina_crop", "whole_frame"]
    averaging: metrics.Averaging
    region: tuple[int, int, int, int] | None = None
    valid_range: tuple[float, float] | None = None
    max_depth: float | None = None
    clamp: tuple[float, float] | None = None
    clamp_at: Literal["output", "frame"] = "frame"
    flip_average: bool = False
    masked: bool = True
    rel: metrics.Rel = "truth"
    source: str = ""

    @property
    def needs_nyu_frame(self) -> bool:
        """Whether it is defined on frames of 480x640 only."""
        return self.region is not None or self.input_rule == "laina_crop"

    def title(self, image_size: Size) -> str:
        """The name to print: `laina@HxW` if the crop is resized to another size."""
        if self.input_rule != "laina_crop" or image_size == LAINA_SIZE:
            return self.name
        return f"{self.name}@{image_size[0]}x{image_size[1]}"


PROTOCOLS: Registry[Protocol] = Registry("protocol")


def register_protocol(protocol: Protocol) -> Protocol:
    """Register a protocol under its name, which `--protocol` then takes.

    Raises: ValueError for a name that is registered already.
    """
    return PROTOCOLS.register(protocol.name, protocol)


for _protocol in (
    Protocol(
        "laina",
        truth="filled",
        input_rule="laina_crop",
        averaging="pooled",
        masked=False,
        source="Laina et al. 2016: evaluateNYU and error_metrics of their code",
    ),
    Protocol(
        "eigen",
        truth="raw",
        input_rule="whole_frame",
        averaging="per_image",
        region=(45, 471, 41, 601),
        valid_range=(1e-3, 10.0),
        clamp=(1e-3, 10.0),
        source="as in the code of BTS, AdaBins and ZoeDepth",
    ),
    Protocol(
        "densedepth",
        truth="filled",
        input_rule="whole_frame",
        averaging="pooled",
        region=(20, 460, 24, 616),
        clamp=(0.1, 10.0),
        clamp_at="output",
        flip_average=True,
        masked=False,
        source="Alhashim and Wonka 2018: utils.evaluate of DenseDepth",
    ),
    Protocol(
        "plain",
        truth="given",
        input_rule="whole_frame",
        averaging="pooled",
        max_depth=10.0,
        source="the whole frame, all pixels with ground truth",
    ),
):
    register_protocol(_protocol)


def choose(
    names: str | Iterable[str],
    *,
    max_depth: float = 10.0,
    flip_average: Literal["auto", "on", "off"] = "auto",
    densedepth_rel: metrics.Rel = "truth",
) -> tuple[Protocol, ...]:
    """Protocols by name, changed by flags.

    Args:
      names: one name, several, or "all".
      max_depth: `--max_depth` in metres, for protocols with a bound (`plain`).
      flip_average: "auto" leaves the protocols unchanged.
      densedepth_rel: denominator of abs_rel in densedepth; "pred" as in its published
        code, which passes prediction and ground truth in the wrong order.

    Raises: UserError for an unknown name.
    """
    names = [names] if isinstance(names, str) else list(names)
    names = list(PROTOCOLS) if names == ["all"] else names
    chosen = []
    for protocol in (PROTOCOLS.named(name) for name in names):
        if protocol.max_depth is not None:
            protocol = dataclasses.replace(protocol, max_depth=max_depth)
        if flip_average != "auto":
            protocol = dataclasses.replace(protocol, flip_average=flip_average == "on")
        if protocol.name == "densedepth":
            protocol = dataclasses.replace(protocol, rel=densedepth_rel)
        chosen.append(protocol)
    return tuple(chosen)


def chosen_protocols(config: Config, *, nyu: bool) -> tuple[Protocol, ...]:
    """The protocols of `--protocol`; results show the first one first.

    Args:
      nyu: the data are NYU Depth V2, so that `auto` means `laina`, else `plain`.
    """
    default = "laina" if nyu else "plain"
    names = [default] if config.eval.protocol == "auto" else [config.eval.protocol]
    if config.eval.protocol == "all":
        names = [default, *(name for name in PROTOCOLS if name != default)]
    return choose(
        names,
        max_depth=config.data.max_depth,
        flip_average=config.eval.flip_average,
        densedepth_rel=config.eval.densedepth_rel,
    )


def check_frame(protocol: Protocol, frame_size: Size) -> None:
    """Raise UserError if the protocol does not accept frames of (height, width)."""
    if protocol.needs_nyu_frame and frame_size != NYU_FRAME:
        height, width = frame_size
        raise UserError(
            f"--protocol={protocol.name} is defined on frames of 480x640; these are "
            f"{height}x{width}: use --protocol=plain"
        )


def whole_frame_size(frame_size: Size, image_size: Size) -> Size:
    """(height, width) of the network's input for a whole frame or photo.

    The frame is scaled, aspect kept, until it just covers the training frame (240x320
    for a network trained on 228x304 crops), as when a store is written, so that objects
    have the same scale as in training. The longer side is rounded half up.
    """
    height, width = training_frame(image_size)
    rows, columns = frame_size
    if height * columns >= width * rows:
        return height, (2 * columns * height + rows) // (2 * rows)
    return (2 * rows * width + columns) // (2 * columns), width


def resize_input(
    rgb: Float[Any, "b h w 3"], size: Size
) -> Float[Any, "b {size[0]} {size[1]} 3"]:
    """Resize by area means along axes that shrink, bilinearly along axes that grow.

    Accepts and returns JAX or NumPy arrays.
    """
    height, width = rgb.shape[1:3]
    rgb = resize.resize_area(rgb, (min(height, size[0]), min(width, size[1])))
    return resize.resize_bilinear(rgb, size)


def network_input(
    protocol: Protocol,
    rgb: UInt8[Array, "b h w 3"],
    image_size: Size,
    *,
    arch_fixed: bool = False,
) -> Float[Array, "b i j 3"]:
    """The network's input for full frames: colours 0 to 255, not normalised.

    "laina_crop" takes every second pixel (`rgb[1::2, 1::2]`, as MATLAB's nearest-
    neighbour resize by 1/2 does), then rows 6 to 233 and columns 8 to 311; for another
    `image_size` than 228x304 it resizes this crop by `resize_input`. "whole_frame"
    resizes the frame to `whole_frame_size` by `resize_input`.

    Args:
      rgb: frames, uint8.
      image_size: (height, width) that the network was trained at.
      arch_fixed: the network accepts no other size, so that whole frames are resized to
        exactly `image_size`.

    Raises: UserError for other frames than 480x640 if the protocol needs these.
    """
    frame_size = (rgb.shape[1], rgb.shape[2])
    check_frame(protocol, frame_size)
    size = image_size
    if protocol.input_rule == "laina_crop":
        rgb = rgb[:, 1::2, 1::2][:, LAINA_ROWS, LAINA_COLUMNS]
    elif not arch_fixed:
        size = whole_frame_size(frame_size, image_size)
    x = rgb.astype(jnp.float32)
    return x if x.shape[1:3] == size else resize_input(x, size)


def mirror(x: Float[Array, "b h w *c"]) -> Float[Array, "b h w *c"]:
    """Flip left and right."""
    return jnp.flip(x, axis=2)


def network_output(
    protocol: Protocol, pred: Float[Array, "b h w"]
) -> Float[Array, "b h w"]:
    """The network's output in float32, clamped if the protocol has clamp_at="output".

    With flip averaging this applies to both predictions; then `full_prediction` gets
    the mean of the first and the flipped second one. Thus densedepth clamps before
    averaging, and a protocol with clamp_at="frame" afterwards. (Averaging and resizing
    are linear, so that their order does not matter.)
    """
    pred = pred.astype(jnp.float32)
    if protocol.clamp is None or protocol.clamp_at != "output":
        return pred
    return jnp.clip(pred, *protocol.clamp)


def full_prediction(
    protocol: Protocol, pred: Float[Array, "b h w"], frame_size: Size
) -> Float[Array, "b {frame_size[0]} {frame_size[1]}"]:
    """Resize a prediction to the frame, bilinearly with half-pixel centres, and clamp.

    In `laina`, the prediction for the central crop is stretched over the whole frame,
    as in the authors' code.

    Args:
      pred: result of `network_output`, metres.
      frame_size: (height, width) of the ground truth.
    """
    full = _stretch(pred.astype(jnp.float32), frame_size)
    if protocol.clamp is None or protocol.clamp_at != "frame":
        return full
    low, high = protocol.clamp
    return jnp.where(jnp.isnan(full), low, jnp.clip(full, low, high))


def _stretch(pred: Float[Array, "b h w"], size: Size) -> Float[Array, "b i j"]:
    """Resize bilinearly; values that are not finite affect only their neighbourhood.

    In a plain matrix product, a single NaN would spread over the whole image.
    """
    full = resize.resize_bilinear(jnp.where(jnp.isfinite(pred), pred, 0.0), size)
    for value, mask in (
        (jnp.nan, jnp.isnan(pred)),
        (jnp.inf, jnp.isposinf(pred)),
        (-jnp.inf, jnp.isneginf(pred)),
    ):
        weight = resize.resize_bilinear(mask.astype(jnp.float32), size)
        full += jnp.where(weight > 0, value, 0.0)
    return full


def _crop(protocol: Protocol, x: Array) -> Array:
    """The protocol's region of full frames."""
    top, bottom, left, right = protocol.region or (None, None, None, None)
    return x[:, top:bottom, left:right]


def score_inputs(
    protocol: Protocol, pred: Float[Array, "b h w"], target: Float[Array, "b h w"]
) -> tuple[Float[Array, "b i j"], Float[Array, "b i j"], Bool[Array, "b i j"]]:
    """Prediction and ground truth of the protocol's region, and the valid mask.

    Pixels without ground truth (0, negative or not finite) are never valid. `laina` and
    `densedepth` define no mask, because filled depth has no holes; the results count
    the pixels that are excluded all the same.
    """
    pred, target = _crop(protocol, pred), _crop(protocol, target)
    valid = jnp.isfinite(target) & (target > 0)
    if protocol.valid_range is not None:
        low, high = protocol.valid_range
        valid &= (target > low) & (target < high)
    if protocol.max_depth is not None:
        valid &= target <= protocol.max_depth
    return pred, target, valid


def score(
    protocol: Protocol, pred: Float[Array, "b h w"], target: Float[Array, "b i j"]
) -> dict[str, Float[Array, "b r"]]:
    """Row sums for `metrics.Sums` of a prediction at the network's output size.

    Args:
      pred: result of `network_output`, metres.
      target: ground truth at the frame's full size, metres, 0 = missing.

    Returns: the sums of `metrics.row_sums`, and `unscored` (pixels of the region that
      are not valid).
    Raises: UserError for other frames than 480x640 if the protocol needs these.
    """
    return score_parts(protocol, pred, target)[ALL_PIXELS]


def score_parts(
    protocol: Protocol, pred: Float[Array, "b h w"], target: Float[Array, "b i j"]
) -> dict[str, dict[str, Float[Array, "b r"]]]:
    """`score` under the key `ALL_PIXELS`, and row sums of each of `breakdown.PARTS`."""
    frame_size = (target.shape[1], target.shape[2])
    check_frame(protocol, frame_size)
    # Computed on the whole frame, so that edges outside the region count as near.
    masks = {k: _crop(protocol, x) for k, x in breakdown.masks(target).items()}
    full = full_prediction(protocol, pred, frame_size)
    full, target, valid = score_inputs(protocol, full, target)
    rows = metrics.part_sums(
        full,
        target,
        valid=valid,
        parts={ALL_PIXELS: valid, **masks},
        rel=protocol.rel,
    )
    rows[ALL_PIXELS]["unscored"] = jnp.sum(~valid, axis=2, dtype=jnp.float32)
    return rows
