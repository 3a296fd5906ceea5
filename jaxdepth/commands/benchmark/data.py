"""`benchmark.py data`: the toolbox's projection, and batches from a store."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxdepth import config as config_lib
from jaxdepth.commands.benchmark import noise, ours
from jaxdepth.commands.benchmark.report import Report
from jaxdepth.commands.benchmark.timing import alternate, rate
from jaxdepth.config import Config
from jaxdepth.data import pipeline
from jaxdepth.data.nyu import toolbox
from jaxdepth.data.store.reader import Store
from jaxdepth.training.sharding import Placement
from jaxdepth.training.step import train_step

SIZE = (240, 320)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Rates of the data path: the toolbox's projection, and batches from a store."""

    data: str | None = None
    """A store; default: random frames, written to a temporary folder."""
    batch_size: int = 64
    """Images in a batch."""
    frames: int = 1024
    """Random frames at 240x320 where no store is given."""
    arch: Literal["cnn_fc", "cnn", "cnn_trans", "upproj"] = "cnn"
    """Network whose training waits for the batches."""
    seconds: float = 3.0
    """How long each measurement runs."""
    repeats: int = 5
    """Measurements of each thing, in turns."""
    json: str | None = None
    """A file for everything that was measured; an existing one is not overwritten."""
    csv: str | None = None
    """A file for the tables; likewise."""


def run(settings: DataSettings, report: Report) -> None:
    """Frames projected and images brought, per second."""
    projection(settings, report)
    with opened_store(settings) as opened:
        batches(settings, opened, report)
        waiting(settings, opened, report)


def raw_frame(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Disparities (480,640) uint16 of a slanted room with holes, and random colours."""
    rng = np.random.default_rng(seed)
    metres = np.linspace(1.2, 5, 640)[None] + np.linspace(0.8, -0.2, 480)[:, None]
    raw = np.round(1092.5 - 351.3 / metres).astype(np.uint16)
    raw[rng.random(raw.shape) < 0.1] = 2047
    return raw, rng.integers(0, 256, (480, 640, 3), np.uint8)


def projection(settings: DataSettings, report: Report) -> None:
    """Raw frames projected per second, in this one process."""
    raw, rgb = raw_frame()

    def project(variant: Literal["B", "A"]) -> float:
        return rate(
            lambda: toolbox.project_depth_map(raw, rgb, variant=variant),
            per_call=1,
            seconds=settings.seconds,
        )

    things = {
        "project_depth_map, variant B": lambda: project("B"),
        "project_depth_map, variant A": lambda: project("A"),
    }
    found = alternate(things, settings.repeats)
    report.show("the toolbox's projection, one process", found, "frames/s")


def batches(settings: DataSettings, opened: Store, report: Report) -> None:
    """Images per second that the pipeline brings with nobody to wait for."""
    rows = np.arange(len(opened))

    def drain(backend: str, cache: str) -> float:
        with pipeline.batches(
            opened,
            rows,
            depth=opened.depths[0],
            seed=0,
            batch_size=settings.batch_size,
            start_step=0,
            stop_step=10**9,
            backend=backend,
            cache=cache,
        ) as source:
            next(source)
            return rate(
                lambda: next(source),
                per_call=settings.batch_size,
                seconds=settings.seconds,
            )

    things = {
        f"{backend}, cache {cache}": lambda backend=backend, cache=cache: drain(
            backend, cache
        )
        for backend in ("tf", "threads")
        for cache in ("none", "host")
    }
    height, width = opened.size
    report.show(
        f"batches of {settings.batch_size} at {height}x{width} from {opened.name}",
        alternate(things, settings.repeats),
        "images/s",
    )


def waiting(settings: DataSettings, opened: Store, report: Report) -> None:
    """Share of the time of training on the store that goes by waiting for input."""
    height, width = opened.size
    size = f"{19 * height // 20}x{19 * width // 20}"
    config = Config.of(arch=settings.arch, size=size, batch_size=settings.batch_size)
    config = config_lib.resolve(config, platform=jax.default_backend())
    config = config_lib.resolve_steps(config, train_images=len(opened))
    devices = jax.devices()
    whole = settings.batch_size % len(devices) == 0
    placement = Placement.over("jit", devices if whole else devices[:1])
    _, spec, state = ours.training(config, {})
    step = placement.compile(train_step, spec)
    held = {"state": placement.place_state(state)}

    def share() -> float:
        waited, logs = 0.0, None
        with pipeline.batches(
            opened,
            np.arange(len(opened)),
            depth=opened.depths[0],
            seed=0,
            batch_size=settings.batch_size,
            start_step=0,
            stop_step=10**9,
        ) as source:
            began = time.perf_counter()
            while logs is None or time.perf_counter() - began < settings.seconds:
                asked = time.perf_counter()
                batch = placement.place_batch(next(source))
                waited += time.perf_counter() - asked
                held["state"], logs = step(held["state"], batch)
                jax.block_until_ready(logs)
            return 100 * waited / (time.perf_counter() - began)

    found = alternate({settings.arch: share}, settings.repeats)
    title = f"training at {size}, batch {settings.batch_size}: time waiting for input"
    report.show(title, found, "%")


@contextlib.contextmanager
def opened_store(settings: DataSettings) -> Iterator[Store]:
    """The store that was named, or one of random frames."""
    if settings.data is not None:
        yield Store.open(settings.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield noise.store_of(settings.frames, SIZE, Path(folder) / "noise")
