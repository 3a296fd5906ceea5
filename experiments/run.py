"""Train a network: `python -m experiments.run --arch=upproj --loss=si`."""

import shlex
from collections.abc import Sequence

from jaxdepth import cli, host_memory

PROG = "python -m experiments.run"


def command(argv: Sequence[str]) -> int:
    """Train as the flags say; returns the exit code."""
    host_memory.keep()
    config = cli.parse_config(argv, prog=PROG, default_recipe=default_recipe)
    from jaxdepth import session

    return session.run(config, command=shlex.join(["python", "-m", PROG[10:], *argv]))


def default_recipe(data: str) -> str:
    """`demo` where there is neither data nor an accelerator."""
    import jax

    return "demo" if data == "rooms" and jax.default_backend() == "cpu" else "default"


if __name__ == "__main__":
    cli.main(command)
