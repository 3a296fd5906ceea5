"""A source of frames in memory, which other processes can import."""

import dataclasses
import multiprocessing
import os
import time

import jax
import numpy as np

from jaxdepth.data.sources import BrokenFrame, Frame, FrameInfo
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import UserError

SIZE = (12, 16)  # of training frames


@dataclasses.dataclass
class Memory:
    """Frames in memory.

    Attributes:
      broken: row -> reason of frames that can't be read.
      wrong: rows that the source refuses otherwise.
      stop_at: a row at which something quite different goes wrong, and what.
      seconds: what reading one takes.
      read: how many were read, in this process.
    """

    frames: list[Frame]
    truths: tuple[str, ...] = ("filled",)
    eight_bit: bool = False
    split: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)
    broken: dict[int, str] = dataclasses.field(default_factory=dict)
    wrong: tuple[int, ...] = ()
    stop_at: tuple[int, BaseException] | None = None
    seconds: float = 0.0
    read: int = 0
    name: str = "memory"
    format: str = "folder"
    notes: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.infos = [
            FrameInfo(f"frame {k}", scene=f"scene {k // 2}", official_index=None)
            for k in range(len(self.frames))
        ]

    def frame(self, row):
        if multiprocessing.parent_process() is not None:
            assert jax.config.jax_platforms == "cpu"  # pyright: ignore
        if self.stop_at is not None and row == self.stop_at[0]:
            raise self.stop_at[1]
        if row in self.broken:
            raise BrokenFrame(self.broken[row])
        if row in self.wrong:
            raise UserError(f"frame {row} is wrong")
        time.sleep(self.seconds)
        self.read += 1
        return self.frames[row]

    def fingerprint(self):
        return {"content": [float(sum(d.sum() for d in f.depths.values()))
                            for f in self.frames], "renderer": 7}  # fmt: skip

    def splits(self):
        return self.split or {
            "all": {"train": list(range(len(self.frames))), "eval": []}
        }


class Deadly(Memory):
    """Ends the process that reads its fourth frame, as who takes too much memory."""

    def frame(self, row):
        if row == 3 and multiprocessing.parent_process() is not None:
            os._exit(1)
        return super().frame(row)


def frame(seed=0, size=(24, 32), kinds=("filled",), holes=0.2):
    """Noise, with holes in raw depth."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    depth = {}
    for kind in kinds:
        metres = rng.integers(700, 9000, size).astype(np.float32) / 1000
        metres[rng.random(size) < (holes if kind == "raw" else 0)] = 0
        depth[kind] = metres
    return Frame(rgb, **depth)


def written(folder, frames, *, out="s", kinds=("filled",), **more):
    """A store of those frames; the options go to the source or to `packing.write`."""
    names = {field.name for field in dataclasses.fields(Memory)}
    of_source = {k: v for k, v in more.items() if k in names}
    of_store = {k: v for k, v in more.items() if k not in names}
    source = Memory(frames, truths=kinds, **of_source)
    return store_writer.write(source, folder / out, **{"size": SIZE, **of_store})


def depths(opened, kind="filled"):
    """All depth of a store, millimetres."""
    return opened.gather(np.arange(len(opened)), depth=kind)[1]


def contents(folder):
    """Every file of a store, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def one_line(error) -> str:
    """The text of a caught error, which has one line."""
    text = str(error.value)
    assert "\n" not in text
    return text
