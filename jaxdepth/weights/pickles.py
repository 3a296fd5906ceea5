"""Pickles of plain data, read without running code.

Python's unpickler calls any function that a file names. The unpickler in this module
looks names up in a table of allowed ones, whose entries build data and do nothing else.
Other classes, which training scripts keep beside weights, are not imported: stand-ins
with their names replace them and discard their content. A pickle can't use much more
time or memory than its size suggests: the number of operations is limited, copies that
its calls make are counted, and tuples with many entries can't be keys.
"""

import collections
import io
import pickle
import pickletools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, ClassVar, cast

from jaxdepth.runtime.errors import UserError, one_line
from jaxdepth.weights import name_tables

# Ten times those of the optimizer state of a large network; read in about a second.
_MAX_OPERATIONS = 500_000
_MAX_LINE = 1 << 20
_MAX_BITS = 2048  # of integers; torch's magic number has 80, NumPy's generator 128
_MAX_KEY = 100  # entries of a tuple used as a key, including nested tuples


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


class Tuple(tuple):
    """A tuple that can be hashed only if it has few entries, nested ones included.

    Python does not cache hashes of tuples: hashing a pair of the same tuple, nested a
    hundred times, does not finish, and deeper nesting crashes the process.

    Attributes:
      weight: number of entries, including those of nested tuples.
    """

    weight: int

    def __new__(cls, items: Iterable[Any] = ()) -> "Tuple":
        self = super().__new__(cls, items)
        weight = sum(x.weight if isinstance(x, Tuple) else 1 for x in self)
        self.weight = min(1 + weight, 1 << 40)
        return self

    def __hash__(self) -> int:
        if self.weight > _MAX_KEY:
            raise ValueError("nested tuples as a key")
        return super().__hash__()


class BoundedFile:
    """A file whose reads allocate no more than the file holds.

    Attributes:
      size: number of bytes from the position at the creation to the end.
    """

    def __init__(self, file: Any):
        self._file = file
        self.tell, self.seek = file.tell, file.seek
        start = file.tell()
        self._end = file.seek(0, io.SEEK_END)
        file.seek(start)
        self.size = self._end - start

    def read(self, count: int = -1) -> bytes:
        if count > _MAX_LINE and count > self._end - self._file.tell():
            raise EOFError("unexpected end of file")
        return self._file.read(count)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def readline(self) -> bytes:
        return self._file.readline(_MAX_LINE)


# The pure-Python unpickler: its opcodes can be overridden, and its memo is a dict. The
# C unpickler allocates an array for the memo, up to any index in a file.
_Unpickler: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]


def _charged(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap an opcode that makes a call: count the arguments first."""

    def counting(unpickler: Any) -> None:
        for value in unpickler.stack[-2:]:
            unpickler.charge(value)
        load(unpickler)

    return counting


def _weighed(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wrap an opcode that makes a tuple: convert it to `Tuple`."""

    def weighing(unpickler: Any) -> None:
        load(unpickler)
        unpickler.stack[-1] = Tuple(unpickler.stack[-1])

    return weighing


def _changed(
    change: Callable[[Callable[[Any], None]], Callable[[Any], None]], *opcodes: bytes
) -> dict[int, Callable[[Any], None]]:
    return {code[0]: change(_Unpickler.dispatch[code[0]]) for code in opcodes}


class DataUnpickler(_Unpickler):
    """An unpickler with a table of allowed names and stand-ins for other classes.

    Args:
      file: binary file.
      allowed: (module, name) -> object to use for it.
      persistent: function from a persistent id to an object; None if the format has no
        persistent ids.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **_Unpickler.dispatch,
        **_changed(
            _charged, pickle.REDUCE, pickle.BUILD, pickle.NEWOBJ, pickle.NEWOBJ_EX
        ),
        **_changed(_weighed, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    }

    def __init__(
        self,
        file: BoundedFile,
        allowed: Mapping[tuple[str, str], Any],
        *,
        persistent: Callable[[Any], Any] | None = None,
    ):
        # latin1 decodes any byte string of Python 2.
        super().__init__(file, encoding="latin1")
        self._allowed = allowed
        self._persistent = persistent
        # Limits on the total size of all arguments of calls. Bytes that are encoded as
        # text are arguments of two calls.
        self._bytes_left = 2 * file.size + _MAX_LINE
        self._entries_left = 2 * _MAX_OPERATIONS

    def charge(self, arguments: Any) -> None:
        """Count arguments of a call, which may copy them.

        Raises: ValueError if the total is too large: objects are passed repeatedly.
        """
        for value in (arguments, *(arguments if isinstance(arguments, tuple) else ())):
            if isinstance(value, str | bytes | bytearray):
                self._bytes_left -= len(value)
            elif isinstance(value, list | tuple | dict | set | frozenset):
                self._entries_left -= len(value)
            if min(self._bytes_left, self._entries_left) < 0:
                raise ValueError("a call has more arguments than the file can hold")

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.charge(tuple(args))
        super()._instantiate(klass, args)

    def find_class(self, module: str, name: str) -> Any:
        module = _PYTHON_3.get(module, module)
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        if _gets_stand_in(module, name):
            return stand_in(module, name)
        raise Forbidden(name_tables.printable(f"{module}.{name}"))

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
      file: binary file, positioned at a pickle; afterwards positioned after it.
      allowed, persistent: as in `DataUnpickler`.
      where: the file's name, for messages.

    Raises: UserError if the pickle is damaged or names something that is not allowed.
    """
    try:
        bounded = BoundedFile(file)
        _check_operations(bounded)
        return DataUnpickler(bounded, allowed, persistent=persistent).load()
    except Forbidden as error:
        raise UserError(
            f"{where} refers to {error}, which is not data; it was not read, because "
            "such files can run code: save its state_dict only, or use safetensors"
        ) from None
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise almost anything
        raise damaged(where, error) from None


def _check_operations(file: BoundedFile) -> None:
    """Raise ValueError if the next pickle has too many operations or a huge number.

    The file's position is restored.
    """
    start, stream = file.tell(), cast(IO[bytes], file)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= _MAX_OPERATIONS:
            raise ValueError(
                f"more than {_MAX_OPERATIONS} operations: save its state_dict only"
            )
        # In a pickle that Python wrote, a memo index is the number of earlier entries.
        if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > count:
            raise ValueError(f"memo index {argument}, expected at most {count}")
        if isinstance(argument, int) and argument.bit_length() > _MAX_BITS:
            raise ValueError(f"a number of {argument.bit_length()} bits")
    file.seek(start)


def damaged(where: str, error: Exception) -> UserError:
    """A UserError of one line for a file that can't be read."""
    reason = one_line(error)[:120]
    return UserError(f"{where} is damaged ({type(error).__name__}: {reason})")
