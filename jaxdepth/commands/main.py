"""The command line: `jaxdepth COMMAND ...`, also `python -m jaxdepth COMMAND ...`."""

import importlib
import sys
import typing
from collections.abc import Callable, Sequence

from jaxdepth.commands import cli
from jaxdepth.runtime.errors import UserError, nearest


class Command(typing.NamedTuple):
    """A command: the module whose `command(argv)` runs it, and a line of help."""

    module: str
    summary: str


COMMANDS = {
    "run": Command("run", "train a network, evaluate it and save it"),
    "evaluate": Command("evaluate", "score a trained network on a data set"),
    "predict": Command("predict", "predict depth in metres for photos"),
    "pack": Command("pack", "write a trained network to one file"),
    "compare": Command("compare", "test whether one run is better than another"),
    "report": Command("report.command", "write an HTML report of runs"),
    "tables": Command("paper.tables", "reproduce the paper's tables"),
    "figures": Command("paper.figures", "draw the paper's figures"),
    "prepare-data": Command("prepare_data", "convert a data set to a store"),
    "inspect-data": Command("inspect_data", "check a data set before training"),
    "convert-resnet": Command(
        "convert_resnet", "convert ResNet-50 weights from and to torchvision"
    ),
    "convert-fcrn": Command("convert_fcrn", "convert the published FCRN weights"),
    "benchmark": Command(
        "benchmark.command", "measure training, inference, data and operators"
    ),
    "compile-for": Command(
        "compile.command",
        "compile the training step for a GPU or TPU that is not attached",
    ),
    "collectives": Command(
        "compile.collectives", "count the collectives of a training step"
    ),
}


def help_text() -> str:
    """The commands with their summaries."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxdepth COMMAND [--flag=value ...]",
            "",
            "Depth in metres from one image, in JAX and Flax.",
            "",
            *lines,
            "",
            "`jaxdepth COMMAND --help` lists the flags of a command.",
        ]
    )


def load(name: str) -> Callable[[Sequence[str]], int]:
    """Import the function of a command. Raises UserError for an unknown name."""
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS)
        raise UserError(f"unknown command {name}{hint} (jaxdepth --help lists them)")
    module = importlib.import_module(f"jaxdepth.commands.{COMMANDS[name].module}")
    return module.command


def command(argv: Sequence[str]) -> int:
    """Run the command that the first argument names; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return cli.OK if argv else cli.USER
    if argv[0] == "--version":
        import jaxdepth

        print(f"jaxdepth {jaxdepth.__version__}")
        return cli.OK
    return load(argv[0])(argv[1:])


def main(name: str | None = None) -> typing.NoReturn:
    """Run `sys.argv` as a command line and exit with its code.

    Args:
      name: the command, if the program is one command: `python -m experiments.run`.
    """
    words = sys.argv[1:] if name is None else [name, *sys.argv[1:]]
    cli.main(lambda _: command(words))
