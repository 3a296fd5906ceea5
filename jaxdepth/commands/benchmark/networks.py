"""`jaxdepth benchmark train` and `infer`."""

import contextlib
import dataclasses
import functools
import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdepth.commands.benchmark import (
    growth,
    machine,
    macs,
    profiling,
    search,
    timing,
    workloads,
)
from jaxdepth.commands.benchmark.report import Report, device_name
from jaxdepth.commands.benchmark.settings import NetworkSettings, RejectedOption
from jaxdepth.commands.benchmark.timing import Samples, Workload
from jaxdepth.commands.benchmark.workloads import Compiled, Subject, subject
from jaxdepth.runtime.errors import UserError, one_line

TORCH_MISSING = (
    "--peer=torch needs PyTorch, which is not installed: pip install 'jaxdepth[torch]' "
    "(torch==2.13.0 gives the CPU build on Linux)"
)


def run(settings: NetworkSettings, report: Report) -> None:
    """Measure the network, PyTorch's networks and the peaks of the device."""
    began = time.monotonic()
    prepare(settings)
    if settings.growth != "none":
        growth.run(settings, report)
        return
    devices = settings.chosen_devices()
    batch = settings.fixed_batch()
    if settings.batch_size == "best":
        batch = _best_batch(settings, devices, report)
    report.note(describe(settings, batch, len(devices)))
    with subject(settings, batch, settings.image_size, devices) as main:
        times, memory = _measure(settings, batch, main, report)
        shares = _rates(settings, main, times, report)
        report.add("rates and shares", shares | memory)
        if settings.turns == "pairs":
            _measure_pairs(settings, batch, main, report, began)
        # Last, because the profiler depends on the driver and may abort the process.
        if settings.profile is not None:
            folder = Path(settings.profile)
            profiling.show(folder, main.workload, main.compiled, report)
        parameters = main.parameters
    del main  # and the arrays that its workload refers to
    gc.collect()
    if not settings.trains:
        _measure_latency(settings, report, parameters)


def prepare(settings: NetworkSettings) -> None:
    """Configure JAX before it initialises the devices.

    Raises: UserError if PyTorch is needed and not installed.
    """
    if settings.peer == "torch":
        check_torch()
    growth.simulate_devices(settings)
    if settings.compile_cache is not None:
        jax.config.update("jax_compilation_cache_dir", settings.compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def check_torch() -> None:
    """Raise UserError if PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError(TORCH_MISSING) from None


def describe(settings: NetworkSettings, batch: int, devices: int) -> str:
    """One line with the measured configuration and its devices."""
    flat = settings.config(batch, settings.image_size).flat()
    details = [f"{name} {flat[name]}" for name in settings.config_flags()]
    if jax.default_backend() == "gpu":
        details.append(f"tf32 {settings.tf32}")
    if settings.options:
        details.append(f"compiler options {settings.options}")
    return (
        f"{settings.title} at {settings.size}, batch {batch} on {devices} x "
        f"{device_name()}: {', '.join(details)}"
    )


def _measure(
    settings: NetworkSettings, batch: int, main: Subject, report: Report
) -> tuple[list[float], dict[str, float]]:
    """Show the times of the network, its variants and PyTorch's.

    Returns: the network's seconds per call, and its peak memory.
    """
    timing.seconds_per_call(main.workload, 1)
    peak, scope = machine.peak_memory()
    tried = ", with all batches tried" if settings.batch_size == "best" else ""
    memory = {f"peak memory of the {scope}{tried} [MiB]": peak / 2**20}
    together = settings.turns == "together"
    with contextlib.ExitStack() as stack:
        candidates = [main.workload]
        for words in settings.variants() if together else ():
            candidates += _variant(settings, words, batch, main, stack, report)
        candidates += _peers(settings, batch, report, main.parameters)
        times = timing.time_alternating(
            candidates, repeats=settings.repeats, seconds=settings.seconds
        )
        _show_times(_title(settings, batch), times, main.workload.images, report)
        _check_values(candidates, report)
    return times[workloads.NAME], memory


def _title(settings: NetworkSettings, batch: int) -> str:
    return f"{settings.title} at {settings.size}, batch {batch}"


def _variant(
    settings: NetworkSettings,
    words: str,
    batch: int,
    main: Subject,
    stack: contextlib.ExitStack,
    report: Report,
) -> list[Workload]:
    """A variant of --beside, open until the stack closes; [] if it cannot run.

    The report names a variant whose options the compiler rejects, that it cannot
    compile, or that does not fit into memory.
    """
    variant, devices = settings.variants()[words], settings.chosen_devices()
    try:
        other = stack.enter_context(
            subject(variant, batch, settings.image_size, devices)
        )
    except (RejectedOption, RuntimeError, MemoryError) as error:
        _skip(words, one_line(error), report)
        return []
    return [as_variant(other.workload, main.workload, words)]


def _skip(words: str, reason: str, report: Report) -> None:
    report.facts.setdefault("skipped", {})[words] = reason
    report.note(f"{words}: skipped ({reason[:200]})")


def _measure_pairs(
    settings: NetworkSettings,
    batch: int,
    main: Subject,
    report: Report,
    began: float,
) -> None:
    """Time each variant of --beside in turns with the network, one after another.

    Args:
      began: when the process began, by `time.monotonic`.
    """
    longest = 0.0
    for words in settings.variants():
        start = time.monotonic()
        limit = settings.limit_s
        if limit is not None and start - began + longest > limit:
            _skip(words, "not started: the time limit was reached", report)
            continue
        with contextlib.ExitStack() as stack:
            candidates = _variant(settings, words, batch, main, stack, report)
            if candidates:
                candidates.insert(0, main.workload)
                times = timing.time_alternating(
                    candidates, repeats=settings.repeats, seconds=settings.seconds
                )
                title = f"{_title(settings, batch)}, {words}"
                _show_times(title, times, main.workload.images, report)
                _check_values(candidates, report)
        gc.collect()
        longest = max(longest, time.monotonic() - start)


def _check_values(candidates: Sequence[Workload], report: Report) -> None:
    """Record a loss or mean depth of each workload, and note those not finite.

    They show that the workloads compute, and compute alike; a network that diverged
    may also run at another speed.
    """
    values = report.facts.setdefault("values", {})
    for workload in candidates:
        result = workload.call()
        workload.wait(result)
        if isinstance(result, dict):
            result = result["loss"]
        if hasattr(result, "cpu"):  # of PyTorch
            result = result.cpu()
        value = values[workload.name] = float(np.mean(np.asarray(result, np.float64)))
        if not np.isfinite(value):
            report.note(f"{workload.name}: loss or depth is not finite: {value}")


def as_variant(variant: Workload, main: Workload, words: str) -> Workload:
    """Rename a variant of --beside, and repeat its call until it has as many images.

    Raises: UserError if the variant has more images per call than `main`, or if the
      number is not a divisor.
    """
    times, rest = divmod(main.images, variant.images)
    if rest:
        raise UserError(
            f"--beside={words}: steps_per_call must be a divisor of --steps_per_call"
        )

    def call():
        return [variant.call() for _ in range(times)][-1]

    name = f"{variant.name}, {words}"
    return dataclasses.replace(variant, name=name, call=call, images=main.images)


def _rates(
    settings: NetworkSettings, main: Subject, seconds: list[float], report: Report
) -> dict[str, Any]:
    """`rates`, with the peaks of the device unless --peaks=off."""
    config = settings.config(settings.fixed_batch(), settings.image_size)
    dtype = jnp.bfloat16 if config.model.precision == "bf16" else jnp.float32
    peaks = None
    if settings.peaks == "on":
        peaks = machine.peaks(dtype, report, trial=settings.thin > 1)
    devices = len(settings.chosen_devices())
    return rates(settings, main, float(np.median(seconds)), peaks, devices)


def rates(
    settings: NetworkSettings,
    main: Subject,
    seconds: float,
    peaks: machine.Peaks | None,
    devices: int,
) -> dict[str, Any]:
    """Images and operations per second, and shares of the device's peaks.

    Args:
      seconds: per call.
      peaks: of one device; without them there are no shares.
    """
    images, compiled = main.workload.images, main.compiled
    forward = macs.per_image(main.model, settings.image_size)
    flops = 2 * forward * (macs.TRAINING if settings.trains else 1) * images / seconds
    shares: dict[str, Any] = {}
    if peaks is not None:
        # Simulated devices share one processor, whose peak is measured as one device.
        real_devices = 1 if jax.default_backend() == "cpu" else devices
        peak_bytes = peaks.bytes * real_devices * seconds / devices
        moved = _bytes_per_call(settings, compiled)
        product = flops / (peaks.flops * real_devices)
        shares["share of the matrix product"] = product
        shares["share of the copy, by XLA's bytes"] = moved and moved / peak_bytes
        if jax.default_backend() == "gpu":
            # XLA's cost analysis does not know the library calls of a GPU.
            moved = compiled.kernel_bytes() * getattr(settings, "steps_per_call", 1)
            shares["share of the copy, by the kernels' operands"] = moved / peak_bytes
    return {
        "parameters": main.parameters,
        "images/s": images / seconds,
        "images/s/device": images / seconds / devices,
        "GMAC an image, forward": forward / 1e9,
        "counted": macs.HOW,
        "TFLOP/s": flops / 1e12,
        **shares,
        "XLA's GFLOP a step and device": compiled.flops and compiled.flops / 1e9,
        "XLA's GB a step and device": compiled.bytes and compiled.bytes / 1e9,
        "temporary memory [MiB]": compiled.temporary and compiled.temporary / 2**20,
        "arguments [MiB]": compiled.arguments and compiled.arguments / 2**20,
        f"compile{', cached' if settings.compile_cache else ''} [s]": compiled.seconds,
    }


def _bytes_per_call(settings: NetworkSettings, compiled: Compiled) -> float | None:
    """Bytes of a call on one device. XLA counts the body of a loop once."""
    if getattr(settings, "accumulate", 1) > 1 or compiled.bytes is None:
        return None
    return compiled.bytes * getattr(settings, "steps_per_call", 1)


def _show_times(title: str, times: Samples, images: int, report: Report) -> None:
    """Show milliseconds per call, images per second, and ratios of the workloads."""
    report.show_times(title, times, images, "images/s")
    if len(times) == 1:
        return
    ratios = timing.ratios(times, workloads.NAME)
    report.show(f"{title}: times as fast, turn by turn", ratios, "ratio")
    peers = [name for name in times if not name.startswith(workloads.NAME)]
    if not peers:
        return
    faster = timing.fastest(times, peers)
    values = ratios[f"{workloads.NAME} / {faster}"]
    report.note(
        f"compared with the faster peer, {faster}: {np.median(values):.2f} times as "
        f"fast ({min(values):.2f} to {max(values):.2f} in {len(values)} turns)"
    )
    report.facts["faster peer"] = faster


def _peers(
    settings: NetworkSettings, batch: int, report: Report, parameters: int
) -> list[Workload]:
    if settings.peer == "none":
        return []
    from jaxdepth.commands.benchmark import peer_runs

    return peer_runs.workloads(settings, batch, report, parameters)


def _best_batch(settings: NetworkSettings, devices: list[Any], report: Report) -> int:
    """Search for the best batch size; the report keeps the rates of all sizes."""

    def measure(batch: int) -> float:
        with subject(settings, batch, settings.image_size, devices) as main:
            images = main.workload.images
            times = timing.time_alternating(
                [main.workload], repeats=2, seconds=settings.seconds
            )
        values = [images / seconds for seconds in times[workloads.NAME]]
        report.show("search for the best batch", {f"batch {batch}": values}, "images/s")
        return float(np.median(values))

    multiple = len(devices) * getattr(settings, "accumulate", 1)
    start = settings.first_batch
    if start == "auto":
        start = 1 if jax.default_backend() == "cpu" else 32
    start = -(-start // multiple) * multiple
    result = search.best_batch(
        measure,
        start=min(start, max(multiple, settings.max_batch)),
        multiple=multiple,
        limit=settings.max_batch,
        seconds=settings.search_s,
    )
    report.facts["search"] = dataclasses.asdict(result) | {"best": result.best}
    report.note(f"best batch: {result.best} ({result.reason()})")
    return result.best


def _measure_latency(
    settings: NetworkSettings, report: Report, parameters: int
) -> None:
    """Show milliseconds per frame, and frames per second, waiting for each frame."""
    candidates = workloads.single_frames(settings, settings.image_size)
    for peer in _peers(settings, 1, report, parameters):
        call = functools.partial(_call_and_wait, peer)
        candidates.append(Workload(peer.name, call, lambda _: None))
    times = timing.time_alternating(
        candidates, repeats=settings.repeats, seconds=settings.seconds
    )
    title = f"{settings.title} at {settings.size}, batch 1, one frame at a time"
    report.show_times(title, times, 1, "frames/s")


def _call_and_wait(workload: Workload) -> Any:
    return workload.wait(workload.call())
