"""Images that are there more than once: 64-bit hashes, then small pictures.

Two images are copies where their hashes differ in few bits and their thumbnails
correlate: encoded, scaled or brightened again they still are, cut at the border by more
than a hundredth they may not be. Of the 795 official training frames no two hashes
differ in fewer than 10 bits, and no two thumbnails correlate by more than 0.84.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

BITS = 10  # of 64 in which hashes of copies may differ
ALIKE = 0.9  # correlation of thumbnails of copies
FLAT = 2.0  # grey levels, standard deviation: less shows nothing
SIZE = (24, 32)  # thumbnails, rows and columns
BLOCK = 1024  # images compared at a time with all others


def thumbnail(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "24 32"]:
    """Green, averaged over a grid of areas."""
    return np.round(_areas(rgb[..., 1], SIZE)).astype(np.uint8)


def hash64(rgb: UInt8[np.ndarray, "h w 3"]) -> np.uint64:
    """Signs of the 64 lowest frequencies (DCT-II of 32x32 areas) but the mean."""
    values = _WAVES @ _areas(rgb[..., 1], (32, 32)) @ _WAVES.T
    return np.packbits(values.ravel()[_LOWEST] > 0).view(np.uint64)[0]


_WAVES = np.cos(np.pi / 32 * np.outer(np.arange(12), np.arange(32) + 0.5))
_LOWEST = (
    np.add.outer(np.arange(12), np.arange(12)).ravel().argsort(kind="stable")[1:65]
)


class Prints:
    """What is kept of images, by row."""

    def __init__(self):
        self._codes: dict[int, np.uint64] = {}
        self._small: dict[int, np.ndarray] = {}

    def add(self, row: int, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
        """Keep an image; one that shows nothing has no copies and is left out."""
        small = thumbnail(rgb)
        if small.std() >= FLAT:
            self._codes[row], self._small[row] = hash64(rgb), small

    def __len__(self) -> int:
        return len(self._codes)

    def copies(
        self,
        rows: Sequence[int],
        among: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[tuple[int, int]]:
        """(row, its copy) for each of `rows` that has one.

        Args:
          among: where the copy is looked for; None: before it in `rows`.
          progress: called with (done, total).
        """
        rows = [row for row in rows if row in self._codes]
        earlier = among is None
        others = rows if among is None else [r for r in among if r in self._codes]
        theirs = np.array([self._codes[row] for row in others], np.uint64)
        found = []
        for first in range(0, len(rows) if others else 0, BLOCK):
            block = rows[first : first + BLOCK]
            codes = np.array([self._codes[row] for row in block], np.uint64)
            last = first + len(block) if earlier else len(others)
            apart = np.bitwise_count(codes[:, None] ^ theirs[None, :last])
            if earlier:
                after = np.arange(last) >= first + np.arange(len(block))[:, None]
                apart[after] = 64
            nearest = apart.argmin(axis=1)
            for k in np.flatnonzero(apart.min(axis=1) <= BITS).tolist():
                if self._alike(block[k], others[nearest[k]]):
                    found.append((block[k], others[nearest[k]]))
            if progress is not None:
                progress(first + len(block), len(rows))
        return found

    def _alike(self, row: int, other: int) -> bool:
        a, b = (self._small[r].astype(np.float32) for r in (row, other))
        a, b = a - a.mean(), b - b.mean()
        return bool((a * b).sum() >= ALIKE * np.linalg.norm(a) * np.linalg.norm(b))


def _areas(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Means over a grid of areas; images smaller than it have their pixels repeated."""
    for axis, count in enumerate(size):
        length = values.shape[axis]
        if length < count:
            values = values.take(np.arange(count) * length // count, axis)
            length = count
        starts = np.arange(count) * length // count
        lengths = np.diff(np.append(starts, length)).reshape(-1, *[1] * (1 - axis))
        sums = np.add.reduceat(values.astype(np.float32), starts, axis)
        values = sums / lengths
    return values
