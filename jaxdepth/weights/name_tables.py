"""Which foreign array is which of ours: tables of name patterns, and what a file lacks.

An array of ours is named by its path, `params/encoder/conv_init/kernel`. A table is
expanded to one `Entry` per array; conversion in either direction reads the entries.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxdepth.runtime.errors import UserError

logger = logging.getLogger(__name__)
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
    # (features, 2, 2) to (2, 2, features): a bias per phase of an up-convolution.
    "phases": (lambda x: x.transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)),
}
_RANK = {"conv": 4, "dense": 2, "phases": 3}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One foreign array: its name, our path, and the kind of change.

    `phase` (row, column) is of a part: the taps of our 5x5 kernel, or the entry of our
    (2, 2, features) bias, that make up one output phase of an up-convolution.
    """

    theirs: str
    ours: str
    kind: str = "same"
    phase: tuple[int, int] | None = None

    def part(self, ours: np.ndarray) -> np.ndarray:
        """What of our array this is: a view."""
        if self.phase is None:
            return ours
        row, column = self.phase
        return ours[row, column] if ours.ndim == 3 else ours[row::2, column::2]


# PyTorch's names of a layer and ours, per kind of layer.
_TORCH_LAYERS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "conv": (("weight", "params", "kernel", "conv"),),
    "bias": (("bias", "params", "bias", "same"),),
    "phases": (("bias", "params", "bias", "phases"),),
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

# What stands behind the encoder in PyTorch: our own names, as no other network has
# them, written with dots. As modules: `decoder.conv_in` is a 1x1 convolution, `up1` to
# `up4` hold batch normalisations, a 3x3 `conv` and the 5x5 kernels of two
# up-convolutions, `head` is a 3x3 convolution to one channel. An up-convolution with
# padding_side "bottom_right" is, in PyTorch's words,
#
#     u = torch.zeros(b, c, 2 * h, 2 * w);  u[:, :, ::2, ::2] = x
#     y = F.conv2d(u, weight, padding=2) + bias.repeat(1, h, w)
#
# ("top_left": y[2i + 1] is what y[2i - 1] is there, in rows and in columns). Biases are
# there in layouts that have them.
_TORCH_ENDS = (
    ("decoder.conv_in", "decoder/conv_in", "conv"),
    ("decoder.bn_in", "decoder/bn_in", "norm"),
    ("head", "head/conv", "conv"),
    ("head", "head", "bias"),
)
_TORCH_UP = (
    ("decoder.up{n}.up_main", "decoder/up{n}/up_main", "conv"),
    ("decoder.up{n}.bn_main", "decoder/up{n}/bn_main", "norm"),
    ("decoder.up{n}.conv", "decoder/up{n}/conv", "conv"),
    ("decoder.up{n}.bn", "decoder/up{n}/bn", "norm"),
    ("decoder.up{n}.up_side", "decoder/up{n}/up_side", "conv"),
    ("decoder.up{n}.bn_side", "decoder/up{n}/bn_side", "norm"),
)
_TORCH_BIASES = (("decoder.conv_in", "decoder/conv_in", "bias"),)
_TORCH_UP_BIASES = (
    ("decoder.up{n}.up_main", "decoder/up{n}/up_main", "phases"),
    ("decoder.up{n}.conv", "decoder/up{n}/conv", "bias"),
    ("decoder.up{n}.up_side", "decoder/up{n}/up_side", "phases"),
)


def _expand(layers: Iterable[tuple[str, str, str]], prefix: str) -> Iterator[Entry]:
    for theirs, ours, kind in layers:
        for their_array, collection, our_array, transform in _TORCH_LAYERS[kind]:
            yield Entry(
                f"{theirs}.{their_array}",
                f"{collection}/{prefix}{ours}/{our_array}",
                transform,
            )


def resnet(
    stage_sizes: Sequence[int] = (3, 4, 6, 3), *, bias: bool = False
) -> list[Entry]:
    """torchvision's ResNet and our encoder; `classifier()` is its last layer.

    `bias`: of the first convolution, which torchvision's has not.
    """
    layers = list(_RESNET_STEM)
    if bias:
        layers.append(("conv1", "conv_init", "bias"))
    for stage, blocks in enumerate(stage_sizes, start=1):
        for block in range(blocks):
            names = {"s": stage, "a": block, "b": block + 1}
            patterns = _RESNET_BLOCK + (_RESNET_FIRST if block == 0 else ())
            layers += [
                (theirs.format(**names), ours.format(**names), kind)
                for theirs, ours, kind in patterns
            ]
    return list(_expand(layers, "encoder/"))


def classifier() -> list[Entry]:
    """The fully connected layer of torchvision's ResNet, which we keep unused."""
    return list(_expand([("fc", "fc", "dense")], ""))


def decoder(ups: int = 4, *, bias: bool = False) -> list[Entry]:
    """Decoder and head of `upproj` in PyTorch, under our names, and ours.

    Args:
      ups: how many up-projections there are.
      bias: of the convolutions before a batch normalisation.
    """
    layers = list(_TORCH_ENDS + (_TORCH_BIASES if bias else ()))
    for n in range(1, ups + 1):
        layers += [
            (theirs.format(n=n), ours.format(n=n), kind)
            for theirs, ours, kind in _TORCH_UP + (_TORCH_UP_BIASES if bias else ())
        ]
    return list(_expand(layers, ""))


# The published network: layer names of its dictionary (FCRN of Laina et al. 2016, the
# TensorFlow code), ours, kind. Its kernels are HWIO already.
_FCRN_LAYERS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "conv": (("weights", "params", "kernel"),),
    "bias": (("biases", "params", "bias"),),
    "norm": (
        ("scale", "params", "scale"),
        ("offset", "params", "bias"),
        ("mean", "batch_stats", "mean"),
        ("variance", "batch_stats", "var"),
    ),
}
_FCRN_ENDS = (
    ("conv1", "encoder/conv_init", ("conv", "bias")),
    ("bn_conv1", "encoder/bn_init", ("norm",)),
    ("layer1", "decoder/conv_in", ("conv", "bias")),
    ("layer1_BN", "decoder/bn_in", ("norm",)),
)
_FCRN_BLOCK = (
    ("res{s}{x}_branch2{k}", "encoder/stage{t}_block{b}/conv{j}", ("conv",)),
    ("bn{s}{x}_branch2{k}", "encoder/stage{t}_block{b}/bn{j}", ("norm",)),
)
_FCRN_FIRST = (
    ("res{s}a_branch1", "encoder/stage{t}_block1/conv_proj", ("conv",)),
    ("bn{s}a_branch1", "encoder/stage{t}_block1/bn_proj", ("norm",)),
)
_FCRN_UP = (
    ("layer{id}_br1_BN", "decoder/up{n}/bn_main", ("norm",)),
    ("layer{id}_Conv", "decoder/up{n}/conv", ("conv", "bias")),
    ("layer{id}_BN", "decoder/up{n}/bn", ("norm",)),
    ("layer{id}_br2_BN", "decoder/up{n}/bn_side", ("norm",)),
)
# Which output phase each of its four small convolutions makes: (row, column).
_FCRN_PHASES = {"A": (0, 0), "B": (1, 0), "C": (0, 1), "D": (1, 1)}


def fcrn(stage_sizes: Sequence[int] = (3, 4, 6, 3)) -> list[Entry]:
    """The published network's dictionary, as `layer/array`, and our `upproj`."""
    layers = list(_FCRN_ENDS)
    for stage, blocks in enumerate(stage_sizes, start=1):
        names = {"s": stage + 1, "t": stage}
        layers += [(a.format(**names), b.format(**names), k) for a, b, k in _FCRN_FIRST]
        for block in range(blocks):
            for j, k in enumerate("abc", start=1):
                names |= {"x": "abcdefgh"[block], "b": block + 1, "j": j, "k": k}
                layers += [
                    (a.format(**names), b.format(**names), kinds)
                    for a, b, kinds in _FCRN_BLOCK
                ]
    ups = [("2x", 1), ("4x", 2), ("8x", 3), ("16x", 4)]
    for id_, n in ups:
        layers += [(a.format(id=id_), b.format(n=n), k) for a, b, k in _FCRN_UP]
    entries = [
        Entry(f"{theirs}/{array}", f"{collection}/{ours}/{name}")
        for theirs, ours, kinds in layers
        for kind in kinds
        for array, collection, name in _FCRN_LAYERS[kind]
    ]
    for id_, n in ups:
        for branch, ours in (("br1", "up_main"), ("br2", "up_side")):
            for letter, phase in _FCRN_PHASES.items():
                layer = f"layer{id_}_{branch}_Conv{letter}"
                path = f"params/decoder/up{n}/{ours}"
                entries.append(Entry(f"{layer}/weights", f"{path}/kernel", phase=phase))
                entries.append(Entry(f"{layer}/biases", f"{path}/bias", phase=phase))
    entries.append(Entry("ConvPred/weights", "params/head/conv/kernel"))
    entries.append(Entry("ConvPred/biases", "params/head/bias"))
    return entries


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
        array = theirs[entry.theirs]
        wanted = entry.part(np.empty(shapes[entry.ours], np.uint8)).shape
        rank = _RANK.get(entry.kind, array.ndim)
        got = (
            TRANSFORMS[entry.kind][0](array).shape
            if array.ndim == rank
            else array.shape
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


def as_weights(name: str, array: np.ndarray, *, variance: bool) -> np.ndarray:
    """An array as a network may take it: float32.

    UserError where it is no float, not finite in float32, or a variance below zero.
    """
    if array.dtype.kind != "f":
        raise UserError(f"{name} holds {array.dtype}, not weights")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise UserError(f"{name} holds values that are not finite")
    if variance and (array < 0).any():
        raise UserError(f"{name} holds variances below zero")
    return array


def is_variance(ours: str) -> bool:
    """Whether our array of that path is a running variance."""
    return ours.startswith("batch_stats/") and ours.endswith("/var")


def to_ours(
    entries: Iterable[Entry], theirs: Arrays, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Our arrays by path, float32, of foreign ones that `compare` found right.

    Raises UserError where `as_weights` does.
    """
    found: dict[str, np.ndarray] = {}
    for entry in entries:
        array = TRANSFORMS[entry.kind][0](theirs[entry.theirs])
        array = as_weights(entry.theirs, array, variance=is_variance(entry.ours))
        if entry.ours not in found:
            found[entry.ours] = np.empty(shapes[entry.ours], np.float32)
        entry.part(found[entry.ours])[...] = array
    return found


def to_theirs(entries: Iterable[Entry], ours: Arrays) -> dict[str, np.ndarray]:
    """The way back: foreign names and shapes, float32.

    Raises UserError where one of ours has not as many axes as its kind.
    """
    found = {}
    for entry in entries:
        axes = ours[entry.ours].ndim
        if axes != _RANK.get(entry.kind, axes):
            raise UserError(f"{entry.ours} has {axes} axes, not those of its kind")
        part = entry.part(np.asarray(ours[entry.ours], np.float32))
        found[entry.theirs] = np.ascontiguousarray(TRANSFORMS[entry.kind][1](part))
    return found


@dataclasses.dataclass(frozen=True)
class Converted:
    """Our arrays of a foreign file, or what keeps them from being made.

    Attributes:
      wrong: what is wrong with the values of arrays that have their names and shapes.
    """

    arrays: dict[str, np.ndarray]
    mismatch: Mismatch
    wrong: str | None = None

    def checked(self, where: str, what: str) -> dict[str, np.ndarray]:
        """The arrays; else everything that is wrong is said, and UserError raised.

        Args:
          where: the file.
          what: the network that it should be of.
        """
        if self.mismatch:
            for line in self.mismatch.lines():
                logger.info("%s", line)
            raise UserError(f"{where} is not {what}: {self.mismatch.summary()}")
        if self.wrong:
            raise UserError(f"{where}: {self.wrong}")
        return self.arrays


def convert(
    entries: Iterable[Entry],
    theirs: Arrays,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
) -> Converted:
    """`compare`, then `to_ours` where nothing differs."""
    entries = list(entries)
    mismatch = compare(entries, theirs, shapes, ignored=ignored)
    if mismatch:
        return Converted({}, mismatch)
    try:
        return Converted(to_ours(entries, theirs, shapes), mismatch)
    except UserError as error:
        return Converted({}, mismatch, str(error))


def note_left_out(where: object, names: Sequence[str], why: str) -> None:
    """Say which arrays of a foreign file are not taken."""
    if names:
        more = ", ..." if len(names) > 3 else ""
        logger.info("%s: left out, as %s: %s%s", where, why, ", ".join(names[:3]), more)
