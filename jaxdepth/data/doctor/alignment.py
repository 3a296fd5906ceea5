"""Alignment of depth with its image, by correlation of their edges.

An edge map is complex. Its magnitude grows from 0 to 1 with the gradient's magnitude.
Its angle is twice the gradient's angle, so that edges from dark to light and from light
to dark are equal. The score of a pair is the correlation of its two maps: 1 for equal
maps, about 0 for unrelated ones, because crossing edges cancel matching ones.

The mean score of the 795 official training frames is 0.30; with mirrored depth it is
0.02, with depth of another frame 0.00. Six frames are misaligned, visibly so: five are
shifted by about 10 pixels (69, 150, 179, 931, 1069), and the depth of 452 shows a plant
that is not in its image.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Complex64, Float, UInt8

CELLS = 320  # approximate longer side at which edges are compared
REACH = 8  # largest shift that is searched in each direction, cells
NEAR = 1  # largest shift that counts as aligned, cells
LIGHT = 12.0  # edge strength in the image, grey levels per two cells
JUMP = 0.08  # edge strength in depth, log depth per two cells; floors have less
WEAK = 0.25  # share of the mean score below which a pair is a misfit
EDGES = 1e-3  # smallest share of cells with edges that can be compared
ALIGNED, UNRELATED, SHIFTED = "aligned", "no relation", "shifted"
AS_IS = "as is"
# The edge maps of flipped and rotated depth, with doubled angles.
ORIENTATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    AS_IS: lambda edges: edges,
    "mirrored": lambda edges: np.conj(edges[:, ::-1]),
    "upside down": lambda edges: np.conj(edges[::-1]),
    "rotated by 180 degrees": lambda edges: edges[::-1, ::-1],
}


@dataclasses.dataclass(frozen=True)
class Edges:
    """Edge maps of one frame, each normalised to length 1.

    Attributes:
      image, depth: (rows, columns) complex.
      cell: side of a cell, pixels.
    """

    image: Complex64[np.ndarray, "r c"]
    depth: Complex64[np.ndarray, "r c"]
    cell: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """Alignment scores of one frame.

    Attributes:
      scores: best score within `NEAR` cells, for each of `ORIENTATIONS`.
      peak: best score of unchanged depth within `REACH` cells.
      shift: (dy, dx) at the peak: pixels by which depth is down and right of the image.
      noise: standard deviation of the score over all shifts.
      others: scores of the image with depth of other frames.
      surfaces: score at every shift within `REACH`, for each of `ORIENTATIONS`.
      cell: side of a cell, pixels.
    """

    scores: dict[str, float]
    peak: float
    shift: tuple[int, int]
    noise: float
    others: tuple[float, ...]
    surfaces: dict[str, Float[np.ndarray, "k k"]]
    cell: int

    @property
    def verdict(self) -> str:
        """The best orientation if it is clear, `SHIFTED`, `UNRELATED` or `ALIGNED`."""
        unchanged = self.scores[AS_IS]
        best = max(self.scores, key=lambda name: self.scores[name])
        if self.scores[best] > max(1.25 * unchanged, 3 * self.noise):
            return best
        is_far = max(map(abs, self.shift)) > NEAR * self.cell
        if is_far and self.peak > max(1.5 * unchanged, 3 * self.noise):
            return SHIFTED
        largest = max(self.others, default=math.inf)
        return UNRELATED if unchanged < min(3 * self.noise, largest) else ALIGNED


def edges_of(
    rgb: UInt8[np.ndarray, "h w 3"], depth: Float[np.ndarray, "h w"]
) -> Edges | None:
    """The edge maps of a frame; None if image or depth has too few edges.

    Depth is in any unit, 0 = missing. Pixels beside missing depth are not edges.
    """
    cell = max(1, round(max(depth.shape) / CELLS))
    valid = depth > 0
    logs = np.log(np.where(valid, depth, 1)).astype(np.float32)
    complete = _means(valid.astype(np.float32), cell) == 1
    green = _means(rgb[..., 1].astype(np.float32), cell)
    image = _edges(green, LIGHT, np.ones_like(complete))
    jumps = _edges(_means(logs, cell), JUMP, complete)
    lengths = [np.linalg.norm(edges) for edges in (image, jumps)]
    if any(length**2 <= EDGES * image.size for length in lengths):
        return None
    return Edges(image / lengths[0], jumps / lengths[1], cell)


def compare(edges: Edges, others: Sequence[Edges] = ()) -> Pair:
    """Score depth as is, flipped, rotated or shifted, and depth of other frames."""
    image = np.fft.fft2(edges.image).conj()
    scores = {
        name: np.fft.ifft2(image * np.fft.fft2(orient(edges.depth))).real
        for name, orient in ORIENTATIONS.items()
    }
    surfaces = {name: _within(score, REACH) for name, score in scores.items()}
    dy, dx = _peak(surfaces[AS_IS])
    return Pair(
        scores={name: float(_within(s, NEAR).max()) for name, s in scores.items()},
        peak=float(surfaces[AS_IS].max()),
        shift=(dy * edges.cell, dx * edges.cell),
        noise=float(scores[AS_IS].std()),
        others=tuple(
            _score(edges.image, other.depth)
            for other in others
            # Frames of a camera that does not move are too similar to be unrelated.
            if other.image.shape == edges.image.shape
            and _score(edges.image, other.image) < 0.5
        ),
        surfaces=surfaces,
        cell=edges.cell,
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Alignment over many pairs.

    Attributes:
      kind: as `Pair.verdict`.
      shift: (dy, dx) pixels of the best orientation, as `Pair.shift`.
      scores: mean scores by orientation, "shifted", and "other frames" if compared.
      surface: mean score of unchanged depth at every shift.
      cell: mean side of a cell, pixels.
    """

    kind: str
    shift: tuple[int, int]
    scores: dict[str, float]
    surface: Float[np.ndarray, "k k"]
    cell: int

    @property
    def text(self) -> str:
        return _text(self.kind, self.shift)

    def misfit(self, pair: Pair) -> str:
        """How a pair differs from this verdict; "" if it does not."""
        if self.kind in (SHIFTED, UNRELATED):
            return ""  # single pairs are not distinct enough in these cases
        if pair.verdict != self.kind:
            return _text(pair.verdict, pair.shift)
        orientation = AS_IS if self.kind == ALIGNED else self.kind
        score = pair.scores[orientation]
        return (
            f"low score {score:.2f}" if score < WEAK * self.scores[orientation] else ""
        )


def _text(kind: str, shift: tuple[int, int]) -> str:
    return f"{kind} by {shift} pixels" if kind == SHIFTED else kind


class Pool:
    """Averages the scores of pairs for a verdict, so that their noise cancels."""

    def __init__(self):
        self.count, self._noise, self._cells = 0, 0.0, 0
        self._scores = dict.fromkeys(ORIENTATIONS, 0.0)
        self._surfaces = dict.fromkeys(ORIENTATIONS, np.zeros((2 * REACH + 1,) * 2))
        self._others: list[float] = []

    def add(self, pair: Pair) -> None:
        self.count += 1
        self._noise += pair.noise
        self._cells += pair.cell
        self._others.extend(pair.others[:8])
        for name in ORIENTATIONS:
            self._scores[name] += pair.scores[name]
            self._surfaces[name] = self._surfaces[name] + pair.surfaces[name]

    def verdict(self) -> Verdict | None:
        """The verdict over all pairs; None without pairs."""
        if not self.count:
            return None
        means = {name: s / self.count for name, s in self._surfaces.items()}
        best = max(means, key=lambda name: means[name].max())
        if means[best].max() < 1.25 * means[AS_IS].max():
            best = AS_IS
        surface, cell = means[best], round(self._cells / self.count)
        peak, (dy, dx) = float(surface.max()), _peak(surface)
        near = slice(REACH - NEAR, REACH + NEAR + 1)
        kind = ALIGNED if best == AS_IS else best
        # Registration is off by one or two cells in good data sets, too.
        is_far = max(abs(dy), abs(dx)) > 2 and surface[near, near].max() < 0.85 * peak
        if best == AS_IS and is_far:
            kind = SHIFTED
        scores = {name: total / self.count for name, total in self._scores.items()}
        scores[SHIFTED] = float(means[AS_IS].max())
        if self._others:
            scores["other frames"] = float(np.mean(self._others))
        noise = (1 + 2.5 / math.sqrt(self.count)) * self._noise / self.count
        if peak <= max(noise, 1.3 * scores.get("other frames", 0.0)):
            kind = UNRELATED
        return Verdict(kind, (dy * cell, dx * cell), scores, means[AS_IS], cell)


def _means(values: np.ndarray, cell: int) -> np.ndarray:
    """Means of cell x cell pixels; incomplete cells at the end are left out."""
    rows, columns = (n // cell for n in values.shape)
    blocks = values[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)
    return blocks.mean((1, 3))


def _edges(values: np.ndarray, strength: float, valid: np.ndarray) -> np.ndarray:
    """The complex edge map; a gradient of `strength` has magnitude 1/2.

    0 along the border of the frame, and where a neighbour is not valid.
    """
    values, valid = values.copy(), valid.copy()
    for axis in (0, 1):  # smooth by 1 2 1; a pixel is valid if all three are
        a, v = np.moveaxis(values, axis, 0), np.moveaxis(valid, axis, 0)
        a[1:-1] = (a[:-2] + 2 * a[1:-1] + a[2:]) / 4
        v[1:-1] &= v[:-2] & v[2:]
    slope = np.zeros(values.shape, np.complex64)
    slope.real[:, 1:-1] = values[:, 2:] - values[:, :-2]
    slope.imag[1:-1] = values[2:] - values[:-2]
    valid[1:-1, 1:-1] &= valid[:-2, 1:-1] & valid[2:, 1:-1]
    valid[1:-1, 1:-1] &= valid[1:-1, :-2] & valid[1:-1, 2:]
    margin = max(2, round(0.02 * max(values.shape)))
    inside = np.zeros_like(valid)
    inside[margin:-margin, margin:-margin] = True
    square = slope.real**2 + slope.imag**2
    return np.where(valid & inside, slope**2 / (square + strength**2), 0)


def _within(score: np.ndarray, reach: int) -> np.ndarray:
    """The part of a circular correlation within `reach` of shift 0, centred."""
    shifts = np.arange(-reach, reach + 1)
    rows, columns = (shifts % n for n in score.shape)
    return score[np.ix_(rows, columns)]


def _peak(surface: np.ndarray) -> tuple[int, int]:
    """The shift (dy, dx), in cells, of the largest score of a surface."""
    row, column = np.unravel_index(surface.argmax(), surface.shape)
    return int(row) - REACH, int(column) - REACH


def _score(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b).real)
