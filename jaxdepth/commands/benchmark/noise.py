"""Random frames: as arrays, as a device cache and as a store."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdepth.data import pipeline
from jaxdepth.data.sources import Frame, FrameInfo
from jaxdepth.data.store import writer as store_writer
from jaxdepth.data.store.reader import Store

Size = tuple[int, int]


class Noise:
    """A data source of random frames."""

    name, format, truths, eight_bit = "noise", "folder", ("filled",), False

    def __init__(self, count: int, size: Size):
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


def store_of(count: int, size: Size, folder: Path) -> Store:
    """Write a store of random frames without full-size copies."""
    return store_writer.write(Noise(count, size), folder, size=size, keep_full="none")


def batches_of(
    store: Store, batch_size: int, **options: Any
) -> contextlib.AbstractContextManager[Iterator[dict[str, np.ndarray]]]:
    """The training input pipeline over all frames of a store, without end."""
    options |= {"depth": store.depths[0], "seed": 0, "batch_size": batch_size}
    indices = np.arange(len(store))
    return pipeline.batches(store, indices, start_step=0, stop_step=10**9, **options)


def frames(count: int, size: Size, seed: int = 0) -> dict[str, np.ndarray]:
    """`rgb` (n,h,w,3) uint8 and `depth_codes` (n,h,w) uint16, of which 10 % are 0."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (count, *size, 3), np.uint8)
    depth = rng.integers(700, 10_000, (count, *size), np.uint16)
    depth[rng.random(depth.shape, np.float32) < 0.1] = 0
    return {"rgb": rgb, "depth_codes": depth}


def images(batch_size: int, size: Size, *, count: int = 4) -> np.ndarray:
    """Random images (count, batch_size, h, w, 3) uint8, for inference."""
    shape = (count, batch_size, *size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def table_part(
    count: int, size: Size, devices: int
) -> Callable[[int], dict[str, np.ndarray]]:
    """Device number -> its share of `count` frames, for `Placement.place_table`."""
    each = -(-count // devices)

    def part(device: int) -> dict[str, np.ndarray]:
        share = frames(each, size, seed=device)
        return {name: x.reshape(each, -1) for name, x in share.items()}

    return part


def rows(count: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of random row indices."""
    rng = np.random.default_rng(0)
    position = np.arange(batch_size, dtype=np.int32)
    while True:
        indices = rng.integers(0, count, batch_size, np.int32)
        yield {"rows": indices, "position": position}
