"""PyTorch's checkpoint file written without PyTorch: a state dict in a zip archive.

`torch.load(path, weights_only=True)` reads it. Each array is a storage of its own.
"""

import pickle
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np

_STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage"}
_ALIGNMENT = 64  # of an array in the file, as torch.save does, for mapping it
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
    # A header is 30 bytes, the name and the padding, which has 4 bytes of its own.
    start = archive.fp.tell() + 30 + len(info.filename) + 4
    fill = -start % _ALIGNMENT
    info.extra = b"FB" + fill.to_bytes(2, "little") + b"Z" * fill
    archive.writestr(info, content)


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The dict as opcodes of protocol 2: torch's names are written, not imported."""
    items = [_plain(name) + _tensor(k, x) for k, (name, x) in enumerate(arrays.items())]
    return b"\x80\x02" + _EMPTY_DICT + b"(" + b"".join(items) + b"u."


def _tensor(key: int, array: np.ndarray) -> bytes:
    """A call of `_rebuild_tensor_v2`: storage, offset, size, stride, no gradient."""
    stride, steps = 1, []
    for n in reversed(array.shape):
        steps.insert(0, stride)
        stride *= n
    kind = f"ctorch\n{_STORAGES[array.dtype.str[1:]]}\n".encode()
    place = _plain(str(key)) + _plain("cpu") + _plain(array.size)
    storage = b"(" + _plain("storage") + kind + place + b"tQ"
    form = _plain(0) + _plain(array.shape) + _plain(tuple(steps))
    arguments = storage + form + b"\x89" + _EMPTY_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _plain(value: str | int | tuple[int, ...]) -> bytes:
    """The opcodes of a plain value, without those that begin and end a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]
