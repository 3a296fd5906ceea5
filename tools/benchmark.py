"""How fast things are here: medians and spreads of runs that alternate.

    python tools/benchmark.py data
    python tools/benchmark.py data --data=STORE --batch_size=64

Nothing is compared with a figure from another machine or another minute.
"""

import contextlib
import dataclasses
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):  # run as a file: python tools/benchmark.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jaxdepth import cli, writers
from jaxdepth.data import packing, pipeline, store, toolbox
from jaxdepth.data.sources import Frame, FrameInfo
from jaxdepth.errors import UserError

logger = logging.getLogger("jaxdepth.tools")
PROG = "python tools/benchmark.py"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Rates of the data path: the toolbox's projection, and batches from a store."""

    data: str | None = None
    """A store; default: random frames, written to a temporary folder."""
    batch_size: int = 64
    """Images in a batch."""
    frames: int = 1024
    """Random frames at 240x320 where no store is given."""
    seconds: float = 3.0
    """How long each measurement runs."""
    repeats: int = 5
    """Measurements of each thing, one after the other."""
    json: str | None = None
    """A file for the numbers; an existing one is not overwritten."""


class Noise:
    """A source of random frames."""

    name, format, truths, eight_bit = "noise", "folder", ("filled",), False

    def __init__(self, count: int, size: tuple[int, int]):
        self.infos = [FrameInfo(f"{k:05d}") for k in range(count)]
        self.size, self.notes = size, []

    def frame(self, row: int) -> Frame:
        rng = np.random.default_rng(row)
        rgb = rng.integers(0, 256, (*self.size, 3), np.uint8)
        return Frame(rgb, filled=rng.uniform(0.7, 10, self.size).astype(np.float32))

    def fingerprint(self) -> dict[str, Any]:
        return {"frames": len(self.infos), "size": self.size}

    def splits(self) -> dict[str, dict[str, list[int]]]:
        return {"all": {"train": list(range(len(self.infos))), "eval": []}}


def alternate(
    things: dict[str, Callable[[], float]], repeats: int
) -> dict[str, list[float]]:
    """Measure each in turn, `repeats` times over, after one turn that doesn't count."""
    found: dict[str, list[float]] = {name: [] for name in things}
    for turn in range(repeats + 1):
        for name, measure in things.items():
            value = measure()
            if turn:
                found[name].append(value)
    return found


def show(title: str, found: dict[str, list[float]], unit: str) -> dict[str, Any]:
    """Print medians and spreads; returns them for --json."""
    rows, kept = [], {}
    for name, values in found.items():
        median, low, high = np.median(values), min(values), max(values)
        rows.append((name, float(median), float(low), float(high)))
        kept[name] = {"median": float(median), "values": values, "unit": unit}
    writers.print_table(f"{title} [{unit}]", ("what", "median", "min", "max"), rows)
    return kept


def rate(make: Callable[[], Any], *, per_call: int, seconds: float) -> float:
    """`per_call` things a call, for some seconds: things per second."""
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        make()
        calls += 1
    return calls * per_call / (time.perf_counter() - began)


def raw_frame(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Disparities (480,640) uint16 of a slanted room with holes, and random colours."""
    rng = np.random.default_rng(seed)
    metres = np.linspace(1.2, 5, 640)[None] + np.linspace(0.8, -0.2, 480)[:, None]
    raw = np.round(1092.5 - 351.3 / metres).astype(np.uint16)
    raw[rng.random(raw.shape) < 0.1] = 2047
    return raw, rng.integers(0, 256, (480, 640, 3), np.uint8)


def projection(config: DataConfig) -> dict[str, Any]:
    """Raw frames projected per second, in this one process."""
    raw, rgb = raw_frame()
    things = {
        f"project_depth_map, variant {variant}": lambda variant=variant: rate(
            lambda: toolbox.project_depth_map(raw, rgb, variant=variant),
            per_call=1,
            seconds=config.seconds,
        )
        for variant in ("B", "A")
    }
    return show(
        "the toolbox's projection, one process",
        alternate(things, config.repeats),
        "frames/s",
    )


def batches(config: DataConfig, opened: store.Store) -> dict[str, Any]:
    """Images per second that the pipeline brings with nobody to wait for."""
    rows = np.arange(len(opened))

    def drain(backend: str, cache: str) -> float:
        with pipeline.batches(
            opened,
            rows,
            depth=opened.depths[0],
            seed=0,
            batch_size=config.batch_size,
            start_step=0,
            stop_step=10**9,
            backend=backend,
            cache=cache,
        ) as source:
            next(source)
            return rate(
                lambda: next(source), per_call=config.batch_size, seconds=config.seconds
            )

    things = {
        f"{backend}, cache {cache}": lambda backend=backend, cache=cache: drain(
            backend, cache
        )
        for backend in ("tf", "threads")
        for cache in ("none", "host")
    }
    height, width = opened.size
    return show(
        f"batches of {config.batch_size} at {height}x{width} from {opened.name}",
        alternate(things, config.repeats),
        "images/s",
    )


@contextlib.contextmanager
def opened_store(config: DataConfig) -> Iterator[store.Store]:
    """The store that was named, or one of random frames."""
    if config.data is not None:
        yield store.Store.open(config.data)
        return
    with tempfile.TemporaryDirectory() as folder:
        noise = Noise(config.frames, (240, 320))
        yield packing.write(noise, Path(folder) / "noise", keep_full="none")


def data(config: DataConfig) -> dict[str, Any]:
    """`benchmark.py data`."""
    found = projection(config)
    with opened_store(config) as opened:
        return found | batches(config, opened)


COMMANDS: dict[str, tuple[type, Callable[[Any], dict[str, Any]]]] = {
    "data": (DataConfig, data),
}


def command(argv: Sequence[str]) -> int:
    """Measure what the first word names; returns the exit code."""
    if not argv or argv[0] not in COMMANDS:
        raise UserError(f"say what to measure: {PROG} {'|'.join(COMMANDS)}")
    kind, measure = COMMANDS[argv[0]]
    config = cli.parse(kind, argv[1:], prog=f"{PROG} {argv[0]}")
    if config.json is not None and Path(config.json).exists():
        raise UserError(f"--json={config.json} exists: name another file")
    found = measure(config)
    if config.json is not None:
        with writers.replacing(Path(config.json)) as file:
            file.write(json.dumps(found, indent=1).encode())
    return cli.OK


if __name__ == "__main__":
    cli.main(command)
