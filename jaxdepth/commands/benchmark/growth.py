"""How a step's time grows with batch, size and devices, beside growing linearly."""

import contextlib
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxdepth.commands.benchmark import timing
from jaxdepth.commands.benchmark.machine import is_out_of_memory
from jaxdepth.commands.benchmark.report import Report, number
from jaxdepth.commands.benchmark.settings import NetworkSettings, TrainSettings
from jaxdepth.config import parse_size
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import UserError

POINTS = {
    "batch": "1,2,4,8,16,32,64",
    # 60x80 is the demo's: maps of 2x3 must not fall off a cliff.
    "size": "60x80,120x160,180x240,228x304,240x320,360x480,480x640",
    "devices": "1,2,4,8",
}
COLUMNS = ("point", "batch", "ms a step", "images/s", "of linear", "temporary MiB")


def simulate_devices(settings: NetworkSettings) -> None:
    """As many CPU devices as are asked for, where JAX has not begun yet."""
    wanted = settings.devices or 1
    if settings.growth == "devices":
        wanted = max(points(settings))
    if wanted == 1 or "device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):  # it has begun
        jax.config.update("jax_num_cpu_devices", wanted)


def points(settings: NetworkSettings) -> list[Any]:
    """The points of --growth: numbers, or (height, width). UserError."""
    text = settings.points if settings.points != "auto" else POINTS[settings.growth]
    if settings.growth == "size":
        return [parse_size(word) for word in text.split(",")]
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--points={text}: whole numbers by commas, as in 1,2,4")
    return [int(word) for word in words]


def run(settings: NetworkSettings, report: Report, subject: Callable) -> None:
    """Measure each point after the other, and print a table.

    Args:
      subject: context manager of `networks`.
    """
    there = jax.devices()
    rows: list[list[Any]] = []
    first: tuple[float, float] | None = None
    for point in points(settings):
        batch, size, devices = _place(settings, point, there)
        try:
            with subject(settings, batch, size, devices) as found:
                seconds = _seconds(settings, found.contestant)
                memory, images = found.facts.compiled.temporary, found.contestant.images
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            report.say(f"{_name(point)}: does not fit into memory, left out")
            continue
        milliseconds = {_name(point): [1e3 * t for t in seconds]}
        report.keep(f"a step by {settings.growth}", milliseconds, "ms")
        time, work = float(np.median(seconds)), _work(settings.growth, point)
        first = first or (time, work)
        # 1: as much more time as work; below: cheaper than that.
        linear = time / first[0] / (work / first[1])
        memory = memory and memory / 2**20
        rows.append([_name(point), batch, 1e3 * time, images / time, linear, memory])
        # After each point: the larger ones may take longer than anybody waits.
        report.facts["growth"] = {
            row[0]: dict(zip(COLUMNS[1:], row[1:], strict=True)) for row in rows
        }
    shown = [[number(cell) for cell in row] for row in rows]
    terminal.print_table(_title(settings), COLUMNS, shown)


def _seconds(settings: NetworkSettings, one: timing.Contestant) -> list[float]:
    found = timing.race([one], repeats=settings.repeats, seconds=settings.seconds)
    return found[one.name]


def _title(settings: NetworkSettings) -> str:
    what = "training" if isinstance(settings, TrainSettings) else "inference"
    linear = {
        "batch": "the first point's time times the images",
        "size": "the first point's time times the pixels",
        "devices": "a batch on each; simulated devices share one processor: the first "
        "point's time times the devices",
    }[settings.growth]
    return f"{what} {settings.arch} by {settings.growth}; linear: {linear}"


def _place(settings: NetworkSettings, point: Any, there: list[Any]):
    """(global batch, size, devices) of a point. UserError where devices are too few."""
    batch, size, devices = settings.fixed_batch, settings.image_size, there[:1]
    if settings.growth == "batch":
        chosen = settings.chosen_devices() if settings.devices else devices
        return point, size, chosen
    if settings.growth == "size":
        return batch(), point, devices
    if point > len(there):
        raise UserError(f"--growth=devices: {point} asked for, {len(there)} there")
    # The same batch on each, so that only what they say to each other is added.
    return batch() * point, size, there[:point]


def _work(growth: str, point: Any) -> float:
    """What linear growth would be proportional to."""
    if growth == "size":
        return float(math.prod(point))
    if growth == "devices" and jax.default_backend() != "cpu":
        return 1.0
    return float(point)


def _name(point: Any) -> str:
    return f"{point[0]}x{point[1]}" if isinstance(point, tuple) else str(point)
