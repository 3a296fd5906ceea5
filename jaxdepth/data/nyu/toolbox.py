"""The NYU Depth V2 toolbox: match, undistort and project frames of a raw Kinect dump.

A raw frame has depth as disparities 0..2047 (2047 = no reading) and colour, both
480x640, each from its own camera. Like the toolbox, this module counts pixels from 0 in
undistortion and from 1 in projection, with the same cx, cy. Hole filling is in
`fill`, reading of files in `sources.nyu_raw`.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8, UInt16

from jaxdepth import camera as camera_lib

VERSION = 1  # of the results; stores of another version are prepared again
SIZE = (480, 640)
MAX_DEPTH = 10.0  # metres; larger depth is clipped
NO_READING = 2047
NEAREST = 600  # 0.713 m; undistortion makes smaller disparities at holes


@dataclasses.dataclass(frozen=True)
class Camera:
    """Intrinsics at 480x640, pixels, and Brown distortion coefficients of a camera."""

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


# The constants below are from camera_params.m of the NYU toolbox.
RGB_CAMERA = Camera(
    *camera_lib.NYU,
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
TRANSLATION = np.array(  # in the order of the file, which swaps the names of y and z
    [2.5031875059141302e-02, -2.9342312935846411e-04, 6.6238747008330102e-04]
)
DEPTH_PARAMETERS = 351.3, 1092.5  # z = first / (second - disparity)


class Match(NamedTuple):
    """The file names of a depth frame and of the files matched with it in time."""

    depth: str
    rgb: str
    accel: str | None
    gap: float  # seconds between depth and rgb


def seconds(name: str) -> float:
    """The time in a file name d-SECONDS-TICKS.pgm."""
    return float(name.split("-")[1])


def synchronise(
    depth: Sequence[str], rgb: Sequence[str], accel: Sequence[str] = ()
) -> list[Match]:
    """Match every depth frame with an image; one image may match several.

    Args:
      depth, rgb, accel: file names, in any order; `accel` may be empty.

    Raises: ValueError without an image, or for a name without a time.
    Source: get_synched_frames.m.
    """
    if not rgb:
        raise ValueError("no image to match depth with")
    depth, rgb, accel = sorted(depth), sorted(rgb), sorted(accel)
    depth_times = [seconds(name) for name in depth]
    rgb_times = [seconds(name) for name in rgb]
    images = match_times(depth_times, rgb_times)
    readings = match_times(depth_times, [seconds(name) for name in accel])
    return [
        Match(
            name,
            rgb[images[k]],
            accel[readings[k]] if accel else None,
            abs(depth_times[k] - rgb_times[images[k]]),
        )
        for k, name in enumerate(depth)
    ]


def match_times(times: Sequence[float], others: Sequence[float]) -> list[int]:
    """For each time, the index of a close time in `others`, by a greedy search.

    The search starts at the index of the previous time and moves forward while the gap
    does not grow, so the result may not be the closest one.
    """
    indices: list[int] = []
    k = 0
    for time in times if others else ():
        best = abs(time - others[k])
        while k + 1 < len(others) and (gap := abs(time - others[k + 1])) <= best:
            best, k = gap, k + 1
        indices.append(k)
    return indices


def drop_duplicates(matches: Sequence[Match]) -> tuple[list[Match], int]:
    """Drop all matches that share an image; returns the others and the number dropped.

    Source: the paper, section 4.
    """
    uses = collections.Counter(match.rgb for match in matches)
    unique = [match for match in matches if uses[match.rgb] == 1]
    return unique, len(matches) - len(unique)


def apply_distortion(
    x: Float[np.ndarray, "*n"], y: Float[np.ndarray, "*n"], camera: Camera
) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """Distort normalised image coordinates (x, y) by Brown's model."""
    r2 = x * x + y * y
    radial = 1 + camera.k1 * r2 + camera.k2 * r2**2 + camera.k3 * r2**3
    return (
        x * radial + 2 * camera.p1 * x * y + camera.p2 * (r2 + 2 * x * x),
        y * radial + camera.p1 * (r2 + 2 * y * y) + 2 * camera.p2 * x * y,
    )


def undistortion_source(
    u: Float[np.ndarray, "*n"], v: Float[np.ndarray, "*n"], camera: Camera
) -> tuple[Float[np.ndarray, "*n"], Float[np.ndarray, "*n"]]:
    """The distorted position of undistorted column u, row v; pixels from 0."""
    x, y = apply_distortion(
        (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, camera
    )
    return camera.fx * x + camera.cx, camera.fy * y + camera.cy


class _Taps(NamedTuple):
    """The four source pixels of each undistorted pixel, with bilinear weights.

    Attributes:
      first: flat index of the upper left source pixel; 0 where `outside`.
      weights: of the upper left, upper right, lower left and lower right pixel.
      shares: `weights` divided by their sum.
      outside: whether the source position is outside the image.
      width: of the image.
    """

    first: Int[np.ndarray, "n"]
    weights: Float64[np.ndarray, "4 n"]
    shares: Float64[np.ndarray, "4 n"]
    outside: Bool[np.ndarray, "n"]
    width: int

    def of(self, flat: np.ndarray, at: np.ndarray | None = None) -> list[np.ndarray]:
        """The values of the four source pixels, for all pixels or those at `at`."""
        first = self.first if at is None else self.first[at]
        steps = (0, 1, self.width, self.width + 1)
        # Views of the array, so that one index array works for all four.
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
    """Undistort one channel bilinearly; 255 where the source is outside the image."""
    taps = _taps(camera, image.shape)
    values = _weighted(taps.of(image.ravel()), taps.weights)
    values[taps.outside] = 255
    return values.reshape(image.shape)


def undistort_depth(
    disparity: Float[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"],
    camera: Camera,
    noise: Bool[np.ndarray, "h w"],
) -> Float64[np.ndarray, "h w"]:
    """Undistort bilinearly without the source pixels that are `noise`.

    The result is 0 where all four source pixels are noise or outside the image.
    """
    taps = _taps(camera, disparity.shape)
    flat, masked = disparity.ravel(), noise.ravel()
    values = _weighted(taps.of(flat), taps.shares)
    # Few pixels touch noise: only their weights are computed again.
    touch = np.flatnonzero(np.logical_or.reduce(taps.of(masked)))
    weights = taps.weights[:, touch] * ~np.stack(taps.of(masked, touch))
    total = weights[0] + weights[1] + weights[2] + weights[3]
    weights /= np.where(total == 0, 1, total)
    values[touch] = _weighted(taps.of(flat, touch), weights)
    values[taps.outside] = 0
    return values.reshape(disparity.shape)


def _weighted(values: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    # The order matters: on a wall at disparity 600, the last bit of the sum decides
    # whether it is below NEAREST.
    total = weights[0] * values[0]
    for k in (1, 2, 3):
        total += weights[k] * values[k]
    return total


def undistort_rgb(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Undistort an image of the colour camera; a border of 6 to 8 pixels is white."""
    out = np.empty_like(rgb)
    for channel in range(3):
        plane = undistort(np.ascontiguousarray(rgb[..., channel]), RGB_CAMERA)
        out[..., channel] = round_half_away(plane)
    return out


def depth_rel2depth_abs(
    disparity: Float[np.ndarray, "*n"],
) -> Float64[np.ndarray, "*n"]:
    """Convert disparities to metres, 0 to 10; 0 for disparities above 1092.5."""
    numerator, infinity = DEPTH_PARAMETERS
    with np.errstate(divide="ignore"):
        return np.clip(numerator / (infinity - disparity), 0, MAX_DEPTH)


def plane2world(depth: Float[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w 3"]:
    """Back-project depth to camera coordinates, metres: x right, y down, z forward.

    Pixels are counted from 1. Source: depth_plane2depth_world.m.
    """
    height, width = depth.shape
    camera = DEPTH_CAMERA
    x = (np.arange(1, width + 1) - camera.cx) * depth / camera.fx
    y = (np.arange(1, height + 1)[:, None] - camera.cy) * depth / camera.fy
    return np.stack([x, y, depth], -1)


def world2rgb(points: Float[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
    """Transform points to the colour camera's coordinates, in which z is negative."""
    return points @ ROTATION.T + TRANSLATION


def rgb_plane(
    points: Float[np.ndarray, "*n 3"],
) -> tuple[Float64[np.ndarray, "*n"], Float64[np.ndarray, "*n"]]:
    """Project points of the colour camera to column and row, counted from 1."""
    camera = RGB_CAMERA
    x, y, z = np.moveaxis(points, -1, 0)
    return x * camera.fx / z + camera.cx, y * camera.fy / z + camera.cy


def project_depth_map(
    disparity: UInt16[np.ndarray, "480 640"],
    rgb: UInt8[np.ndarray, "480 640 3"],
    *,
    variant: Literal["B", "A"] = "B",
) -> tuple[Float64[np.ndarray, "480 640"], UInt8[np.ndarray, "480 640 3"]]:
    """Project raw depth into the undistorted image.

    Each pixel gets the smallest depth of the points that fall on it. Points are not
    splatted, so pinholes remain, and the last row and column stay empty. Depth is z in
    the coordinates of the depth camera.

    Args:
      disparity: raw depth; its largest value counts as no reading.
      variant: "B" excludes pixels without a reading from undistortion, like the release
        that produced the published sets; "A" is an older release.

    Returns: depth in metres, 0 = missing; the undistorted image.
    Source: project_depth_map.m.
    """
    noise = disparity == disparity.max()
    noise = undistort(255.0 * noise, DEPTH_CAMERA) > 0
    if variant == "B":
        # Like the toolbox, this applies a mask of undistorted pixels to distorted ones.
        undistorted = undistort_depth(disparity, DEPTH_CAMERA, noise)
    else:
        undistorted = undistort(disparity.astype(np.float64), DEPTH_CAMERA)
    undistorted[(undistorted < NEAREST) | noise] = NO_READING
    depth = depth_rel2depth_abs(undistorted)
    column, row = rgb_plane(world2rgb(plane2world(depth)))
    return _nearest(depth, round_half_away(column), round_half_away(row)), (
        undistort_rgb(rgb)
    )


def _nearest(
    depth: Float[np.ndarray, "h w"],
    column: Float[np.ndarray, "h w"],
    row: Float[np.ndarray, "h w"],
) -> Float64[np.ndarray, "h w"]:
    """The smallest depth of the points on each pixel (counted from 1); 0 if none."""
    height, width = depth.shape
    inside = (column > 0) & (column < width) & (row > 0) & (row < height)
    pixel = ((row[inside] - 1) * width + column[inside] - 1).astype(np.intp)
    nearest = np.full(height * width, np.inf)
    np.minimum.at(nearest, pixel, depth[inside])
    nearest[np.isinf(nearest)] = 0
    return nearest.reshape(depth.shape)


def millimetres(depth: Float[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Convert metres to millimetres, rounded like the published PNG files."""
    return round_half_away(depth * 1000).astype(np.uint16)


def round_half_away(x: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Round halves away from zero like MATLAB; NumPy rounds halves to even."""
    return np.copysign(np.floor(np.abs(x) + 0.5), x)
