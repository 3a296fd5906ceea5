"""`benchmark.py train` and `infer`: one point, beside peers and what the device can."""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdepth.commands.benchmark import (
    growth,
    machine,
    macs,
    ours,
    profiling,
    search,
    timing,
)
from jaxdepth.commands.benchmark.machine import Peaks
from jaxdepth.commands.benchmark.ours import Compiled, Facts, Subject
from jaxdepth.commands.benchmark.report import Report, device_name
from jaxdepth.commands.benchmark.settings import (
    InferSettings,
    NetworkSettings,
    Size,
    TrainSettings,
)
from jaxdepth.commands.benchmark.timing import Contestant, Found
from jaxdepth.runtime.errors import UserError

TORCH_MISSING = (
    "--peer=torch needs PyTorch, which is not installed: pip install 'jaxdepth[torch]' "
    "(torch==2.13.0 gives the CPU build on Linux)"
)


@contextlib.contextmanager
def subject(
    settings: NetworkSettings,
    batch_size: int,
    image_size: Size,
    devices: list[Any],
) -> Iterator[Subject]:
    """Our training step or forward pass."""
    if isinstance(settings, TrainSettings):
        with ours.trainer(
            settings, batch_size, image_size, devices, check=check_memory
        ) as found:
            yield found
    else:
        assert isinstance(settings, InferSettings)
        yield ours.predictor(settings, batch_size, image_size, devices)


def check_memory(compiled: Compiled) -> None:
    """MemoryError where a program needs more than there is, before it is run.

    On CPU the system would end the process.
    """
    if compiled.temporary is None or compiled.arguments is None:
        return
    if compiled.temporary + compiled.arguments > machine.memory_limit():
        raise MemoryError("out of memory, by what the compiler says")


def run(settings: NetworkSettings, report: Report) -> None:
    """`benchmark.py train` or `infer`."""
    prepare(settings)
    if settings.growth != "none":
        growth.run(settings, report, subject)
        return
    devices = settings.chosen_devices()
    batch = settings.fixed_batch()
    if settings.batch_size == "best":
        batch = _best(settings, devices, report)
    report.say(describe(settings, batch, len(devices)))
    with subject(settings, batch, settings.image_size, devices) as found:
        times, memory = _race(settings, batch, found, report)
        facts, images = found.facts, found.contestant.images
    del found
    gc.collect()
    _show_times(_short(settings, batch), times, images, report)
    config = settings.config(batch, settings.image_size)
    dtype = jnp.bfloat16 if config.model.precision == "bf16" else jnp.float32
    peaks = machine.peaks(dtype, report, trial=settings.thin > 1)
    time = float(np.median(times[ours.NAME]))
    values = rates(settings, facts, images, time, peaks, len(devices))
    report.add("rates and shares", values | memory)
    if isinstance(settings, InferSettings):
        _latency(settings, report, facts.parameters)


def _race(
    settings: NetworkSettings, batch: int, found: Subject, report: Report
) -> tuple[Found, dict[str, float]]:
    """Times of our step and the peers'; our peak memory. A trace where asked for."""
    timing.seconds_per_call(found.contestant, 1)
    peak, of = machine.peak_memory()
    tried = ", with all batches tried" if settings.batch_size == "best" else ""
    memory = {f"peak memory of the {of}{tried} [MiB]": peak / 2**20}
    with contextlib.ExitStack() as stack:
        others = []
        for words, changed in settings.variants().items():
            size, devices = settings.image_size, settings.chosen_devices()
            other = stack.enter_context(subject(changed, batch, size, devices))
            others.append(_also(other.contestant, found.contestant, words))
        others += _peers(settings, batch, report, found.facts.parameters)
        times = timing.race(
            [found.contestant, *others],
            repeats=settings.repeats,
            seconds=settings.seconds,
        )
    if settings.profile is not None:
        folder = Path(settings.profile)
        profiling.show(folder, found.contestant, found.facts.compiled, report)
    return times, memory


def _also(other: Contestant, first: Contestant, words: str) -> Contestant:
    """Under its own name, and of as many images a call: --steps_per_call may differ."""
    times = first.images / other.images
    if times < 1 or times != int(times):
        raise UserError(f"--beside={words}: at most as many steps in a call as without")

    def call():
        return [other.call() for _ in range(int(times))][-1]

    return dataclasses.replace(
        other, name=f"{other.name}, {words}", call=call, images=first.images
    )


def prepare(settings: NetworkSettings) -> None:
    """What must be settled before the devices are first used. UserError."""
    if settings.peer == "torch":
        check_torch()
    growth.simulate_devices(settings)
    if settings.compile_cache is not None:
        jax.config.update("jax_compilation_cache_dir", settings.compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if jax.default_backend() == "gpu":
        precision = "tensorfloat32" if settings.tf32 == "on" else "highest"
        jax.config.update("jax_default_matmul_precision", precision)


def check_torch() -> None:
    """UserError where PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError(TORCH_MISSING) from None


def describe(settings: NetworkSettings, batch: int, devices: int) -> str:
    """What is measured, on what, in one line."""
    config = settings.config(batch, settings.image_size)
    what = "inference"
    details = [config.model.precision]
    if config.model.precision == "f32" and jax.default_backend() == "gpu":
        details += [f"TF32 {settings.tf32}"]
    if config.model.arch == "upproj":
        details += [f"upconv {config.model.upconv}", f"layout {config.model.layout}"]
    if isinstance(settings, TrainSettings):
        what = "training"
        details += [
            f"loss {config.loss.name}",
            config.optimizer.name,
            f"frames: {config.data.cache}",
        ]
        details += [f"augment {config.data.augment}"]
        more = {"accumulate": 1, "steps_per_call": 1, "parallel": "jit", "bn": "global"}
        details += [
            f"{name} {config.flat()[name]}"
            for name, usual in more.items()
            if config.flat()[name] != usual
        ]
    return (
        f"{what} {config.model.arch} at {config.model.size}, batch {batch} on "
        f"{devices} x {device_name()}, {', '.join(details)}"
    )


def _short(settings: NetworkSettings, batch: int) -> str:
    what = "training" if isinstance(settings, TrainSettings) else "inference"
    return f"{what} {settings.arch} at {settings.size}, batch {batch}"


def rates(
    settings: NetworkSettings,
    found: Facts,
    images: int,
    time: float,
    peaks: Peaks,
    devices: int,
) -> dict[str, Any]:
    """Images and operations a second, and shares of the device's peaks.

    Args:
      images, time: of one call; seconds.
    """
    train = isinstance(settings, TrainSettings)
    forward = macs.per_image(found.model, settings.image_size)
    flops = 2 * forward * (macs.TRAINING if train else 1) * images / time
    # Simulated devices share one processor, whose peak is measured as one device.
    real = 1 if jax.default_backend() == "cpu" else devices
    compiled, moved = found.compiled, _bytes(settings, found.compiled)
    return {
        "parameters": found.parameters,
        "images/s": images / time,
        "images/s/device": images / time / devices,
        "GMAC an image, forward": forward / 1e9,
        "counted": macs.HOW,
        "TFLOP/s": flops / 1e12,
        "share of the matrix product": flops / (peaks.flops * real),
        "XLA's GFLOP a step and device": _over(compiled.flops, 1e9),
        "XLA's GB a step and device": _over(compiled.bytes, 1e9),
        "share of the copy, by XLA's bytes": _over(
            moved, peaks.bytes * real * time / devices
        ),
        "temporary memory [MiB]": _over(compiled.temporary, 2**20),
        "arguments [MiB]": _over(compiled.arguments, 2**20),
        f"compile{', cached' if settings.compile_cache else ''} [s]": compiled.seconds,
    }


def _bytes(settings: NetworkSettings, compiled: Compiled) -> float | None:
    """Bytes of a call on one device, by XLA, which counts the body of a loop once."""
    if not isinstance(settings, TrainSettings) or compiled.bytes is None:
        return compiled.bytes
    return None if settings.accumulate > 1 else compiled.bytes * settings.steps_per_call


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _show_times(title: str, times: Found, images: int, report: Report) -> None:
    """Times a call, images a second, and ratios where there are peers."""
    report.show(title, {k: [1e3 * t for t in v] for k, v in times.items()}, "ms")
    rates = {k: [images / t for t in v] for k, v in times.items()}
    report.show(title, rates, "images/s")
    if len(times) == 1:
        return
    ratios = timing.ratios(times, ours.NAME)
    report.show(f"{title}: times as fast, turn by turn", ratios, "ratio")
    peers = [name for name in times if not name.startswith(ours.NAME)]
    if not peers:
        return
    faster = timing.fastest(times, peers)
    values = ratios[f"{ours.NAME} / {faster}"]
    report.say(
        f"against the faster peer, {faster}: {np.median(values):.2f} times as fast "
        f"({min(values):.2f} to {max(values):.2f} in {len(values)} turns)"
    )
    report.facts["faster peer"] = faster


def _peers(
    settings: NetworkSettings, batch: int, report: Report, parameters: int
) -> list[Contestant]:
    if settings.peer == "none":
        return []
    from jaxdepth.commands.benchmark import peer_runs

    return peer_runs.contestants(settings, batch, report, parameters)


def _best(settings: NetworkSettings, devices: list[Any], report: Report) -> int:
    """The best batch, searched for; keeps how the others did."""

    def measure(batch: int) -> float:
        with subject(settings, batch, settings.image_size, devices) as found:
            images = found.contestant.images
            times = timing.race([found.contestant], repeats=2, seconds=settings.seconds)
        rates = [images / seconds for seconds in times[ours.NAME]]
        report.show("search for the best batch", {f"batch {batch}": rates}, "images/s")
        return float(np.median(rates))

    parts = len(devices) * getattr(settings, "accumulate", 1)
    start = 1 if jax.default_backend() == "cpu" else 32
    start = -(-start // parts) * parts
    found = search.best_batch(
        measure,
        start=min(start, max(parts, settings.max_batch)),
        multiple=parts,
        limit=settings.max_batch,
        seconds=settings.search_s,
    )
    report.facts["search"] = dataclasses.asdict(found) | {"best": found.best}
    report.say(f"best batch: {found.best} ({found.why()})")
    return found.best


def _latency(settings: InferSettings, report: Report, parameters: int) -> None:
    """One frame at a time: milliseconds, and frames a second."""
    contestants = ours.one_by_one(settings, settings.image_size)
    for peer in _peers(settings, 1, report, parameters):
        contestants.append(_waiting(peer))
    times = timing.race(contestants, repeats=settings.repeats, seconds=settings.seconds)
    title = f"{_short(settings, 1)}, each waited for"
    report.show(title, {k: [1e3 * t for t in v] for k, v in times.items()}, "ms")
    report.show(title, {k: [1 / t for t in v] for k, v in times.items()}, "frames/s")


def _waiting(one: Contestant) -> Contestant:
    """The same, with every call waited for."""

    def call():
        return one.wait(one.call())

    return dataclasses.replace(one, call=call, wait=lambda _: None)
