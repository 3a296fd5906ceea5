"""Reader of PyTorch checkpoint files that needs no PyTorch and runs no code.

There are two formats: the zip archive that `torch.save` writes since 1.6, and the older
sequence of pickles. Both store tensors as (storage, offset, size, stride).
"""

import collections
import dataclasses
import functools
import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import files, numpy_pickles, pickles

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
# Largest accepted ratio of unpacked to packed size. torch.save does not compress, and
# weights compress badly.
_MAX_EXPANSION = 16
_MAX_UNPACKED = 256 << 20  # added to twice the packed size
_MAX_DIRECTORY = 8 << 20  # bytes; 100,000 members
_MAX_AXES = 64  # NumPy's limit
# Storage classes of torch and their dtypes; bfloat16 is converted to float32.
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
# Names in checkpoints that get a stand-in: kinds of tensors that our networks do not
# use, and objects without a meaning outside torch.
_IGNORED = {
    "torch": (
        "device", "strided", "sparse_coo", "uint16", "uint32", "uint64",
        "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
        "quint8", "qint8", "qint32",
    ),
    "torch._utils": (
        "_rebuild_tensor_v3", "_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor",
        "_rebuild_qtensor", "_rebuild_nested_tensor", "_rebuild_wrapper_subclass",
        "_rebuild_meta_tensor_no_storage",
    ),
    "torch.serialization": ("_get_layout",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A storage's element type, as the pickle names it."""

    dtype: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A storage that a tensor refers to; its bytes may not have been read yet.

    `dtype` is None for an element type that NumPy lacks.
    """

    key: str
    dtype: str | None
    count: int


@dataclasses.dataclass(eq=False)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __setstate__(self, state: Any) -> None:
        """Discard attributes."""


class _Dict(collections.OrderedDict):
    """A state dict; the `_metadata` attribute that torch adds is discarded."""

    def __setstate__(self, state: Any) -> None:
        pass


@pickles.Builder
def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickles.Forbidden("a tensor without a storage")
    if max(len(size), len(stride)) > _MAX_AXES:
        raise ValueError("a tensor of too many axes")
    numbers = (offset, *size, *stride)
    if not all(isinstance(n, int) and 0 <= n < 1 << 63 for n in numbers):
        raise ValueError("a tensor of invalid size")
    return _Tensor(storage, offset, tuple(size), tuple(stride))


@pickles.Builder
def _size(axes: Any = ()) -> pickles.Tuple:
    return pickles.Tuple(axes)


@pickles.Builder
def _first(data: Any, *_: Any) -> Any:
    """The data of a parameter or of a TPU tensor: the first argument."""
    return data


@pickles.Builder
def _rebuild_from_type(build: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """The plain tensor for a tensor of a subclass or with attributes."""
    if not isinstance(build, pickles.Builder):
        return None
    return build(*args)


def _allowed() -> Mapping[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        **pickles.PLAIN,
        **numpy_pickles.ALLOWED,
        ("collections", "OrderedDict"): _Dict,
        ("torch._utils", "_rebuild_tensor"): _rebuild,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch._utils", "_rebuild_parameter"): _first,
        ("torch._utils", "_rebuild_parameter_with_state"): _first,
        ("torch._utils", "_rebuild_device_tensor_from_numpy"): _first,
        ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
        ("torch", "Size"): _size,
        ("torch.nn.parameter", "Parameter"): _first,
    }
    names |= {
        (module, name): pickles.stand_in(module, name)
        for module, ignored in _IGNORED.items()
        for name in ignored
    }
    for storage, dtype in _STORAGES.items():
        kind = _Kind(dtype)
        names["torch", storage] = names["torch.storage", storage] = kind
        names["torch", dtype] = kind
    return names


def _storage(pid: Any, where: str) -> Any:
    """The storage of a persistent id."""
    if pid[0] == "module":  # a class with its source text, in pickled modules
        return pid[1]
    _, kind, key, _, count = pid[:5]
    if not isinstance(key, str | int) or not isinstance(count, int):
        raise ValueError("a storage of invalid name or size")
    if len(pid) > 5 and pid[5] is not None:
        raise UserError(
            f"{where} holds views of storages, written by PyTorch before 0.4: load and "
            "save it with a newer PyTorch"
        )
    return _Storage(str(key), getattr(kind, "dtype", None), count)


def is_torch_file(path: Path) -> bool:
    """Whether a file begins like a zip archive, a pickle or an early tar checkpoint.

    Pickles are recognised from protocol 2 on.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    return head.startswith(_ZIP) or pickled or _is_tar(head)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def read(path: str | Path) -> Any:
    """Read a checkpoint: dicts, lists and numbers, with NumPy arrays for tensors.

    float16 and float64 are kept; bfloat16 becomes float32 without loss. Objects of
    other classes become a `pickles.StandIn`.

    Raises: UserError if the file is absent, damaged, or would run code.
    """
    path = Path(path)
    files.check_regular(path)
    try:
        with open(path, "rb") as file:
            return _read(file, str(path))
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    except Exception as error:  # from zipfile, struct, NumPy, ...
        raise pickles.damaged(str(path), error) from None


def _read(file: BinaryIO, where: str) -> Any:
    head = file.read(512)
    file.seek(0)
    if head.startswith(_ZIP):
        return _read_zip(file, where)
    if _is_tar(head):
        raise UserError(
            f"{where} is a tar archive, written by PyTorch before 0.1.10: load and "
            "save it with a newer PyTorch"
        )
    if head[:1] != b"\x80":
        raise UserError(f"{where} is not a PyTorch checkpoint (neither zip nor pickle)")
    return _read_legacy(file, where)


def _read_zip(file: BinaryIO, where: str) -> Any:
    # The size of the directory, which ZipFile reads whole.
    end = zipfile._EndRecData(file)  # pyright: ignore[reportAttributeAccessIssue]
    if end and end[5] > _MAX_DIRECTORY:
        raise UserError(f"{where} has too many members for a checkpoint")
    archive = zipfile.ZipFile(file)
    claimed = sum(member.file_size for member in archive.infolist())
    packed = file.seek(0, io.SEEK_END)
    if claimed > min(_MAX_EXPANSION * packed, 2 * packed + _MAX_UNPACKED):
        raise UserError(
            f"{where} would unpack to {claimed >> 20} MiB, too much for a file of its "
            "size: download it again"
        )
    names = archive.namelist()
    pickled = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise UserError(f"{where} is a zip archive, but not one of torch.save")
    root = pickled[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in names or any(
        n.startswith(f"{root}code/") for n in names
    ):
        raise UserError(
            f"{where} is a TorchScript program, not a checkpoint: save its state_dict"
        )
    order = "little"
    if f"{root}byteorder" in names:
        order = _member(archive, f"{root}byteorder").decode("ascii", "replace").strip()
    if order not in ("little", "big"):
        raise UserError(f"{where} has an unknown byte order: download it again")
    pickled_tree = io.BytesIO(_member(archive, pickled[0]))
    storage = functools.partial(_storage, where=where)
    tree = pickles.load(pickled_tree, _allowed(), where=where, persistent=storage)
    content = functools.partial(_member, archive)
    return _resolve(tree, lambda key: content(f"{root}data/{key}"), order, where)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a member, of the size in the directory."""
    content = archive.read(name)
    if len(content) != archive.getinfo(name).file_size:
        raise ValueError("the size of a member differs from the archive's directory")
    return content


def _read_legacy(file: BinaryIO, where: str) -> Any:
    unpickle = functools.partial(pickles.load, file, _allowed(), where=where)
    if unpickle() != _MAGIC or unpickle() != _PROTOCOL:
        raise UserError(f"{where} is a pickle, but not one of torch.save")
    system = unpickle()
    order = "little" if system.get("little_endian", True) else "big"
    storages: dict[str, _Storage] = {}

    def storage(pid: Any) -> Any:
        item = _storage(pid, where)
        if isinstance(item, _Storage):
            storages[item.key] = item
        return item

    tree = unpickle(persistent=storage)
    content: dict[str, bytes] = {}
    for key in unpickle():
        if not isinstance(key, str | int) or (key := str(key)) not in storages:
            raise UserError(f"{where} is damaged: a storage belongs to no tensor")
        content[key] = _legacy_storage(file, storages[key], order, where)
    return _resolve(tree, content.__getitem__, order, where)


def _legacy_storage(file: BinaryIO, storage: _Storage, order: str, where: str) -> bytes:
    """The bytes of the next storage: its count, then its entries."""
    if storage.dtype is None:
        raise UserError(f"{where} holds entries of a type that is not supported")
    head = file.read(8)
    (count,) = struct.unpack("<q" if order == "little" else ">q", head.ljust(8))
    size = count * (
        2 if storage.dtype == "bfloat16" else np.dtype(storage.dtype).itemsize
    )
    # A damaged count must not allocate more than the file holds.
    content = file.read(size) if 0 <= size <= _remaining(file) else b""
    if len(head) != 8 or len(content) != size:
        raise UserError(
            f"{where} is damaged (unexpected end of file): download it again"
        )
    return content


def _remaining(file: BinaryIO) -> int:
    position = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(position)
    return end - position


def _resolve(tree: Any, content: Callable[[str], bytes], order: str, where: str) -> Any:
    """Replace tensors by arrays in a tree; each storage is decoded once."""
    decoded: dict[str, tuple[str, np.ndarray]] = {}
    resolved: dict[int, Any] = {}  # by id: shared nodes are walked once

    def array(tensor: _Tensor) -> Any:
        key, dtype = tensor.storage.key, tensor.storage.dtype
        if dtype is None:
            return pickles.StandIn()
        if key not in decoded:
            decoded[key] = dtype, _decode(content(key), dtype, order)
        if decoded[key][0] != dtype:
            raise ValueError("a storage of two types")
        return _strided(decoded[key][1], tensor)

    def convert(node: Any) -> Any:
        if isinstance(node, _Tensor):
            return array(node)
        if isinstance(node, numpy_pickles.Array):
            return walk(node.value)
        if isinstance(node, Mapping):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple | set | frozenset):
            return [walk(value) for value in node]
        return node

    def walk(node: Any) -> Any:
        if id(node) not in resolved:
            resolved[id(node)] = convert(node)
        return resolved[id(node)]

    try:
        return walk(tree)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be a checkpoint") from None
    except KeyError as error:
        raise UserError(f"{where} is damaged (storage {error} is missing)") from None
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where} is damaged ({error}): download it again") from None


def _decode(data: bytes, dtype: str, order: str) -> np.ndarray:
    stored = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    ordered = stored.newbyteorder("<" if order == "little" else ">")
    flat = np.frombuffer(data, ordered).astype(stored, copy=False)
    if dtype == "bfloat16":
        return (flat.astype(np.uint32) << 16).view(np.float32)
    return flat


def _strided(flat: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """A read-only view of the tensor's entries of its storage.

    It allocates nothing: thousands of tensors can share a storage, and an expanded
    tensor can claim any size with a few bytes.

    Raises: ValueError if entries are outside the storage.
    """
    if len(tensor.size) != len(tensor.stride):
        raise ValueError("a tensor whose strides and axes differ in number")
    if math.prod(tensor.size) == 0:
        return np.zeros(tensor.size, flat.dtype)
    last = tensor.offset + sum(
        (n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True)
    )
    if last >= flat.size:
        raise ValueError("a tensor reaches beyond its storage")
    steps = tuple(step * flat.itemsize for step in tensor.stride)
    return np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], tensor.size, steps, writeable=False
    )
