"""What the NYU Depth V2 toolbox does to a raw Kinect dump: match, undistort, project.

A raw frame is 480x640: depth as disparities 0..2047 (2047 = no reading) and colour,
each as its own camera saw it. The toolbox counts pixels from 0 where it undistorts and
from 1 where it projects, with the same cx, cy; so does this, or results would differ.
Filling of holes is in `fill`, reading of files in `sources.nyu_raw`.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8, UInt16

VERSION = 1  # of what comes out; a store made by another one is made again
SIZE = (480, 640)
MAX_DEPTH = 10.0  # metres; farther is stored as this
NO_READING = 2047
NEAREST = 600  # smaller disparities, 0.713 m, are what undistortion made at holes
MASK = (slice(44, 471), slice(40, 601))  # where depth reaches (get_projection_mask)


@dataclasses.dataclass(frozen=True)
class Camera:
    """Pinhole and Brown distortion of one camera at 480x640; pixels, and no unit."""

    fx: float
    fy: float
    cx: float
    cy: float
    k1: float
    k2: float
    p1: float
    p2: float
    k3: float

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        return self.fx, self.fy, self.cx, self.cy


# All that follows: camera_params.m of the NYU toolbox, calibrated with RGBDemo.
RGB_CAMERA = Camera(
    fx=5.1885790117450188e02, fy=5.1946961112127485e02,
    cx=3.2558244941119034e02, cy=2.5373616633400465e02,
    k1=2.0796615318809061e-01, k2=-5.8613825163911781e-01,
    p1=7.2231363135888329e-04, p2=1.0479627195765181e-03,
    k3=4.9856986684705107e-01,
)  # fmt: skip
DEPTH_CAMERA = Camera(
    fx=5.8262448167737955e02, fy=5.8269103270988637e02,
    cx=3.1304475870804731e02, cy=2.3844389626620386e02,
    k1=-9.9897236553084481e-02, k2=3.9065324602765344e-01,
    p1=1.9290592870229277e-03, p2=-1.9422022475975055e-03,
    k3=-5.1031725053400578e-01,
)  # fmt: skip
# Depth camera to RGB camera: q = ROTATION p + TRANSLATION, metres. The determinant is
# -1: q has negative z, which the division by z cancels.
ROTATION = np.linalg.inv(
    -np.array(
        [
            [9.9997798940829263e-01, 5.0518419386157446e-03, 4.3011152014118693e-03],
            [-5.0359919480810989e-03, 9.9998051861143999e-01, -3.6879781309514218e-03],
            [-4.3196624923060242e-03, 3.6662365748484798e-03, 9.9998394948385538e-01],
        ]
    )
)
TRANSLATION = np.array(  # in the file's order, in which y and z bear each other's name
    [2.5031875059141302e-02, -2.9342312935846411e-04, 6.6238747008330102e-04]
)
DEPTH_PARAMETERS = 351.3, 1092.5  # z = first / (second - disparity)


class Match(NamedTuple):
    """One depth frame and what was recorded closest to it in time, by file name."""

    depth: str
    rgb: str
    accel: str | None
    gap: float  # seconds between depth and rgb


def seconds(name: str) -> float:
    """The time in a recorder's file name, d-SECONDS-TICKS.pgm."""
    return float(name.split("-")[1])


def synchronise(
    depth: Sequence[str], rgb: Sequence[str], accel: Sequence[str] = ()
) -> list[Match]:
    """Match every depth frame with an image as the toolbox does; one may serve many.

    Args:
      depth, rgb, accel: file names, in any order. Accelerometer files may be absent.

    Raises: ValueError without an image, or where a name has no time.
    Source: get_synched_frames.m.
    """
    if not rgb:
        raise ValueError("no image to match depth with")
    depth, rgb, accel = sorted(depth), sorted(rgb), sorted(accel)
    depth_times = [seconds(name) for name in depth]
    rgb_times = [seconds(name) for name in rgb]
    images = walk(depth_times, rgb_times)
    readings = walk(depth_times, [seconds(name) for name in accel])
    return [
        Match(
            name,
            rgb[images[k]],
            accel[readings[k]] if accel else None,
            abs(depth_times[k] - rgb_times[images[k]]),
        )
        for k, name in enumerate(depth)
    ]


def walk(times: Sequence[float], others: Sequence[float]) -> list[int]:
    """For each time, where a greedy walk along `others` stands when it gets no better.

    The walk goes on from where the last time left it, takes ties, and never turns
    back: it may stop short of the closest one.
    """
    found: list[int] = []
    at = 0
    for time in times if others else ():
        best = abs(time - others[at])
        while at + 1 < len(others) and (gap := abs(time - others[at + 1])) <= best:
            best, at = gap, at + 1
        found.append(at)
    return found


def without_doubles(matches: Sequence[Match]) -> tuple[list[Match], int]:
    """Matches whose image serves one depth frame alone, and how many others there are.

    Source: the paper, section 4.
    """
    served = collections.Counter(match.rgb for match in matches)
    kept = [match for match in matches if served[match.rgb] == 1]
    return kept, len(matches) - len(kept)


def apply_distortion(
    x: Float[np.ndarray, "*n"], y: Float[np.ndarray, "*n"], camera: Camera
) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Where the lens puts the normalised position (x, y). Brown's model."""
    r2 = x * x + y * y
    radial = 1 + camera.k1 * r2 + camera.k2 * r2**2 + camera.k3 * r2**3
    return (
        x * radial + 2 * camera.p1 * x * y + camera.p2 * (r2 + 2 * x * x),
        y * radial + camera.p1 * (r2 + 2 * y * y) + 2 * camera.p2 * x * y,
    )


def undistortion_source(
    u: Float[np.ndarray, "*n"], v: Float[np.ndarray, "*n"], camera: Camera
) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Where the undistorted pixel at column u, row v comes from; pixels from 0."""
    x, y = apply_distortion(
        (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, camera
    )
    return camera.fx * x + camera.cx, camera.fy * y + camera.cy


class _Taps(NamedTuple):
    """Bilinear undistortion, worked out: four neighbours of a source position each.

    `first` is the flat index of the upper left neighbour, 0 where `outside`; `weights`
    are of it, of its right, lower and lower right neighbour; `shares` are they over
    their sum.
    """

    first: Int[np.ndarray, "n"]
    weights: Float64[np.ndarray, "4 n"]
    shares: Float64[np.ndarray, "4 n"]
    outside: Bool[np.ndarray, "n"]
    width: int

    def of(self, flat: np.ndarray, at: np.ndarray | None = None) -> list[np.ndarray]:
        """Values of the four neighbours, of all pixels or of those at `at`."""
        first = self.first if at is None else self.first[at]
        steps = (0, 1, self.width, self.width + 1)
        # Through views, so that one index serves all four.
        return [flat[step:].take(first, mode="clip") for step in steps]


@functools.cache
def _taps(camera: Camera, size: tuple[int, int]) -> _Taps:
    height, width = size
    v, u = np.mgrid[:height, :width].astype(np.float64)
    x, y = undistortion_source(u.ravel(), v.ravel(), camera)
    left, top = np.floor(x), np.floor(y)
    inside = (left >= 0) & (left <= width - 2) & (top >= 0) & (top <= height - 2)
    right, low = x - left, y - top
    weights = np.stack(
        [(1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right]
    )
    first = np.where(inside, top * width + left, 0).astype(np.intp)
    total = weights[0] + weights[1] + weights[2] + weights[3]
    return _Taps(first, weights, weights / total, ~inside, width)


def undistort(
    image: Float[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"], camera: Camera
) -> Float64[np.ndarray, "h w"]:
    """One plane without the lens's distortion, bilinear; 255 where nothing was seen."""
    taps = _taps(camera, image.shape)
    values = _weighted(taps.of(image.ravel()), taps.weights)
    values[taps.outside] = 255
    return values.reshape(image.shape)


def undistort_depth(
    disparity: Float[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"],
    camera: Camera,
    noise: Bool[np.ndarray, "h w"],
) -> Float64[np.ndarray, "h w"]:
    """`undistort` that leaves neighbours in `noise` out of the mean.

    0 where all four are noise, and where nothing was seen.
    """
    taps = _taps(camera, disparity.shape)
    flat, masked = disparity.ravel(), noise.ravel()
    values = _weighted(taps.of(flat), taps.shares)
    # Few pixels touch noise: only their weights are worked out anew.
    touch = np.flatnonzero(np.logical_or.reduce(taps.of(masked)))
    weights = taps.weights[:, touch] * ~np.stack(taps.of(masked, touch))
    total = weights[0] + weights[1] + weights[2] + weights[3]
    weights /= np.where(total == 0, 1, total)
    values[touch] = _weighted(taps.of(flat, touch), weights)
    values[taps.outside] = 0
    return values.reshape(disparity.shape)


def _weighted(values: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    # In this order: at a flat 600 the last bit decides whether depth is NEAREST.
    total = weights[0] * values[0]
    for k in (1, 2, 3):
        total += weights[k] * values[k]
    return total


def undistort_rgb(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image without the colour camera's distortion, in a white frame of 6-8 px."""
    out = np.empty_like(rgb)
    for channel in range(3):
        plane = undistort(np.ascontiguousarray(rgb[..., channel]), RGB_CAMERA)
        out[..., channel] = round_half_away(plane)
    return out


def depth_rel2depth_abs(
    disparity: Float[np.ndarray, "*n"],
) -> Float64[np.ndarray, "*n"]:
    """Disparities as metres, 0 to 10; 0 beyond infinity, where 2047 lies."""
    numerator, infinity = DEPTH_PARAMETERS
    with np.errstate(divide="ignore"):
        return np.clip(numerator / (infinity - disparity), 0, MAX_DEPTH)


def plane2world(depth: Float[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w 3"]:
    """Points in front of the depth camera, metres: x right, y down, z ahead.

    Pixels count from 1. Source: depth_plane2depth_world.m.
    """
    height, width = depth.shape
    camera = DEPTH_CAMERA
    x = (np.arange(1, width + 1) - camera.cx) * depth / camera.fx
    y = (np.arange(1, height + 1)[:, None] - camera.cy) * depth / camera.fy
    return np.stack([x, y, depth], -1)


def world2rgb(points: Float[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
    """Points of the depth camera as the colour camera has them, z negative."""
    return points @ ROTATION.T + TRANSLATION


def rgb_plane(
    points: Float[np.ndarray, "*n 3"],
) -> tuple[Float64[np.ndarray, "*n"], Float64[np.ndarray, "*n"]]:
    """Column and row, counted from 1, where the colour camera sees its points."""
    camera = RGB_CAMERA
    x, y, z = np.moveaxis(points, -1, 0)
    return x * camera.fx / z + camera.cx, y * camera.fy / z + camera.cy


def project_depth_map(
    disparity: UInt16[np.ndarray, "480 640"],
    rgb: UInt8[np.ndarray, "480 640 3"],
    *,
    variant: Literal["B", "A"] = "B",
) -> tuple[Float64[np.ndarray, "480 640"], UInt8[np.ndarray, "480 640 3"]]:
    """Depth as the undistorted image has it, metres, 0 = missing; and that image.

    Args:
      disparity: raw depth; its largest value counts as no reading, whatever it is.
      variant: "B" keeps what was not read out of the means of undistortion, as the
        release does that made the published sets; "A" is an older one.

    The nearest point wins a pixel and nothing is splatted, so pinholes stay. The z
    written is the depth camera's. The last row and column get nothing.
    Source: project_depth_map.m.
    """
    noise = disparity == disparity.max()
    noise = undistort(255.0 * noise, DEPTH_CAMERA) > 0
    if variant == "B":
        # The mask is of undistorted pixels and what it masks is not: the toolbox's.
        straight = undistort_depth(disparity, DEPTH_CAMERA, noise)
    else:
        straight = undistort(disparity.astype(np.float64), DEPTH_CAMERA)
    straight[(straight < NEAREST) | noise] = NO_READING
    depth = depth_rel2depth_abs(straight)
    column, row = rgb_plane(world2rgb(plane2world(depth)))
    return _nearest(depth, round_half_away(column), round_half_away(row)), (
        undistort_rgb(rgb)
    )


def _nearest(
    depth: Float[np.ndarray, "h w"],
    column: Float[np.ndarray, "h w"],
    row: Float[np.ndarray, "h w"],
) -> Float64[np.ndarray, "h w"]:
    """The smallest depth of those that fall on a pixel, counted from 1; 0 on none."""
    height, width = depth.shape
    seen = (column > 0) & (column < width) & (row > 0) & (row < height)
    place = ((row[seen] - 1) * width + column[seen] - 1).astype(np.intp)
    out = np.full(height * width, np.inf)
    np.minimum.at(out, place, depth[seen])
    out[np.isinf(out)] = 0
    return out.reshape(depth.shape)


def millimetres(depth: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Metres as the published PNGs hold them."""
    return round_half_away(depth * 1000).astype(np.uint16)


def round_half_away(x: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """MATLAB's round: NumPy's takes halves to the even neighbour."""
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def projection_mask() -> Bool[np.ndarray, "480 640"]:
    """Where projected depth can be expected: 427x561 pixels."""
    mask = np.zeros(SIZE, bool)
    mask[MASK] = True
    return mask


def crop(image: np.ndarray) -> np.ndarray:
    """The part of a frame, (480, 640, ...), inside `projection_mask`."""
    return image[MASK]
