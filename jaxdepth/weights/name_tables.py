"""Name tables: which array of a foreign checkpoint is which array of our networks.

Our arrays are named by path, as in `params/encoder/conv_init/kernel`. A table of name
patterns is expanded to one `Entry` per array; conversions in both directions read the
entries. Mismatches between a file and a table are collected and reported.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.trees import flatten

logger = logging.getLogger(__name__)
# Lines in a report of mismatches; the rest is counted.
_MAX_LINES = 16
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
    """One foreign array and our array that it maps to.

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
_RESNET_STEM = (
    ("conv1", "encoder/conv_init", "conv"),
    ("bn1", "encoder/bn_init", "norm"),
)
_RESNET_BLOCK = tuple(
    (f"layer{{s}}.{{a}}.{layer}{k}", f"encoder/stage{{s}}_block{{b}}/{layer}{k}", kind)
    for k in (1, 2, 3)
    for layer, kind in (("conv", "conv"), ("bn", "norm"))
)
_RESNET_FIRST = (
    ("layer{s}.{a}.downsample.0", "encoder/stage{s}_block{b}/conv_proj", "conv"),
    ("layer{s}.{a}.downsample.1", "encoder/stage{s}_block{b}/bn_proj", "norm"),
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
# With "top_left", y[2i + 1] equals the y[2i - 1] above, in rows and in columns. The
# biases exist only in layouts with `up_bias`.
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


def _expand(
    layers: Iterable[tuple[str, str, str]],
    arrays: Mapping[str, tuple[tuple[str, str, str, str], ...]],
    separator: str,
    **fields: object,
) -> list[Entry]:
    """One entry per array of each layer.

    Args:
      layers: patterns of foreign name and our path, kind of layer.
      arrays: arrays per kind of layer.
      separator: between the foreign names of layer and array.
      **fields: values for the replacement fields of the patterns.
    """
    return [
        Entry(
            f"{foreign.format(**fields)}{separator}{foreign_array}",
            f"{collection}/{path.format(**fields)}/{array}",
            transform,
        )
        for foreign, path, kind in layers
        for foreign_array, collection, array, transform in arrays[kind]
    ]


_expand_torch = functools.partial(_expand, arrays=_TORCH_LAYERS, separator=".")


def resnet(
    stage_sizes: Sequence[int] = (3, 4, 6, 3), *, bias: bool = False
) -> list[Entry]:
    """The table of torchvision's ResNet and our encoder, without the classifier.

    Args:
      stage_sizes: blocks per stage.
      bias: include a bias of the first convolution, which torchvision's lacks.
    """
    entries = _expand_torch(_RESNET_STEM)
    if bias:
        entries += _expand_torch([("conv1", "encoder/conv_init", "bias")])
    for stage, blocks in enumerate(stage_sizes, start=1):
        for block in range(blocks):
            layers = _RESNET_BLOCK + (_RESNET_FIRST if block == 0 else ())
            entries += _expand_torch(layers, s=stage, a=block, b=block + 1)
    return entries


def classifier() -> list[Entry]:
    """The table of torchvision's fully connected layer.

    Our networks do not use it; converted files keep it for the conversion back.
    """
    return _expand_torch([("fc", "fc", "dense")])


def decoder(ups: int = 4, *, bias: bool = False) -> list[Entry]:
    """The table of decoder and head of `upproj` in PyTorch.

    Args:
      ups: number of up-projections.
      bias: include biases of the convolutions before a batch normalisation.
    """
    entries = _expand_torch(_TORCH_ENDS + (_TORCH_BIASES if bias else ()))
    layers = _TORCH_UP + (_TORCH_UP_BIASES if bias else ())
    for n in range(1, ups + 1):
        entries += _expand_torch(layers, n=n)
    return entries


# The published network (FCRN of Laina et al. 2016, TensorFlow): arrays per kind of
# layer; below, layer names of its dictionary, our paths and kinds of layer. Its kernels
# are HWIO, like ours.
_FCRN_KERNEL = ("weights", "params", "kernel", "same")
_FCRN_BIAS = ("biases", "params", "bias", "same")
_FCRN_LAYERS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "conv": (_FCRN_KERNEL,),
    "biased": (_FCRN_KERNEL, _FCRN_BIAS),
    "bias": (_FCRN_BIAS,),
    "norm": (
        ("scale", "params", "scale", "same"),
        ("offset", "params", "bias", "same"),
        ("mean", "batch_stats", "mean", "same"),
        ("variance", "batch_stats", "var", "same"),
    ),
}
_FCRN_ENDS = (
    ("conv1", "encoder/conv_init", "biased"),
    ("bn_conv1", "encoder/bn_init", "norm"),
    ("layer1", "decoder/conv_in", "biased"),
    ("layer1_BN", "decoder/bn_in", "norm"),
    ("ConvPred", "head/conv", "conv"),
    ("ConvPred", "head", "bias"),
)
_FCRN_BLOCK = (
    ("res{s}{x}_branch2{k}", "encoder/stage{t}_block{b}/conv{j}", "conv"),
    ("bn{s}{x}_branch2{k}", "encoder/stage{t}_block{b}/bn{j}", "norm"),
)
_FCRN_FIRST = (
    ("res{s}a_branch1", "encoder/stage{t}_block1/conv_proj", "conv"),
    ("bn{s}a_branch1", "encoder/stage{t}_block1/bn_proj", "norm"),
)
_FCRN_UP = (
    ("layer{id}_br1_BN", "decoder/up{n}/bn_main", "norm"),
    ("layer{id}_Conv", "decoder/up{n}/conv", "biased"),
    ("layer{id}_BN", "decoder/up{n}/bn", "norm"),
    ("layer{id}_br2_BN", "decoder/up{n}/bn_side", "norm"),
)
_FCRN_UP_SIZES = ("2x", "4x", "8x", "16x")
# The output phase, (row, column), of each of the four small convolutions.
_FCRN_PHASES = {"A": (0, 0), "B": (1, 0), "C": (0, 1), "D": (1, 1)}


def fcrn(stage_sizes: Sequence[int] = (3, 4, 6, 3)) -> list[Entry]:
    """The table of the published network, as `layer/array`, and our `upproj`."""

    def expand(layers: Iterable[tuple[str, str, str]], **fields: object) -> list[Entry]:
        return _expand(layers, _FCRN_LAYERS, "/", **fields)

    entries = expand(_FCRN_ENDS)
    for stage, blocks in enumerate(stage_sizes, start=1):
        names = {"s": stage + 1, "t": stage}
        entries += expand(_FCRN_FIRST, **names)
        for block in range(blocks):
            for j, k in enumerate("abc", start=1):
                x = "abcdefgh"[block]
                entries += expand(_FCRN_BLOCK, **names, x=x, b=block + 1, j=j, k=k)
    for n, size in enumerate(_FCRN_UP_SIZES, start=1):
        entries += expand(_FCRN_UP, id=size, n=n)
    return [*entries, *_fcrn_phases()]


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
        return any(vars(self).values())

    def lines(self) -> list[str]:
        """One line per difference; after the first ones, a line with their number."""
        lines = [
            f"{kind:11} {printable(name)}"
            for kind, names in vars(self).items()
            for name in names
        ]
        more = len(lines) - _MAX_LINES
        return lines[:_MAX_LINES] + ([f"... and {more} more"] if more > 0 else [])

    def summary(self) -> str:
        """One line with the number of differences of each kind and the first ones."""
        return "; ".join(
            f"{len(names)} {kind} ({listed(names, 2)})"
            for kind, names in vars(self).items()
            if names
        )


def compare(
    entries: Sequence[Entry],
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
    names = {entry.foreign for entry in entries}
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
        unexpected=tuple(sorted(n for n in foreign.keys() - names if not ignored(n))),
        misshapen=tuple(misshapen),
    )


def _foreign_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the foreign array of an entry, from the shape of ours."""
    return TRANSFORMS[entry.kind][1](entry.view(np.empty(shape, np.uint8))).shape


def as_weights(array: np.ndarray, path: str, *, name: str) -> np.ndarray:
    """Convert an array to float32 and check its values.

    Args:
      array: values of our array at `path`.
      path: running variances, `batch_stats/.../var`, must not be negative.
      name: name of the array in its file, for messages.

    Raises: UserError if it is not of floats, not finite in float32, or a variance with
      values below zero.
    """
    if array.dtype.kind != "f":
        raise UserError(f"{name} holds {array.dtype}: expected floating-point weights")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise UserError(f"{name} holds values that are not finite")
    is_variance = path.startswith("batch_stats/") and path.endswith("/var")
    if is_variance and (array < 0).any():
        raise UserError(f"{name} holds variances below zero")
    return array


def import_arrays(
    entries: Iterable[Entry], foreign: Arrays, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Our arrays by path, float32, from foreign arrays without a mismatch.

    Raises: UserError as `as_weights`.
    """
    arrays: dict[str, np.ndarray] = {}
    for entry in entries:
        array = TRANSFORMS[entry.kind][0](foreign[entry.foreign])
        array = as_weights(array, entry.path, name=entry.foreign)
        if entry.path not in arrays:
            arrays[entry.path] = np.empty(shapes[entry.path], np.float32)
        entry.view(arrays[entry.path])[...] = array
    return arrays


def export_arrays(entries: Iterable[Entry], arrays: Arrays) -> dict[str, np.ndarray]:
    """The inverse of `import_arrays`: arrays with foreign names and shapes, float32.

    Raises: UserError if the number of axes of an array does not fit its kind.
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
    """The result of a conversion: arrays, or the reason of the failure.

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

        Raises: UserError with a summary of what is wrong; the first mismatches are
          logged.
        """
        if self.mismatch:
            for line in self.mismatch.lines():
                logger.info("%s", line)
            raise UserError(f"{where} is not {what}: {self.mismatch.summary()}")
        if self.invalid:
            raise UserError(f"{where}: {self.invalid}")
        return self.arrays


def convert(
    entries: Sequence[Entry],
    foreign: Arrays,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
) -> Converted:
    """Compare foreign arrays with a table and convert them if nothing differs.

    Args: as in `compare`.
    """
    mismatch = compare(entries, foreign, shapes, ignored=ignored)
    if mismatch:
        return Converted({}, mismatch)
    try:
        return Converted(import_arrays(entries, foreign, shapes), mismatch)
    except UserError as error:
        return Converted({}, mismatch, str(error))


def array_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shape of every array of a module that takes images, by path."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return {path: x.shape for path, x in flatten(variables).items()}


def printable(name: str) -> str:
    """A name from a file for a message: at most 100 characters, none of control."""
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name[:100])
    return escaped[:100] + ("..." if len(name) > 100 or len(escaped) > 100 else "")


def listed(names: Sequence[str], count: int) -> str:
    """The first names of a file, for a message."""
    return ", ".join([*map(printable, names[:count]), *["..."] * (len(names) > count)])


def log_skipped(where: object, names: Sequence[str], why: str) -> None:
    """Log which entries of a foreign file are skipped, and why."""
    if names:
        logger.info("%s: skipped, %s: %s", where, why, listed(names, 3))
