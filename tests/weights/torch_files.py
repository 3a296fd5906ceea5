"""Writer of PyTorch checkpoint files without PyTorch, for tests of the reader."""

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "u2": "BFloat16Storage",  # upper halves of float32
}


class Named:
    """Pickles as a global with a module and a name."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class Stored:
    """Pickles as a persistent id."""

    def __init__(self, pid):
        self.pid = pid


class Build:
    """Pickles as an object with attributes that are set after its creation."""

    def __init__(self, obj, state):
        self.obj, self.state = obj, state


class Call:
    """Pickles as a call of a global."""

    def __init__(self, function: Named, *args):
        self.function, self.args = function, args


# The pure Python pickler, which allows writing opcodes directly.
_Pickler: Any = pickle._Pickler  # pyright: ignore[reportAttributeAccessIssue]


class Writer(_Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Stored) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            return None
        if isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.REDUCE)
            return None
        if isinstance(obj, Build):
            self.save(obj.obj)
            self.save(obj.state)
            self.write(pickle.BUILD)
            return None
        return super().save(obj, save_persistent_id)


def dumps(obj) -> bytes:
    file = io.BytesIO()
    Writer(file, protocol=2).dump(obj)
    return file.getvalue()


def tensors(arrays: dict, *, legacy: bool, location: str = "cpu"):
    """A dict of arrays in picklable form, and the storages that it refers to."""
    out, storages = collections.OrderedDict(), {}
    for k, (name, x) in enumerate(arrays.items()):
        x = np.asarray(x)
        storages[str(k)] = np.ascontiguousarray(x)
        kind = Named("torch", NAMES[x.dtype.str[1:]])
        pid = ("storage", kind, str(k), location, x.size) + ((None,) if legacy else ())
        stride = tuple(s // x.itemsize for s in np.ascontiguousarray(x).strides)
        out[name] = Call(
            Named("torch._utils", "_rebuild_tensor_v2"),
            Stored(pid),
            0,
            tuple(x.shape),
            stride if x.ndim else (),
            False,
            collections.OrderedDict(),
        )
    return out, storages


def save(
    path: Path, arrays: dict, *, legacy=False, wrap=lambda d: d, location="cpu"
) -> Path:
    """Write a checkpoint; `wrap` makes its content from the state dict."""
    tree, storages = tensors(arrays, legacy=legacy, location=location)
    if not legacy:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", dumps(wrap(tree)))
            archive.writestr("archive/byteorder", "little")
            for key, x in storages.items():
                archive.writestr(f"archive/data/{key}", x.tobytes())
            archive.writestr("archive/version", "3\n")
        return path
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    with open(path, "wb") as file:
        for obj in (0x1950A86A20F9469CFC6C, 1001, system, wrap(tree), list(storages)):
            file.write(dumps(obj))
        for x in storages.values():
            file.write(struct.pack("<q", x.size) + x.tobytes())
    return path
