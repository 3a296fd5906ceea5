"""Shared by all commands: flags over recipes, exit codes and one-line errors."""

import errno
import logging
import os
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Sequence

from jaxdepth.config import Config
from jaxdepth.recipes import RECIPES, recipe_named
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import hosts, terminal
from jaxdepth.runtime.errors import MachineError, UserError, printable

OK, MACHINE, USER, NON_FINITE, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, 75, 130
# Errors of a file name that the user gave.
_NAME_ERRORS = (
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
    errno.ELOOP,
)  # fmt: skip


def parse_config(
    argv: Sequence[str],
    *,
    prog: str,
    default_recipe: Callable[[str], str] = lambda data: "default",
    examples: Sequence[str] = (),
) -> Config:
    """`Config` from flags over a recipe: --recipe, or the default for --data.

    Raises: UserError for the first mistake; SystemExit after --help and --recipe=help.
    """
    argv = flags_lib.load_plugins(argv)
    recipe = flags_lib.value_of(argv, "recipe")
    if recipe == "help":
        for name, entry in RECIPES.items():
            print(f"{name:16} {entry.doc}\n{' ':16} {entry.command(name)}")
        raise SystemExit(OK)
    if flags_lib.asks_help(argv):
        return flags_lib.parse(Config, argv, prog=prog, examples=examples)
    flags_lib.check(Config, argv)
    name = recipe or default_recipe(flags_lib.value_of(argv, "data") or "rooms")
    preset = dict(recipe_named(name).flags)
    # Steps and epochs exclude each other: a flag overrides both of the recipe, and
    # drops what fits the recipe's number of steps alone.
    for pair, dependent in (
        (("steps", "epochs"), ("eval_every", "keep_optimizer")),
        (("warmup_steps", "warmup_epochs"), ()),
    ):
        if any(flags_lib.value_of(argv, key) for key in pair):
            drop = (*pair, *dependent)
            preset = {k: v for k, v in preset.items() if k not in drop}
    words = [f"--{key}={value}" for key, value in preset.items()]
    return flags_lib.parse(Config, [*words, f"--recipe={name}", *argv], prog=prog)


def main(command: Callable[[Sequence[str]], int | None]) -> typing.NoReturn:
    """Run a command on `sys.argv` and exit with its code, without tracebacks.

    Mistakes of the user and failures of the machine are one line on stderr. A second
    Ctrl-C, or one outside training, exits with 130.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.raiseExceptions = False  # ignore errors of writing the log
    # Errors in threads are raised again where their result is awaited; errors raised
    # by finalizers are secondary. Both are logged at debug level.
    threading.excepthook = sys.unraisablehook = _log_secondary
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
        # The reader closed the pipe (head, less).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except Exception as error:
        if (
            isinstance(error, OSError)
            and error.errno in _NAME_ERRORS
            and error.filename
        ):
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
    """Print the error, once if all hosts raise it. Returns the exit code."""
    everywhere = getattr(error, "everywhere", False)
    if not everywhere or hosts.is_first_host():
        print(printable(" ".join(line.split()), None), file=sys.stderr)
    return code if everywhere else _leave(code)


def _leave(code: int) -> int:
    """On multi-host runs, exit immediately to avoid waiting for the other hosts."""
    if hosts.is_multi_host():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _log_secondary(failed: typing.Any) -> None:
    logging.getLogger("jaxdepth").debug("secondary error: %r", failed.exc_value)


def quiet_libraries() -> None:
    """Silence the log messages of TensorFlow and absl on import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    for name in ("absl", "tensorflow", "jax._src.xla_bridge"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
