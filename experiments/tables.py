"""The paper's tables: `python -m experiments.tables --table=all --workdir=DIR`."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdepth.commands import cli

PROG = "python -m experiments.tables"


def command(argv: Sequence[str]) -> int:
    """Run and print the tables that the flags ask for; returns the exit code."""
    from jaxdepth.runtime import subprocesses
    from jaxdepth.commands.paper import tables

    mine, theirs = tables.split_flags(argv)
    config = cli.parse(tables.TablesConfig, mine, prog=PROG)
    cache = cli.flag_value(theirs, "cache_dir") or "~/.cache/jaxdepth"

    def start(flags: Sequence[str]) -> subprocesses.Ended:
        words = [sys.executable, "-m", "experiments.run", *flags]
        return subprocesses.launch(words, environment=environment(cache))

    said = shlex.join(["python", "-m", PROG[10:], *argv])
    return tables.run(config, theirs, command=said, start=start)


def environment(cache_dir: str) -> dict[str, str]:
    """For the runs: they find this package, and share what they compile."""
    root = str(Path(__file__).resolve().parents[1])
    compiled = str(Path(cache_dir).expanduser() / "xla")
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    defaults = {"JAX_COMPILATION_CACHE_DIR": compiled}
    return defaults | dict(os.environ) | {"PYTHONPATH": path}


if __name__ == "__main__":
    cli.main(command)
