"""How much of a depth map is a regular grid: the mark that up-convolutions leave."""

import dataclasses

import numpy as np
from jaxtyping import Float

SMALLEST = 32  # pixels across a map
PERIODS = (2, 4)  # of the last and the last two doublings of the size
_NEAR, _FAR = 3, 6  # bins from a peak that count as its surroundings


@dataclasses.dataclass(frozen=True)
class Gridding:
    """Energy of one period in a depth map's spectrum.

    Attributes:
      share: of all energy but the mean's, 0 to 1.
      prominence: of the peaks' energy over that of as many bins around them; 1 where
        there is no grid.
    """

    share: float
    prominence: float


def spectrum(depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "i j"]:
    """Power at each frequency, of the map cut to multiples of 4 pixels.

    The mean is taken out and a Hann window laid over, so that a wave of whole periods
    fills its own bin and the two beside it, and the ends do not count as edges. Bin
    (i, j) is at i/height and j/width cycles a pixel.
    """
    height, width = (4 * (n // 4) for n in depth.shape)
    part = np.asarray(depth[:height, :width], np.float64)
    window = np.outer(*(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
                        for n in (height, width)))  # fmt: skip
    mean = np.sum(part * window) / np.sum(window)
    return np.abs(np.fft.fft2((part - mean) * window)) ** 2


def gridding(depth: Float[np.ndarray, "h w"], period: int) -> Gridding:
    """Energy at the frequencies of a grid of `period` pixels (2 or 4).

    A grid that repeats every P pixels has its energy at frequencies (i/P, j/P). Those
    of period 4 are without those of period 2. A peak is its bin and the eight around
    it. Depth has more energy the lower the frequency, and walls have theirs along the
    axes: peaks are compared with bins 3 to 6 away along the axes on which they lie off
    zero, so that (0, 1/2) is held against others of (0, f).

    Args:
      depth: metres, without holes, at the size that the network puts out: resizing
        moves the frequencies. At least 32 pixels each way.
    """
    power = spectrum(depth)
    if min(power.shape) < SMALLEST:
        raise ValueError(f"a map of {depth.shape} is too small for a spectrum")
    peaks, around = (np.zeros(power.shape, bool) for _ in range(2))
    for order in quarters(period):
        _mark(peaks, order, (1, 1))
        _mark(around, order, (_FAR if order[0] else 1, _FAR if order[1] else 1))
    for order in ((0, 0), *quarters(2), *quarters(4)):
        near = _NEAR - 1
        _mark(around, order, (near, near), as_=False)
    total = float(power.sum())
    if np.ptp(depth) == 0:  # what is left is rounding
        return Gridding(0.0, 1.0)
    floor = np.finfo(float).eps * total / power.size
    prominence = power[peaks].mean() / max(power[around].mean(), floor)
    return Gridding(float(power[peaks].sum()) / total, float(prominence))


def quarters(period: int) -> list[tuple[int, int]]:
    """Frequencies of a grid of `period` pixels, in quarters of a cycle a pixel."""
    if period not in PERIODS:
        raise ValueError(f"period {period}: one of {PERIODS}")
    every = [(i, j) for i in range(4) for j in range(4) if (i, j) != (0, 0)]
    return [(i, j) for i, j in every if (i % 2 == j % 2 == 0) == (period == 2)]


def _mark(
    mask: np.ndarray,
    order: tuple[int, int],
    reach: tuple[int, int],
    *,
    as_: bool = True,
) -> None:
    """Set the bins around a frequency, which go on at the other end."""
    rows, columns = (
        (np.arange(-r, r + 1) + n * k // 4) % n
        for n, k, r in zip(mask.shape, order, reach, strict=True)
    )
    mask[np.ix_(rows, columns)] = as_
