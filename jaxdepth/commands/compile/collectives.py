"""What devices exchange in one training step, counted in the compiled program.

    jaxdepth collectives --devices=8
    jaxdepth collectives --arch=cnn --bn=local --parallel=pmap

Needs no devices: they are simulated on the CPU. Counts and bytes don't depend on
batch and size of the images; other compilers may join exchanges in other ways
(`tpu_compile.py` asks TPU's).
"""

import dataclasses
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
class ExchangesConfig:
    """Count what devices exchange in one training step, by purpose."""

    arch: Literal["cnn_fc", "cnn", "cnn_trans", "upproj"] = "upproj"
    """The network."""
    parallel: Literal["jit", "pmap", "both"] = "both"
    """How the step is placed on the devices."""
    bn: Literal["global", "local", "both"] = "both"
    """Batch statistics over the whole batch, or per device."""
    accumulate: int = 1
    """Parts that each batch is split into."""
    devices: int = 8
    """How many devices to simulate."""
    size: str = "57x76"
    """Input of the network, HEIGHTxWIDTH."""


def command(argv: Sequence[str]) -> int:
    """Compile, count and print; returns the exit code."""
    config = flags_lib.parse(ExchangesConfig, argv, prog=PROG)
    if config.devices < 2 or config.accumulate < 1:
        raise UserError("--devices: at least 2, --accumulate: at least 1")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", config.devices)
    rows = []
    for parallel in (
        ("jit", "pmap") if config.parallel == "both" else (config.parallel,)
    ):
        for bn in ("global", "local") if config.bn == "both" else (config.bn,):
            for found in exchanges(config, parallel, bn):
                what = f"{found['kind']}: {found['purpose']}"
                kib = found["bytes"] / 1024
                rows.append((f"{parallel}, {bn}", what, found["count"], kib))
            total = sum(row[2] for row in rows if row[0] == f"{parallel}, {bn}")
            logger.info("%s, %s statistics: %d exchanges", parallel, bn, total)
    title = f"{config.arch} on {config.devices} devices, exchanges in one step"
    terminal.print_table(title, COLUMNS, rows)
    return cli.OK


def exchanges(config: ExchangesConfig, parallel: str, bn: str) -> list[dict]:
    """`hlo.collectives` of the step that training takes."""
    settled = Config.of(
        arch=config.arch,
        parallel=parallel,  # pyright: ignore[reportArgumentType]
        bn=bn,  # pyright: ignore[reportArgumentType]
        accumulate=config.accumulate,
        size=config.size,
        batch_size=config.devices * config.accumulate,
        augment="none",
        steps=1,
    )
    settled = config_lib.resolve(settled, platform="cpu")
    settled = config_lib.resolve_steps(settled, train_images=1)
    placement = sharding.Placement.over(parallel)
    lowered = lower.lower_step(settled, placement, frames=0)
    return hlo.collectives(hlo.parse(lowered.compile().as_text() or ""))
