"""Rendered rooms as a source, for training and evaluation."""

import collections
from typing import Any

import numpy as np

from jaxdepth.data.rooms import renderer
from jaxdepth.data.sources import Frame, FrameInfo


class Rooms:
    """Rendered rooms of one seed: `train` frames, then `evaluation` frames.

    Depth is raw: it has holes like a sensor's. Frames are rendered in batches, so
    reading them in ascending order is fastest.
    """

    format = "rooms"
    truths: tuple[str, ...] = ("raw",)
    eight_bit = False

    def __init__(
        self, *, seed: int, train: int, evaluation: int, size: tuple[int, int]
    ):
        self.name = "rooms"
        self.notes: list[str] = []
        self._seed, self._size = seed, size
        self._train, self._evaluation = train, evaluation
        self._ahead: collections.deque[tuple[np.ndarray, np.ndarray]] = (
            collections.deque()
        )
        self._next = -1
        self._batches: Any = iter(())
        self.infos = [FrameInfo(f"room {k:05d}") for k in range(train + evaluation)]

    def frame(self, row: int) -> Frame:
        if row != self._next:
            count = self._train + self._evaluation - row
            self._batches = iter(
                renderer.generate(self._seed, count, self._size, start=row)
            )
            self._ahead.clear()
            self._next = row
        if not self._ahead:
            rgb, depth = next(self._batches)
            self._ahead.extend(zip(np.asarray(rgb), np.asarray(depth), strict=True))
        self._next += 1
        rgb, depth = self._ahead.popleft()
        return Frame(rgb, raw=depth, intrinsics=renderer.intrinsics(self._size))

    def fingerprint(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "train": self._train,
            "evaluation": self._evaluation,
            "size": list(self._size),
            "renderer": renderer.RENDERER_VERSION,
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        last = self._train + self._evaluation
        return {
            "own": {
                "train": list(range(self._train)),
                "eval": list(range(self._train, last)),
            }
        }
