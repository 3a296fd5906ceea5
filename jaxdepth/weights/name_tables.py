"""Name tables: which array of a foreign checkpoint is which array of our networks.

Our arrays are named by path, as in `params/encoder/conv_init/kernel`. A table of name
patterns is expanded to one `Entry` per array; conversions in both directions read the
entries. Mismatches between a file and a table are collected and reported.
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


# Kind -> (foreign array to ours, ours to foreign).
TRANSFORMS: dict[str, tuple[Transform, Transform]] = {
    "same": (_same, _same),
    # PyTorch's OIHW to HWIO.
    "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    "dense": (lambda x: x.T, lambda x: x.T),
    # (features, 2, 2) to (2, 2, features): biases per phase of an up-convolution.
    "phases": (lambda x: x.transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)),
}
_RANK = {"conv": 4, "dense": 2, "phases": 3}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One foreign array and the array of ours that it belongs to.

    Attributes:
      foreign: name of the foreign array.
      path: path of our array.
      kind: key of `TRANSFORMS`.
      phase: (row, column) if the foreign array is one output phase of an
        up-convolution: a part of our 5x5 kernel or of our (2, 2, features) bias.
    """

    foreign: str
    path: str
    kind: str = "same"
    phase: tuple[int, int] | None = None

    def view(self, array: np.ndarray) -> np.ndarray:
        """The part of our array that the foreign array holds, as a view."""
        if self.phase is None:
            return array
        row, column = self.phase
        return array[row, column] if array.ndim == 3 else array[row::2, column::2]


# Arrays per kind of layer: PyTorch's name, our collection and name, kind of transform.
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

# torchvision's ResNet: patterns of its layer name and of our path, kind of layer. {s}
# is the stage and {b} the block, both from 1; {a} is the block from 0.
_RESNET_STEM = (("conv1", "conv_init", "conv"), ("bn1", "bn_init", "norm"))
_RESNET_BLOCK = tuple(
    (f"layer{{s}}.{{a}}.{layer}{k}", f"stage{{s}}_block{{b}}/{layer}{k}", kind)
    for k in (1, 2, 3)
    for layer, kind in (("conv", "conv"), ("bn", "norm"))
)
_RESNET_FIRST = (
    ("layer{s}.{a}.downsample.0", "stage{s}_block{b}/conv_proj", "conv"),
    ("layer{s}.{a}.downsample.1", "stage{s}_block{b}/bn_proj", "norm"),
)

# Decoder and head in PyTorch: our paths, with dots for slashes, because no published
# PyTorch network has these layers. As modules: `decoder.conv_in` is a 1x1 convolution,
# `up1` to `up4` hold batch normalisations, a 3x3 `conv` and the 5x5 kernels of two
# up-convolutions, `head` is a 3x3 convolution to one channel. An up-convolution with
# padding_side "bottom_right" is, in PyTorch,
#
#     u = torch.zeros(b, c, 2 * h, 2 * w);  u[:, :, ::2, ::2] = x
#     y = F.conv2d(u, weight, padding=2) + bias.repeat(1, h, w)
#
# With "top_left", y[2i + 1] is what y[2i - 1] is above, in rows and in columns. Biases
# exist in layouts that have them.
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
    for foreign, path, kind in layers:
        for foreign_array, collection, array, transform in _TORCH_LAYERS[kind]:
            yield Entry(
                f"{foreign}.{foreign_array}",
                f"{collection}/{prefix}{path}/{array}",
                transform,
            )


def resnet(
    stage_sizes: Sequence[int] = (3, 4, 6, 3), *, bias: bool = False
) -> list[Entry]:
    """The table of torchvision's ResNet and our encoder, without the classifier.

    Args:
      stage_sizes: blocks per stage.
      bias: include a bias of the first convolution, which torchvision's lacks.
    """
    layers = list(_RESNET_STEM)
    if bias:
        layers.append(("conv1", "conv_init", "bias"))
    for stage, blocks in enumerate(stage_sizes, start=1):
        for block in range(blocks):
            names = {"s": stage, "a": block, "b": block + 1}
            patterns = _RESNET_BLOCK + (_RESNET_FIRST if block == 0 else ())
            layers += [
                (foreign.format(**names), path.format(**names), kind)
                for foreign, path, kind in patterns
            ]
    return list(_expand(layers, "encoder/"))


def classifier() -> list[Entry]:
    """The table of torchvision's fully connected layer.

    Our networks do not use it; converted files keep it for the conversion back.
    """
    return list(_expand([("fc", "fc", "dense")], ""))


def decoder(ups: int = 4, *, bias: bool = False) -> list[Entry]:
    """The table of decoder and head of `upproj` in PyTorch.

    Args:
      ups: number of up-projections.
      bias: include biases of the convolutions before a batch normalisation.
    """
    layers = list(_TORCH_ENDS + (_TORCH_BIASES if bias else ()))
    for n in range(1, ups + 1):
        layers += [
            (foreign.format(n=n), path.format(n=n), kind)
            for foreign, path, kind in _TORCH_UP + (_TORCH_UP_BIASES if bias else ())
        ]
    return list(_expand(layers, ""))


# The published network (FCRN of Laina et al. 2016, TensorFlow): arrays per kind of
# layer; below, layer names of its dictionary, our paths and kinds of layer. Its kernels
# are HWIO, like ours.
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
# The output phase, (row, column), of each of the four small convolutions.
_FCRN_UP_SIZES = ("2x", "4x", "8x", "16x")
_FCRN_PHASES = {"A": (0, 0), "B": (1, 0), "C": (0, 1), "D": (1, 1)}


def fcrn(stage_sizes: Sequence[int] = (3, 4, 6, 3)) -> list[Entry]:
    """The table of the published network, as `layer/array`, and our `upproj`."""
    layers = list(_FCRN_ENDS)
    for stage, blocks in enumerate(stage_sizes, start=1):
        names = {"s": stage + 1, "t": stage}
        layers += _filled(_FCRN_FIRST, names)
        for block in range(blocks):
            for j, k in enumerate("abc", start=1):
                names |= {"x": "abcdefgh"[block], "b": block + 1, "j": j, "k": k}
                layers += _filled(_FCRN_BLOCK, names)
    for n, size in enumerate(_FCRN_UP_SIZES, start=1):
        layers += _filled(_FCRN_UP, {"id": size, "n": n})
    entries = [
        Entry(f"{foreign}/{array}", f"{collection}/{path}/{name}")
        for foreign, path, kinds in layers
        for kind in kinds
        for array, collection, name in _FCRN_LAYERS[kind]
    ]
    entries += _fcrn_phases()
    entries.append(Entry("ConvPred/weights", "params/head/conv/kernel"))
    entries.append(Entry("ConvPred/biases", "params/head/bias"))
    return entries


def _filled(
    patterns: Iterable[tuple[str, str, tuple[str, ...]]], names: Mapping[str, object]
) -> list[tuple[str, str, tuple[str, ...]]]:
    """The patterns with names filled in."""
    return [
        (foreign.format(**names), path.format(**names), kinds)
        for foreign, path, kinds in patterns
    ]


def _fcrn_phases() -> Iterator[Entry]:
    """The four small convolutions of every up-convolution."""
    for n, size in enumerate(_FCRN_UP_SIZES, start=1):
        for branch, name in (("br1", "up_main"), ("br2", "up_side")):
            for letter, phase in _FCRN_PHASES.items():
                layer = f"layer{size}_{branch}_Conv{letter}"
                path = f"params/decoder/up{n}/{name}"
                yield Entry(f"{layer}/weights", f"{path}/kernel", phase=phase)
                yield Entry(f"{layer}/biases", f"{path}/bias", phase=phase)


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """Differences between arrays and a table, in names and shapes.

    Attributes:
      missing: foreign names that the arrays lack.
      unexpected: foreign names that the table lacks.
      misshapen: foreign names with the actual and the expected shape.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def lines(self) -> list[str]:
        """One line per difference."""
        return (
            [f"missing     {name}" for name in self.missing]
            + [f"unexpected  {name}" for name in self.unexpected]
            + [f"misshapen   {name}" for name in self.misshapen]
        )

    def summary(self) -> str:
        """One line with the number of differences of each kind and the first ones."""
        parts = []
        for word in ("missing", "unexpected", "misshapen"):
            names = getattr(self, word)
            if names:
                more = ", ..." if len(names) > 2 else ""
                parts.append(f"{len(names)} {word} ({', '.join(names[:2])}{more})")
        return "; ".join(parts)


def compare(
    entries: Iterable[Entry],
    foreign: Arrays,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
) -> Mismatch:
    """The differences between foreign arrays and the entries of a table.

    Args:
      entries: one per expected foreign array.
      foreign: foreign arrays by name.
      shapes: of our arrays, by path.
      ignored: True for foreign names that may exist and are not used.
    """
    entries = list(entries)
    known = {entry.foreign for entry in entries}
    misshapen = []
    for entry in entries:
        if entry.foreign not in foreign:
            continue
        shape = foreign[entry.foreign].shape
        expected = _foreign_shape(entry, shapes[entry.path])
        if shape != expected:
            misshapen.append(f"{entry.foreign} {shape}, expected {expected}")
    return Mismatch(
        missing=tuple(e.foreign for e in entries if e.foreign not in foreign),
        unexpected=tuple(
            sorted(n for n in foreign if n not in known and not ignored(n))
        ),
        misshapen=tuple(misshapen),
    )


def _foreign_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the foreign array of an entry, from the shape of ours."""
    return TRANSFORMS[entry.kind][1](entry.view(np.empty(shape, np.uint8))).shape


def as_weights(name: str, array: np.ndarray, *, variance: bool) -> np.ndarray:
    """Convert an array to float32 and check its values.

    Raises: UserError if it is not of floats, not finite in float32, or a variance with
      values below zero.
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


def is_variance(path: str) -> bool:
    """Whether the path is that of a running variance."""
    return path.startswith("batch_stats/") and path.endswith("/var")


def import_arrays(
    entries: Iterable[Entry], foreign: Arrays, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Our arrays by path, float32, from foreign arrays without a mismatch.

    Raises: UserError as `as_weights`.
    """
    arrays: dict[str, np.ndarray] = {}
    for entry in entries:
        array = TRANSFORMS[entry.kind][0](foreign[entry.foreign])
        array = as_weights(entry.foreign, array, variance=is_variance(entry.path))
        if entry.path not in arrays:
            arrays[entry.path] = np.empty(shapes[entry.path], np.float32)
        entry.view(arrays[entry.path])[...] = array
    return arrays


def export_arrays(entries: Iterable[Entry], arrays: Arrays) -> dict[str, np.ndarray]:
    """The inverse of `import_arrays`: arrays with foreign names and shapes, float32.

    Raises: UserError if an array has another number of axes than its kind.
    """
    foreign = {}
    for entry in entries:
        axes = arrays[entry.path].ndim
        expected = _RANK.get(entry.kind, axes)
        if axes != expected:
            raise UserError(f"{entry.path} has {axes} axes, expected {expected}")
        view = entry.view(np.asarray(arrays[entry.path], np.float32))
        transformed = TRANSFORMS[entry.kind][1](view)
        foreign[entry.foreign] = np.ascontiguousarray(transformed)
    return foreign


@dataclasses.dataclass(frozen=True)
class Converted:
    """The result of a conversion: arrays, or the reasons why there are none.

    Attributes:
      arrays: by our paths; empty if the conversion failed.
      mismatch: wrong names and shapes.
      invalid: message about invalid values, if names and shapes are right.
    """

    arrays: dict[str, np.ndarray]
    mismatch: Mismatch
    invalid: str | None = None

    def checked(self, where: str, what: str) -> dict[str, np.ndarray]:
        """The arrays if the conversion succeeded.

        Args:
          where: the file, for messages.
          what: the expected network, for messages.

        Raises: UserError with a summary of what is wrong; all mismatches are logged.
        """
        if self.mismatch:
            for line in self.mismatch.lines():
                logger.info("%s", line)
            raise UserError(f"{where} is not {what}: {self.mismatch.summary()}")
        if self.invalid:
            raise UserError(f"{where}: {self.invalid}")
        return self.arrays


def convert(
    entries: Iterable[Entry],
    foreign: Arrays,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
) -> Converted:
    """Compare foreign arrays with a table and convert them if nothing differs.

    Args: as in `compare`.
    """
    entries = list(entries)
    mismatch = compare(entries, foreign, shapes, ignored=ignored)
    if mismatch:
        return Converted({}, mismatch)
    try:
        return Converted(import_arrays(entries, foreign, shapes), mismatch)
    except UserError as error:
        return Converted({}, mismatch, str(error))


def log_skipped(where: object, names: Sequence[str], why: str) -> None:
    """Log which entries of a foreign file are skipped, and why."""
    if names:
        more = ", ..." if len(names) > 3 else ""
        logger.info("%s: skipped, %s: %s%s", where, why, ", ".join(names[:3]), more)
