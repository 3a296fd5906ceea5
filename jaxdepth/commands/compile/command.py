"""The real training step, compiled for a TPU that is not here: what it will cost.

    jaxdepth compile-for --topology=v5e:1x1 --layout=fcrn
    jaxdepth compile-for --topology=v5e:8x8 --batch_size=8192 --json=v5e-8x8.json
    jaxdepth compile-for --topology=v6e:1x1 --batch_size=best
    jaxdepth compile-for --topology=v5e:1x1 --block=up4

Takes the flags of training. A whole step takes minutes to compile, a block seconds.
Everything is the compiler's estimate: no TPU runs. Needs libtpu (the extra `tpu`).
"""

import dataclasses
import datetime
import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from jaxdepth import config as config_lib
from jaxdepth import workdir
from jaxdepth.commands import cli
from jaxdepth.commands.compile import chips as chips_lib
from jaxdepth.commands.compile import hlo, lower
from jaxdepth.config import Config
from jaxdepth.ops import platform
from jaxdepth.recipes import recipe_named
from jaxdepth.runtime import atomic, terminal
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.versions import version
from jaxdepth.training import sharding
from jaxdepth.weights.files import refuse_existing

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth compile-for"
PER_CHIP = 128  # images of a chip at once: fills the 128 lanes of a tile
GRAIN = 64  # steps in the search for the largest batch
RECOMPUTED = 1.02  # more FLOPs an image than that, relatively: made to fit by redoing
# libtpu looks for a machine to be on; these keep it from asking the network.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class CompileConfig(Config):
    """Compile the training step for a TPU that is not here, and report its costs.

    Flags beside these are those of training; data, work directory and logging have no
    effect. --batch_size counts the images of all chips; auto: 128 on each.
    """

    topology: str = "v5e:1x1"
    """Which slice: v4, v5e, v5p or v6e, and its shape, as in v5e:2x2."""
    largest_batch: bool = False
    """Search for the largest batch that fits; --batch_size=best is the same."""
    block: str | None = None
    """Compile this part alone, forward and gradients: stem, stage1, up4, head, or
    the path of a module, as in encoder/stage1_block1; augment: the way there."""
    frames: int = 795
    """Training frames on the devices under --cache=device."""
    xla: str | None = None
    """Options of the compiler, NAME=VALUE,NAME=VALUE, beside those that training sets:
    what LIBTPU_INIT_ARGS holds where a TPU runs."""
    json: str | None = None
    """A file for the numbers; an existing one is not overwritten."""
    hlo: str | None = None
    """A file for the compiled module's text; likewise."""

    def __post_init__(self):
        config_lib.validate(self)


def parse(argv: Sequence[str]) -> CompileConfig:
    """Flags over the recipe that --recipe names."""
    name = flags_lib.value_of(argv, "recipe") or "default"
    flags = recipe_named(name).flags
    # Weights and length have no place in what is compiled.
    kept = {k: v for k, v in flags.items() if k not in ("init", "steps", "epochs")}
    preset = [f"--{key}={value}" for key, value in kept.items()]
    if flags_lib.value_of(argv, "batch_size") == "best":
        argv = [*flags_lib.without(argv, "batch_size"), "--largest_batch"]
    return flags_lib.parse(CompileConfig, [*preset, *argv], prog=PROG)


def describe(wanted: chips_lib.Slice) -> Sequence[sharding.Device]:
    """The chips of a slice, as JAX describes those that aren't here.

    Raises UserError without libtpu, MachineError where another process holds it.
    """
    if not os.environ.get("TPU_LIBRARY_PATH") and not importlib.util.find_spec(
        "libtpu"
    ):
        raise UserError(
            "libtpu, the TPU's compiler, is not installed: pip install -e '.[tpu]'"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(
            wanted.name, platform="tpu", **wanted.options()
        ).devices
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise UserError(
                f"--topology={wanted.name}: libtpu {version('libtpu')} says {error}"
            ) from None
        raise MachineError(
            "another process on this machine holds libtpu: wait for it, or set "
            "ALLOW_MULTIPLE_LIBTPU_LOAD=1 (only what runs on a TPU needs it alone)"
        ) from None


def settle(config: CompileConfig, chips: int, per_chip: int) -> CompileConfig:
    """Nothing `auto` any more: what training would do on a TPU."""
    size: Any = config.train.batch_size
    if size == "auto" or config.largest_batch:
        size = per_chip * chips
    length = 1000 if config.train.steps == "auto" else config.train.steps
    given = config.replace(batch_size=size, steps=length, epochs=None)
    return config_lib.resolve(given, platform="tpu")  # pyright: ignore[reportReturnType]


class TooLarge(UserError):
    """The compiler found more memory in use than the chip has."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A slice and the chips that JAX describes for it."""

    slice: chips_lib.Slice
    devices: Sequence[sharding.Device]

    @property
    def chips(self) -> int:
        return len(self.devices)


def compiled(config: Any, target: Target) -> tuple[Any, dict[str, str], float]:
    """The compiled module, the compiler's options, and the seconds it took.

    Raises TooLarge.
    """
    placement = sharding.Placement.over(config.train.parallel, target.devices)
    placement.check_batch(int(config.train.batch_size), config.train.accumulate)
    began = time.monotonic()
    with platform.compiling_for("tpu"):
        if config.block is None:
            lowered = lower.lower_step(config, placement, frames=config.frames)
        else:
            lowered = lower.lower_block(config, placement, block=config.block)
    # As training on these chips, unless told otherwise.
    options = placement.compiler_options() | parse_options(config.xla)
    try:
        module = lowered.compile(dict(options))
        return module, options, time.monotonic() - began
    except jax.errors.JaxRuntimeError as error:
        if config.xla is not None and "INVALID_ARGUMENT" in str(error):
            raise UserError(f"--xla={config.xla}: {error}") from None
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"\d[\d.]*[GMK]\b", str(error))
        raise TooLarge(
            f"--batch_size={config.train.batch_size}: {' of '.join(sizes[:2])} memory "
            f"of a chip of {target.slice.name}; --batch_size=best finds the most that "
            "fit"
        ) from None


def parse_options(text: str | None) -> dict[str, str]:
    """`a=1,b=2` as a dict; UserError on anything else."""
    options = {}
    for pair in text.split(",") if text else ():
        name, equals, value = pair.removeprefix("--").partition("=")
        if not (name and equals):
            raise UserError(f"--xla={text}: NAME=VALUE,NAME=VALUE")
        options[name] = value
    return options


def measure(config: CompileConfig, target: Target) -> dict[str, Any]:
    """Compile once and read what it costs, per chip."""
    module, options, seconds = compiled(config, target)
    text = module.as_text()
    if config.hlo is not None:
        with atomic.atomic_write(Path(config.hlo)) as file:
            file.write(text.encode())
    per_chip = int(config.train.batch_size) // target.chips
    # A loop's body is counted once: a microbatch of one step.
    once = per_chip // (config.train.accumulate if config.block is None else 1)
    calls = config.train.steps_per_call if config.block is None else 1
    cost, found = module.cost_analysis(), hlo.parse(text)
    work, exchanges = hlo.work(found), hlo.collectives(found)
    images = per_chip * calls
    report = {
        "topology": target.slice.name,
        "chips": target.chips,
        "hosts": len({d.process_index for d in target.devices}),
        "batch_size": int(config.train.batch_size),
        "images_per_chip": per_chip,
        "block": config.block,
        "compiler_options": options,
        "flops_per_image": cost["flops"] / once,
        "bytes_per_image": cost["bytes accessed"] / once,
        "cycles_per_image": work.cycles / images,
        "memory": memory(module.memory_analysis(), target.slice.chip),
        "traffic_per_image": work.traffic / images,
        "images_per_call": images,
        "groups": work.groups,
        "costliest": work.costliest,
        "unestimated": work.unestimated,
        "exchanges": exchanges,
        "compile_seconds": seconds,
    }
    rates = chips_lib.roofline(
        target.slice.chip,
        flops=report["flops_per_image"],
        bytes_accessed=report["bytes_per_image"],
        cycles=report["cycles_per_image"],
        images=1,
    )
    return report | {"images_per_s": rates, "scaling": scaling(report, rates, calls)}


def memory(stats: Any, chip: chips_lib.Chip) -> dict[str, float]:
    """Bytes of a chip while the step runs, by what they are for."""
    kept = stats.output_size_in_bytes - stats.alias_size_in_bytes
    found = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "results in memory of their own": kept,
        "code": stats.generated_code_size_in_bytes,
    }
    return found | {"used": sum(found.values()), "available": chip.memory}


def scaling(
    report: dict[str, Any], rates: dict[str, Any], calls: int
) -> list[dict[str, float]]:
    """Weak scaling from the exchanges of one step; nothing where one chip has none."""
    if report["chips"] == 1:
        return []
    chip = _chip(report)
    per_step = [
        {**e, "count": e["count"] / calls, "bytes": e["bytes"] / calls}
        for e in report["exchanges"]
    ]
    # Beside the fastest step there could be, waiting weighs most.
    seconds = report["images_per_chip"] / rates["roofline"]
    return chips_lib.scaling(chip, per_step, seconds=seconds, chips=(1, 4, 16, 64, 256))


def search(
    config: CompileConfig, target: Target, measure: Callable[..., dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report of the largest batch that fits, and those of all that were compiled.

    Halves `PER_CHIP` until it fits, then tries what its memory foretells in steps of
    `GRAIN`, at most twice. A batch that the compiler makes fit by computing things
    twice is none that fits.
    """
    tried: list[dict[str, Any]] = []

    def at(per_chip: int) -> dict[str, Any] | None:
        try:
            report = measure(settle(config, target.chips, per_chip), target)
        except TooLarge as error:
            logger.info("%d images a chip don't fit (%s)", per_chip, error)
            return None
        tried.append(report)
        logger.info("%s", summary(report))
        return report

    per_chip = PER_CHIP
    while (best := at(per_chip)) is None:
        per_chip //= 2
        if not per_chip:
            raise UserError(f"no image fits into a chip of {target.slice.name}")
    step = min(GRAIN, per_chip)
    wanted = foretold(best["memory"], per_chip) // step * step
    for more in (wanted, wanted - step):
        if more <= per_chip:
            break
        report = at(more)
        if report is None:
            continue
        if report["flops_per_image"] <= RECOMPUTED * best["flops_per_image"]:
            return report, tried
        logger.info("%d images a chip fit by computing things twice", more)
    return best, tried


def foretold(used: dict[str, float], per_chip: int) -> int:
    """How many images would fill the memory, if temporaries grow with their number.

    At most 16 times as many: small blocks keep everything in the core's own memory.
    """
    room = used["available"] - used["used"] + used["temporaries"]
    return int(per_chip * min(16.0, room / max(1.0, used["temporaries"])))


def summary(report: dict[str, Any]) -> str:
    """One line."""
    used = report["memory"]
    return (
        f"{report['topology']}, {report['images_per_chip']} images a chip: "
        f"{report['flops_per_image'] / 1e9:.1f} GFLOP, "
        f"{report['bytes_per_image'] / 1e6:.0f} MB and "
        f"{report['cycles_per_image'] / 1e6:.3f} Mcycles an image, "
        f"{used['used'] / 2**30:.1f} of {used['available'] / 2**30:.1f} GiB, compiled "
        f"in {report['compile_seconds']:.0f} s"
    )


def show(report: dict[str, Any]) -> None:
    """The report on the terminal."""
    title = report["block"] or "the training step"
    logger.info(
        "%s for %s (chips: %d, hosts: %d), %d images in all",
        title,
        report["topology"],
        report["chips"],
        report["hosts"],
        report["batch_size"],
    )
    logger.info("%s", summary(report))
    parts = report["memory"].items()
    terminal.print_table(
        "memory of a chip [MiB]",
        ("what", "MiB"),
        [(name, round(size / 2**20)) for name, size in parts],
    )
    _show_work(report)
    _show_exchanges(report)
    _show_rates(report)


def _show_work(report: dict[str, Any]) -> None:
    images = report["images_per_call"]
    total = sum(g["forward"] + g["gradient"] for g in report["groups"].values())
    rows: list[tuple[Any, ...]] = [
        (
            name,
            g["forward"] / images / 1e3,
            g["gradient"] / images / 1e3,
            _percent((g["forward"] + g["gradient"]) / total),
            g["traffic"] / images / 1e6,
        )
        for name, g in report["groups"].items()
    ]
    rows.append(("all", *_sums(rows, (1, 2)), "100.0%", *_sums(rows, (4,))))
    columns = ("part", "forward kcycles", "gradient kcycles", "share", "traffic MB")
    terminal.print_table("estimated cycles and traffic an image", columns, rows)
    rows = [
        (
            f"{entry['module']}, {entry['pass']}",
            entry["cycles"] / images / 1e3,
            _percent(entry["cycles"] / total),
            entry["traffic"] / images / 1e6,
            entry["primitive"] or entry["opcode"],
            entry["name"],
        )
        for entry in report["costliest"]
    ]
    columns = ("where", "kcycles", "share", "traffic MB", "what", "name")
    terminal.print_table("the costliest instructions, an image", columns, rows)
    for entry in report["unestimated"]:
        logger.info(
            "no estimate: %s (%s, %s), %.1f MB an image",
            entry["module"],
            entry["primitive"] or entry["opcode"],
            entry["name"],
            entry["traffic"] / images / 1e6,
        )


def _sums(rows: Sequence[Sequence[Any]], columns: Sequence[int]) -> list[float]:
    return [sum(row[k] for row in rows) for k in columns]


def _show_exchanges(report: dict[str, Any]) -> None:
    if report["chips"] == 1:
        logger.info("one chip exchanges nothing: scaling needs a slice of several")
        return
    terminal.print_table(
        "exchanges between chips in a call",
        ("what", "count", "KiB"),
        [
            (f"{e['kind']}: {e['purpose']}", e["count"], e["bytes"] / 1024)
            for e in report["exchanges"]
        ],
    )
    terminal.print_table(
        "weak scaling of the roofline, nothing overlapping",
        ("chips", "latency ms", "transfer ms", "left"),
        [
            (
                str(row["chips"]),
                row["latency_ms"],
                row["transfer_ms"],
                _percent(row["efficiency"]),
            )
            for row in report["scaling"]
        ],
    )


def _show_rates(report: dict[str, Any]) -> None:
    chip, rates = _chip(report), report["images_per_s"]
    logger.info(
        "roofline %.0f images/s a chip, bound by %s: compute %.0f at %.0f TFLOP/s, "
        "memory %.0f at %.0f GB/s",
        rates["roofline"],
        rates["bound"],
        rates["compute"],
        chip.peak / 1e12,
        rates["memory"],
        chip.bandwidth / 1e9,
    )
    logger.info(
        "by the compiler's cycles %.0f images/s a chip at %.2f GHz",
        rates["cycles"],
        chip.clock / 1e9,
    )
    logger.info(
        "assumed: published peaks; exchanges at %.0f GB/s a chip, %.0f us a hop, on a "
        "torus of %d axes; no TPU ran",
        chip.interconnect / 1e9,
        chips_lib.HOP * 1e6,
        chip.axes,
    )


def _chip(report: dict[str, Any]) -> chips_lib.Chip:
    return chips_lib.Slice.named(report["topology"]).chip


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def record(
    config: CompileConfig, report: dict[str, Any], tried: list[dict[str, Any]], argv
) -> dict[str, Any]:
    """What --json holds."""
    packages = ("jaxdepth", "jax", "jaxlib", "libtpu", "flax", "optax")
    summed = ("images_per_chip", "flops_per_image", "bytes_per_image")
    summed += ("traffic_per_image", "cycles_per_image", "memory", "compile_seconds")
    return {
        "command": f"{PROG} {' '.join(argv)}",
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in packages},
        "config": dataclasses.asdict(config),
        "assumed": dataclasses.asdict(_chip(report)) | {"hop_seconds": chips_lib.HOP},
        "tried": [{key: entry[key] for key in summed} for entry in tried],
        **report,
    }


def command(argv: Sequence[str]) -> int:
    """Compile as the flags say; returns the exit code."""
    config = parse(argv)
    for name in (config.json, config.hlo):
        if name is not None:
            refuse_existing(Path(name))
    wanted = chips_lib.Slice.named(config.topology)
    # JAX itself stays on the CPU, also where there is a TPU.
    jax.config.update("jax_platforms", "cpu")
    target = Target(wanted, describe(wanted))
    if config.largest_batch:
        report, tried = search(config, target, measure)
    else:
        report = measure(settle(config, target.chips, PER_CHIP), target)
        tried = [report]
    show(report)
    if config.json is not None:
        found = workdir.plain(record(config, report, tried, argv))
        with atomic.atomic_write(Path(config.json)) as file:
            file.write(json.dumps(found, indent=1).encode())
        logger.info("numbers: %s", config.json)
    return cli.OK
