"""Compile the training step for a GPU or TPU that is not attached: report its costs.

    jaxdepth compile-for --target=h100 --batch_size=64
    jaxdepth compile-for --target=h200 --batch_size=best
    jaxdepth compile-for --target=v5e:8x8 --batch_size=8192 --json=v5e-8x8.json
    jaxdepth compile-for --target=h100 --block=up4

Takes the flags of training. Compiling a step takes minutes, a block seconds. All
figures are counted in the compiled program or estimated by the compiler; nothing runs.
Needs JAX's CUDA plugin (the extra `compile-gpu`) or libtpu (`tpu`), no driver and no
device.
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
from jaxdepth.commands.compile import costs, hlo, lower, problems
from jaxdepth.commands.compile.report import show, summary
from jaxdepth.config import Config
from jaxdepth.ops import platform
from jaxdepth.recipes import recipe_named
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.versions import installed, version
from jaxdepth.training import sharding

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth compile-for"
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
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# Autotuning needs the device: it selects cuDNN's algorithms, and cuBLAS or Triton for
# each matrix product. Without it, XLA takes Triton and splits long sums into parts that
# it pads, which no measurement would choose.
OPTIONS: dict[str, dict[str, Any]] = {
    "tpu": {},
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}


@dataclasses.dataclass(frozen=True)
class CompileConfig(Config):
    """Compile the training step for a GPU or TPU that is not attached; report costs.

    Also takes the flags of training; those of data, work directory and logging have no
    effect.
    """

    target: str = "v5e:1x1"
    """GPUs of one host: h100 or h200, h100:8; or a TPU slice: v4, v5e, v5p or v6e, and
    its shape, as in v5e:2x2."""
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


def describe(chips: chips_lib.Slice) -> Sequence[sharding.Device]:
    """JAX's descriptions of the chips.

    Raises: UserError without the compiler, MachineError if another process uses it.
    """
    gpu = chips.chip.platform == "gpu"
    if gpu:
        check_gpu_plugin()
    else:
        prepare_libtpu()
    name, platform = ("", "cuda") if gpu else (chips.name, "tpu")
    try:
        return topologies.get_topology_desc(
            name, platform=platform, **chips.options()
        ).devices
    except jax.errors.JaxRuntimeError as error:
        compiler = "the CUDA plugin" if gpu else f"libtpu {version('libtpu')}"
        if "lockfile" not in str(error):
            raise UserError(f"--target={chips.name}: {compiler}: {error}") from None
        raise MachineError(
            "another process on this machine uses libtpu: wait for it, or set "
            "ALLOW_MULTIPLE_LIBTPU_LOAD=1 if no process uses a TPU"
        ) from None


def prepare_libtpu() -> None:
    """Set the environment of libtpu. Raises UserError if it is not installed."""
    library = os.environ.get("TPU_LIBRARY_PATH")
    if not library and not importlib.util.find_spec("libtpu"):
        raise UserError(
            "libtpu, the TPU's compiler, is not installed: pip install -e '.[tpu]'"
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def check_gpu_plugin() -> None:
    """Raise UserError without JAX's CUDA plugin."""
    found = any(importlib.util.find_spec(name) for name in GPU_PLUGINS)
    if not found:
        raise UserError(
            "JAX's CUDA plugin, which contains the GPU's compiler, is not installed: "
            "pip install -e '.[compile-gpu]'"
        )


def resolve(config: CompileConfig, chips: int, per_chip: int) -> CompileConfig:
    """Replace `auto` by the values of training on that platform."""
    size: Any = config.train.batch_size
    if size == "auto" or config.largest_batch:
        size = per_chip * chips
    steps = 1000 if config.train.steps == "auto" else config.train.steps
    sized = config.replace(batch_size=size, steps=steps, epochs=None)
    platform = chips_lib.Slice.named(config.target).chip.platform
    return config_lib.resolve(sized, platform=platform)  # pyright: ignore[reportReturnType]


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
    with platform.compiling_for(target.slice.chip.platform):
        if config.block is None:
            lowered = lower.lower_step(config, placement, frames=config.frames)
        else:
            lowered = lower.lower_block(config, placement, block=config.block)
    # The options of training, then those of --xla.
    options = OPTIONS[target.slice.chip.platform] | placement.compiler_options()
    options |= parse_options(config.xla)
    try:
        module = lowered.compile(dict(options))
        return module, options, time.monotonic() - start
    except jax.errors.JaxRuntimeError as error:
        if config.xla is not None and "INVALID_ARGUMENT" in str(error):
            raise UserError(f"--xla={config.xla}: {error}") from None
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sizes = re.findall(r"\d[\d.]*[GMK]\b", str(error))
        raise too_large(config, target, " of ".join(sizes[:2])) from None


def too_large(config: CompileConfig, target: Target, sizes: str) -> TooLarge:
    """The error of a step that needs more memory than a device has."""
    return TooLarge(
        f"--batch_size={config.train.batch_size}: the step does not fit into a device "
        f"of {target.slice.name} ({sizes} memory): try --batch_size=best"
    )


def parse_options(text: str | None) -> dict[str, Any]:
    """Parse `a=1,b=2`. Raises UserError for anything else."""
    options = {}
    for pair in text.split(",") if text else ():
        name, equals, value = pair.removeprefix("--").partition("=")
        if not (name and equals):
            raise UserError(f"--xla={text}: expected NAME=VALUE,NAME=VALUE")
        # XLA has no options of the text "true".
        options[name] = {"true": True, "false": False}.get(value, value)
    return options


def measure(config: CompileConfig, target: Target) -> dict[str, Any]:
    """Compile once and report the costs per device.

    Raises: TooLarge if the program does not fit into memory.
    """
    module, options, seconds = compiled(config, target)
    text, chip = module.as_text(), target.slice.chip
    if config.hlo is not None:
        output_files.write_text(config.hlo, text)
    per_device = int(config.train.batch_size) // target.chips
    calls = config.train.steps_per_call if config.block is None else 1
    # Images of a microbatch.
    at_a_time = per_device // (config.train.accumulate if config.block is None else 1)
    unit, cost = chip.cost
    parsed, images = hlo.parse(text), per_device * calls
    work = costs.work(parsed, cost=cost)
    flops, size = work.flops, work.traffic / images
    if analysis := module.cost_analysis():  # not on GPU
        # It counts the body of a loop once: a microbatch of one step.
        flops = {"bf16": analysis["flops"] * images / at_a_time}
        size = analysis["bytes accessed"] / at_a_time
    used = memory(module.memory_analysis(), chip)
    if used["used"] > used["available"]:
        gib = (f"{used[key] / 2**30:.2f}G" for key in ("used", "available"))
        raise too_large(config, target, " of ".join(gib))
    flops = {precision: count / images for precision, count in flops.items()}
    rates = chips_lib.roofline(
        chip,
        flops=flops,
        bytes_accessed=size,
        cost=work.cost / images,
        kernels=work.kernels / images,
    )
    found: list[dict[str, Any]] = []
    if chip.platform == "gpu":
        found = problems.problems(
            parsed,
            images=at_a_time,
            bf16=config.model.precision == "bf16",
            launch=int(chips_lib.LAUNCH * chip.bandwidth),
        )
    exchanges = hlo.collectives(parsed)
    per_step = [{k: e[k] / calls for k in ("count", "bytes")} for e in exchanges]
    # Relative to the fastest possible step, so the efficiency is a lower bound.
    fastest, chips = (
        per_device / rates["roofline"],
        chip.scaling if target.chips > 1 else (),
    )
    return {
        "target": target.slice.name,
        "devices": target.chips,
        "hosts": len({d.process_index for d in target.devices}),
        "batch_size": int(config.train.batch_size),
        "images_per_device": per_device,
        "block": config.block,
        "compiler_options": options,
        "flops_per_image": sum(flops.values()),
        "flops_by_precision": flops,
        "bytes_per_image": size,
        "traffic_per_image": work.traffic / images,
        "cost_unit": unit,
        "cost_per_image": work.cost / images,
        "kernels": work.kernels,
        "memory": used,
        "images_per_call": images,
        "images_per_s": rates,
        "kinds": work.kinds,
        "groups": work.groups,
        "costliest": work.costliest,
        "unestimated": work.unestimated,
        "problems": found,
        "exchanges": exchanges,
        "scaling": chips_lib.scaling(chip, per_step, seconds=fastest, chips=chips),
        "compile_seconds": seconds,
    }


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
            logger.info(f"{per_chip} images per device do not fit ({error})")
            return None
        tried.append(report)
        logger.info(summary(report))
        return report

    per_chip = PER_CHIP
    while (best := attempt(per_chip)) is None:
        per_chip //= 2
        if not per_chip:
            raise UserError(
                "--batch_size=best: one image does not fit into a device of "
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
        logger.info(f"{size} images per device fit only with recomputation")
    return best, tried


def extrapolate(used: dict[str, float], per_chip: int) -> int:
    """Images that fill the memory if temporaries grow in proportion to their number.

    At most 16 times `per_chip`, because small blocks have almost no temporaries.
    """
    available = used["available"] - used["used"] + used["temporaries"]
    return int(per_chip * min(16.0, available / max(1.0, used["temporaries"])))


def record(
    config: CompileConfig, report: dict[str, Any], tried: list[dict[str, Any]], argv
) -> dict[str, Any]:
    """The content of the --json file."""
    packages = ("jaxdepth", "jax", "jaxlib", "flax", "optax", "libtpu")
    packages += ("jax-cuda12-plugin", "jax-cuda13-plugin")
    keys = ("images_per_device", "flops_per_image", "bytes_per_image", "kernels")
    keys += ("traffic_per_image", "cost_per_image", "memory", "compile_seconds")
    chip = dataclasses.asdict(chips_lib.Slice.named(report["target"]).chip)
    return {
        "command": f"{PROG} {' '.join(argv)}",
        "date": datetime.date.today().isoformat(),
        "versions": installed(packages),
        "config": dataclasses.asdict(config),
        "assumed": chip
        | {"hop_seconds": chips_lib.HOP, "launch_seconds": chips_lib.LAUNCH},
        "tried": [{key: entry[key] for key in keys} for entry in tried],
        **report,
    }


def command(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    config = parse(argv)
    for flag, path in (("json", config.json), ("hlo", config.hlo)):
        if path is not None:
            output_files.check_new_file(path, flag=flag)
    tpu_slice = chips_lib.Slice.named(config.target)
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
