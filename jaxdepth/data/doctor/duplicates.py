"""Detection of copies of images by 64-bit hashes and thumbnails.

Two images are copies if their hashes differ in few bits and their thumbnails correlate.
Re-encoded, scaled and brightened images are detected; images cropped by more than 1 %
may not be. Among the 795 official training frames, no two hashes differ in fewer than
10 bits, and no two thumbnails correlate by more than 0.84.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

BITS = 10  # largest number of different bits, of 64, in hashes of copies
ALIKE = 0.9  # smallest correlation of thumbnails of copies
FLAT = 2.0  # standard deviation in grey levels below which an image is ignored
SIZE = (24, 32)  # thumbnails, rows and columns
BLOCK = 1024  # images compared with all others at once


def thumbnail(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "24 32"]:
    """The green channel, averaged over a grid."""
    return np.round(_areas(rgb[..., 1], SIZE)).astype(np.uint8)


def hash64(rgb: UInt8[np.ndarray, "h w 3"]) -> np.uint64:
    """Signs of the 64 lowest DCT-II coefficients of 32x32 areas, without the mean."""
    values = _WAVES @ _areas(rgb[..., 1], (32, 32)) @ _WAVES.T
    return np.packbits(values.ravel()[_LOWEST] > 0).view(np.uint64)[0]


_WAVES = np.cos(np.pi / 32 * np.outer(np.arange(12), np.arange(32) + 0.5))
_LOWEST = (
    np.add.outer(np.arange(12), np.arange(12)).ravel().argsort(kind="stable")[1:65]
)


class Fingerprints:
    """Hashes and thumbnails of images, by row."""

    def __init__(self):
        self._codes: dict[int, np.uint64] = {}
        self._thumbnails: dict[int, np.ndarray] = {}

    def add(self, row: int, rgb: UInt8[np.ndarray, "h w 3"]) -> None:
        """Add an image. Images of nearly uniform brightness are ignored."""
        small = thumbnail(rgb)
        if small.std() >= FLAT:
            self._codes[row], self._thumbnails[row] = hash64(rgb), small

    def __len__(self) -> int:
        return len(self._codes)

    def copies(
        self,
        rows: Sequence[int],
        among: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[tuple[int, int]]:
        """Pairs (row, row that it is a copy of) for `rows` that are copies.

        Args:
          among: rows to search; None: for each row, the rows before it in `rows`.
          progress: called with (done, total).
        """
        rows = [row for row in rows if row in self._codes]
        earlier = among is None
        others = rows if among is None else [r for r in among if r in self._codes]
        other_codes = np.array([self._codes[row] for row in others], np.uint64)
        copies = []
        for first in range(0, len(rows) if others else 0, BLOCK):
            block = rows[first : first + BLOCK]
            codes = np.array([self._codes[row] for row in block], np.uint64)
            last = first + len(block) if earlier else len(others)
            bits = np.bitwise_count(codes[:, None] ^ other_codes[None, :last])
            if earlier:
                after = np.arange(last) >= first + np.arange(len(block))[:, None]
                bits[after] = 64
            nearest = bits.argmin(axis=1)
            for k in np.flatnonzero(bits.min(axis=1) <= BITS).tolist():
                if self._alike(block[k], others[nearest[k]]):
                    copies.append((block[k], others[nearest[k]]))
            if progress is not None:
                progress(first + len(block), len(rows))
        return copies

    def _alike(self, row: int, other: int) -> bool:
        pair = [self._thumbnails[r].ravel() for r in (row, other)]
        return bool(np.corrcoef(pair)[0, 1] >= ALIKE)


def _areas(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Means over a grid of areas; pixels of smaller images are repeated."""
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
