"""Network diagrams: a row of boxes with the shapes and counts of the Flax modules."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdepth import plots
from jaxdepth.models import create_model

Shape = tuple[int, ...]
# Label and colour of a box by module class; the first class in a part is its kind.
KINDS = {
    "Bottleneck": ("residual", "#4c78a8"),
    "UpProjection": ("up-projection", "#e45756"),
    "Dense": ("fully connected", "#b279a2"),
    "DenseHead": ("fully connected", "#b279a2"),
    "TransposedHead": ("transposed", "#f58518"),
    "Conv": ("convolution", "#72b7b2"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One box: consecutive modules that share a name.

    Attributes:
      name: name in the parameters; `stage1` for `stage1_block1`, `stage1_block2`, ...
      kind: key of `KINDS`.
      repeats: number of blocks.
      shape_in, shape_out: shapes without the batch: (h, w, c), (h, w) or (c,).
      parameters: number of parameters.
    """

    name: str
    kind: str
    repeats: int
    shape_in: Shape
    shape_out: Shape
    parameters: int


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to draw.

    Attributes:
      arch: name of the architecture.
      shape_in, shape_out: shapes of an image and of its depth, without the batch.
      parts: boxes in the order of computation.
      parameters: number of parameters.
    """

    arch: str
    shape_in: Shape
    shape_out: Shape
    parts: tuple[Part, ...]
    parameters: int


class _Call(NamedTuple):
    """A call of a module: its path, class name, and shapes without the batch."""

    path: tuple[str, ...]
    kind: str
    shape_in: Shape
    shape_out: Shape


def trace(arch: str, image_size: tuple[int, int], **options: Any) -> Network:
    """Shapes and parameter counts of the modules of a network.

    The network is evaluated on shapes only, without any computation.

    Args:
      image_size: (height, width) of the input.
      options: options of `create_model`.

    Raises: UserError if the network does not accept that size.
    """
    model = create_model(arch, image_size=image_size, **options)
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    calls: list[_Call] = []

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and hasattr(out, "shape"):
            module, shapes = context.module, (args[0].shape[1:], out.shape[1:])
            calls.append(_Call(module.path, type(module).__name__, *shapes))
        return out

    with nn.intercept_methods(record):
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
    params = variables["params"]
    network = calls[-1]  # the outermost call returns last
    parts = tuple(_parts(calls[:-1], params))
    return Network(arch, network.shape_in, network.shape_out, parts, _count(params))


def _parts(calls: Sequence[_Call], params: Any) -> list[Part]:
    """Group the calls of modules into boxes."""
    groups: dict[tuple[str, ...], list[_Call]] = {}
    for call in calls:
        is_layer = call.kind in KINDS or call.path == ("head",)
        if len(call.path) > 1 or is_layer:
            groups.setdefault(_part_name(call.path), []).append(call)
    parts = []
    for name, group in groups.items():
        depth = min(len(call.path) for call in group)
        top = [call for call in group if len(call.path) == depth]
        kinds = {call.kind for call in group}
        parts.append(
            Part(
                name[-1],
                next(kind for kind in KINDS if kind in kinds),
                sum(call.kind == "Bottleneck" for call in top) or 1,
                # Calls are recorded when they return, in order of computation.
                top[0].shape_in,
                top[-1].shape_out,
                sum(_count(_at(params, path)) for path in {c.path for c in top}),
            )
        )
    return parts


def _part_name(path: tuple[str, ...]) -> tuple[str, ...]:
    """The box of a module: a head, a layer, or a child of encoder or decoder."""
    if path[0] == "head" or len(path) == 1:
        return path[:1]
    # bn_init belongs to conv_init, bn_in to conv_in, stage1_block2 to stage1.
    stem = re.sub(r"^bn_", "conv_", path[1])
    return path[0], re.sub(r"_block\d+$", "", stem)


def _at(params: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        params = params.get(name, {})
    return params


def _count(params: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


def draw(networks: Sequence[Network]) -> Any:
    """Draw a figure with a row of boxes for each network.

    The height of a box shows the square root of the feature map's height, its width the
    logarithm of the channels. Arrows name the operations without parameters: pooling,
    flattening, cropping.
    """
    from matplotlib.patches import Patch

    columns = max(len(network.parts) for network in networks) + 2
    figure = plots.canvas(1.25 * columns, 2.3 * len(networks) + 0.5)
    axes = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
    for axis, network in zip(axes, networks, strict=True):
        _row(axis, network)
        axis.set(xlim=(-0.6, columns - 0.4), ylim=(-1.05, 0.85))
        axis.set_axis_off()
    shown = sorted({KINDS[part.kind] for n in networks for part in n.parts})
    handles = [Patch(color=colour, label=label) for label, colour in shown]
    place = {"loc": "outside lower center", "ncols": len(handles)}
    figure.legend(handles=handles, frameon=False, **place)
    return figure


def _row(axis: Any, network: Network) -> None:
    """Draw the boxes of a network from left to right."""
    title = (
        f"{network.arch}: {_size(network.shape_in)} to {_size(network.shape_out)}, "
        f"{network.parameters:,} parameters"
    )
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    boxes = [("image", "0.75", network.shape_in, "")]
    for part in network.parts:
        name = part.name if part.repeats == 1 else f"{part.name} ({part.repeats})"
        count = f"{_short(part.parameters)} par."
        boxes.append((name, KINDS[part.kind][1], part.shape_out, count))
    boxes.append(("depth", "0.75", network.shape_out, ""))
    inputs = [network.shape_in, *(p.shape_in for p in network.parts), network.shape_out]
    arrow = {"arrowstyle": "-|>", "color": "0.3", "lw": 0.8, "shrinkA": 1, "shrinkB": 1}
    centred = {"ha": "center", "va": "center", "fontsize": 8}
    right, before = 0.0, network.shape_in
    for x, ((name, colour, shape, count), shape_in) in enumerate(
        zip(boxes, inputs, strict=True)
    ):
        width, height = _extent(shape, network.shape_in[0])
        look = {"facecolor": colour, "edgecolor": "0.2", "linewidth": 0.8}
        axis.bar(x, height, width, bottom=-height / 2, **look)
        if x:
            left = x - width / 2
            axis.annotate("", (left, 0), (right, 0), arrowprops=arrow)
            axis.text(
                (right + left) / 2, 0.07, _operation(before, shape_in), color="0.3",
                ha="center", va="bottom", fontsize=7,
            )  # fmt: skip
        right, before = x + width / 2, shape
        axis.text(x, -0.62, name, fontweight="bold", **centred)
        axis.text(x, -0.79, _size(shape), **centred)
        axis.text(x, -0.96, count, **centred)


def _extent(shape: Shape, image_height: int) -> tuple[float, float]:
    """Width and height of a box; the box of a vector is thin."""
    if len(shape) == 1:
        return 0.12, 1.0
    channels = shape[2] if len(shape) == 3 else 1
    height = max(0.12, math.sqrt(shape[0] / image_height))
    return 0.1 + 0.05 * math.log2(channels), height


def _operation(before: Shape, after: Shape) -> str:
    """The operation without parameters between two shapes; "" if they are equal."""
    if before == after:
        return ""
    if len(before) == 1:
        return "reshape"
    if len(after) == 1:
        return "flat" if math.prod(before) == math.prod(after) else "pool,\nflat"
    (height, width), (rows, columns) = before[:2], after[:2]
    if max(height - rows, width - columns) <= 1 < height - 1:
        return "cut"
    return f"pool\n{rows}x{columns}"


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _short(count: int) -> str:
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)
