"""Compile the training step for a TPU that is not attached, and report its costs.

    jaxdepth compile-for --topology=v5e:1x1 --layout=fcrn
    jaxdepth compile-for --topology=v5e:8x8 --batch_size=8192 --json=v5e-8x8.json
    jaxdepth compile-for --topology=v6e:1x1 --batch_size=best
    jaxdepth compile-for --topology=v5e:1x1 --block=up4

Takes the flags of training. Compiling a step takes minutes, a block seconds. All
figures are estimates of the compiler. Needs libtpu (the extra `tpu`).
"""

import dataclasses
import datetime
import importlib.util
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
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
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files, terminal
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.versions import version
from jaxdepth.training import sharding

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth compile-for"
SCALING = (1, 4, 16, 64, 256)  # chips of the estimate of weak scaling
PER_CHIP = 128  # images per chip: fills the 128 lanes of a tile
GRAIN = 64  # step of the search for the largest batch size
MAX_RECOMPUTATION = 1.02  # ratio of FLOPs per image; above it the compiler recomputes
# Without these, libtpu queries the network for the type of its machine.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class CompileConfig(Config):
    """Compile the training step for a TPU that is not attached, and report its costs.

    Also takes the flags of training; those of data, work directory and logging have no
    effect.
    """

    topology: str = "v5e:1x1"
    """Slice: v4, v5e, v5p or v6e, and its shape, as in v5e:2x2."""
    largest_batch: bool = False
    """Search for the largest batch that fits; --batch_size=best is the same."""
    block: str | None = None
    """Compile one block, forward and backward: stem, stage1, up4, head, the path of a
    module, as in encoder/stage1_block1, or augment, the augmentation."""
    frames: int = 795
    """Number of training frames on the devices, with --cache=device."""
    xla: str | None = None
    """Further compiler options, NAME=VALUE,NAME=VALUE, as in LIBTPU_INIT_ARGS."""
    json: str | None = None
    """New file for the report as JSON."""
    hlo: str | None = None
    """New file for the text of the compiled module."""

    def __post_init__(self):
        config_lib.validate(self)


def parse(argv: Sequence[str]) -> CompileConfig:
    """The configuration from flags and the recipe that --recipe names."""
    name = flags_lib.value_of(argv, "recipe") or "default"
    flags = recipe_named(name).flags
    # Weights and the number of steps do not change the compiled step.
    flags = {k: v for k, v in flags.items() if k not in ("init", "steps", "epochs")}
    preset = [f"--{key}={value}" for key, value in flags.items()]
    if flags_lib.value_of(argv, "batch_size") == "best":
        argv = [*flags_lib.without(argv, "batch_size"), "--largest_batch"]
    return flags_lib.parse(CompileConfig, [*preset, *argv], prog=PROG)


def describe(tpu_slice: chips_lib.Slice) -> Sequence[sharding.Device]:
    """Descriptions of the chips of a slice.

    Raises: UserError without libtpu, MachineError if another process uses it.
    """
    library = os.environ.get("TPU_LIBRARY_PATH")
    if not library and not importlib.util.find_spec("libtpu"):
        raise UserError(
            "libtpu, the TPU's compiler, is not installed: pip install -e '.[tpu]'"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(
            tpu_slice.name, platform="tpu", **tpu_slice.options()
        ).devices
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise UserError(
                f"--topology={tpu_slice.name}: libtpu {version('libtpu')}: {error}"
            ) from None
        raise MachineError(
            "another process on this machine uses libtpu: wait for it, or set "
            "ALLOW_MULTIPLE_LIBTPU_LOAD=1 if no process uses a TPU"
        ) from None


def resolve(config: CompileConfig, chips: int, per_chip: int) -> CompileConfig:
    """Replace `auto` by the values of training on a TPU."""
    size: Any = config.train.batch_size
    if size == "auto" or config.largest_batch:
        size = per_chip * chips
    steps = 1000 if config.train.steps == "auto" else config.train.steps
    sized = config.replace(batch_size=size, steps=steps, epochs=None)
    return config_lib.resolve(sized, platform="tpu")  # pyright: ignore[reportReturnType]


class TooLarge(UserError):
    """The program needs more memory than the chip has."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A slice and JAX's descriptions of its chips."""

    slice: chips_lib.Slice
    devices: Sequence[sharding.Device]

    @property
    def chips(self) -> int:
        return len(self.devices)


def compiled(
    config: CompileConfig, target: Target
) -> tuple[Any, dict[str, str], float]:
    """The compiled module, the compiler options, and the seconds of compiling.

    Raises: TooLarge if the program does not fit into memory.
    """
    placement = sharding.Placement.over(config.train.parallel, target.devices)
    placement.check_batch(int(config.train.batch_size), config.train.accumulate)
    start = time.monotonic()
    with platform.compiling_for("tpu"):
        if config.block is None:
            lowered = lower.lower_step(config, placement, frames=config.frames)
        else:
            lowered = lower.lower_block(config, placement, block=config.block)
    # The options of training, then those of --xla.
    options = placement.compiler_options() | parse_options(config.xla)
    try:
        module = lowered.compile(dict(options))
        return module, options, time.monotonic() - start
    except jax.errors.JaxRuntimeError as error:
        if config.xla is not None and "INVALID_ARGUMENT" in str(error):
            raise UserError(f"--xla={config.xla}: {error}") from None
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"\d[\d.]*[GMK]\b", str(error))
        raise TooLarge(
            f"--batch_size={config.train.batch_size}: the step does not fit into a "
            f"chip of {target.slice.name} ({' of '.join(sizes[:2])} memory): try "
            "--batch_size=best"
        ) from None


def parse_options(text: str | None) -> dict[str, str]:
    """Parse `a=1,b=2`. Raises UserError for anything else."""
    options = {}
    for pair in text.split(",") if text else ():
        name, equals, value = pair.removeprefix("--").partition("=")
        if not (name and equals):
            raise UserError(f"--xla={text}: expected NAME=VALUE,NAME=VALUE")
        options[name] = value
    return options


def measure(config: CompileConfig, target: Target) -> dict[str, Any]:
    """Compile once and report the costs per chip."""
    module, options, seconds = compiled(config, target)
    text = module.as_text()
    if config.hlo is not None:
        output_files.write_text(config.hlo, text)
    per_chip = int(config.train.batch_size) // target.chips
    # XLA's cost analysis counts the body of a loop once: a microbatch of one step.
    counted = per_chip // (config.train.accumulate if config.block is None else 1)
    calls = config.train.steps_per_call if config.block is None else 1
    cost, parsed = module.cost_analysis(), hlo.parse(text)
    work, chip, images = hlo.work(parsed), target.slice.chip, per_chip * calls
    report = {
        "topology": target.slice.name,
        "chips": target.chips,
        "hosts": len({d.process_index for d in target.devices}),
        "batch_size": int(config.train.batch_size),
        "images_per_chip": per_chip,
        "block": config.block,
        "compiler_options": options,
        "flops_per_image": cost["flops"] / counted,
        "bytes_per_image": cost["bytes accessed"] / counted,
        "cycles_per_image": work.cycles / images,
        "memory": memory(module.memory_analysis(), chip),
        "traffic_per_image": work.traffic / images,
        "images_per_call": images,
        "groups": work.groups,
        "costliest": work.costliest,
        "unestimated": work.unestimated,
        "exchanges": hlo.collectives(parsed),
        "compile_seconds": seconds,
    }
    rates = chips_lib.roofline(
        chip,
        flops=report["flops_per_image"],
        bytes_accessed=report["bytes_per_image"],
        cycles=report["cycles_per_image"],
    )
    per_step = [
        {key: entry[key] / calls for key in ("count", "bytes")}
        for entry in report["exchanges"]
    ]
    # Relative to the fastest possible step, so the efficiency is a lower bound.
    seconds, chips = per_chip / rates["roofline"], SCALING if target.chips > 1 else ()
    scaling = chips_lib.scaling(chip, per_step, seconds=seconds, chips=chips)
    return report | {"images_per_s": rates, "scaling": scaling}


def memory(stats: Any, chip: chips_lib.Chip) -> dict[str, float]:
    """Memory of a chip while the step runs, bytes by purpose."""
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    used = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "results in memory of their own": results,
        "code": stats.generated_code_size_in_bytes,
    }
    return used | {"used": sum(used.values()), "available": chip.memory}


def search(
    config: CompileConfig, target: Target, measure: Callable[..., dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report of the largest batch size that fits, and the reports of all compiled.

    Halves `PER_CHIP` until it fits, then tries the size that `extrapolate` predicts, at
    most twice. A size for which the compiler recomputes values counts as not fitting.

    Raises: UserError if one image does not fit.
    """
    tried: list[dict[str, Any]] = []

    def attempt(per_chip: int) -> dict[str, Any] | None:
        try:
            report = measure(resolve(config, target.chips, per_chip), target)
        except TooLarge as error:
            logger.info(f"{per_chip} images per chip do not fit ({error})")
            return None
        tried.append(report)
        logger.info(summary(report))
        return report

    per_chip = PER_CHIP
    while (best := attempt(per_chip)) is None:
        per_chip //= 2
        if not per_chip:
            raise UserError(
                "--batch_size=best: one image does not fit into a chip of "
                f"{target.slice.name}"
            )
    step = min(GRAIN, per_chip)
    predicted = extrapolate(best["memory"], per_chip) // step * step
    for size in (predicted, predicted - step):
        if size <= per_chip:
            break
        report = attempt(size)
        if report is None:
            continue
        if report["flops_per_image"] <= MAX_RECOMPUTATION * best["flops_per_image"]:
            return report, tried
        logger.info(f"{size} images per chip fit only with recomputation")
    return best, tried


def extrapolate(used: dict[str, float], per_chip: int) -> int:
    """Images that fill the memory if temporaries grow in proportion to their number.

    At most 16 times `per_chip`, because small blocks have almost no temporaries.
    """
    available = used["available"] - used["used"] + used["temporaries"]
    return int(per_chip * min(16.0, available / max(1.0, used["temporaries"])))


def summary(report: dict[str, Any]) -> str:
    """One line of a report."""
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
    """Print a report."""
    logger.info(
        f"{report['block'] or 'the training step'} for {report['topology']} (chips: "
        f"{report['chips']}, hosts: {report['hosts']}), {report['batch_size']} images "
        "in all"
    )
    logger.info(summary(report))
    parts = report["memory"].items()
    rows = [(name, round(size / 2**20)) for name, size in parts]
    terminal.print_table("memory of a chip [MiB]", ("what", "MiB"), rows)
    _show_work(report)
    _show_collectives(report)
    _show_rates(report)


def _show_work(report: dict[str, Any]) -> None:
    images = report["images_per_call"]
    total = sum(g["forward"] + g["gradient"] for g in report["groups"].values())
    rows: list[tuple[Any, ...]] = []
    for name, group in report["groups"].items():
        cycles = group["forward"], group["gradient"]
        kcycles = (count / images / 1e3 for count in cycles)
        traffic = group["traffic"] / images / 1e6
        rows.append((name, *kcycles, f"{sum(cycles) / total:.1%}", traffic))
    forward, gradient, traffic = (sum(row[k] for row in rows) for k in (1, 2, 4))
    rows.append(("all", forward, gradient, "100.0%", traffic))
    columns = ("part", "forward kcycles", "gradient kcycles", "share", "traffic MB")
    terminal.print_table("estimated cycles and traffic an image", columns, rows)
    rows = [
        (
            f"{entry['module']}, {entry['pass']}",
            entry["cycles"] / images / 1e3,
            f"{entry['cycles'] / total:.1%}",
            entry["traffic"] / images / 1e6,
            entry["primitive"] or entry["opcode"],
            entry["name"],
        )
        for entry in report["costliest"]
    ]
    columns = ("where", "kcycles", "share", "traffic MB", "what", "name")
    terminal.print_table("the most expensive instructions, an image", columns, rows)
    for entry in report["unestimated"]:
        logger.info(
            f"no estimate: {entry['module']} ({entry['primitive'] or entry['opcode']}, "
            f"{entry['name']}), {entry['traffic'] / images / 1e6:.1f} MB an image"
        )


def _show_collectives(report: dict[str, Any]) -> None:
    if report["chips"] == 1:
        logger.info("one chip has no collectives: use a larger slice for the scaling")
        return
    rows = [
        (f"{e['kind']}: {e['purpose']}", e["count"], e["bytes"] / 1024)
        for e in report["exchanges"]
    ]
    terminal.print_table("collectives in a call", ("what", "count", "KiB"), rows)
    columns = ("chips", "latency ms", "transfer ms", "efficiency")
    rows = [
        (str(n), latency, transfer, f"{efficiency:.1%}")
        for n, latency, transfer, efficiency in map(dict.values, report["scaling"])
    ]
    title = "weak scaling of the roofline, without overlap"
    terminal.print_table(title, columns, rows)


def _show_rates(report: dict[str, Any]) -> None:
    chip, rates = _chip(report), report["images_per_s"]
    logger.info(
        f"roofline {rates['roofline']:.0f} images/s a chip, bound by {rates['bound']}: "
        f"compute {rates['compute']:.0f} at {chip.peak / 1e12:.0f} TFLOP/s, memory "
        f"{rates['memory']:.0f} at {chip.bandwidth / 1e9:.0f} GB/s"
    )
    logger.info(
        f"by the compiler's cycles {rates['cycles']:.0f} images/s a chip at "
        f"{chip.clock / 1e9:.2f} GHz"
    )
    logger.info(
        f"assumed: published peaks; collectives at {chip.interconnect / 1e9:.0f} GB/s "
        f"a chip, {chips_lib.HOP * 1e6:.0f} us a hop, on a torus of {chip.axes} axes; "
        "estimates only, no TPU ran"
    )


def _chip(report: dict[str, Any]) -> chips_lib.Chip:
    return chips_lib.Slice.named(report["topology"]).chip


def record(
    config: CompileConfig, report: dict[str, Any], tried: list[dict[str, Any]], argv
) -> dict[str, Any]:
    """The content of the --json file."""
    packages = ("jaxdepth", "jax", "jaxlib", "libtpu", "flax", "optax")
    keys = ("images_per_chip", "flops_per_image", "bytes_per_image")
    keys += ("traffic_per_image", "cycles_per_image", "memory", "compile_seconds")
    return {
        "command": f"{PROG} {' '.join(argv)}",
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in packages},
        "config": dataclasses.asdict(config),
        "assumed": dataclasses.asdict(_chip(report)) | {"hop_seconds": chips_lib.HOP},
        "tried": [{key: entry[key] for key in keys} for entry in tried],
        **report,
    }


def command(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    config = parse(argv)
    for flag, path in (("json", config.json), ("hlo", config.hlo)):
        if path is not None:
            output_files.check_new_file(path, flag=flag)
    tpu_slice = chips_lib.Slice.named(config.topology)
    # JAX runs on the CPU, even if a TPU is attached.
    jax.config.update("jax_platforms", "cpu")
    target = Target(tpu_slice, describe(tpu_slice))
    if config.largest_batch:
        report, tried = search(config, target, measure)
    else:
        report = measure(resolve(config, target.chips, PER_CHIP), target)
        tried = [report]
    show(report)
    if config.json is not None:
        workdir.write_json(config.json, record(config, report, tried, argv))
        logger.info(f"report: {config.json}")
    return cli.OK
