"""Pickles of plain data, read without running code.

Python's own unpickler calls whatever a file names. Here it may look up only what a
table allows, and every entry of such a table builds data and does nothing else.
Classes that training scripts keep beside weights and that mean nothing here become
stand-ins: never imported, they know their name and forget what they are given.
"""

import collections
import pickle
import pickletools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxdepth.runtime.errors import UserError


class Forbidden(pickle.UnpicklingError):
    """The file names something that is not on the list."""


class Builder:
    """A function that a pickle may call. Pickles can set attributes of what they
    name; of this they can't."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]):
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> None:
        raise Forbidden("a function whose attributes are set")


class Items(dict):
    """A dict of another kind, such as a defaultdict: its items, and no more."""

    def __init__(self, *_: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Attributes of its own are of no use here."""


class StandIn:
    """In place of a class that is not looked up: takes anything and keeps nothing.

    Attributes:
      what: module and name of the class.
    """

    what = ""

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def _forget(self, *_: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _forget


def stand_in(module: str, name: str) -> type[StandIn]:
    """The class that takes the place of that one."""
    return type(StandIn.__name__, (StandIn,), {"what": f"{module}.{name}"})


# What a pickle of plain data may name, in Python 2 and 3.
PLAIN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): Items,
}

_PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# Of Python's own library only these get a stand-in: the rest of it can do things.
_HARMLESS = {
    "argparse": {"Namespace"},
    "builtins": {
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int",
        "list", "object", "range", "set", "slice", "str", "tuple",
    },
    "collections": {"Counter", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    **{
        module: {"Path", "PosixPath", "PurePath", "PurePosixPath", "WindowsPath"}
        for module in ("pathlib", "pathlib._local")  # the latter in Python 3.13
    },
    "types": {"SimpleNamespace"},
    "typing": {"Any"},
    "uuid": {"UUID"},
}  # fmt: skip


def _stands_aside(module: str, name: str) -> bool:
    """Whether a name may have a stand-in: a class by its spelling, as in
    `torch.optim.Adam` or `__main__.Config`; functions are there to be called."""
    if name in _HARMLESS.get(module, ()):
        return True
    if module.partition(".")[0] in sys.stdlib_module_names:
        return False
    return all(part.lstrip("_")[:1].isupper() for part in name.split("."))


class DataUnpickler(pickle.Unpickler):
    """An unpickler that knows a table of harmless names, and stand-ins for classes.

    Args:
      file: opened for reading bytes.
      allowed: (module, name) -> what stands for it.
      persistent: what a persistent id stands for, where the format has them.
    """

    def __init__(
        self,
        file: Any,
        allowed: Mapping[tuple[str, str], Any],
        *,
        persistent: Callable[[Any], Any] | None = None,
    ):
        # Byte strings of Python 2 are taken as latin1, which fits all bytes.
        super().__init__(file, encoding="latin1")
        self._allowed = allowed
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_3.get(module, module)
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        if _stands_aside(module, name):
            return stand_in(module, name)
        raise Forbidden(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise Forbidden("a persistent id")
        return self._persistent(pid)


def load(
    file: Any,
    allowed: Mapping[tuple[str, str], Any],
    *,
    where: str,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The next object. UserError where it names more than data, or is damaged.

    Args:
      file: opened for reading bytes, at a pickle; it is left behind it.
      allowed, persistent: as in `DataUnpickler`.
      where: the file's name, for messages.
    """
    try:
        _check_sizes(file)
        return DataUnpickler(file, allowed, persistent=persistent).load()
    except Forbidden as error:
        raise UserError(
            f"{where} wants to use {error}, which is not data: it was not read, as "
            "such files can run code. Save its state_dict alone, or as safetensors"
        ) from None
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise almost anything
        raise damaged(where, error) from None


def _check_sizes(file: Any) -> None:
    """ValueError where the next pickle claims more than the file holds.

    Python's unpickler believes in any length, and in any place in its memo, and
    allocates it: four changed bytes can cost 64 GB.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > count:
            raise ValueError(f"place {argument} of a memo of {count} at most")
    file.seek(start)


def damaged(where: str, error: Exception) -> UserError:
    """One line on a file that can't be read."""
    words = " ".join(str(error).split())[:120]
    return UserError(f"{where} is damaged ({type(error).__name__}: {words})")
