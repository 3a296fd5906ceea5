"""Units of depth: conversion of stored values to metres, and plausibility checks.

The median alone does not determine the unit, because medians of rooms span a factor of
ten. These functions therefore list candidate units, each with its median.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt16

from jaxdepth.runtime.errors import UserError

# Plausible median depth of rooms, metres: NYU's training frames 2.4, a desk 0.8.
ROOM = (0.5, 8.0)
SMALL_ROOM = 1.0  # metres; smallest maximum of depth in a room
LARGE_ROOM = 15.0  # metres; largest 99th percentile
SPARSE = 0.2  # share of valid pixels; KITTI's LiDAR has about 0.05 to 0.2
EIGHT_BIT = 25.5  # 255 is 10 m
# Stored units per metre: metres, centimetres, KITTI, millimetres, Matterport3D,
# TUM RGB-D, Replica (65535 is 10 m), bits rotated left by 3, tenths of a millimetre.
SCALES = (1.0, 100.0, 256.0, 1000.0, 4000.0, 5000.0, 6553.5, 8000.0, 10000.0)
DEPTH_UNITS = (1000, 256)  # codes per metre in a store: millimetres; KITTI's unit
FARTHEST_CODE = 65535
BINS = 256  # per factor of two in a summary; medians are exact to 0.2 %
EXAMINED = 120  # rows of a depth map that are examined, for speed
BLOCKS = 8  # per side of a depth map that is examined for planes
FOCAL_SHARES = (0.5, 0.6, 0.75, 0.9, 1.1)  # of the width: 90 to 49 degrees
DISPARITY = re.compile(r"(?<![a-z])disp(arit(y|ies))?(?![a-z])")
Code = Literal["plain", "sunrgbd", "swapped"]
Kind = Literal["planar", "ray", "disparity"]


def depth_unit(max_depth: float) -> int:
    """The codes per metre of a store that keeps depth up to `max_depth` metres.

    1000, or 256 where uint16 millimetres do not reach: beyond 65.535 m.
    """
    near, far = DEPTH_UNITS
    return near if max_depth <= FARTHEST_CODE / near else far


def last_code(max_depth: float, unit: int) -> int:
    """The largest code that is not beyond `max_depth` metres."""
    return math.floor(max_depth * unit + 1e-6)  # 1e-6: max_depth is a decimal number


def decode(values: np.ndarray, code: str, *, where: Any) -> np.ndarray:
    """Decode stored 16-bit values.

    Args:
      values: as read from the file, (H, W).
      code: "plain": unchanged; "sunrgbd": bits rotated left by 3, as in SUN RGB-D;
        "swapped": the two bytes of each value swapped.
      where: the file, for the message.

    Raises: UserError for values that are not 16-bit integers, unless "plain".
    """
    if code == "plain":
        return values
    whole = values.dtype.kind in "ui" and values.dtype.itemsize > 1
    if not whole or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise UserError(
            f"{where} holds {values.dtype}: --depth_code={code} is for 16-bit integers"
        )
    values = values.astype(np.uint16)
    return values.byteswap() if code == "swapped" else _rotated_right(values)


def _rotated_right(values: UInt16[np.ndarray, "*n"]) -> UInt16[np.ndarray, "*n"]:
    return (values >> 3) | (values << 13)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The measured quantity, and the camera parameters to convert it to planar depth.

    Planar depth is the distance along the optical axis (z), as sensors store it.

    Attributes:
      kind: "planar"; "ray": distance along the ray, as renderers store it; or
        "disparity".
      fx: focal length in pixels of the depth map.
      baseline: distance between the two cameras, metres.
      doffs: difference of their principal points, pixels (Middlebury's calib.txt).
    """

    kind: Kind = "planar"
    fx: float | None = None
    baseline: float | None = None
    doffs: float = 0.0

    def check(self) -> None:
        """Raise UserError unless exactly the values that `kind` needs are given."""
        given = {"depth_fx": self.fx, "baseline": self.baseline, "doffs": self.doffs}
        needed = {"planar": [], "ray": ["depth_fx"]}
        needed |= {"disparity": ["depth_fx", "baseline"]}
        for name in needed[self.kind]:
            if not given[name]:
                raise UserError(f"--depth_kind={self.kind} needs --{name}: give it")
        used = [*needed[self.kind], *(["doffs"] if self.kind == "disparity" else [])]
        for name, value in given.items():
            if value and name not in used:
                raise UserError(
                    f"--{name}={value:g}: --depth_kind={self.kind} does not use it; "
                    "leave it out"
                )

    def planar(self, values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """Convert values to planar depth in metres, float32, 0 = missing.

            ray:        d f / sqrt(u^2 + v^2 + f^2), u and v from the image's centre
            disparity:  f baseline / (disparity + doffs)

        Args:
          values: metres, or disparity in pixels; 0 = missing.
        """
        if self.kind == "planar":
            return values
        assert self.fx is not None
        if self.kind == "ray":
            depth = values * self.fx / ray_lengths(values.shape, self.fx)
        else:
            assert self.baseline is not None
            moved = values.astype(np.float64) + self.doffs
            near = np.where((values > 0) & (moved > 0), moved, np.inf)
            depth = self.fx * self.baseline / near
        return depth.astype(np.float32)


def ray_lengths(shape: tuple[int, ...], fx: float) -> Float[np.ndarray, "h w"]:
    """sqrt(u^2 + v^2 + fx^2) of every pixel, pixels; u and v from the centre."""
    v, u = (np.arange(n) - (n - 1) / 2 for n in shape)
    return np.sqrt(u[None] ** 2 + v[:, None] ** 2 + fx**2)


@dataclasses.dataclass
class Summary:
    """Valid share, minimum, median and maximum of depth maps, in bounded memory.

    Attributes:
      frames, pixels, valid: number of frames, of pixels, and of valid pixels.
      smallest, largest: valid depth, metres; 0 without any.
      counts: histogram of sampled valid pixels, by floor(log2(metres) * `BINS`).
    """

    frames: int = 0
    pixels: int = 0
    valid: int = 0
    smallest: float = 0.0
    largest: float = 0.0
    counts: collections.Counter[int] = dataclasses.field(
        default_factory=collections.Counter
    )

    @classmethod
    def of(cls, depth: Float[np.ndarray, "h w"]) -> "Summary":
        """Summarise one depth map in metres, 0 = missing."""
        return cls.of_values(depth[depth > 0], pixels=depth.size)

    @classmethod
    def of_values(cls, valid: np.ndarray, *, pixels: int) -> "Summary":
        """Summarise the valid pixels of one depth map, metres."""
        if not len(valid):
            return cls(1, pixels)
        # An odd stride samples every column.
        sample = valid[:: max(1, len(valid) // 10_000) | 1].astype(np.float64)
        bins = np.floor(np.log2(sample) * BINS).astype(int)
        first = int(bins.min())
        counts = np.bincount(bins - first)  # at most 277 * BINS: the range of float32
        counter = collections.Counter(
            {first + int(k): int(counts[k]) for k in np.flatnonzero(counts)}
        )
        smallest, largest = float(valid.min()), float(valid.max())
        return cls(1, pixels, len(valid), smallest, largest, counter)

    def add(self, other: "Summary") -> None:
        """Add the frames of another summary."""
        if other.valid:
            lows = [s.smallest for s in (self, other) if s.valid]
            self.smallest = min(lows)
            self.largest = max(self.largest, other.largest)
        self.frames += other.frames
        self.pixels += other.pixels
        self.valid += other.valid
        self.counts.update(other.counts)

    def percentile(self, share: float) -> float:
        """Depth in metres below which this share of valid pixels lies; 0 if none."""
        if not self.counts:
            return 0.0
        bins = sorted(self.counts)
        ends = np.cumsum([self.counts[k] for k in bins])
        k = bins[int(np.searchsorted(ends, share * ends[-1]))]
        middle = 2.0 ** ((k + 0.5) / BINS)
        return float(min(max(middle, self.smallest), self.largest))

    @property
    def median(self) -> float:
        return self.percentile(0.5)

    @property
    def share(self) -> float:
        """Valid share of the pixels."""
        return self.valid / max(1, self.pixels)

    def __str__(self) -> str:
        if not self.valid:
            return f"no valid depth in {self.frames} frames"
        return (
            f"{self.share:.1%} valid, {self.smallest:.3g} to {self.largest:.3g} m, "
            f"median {self.median:.3g} m"
        )

    def to_dict(self) -> dict[str, Any]:
        """The summary as a JSON object."""
        return dataclasses.asdict(self) | {"counts": [*map(list, self.counts.items())]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Summary":
        """Parse `to_dict`. Raises ValueError, TypeError or KeyError if damaged."""
        numbers = [values[field.name] for field in dataclasses.fields(cls)[:-1]]
        if not all(isinstance(n, int | float) and 0 <= n < math.inf for n in numbers):
            raise ValueError("a number is negative or not finite")
        counts = {int(k): int(n) for k, n in values["counts"]}
        if any(abs(k) > 128 * BINS or n < 0 for k, n in counts.items()):
            raise ValueError("a count is out of range")  # 2^128: the range of float32
        return cls(*numbers, collections.Counter(counts))  # pyright: ignore


def implausibility(summary: Summary) -> str | None:
    """Describe what is implausible for a room in depth as read; None if nothing is."""
    if not summary.valid:
        return None
    if not ROOM[0] <= summary.median <= ROOM[1]:
        return f"the median is {summary.median:.3g} m"
    if summary.largest < SMALL_ROOM:
        return f"no depth is above {summary.largest:.3g} m"
    if (high := summary.percentile(0.99)) > LARGE_ROOM:
        return f"1 % of the pixels are beyond {high:.3g} m"
    if summary.share < SPARSE:
        return f"only {summary.share:.1%} of the pixels are valid, as with LiDAR"
    return None


def candidates(summary: Summary, *, scale: float, whole: bool = True) -> str:
    """List the median that each common scale would give, in one line.

    Args:
      summary: of depth as read.
      scale: the scale with which depth was read, stored units per metre.
      whole: whether the stored values are integers.
    """
    median, largest, scales = summary.median, summary.largest, {scale, *SCALES}
    if whole and largest * scale <= 255.5:
        scales.add(EIGHT_BIT)
    texts = []
    for other in sorted(scales):
        metres, top = median * scale / other, largest * scale / other
        room = ROOM[0] <= metres <= ROOM[1] and top >= SMALL_ROOM
        now = " (as read)" if other == scale else ""
        median_text = f"{float(f'{metres:.3g}'):g} m"  # not in exponential form
        texts.append(f"{other:g}{now}: {median_text}{' *' if room else ''}")
    return f"median by units per metre: {', '.join(texts)} (*: plausible for a room)"


@dataclasses.dataclass(frozen=True)
class EncodingHints:
    """What one depth map shows of an encoding, or of distances along the ray.

    Attributes:
      swapped: neighbours differ much less with the bytes of each value swapped.
      rotated: the lowest three bits are 0 or 1, as in values rotated left by 3.
      lower: median depth of the lower quarter / that of the upper half; None if either
        has no valid pixel.
      ray: planes are curved, as in distances along the ray.
    """

    swapped: bool = False
    rotated: bool = False
    lower: float | None = None
    ray: bool = False

    @classmethod
    def of(
        cls, depth: Float[np.ndarray, "h w"], *, scale: float | None
    ) -> "EncodingHints":
        """Examine depth as read; `scale` is None if metres are stored."""
        height = len(depth)
        parts = depth[-(height // 4) :], depth[: height // 2]
        below, above = (
            float(np.median(x[x > 0])) if (x > 0).any() else 0.0 for x in parts
        )
        lower = below / above if below and above else None
        step = max(1, min(depth.shape) // EXAMINED)
        ray = _is_ray(depth[::step, ::step])
        stored = None if scale is None else _stored(depth[::step], scale)
        if stored is None:
            return cls(lower=lower, ray=ray)
        return cls(_is_swapped(stored), _is_rotated(stored), lower, ray)


def _stored(
    depth: Float[np.ndarray, "h w"], scale: float
) -> UInt16[np.ndarray, "h w"] | None:
    """The stored values of depth as read; None if they are not 16-bit integers."""
    values = depth.astype(np.float64) * scale
    whole = np.round(values)
    if whole.max(initial=0) > 65535 or np.abs(values - whole).max(initial=0) > 0.02:
        return None
    return whole.astype(np.uint16)


def roughness(values: np.ndarray) -> float:
    """Mean difference of valid neighbours in a row / standard deviation; 0 if flat."""
    numbers, valid = values.astype(np.float64), values > 0
    both = valid[:, 1:] & valid[:, :-1]
    spread = float(numbers[valid].std()) if both.any() else 0.0
    return float(np.abs(np.diff(numbers))[both].mean()) / spread if spread else 0.0


def _is_swapped(stored: UInt16[np.ndarray, "h w"]) -> bool:
    # Real maps: 0.006 to 0.017 as they are, 0.13 to 0.54 with swapped bytes.
    as_read, swapped = roughness(stored), roughness(stored.byteswap())
    return 0 < swapped < as_read / 4


def _is_rotated(stored: UInt16[np.ndarray, "h w"]) -> bool:
    """Whether values look rotated left by 3: the lowest three bits are 0 or 1.

    In rotated depth they are 0 below 8.192 m, and 1 from 8.192 to 16.384 m. They are 0
    in multiples of 8 as well, such as 8-bit depth times 256, so depth with few distinct
    values is not taken for rotated.
    """
    valid = stored[stored > 0]
    if not len(valid) or ((valid & 7) > 1).mean() > 0.001:
        return False
    turned = _rotated_right(valid)
    return len(np.unique(turned)) > 256 and roughness(_rotated_right(stored)) < 0.2


def _is_ray(depth: Float[np.ndarray, "h w"]) -> bool:
    """Whether 1 / depth becomes linear on planes if depth is divided by ray lengths.

    On a plane, 1 / planar depth is linear in pixel coordinates. The focal length is
    unknown, so common ones are tried. Sensor noise hides the difference, but drivers of
    sensors give planar depth anyway.
    """
    if min(depth.shape) < 8 * BLOCKS:
        return False
    full = _blocks(depth).min((1, 2)) > 0
    if full.sum() < BLOCKS:
        return False
    inverse = 1 / np.where(depth > 0, depth, 1).astype(np.float64)
    flat = _curvature(_blocks(inverse)[full])
    for share in FOCAL_SHARES:
        fx = share * depth.shape[1]
        lengths = ray_lengths(depth.shape, fx) / fx
        turned = _curvature(_blocks(inverse * lengths)[full])
        planes = np.minimum(flat, turned) < 2e-3
        if planes.sum() >= BLOCKS and np.median(turned[planes] / flat[planes]) < 0.35:
            return True
    return False


def _blocks(values: np.ndarray) -> np.ndarray:
    """`BLOCKS` x `BLOCKS` blocks, (n, i, j), with at most 32 rows and columns each."""
    h, w = (n // BLOCKS for n in values.shape)
    blocks = values[: h * BLOCKS, : w * BLOCKS].reshape(BLOCKS, h, BLOCKS, w)
    blocks = blocks.swapaxes(1, 2).reshape(-1, h, w)
    return blocks[:, :: max(1, h // 16), :: max(1, w // 16)]


def _curvature(blocks: np.ndarray) -> np.ndarray:
    """RMS residual of a linear fit to each block / mean of the block, plus 1e-9."""
    n, h, w = blocks.shape
    y, x = np.mgrid[:h, :w].reshape(2, -1)
    basis = np.linalg.qr(np.stack([np.ones(h * w), x, y], axis=1).astype(float))[0]
    flat = blocks.reshape(n, -1)
    rest = flat - (flat @ basis) @ basis.T
    return np.sqrt((rest**2).mean(1)) / np.abs(flat.mean(1)) + 1e-9


def suspected_encoding(
    hints: Sequence[EncodingHints], *, implausible: bool = False, name: str = ""
) -> str | None:
    """Describe the encoding that most depth maps hint at, and its flag; or None.

    Args:
      implausible: whether depth as read does not look like a room.
      name: path of the depth, which may contain "disparity".
    """
    if not hints:
        return None
    if 2 * sum(hint.swapped for hint in hints) > len(hints):
        return "the bytes of each value seem to be swapped: try --depth_code=swapped"
    if 2 * sum(hint.rotated for hint in hints) > len(hints):
        return (
            "the lowest 3 bits are unused, as in SUN RGB-D's rotated values: try "
            "--depth_code=sunrgbd"
        )
    if 2 * sum(hint.ray for hint in hints) > len(hints):
        return (
            "planes are curved, as if values were distances along the ray: try "
            "--depth_kind=ray"
        )
    ratios = [hint.lower for hint in hints if hint.lower is not None]
    # The median ratio of 8 random frames of NYU Depth V2 is below 0.9 in 99.9 % of
    # draws. A desk seen from above has 1.3, so the ratio alone is no proof.
    if implausible and len(ratios) >= 4 and float(np.median(ratios)) > 1.25:
        return (
            "values increase towards the bottom, as in disparity: try "
            "--depth_kind=disparity, or convert it"
        )
    if DISPARITY.search(name.lower()):
        return (
            f"the name {name} suggests disparity: try --depth_kind=disparity, or "
            "convert it"
        )
    return None


def advice(
    summary: Summary,
    hints: Sequence[EncodingHints],
    *,
    scale: float | None,
    whole: bool = True,
    name: str = "",
) -> str | None:
    """Describe implausible or encoded depth in one line; None if nothing looks wrong.

    Args:
      scale: the scale with which depth was read, stored units per metre; None for
        formats that hold metres.
      whole, name: see `candidates` and `suspected_encoding`.
    """
    implausible = implausibility(summary)
    encoding = suspected_encoding(hints, implausible=implausible is not None, name=name)
    if implausible is None:
        return encoding
    text = f"depth is unusual for a room: {implausible}"
    if encoding is not None:
        text += f"; {encoding}"
    if scale is None:
        return text
    table = candidates(summary, scale=scale, whole=whole)
    return f"{text}; give the --depth_scale of these files; {table}"


def is_whole(depth: np.ndarray, scale: float | None) -> bool:
    """Whether depth as read, metres, was stored as integers."""
    stored = depth.astype(np.float64) * (scale or 1.0)
    return bool((np.abs(stored - np.round(stored)) < 0.02).all())
