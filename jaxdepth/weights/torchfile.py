"""PyTorch's checkpoint files as NumPy arrays, without PyTorch and without running code.

Two formats: the zip archive that `torch.save` writes since 1.6, and the sequence of
pickles of before. Both keep tensors as (storage, offset, size, stride).
"""

import collections
import dataclasses
import io
import math
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdepth.errors import UserError
from jaxdepth.weights import pickles

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# Names of storages in torch; bfloat16 is read as uint16 and widened.
_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
    "UntypedStorage": "u1",
}
_DTYPES = {
    "float32": "f4",
    "float64": "f8",
    "float16": "f2",
    "bfloat16": "bf16",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "bool": "b1",
}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A storage's element type, as the pickle names it."""

    code: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A storage that a tensor refers to; its bytes may not be there yet."""

    key: str
    code: str
    count: int


@dataclasses.dataclass
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        """Attributes of a tensor's own are of no use here."""


class _Ignored:
    """Stands for what has no meaning without torch; takes anything, does nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Dict(collections.OrderedDict):
    """A state dict; the `_metadata` attribute that torch adds is dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickles.Forbidden("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("a tensor of impossible size")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _allowed() -> Mapping[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): _Dict,
        ("torch._utils", "_rebuild_tensor"): _rebuild,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch", "Size"): tuple,
        ("torch", "device"): _Ignored,
        ("torch.nn.parameter", "Parameter"): _parameter,
    }
    names |= {("torch", name): _Kind(code) for name, code in _STORAGES.items()}
    names |= {("torch.storage", k): _Kind(v) for k, v in _STORAGES.items()}
    names |= {("torch", name): _Kind(code) for name, code in _DTYPES.items()}
    return names


def is_torch_file(path: Path) -> bool:
    """Whether it looks like one: a zip archive, or a pickle of protocol 2 or more."""
    with open(path, "rb") as file:
        head = file.read(4)
    return head.startswith(b"PK\x03\x04") or head[:1] == b"\x80"


def read(path: str | Path) -> Any:
    """What was saved: dicts, lists and numbers, with NumPy arrays for tensors.

    float16 and float64 stay as they are; bfloat16 becomes float32, which holds it.

    Raises UserError where the file is absent, damaged, or names more than data.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            archive = zipfile.is_zipfile(file)
            file.seek(0)
            return (_read_zip if archive else _read_legacy)(file, str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a checkpoint file") from None


def _read_zip(file: io.BufferedIOBase, where: str) -> Any:
    try:
        archive = zipfile.ZipFile(file)
        names = archive.namelist()
        pickled = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise UserError(f"{where} is a zip archive, but not one of torch.save")
        root = pickled[0][: -len("data.pkl")]
        if f"{root}constants.pkl" in names or any(
            n.startswith(f"{root}code/") for n in names
        ):
            raise UserError(
                f"{where} is a TorchScript archive, a program: save its state_dict"
            )
        order = "little"
        if f"{root}byteorder" in names:
            order = archive.read(f"{root}byteorder").decode("ascii", "replace").strip()

        def storage(pid: Any) -> _Storage:
            _, kind, key, _, count = pid
            return _Storage(str(key), kind.code, int(count))

        unpickler = pickles.DataUnpickler(
            io.BytesIO(archive.read(pickled[0])), _allowed(), persistent=storage
        )
        found = pickles.load(unpickler, where=where)

        def content(key: str) -> bytes:
            return archive.read(f"{root}data/{key}")

        return _resolve(found, content, order, where)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        raise UserError(
            f"{where} is damaged ({str(error)[:120]}): download it again"
        ) from None


def _read_legacy(file: io.BufferedIOBase, where: str) -> Any:
    def unpickle(persistent: Callable | None = None) -> Any:
        unpickler = pickles.DataUnpickler(file, _allowed(), persistent=persistent)
        return pickles.load(unpickler, where=where)

    if file.read(1) != b"\x80":
        raise UserError(f"{where} is no checkpoint of PyTorch (neither zip nor pickle)")
    file.seek(0)
    if unpickle() != _MAGIC or unpickle() != _PROTOCOL:
        raise UserError(f"{where} is a pickle, but not one of torch.save")
    system = unpickle()
    order = "little" if system.get("little_endian", True) else "big"
    kinds: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        _, kind, key, _, count = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise pickles.Forbidden("a view of a storage, of torch before 0.4")
        kinds[str(key)] = _Storage(str(key), kind.code, int(count))
        return kinds[str(key)]

    found = unpickle(storage)
    content: dict[str, bytes] = {}
    for key in map(str, unpickle()):
        if key not in kinds:
            raise UserError(f"{where} is damaged: storage {key} belongs to no tensor")
        head = file.read(8)
        (count,) = struct.unpack("<q" if order == "little" else ">q", head.ljust(8))
        size = count * _item_size(kinds[key].code)
        # No more than there is, whatever the count says.
        content[key] = file.read(size) if 0 <= size <= _rest(file) else b""
        if len(head) != 8 or len(content[key]) != size:
            raise UserError(
                f"{where} is damaged (it ends too early): download it again"
            )
    return _resolve(found, content.__getitem__, order, where)


def _rest(file: io.BufferedIOBase) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def _item_size(code: str) -> int:
    return 2 if code == "bf16" else np.dtype(code).itemsize


def _resolve(tree: Any, content: Callable[[str], bytes], order: str, where: str) -> Any:
    """The tree with arrays in place of tensors; each storage is decoded once."""
    decoded: dict[tuple[str, str], np.ndarray] = {}

    def array(tensor: _Tensor) -> np.ndarray:
        storage = tensor.storage
        if (storage.key, storage.code) not in decoded:
            decoded[storage.key, storage.code] = _decode(
                content(storage.key), storage.code, order
            )
        flat = decoded[storage.key, storage.code]
        return _strided(flat, tensor)

    def walk(node: Any) -> Any:
        if isinstance(node, _Tensor):
            return array(node)
        if isinstance(node, Mapping):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(value) for value in node]
        return node

    try:
        return walk(tree)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be a checkpoint") from None
    except KeyError as error:
        raise UserError(f"{where} is damaged (storage {error} is missing)") from None
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where} is damaged ({error}): download it again") from None


def _decode(data: bytes, code: str, order: str) -> np.ndarray:
    mark = "<" if order == "little" else ">"
    if code == "bf16":
        high = np.frombuffer(data, mark + "u2").astype(np.uint32)
        return (high << 16).view(np.float32)
    flat = np.frombuffer(data, np.dtype(code).newbyteorder(mark))
    native = "<" if sys.byteorder == "little" else ">"
    return flat if mark == native else flat.astype(flat.dtype.newbyteorder("="))


def _strided(flat: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """The tensor's own entries, copied; ValueError where they lie outside."""
    if len(tensor.size) != len(tensor.stride):
        raise ValueError("a tensor has as many strides as axes")
    if math.prod(tensor.size) == 0:
        return np.zeros(tensor.size, flat.dtype)
    last = tensor.offset + sum(
        (n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True)
    )
    if last >= flat.size or math.prod(tensor.size) > flat.size:
        raise ValueError("a tensor reaches beyond its storage")
    steps = tuple(step * flat.itemsize for step in tensor.stride)
    view = np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.size, steps, writeable=False
    )
    return np.array(view)
