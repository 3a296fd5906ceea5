"""torchvision's ResNet-50 checkpoints: read, check and convert, in both directions."""

import collections
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdepth.models.resnet import ResNet
from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import files, name_tables, pickles, torchfile

logger = logging.getLogger(__name__)
CLASSES = 1000
# For torchvision's files, which this package does not ship.
LICENCE = (
    "torchvision's weights are published under BSD-3-Clause; trained on ImageNet, "
    "whose terms allow non-commercial research. Other files: see their origin."
)
# Names under which checkpoints keep their state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "weights")
_MAX_DEPTH = 3  # of wrappers in wrappers
_MAX_CLASSES = 22_000  # ImageNet-22k has 21,843
_ENCODER = re.compile(r"(conv1|bn1|layer\d+)\.")
_CLASSIFIER = {"fc.weight", "fc.bias"}


def shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every array of the ResNet-50 encoder and the classifier, by path."""
    encoder = name_tables.array_shapes(ResNet())
    return {path.replace("/", "/encoder/", 1): n for path, n in encoder.items()} | {
        "params/fc/kernel": (2048, CLASSES),
        "params/fc/bias": (CLASSES,),
    }


def read_state_dict(
    path: str | Path, *, prefix: str | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of a `.pth` or `.safetensors` file by torchvision's names.

    Unwraps containers such as `{"state_dict": ...}`, removes a prefix of all names
    (`module.`, `backbone.`), and skips and logs other arrays: a head that is not
    torchvision's, or the decoder of another network.

    Args:
      path: the file.
      prefix: of the names of the encoder to read, if the file holds several.

    Raises: UserError if the file is damaged, holds no state dict, or holds several
      encoders and no prefix is given.
    """
    path = files.expanded(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a checkpoint file")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    files.check_regular(path)
    if files.is_safetensors(path):
        arrays, metadata = files.read_safetensors(path)
        if metadata.get("format") == files.FORMAT:
            raise UserError(f"{path} is converted already: use it with --weights")
    elif torchfile.is_torch_file(path):
        content = torchfile.read(path)
        arrays = _state_dict(content) or _under_another_name(content, path)
        if not arrays:
            _refuse_objects(content, path)
    else:
        raise UserError(f"{path} is neither a checkpoint of PyTorch nor safetensors")
    if not arrays:
        raise UserError(f"{path} holds no state dict (arrays by name)")
    return _without_other_heads(_without_prefix(arrays, path, prefix), path)


def _state_dict(content: Any, depth: int = 0) -> dict[str, np.ndarray]:
    """The mapping with arrays under one of `_WRAPPERS`, else at the top level."""
    if not isinstance(content, Mapping):
        return {}
    if depth < _MAX_DEPTH:
        for name in _WRAPPERS:
            arrays = _state_dict(content.get(name), depth + 1)
            if arrays:
                return arrays
    arrays = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, np.ndarray)
    }
    return arrays if any(array.ndim == 4 for array in arrays.values()) else {}


def _under_another_name(content: Any, path: Path) -> dict[str, np.ndarray]:
    """The only state dict of the top level, under any name.

    The arrays of several state dicts are returned with their names as prefixes.
    """
    items = content.items() if isinstance(content, Mapping) else ()
    # Names that share a mapping, in a hostile file thousands, count once.
    mappings: dict[int, tuple[str, Any]] = {}
    for name, x in items:
        if isinstance(name, str | int) and isinstance(x, Mapping):
            mappings.setdefault(id(x), (str(name), x))
    state_dicts = {
        name: arrays for name, x in mappings.values() if (arrays := _state_dict(x))
    }
    if len(state_dicts) == 1:
        (name, arrays), *_ = state_dicts.items()
        logger.info("%s: using the state dict %s", path, name_tables.printable(name))
        return arrays
    return {
        f"{name}.{key}": array
        for name, arrays in state_dicts.items()
        for key, array in arrays.items()
    }


def _refuse_objects(content: Any, path: Path) -> None:
    """Raise UserError if a module was pickled instead of its state dict."""
    candidates = [content]
    if isinstance(content, Mapping):
        candidates = [content.get(name) for name in _WRAPPERS]
    for candidate in candidates:
        if isinstance(candidate, pickles.StandIn):
            raise UserError(
                f"{path} holds an object of class {candidate.what}, which only its own "
                "program can load: save its state_dict"
            )


def _without_prefix(
    arrays: dict[str, np.ndarray], path: Path, prefix: str | None
) -> dict[str, np.ndarray]:
    """The arrays with a prefix, without it.

    Without a given prefix it is that of the only first convolution.

    Raises: UserError if no name has the prefix, or if there are several encoders.
    """
    stems = [
        name.removesuffix("conv1.weight")
        for name, array in arrays.items()
        if f".{name}".endswith(".conv1.weight") and array.shape[2:] == (7, 7)
    ]
    prefixes = ", ".join(
        f"--prefix={name_tables.printable(stem)}" for stem in sorted(stems)[:8]
    ) + ", ..." * (len(stems) > 8)
    if prefix is None:
        if len(stems) > 1:
            raise UserError(
                f"{path} holds {len(stems)} encoders: give one of {prefixes}"
            )
        prefix = stems[0] if stems else ""
    elif prefix and not prefix.endswith("."):
        prefix += "."
    chosen = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    if not chosen:
        raise UserError(
            f"--prefix={prefix}: no array of {path} has a name that begins like that; "
            f"encoders: {prefixes or 'none'}"
        )
    others = [name for name in arrays if not name.startswith(prefix)]
    name_tables.log_skipped(path, others, f"not in {prefix.rstrip('.')}")
    return chosen


def _without_other_heads(
    arrays: dict[str, np.ndarray], path: Path
) -> dict[str, np.ndarray]:
    """The arrays of a ResNet without other heads; those of other networks unchanged."""
    if "conv1.weight" not in arrays:
        return arrays
    classifier = _CLASSIFIER if arrays.keys() >= _CLASSIFIER else set()
    others = [
        name
        for name, array in arrays.items()
        if array.ndim <= 2 and name not in classifier and not _ENCODER.match(name)
    ]
    name_tables.log_skipped(path, others, "not part of torchvision's network")
    return {name: array for name, array in arrays.items() if name not in others}


def convert(state_dict: Mapping[str, np.ndarray]) -> name_tables.Converted:
    """Convert torchvision's arrays to our encoder, and the classifier if present."""
    entries = name_tables.resnet()
    head = name_tables.classifier()
    if any(entry.foreign in state_dict for entry in head):
        entries = entries + head
    expected = shapes()
    head_shape = state_dict.get("fc.weight")
    if (
        head_shape is not None
        and head_shape.ndim == 2
        and head_shape.shape[0] <= _MAX_CLASSES
    ):
        # Any number of classes: the classifier is only kept for the conversion back.
        expected["params/fc/kernel"] = (2048, head_shape.shape[0])
        expected["params/fc/bias"] = (head_shape.shape[0],)
    return name_tables.convert(
        entries,
        state_dict,
        expected,
        ignored=lambda name: name.endswith("num_batches_tracked"),
    )


def to_state_dict(
    arrays: Mapping[str, np.ndarray], *, where: str = "the network"
) -> dict[str, np.ndarray]:
    """Convert arrays of `upproj`, or of its encoder, to a PyTorch state dict, float32.

    The encoder has torchvision's names, with the classifier if it was kept. Decoder and
    head have the names of `name_tables.decoder`. `num_batches_tracked` is zero.

    Args:
      arrays: by our paths.
      where: their origin, for messages.

    Raises: UserError if the arrays are not those of an `upproj`.
    """
    entries = _entries_of(arrays)
    expected = {entry.path for entry in entries}
    missing, unexpected = expected - arrays.keys(), arrays.keys() - expected
    if missing or unexpected:
        mismatch = name_tables.Mismatch(
            tuple(sorted(missing)), tuple(sorted(unexpected)), ()
        )
        raise UserError(f"{where} is not an upproj: {mismatch.summary()}")
    state_dict = name_tables.export_arrays(entries, arrays)
    return state_dict | {
        name.replace("running_var", "num_batches_tracked"): np.zeros((), np.int64)
        for name in state_dict
        if name.endswith(".running_var")
    }


def _entries_of(arrays: Mapping[str, np.ndarray]) -> list[name_tables.Entry]:
    """The table of an `upproj` with the stages, blocks and parts of the arrays."""
    blocks = {
        (int(match[1]), int(match[2]))
        for path in arrays
        if (match := re.match(r"params/encoder/stage(\d+)_block(\d+)/", path))
    }
    stages = collections.Counter(stage for stage, _ in blocks)
    sizes = [stages[stage] for stage in sorted(stages)]
    entries = name_tables.resnet(sizes, bias="params/encoder/conv_init/bias" in arrays)
    if "params/fc/kernel" in arrays:
        entries += name_tables.classifier()
    ups = {
        path.split("/")[2] for path in arrays if path.startswith("params/decoder/up")
    }
    if ups:
        bias = "params/decoder/conv_in/bias" in arrays
        entries += name_tables.decoder(len(ups), bias=bias)
    return entries
