"""Weights of the published NYU network (Laina et al. 2016, FCRN): read and convert.

They come in two formats: `NYU_ResNet-UpProj.npy`, a .npy file that holds a Python 2
pickle of layer name -> array name -> array, and a TensorFlow checkpoint with variables
`layer/array`.
"""

import glob
import io
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxdepth.models import create_model
from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import files, name_tables, numpy_pickles, pickles

logger = logging.getLogger(__name__)
LICENCE = (
    "The published network's code is under a BSD licence; its weights were trained on "
    "NYU Depth V2 and ImageNet, whose terms allow research."
)
_ALLOWED = {**pickles.PLAIN, **numpy_pickles.ALLOWED}
_ARRAYS = {entry.foreign.split("/")[1] for entry in name_tables.fcrn()}
_MAX_ENTRIES = 10_000  # of the dictionary; the published one has 394
_TABLE_END = bytes.fromhex("57fb808b247547db")  # TensorFlow's kTableMagicNumber


def shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every array of `upproj` in layout `fcrn`, by path."""
    return name_tables.array_shapes(create_model("upproj", layout="fcrn"))


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Read the .npy file or a TensorFlow checkpoint as `layer/array` -> array.

    Raises: UserError if the file is neither, is damaged, or would run code.
    """
    path = files.expanded(path)
    source, *_ = source_files(path)
    if source == path and _starts_as_npy(path):
        return _from_dictionary(read_npy(path), path)
    return read_checkpoint(_prefix(path))


def is_source(path: Path) -> bool:
    """Whether a path looks like one that `read` reads, by its name and a few bytes."""
    if path.is_dir():
        return any(path.glob("*.index"))
    if path.is_file() and (_starts_as_npy(path) or _is_table(path)):
        return True
    prefix = path.with_suffix("") if _is_checkpoint_file(path) else path
    return bool(prefix.name) and _index(prefix).is_file()


def source_files(path: str | Path) -> list[Path]:
    """The files that `read` reads; a checkpoint's index comes first.

    Raises: UserError if there are none, or one is not a regular file.
    """
    path = files.expanded(path)
    if path.exists() and not path.is_dir():
        files.check_regular(path)
    if path.is_file() and _starts_as_npy(path):
        return [path]
    prefix = _prefix(path)
    shards = sorted(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*"))
    paths = [_index(prefix), *shards] if _index(prefix).exists() else [prefix]
    for file in paths:
        files.check_regular(file)
    return paths


def _prefix(path: Path) -> Path:
    """The prefix of a checkpoint, from the prefix, any of its files or its folder.

    A checkpoint of version 1 is a single file, which is its own prefix.
    """
    if path.is_dir():
        return _prefix_in(path)
    prefix = path.with_suffix("") if _is_checkpoint_file(path) else path
    if _index(prefix).exists() or (path.is_file() and _is_table(path)):
        return prefix
    if not path.exists():
        raise UserError(f"{path}: no such file, and no {path.name}.index")
    raise UserError(
        f"{path} is neither a .npy file nor the prefix of a TensorFlow checkpoint"
    )


def _prefix_in(folder: Path) -> Path:
    """The prefix that a folder's `checkpoint` file names, else its only prefix."""
    state = folder / "checkpoint"
    if state.is_file():
        text = state.read_text(errors="replace")
        match = re.search(r'^model_checkpoint_path: "(.+)"', text, re.MULTILINE)
        # The recorded path may be that of another folder or machine.
        if match and _index(prefix := folder / Path(match[1]).name).exists():
            return prefix
    prefixes = sorted(path.with_suffix("") for path in folder.glob("*.index"))
    if len(prefixes) == 1:
        return prefixes[0]
    if not prefixes:
        raise UserError(
            f"{folder} holds no TensorFlow checkpoint: no file ends in .index"
        )
    names = ", ".join(prefix.name for prefix in prefixes[:3])
    raise UserError(f"{folder} holds several checkpoints ({names}): give one of them")


def _index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".index")


def _is_table(path: Path) -> bool:
    """Whether a file ends like a TensorFlow table, as checkpoints of version 1 do."""
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(size - 8, 0))
        return file.read() == _TABLE_END


def _starts_as_npy(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(6) == np.lib.format.MAGIC_PREFIX


def _is_checkpoint_file(path: Path) -> bool:
    return path.suffix in (".index", ".meta") or path.suffix.startswith(".data-")


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """Read the weights of a TensorFlow checkpoint; other variables are logged.

    Raises: UserError if TensorFlow is not installed or the checkpoint is damaged.
    """
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(
            f"{prefix}: reading a TensorFlow checkpoint needs TensorFlow: "
            "pip install tensorflow"
        ) from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = sorted(reader.get_variable_to_shape_map())
        _check_claims(reader, filter(_is_weight, names), prefix)
        arrays = {
            name: np.asarray(reader.get_tensor(name))
            for name in names
            if _is_weight(name)
        }
    except Exception as error:  # TensorFlow's errors, and those of damaged names
        raise pickles.damaged(str(prefix), error) from None
    skipped = [name for name in names if name not in arrays]
    name_tables.log_skipped(prefix, skipped, "not weights")
    return arrays


def _check_claims(reader: Any, names: Iterable[str], prefix: Path) -> None:
    """Raise ValueError if variables need more bytes than the files can hold."""
    shapes, dtypes = (
        reader.get_variable_to_shape_map(),
        reader.get_variable_to_dtype_map(),
    )
    claimed = sum(math.prod(shapes[n]) * max(dtypes[n].size or 1, 1) for n in names)
    held = sum(path.stat().st_size for path in source_files(prefix))
    # Files of version 1 are compressed.
    if claimed > 16 * held:
        raise ValueError(
            f"its arrays need {claimed >> 20} MiB, too much for the size of its files"
        )


def _is_weight(name: str) -> bool:
    """Whether a variable is `layer/array`, of this or another network.

    Optimizer slots (`conv1/weights/Adam`) and counters (`global_step`) are excluded.
    """
    layer, _, array = name.partition("/")
    return bool(layer) and array in _ARRAYS


def read_npy(path: Path) -> Any:
    """Read the single pickled object of a .npy file, without running code.

    Raises: UserError if the file holds anything else or is damaged.
    """
    where = str(path)
    with open(path, "rb") as file:
        shape, dtype = _npy_header(file, where)
        if dtype != np.dtype(object) or shape != ():
            raise UserError(
                f"{where} holds an array of {dtype} {shape}, not the dictionary of the "
                "published network"
            )
        array = pickles.load(file, _ALLOWED, where=where)
    objects = array.value if isinstance(array, numpy_pickles.Array) else None
    if not isinstance(objects, list) or len(objects) != 1:
        raise UserError(f"{where} is damaged: it does not hold exactly one object")
    return objects[0]


def _npy_header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns of headers from Python 2
            version = np.lib.format.read_magic(file)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = reader(pickles.BoundedFile(file))
    except Exception as error:  # damaged headers raise errors of Python's parser
        raise pickles.damaged(where, error) from None
    return shape, dtype


def _from_dictionary(content: Any, path: Path) -> dict[str, np.ndarray]:
    """The arrays of the dictionary as `layer/array`; other entries are logged."""
    arrays, skipped = {}, []
    for count, (name, entry) in enumerate(_entries(content)):
        if count == _MAX_ENTRIES:
            raise UserError(f"{path} holds more than {count} entries")
        value = entry.value if isinstance(entry, numpy_pickles.Array) else None
        if isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            skipped.append(name)
    if not arrays:
        raise UserError(f"{path} holds no dictionary of layers with arrays")
    name_tables.log_skipped(path, skipped, "not weights")
    return arrays


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    for layer, arrays in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(layer, str):
            continue
        if not isinstance(arrays, Mapping):
            yield layer, arrays
            continue
        for name, array in arrays.items():
            if isinstance(name, str):
                yield f"{layer}/{name}", array


def convert(published: Mapping[str, np.ndarray]) -> name_tables.Converted:
    """Convert the arrays of the published network to those of `upproj`."""
    return name_tables.convert(name_tables.fcrn(), published, shapes())


def to_dictionary(
    arrays: Mapping[str, np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
    """Convert arrays of `upproj` to the published dictionary, the inverse of `convert`.

    Returns: layer name -> array name -> float32 array.
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, array in name_tables.export_arrays(name_tables.fcrn(), arrays).items():
        layer, _, kind = name.partition("/")
        layers.setdefault(layer, {})[kind] = array
    return layers
