"""What every command shares: flags from a dataclass, and exit codes.

tyro reads the flags and writes the help; the two commonest mistakes, an unknown flag
and a wrong choice, are answered here first, in one line with the nearest right one.
"""

import contextlib
import dataclasses
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Sequence

import tyro

from jaxdepth.config import Config
from jaxdepth.recipes import RECIPES, recipe_named
from jaxdepth.runtime import hosts, terminal
from jaxdepth.runtime.errors import MachineError, UserError, nearest

T = typing.TypeVar("T")

_NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}

OK, MACHINE, USER, NON_FINITE, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, 75, 130
# A file can't be opened under the name that was given.
_OF_NAMES = (
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
    errno.ELOOP,
)  # fmt: skip


def parse(cls: type[T], argv: Sequence[str], *, prog: str) -> T:
    """An instance of dataclass `cls` from flags. UserError on the first wrong one."""
    argv = list(argv)
    check_flags(cls, argv)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                cls,
                args=argv,
                prog=prog,
                use_underscores=True,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(_one_line(errors.getvalue(), prog)) from None


def parse_config(
    argv: Sequence[str],
    *,
    prog: str,
    default_recipe: Callable[[str], str] = lambda data: "default",
) -> Config:
    """`Config` from flags over a recipe: --recipe, or the default for --data."""
    argv = list(argv)
    given = flag_value(argv, "recipe")
    if given == "help":
        for name, entry in RECIPES.items():
            print(f"{name:16} {entry.doc}\n{' ':16} {entry.command(name)}")
        raise SystemExit(OK)
    check_flags(Config, argv)
    name = given or "default"
    if given is None and not asks_help(argv):
        name = default_recipe(flag_value(argv, "data") or "rooms")
    flags = dict(recipe_named(name).flags)
    # Steps and epochs name one thing: the one given beside the recipe wins, and what
    # fits the recipe's own number of steps goes with it.
    for pair, more in (
        (("steps", "epochs"), ("eval_every",)),
        (("warmup_steps", "warmup_epochs"), ()),
    ):
        if any(flag_value(argv, key) for key in pair):
            flags = {k: v for k, v in flags.items() if k not in (*pair, *more)}
    preset = [f"--{key}={value}" for key, value in flags.items()]
    rest = [f"--recipe={name}"] if given is None else []
    return parse(Config, preset + rest + argv, prog=prog)


def flag_value(argv: Sequence[str], name: str) -> str | None:
    """The last value of a flag in `argv`, written --flag=value or --flag value."""
    value = None
    for k, word in enumerate(argv):
        key, equals, rest = word.partition("=")
        if key.replace("-", "_") == f"__{name}":
            value = rest if equals else (argv[k + 1] if k + 1 < len(argv) else None)
    return value


def asks_help(argv: Sequence[str]) -> bool:
    """Whether the flags want help, or the list of recipes, and nothing done."""
    return bool({"-h", "--help"} & set(argv)) or flag_value(argv, "recipe") == "help"


def check_flags(cls: type, argv: Sequence[str]) -> None:
    """UserError for the first unknown flag of dataclass `cls`, or impossible value."""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for k, word in enumerate(argv):
        if not word.startswith("--") or word in ("--help", "--"):
            continue
        key, equals, value = word.partition("=")
        name = key[2:].replace("-", "_")
        if name.startswith("no_") and hints.get(name[3:]) is bool and not equals:
            continue
        if name not in names:
            hint = nearest(name, names).replace("mean ", "mean --")
            raise UserError(f"unknown flag {key}{hint} (--help lists them all)")
        if not equals:
            value = argv[k + 1] if k + 1 < len(argv) else ""
        _check_value(name, value, hints[name])


def _check_value(name: str, value: str, hint: typing.Any) -> None:
    """Raise UserError unless `value` can be read as `hint`, a field's type."""
    options = typing.get_args(hint) if not isinstance(hint, type) else (hint,)
    if typing.get_origin(hint) is typing.Literal:
        words = [str(option) for option in options]
        if value not in words:
            raise UserError(
                f"--{name}={value}: one of {', '.join(words)}{nearest(value, words)}"
            )
        return
    wanted = [word for kind, word in _NUMBERS.items() if kind in options]
    if not wanted:
        return
    words = [w for o in options for w in typing.get_args(o)]
    words += ["none"] if type(None) in options else []
    if value.lower() in words:
        return
    try:
        (int if int in options else float)(value)
    except ValueError:
        raise UserError(f"--{name}={value}: {' or '.join(wanted + words)}") from None


def _one_line(message: str, prog: str) -> str:
    """The first sentence of one of tyro's boxes."""
    text = re.sub(r"[╭╮╰╯│─]", " ", message)
    text = re.split(r"Argument helptext|For full helptext|Perhaps you", text)[0]
    words = " ".join(text.split())
    return f"{words or 'the flags could not be read'} ({prog} --help lists them)"


def main(command: Callable[[Sequence[str]], int | None]) -> typing.NoReturn:
    """Run a command on `sys.argv` and leave with its exit code, without tracebacks.

    Mistakes of the user and failures of the machine are one line on stderr. A second
    Ctrl-C, or one outside training, leaves with 130.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.raiseExceptions = False  # a log that can't be written stops nothing
    # What fails on a thread is raised again where its result is waited for, and what
    # fails while objects go follows from that.
    threading.excepthook = sys.unraisablehook = _note_aside
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and in Orbax's loops
    terminal.log_to_terminal()
    quiet_libraries()
    try:
        code = command(sys.argv[1:]) or OK
    except UserError as error:
        code = _fail(f"error: {error}", USER, error)
    except MachineError as error:
        code = _fail(f"stopped: {error}", MACHINE, error)
    except KeyboardInterrupt as error:
        code = _fail("interrupted", INTERRUPTED, error)
    except BrokenPipeError:
        # Somebody closed our output (head, less): nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_NAMES and error.filename:
            name = os.fsdecode(error.filename)
            code = _fail(f"error: {name}: {error.strerror}", USER, error)
        elif not hosts.is_multi_host():
            raise
        else:
            traceback.print_exc()
            code = _leave(MACHINE)
    sys.stdout.flush()
    raise SystemExit(code)


def _fail(line: str, code: int, error: BaseException) -> int:
    """Say how it failed, once for all hosts where all fail alike."""
    everywhere = getattr(error, "everywhere", False)
    if not everywhere or hosts.is_first_host():
        print(" ".join(line.split()), file=sys.stderr)
    return code if everywhere else _leave(code)


def _leave(code: int) -> int:
    """Of several hosts, go at once: JAX would wait for those that wait for this one."""
    if hosts.is_multi_host():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _note_aside(failed: typing.Any) -> None:
    logging.getLogger("jaxdepth").debug("aside, failed: %r", failed.exc_value)


def quiet_libraries() -> None:
    """Keep what TensorFlow and absl say on import away from the terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    for name in ("absl", "tensorflow", "jax._src.xla_bridge"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
