"""Growth of the time per step with batch size, image size or number of devices."""

import contextlib
import math
import os
from typing import Any

import jax
import numpy as np

from jaxdepth.commands.benchmark import timing, workloads
from jaxdepth.commands.benchmark.machine import is_out_of_memory
from jaxdepth.commands.benchmark.report import Report, number
from jaxdepth.commands.benchmark.settings import NetworkSettings
from jaxdepth.config import parse_size
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import UserError

POINTS = {
    "batch": "1,2,4,8,16,32,64",
    # 60x80 is the input size of the recipe `demo`; its smallest maps are 2x3.
    "size": "60x80,120x160,180x240,228x304,240x320,360x480,480x640",
    "devices": "1,2,4,8",
}
LINEAR = {
    "batch": "the first point's time times the images",
    "size": "the first point's time times the pixels",
    "devices": "a batch on each; simulated devices share one processor: the first "
    "point's time times the devices",
}
COLUMNS = ("point", "batch", "ms a step", "images/s", "of linear", "temporary MiB")


def simulate_devices(settings: NetworkSettings) -> None:
    """Simulate as many CPU devices as the settings need, if JAX has not started."""
    count = settings.devices or 1
    if settings.growth == "devices":
        count = max(points(settings))
    if count == 1 or "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", count)


def points(settings: NetworkSettings) -> list[Any]:
    """The points of --growth: integers, or (height, width). Raises UserError."""
    text = settings.points if settings.points != "auto" else POINTS[settings.growth]
    words = text.split(",")
    if settings.growth == "size":
        return [parse_size(word) for word in words]
    if not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--points={text}: expected positive integers, as in 1,2,4")
    return [int(word) for word in words]


def run(settings: NetworkSettings, report: Report) -> None:
    """Measure one point after another and print a table."""
    all_devices = jax.devices()
    growth: dict[str, dict[str, Any]] = {}
    first: tuple[float, float] | None = None
    for point in points(settings):
        name = f"{point[0]}x{point[1]}" if isinstance(point, tuple) else str(point)
        batch, size, devices = place(settings, point, all_devices)
        try:
            with workloads.subject(settings, batch, size, devices) as measured:
                (samples,) = timing.time_alternating(
                    [measured.workload],
                    repeats=settings.repeats,
                    seconds=settings.seconds,
                ).values()
                memory, images = measured.compiled.temporary, measured.workload.images
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            report.note(f"{name}: does not fit into memory, skipped")
            continue
        milliseconds = {name: [1e3 * t for t in samples]}
        report.keep(f"a step by {settings.growth}", milliseconds, "ms")
        seconds, work = float(np.median(samples)), _work(settings.growth, point)
        first = first or (seconds, work)
        # Below 1: the time grows more slowly than the work.
        linear = seconds / first[0] / (work / first[1])
        memory = memory and memory / 2**20
        row = (batch, 1e3 * seconds, images / seconds, linear, memory)
        growth[name] = dict(zip(COLUMNS[1:], row, strict=True))
        # Recorded after each point, because the user may interrupt the larger ones.
        report.facts["growth"] = growth
    title = f"{settings.title} by {settings.growth}; linear: {LINEAR[settings.growth]}"
    rows = [[name, *map(number, row.values())] for name, row in growth.items()]
    terminal.print_table(title, COLUMNS, rows)


def place(settings: NetworkSettings, point: Any, all_devices: list[Any]):
    """(global batch size, image size, devices) of a point.

    Raises: UserError if there are not enough devices.
    """
    size, one_device = settings.image_size, all_devices[:1]
    if settings.growth == "batch":
        devices = settings.chosen_devices() if settings.devices else one_device
        return point, size, devices
    if settings.growth == "size":
        return settings.fixed_batch(), point, one_device
    if point > len(all_devices):
        raise UserError(f"--points: {point} devices, but JAX has {len(all_devices)}")
    # The batch size per device is constant, so only the collectives are added.
    return settings.fixed_batch() * point, size, all_devices[:point]


def _work(growth: str, point: Any) -> float:
    """The quantity that the time is proportional to under linear growth."""
    if growth == "size":
        return float(math.prod(point))
    if growth == "devices" and jax.default_backend() != "cpu":
        return 1.0
    return float(point)
