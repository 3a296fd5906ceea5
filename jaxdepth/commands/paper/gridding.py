"""Gridding: the share of a regular grid, left by up-convolutions, in a depth map."""

import dataclasses

import numpy as np
from jaxtyping import Float

SMALLEST = 32  # pixels, height and width of a map
PERIODS = (2, 4)  # pixels; grids of the last, and of the second last, doubling
_NEAR, _FAR = 3, 6  # distances in bins of the surroundings of a peak


@dataclasses.dataclass(frozen=True)
class Gridding:
    """Energy of a grid in the spectrum of a depth map.

    Attributes:
      share: share of the energy, the mean depth excluded, 0 to 1.
      prominence: mean energy of the peaks divided by that of the bins around them; 1
        without a grid.
    """

    share: float
    prominence: float


def spectrum(depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "i j"]:
    """Power spectrum of a depth map, cropped to multiples of 4 pixels.

    The mean is subtracted, and a Hann window is applied, so that the borders do not
    act as edges; the energy of a sinusoid with a whole number of periods is then in its
    bin and the two adjacent ones. Bin (i, j) is at i/height and j/width cycles per
    pixel.
    """
    height, width = (4 * (n // 4) for n in depth.shape)
    cropped = np.asarray(depth[:height, :width], np.float64)
    window = np.outer(*(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
                        for n in (height, width)))  # fmt: skip
    mean = np.sum(cropped * window) / np.sum(window)
    return np.abs(np.fft.fft2((cropped - mean) * window)) ** 2


def gridding(depth: Float[np.ndarray, "h w"], period: int) -> Gridding:
    """Energy at the frequencies of a grid of `period` pixels (2 or 4).

    A grid that repeats every P pixels has its energy at the frequencies (i/P, j/P);
    period 4 excludes the frequencies of period 2. A peak is a bin and the eight bins
    around it. Depth maps have more energy at lower frequencies, and walls have energy
    on the axes of the spectrum. A peak is therefore compared with bins 3 to 6 away
    along those axes on which its frequency is not zero: (0, 1/2) with others (0, f).

    Args:
      depth: depth without holes, metres, at the network's output size (resizing would
        shift the frequencies), at least 32x32 pixels.
      period: 2 or 4.

    Raises: ValueError for another period, or a smaller map.
    """
    power = spectrum(depth)
    if min(power.shape) < SMALLEST:
        raise ValueError(f"a map of {depth.shape} is too small for a spectrum")
    peaks, around = (np.zeros(power.shape, bool) for _ in range(2))
    for order in quarters(period):
        _mark(peaks, order, (1, 1))
        _mark(around, order, (_FAR if order[0] else 1, _FAR if order[1] else 1))
    for order in ((0, 0), *quarters(2), *quarters(4)):
        _mark(around, order, (_NEAR - 1, _NEAR - 1), value=False)
    total = float(power.sum())
    if np.ptp(depth) == 0:  # the spectrum is rounding error
        return Gridding(0.0, 1.0)
    floor = np.finfo(float).eps * total / power.size
    prominence = power[peaks].mean() / max(power[around].mean(), floor)
    return Gridding(float(power[peaks].sum()) / total, float(prominence))


def quarters(period: int) -> list[tuple[int, int]]:
    """Frequencies of a grid of `period` pixels, in quarters of a cycle per pixel."""
    if period not in PERIODS:
        raise ValueError(f"period {period}: expected one of {PERIODS}")
    frequencies = [(i, j) for i in range(4) for j in range(4) if (i, j) != (0, 0)]
    return [(i, j) for i, j in frequencies if (i % 2 == j % 2 == 0) == (period == 2)]


def _mark(
    mask: np.ndarray,
    order: tuple[int, int],
    reach: tuple[int, int],
    *,
    value: bool = True,
) -> None:
    """Set the bins within `reach` of a frequency; bins wrap around at the borders."""
    rows, columns = (
        (np.arange(-r, r + 1) + n * k // 4) % n
        for n, k, r in zip(mask.shape, order, reach, strict=True)
    )
    mask[np.ix_(rows, columns)] = value
