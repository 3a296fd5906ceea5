"""The hole filling methods of the NYU toolbox: colorization, cross-bilateral filter.

Depth of 0 is missing, and so is depth of 10 m, the value at which the toolbox clips.
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
LEAF = 8  # largest number of pixels that nested dissection does not split


def fill_depth_colorization(
    rgb: UInt8[np.ndarray, "h w 3"],
    depth: Float[np.ndarray, "h w"],
    *,
    alpha: float = 1.0,
    keep_known: bool = False,
) -> Float64[np.ndarray, "h w"]:
    """Fill holes so that neighbours of similar brightness get similar depth.

    Solves (A + alpha K) x = alpha K depth. K selects the known pixels; a row of A is 1
    at its pixel and -w at the eight neighbours; w = exp(-(difference of gray)^2 / s),
    normalised to sum 1, with s from the variance of gray among the nine pixels.

    Args:
      depth: metres, 0 = missing.
      alpha: weight of known depth relative to smoothness.
      keep_known: return known depth unchanged. The toolbox doesn't: at alpha 1 a known
        pixel becomes the mean of itself and the weighted mean of its neighbours.

    Returns: metres; all 0 if no depth is known.
    Source: fill_depth_colorization.m, after Levin et al. 2004.
    """
    known = _known(depth)
    if not known.any():
        return np.zeros(depth.shape)
    farthest = depth[known].max()
    right_side = np.where(known, alpha * depth / farthest, 0.0)
    order = _dissected(depth.shape)
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    gray = rgb.astype(np.float64) / 255 @ GRAY
    diagonal = sparse.diags_array(alpha * known.ravel()[order])
    matrix = _smoothness(gray, position) + diagonal
    # The matrix is diagonally dominant, so pivoting does not change the order.
    factors = linalg.splu(
        sparse.csc_array(matrix),
        permc_spec="NATURAL",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    filled = np.empty(depth.size)
    filled[order] = factors.solve(right_side.ravel()[order]) * farthest
    filled = filled.reshape(depth.shape)
    return np.where(known, depth, filled) if keep_known else filled


def _known(depth: np.ndarray) -> Bool[np.ndarray, "h w"]:
    return (depth != 0) & (depth != MAX_DEPTH)


def _smoothness(gray: np.ndarray, position: np.ndarray) -> sparse.coo_array:
    """A of `fill_depth_colorization`; pixel p is row and column position[p]."""
    height, width = gray.shape
    neighbours = np.stack([_shifted(gray, y, x) for y, x in NEIGHBOURS])
    inside = np.stack([_shifted(np.ones_like(gray), y, x) for y, x in NEIGHBOURS]) > 0
    count = inside.sum(0) + 1
    mean = (neighbours.sum(0) + gray) / count
    spread = np.where(inside, neighbours - mean, 0) ** 2
    variance = (spread.sum(0) + (gray - mean) ** 2) / count
    squared = np.where(inside, neighbours - gray, np.inf) ** 2
    scale = np.maximum(0.6 * variance, -squared.min(0) / np.log(0.01))
    weights = np.exp(-squared / np.maximum(scale, 2e-6))
    weights /= weights.sum(0)
    pixel = np.arange(gray.size).reshape(height, width)
    offsets = np.array([y * width + x for y, x in NEIGHBOURS])[:, None, None]
    rows = np.broadcast_to(pixel, inside.shape)[inside]
    columns = (pixel + offsets)[inside]
    return sparse.coo_array(
        (
            np.concatenate([-weights[inside], np.ones(gray.size)]),
            (
                np.concatenate([position[rows], position[pixel.ravel()]]),
                np.concatenate([position[columns], position[pixel.ravel()]]),
            ),
        ),
        shape=(gray.size, gray.size),
    )


def _shifted(array: np.ndarray, y: int, x: int) -> np.ndarray:
    """The value y rows below and x columns right of each pixel; 0 outside the image."""
    height, width = array.shape
    return np.pad(array, 1)[1 + y : 1 + y + height, 1 + x : 1 + x + width]


@functools.cache
def _dissected(size: tuple[int, int]) -> np.ndarray:
    """Order the pixels by nested dissection, for factors with little fill-in.

    A row or column of pixels separates a grid with 3x3 neighbourhoods in two. The two
    parts come first, each in the same recursive order, then the separating line.
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
    """Fill holes with a cross-bilateral filter of 11x11 pixels, coarse to fine.

    Args:
      depth: metres, 0 = missing.
      sigma_space: of the Gaussian over distance, pixels; one per scale, finest first.
      sigma_range: of the Gaussian over the difference of gray, 0 to 1; likewise.

    Returns: metres in steps of 1/255 of the farthest known depth, because the toolbox
      computes with 8 bits; 0 where no known depth is in the window at any scale.
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
    # cbf.cpp truncates; the MATLAB code rounds.
    filled = (levels[0].result * np.float32(255)).astype(np.uint8)
    return np.where(known, codes, filled) / 255.0 * farthest


def _sampled(size: tuple[int, int], scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the frame that level `scale` of the pyramid samples.

    Computed in single precision like cbf.cpp, which makes some of them one too small.
    """
    small = [n >> scale for n in size]
    rows, columns = (
        (np.arange(n, dtype=np.float32) / np.float32(n) * np.float32(full)).astype(int)
        for n, full in zip(small, size, strict=True)
    )
    return rows, columns


class _Level:
    """One scale of the pyramid: arrays (h, w), in single precision like cbf.cpp.

    Attributes:
      missing: pixels to fill.
      valid: pixels to average over: not missing, or filled at a coarser scale.
      result: depth filled at this scale; 0 elsewhere.
    """

    def __init__(
        self,
        rows: np.ndarray,
        columns: np.ndarray,
        depth: np.ndarray,
        gray: np.ndarray,
        missing: np.ndarray,
    ):
        grid = np.ix_(rows, columns)
        self.depth, self.gray, self.missing = depth[grid], gray[grid], missing[grid]
        self.valid = ~self.missing
        self.result = np.zeros_like(self.depth)

    def filter(self, sigma_space: float, sigma_range: float) -> None:
        """Fill missing pixels with a valid pixel in their window."""
        y, x = np.nonzero(self.missing)
        padded = [np.pad(a, RADIUS) for a in (self.depth, self.gray, self.valid)]
        depth, gray, valid = (a.ravel() for a in padded)
        width = padded[0].shape[1]
        centre = (y + RADIUS) * width + x + RADIUS
        space = _gaussian(sigma_space)
        spread = 2 * np.float32(sigma_range) * np.float32(sigma_range)
        total, weight_sum = np.zeros((2, len(centre)), np.float32)
        centre_gray = gray[centre]
        for dy in range(-RADIUS, RADIUS + 1):
            for dx in range(-RADIUS, RADIUS + 1):
                tap = centre + dy * width + dx
                difference = gray[tap] - centre_gray
                weight = np.exp(-(difference * difference) / spread) * valid[tap]
                factor = space[dy + RADIUS, dx + RADIUS]
                weight_sum += factor * weight
                total += depth[tap] * factor * weight
        filled = weight_sum > 0
        y, x = y[filled], x[filled]
        self.result[y, x] = total[filled] / weight_sum[filled]
        self.valid[y, x] = True

    def take_from(self, coarser: "_Level") -> None:
        """Initialise missing pixels with the corresponding coarser pixels."""
        parent = np.ix_(
            *(
                np.arange(n) * small // n
                for n, small in zip(self.depth.shape, coarser.depth.shape, strict=True)
            )
        )
        coarse_depth = np.where(coarser.missing, coarser.result, coarser.depth)[parent]
        self.depth = np.where(self.missing, coarse_depth, self.depth)
        self.valid = np.where(self.missing, coarser.valid[parent], self.valid)


def _gaussian(sigma: float) -> np.ndarray:
    """Gaussian weights over distance, (11, 11), with sum 1."""
    steps = np.arange(-RADIUS, RADIUS + 1, dtype=np.float32)
    squares = steps[:, None] ** 2 + steps**2
    space = np.exp(-squares / (2 * np.float32(sigma) * np.float32(sigma)))
    return space / space.sum()
