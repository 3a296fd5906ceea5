"""Readers with one fault each, for the tests of `tools/fuzz.py`."""

import os
import time
import types
import warnings
from pathlib import Path

import numpy as np

from jaxdepth.runtime.errors import UserError

CONTENT = bytes(range(256)) * 4


def _write(folder: Path) -> None:
    (folder / "a.bin").write_bytes(CONTENT)


def _reader(read, checksums=()):
    # Not a `Reader`: importing the module of that class takes seconds.
    return types.SimpleNamespace(
        write=_write, read=read, damage=("*",), checksums=checksums
    )


def _content(folder: Path) -> bytes:
    return (folder / "a.bin").read_bytes()


def _if_damaged(fault):
    """A reader that is correct for the intact file."""

    def read(folder):
        if _content(folder) != CONTENT:
            fault()
        return {"content": CONTENT}

    return _reader(read)


def _refuse(text):
    def fault():
        raise UserError(text)

    return fault


def _allocate():
    np.ones(400 << 17)  # 400 MiB, freed at once


def _allocate_more():
    np.ones(400 << 17)
    time.sleep(9)


def _as_stored(folder):
    return {"content": _content(folder)}


def _second_part(folder):
    return {"first": 1, "second": np.frombuffer(_content(folder), np.uint8)}


READERS = {
    "identical": _if_damaged(lambda: None),
    "different": _reader(_as_stored),
    "rejected": _if_damaged(_refuse("a.bin is damaged")),
    "silent": _reader(_second_part, checksums=("*.bin",)),
    "message": _if_damaged(_refuse("a.bin\nis damaged")),
    "traceback": _if_damaged(lambda: [][0]),
    "traceback of a warning": _if_damaged(lambda: warnings.warn("odd", stacklevel=1)),
    "crash": _if_damaged(os.abort),
    "hang": _if_damaged(lambda: time.sleep(60)),
    "memory": _if_damaged(_allocate),
    "memory while it lasts": _if_damaged(_allocate_more),
}
