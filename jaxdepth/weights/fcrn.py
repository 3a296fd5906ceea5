"""The published NYU network (Laina et al. 2016, FCRN): its files read, converted, back.

Two forms: `NYU_ResNet-UpProj.npy`, a Python 2 pickle of layer name -> array name ->
array inside a .npy file, and the TensorFlow checkpoint with variables `layer/array`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdepth.errors import UserError
from jaxdepth.models import create_model
from jaxdepth.train_state import flatten
from jaxdepth.weights import pickles, tables

LICENCE = (
    "The published network's code is under a BSD licence; its weights were trained on "
    "NYU Depth V2 and ImageNet, whose terms allow research."
)


def shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every array of our `upproj` in layout `fcrn`, by path."""
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    model = create_model("upproj", layout="fcrn")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    flat = flatten(variables)
    return {path: tuple(x.shape) for path, x in flat.items()}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """`layer/array` -> array, from the .npy file or a TensorFlow checkpoint.

    A checkpoint is named by its prefix, or by any of its files.

    Raises UserError where it is neither, is damaged, or names more than data.
    """
    path = Path(path)
    if path.is_file() and _starts_as_npy(path):
        return _from_dictionary(read_npy(path), path)
    prefix = path.with_suffix("") if _is_part(path) else path
    if prefix.with_name(prefix.name + ".index").exists():
        return read_checkpoint(prefix)
    if not path.exists():
        raise UserError(f"{path}: there is no such file, nor {path.name}.index")
    raise UserError(
        f"{path} is neither a .npy file nor a TensorFlow checkpoint (give its prefix)"
    )


def _starts_as_npy(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(6) == np.lib.format.MAGIC_PREFIX


def _is_part(path: Path) -> bool:
    return path.suffix in (".index", ".meta") or path.suffix.startswith(".data-")


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """Variables of a TensorFlow checkpoint; the optimizer's are left out."""
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(
            "reading a TensorFlow checkpoint needs TensorFlow: pip install tensorflow"
        ) from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = [n for n in reader.get_variable_to_shape_map() if n.count("/") == 1]
        found = {name: reader.get_tensor(name) for name in names}
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0][:120]
        raise UserError(f"{prefix} is damaged ({line}): download it again") from None
    known = {entry.theirs.split("/")[1] for entry in tables.fcrn()}
    return {n: np.asarray(x) for n, x in found.items() if n.split("/")[1] in known}


@dataclasses.dataclass
class _DType:
    """A NumPy dtype of numbers, or of objects, while it is unpickled."""

    name: str
    order: Literal["<", ">"] = "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.order = state[1]

    def build(self) -> np.dtype | None:
        """None for objects. Anything but plain numbers is refused."""
        if self.name.startswith("O"):
            return None
        if self.name not in ("f2", "f4", "f8", "i4", "i8", "u1"):
            raise pickles.Forbidden(f"dtype {self.name}")
        return np.dtype(self.name).newbyteorder(self.order)


class _Array:
    """A NumPy array while it is unpickled: `value` is it, or the list of objects."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType):
            raise pickles.Forbidden("an array without a dtype")
        kind = dtype.build()
        if kind is None:
            self.value = data
            return
        raw = data.encode("latin1") if isinstance(data, str) else data
        order = "F" if fortran else "C"
        flat = np.frombuffer(raw, kind).astype(kind.newbyteorder("="))
        self.value = flat.reshape(shape, order=order)


def _array(*_: Any) -> _Array:
    return _Array()


def _dtype(name: Any, *_: Any) -> _DType:
    return _DType(str(name))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise pickles.Forbidden(f"encoding {encoding}")
    return text.encode("latin1")


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(data, dtype.build())[0]


_ALLOWED: Mapping[tuple[str, str], Any] = {
    **pickles.PLAIN,
    **{
        (f"numpy.{core}.multiarray", name): value
        for core in ("core", "_core")
        for name, value in (("_reconstruct", _array), ("scalar", _scalar))
    },
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes for Python 2
}


def read_npy(path: Path) -> Any:
    """The object inside a .npy file of one pickled object, read as data alone."""
    where = str(path)
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = reader(file)
        except (ValueError, KeyError) as error:
            raise UserError(f"{where} is damaged ({error})") from None
        if dtype != np.dtype(object) or shape != ():
            raise UserError(
                f"{where} holds an array of {dtype} {shape}, not the dictionary of the "
                "published network"
            )
        unpickler = pickles.DataUnpickler(file, _ALLOWED, encoding="latin1")
        found = pickles.load(unpickler, where=where)
    inner = found.value if isinstance(found, _Array) else None
    if not isinstance(inner, list) or len(inner) != 1:
        raise UserError(f"{where} is damaged: one object was expected in it")
    return inner[0]


def _from_dictionary(content: Any, path: Path) -> dict[str, np.ndarray]:
    found = {}
    if isinstance(content, Mapping):
        for layer, arrays in content.items():
            for name, array in arrays.items() if isinstance(arrays, Mapping) else ():
                value = array.value if isinstance(array, _Array) else None
                if isinstance(value, np.ndarray):
                    found[f"{layer}/{name}"] = value
    if not found:
        raise UserError(f"{path} holds no dictionary of layers with arrays")
    return found


def convert(theirs: Mapping[str, np.ndarray]) -> tables.Converted:
    """Our arrays of the published ones, or what keeps them from being made."""
    return tables.convert(tables.fcrn(), theirs, shapes())


def to_dictionary(
    arrays: Mapping[str, np.ndarray],
) -> dict[str, dict[str, np.ndarray]]:
    """Layer name -> array name -> float32 array, as published."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, array in tables.to_theirs(tables.fcrn(), arrays).items():
        layer, _, kind = name.partition("/")
        found.setdefault(layer, {})[kind] = array
    return found
