"""A source of frames in memory, in a module that worker processes can import."""

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
      broken: row -> reason, for frames that raise BrokenFrame.
      wrong: rows that raise UserError.
      stop_at: a row, and another exception that it raises.
      seconds: the time to read a frame.
      read: the number of frames read in this process.
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
    """Kills the worker that reads row 3, as the system does when memory runs out."""

    def frame(self, row):
        if row == 3 and multiprocessing.parent_process() is not None:
            os._exit(1)
        return super().frame(row)


def frame(seed=0, size=(24, 32), kinds=("filled",), holes=0.2):
    """A frame of noise, with holes in raw depth."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    depth = {}
    for kind in kinds:
        metres = rng.integers(700, 9000, size).astype(np.float32) / 1000
        metres[rng.random(size) < (holes if kind == "raw" else 0)] = 0
        depth[kind] = metres
    return Frame(rgb, **depth)


def written(folder, frames, *, out="s", kinds=("filled",), **options):
    """Write a store; options go to `Memory` or to `writer.write`, by their names."""
    names = {field.name for field in dataclasses.fields(Memory)}
    of_source = {k: v for k, v in options.items() if k in names}
    of_store = {k: v for k, v in options.items() if k not in names}
    source = Memory(frames, truths=kinds, **of_source)
    return store_writer.write(source, folder / out, **{"size": SIZE, **of_store})


def depths(opened, kind="filled"):
    """All depth maps of a store, millimetres."""
    return opened.gather(np.arange(len(opened)), depth=kind)[1]


def contents(folder):
    """The files of a store: name -> content."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def one_line(error) -> str:
    """Assert that the message of a caught error has one line; return it."""
    text = str(error.value)
    assert "\n" not in text
    return text
