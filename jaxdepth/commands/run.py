"""`jaxdepth run`: train a network on one or several hosts."""

import shlex
from collections.abc import Sequence

from jaxdepth.commands import cli
from jaxdepth.config import Config
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import host_process, hosts, jax_setup, terminal

PROG = "jaxdepth run"
EXAMPLES = (
    "jaxdepth run --arch=upproj --loss=si",
    "jaxdepth run --arch=upproj --loss=berhu --data=nyu_depth_v2_labeled.mat",
    "jaxdepth run --recipe=labeled --data=FOLDER --weights=resnet50.safetensors",
)


def command(argv: Sequence[str]) -> int:
    """Train on one host or as one of several. Returns the exit code."""
    jax_setup.retain_host_memory()  # before connecting hosts, which starts the devices
    flags_lib.check(Config, argv)
    only_help = (
        flags_lib.asks_help(argv) or flags_lib.value_of(argv, "recipe") == "help"
    )
    cluster = None if only_help else cluster_of(argv)
    if cluster is not None:
        if not host_process.is_child():
            return host_process.run(
                ["jaxdepth", "run", *argv],
                coordinator=cluster.coordinator,
                last_checkpoint=_last_checkpoint,
            )
        host_process.exit_with_parent()
        hosts.connect(cluster)
        host_process.record_progress()
        if not hosts.is_first_host():
            terminal.only_errors_to_terminal()
    return train(argv)


def _last_checkpoint(folder: str) -> str:
    from jaxdepth.training import checkpoint  # Orbax takes seconds to import

    return checkpoint.describe_last(folder)


def cluster_of(argv: Sequence[str]) -> hosts.Cluster | None:
    """Detect the hosts from flags, else from the environment."""
    count, index = (
        None if value is None or value.lower() == "none" else int(value)
        for value in (flags_lib.value_of(argv, name) for name in ("hosts", "host"))
    )
    return hosts.detect_cluster(flags_lib.value_of(argv, "coordinator"), count, index)


def train(argv: Sequence[str]) -> int:
    """Train on the connected hosts. Returns the exit code."""
    config = cli.parse_config(
        argv, prog=PROG, default_recipe=default_recipe, examples=EXAMPLES
    )
    from jaxdepth.commands import train as train_command

    return train_command.run(config, command=shlex.join([*PROG.split(), *argv]))


def default_recipe(data: str) -> str:
    """Name of the default recipe: `demo` for rooms on CPU."""
    import jax

    return "demo" if data == "rooms" and jax.default_backend() == "cpu" else "default"
