"""Pickles of plain data, read without running code.

Python's unpickler calls any function that a file names. The unpickler in this module
looks names up in a table of allowed ones, whose entries build data and do nothing else.
Other classes, which training scripts keep beside weights, are not imported: stand-ins
with their names replace them and discard their content.
"""

import collections
import pickle
import pickletools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxdepth.runtime.errors import UserError, one_line


class Forbidden(pickle.UnpicklingError):
    """The pickle refers to a name that is not allowed."""


class Builder:
    """A function that pickles may call, without attributes that they could set."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]):
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> None:
        raise Forbidden("a function whose attributes are set")


class Items(dict):
    """Replacement for a subclass of dict, such as defaultdict: keeps only the items."""

    def __init__(self, *_: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Discard attributes."""


class StandIn:
    """Replacement for a class that is not imported; accepts and discards any content.

    Attributes:
      what: module and name of the class.
    """

    what = ""

    def __init__(self, *_: Any, **__: Any):
        pass

    def _discard(self, *_: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _discard


def stand_in(module: str, name: str) -> type[StandIn]:
    """A stand-in class for the named class."""
    return type(StandIn.__name__, (StandIn,), {"what": f"{module}.{name}"})


# Names that pickles of plain data use in Python 2 and 3.
PLAIN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): Items,
}

_PYTHON_3 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# The only names of the standard library that get a stand-in; others may run code.
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


def _gets_stand_in(module: str, name: str) -> bool:
    """Whether a name gets a stand-in: names spelled like classes do, not functions.

    Examples are `torch.optim.Adam` and `__main__.Config`.
    """
    if name in _HARMLESS.get(module, ()):
        return True
    if module.partition(".")[0] in sys.stdlib_module_names:
        return False
    return all(part.lstrip("_")[:1].isupper() for part in name.split("."))


class DataUnpickler(pickle.Unpickler):
    """An unpickler with a table of allowed names and stand-ins for other classes.

    Args:
      file: binary file.
      allowed: (module, name) -> object to use for it.
      persistent: function from a persistent id to an object; None if the format has no
        persistent ids.
    """

    def __init__(
        self,
        file: Any,
        allowed: Mapping[tuple[str, str], Any],
        *,
        persistent: Callable[[Any], Any] | None = None,
    ):
        # latin1 decodes any byte string of Python 2.
        super().__init__(file, encoding="latin1")
        self._allowed = allowed
        self._persistent = persistent

    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_3.get(module, module)
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        if _gets_stand_in(module, name):
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
    """Read the next object of a file.

    Args:
      file: binary file, positioned at a pickle; afterwards positioned behind it.
      allowed, persistent: as in `DataUnpickler`.
      where: the file's name, for messages.

    Raises: UserError if the pickle is damaged or names something that is not allowed.
    """
    try:
        _check_sizes(file)
        return DataUnpickler(file, allowed, persistent=persistent).load()
    except Forbidden as error:
        raise UserError(
            f"{where} refers to {error}, which is not data; it was not read, because "
            "such files can run code: save its state_dict only, or use safetensors"
        ) from None
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise almost anything
        raise damaged(where, error) from None


def _check_sizes(file: Any) -> None:
    """Raise ValueError if the next pickle claims more memory than the file can hold.

    Python's unpickler allocates its memo up to any index in the file: four damaged
    bytes can allocate 64 GB.
    """
    start = file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > count:
            raise ValueError(f"memo index {argument}, expected at most {count}")
    file.seek(start)


def damaged(where: str, error: Exception) -> UserError:
    """A UserError of one line for a file that can't be read."""
    reason = one_line(error)[:120]
    return UserError(f"{where} is damaged ({type(error).__name__}: {reason})")
