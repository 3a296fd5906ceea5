"""Count the collectives of one training step in the compiled program.

    jaxdepth collectives --devices=8
    jaxdepth collectives --arch=cnn --bn=local --parallel=pmap

The devices are simulated on the CPU. Counts and bytes do not depend on the batch size
and image size. Other compilers may combine collectives differently; `jaxdepth
compile-for` counts those of the TPU compiler.
"""

import dataclasses
import itertools
import logging
from collections.abc import Sequence
from typing import Literal

import jax

from jaxdepth import config as config_lib
from jaxdepth.commands import cli
from jaxdepth.commands.compile import hlo, lower
from jaxdepth.config import Config
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import sharding

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth collectives"
COLUMNS = ("placement, statistics", "what", "count", "KiB")


@dataclasses.dataclass(frozen=True)
class CollectivesConfig:
    """Count the collectives of one training step by purpose."""

    arch: Literal["cnn_fc", "cnn", "cnn_trans", "upproj"] = "upproj"
    """Architecture."""
    parallel: Literal["jit", "pmap", "both"] = "both"
    """Placement of the step."""
    bn: str = "both"
    """Batch statistics, as for training: global, local or group:N; both: the first
    two."""
    accumulate: int = 1
    """Number of microbatches per step."""
    devices: int = 8
    """Number of simulated devices."""
    size: str = "57x76"
    """Input size of the network, HEIGHTxWIDTH."""


def command(argv: Sequence[str]) -> int:
    """Compile, count and print; returns the exit code."""
    config = flags_lib.parse(CollectivesConfig, argv, prog=PROG)
    if config.devices < 2 or config.accumulate < 1:
        raise UserError("--devices must be at least 2, --accumulate at least 1")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", config.devices)
    rows = []
    placements = ("jit", "pmap") if config.parallel == "both" else (config.parallel,)
    statistics = ("global", "local") if config.bn == "both" else (config.bn,)
    for parallel, bn in itertools.product(placements, statistics):
        entries = collectives(config, parallel, bn)
        for entry in entries:
            what = f"{entry['kind']}: {entry['purpose']}"
            kib = entry["bytes"] / 1024
            rows.append((f"{parallel}, {bn}", what, entry["count"], kib))
        total = sum(entry["count"] for entry in entries)
        logger.info("%s, %s statistics: %d collectives", parallel, bn, total)
    title = f"{config.arch} on {config.devices} devices, collectives in one step"
    terminal.print_table(title, COLUMNS, rows)
    return cli.OK


def collectives(config: CollectivesConfig, parallel: str, bn: str) -> list[dict]:
    """`hlo.collectives` of a training step."""
    resolved = Config.of(
        arch=config.arch,
        parallel=parallel,  # pyright: ignore[reportArgumentType]
        bn=bn,  # pyright: ignore[reportArgumentType]
        accumulate=config.accumulate,
        size=config.size,
        batch_size=config.devices * config.accumulate,
        augment="none",
        steps=1,
    )
    resolved = config_lib.resolve(resolved, platform="cpu")
    resolved = config_lib.resolve_steps(resolved, train_images=1)
    placement = sharding.Placement.over(parallel)
    lowered = lower.lower_step(resolved, placement, frames=0)
    return hlo.collectives(hlo.parse(lowered.compile().as_text() or ""))
