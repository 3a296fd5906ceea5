"""Which foreign array is which of ours: tables of name patterns, and what a file lacks.

An array of ours is named by its path, `params/encoder/conv_init/kernel`. A table is
expanded to one `Entry` per array; conversion in either direction reads the entries.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxdepth.errors import UserError

Arrays = Mapping[str, np.ndarray]
Transform = Callable[[np.ndarray], np.ndarray]


def _same(x: np.ndarray) -> np.ndarray:
    return x


# Kind -> (theirs to ours, ours to theirs).
TRANSFORMS: dict[str, tuple[Transform, Transform]] = {
    "same": (_same, _same),
    # PyTorch's OIHW to HWIO.
    "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    "dense": (lambda x: x.T, lambda x: x.T),
}
_RANK = {"conv": 4, "dense": 2}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array: its foreign name, its path with us, and the kind of change."""

    theirs: str
    ours: str
    kind: str = "same"


# PyTorch's names of a layer and ours, per kind of layer.
_TORCH_LAYERS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "conv": (("weight", "params", "kernel", "conv"),),
    "bias": (("bias", "params", "bias", "same"),),
    "dense": (
        ("weight", "params", "kernel", "dense"),
        ("bias", "params", "bias", "same"),
    ),
    "norm": (
        ("weight", "params", "scale", "same"),
        ("bias", "params", "bias", "same"),
        ("running_mean", "batch_stats", "mean", "same"),
        ("running_var", "batch_stats", "var", "same"),
    ),
}

# torchvision's ResNet: pattern of the layer's name, ours, kind of layer. {s} counts
# stages and {b} blocks, theirs from 0 (as {a}), ours from 1.
_RESNET_STEM = (("conv1", "conv_init", "conv"), ("bn1", "bn_init", "norm"))
_RESNET_BLOCK = tuple(
    (f"layer{{s}}.{{a}}.{theirs}{k}", f"stage{{s}}_block{{b}}/{theirs}{k}", kind)
    for k in (1, 2, 3)
    for theirs, kind in (("conv", "conv"), ("bn", "norm"))
)
_RESNET_FIRST = (
    ("layer{s}.{a}.downsample.0", "stage{s}_block{b}/conv_proj", "conv"),
    ("layer{s}.{a}.downsample.1", "stage{s}_block{b}/bn_proj", "norm"),
)


def _expand(layers: Iterable[tuple[str, str, str]], prefix: str) -> Iterator[Entry]:
    for theirs, ours, kind in layers:
        for their_array, collection, our_array, transform in _TORCH_LAYERS[kind]:
            yield Entry(
                f"{theirs}.{their_array}",
                f"{collection}/{prefix}{ours}/{our_array}",
                transform,
            )


def resnet(stage_sizes: Sequence[int] = (3, 4, 6, 3)) -> list[Entry]:
    """torchvision's ResNet and our encoder; `classifier()` is its last layer."""
    layers = list(_RESNET_STEM)
    for stage, blocks in enumerate(stage_sizes, start=1):
        for block in range(blocks):
            patterns = _RESNET_BLOCK + (_RESNET_FIRST if block == 0 else ())
            layers += [
                tuple(p.format(s=stage, a=block, b=block + 1) for p in pattern)
                for pattern in patterns
            ]  # pyright: ignore[reportAssignmentType]
    return list(_expand(layers, "encoder/"))


def classifier() -> list[Entry]:
    """The fully connected layer of torchvision's ResNet, which we keep unused."""
    return list(_expand([("fc", "fc", "dense")], ""))


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """What keeps arrays from being those of a table: names and shapes."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def lines(self) -> list[str]:
        """Every single one, for a report."""
        return (
            [f"missing     {name}" for name in self.missing]
            + [f"unexpected  {name}" for name in self.unexpected]
            + [f"misshapen   {name}" for name in self.misshapen]
        )

    def summary(self) -> str:
        """One line: how many of each, and the first ones."""
        parts = []
        for word in ("missing", "unexpected", "misshapen"):
            names = getattr(self, word)
            if names:
                more = ", ..." if len(names) > 2 else ""
                parts.append(f"{len(names)} {word} ({', '.join(names[:2])}{more})")
        return "; ".join(parts)


def compare(
    entries: Iterable[Entry],
    theirs: Arrays,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
) -> Mismatch:
    """What differs between foreign arrays and the entries of a table.

    Args:
      shapes: of our arrays, by path.
      ignored: foreign names that may be there and mean nothing.
    """
    entries = list(entries)
    known = {entry.theirs for entry in entries}
    misshapen = []
    for entry in entries:
        if entry.theirs not in theirs:
            continue
        array, wanted = theirs[entry.theirs], shapes[entry.ours]
        rank = _RANK.get(entry.kind, array.ndim)
        got = (
            TRANSFORMS[entry.kind][0](array).shape if array.ndim == rank else array.shape
        )
        if array.ndim != rank or got != wanted:
            their_form = TRANSFORMS[entry.kind][1](np.empty(wanted, np.uint8)).shape
            misshapen.append(f"{entry.theirs} {array.shape}, expected {their_form}")
    return Mismatch(
        missing=tuple(e.theirs for e in entries if e.theirs not in theirs),
        unexpected=tuple(
            sorted(n for n in theirs if n not in known and not ignored(n))
        ),
        misshapen=tuple(misshapen),
    )


def to_ours(entries: Iterable[Entry], theirs: Arrays) -> dict[str, np.ndarray]:
    """Our arrays by path, float32, of foreign ones that `compare` found right.

    Raises UserError where a value is not finite.
    """
    found = {}
    for entry in entries:
        array = TRANSFORMS[entry.kind][0](theirs[entry.theirs]).astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{entry.theirs} holds values that are not finite")
        found[entry.ours] = np.ascontiguousarray(array)
    return found


def to_theirs(entries: Iterable[Entry], ours: Arrays) -> dict[str, np.ndarray]:
    """The way back: foreign names and shapes, float32."""
    return {
        entry.theirs: np.ascontiguousarray(
            TRANSFORMS[entry.kind][1](np.asarray(ours[entry.ours], np.float32))
        )
        for entry in entries
    }
