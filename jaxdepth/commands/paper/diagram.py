"""Network diagrams: a row of boxes with the shapes and counts of the Flax modules."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

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
    calls: list[tuple[tuple[str, ...], str, Shape, Shape]] = []

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and hasattr(out, "shape"):
            kind = type(context.module).__name__
            calls.append((context.module.path, kind, args[0].shape[1:], out.shape[1:]))
        return out

    with nn.intercept_methods(record):
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
    params = variables["params"]
    _, _, shape_in, shape_out = next(call for call in calls if call[0] == ())
    parts = tuple(_parts(calls, params))
    return Network(arch, shape_in, shape_out, parts, _count(params))


def _parts(calls: Sequence[tuple], params: Any) -> list[Part]:
    """Group the calls of modules into boxes."""
    inner: dict[tuple[str, ...], list[tuple]] = {}
    for call in calls:
        container = len(call[0]) == 1 and call[0] != ("head",) and call[1] not in KINDS
        if call[0] and not container:
            inner.setdefault(_part_name(call[0]), []).append(call)
    parts = []
    for name, group in inner.items():
        top = [call for call in group if len(call[0]) == min(len(c[0]) for c in group)]
        names = {call[1] for call in group}
        counted = {call[0] for call in top}
        parts.append(
            Part(
                name[-1],
                next(kind for kind in KINDS if kind in names),
                sum(call[1] == "Bottleneck" for call in top) or 1,
                # Calls are recorded when they return, in order of computation.
                top[0][2],
                top[-1][3],
                sum(_count(_at(params, path)) for path in counted),
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
    columns = max(len(network.parts) for network in networks) + 2
    figure = plots.canvas(1.25 * columns, 2.3 * len(networks) + 0.5)
    axes = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
    for axis, network in zip(axes, networks, strict=True):
        _row(axis, network)
        axis.set(xlim=(-0.6, columns - 0.4), ylim=(-1.05, 0.85))
        axis.set_axis_off()
    used = {part.kind for network in networks for part in network.parts}
    shown = {KINDS[kind] for kind in KINDS if kind in used}
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in sorted(shown)]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    return figure


def _row(axis: Any, network: Network) -> None:
    """Draw the boxes of a network from left to right."""
    title = (
        f"{network.arch}: {_size(network.shape_in)} to {_size(network.shape_out)}, "
        f"{network.parameters:,} parameters"
    )
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold")
    boxes: list[tuple[str, str, Shape, str]] = [
        ("image", "0.75", network.shape_in, ""),
        *(
            (
                part.name if part.repeats == 1 else f"{part.name} ({part.repeats})",
                KINDS[part.kind][1],
                part.shape_out,
                f"{_short(part.parameters)} par.",
            )
            for part in network.parts
        ),
        ("depth", "0.75", network.shape_out, ""),
    ]
    operations = _operations(network)
    right = 0.0
    for column, (name, colour, shape, count) in enumerate(boxes):
        width, height = _extent(shape, network.shape_in[0])
        _box(axis, column, width, height, colour)
        if column:
            _arrow(axis, right, column - width / 2, operations[column - 1])
        right = column + width / 2
        for line, (text, weight) in enumerate(
            ((name, "bold"), (_size(shape), "normal"), (count, "normal"))
        ):
            axis.text(
                column, -0.62 - 0.17 * line, text, ha="center", va="center",
                fontsize=8, fontweight=weight,
            )  # fmt: skip


def _box(axis: Any, x: float, width: float, height: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    corner = (x - width / 2, -height / 2)
    axis.add_patch(
        Rectangle(corner, width, height, facecolor=colour, edgecolor="0.2", lw=0.8)
    )


def _arrow(axis: Any, start: float, end: float, text: str) -> None:
    look = {"arrowstyle": "-|>", "color": "0.3", "lw": 0.8, "shrinkA": 1, "shrinkB": 1}
    axis.annotate("", (end, 0), (start, 0), arrowprops=look)
    axis.text(
        (start + end) / 2, 0.07, text, ha="center", va="bottom", fontsize=7, color="0.3"
    )


def _extent(shape: Shape, image_height: int) -> tuple[float, float]:
    """Width and height of a box; the box of a vector is thin."""
    if len(shape) == 1:
        return 0.12, 1.0
    channels = shape[2] if len(shape) == 3 else 1
    return 0.1 + 0.05 * math.log2(max(channels, 1)), max(
        0.12, math.sqrt(shape[0] / image_height)
    )


def _operations(network: Network) -> list[str]:
    """The operations without parameters between consecutive boxes."""
    outs = [network.shape_in, *(part.shape_out for part in network.parts)]
    ins = [*(part.shape_in for part in network.parts), network.shape_out]
    return [_operation(a, b) for a, b in zip(outs, ins, strict=True)]


def _operation(before: Shape, after: Shape) -> str:
    """The operation between two shapes; "" if they are equal."""
    if before == after:
        return ""
    if _flat(after) and not _flat(before):
        return "flat" if math.prod(before) == math.prod(after) else "pool,\nflat"
    if _flat(before):
        return "reshape"
    (height, width), (rows, columns) = before[:2], after[:2]
    if max(height - rows, width - columns) <= 1 < height - 1:
        return "cut"
    return f"pool\n{rows}x{columns}"


def _flat(shape: Shape) -> bool:
    return len(shape) == 1


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _short(count: int) -> str:
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return str(count)
