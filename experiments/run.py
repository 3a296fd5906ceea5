"""Train a network: `python -m experiments.run --arch=upproj --loss=si`."""

import shlex
from collections.abc import Sequence

from jaxdepth import cli, host_memory, hosts, supervise, writers
from jaxdepth.config import Config

PROG = "python -m experiments.run"


def command(argv: Sequence[str]) -> int:
    """Train as the flags say, with the other hosts if any; returns the exit code."""
    host_memory.keep()  # before hosts meet, which asks for devices
    cli.check_flags(Config, argv)
    cluster = None if cli.asks_help(argv) else cluster_of(argv)
    if cluster is not None:
        if not supervise.inside():
            return supervise.run(PROG[10:], argv, met_at=cluster.coordinator)
        supervise.leave_with_parent()
        hosts.connect(cluster)
        supervise.note()
        if not hosts.first():
            writers.only_errors_to_terminal()
    return train(argv)


def cluster_of(argv: Sequence[str]) -> hosts.Cluster | None:
    """The hosts that the flags or the surroundings speak of."""
    count, index = (
        None if value is None or value.lower() == "none" else int(value)
        for value in (cli.flag_value(argv, name) for name in ("hosts", "host"))
    )
    return hosts.find(cli.flag_value(argv, "coordinator"), count, index)


def train(argv: Sequence[str]) -> int:
    """Train on the hosts that are connected; returns the exit code."""
    config = cli.parse_config(argv, prog=PROG, default_recipe=default_recipe)
    from jaxdepth import session

    return session.run(config, command=shlex.join(["python", "-m", PROG[10:], *argv]))


def default_recipe(data: str) -> str:
    """`demo` where there is neither data nor an accelerator."""
    import jax

    return "demo" if data == "rooms" and jax.default_backend() == "cpu" else "default"


if __name__ == "__main__":
    cli.main(command)
