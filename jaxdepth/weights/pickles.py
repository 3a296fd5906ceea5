"""Pickles of plain data, read without running code.

Python's own unpickler calls whatever a file names. Here it may look up only what a
table allows, and every entry of such a table builds data and does nothing else.
"""

import collections
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from jaxdepth.errors import UserError

# What a pickle of plain data may name, in Python 2 and 3.
PLAIN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class Forbidden(pickle.UnpicklingError):
    """The file names something that is not on the list."""


class DataUnpickler(pickle.Unpickler):
    """An unpickler that knows a table of harmless names and nothing else.

    Args:
      file: opened for reading bytes.
      allowed: (module, name) -> what stands for it.
      persistent: what a persistent id stands for, where the format has them.
      encoding: of the byte strings of Python 2.
    """

    def __init__(
        self,
        file: io.BufferedIOBase,
        allowed: Mapping[tuple[str, str], Any],
        *,
        persistent: Callable[[Any], Any] | None = None,
        encoding: str = "ASCII",
    ):
        super().__init__(file, encoding=encoding)
        self._allowed = allowed
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise Forbidden(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise Forbidden("a persistent id")
        return self._persistent(pid)


def load(unpickler: DataUnpickler, *, where: str) -> Any:
    """The next object. UserError where it names more than data, or is damaged."""
    try:
        return unpickler.load()
    except Forbidden as error:
        raise UserError(
            f"{where} wants to use {error}, which is not data: it was not read, as "
            "such files can run code. Save its state_dict alone, or as safetensors"
        ) from None
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise almost anything
        raise UserError(
            f"{where} is damaged ({type(error).__name__}: {str(error)[:120]})"
        ) from None
