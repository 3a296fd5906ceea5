"""torchvision's ResNet-50 checkpoints: found, checked, converted; ours as PyTorch's."""

import collections
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdepth.models.resnet import ResNet
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.trees import flatten
from jaxdepth.weights import files, name_tables, pickles, torchfile

logger = logging.getLogger(__name__)
CLASSES = 1000
# Of torchvision's own files; they are not ours to ship.
LICENCE = (
    "torchvision's weights are published under BSD-3-Clause; trained on ImageNet, "
    "whose terms allow non-commercial research. Other files: see their origin."
)
# Under what name a checkpoint keeps its state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "weights")
_OWN = re.compile(r"(conv1|bn1|layer\d+)\.")
_CLASSIFIER = {"fc.weight", "fc.bias"}


def shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every array of our ResNet-50 encoder, by path, and of the classifier."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(ResNet().init, jax.random.key(0), image)
    nested = {name: {"encoder": tree} for name, tree in variables.items()}
    flat = flatten(nested)
    return {path: tuple(x.shape) for path, x in flat.items()} | {
        "params/fc/kernel": (2048, CLASSES),
        "params/fc/bias": (CLASSES,),
    }


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a `.pth` or `.safetensors` file under torchvision's plain names.

    Unwraps `{"state_dict": ...}` and the like, strips what stands before every name of
    the network (`module.`, `backbone.`), and leaves out, noted, what is beside it: a
    head that is not torchvision's, another network's decoder.

    Raises UserError where there is none in it.
    """
    path = files.expanded(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a checkpoint file")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if not files.is_safetensors(path) and torchfile.is_torch_file(path):
        content = torchfile.read(path)
        arrays = _state_dict(content) or _under_another_name(content, path)
        _refuse_objects(content, arrays, path)
    elif not files.is_safetensors(path):
        raise UserError(f"{path} is neither a checkpoint of PyTorch nor safetensors")
    else:
        arrays, metadata = files.read_safetensors(path)
        if metadata.get("format") == files.FORMAT:
            raise UserError(f"{path} is converted already: use it, with --weights")
    if not arrays:
        raise UserError(f"{path} holds no state dict: no names with arrays")
    return _without_others(_without_prefix(arrays, path), path)


def _state_dict(content: Any) -> dict[str, np.ndarray]:
    """The first mapping with arrays where checkpoints keep it, or else at the top."""
    if not isinstance(content, Mapping):
        return {}
    for name in _WRAPPERS:
        found = _state_dict(content.get(name))
        if found:
            return found
    arrays = {
        str(name): value
        for name, value in content.items()
        if isinstance(value, np.ndarray)
    }
    return arrays if any(array.ndim == 4 for array in arrays.values()) else {}


def _under_another_name(content: Any, path: Path) -> dict[str, np.ndarray]:
    """The only state dict at the top, whatever its name. UserError for several."""
    every = content.items() if isinstance(content, Mapping) else ()
    found = {str(name): arrays for name, x in every if (arrays := _state_dict(x))}
    if len(found) > 1:
        raise UserError(
            f"{path} holds several state dicts ({', '.join(sorted(found)[:5])}): save "
            "one of them alone"
        )
    for name in found:
        logger.info("%s: taken from its part %r", path, name)
    return next(iter(found.values()), {})


def _refuse_objects(content: Any, arrays: Mapping, path: Path) -> None:
    """UserError where a whole network was pickled and its state dict was not."""
    kept = [content]
    if isinstance(content, Mapping):
        kept = [content.get(name) for name in _WRAPPERS]
    for found in kept:
        if not arrays and isinstance(found, pickles.StandIn):
            raise UserError(
                f"{path} holds a whole {found.what}, which only its own program can "
                "load: save its state_dict"
            )


def _without_prefix(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The arrays below the prefix of the network's first convolution, without it."""
    stems = [
        name[: -len("conv1.weight")]
        for name, array in arrays.items()
        if (name == "conv1.weight" or name.endswith(".conv1.weight"))
        and array.shape[2:] == (7, 7)
    ]
    if len(stems) != 1 or not stems[0]:
        return arrays
    prefix = stems[0]
    others = [name for name in arrays if not name.startswith(prefix)]
    name_tables.note_left_out(path, others, f"not in {prefix.rstrip('.')}")
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _without_others(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """A ResNet without a head that is not torchvision's; another network as it is."""
    if "conv1.weight" not in arrays:
        return arrays
    kept = _CLASSIFIER if arrays.keys() >= _CLASSIFIER else set()
    others = [
        name
        for name, array in arrays.items()
        if array.ndim <= 2 and name not in kept and not _OWN.match(name)
    ]
    name_tables.note_left_out(path, others, "no part of torchvision's network")
    return {name: array for name, array in arrays.items() if name not in others}


def convert(state_dict: Mapping[str, np.ndarray]) -> name_tables.Converted:
    """Our encoder, and the classifier where there is one, of torchvision's arrays."""
    entries = name_tables.resnet()
    head = name_tables.classifier()
    if any(entry.theirs in state_dict for entry in head):
        entries = entries + head
    expected = shapes()
    head_shape = state_dict.get("fc.weight")
    if head_shape is not None and head_shape.ndim == 2:
        # Any number of classes: it is kept for the way back alone.
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
    """PyTorch's state dict of what there is of `upproj`, float32.

    The encoder has torchvision's names, with the classifier where it was kept; names
    of decoder and head are those of `tables.decoder`. `num_batches_tracked` is zero.

    Raises UserError, naming `where`, where the arrays are not those of an `upproj`.
    """
    entries = _entries_of(arrays)
    known = {entry.ours for entry in entries}
    missing, more = sorted(known - set(arrays)), sorted(set(arrays) - known)
    if missing or more:
        mismatch = name_tables.Mismatch(tuple(missing), tuple(more), ())
        raise UserError(f"{where} is no upproj: {mismatch.summary()}")
    found = name_tables.to_theirs(entries, arrays)
    for name in list(found):
        if name.endswith(".running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            found[counter] = np.zeros((), np.int64)
    return found


def _entries_of(arrays: Mapping[str, np.ndarray]) -> list[name_tables.Entry]:
    """The table of a network with as many stages, blocks and parts as there are."""
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
