"""Whether depth belongs to its image: the edges of one against the edges of the other.

An edge map is complex: its size grows from 0 to 1 with the gradient's, its angle is
twice the gradient's, so that an edge from dark to light counts as one from light to
dark. The score of a pair is the correlation of its two maps: 1 for equal ones, about 0
for maps that have nothing in common, since edges that cross cancel those that agree.

On the 795 official training frames it is 0.30 in the mean; 0.02 where depth is
mirrored, 0.00 with another frame's. Six of them stand out, and by eye as well: five are
shifted by some 10 pixels (69, 150, 179, 931, 1069), and in the depth of 452 is a plant
that its image does not show.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Complex64, Float, UInt8

CELLS = 320  # of the longer side, about: edges are compared at this size
REACH = 8  # cells up, down, left and right where a shifted pair is looked for
NEAR = 1  # cells that are no shift
LIGHT = 12.0  # grey levels per two cells: an edge in the image
JUMP = 0.08  # of log depth per two cells: an edge in depth; a floor has less
WEAK = 0.25  # of the mean score: a pair with less stands out
EDGES = 1e-3  # of all cells: fewer can't be compared
ALIGNED, UNRELATED, SHIFTED = "aligned", "no relation", "shifted"
AS_IS = "as is"
# The maps of depth that was turned, by doubled angles.
TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    AS_IS: lambda edges: edges,
    "mirrored": lambda edges: np.conj(edges[:, ::-1]),
    "upside down": lambda edges: np.conj(edges[::-1]),
    "turned by 180 degrees": lambda edges: edges[::-1, ::-1],
}


@dataclasses.dataclass(frozen=True)
class Edges:
    """Edge maps of one frame, of length 1 each.

    Attributes:
      image, depth: (rows, columns) complex.
      cell: pixels along the side of a cell.
    """

    image: Complex64[np.ndarray, "r c"]
    depth: Complex64[np.ndarray, "r c"]
    cell: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """How well one frame's depth fits its image.

    Attributes:
      turns: of each of `TURNS`, the best score within `NEAR` cells.
      peak: the best score of depth as it is within `REACH` cells.
      shift: (dy, dx) pixels by which depth lies down and right of the image there.
      noise: standard deviation of the score over all shifts.
      others: scores with depth of other frames, of other images.
      surfaces: of each of `TURNS`, the score at every shift within `REACH`.
      cell: pixels along the side of a cell.
    """

    turns: dict[str, float]
    peak: float
    shift: tuple[int, int]
    noise: float
    others: tuple[float, ...]
    surfaces: dict[str, Float[np.ndarray, "k k"]]
    cell: int

    @property
    def verdict(self) -> str:
        """`ALIGNED`, a turn, `SHIFTED` or `UNRELATED`: what the scores say for sure."""
        here = self.turns[AS_IS]
        turn = max(self.turns, key=lambda name: self.turns[name])
        if self.turns[turn] > max(1.25 * here, 3 * self.noise):
            return turn
        if self.peak > max(1.5 * here, 3 * self.noise) and self._is_far():
            return SHIFTED
        if here < 3 * self.noise and here < max(self.others, default=math.inf):
            return UNRELATED
        return ALIGNED

    def _is_far(self) -> bool:
        return max(map(abs, self.shift)) > NEAR * self.cell


def edges_of(
    rgb: UInt8[np.ndarray, "h w 3"], depth: Float[np.ndarray, "h w"]
) -> Edges | None:
    """The frame's edge maps; None where one of the two has hardly an edge.

    Depth is in any unit, 0 = missing; nothing is an edge beside missing depth.
    """
    cell = max(1, round(max(depth.shape) / CELLS))
    there = depth > 0
    logs = np.log(np.where(there, depth, 1)).astype(np.float32)
    whole = _means(there.astype(np.float32), cell) == 1
    green = _means(rgb[..., 1].astype(np.float32), cell)
    image = _edges(green, LIGHT, np.ones_like(whole))
    jumps = _edges(_means(logs, cell), JUMP, whole)
    lengths = [np.linalg.norm(edges) for edges in (image, jumps)]
    if any(length**2 <= EDGES * image.size for length in lengths):
        return None
    return Edges(image / lengths[0], jumps / lengths[1], cell)


def compare(edges: Edges, others: Sequence[Edges] = ()) -> Pair:
    """Scores of depth as it is, turned and shifted, and of other frames' depth."""
    image = np.fft.fft2(edges.image).conj()
    scores = {
        name: np.fft.ifft2(image * np.fft.fft2(turned(edges.depth))).real
        for name, turned in TURNS.items()
    }
    surfaces = {name: _within(score, REACH) for name, score in scores.items()}
    place = np.unravel_index(surfaces[AS_IS].argmax(), surfaces[AS_IS].shape)
    dy, dx = ((int(k) - REACH) * edges.cell for k in place)
    return Pair(
        turns={name: float(_within(s, NEAR).max()) for name, s in scores.items()},
        peak=float(surfaces[AS_IS].max()),
        shift=(dy, dx),
        noise=float(scores[AS_IS].std()),
        others=tuple(
            _score(edges.image, other.depth)
            for other in others
            # A camera that stands still shows one scene: that is no other frame.
            if other.image.shape == edges.image.shape
            and _score(edges.image, other.image) < 0.5
        ),
        surfaces=surfaces,
        cell=edges.cell,
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What many pairs say together.

    Attributes:
      kind: as `Pair.verdict`.
      shift: (dy, dx) pixels, as `Pair.shift`, of the best turn.
      scores: mean of the pairs by turn, "shifted", and "other frames" where compared.
      surface: the mean score of depth as it is, at every shift.
    """

    kind: str
    shift: tuple[int, int]
    scores: dict[str, float]
    surface: Float[np.ndarray, "k k"]
    cell: int

    @property
    def text(self) -> str:
        return _text(self.kind, self.shift)

    def how(self, pair: Pair) -> str:
        """How one of the pairs stands out; empty where it doesn't."""
        if self.kind in (SHIFTED, UNRELATED):
            return ""  # such pairs can't be told from good ones one by one
        if pair.verdict != self.kind:
            return _text(pair.verdict, pair.shift)
        turn = AS_IS if self.kind == ALIGNED else self.kind
        weak = pair.turns[turn] < WEAK * self.scores[turn]
        return f"hardly fits, score {pair.turns[turn]:.2f}" if weak else ""


def _text(kind: str, shift: tuple[int, int]) -> str:
    return f"{kind} by {shift} pixels" if kind == SHIFTED else kind


class Pool:
    """Adds up pairs for a verdict: noise cancels, what they have in common stays."""

    def __init__(self):
        self.count, self._noise, self._cells = 0, 0.0, 0
        self._turns = dict.fromkeys(TURNS, 0.0)
        self._surfaces = {name: np.zeros((2 * REACH + 1,) * 2) for name in TURNS}
        self._others: list[float] = []

    def add(self, pair: Pair) -> None:
        self.count += 1
        self._noise += pair.noise
        self._cells += pair.cell
        self._others.extend(pair.others[:8])
        for name in TURNS:
            self._turns[name] += pair.turns[name]
            self._surfaces[name] += pair.surfaces[name]

    def verdict(self) -> Verdict | None:
        """None where nothing was added."""
        if not self.count:
            return None
        means = {name: s / self.count for name, s in self._surfaces.items()}
        turn = max(means, key=lambda name: means[name].max())
        if means[turn].max() < 1.25 * means[AS_IS].max():
            turn = AS_IS
        surface, cell = means[turn], round(self._cells / self.count)
        peak = float(surface.max())
        place = np.unravel_index(surface.argmax(), surface.shape)
        dy, dx = (int(k) - REACH for k in place)
        centre = surface[
            REACH - NEAR : REACH + NEAR + 1, REACH - NEAR : REACH + NEAR + 1
        ]
        kind = ALIGNED if turn == AS_IS else turn
        # Registration is off by a cell or two in good sets as well.
        if turn == AS_IS and max(abs(dy), abs(dx)) > 2 and centre.max() < 0.85 * peak:
            kind = SHIFTED
        if not self._is_above_chance(peak):
            kind = UNRELATED
        scores = {name: total / self.count for name, total in self._turns.items()}
        scores[SHIFTED] = float(means[AS_IS].max())
        if self._others:
            scores["other frames"] = float(np.mean(self._others))
        shift = (dy * cell, dx * cell)
        return Verdict(kind, shift, scores, means[AS_IS], cell)

    def _is_above_chance(self, peak: float) -> bool:
        """Above what chance finds among the shifts, and what other frames have too."""
        noise = self._noise / self.count
        others = float(np.mean(self._others)) if self._others else 0.0
        return peak > (1 + 2.5 / math.sqrt(self.count)) * noise and peak > 1.3 * others


def _means(values: np.ndarray, cell: int) -> np.ndarray:
    """Means of cell x cell pixels; what is left over at the end is left out."""
    rows, columns = (n // cell for n in values.shape)
    blocks = values[: rows * cell, : columns * cell].reshape(rows, cell, columns, cell)
    return blocks.mean((1, 3))


def _edges(values: np.ndarray, strength: float, there: np.ndarray) -> np.ndarray:
    """The complex edge map; a gradient of `strength` has half the full size.

    0 along the frame, whose border is the camera's, and where a neighbour is not there.
    """
    values, kept = values.copy(), there.copy()
    for axis in (0, 1):  # 1 2 1 along both axes, and its footprint
        a, k = np.moveaxis(values, axis, 0), np.moveaxis(kept, axis, 0)
        a[1:-1] = (a[:-2] + 2 * a[1:-1] + a[2:]) / 4
        k[1:-1] &= k[:-2] & k[2:]
    slope = np.zeros(values.shape, np.complex64)
    slope.real[:, 1:-1] = values[:, 2:] - values[:, :-2]
    slope.imag[1:-1] = values[2:] - values[:-2]
    kept[1:-1, 1:-1] &= kept[:-2, 1:-1] & kept[2:, 1:-1]
    kept[1:-1, 1:-1] &= kept[1:-1, :-2] & kept[1:-1, 2:]
    margin = max(2, round(0.02 * max(values.shape)))
    inside = np.zeros_like(kept)
    inside[margin:-margin, margin:-margin] = True
    square = slope.real**2 + slope.imag**2
    return np.where(kept & inside, slope**2 / (square + strength**2), 0)


def _within(score: np.ndarray, reach: int) -> np.ndarray:
    """The part of a circular correlation within `reach` of no shift, in the middle."""
    places = np.arange(-reach, reach + 1)
    rows, columns = (places % n for n in score.shape)
    return score[np.ix_(rows, columns)]


def _score(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b).real)
