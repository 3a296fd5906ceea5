"""NumPy arrays and scalars in pickles of Python 2 and 3, read without running code."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxdepth.weights import pickles

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


@dataclasses.dataclass(eq=False)
class _DType:
    """A dtype during unpickling."""

    name: str
    order: Literal["<", ">"] = "<"

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.order = state[1]

    def build(self) -> np.dtype | None:
        """The NumPy dtype, or None for anything but plain numbers."""
        if self.name not in _NUMBERS:
            return None
        return np.dtype(self.name).newbyteorder(self.order)


class Array:
    """An array during unpickling.

    Attributes:
      value: an array of numbers, a list for an array of objects, None otherwise.
    """

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType):
            raise pickles.Forbidden("an array without a dtype")
        kind = dtype.build()
        if kind is None:
            self.value = data if dtype.name.startswith("O") else None
            return
        flat = np.frombuffer(_bytes(data), kind).astype(kind.newbyteorder("="))
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _bytes(data: Any) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else data


@pickles.Builder
def _array(*_: Any) -> Array:
    return Array()


@pickles.Builder
def _dtype(name: Any, *_: Any) -> _DType:
    return _DType(str(name))


@pickles.Builder
def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise pickles.Forbidden(f"encoding {encoding}")
    return text.encode("latin1")


@pickles.Builder
def _scalar(dtype: Any, raw: Any = b"") -> Any:
    kind = dtype.build() if isinstance(dtype, _DType) else None
    return None if kind is None else np.frombuffer(_bytes(raw), kind)[0]


ALLOWED: Mapping[tuple[str, str], Any] = {
    **{
        (f"numpy.{core}.multiarray", name): value
        for core in ("core", "_core")
        for name, value in (("_reconstruct", _array), ("scalar", _scalar))
    },
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,  # Python 3 writes bytes this way in protocol 2
}
