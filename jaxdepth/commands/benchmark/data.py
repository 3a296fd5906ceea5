"""`jaxdepth benchmark data`: depth projection, batches, and waiting for input."""

import contextlib
import dataclasses
import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxdepth import config as config_lib
from jaxdepth.commands.benchmark import noise
from jaxdepth.commands.benchmark.report import Report
from jaxdepth.commands.benchmark.timing import alternate, rate
from jaxdepth.commands.compile import lower
from jaxdepth.config import Config
from jaxdepth.data.nyu import toolbox
from jaxdepth.data.store.reader import Store
from jaxdepth.training.sharding import Placement
from jaxdepth.training.step import train_step

SIZE = (240, 320)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Measure the NYU toolbox's depth projection, and batches from a store."""

    data: str | None = None
    """A store; default: random frames in a temporary store."""
    batch_size: int = 64
    """Images in a batch."""
    frames: int = 1024
    """Number of random frames of 240x320, without --data."""
    arch: Literal["cnn_fc", "cnn", "cnn_trans", "upproj"] = "cnn"
    """Architecture that is trained on the batches."""
    seconds: float = 3.0
    """Length of each measurement, seconds."""
    repeats: int = 5
    """Number of turns after the discarded first one."""
    json: str | None = None
    """New file for all results as JSON."""


def run(settings: DataSettings, report: Report) -> None:
    """Measure projection, batches, and the time that training waits for them."""
    projection(settings, report)
    with open_store(settings) as store:
        batches(settings, store, report)
        waiting(settings, store, report)


def raw_frame(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Disparities (480,640) uint16 of a slanted room with holes, and random colours."""
    rng = np.random.default_rng(seed)
    metres = np.linspace(1.2, 5, 640)[None] + np.linspace(0.8, -0.2, 480)[:, None]
    raw = np.round(1092.5 - 351.3 / metres).astype(np.uint16)
    raw[rng.random(raw.shape) < 0.1] = 2047
    return raw, rng.integers(0, 256, (480, 640, 3), np.uint8)


def projection(settings: DataSettings, report: Report) -> None:
    """Measure projected raw frames per second in one process."""
    raw, rgb = raw_frame()

    def project(variant: Literal["B", "A"]) -> float:
        call = functools.partial(toolbox.project_depth_map, raw, rgb, variant=variant)
        return rate(call, per_call=1, seconds=settings.seconds)

    measurements = {
        "project_depth_map, variant B": lambda: project("B"),
        "project_depth_map, variant A": lambda: project("A"),
    }
    samples = alternate(measurements, settings.repeats)
    report.show("the toolbox's projection, one process", samples, "frames/s")


def batches(settings: DataSettings, store: Store, report: Report) -> None:
    """Measure images per second of the input pipeline alone."""
    size = settings.batch_size

    def drain(backend: str, cache: str) -> float:
        with noise.batches_of(store, size, backend=backend, cache=cache) as source:
            next(source)
            seconds = settings.seconds
            return rate(lambda: next(source), per_call=size, seconds=seconds)

    measurements = {
        f"{backend}, cache {cache}": functools.partial(drain, backend, cache)
        for backend in ("tf", "threads")
        for cache in ("none", "host")
    }
    height, width = store.size
    report.show(
        f"batches of {size} at {height}x{width} from {store.name}",
        alternate(measurements, settings.repeats),
        "images/s",
    )


def waiting(settings: DataSettings, store: Store, report: Report) -> None:
    """Measure the share of the training time spent waiting for input."""
    height, width = store.size
    size = f"{19 * height // 20}x{19 * width // 20}"
    config = Config.of(arch=settings.arch, size=size, batch_size=settings.batch_size)
    config = config_lib.resolve(config, platform=jax.default_backend())
    config = config_lib.resolve_steps(config, train_images=len(store))
    devices = jax.devices()
    divides = settings.batch_size % len(devices) == 0
    placement = Placement.over("jit", devices if divides else devices[:1])
    parts = lower.step_parts(config, placement)
    spec = dataclasses.replace(parts.spec, depth_unit=store.depth_unit)
    step = placement.compile(train_step, spec)
    holder = {"state": placement.place_state(parts.init())}

    def share() -> float:
        waited, logs = 0.0, None
        with noise.batches_of(store, settings.batch_size) as source:
            start = time.perf_counter()
            while logs is None or time.perf_counter() - start < settings.seconds:
                request = time.perf_counter()
                batch = placement.place_batch(next(source))
                waited += time.perf_counter() - request
                holder["state"], logs = step(holder["state"], batch)
                jax.block_until_ready(logs)
            return 100 * waited / (time.perf_counter() - start)

    samples = alternate({settings.arch: share}, settings.repeats)
    title = f"training at {size}, batch {settings.batch_size}: time waiting for input"
    report.show(title, samples, "%")


@contextlib.contextmanager
def open_store(settings: DataSettings) -> Iterator[Store]:
    """The store of --data, or a temporary one of random frames."""
    if settings.data is not None:
        yield Store.open(settings.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield noise.store_of(settings.frames, SIZE, Path(folder) / "noise")
