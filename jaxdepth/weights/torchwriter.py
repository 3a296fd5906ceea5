"""Writer of PyTorch checkpoint files that needs no PyTorch: a state dict in a zip.

`torch.load(path, weights_only=True)` reads them. Each array has its own storage.
"""

import math
import pickle
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

_STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}
_ALIGNMENT = 64  # of arrays in the file, as in torch.save, for memory mapping
_EMPTY_DICT = b"ccollections\nOrderedDict\n)R"


def write(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a state dict of float32, float16 and int64 arrays."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", _pickled(arrays))
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            little = np.asarray(array, array.dtype.newbyteorder("<"))
            _add(archive, f"data/{key}", little.tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")
    assert archive.fp is not None
    # A header is 30 bytes, the name and the padding with its own header of 4 bytes.
    start = archive.fp.tell() + 30 + len(info.filename) + 4
    fill = -start % _ALIGNMENT
    info.extra = b"FB" + fill.to_bytes(2, "little") + b"Z" * fill
    archive.writestr(info, content)


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The dict as pickle opcodes (protocol 2) that name torch without importing it."""
    items = [_plain(name) + _tensor(k, x) for k, (name, x) in enumerate(arrays.items())]
    return b"\x80\x02" + _EMPTY_DICT + b"(" + b"".join(items) + b"u."


def _tensor(key: int, array: np.ndarray) -> bytes:
    """A call of `_rebuild_tensor_v2`: storage, offset, size, stride, no gradient."""
    shape = array.shape
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    kind = f"ctorch\n{_STORAGES[array.dtype.str[1:]]}\n".encode()
    location = _plain(str(key)) + _plain("cpu") + _plain(array.size)
    storage = b"(" + _plain("storage") + kind + location + b"tQ"
    geometry = _plain(0) + _plain(shape) + _plain(strides)
    arguments = storage + geometry + b"\x89" + _EMPTY_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _plain(value: str | int | tuple[int, ...]) -> bytes:
    """The opcodes of a plain value, without the start and the end of a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]
