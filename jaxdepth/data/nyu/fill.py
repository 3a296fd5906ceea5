"""How the NYU toolbox fills holes in depth: by colour, or by a cross-bilateral filter.

Missing is what is 0, and what is 10 m: that far the toolbox clips.
"""

import functools

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8
from scipy import sparse
from scipy.sparse import linalg

from jaxdepth.data.nyu.toolbox import MAX_DEPTH, round_half_away

GRAY = np.array([0.2989, 0.5870, 0.1140])  # MATLAB's rgb2gray
NEIGHBOURS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
RADIUS = 5  # of the cross-bilateral filter, pixels at every scale
LEAF = 8  # pixels that nested dissection orders no further


def fill_depth_colorization(
    rgb: UInt8[np.ndarray, "h w 3"],
    depth: Float[np.ndarray, "h w"],
    *,
    alpha: float = 1.0,
    keep_known: bool = False,
) -> Float64[np.ndarray, "h w"]:
    """Depth without holes: neighbours of one brightness get one depth.

    Solves (A + alpha K) x = alpha K depth, where K picks the known pixels and a row of
    A is 1 at its pixel and -w at the eight around it; w = exp(-(difference of gray)^2 /
    s), scaled to sum 1, s from the variance of gray among the nine.

    Args:
      depth: metres, 0 = missing.
      alpha: how much known depth counts against smoothness.
      keep_known: put known depth back into the result. The toolbox doesn't: at alpha
        1 a known pixel is the mean of itself and of what its neighbours say.

    Returns: metres; all 0 where nothing is known.
    Source: fill_depth_colorization.m, after Levin et al. 2004.
    """
    known = _known(depth)
    if not known.any():
        return np.zeros(depth.shape)
    farthest = depth[known].max()
    told = np.where(known, alpha * depth / farthest, 0.0)
    order = _dissected(depth.shape)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    gray = rgb.astype(np.float64) / 255 @ GRAY
    matrix = _smoothness(gray, place) + sparse.diags_array(alpha * known.ravel()[order])
    # Rows are dominated by their diagonal, so no pivoting disturbs the order.
    factors = linalg.splu(
        sparse.csc_array(matrix),
        permc_spec="NATURAL",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    filled = np.empty(depth.size)
    filled[order] = factors.solve(told.ravel()[order]) * farthest
    filled = filled.reshape(depth.shape)
    return np.where(known, depth, filled) if keep_known else filled


def _known(depth: np.ndarray) -> Bool[np.ndarray, "h w"]:
    return (depth != 0) & (depth != MAX_DEPTH)


def _smoothness(gray: np.ndarray, place: np.ndarray) -> sparse.coo_array:
    """A of `fill_depth_colorization`, pixel p in row and column place[p]."""
    height, width = gray.shape
    around = np.stack([_shifted(gray, y, x) for y, x in NEIGHBOURS])
    there = np.stack([_shifted(np.ones_like(gray), y, x) for y, x in NEIGHBOURS]) > 0
    count = there.sum(0) + 1
    mean = (around.sum(0) + gray) / count
    spread = np.where(there, around - mean, 0) ** 2
    variance = (spread.sum(0) + (gray - mean) ** 2) / count
    squared = np.where(there, around - gray, np.inf) ** 2
    scale = np.maximum(0.6 * variance, -squared.min(0) / np.log(0.01))
    weights = np.exp(-squared / np.maximum(scale, 2e-6))
    weights /= weights.sum(0)
    pixel = np.arange(gray.size).reshape(height, width)
    rows = np.broadcast_to(pixel, there.shape)[there]
    columns = (pixel + np.array([y * width + x for y, x in NEIGHBOURS])[:, None, None])[
        there
    ]
    return sparse.coo_array(
        (
            np.concatenate([-weights[there], np.ones(gray.size)]),
            (
                np.concatenate([place[rows], place[pixel.ravel()]]),
                np.concatenate([place[columns], place[pixel.ravel()]]),
            ),
        ),
        shape=(gray.size, gray.size),
    )


def _shifted(array: np.ndarray, y: int, x: int) -> np.ndarray:
    """What lies y rows below and x columns to the right of each pixel; 0 outside."""
    height, width = array.shape
    return np.pad(array, 1)[1 + y : 1 + y + height, 1 + x : 1 + x + width]


@functools.cache
def _dissected(size: tuple[int, int]) -> np.ndarray:
    """Pixels in an order of elimination with little fill-in: nested dissection.

    A line of pixels parts a grid in two, as its neighbourhood is 3x3; both parts come
    first, each in this same order, and the line last.
    """

    def order(pixels: np.ndarray) -> list[np.ndarray]:
        if pixels.size <= LEAF or max(pixels.shape) < 3:
            return [pixels.ravel()]
        if pixels.shape[0] < pixels.shape[1]:
            pixels = pixels.T
        middle = pixels.shape[0] // 2
        return [
            *order(pixels[:middle]), *order(pixels[middle + 1 :]), pixels[middle]
        ]  # fmt: skip

    return np.concatenate(order(np.arange(size[0] * size[1]).reshape(size)))


def fill_depth_cross_bf(
    rgb: UInt8[np.ndarray, "h w 3"],
    depth: Float[np.ndarray, "h w"],
    *,
    sigma_space: tuple[float, ...] = (12, 5, 8),
    sigma_range: tuple[float, ...] = (0.2, 0.08, 0.02),
) -> Float64[np.ndarray, "h w"]:
    """Depth whose holes are means over 11x11 pixels of like brightness, coarse to fine.

    Args:
      depth: metres, 0 = missing.
      sigma_space: of the Gaussian over distance, pixels; one per scale, finest first.
      sigma_range: of the Gaussian over the difference of gray, 0 to 1; likewise.

    Returns: metres in steps of 1/255 of the farthest known depth, for the toolbox
      works on 8 bits; 0 where nothing known is near, even at the coarsest scale.
    Source: fill_depth_cross_bf.m and cbf.cpp.
    """
    known = _known(depth)
    if not known.any():
        return np.zeros(depth.shape)
    farthest = depth[known].max()
    codes = round_half_away(np.minimum(depth / farthest, 1) * 255).astype(np.uint8)
    gray = round_half_away(rgb.astype(np.float64) @ GRAY)
    levels = [
        _Level(
            *_sampled(depth.shape, scale),
            (codes / 255).astype(np.float32),
            (gray / 255).astype(np.float32),
            ~known,
        )
        for scale in range(len(sigma_space))
    ]
    for scale in reversed(range(len(levels))):
        levels[scale].filter(sigma_space[scale], sigma_range[scale])
        if scale:
            levels[scale - 1].take_from(levels[scale])
    # C++ truncates where MATLAB rounded.
    filled = (levels[0].result * np.float32(255)).astype(np.uint8)
    return np.where(known, codes, filled) / 255.0 * farthest


def _sampled(size: tuple[int, int], scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the frame that level `scale` of the pyramid takes.

    In single precision as cbf.cpp does: some come out one less than they should.
    """
    small = [n >> scale for n in size]
    rows, columns = (
        (np.arange(n, dtype=np.float32) / np.float32(n) * np.float32(whole)).astype(int)
        for n, whole in zip(small, size, strict=True)
    )
    return rows, columns


class _Level:
    """One scale of the pyramid: arrays (h, w), single precision as in cbf.cpp.

    Attributes:
      missing: what is to be filled.
      valid: what may be averaged over: not missing, or found at a coarser scale.
      result: means found here, 0 elsewhere.
    """

    def __init__(
        self,
        rows: np.ndarray,
        columns: np.ndarray,
        depth: np.ndarray,
        gray: np.ndarray,
        missing: np.ndarray,
    ):
        taken = np.ix_(rows, columns)
        self.depth, self.gray, self.missing = depth[taken], gray[taken], missing[taken]
        self.valid = ~self.missing
        self.result = np.zeros_like(self.depth)

    def filter(self, sigma_space: float, sigma_range: float) -> None:
        """Means of depth for the missing pixels that have anything valid around."""
        y, x = np.nonzero(self.missing)
        padded = [np.pad(a, RADIUS) for a in (self.depth, self.gray, self.valid)]
        depth, gray, valid = (a.ravel() for a in padded)
        width = padded[0].shape[1]
        at = (y + RADIUS) * width + x + RADIUS
        space = _gaussian(sigma_space)
        spread = 2 * np.float32(sigma_range) * np.float32(sigma_range)
        total, weight_sum = np.zeros((2, len(at)), np.float32)
        here = gray[at]
        for dy in range(-RADIUS, RADIUS + 1):
            for dx in range(-RADIUS, RADIUS + 1):
                tap = at + dy * width + dx
                difference = gray[tap] - here
                weight = np.exp(-(difference * difference) / spread) * valid[tap]
                factor = space[dy + RADIUS, dx + RADIUS]
                weight_sum += factor * weight
                total += depth[tap] * factor * weight
        found = weight_sum > 0
        y, x = y[found], x[found]
        self.result[y, x] = total[found] / weight_sum[found]
        self.valid[y, x] = True

    def take_from(self, coarser: "_Level") -> None:
        """Depth of the nearest coarser pixel, for what is missing here."""
        parent = np.ix_(
            *(
                np.arange(n) * small // n
                for n, small in zip(self.depth.shape, coarser.depth.shape, strict=True)
            )
        )
        theirs = np.where(coarser.missing, coarser.result, coarser.depth)[parent]
        self.depth = np.where(self.missing, theirs, self.depth)
        self.valid = np.where(self.missing, coarser.valid[parent], self.valid)


def _gaussian(sigma: float) -> np.ndarray:
    """(11, 11) over distance, sum 1."""
    steps = np.arange(-RADIUS, RADIUS + 1, dtype=np.float32)
    squares = steps[:, None] ** 2 + steps**2
    space = np.exp(-squares / (2 * np.float32(sigma) * np.float32(sigma)))
    return space / space.sum()
