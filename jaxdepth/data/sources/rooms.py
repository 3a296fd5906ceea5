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

    Args:
      training: False to leave out the training frames. The evaluation frames are the
        same.
    """

    format = "rooms"
    truths: tuple[str, ...] = ("raw",)
    eight_bit = False

    def __init__(
        self,
        *,
        seed: int,
        train: int,
        evaluation: int,
        size: tuple[int, int],
        training: bool = True,
    ):
        self.name = "rooms"
        self.notes: list[str] = []
        self._seed, self._size = seed, size
        self._train, self._evaluation = train, evaluation
        self._first = 0 if training else train
        self._ahead: collections.deque[tuple[np.ndarray, np.ndarray]] = (
            collections.deque()
        )
        self._next = -1
        self._batches: Any = iter(())
        rooms = range(self._first, train + evaluation)
        self.infos = [FrameInfo(f"room {k:05d}") for k in rooms]

    def frame(self, row: int) -> Frame:
        if row != self._next:
            room, count = self._first + row, len(self.infos) - row
            self._batches = iter(
                renderer.generate(self._seed, count, self._size, start=room)
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
            **({"first": self._first} if self._first else {}),
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        rows = list(range(len(self.infos)))
        train = self._train - self._first
        return {"own": {"train": rows[:train], "eval": rows[train:]}}
