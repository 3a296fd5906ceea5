"""The toolbox against published frames and a literal, slow implementation.

The functions named literal_* follow the MATLAB toolbox step by step: pixels counted
from 1, columns first, points written in sorted order.
"""

import math
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.nyu import toolbox
from jaxdepth.data.nyu.toolbox import DEPTH_CAMERA, RGB_CAMERA

H, W = 480, 640
SCENE = "basement_0001a"
M = np.array(
    [
        [9.9997798940829263e-01, 5.0518419386157446e-03, 4.3011152014118693e-03],
        [-5.0359919480810989e-03, 9.9998051861143999e-01, -3.6879781309514218e-03],
        [-4.3196624923060242e-03, 3.6662365748484798e-03, 9.9998394948385538e-01],
    ]
)
T = (2.5031875059141302e-02, -2.9342312935846411e-04, 6.6238747008330102e-04)


class Calibration(NamedTuple):
    """Focal lengths, centre and distortion, with the names of camera_params.m."""

    fc: tuple[float, float]
    cc: tuple[float, float]
    kc: tuple[float, float, float, float, float]


RGB = Calibration(
    fc=(5.1885790117450188e02, 5.1946961112127485e02),
    cc=(3.2558244941119034e02, 2.5373616633400465e02),
    kc=(2.0796615318809061e-01, -5.8613825163911781e-01, 7.2231363135888329e-04,
        1.0479627195765181e-03, 4.9856986684705107e-01),
)  # fmt: skip
DEPTH = Calibration(
    fc=(5.8262448167737955e02, 5.8269103270988637e02),
    cc=(3.1304475870804731e02, 2.3844389626620386e02),
    kc=(-9.9897236553084481e-02, 3.9065324602765344e-01, 1.9290592870229277e-03,
        -1.9422022475975055e-03, -5.1031725053400578e-01),
)  # fmt: skip


@pytest.fixture(scope="module")
def raw_pair(shared_data):
    folder = shared_data / "raw_kinect" / SCENE
    depth = next(folder.glob("d-*.pgm")).read_bytes()[17:]
    rgb = next(folder.glob("r-*.ppm")).read_bytes()[15:]
    return (
        np.frombuffer(depth, "<u2").reshape(H, W),
        np.frombuffer(rgb, np.uint8).reshape(H, W, 3),
    )


def published(shared_data, name):
    with Image.open(shared_data / "sync_png16" / SCENE / name) as image:
        return np.asarray(image)


def frames(seed, count=2):
    """Random disparity and RGB: smooth walls with holes and extreme readings."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:H, :W]
    for _ in range(count):
        slope, tilt = rng.uniform(-0.4, 0.4, 2)
        disparity = rng.uniform(590, 1000) + slope * x + tilt * y
        disparity += rng.normal(0, 3, (H, W))
        disparity[rng.random((H, W)) < 0.02] = 2047
        top, left = rng.integers(0, 400, 2)
        disparity[top : top + 60, left : left + 90] = 2047
        disparity[:40, :40] = rng.integers(1050, 1100, (40, 40))
        yield (
            disparity.clip(0, 2047).astype(np.uint16),
            rng.integers(0, 256, (H, W, 3), np.uint8),
        )


def literal_source(u, v, fc, cc, kc):
    """The distorted position of undistorted pixel (u, v), counted from 0; floats."""
    k1, k2, p1, p2, k3 = kc
    x, y = (u - cc[0]) / fc[0], (v - cc[1]) / fc[1]
    r2 = x**2 + y**2
    c = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    xd = x * c + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    yd = y * c + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    return fc[0] * xd + cc[0], fc[1] * yd + cc[1]


def literal_pixel(image, u, v, camera, mask=None):
    """One pixel of undistort (mask None) or of undistort_depth."""
    px, py = literal_source(u, v, *camera)
    x0, y0 = math.floor(px), math.floor(py)
    if not (0 <= x0 <= W - 2 and 0 <= y0 <= H - 2):
        return 255.0 if mask is None else 0.0
    ax, ay = px - x0, py - y0
    taps = [(y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1)]
    weights = [(1 - ay) * (1 - ax), (1 - ay) * ax, ay * (1 - ax), ay * ax]
    if mask is not None:
        weights = [w * (not mask[tap]) for w, tap in zip(weights, taps, strict=True)]
        total = sum(weights)
        if total == 0:
            return 0.0
        weights = [w / total for w in weights]
    return sum(w * float(image[tap]) for w, tap in zip(weights, taps, strict=True))


def literal_image(image, camera, mask=None):
    return np.array(
        [[literal_pixel(image, u, v, camera, mask) for u in range(W)] for v in range(H)]
    )


def literal_projection(disparity, variant):
    """The depth of project_depth_map, metres."""
    noise = 255.0 * (disparity == disparity.max())
    noise = literal_image(noise, DEPTH) > 0
    image = literal_image(disparity, DEPTH, noise if variant == "B" else None)
    image[image < 600] = 2047
    image[noise] = 2047
    with np.errstate(divide="ignore"):
        z = 351.3 / (1092.5 - image)
    z[z > 10] = 10
    z[z < 0] = 0
    xx, yy = np.meshgrid(np.arange(1, W + 1), np.arange(1, H + 1))
    z, xx, yy = (a.ravel(order="F") for a in (z, xx, yy))
    (fx, fy), (cx, cy) = DEPTH.fc, DEPTH.cc
    points = np.stack([(xx - cx) * z / fx, (yy - cy) * z / fy, z])
    x, y, depth = np.linalg.inv(-M) @ points + np.array(T)[:, None]
    (fx, fy), (cx, cy) = RGB.fc, RGB.cc
    x, y = x * fx / depth + cx, y * fy / depth + cy
    x, y = (np.sign(a) * np.floor(np.abs(a) + 0.5) for a in (x, y))
    good = np.flatnonzero((x > 0) & (x < W) & (y > 0) & (y < H))
    order = good[np.argsort(-z[good], kind="stable")]
    out = np.zeros((H, W))
    for k in order.tolist():
        out[int(y[k]) - 1, int(x[k]) - 1] = z[k]
    out[out > 10] = 10
    out[out < 0] = 0
    return out


def literal_synchronised(depth, rgb):
    """The image index, from 0, of every depth time, as in get_synched_frames."""
    indices, jj = [], 1
    for t in depth:
        best = abs(t - rgb[jj - 1])
        while jj < len(rgb):
            d = abs(t - rgb[jj])
            if d > best:
                break
            best = d
            jj = jj + 1
        indices.append(jj - 1)
    return indices


def assert_same_depth(depth, expected):
    """Assert that depth is equal in millimetres, and in metres up to rounding."""
    np.testing.assert_array_equal(depth > 0, expected > 0)
    np.testing.assert_array_equal(
        toolbox.millimetres(depth), np.floor(expected * 1000 + 0.5)
    )
    np.testing.assert_allclose(depth, expected, rtol=1e-11)


def test_projection_of_a_raw_frame_equals_the_published_png(shared_data, raw_pair):
    depth, _ = toolbox.project_depth_map(*raw_pair)
    expected = published(shared_data, "sync_depth_00000.png")
    np.testing.assert_array_equal(toolbox.millimetres(depth), expected)


def test_variant_a_differs_near_holes(shared_data, raw_pair):
    depth, _ = toolbox.project_depth_map(*raw_pair, variant="A")
    expected = published(shared_data, "sync_depth_00000.png")
    both = (depth > 0) & (expected > 0)
    same = toolbox.millimetres(depth)[both] == expected[both]
    assert 0.995 < same.mean() < 0.9955  # 99.5 % of the pixels


def test_the_undistorted_image_equals_the_published_jpeg(shared_data, raw_pair):
    _, rgb = toolbox.project_depth_map(*raw_pair)
    expected = published(shared_data, "rgb_00000.jpg").astype(float)
    assert np.abs(rgb - expected).mean() < 4.4  # compression loss of JPEG
    assert np.abs(raw_pair[1] - expected).mean() > 22.8


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["B", "A"])
def test_projection_equals_the_literal_implementation_on_a_real_frame(
    raw_pair, variant
):
    depth, _ = toolbox.project_depth_map(*raw_pair, variant=variant)
    assert_same_depth(depth, literal_projection(raw_pair[0], variant))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["B", "A"])
def test_projection_equals_the_literal_implementation_on_random_frames(variant):
    for disparity, rgb in frames(seed=ord(variant)):
        depth, _ = toolbox.project_depth_map(disparity, rgb, variant=variant)
        assert_same_depth(depth, literal_projection(disparity, variant))
        assert (depth > 0).mean() > 0.3


@pytest.mark.slow
def test_projection_of_noise_equals_the_literal_implementation():
    rng = np.random.default_rng(0)
    disparity = rng.integers(0, 2048, (H, W)).astype(np.uint16)
    rgb = np.zeros((H, W, 3), np.uint8)
    depth, _ = toolbox.project_depth_map(disparity, rgb)
    assert_same_depth(depth, literal_projection(disparity, "B"))


def test_undistorted_images_equal_the_literal_implementation(raw_pair):
    undistorted = toolbox.undistort_rgb(raw_pair[1])
    rng = np.random.default_rng(0)
    edges = [(u, v) for u in (0, 5, 6, 7, 320, 633, 639) for v in (0, 4, 5, 6, 479)]
    inner = zip(rng.integers(0, W, 3000), rng.integers(0, H, 3000), strict=True)
    for u, v in [*edges, *inner]:
        exact = [literal_pixel(raw_pair[1][..., k], u, v, RGB) for k in range(3)]
        assert undistorted[v, u].tolist() == [
            math.floor(value + 0.5) for value in exact
        ]


@pytest.mark.parametrize(
    ("camera", "pixel", "source"),
    [
        (RGB_CAMERA, (0, 0), (-6.5503885428498165, -5.135605355142019)),
        (DEPTH_CAMERA, (0, 0), (3.3063386028296122, 3.4243015257770253)),
        (RGB_CAMERA, (639, 479), (646.1847052637427, 484.15527308287074)),
        (DEPTH_CAMERA, (639, 479), (633.4880815830641, 475.87929708083743)),
        (RGB_CAMERA, (100, 400), (95.01864838417885, 403.425086270824)),
        (DEPTH_CAMERA, (100, 400), (101.03752818576154, 399.26922599575744)),
    ],
)
def test_source_positions_of_undistorted_pixels(camera, pixel, source):
    u, v = (np.array([float(n)]) for n in pixel)
    position = np.concatenate(toolbox.undistortion_source(u, v, camera))
    np.testing.assert_allclose(position, source, rtol=1e-13)


def test_distortion_follows_brown_s_model():
    x, y = np.array([0.3, -0.2]), np.array([0.1, 0.25])
    distorted = np.stack(toolbox.apply_distortion(x, y, DEPTH_CAMERA), -1)
    (fx, fy), (cx, cy) = DEPTH.fc, DEPTH.cc
    for k in range(2):
        px, py = literal_source(x[k] * fx + cx, y[k] * fy + cy, *DEPTH)
        np.testing.assert_allclose(
            distorted[k], [(px - cx) / fx, (py - cy) / fy], 1e-12
        )


@pytest.mark.parametrize(
    ("disparity", "metres"),
    [
        (0, 351.3 / 1092.5), (600, 0.7132994923857868), (700, 0.8950318471337579),
        (800, 1.201025641025641), (900, 1.824935064935065), (1000, 3.797837837837838),
        (1050, 8.265882352941176), (1057, 9.895774647887324), (1058, 10.0),
        (1092, 10.0), (1092.5, 10.0), (1093, 0.0), (2047, 0.0),
    ],
)  # fmt: skip
def test_disparities_are_converted_to_metres(disparity, metres):
    depth = toolbox.depth_rel2depth_abs(np.array([float(disparity)]))
    np.testing.assert_allclose(depth, [metres], rtol=1e-15)


@pytest.mark.parametrize(
    ("pixel", "disparity", "projected"),
    [
        ((320, 240), 800, (318.7103598695258, 257.1879615616687)),
        ((100, 400), 900, (125.18023277849599, 399.2219172340051)),
        ((600, 50), 1000, (575.5295555193662, 89.49122143633971)),
        ((1, 1), 2047, (19933.42037245503, 23.62251565963399)),
    ],
)
def test_projected_positions_of_points(pixel, disparity, projected):
    u, v = pixel
    depth = np.zeros((H, W))
    depth[v - 1, u - 1] = toolbox.depth_rel2depth_abs(np.array([float(disparity)]))[0]
    points = toolbox.world2rgb(toolbox.plane2world(depth))
    column, row = (position[v - 1, u - 1] for position in toolbox.rgb_plane(points))
    np.testing.assert_allclose([column, row], projected, rtol=1e-13)
    if disparity == 800:
        z = points[v - 1, u - 1, 2]
        assert z == pytest.approx(-1.2003938152389995, rel=1e-14)


def test_the_transform_between_the_cameras_is_a_reflection():
    expected = [
        [-0.9999779894082926, 0.0050359919480811, 0.00431966249230603],
        [-0.00505184193861575, -0.9999805186114399, -0.00366623657484848],
        [-0.00430111520141187, 0.00368797813095142, -0.9999839494838554],
    ]
    np.testing.assert_allclose(toolbox.ROTATION, expected, rtol=1e-12)
    np.testing.assert_array_equal(toolbox.TRANSLATION, T)
    assert np.linalg.det(toolbox.ROTATION) == pytest.approx(-1)


def test_undistortion_leaves_a_white_border_for_the_colour_camera_only():
    black = np.zeros((H, W))
    white = toolbox.undistort(black, RGB_CAMERA) == 255
    assert white[:5].all() and white[:, :6].all() and not white[8:-8, 8:-8].any()
    assert not (toolbox.undistort(black, DEPTH_CAMERA) == 255).any()


def test_masked_undistortion_averages_over_valid_pixels():
    rng = np.random.default_rng(0)
    disparity = rng.integers(600, 1000, (H, W)).astype(np.uint16)
    noise = rng.random((H, W)) < 0.5
    noise[100:110, 200:220] = True
    undistorted = toolbox.undistort_depth(disparity, DEPTH_CAMERA, noise)
    pixels = [*np.ndindex(30, 40), (104, 210), (105, 205), (478, 638), (479, 639)]
    for v, u in pixels:
        expected = literal_pixel(disparity, u, v, DEPTH, noise)
        assert undistorted[v, u] == pytest.approx(expected, rel=1e-12)
    assert undistorted[104, 210] == 0


def test_weights_are_normalised_even_without_noise():
    # The last bit decides whether a wall at disparity 600 is below NEAREST.
    v, u = np.mgrid[:H, :W].astype(float)
    x, y = toolbox.undistortion_source(u, v, DEPTH_CAMERA)
    ax, ay = x - np.floor(x), y - np.floor(y)
    w1, w2, w3, w4 = (1 - ay) * (1 - ax), (1 - ay) * ax, ay * (1 - ax), ay * ax
    s = w1 + w2 + w3 + w4
    expected = w1 / s * 600 + w2 / s * 600 + w3 / s * 600 + w4 / s * 600
    wall = np.full((H, W), 600, np.uint16)
    undistorted = toolbox.undistort_depth(wall, DEPTH_CAMERA, np.zeros((H, W), bool))
    np.testing.assert_array_equal(undistorted < 600, expected < 600)
    assert 0 < (undistorted < 600).mean() < 1


def test_masked_undistortion_is_zero_outside():
    ones = np.full((H, W), 700.0)
    noise = np.zeros((H, W), bool)
    undistorted = toolbox.undistort_depth(ones, RGB_CAMERA, noise)
    assert (undistorted[:5] == 0).all()
    np.testing.assert_allclose(undistorted[10:-10, 10:-10], 700)


def test_the_largest_disparity_counts_as_no_reading():
    disparity = np.full((H, W), 800, np.uint16)
    disparity[200:260, 300:380] = 900
    rgb = np.zeros((H, W, 3), np.uint8)
    depth, _ = toolbox.project_depth_map(disparity, rgb)
    assert depth.max() == pytest.approx(1.201025641025641)
    assert (toolbox.project_depth_map(disparity * 0, rgb)[0] == 0).all()


def test_the_nearest_point_is_kept_and_the_last_row_and_column_are_empty():
    depth = np.array([[3.0, 1.0, 2.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    column = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 3.0], [1.0, 1.0, np.nan]])
    row = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 3.0, 1.0]])
    expected = [[1, 5, 0], [7, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(toolbox._nearest(depth, column, row), expected)


def test_halves_are_rounded_away_from_zero():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4, -2.6, 0.0])
    expected = [1, 2, 3, -1, -2, 2, -3, 0]
    np.testing.assert_array_equal(toolbox.round_half_away(x), expected)
    np.testing.assert_array_equal(
        toolbox.millimetres(np.array([[0.7135, 0.71251, 10.0, 0.0]])),
        [[714, 713, 10000, 0]],
    )


# Eighths of a second, which floats represent exactly; ties are frequent.
TIMES = st.lists(st.integers(0, 60).map(lambda n: n / 8), min_size=1, max_size=30)


@hypothesis.given(depth=TIMES, rgb=TIMES)
def test_matching_equals_the_literal_implementation(depth, rgb):
    depth, rgb = sorted(depth), sorted(rgb)
    assert toolbox.match_times(depth, rgb) == literal_synchronised(depth, rgb)


@hypothesis.given(depth=TIMES, rgb=TIMES)
def test_matching_of_unordered_times_is_monotonic(depth, rgb):
    # Two clocks may give times that are out of order.
    indices = toolbox.match_times(depth, rgb)
    assert indices == literal_synchronised(depth, rgb) and indices == sorted(indices)


def names(kind, times, suffix="pgm"):
    return [f"{kind}-{1316653580 + t:.6f}-{k}.{suffix}" for k, t in enumerate(times)]


def test_depth_frames_are_matched_with_the_nearest_image():
    depth, rgb = names("d", [0, 0.125, 0.25, 0.75]), names("r", [0, 0.25, 0.5], "ppm")
    accel = names("a", [0, 0.625], "dump")
    matches = toolbox.synchronise(depth[::-1], rgb, accel)
    assert [match.depth for match in matches] == depth
    # The second time is halfway between two images: the later one is taken.
    assert [match.rgb for match in matches] == [rgb[0], rgb[1], rgb[1], rgb[2]]
    assert [match.accel for match in matches] == [accel[0]] * 3 + [accel[1]]
    assert [match.gap for match in matches] == [0, 0.125, 0, 0.25]


def test_accelerometer_files_are_optional_and_images_are_not():
    depth, rgb = names("d", [0.0]), names("r", [5.0], "ppm")
    assert toolbox.synchronise(depth, rgb)[0].accel is None
    assert toolbox.synchronise([], rgb) == []
    with pytest.raises(ValueError, match="no image"):
        toolbox.synchronise(depth, [])


def test_depth_frames_that_share_an_image_are_dropped():
    depth = names("d", [0.0, 0.1, 0.2, 0.5])
    matches = toolbox.synchronise(depth, names("r", [0.01, 0.18, 0.5], "ppm"))
    unique, left_out = toolbox.drop_duplicates(matches)
    assert [match.depth for match in unique] == [depth[0], depth[3]]
    assert left_out == 2
