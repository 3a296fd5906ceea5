"""The published NYU network (Laina et al. 2016, FCRN): its files read, converted, back.

Two forms: `NYU_ResNet-UpProj.npy`, a Python 2 pickle of layer name -> array name ->
array inside a .npy file, and the TensorFlow checkpoint with variables `layer/array`.
"""

import glob
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxdepth.models import create_model
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.trees import flatten
from jaxdepth.weights import files, name_tables, numpy_pickles, pickles

logger = logging.getLogger(__name__)
LICENCE = (
    "The published network's code is under a BSD licence; its weights were trained on "
    "NYU Depth V2 and ImageNet, whose terms allow research."
)
_ALLOWED = {**pickles.PLAIN, **numpy_pickles.ALLOWED}
_ARRAYS = {entry.theirs.split("/")[1] for entry in name_tables.fcrn()}
_TABLE_END = bytes.fromhex("57fb808b247547db")  # TensorFlow's kTableMagicNumber


def shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every array of our `upproj` in layout `fcrn`, by path."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    model = create_model("upproj", layout="fcrn")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    flat = flatten(variables)
    return {path: tuple(x.shape) for path, x in flat.items()}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """`layer/array` -> array, from the .npy file or a TensorFlow checkpoint.

    Raises UserError where it is neither, is damaged, or names more than data.
    """
    path = files.expanded(path)
    if path.is_file() and _starts_as_npy(path):
        return _from_dictionary(read_npy(path), path)
    return read_checkpoint(_prefix(path))


def parts(path: str | Path) -> list[Path]:
    """The files that hold what `read` reads; a checkpoint's index comes first."""
    path = files.expanded(path)
    if path.is_file() and _starts_as_npy(path):
        return [path]
    prefix = _prefix(path)
    shards = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*"))
    return [_index(prefix), *shards] if _index(prefix).exists() else [prefix]


def _prefix(path: Path) -> Path:
    """A checkpoint's prefix from itself, from any of its files, or from its folder.

    The one file of a checkpoint of version 1 is its own prefix.
    """
    if path.is_dir():
        return _newest(path)
    prefix = path.with_suffix("") if _is_part(path) else path
    if _index(prefix).exists() or (path.is_file() and _is_table(path)):
        return prefix
    if not path.exists():
        raise UserError(f"{path}: there is no such file, nor {path.name}.index")
    raise UserError(
        f"{path} is neither a .npy file nor a TensorFlow checkpoint (give its prefix)"
    )


def _newest(folder: Path) -> Path:
    """The prefix that the folder's `checkpoint` file names, or the only one there."""
    state = folder / "checkpoint"
    if state.is_file():
        text = state.read_text(errors="replace")
        named = re.search(r'^model_checkpoint_path: "(.+)"', text, re.MULTILINE)
        # Written with the folder that it was in then.
        if named and _index(found := folder / Path(named[1]).name).exists():
            return found
    found = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    if len(found) == 1:
        return found[0]
    several = ", ".join(prefix.name for prefix in found[:3])
    raise UserError(
        f"{folder} holds several checkpoints ({several}): name one"
        if found
        else f"{folder} holds no TensorFlow checkpoint: no file ends in .index"
    )


def _index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def _is_table(path: Path) -> bool:
    """Whether a file ends as TensorFlow's tables do, a checkpoint of version 1 too."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - 8, 0))
        return file.read() == _TABLE_END


def _starts_as_npy(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(6) == np.lib.format.MAGIC_PREFIX


def _is_part(path: Path) -> bool:
    return path.suffix in (".index", ".meta") or path.suffix.startswith(".data-")


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """Variables of a TensorFlow checkpoint; others than weights are left out, noted."""
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(
            "reading a TensorFlow checkpoint needs TensorFlow: pip install tensorflow"
        ) from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = sorted(reader.get_variable_to_shape_map())
        kept = [name for name in names if _is_weight(name)]
        found = {name: np.asarray(reader.get_tensor(name)) for name in kept}
    except Exception as error:  # TensorFlow's, and what it makes of damaged names
        raise pickles.damaged(str(prefix), error) from None
    left_out = [name for name in names if name not in found]
    name_tables.note_left_out(prefix, left_out, "no weights")
    return found


def _is_weight(name: str) -> bool:
    """Whether it is `layer/array`, of this network or of another; an optimizer's slots
    (`conv1/weights/Adam`) and counters (`global_step`) are not."""
    layer, _, array = name.partition("/")
    return bool(layer) and array in _ARRAYS


def read_npy(path: Path) -> Any:
    """The object inside a .npy file of one pickled object, read as data alone."""
    where = str(path)
    with open(path, "rb") as file:
        shape, dtype = _npy_header(file, where)
        if dtype != np.dtype(object) or shape != ():
            raise UserError(
                f"{where} holds an array of {dtype} {shape}, not the dictionary of the "
                "published network"
            )
        found = pickles.load(file, _ALLOWED, where=where)
    inner = found.value if isinstance(found, numpy_pickles.Array) else None
    if not isinstance(inner, list) or len(inner) != 1:
        raise UserError(f"{where} is damaged: one object was expected in it")
    return inner[0]


def _npy_header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers as Python 2 wrote them
            version = np.lib.format.read_magic(file)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = reader(file)
    except Exception as error:  # a damaged header raises what Python's parser does
        raise pickles.damaged(where, error) from None
    return shape, dtype


def _from_dictionary(content: Any, path: Path) -> dict[str, np.ndarray]:
    """Every array of the dictionary as `layer/array`; the rest is left out, noted."""
    found, left_out = {}, []
    for name, entry in _entries(content):
        value = entry.value if isinstance(entry, numpy_pickles.Array) else None
        if isinstance(value, np.ndarray):
            found[name] = value
        else:
            left_out.append(name)
    if not found:
        raise UserError(f"{path} holds no dictionary of layers with arrays")
    name_tables.note_left_out(path, left_out, "no weights")
    return found


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    for layer, arrays in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(arrays, Mapping):
            yield str(layer), arrays
            continue
        for name, array in arrays.items():
            yield f"{layer}/{name}", array


def convert(theirs: Mapping[str, np.ndarray]) -> name_tables.Converted:
    """Our arrays of the published ones, or what keeps them from being made."""
    return name_tables.convert(name_tables.fcrn(), theirs, shapes())


def to_dictionary(
    arrays: Mapping[str, np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
    """Layer name -> array name -> float32 array, as published."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in name_tables.to_theirs(name_tables.fcrn(), arrays).items():
        layer, _, kind = name.partition("/")
        found.setdefault(layer, {})[kind] = array
    return found
