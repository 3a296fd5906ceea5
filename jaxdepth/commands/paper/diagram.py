"""Networks as rows of boxes: shapes and counts are read from the modules themselves."""

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
# What a box is called and coloured by; the first class found in a part is its kind.
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
    """One box: modules of one name and number, one after another.

    Attributes:
      name: as the parameters have it, `stage1` for `stage1_block1` and its like.
      kind: key of `KINDS`.
      repeats: modules in it.
      shape_in, shape_out: of one image, without the batch: (h, w, c), (h, w) or (c,).
      parameters: their number.
    """

    name: str
    kind: str
    repeats: int
    shape_in: Shape
    shape_out: Shape
    parameters: int


@dataclasses.dataclass(frozen=True)
class Network:
    """A network as it is drawn.

    Attributes:
      arch: its name.
      shape_in, shape_out: of one image and of its depth.
      parts: in the order they are computed.
      parameters: of all parts.
    """

    arch: str
    shape_in: Shape
    shape_out: Shape
    parts: tuple[Part, ...]
    parameters: int


def trace(arch: str, image_size: tuple[int, int], **options: Any) -> Network:
    """What the modules of a network do to an image of (height, width).

    Nothing is computed: the network is evaluated on shapes alone. `options` are those
    of `create_model`. UserError where the network does not take that size.
    """
    model = create_model(arch, image_size=image_size, **options)
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    calls: list[tuple[tuple[str, ...], str, Shape, Shape]] = []

    def note(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and hasattr(out, "shape"):
            kind = type(context.module).__name__
            calls.append((context.module.path, kind, args[0].shape[1:], out.shape[1:]))
        return out

    with nn.intercept_methods(note):
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
    params = variables["params"]
    whole = next(call for call in calls if call[0] == ())
    return Network(
        arch, whole[2], whole[3], tuple(_parts(calls, params)), _count(params)
    )


def _parts(calls: Sequence[tuple], params: Any) -> list[Part]:
    """Modules of a path's second level joined where they share name and number."""
    inner: dict[tuple[str, ...], list[tuple]] = {}
    for call in calls:
        container = len(call[0]) == 1 and call[0] != ("head",) and call[1] not in KINDS
        if call[0] and not container:
            inner.setdefault(_part_name(call[0]), []).append(call)
    found = []
    for name, group in inner.items():
        top = [call for call in group if len(call[0]) == min(len(c[0]) for c in group)]
        names = {call[1] for call in group}
        counted = {call[0] for call in top}
        found.append(
            Part(
                name[-1],
                next(kind for kind in KINDS if kind in names),
                sum(call[1] == "Bottleneck" for call in top) or 1,
                # Calls are noted when they return: first what came first.
                top[0][2],
                top[-1][3],
                sum(_count(_at(params, path)) for path in counted),
            )
        )
    return found


def _part_name(path: tuple[str, ...]) -> tuple[str, ...]:
    """What a module is drawn in: a head, a layer, or a child of encoder or decoder."""
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
    """A figure with a row of boxes for each network.

    A box is as high as the square root of its map's height and as wide as the
    logarithm of its channels; between boxes stands what no parameter takes part in:
    pooling, flattening, cutting.
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
    between = _between(network)
    right = 0.0
    for place, (name, colour, shape, count) in enumerate(boxes):
        width, height = _extent(shape, network.shape_in[0])
        _box(axis, place, width, height, colour)
        if place:
            _arrow(axis, right, place - width / 2, between[place - 1])
        right = place + width / 2
        for line, (text, weight) in enumerate(
            ((name, "bold"), (_size(shape), "normal"), (count, "normal"))
        ):
            axis.text(
                place, -0.62 - 0.17 * line, text, ha="center", va="center",
                fontsize=8, fontweight=weight,
            )  # fmt: skip


def _box(axis: Any, place: float, width: float, height: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    corner = (place - width / 2, -height / 2)
    axis.add_patch(
        Rectangle(corner, width, height, facecolor=colour, edgecolor="0.2", lw=0.8)
    )


def _arrow(axis: Any, start: float, end: float, text: str) -> None:
    look = {"arrowstyle": "-|>", "color": "0.3", "lw": 0.8, "shrinkA": 1, "shrinkB": 1}
    axis.annotate("", (end, 0), (start, 0), arrowprops=look)
    axis.text(
        (start + end) / 2, 0.07, text, ha="center", va="bottom", fontsize=7, color="0.3"
    )


def _extent(shape: Shape, whole: int) -> tuple[float, float]:
    """Width and height of a box; a vector is a thin one."""
    if len(shape) == 1:
        return 0.12, 1.0
    channels = shape[2] if len(shape) == 3 else 1
    return 0.1 + 0.05 * math.log2(max(channels, 1)), max(
        0.12, math.sqrt(shape[0] / whole)
    )


def _between(network: Network) -> list[str]:
    """What happens from each box's output to the next one's input."""
    outs = [network.shape_in, *(part.shape_out for part in network.parts)]
    ins = [*(part.shape_in for part in network.parts), network.shape_out]
    return [_change(a, b) for a, b in zip(outs, ins, strict=True)]


def _change(before: Shape, after: Shape) -> str:
    """In words, "" where nothing happens."""
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
