"""Hole filling against literal implementations of the toolbox, pixel by pixel."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.nyu import fill

F = np.float32


def scene(size, seed, holes=0.4):
    """RGB in a few patches with noise, and depth with holes and pixels at 10 m."""
    rng = np.random.default_rng(seed)
    height, width = size
    rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
    rgb[: height // 2] = 40 + rng.integers(0, 9, (height // 2, width, 3))
    depth = rng.uniform(0.8, 6, size)
    depth[rng.random(size) < holes] = 0
    depth[rng.random(size) < 0.05] = 10
    return rgb, depth


def literal_colorization(rgb, depth, alpha):
    height, width = depth.shape
    known = (depth != 0) & (depth != 10)
    m = depth[known].max()
    gray = (0.2989 * rgb[..., 0] + 0.5870 * rgb[..., 1] + 0.1140 * rgb[..., 2]) / 255
    a = np.zeros((depth.size, depth.size))
    b = np.zeros(depth.size)
    for y in range(height):
        for x in range(width):
            i = y * width + x
            around = [
                (v, u)
                for v in range(max(y - 1, 0), min(y + 2, height))
                for u in range(max(x - 1, 0), min(x + 2, width))
                if (v, u) != (y, x)
            ]
            values = [gray[n] for n in around]
            s = 0.6 * np.var([*values, gray[y, x]])
            g = min((value - gray[y, x]) ** 2 for value in values)
            s = max(s, -g / math.log(0.01), 2e-6)
            w = np.array([math.exp(-((v - gray[y, x]) ** 2) / s) for v in values])
            for (v, u), weight in zip(around, w / w.sum(), strict=True):
                a[i, v * width + u] = -weight
            a[i, i] = 1 + alpha * known[y, x]
            b[i] = alpha * known[y, x] * min(depth[y, x] / m, 1)
    return np.linalg.solve(a, b).reshape(depth.shape) * m


def literal_level(depth, gray, missing, valid, sigma_space, sigma_range):
    """The filter of cbf.cpp at one scale, in single precision."""
    height, width = depth.shape
    space = np.array(
        [
            [
                math.exp(-F(y * y + x * x) / (2 * F(sigma_space) ** 2))
                for x in range(-5, 6)
            ]
            for y in range(-5, 6)
        ],
        F,
    )
    space = space / space.sum()
    result, valid_out = np.zeros_like(depth), valid.copy()
    for y in range(height):
        for x in range(width):
            if not missing[y, x]:
                continue
            weights = values = F(0)
            for v in range(max(y - 5, 0), min(y + 6, height)):
                for u in range(max(x - 5, 0), min(x + 6, width)):
                    if missing[v, u] and not valid[v, u]:
                        continue
                    d = gray[v, u] - gray[y, x]
                    near = F(
                        np.exp(F(-(d * d) / (2 * F(sigma_range) * F(sigma_range))))
                    )
                    close = space[v - y + 5, u - x + 5]
                    weights += close * near
                    values += depth[v, u] * close * near
            if weights != 0:
                result[y, x] = values / weights
                valid_out[y, x] = True
    return result, valid_out


def literal_cross_bf(rgb, depth, sigma_space, sigma_range):
    height, width = depth.shape
    noise = (depth == 0) | (depth == 10)
    m = depth[~noise].max()
    codes = np.floor(np.minimum(depth / m, 1) * 255 + 0.5).astype(np.uint8)
    gray = 0.2989 * rgb[..., 0] + 0.5870 * rgb[..., 1] + 0.1140 * rgb[..., 2]
    gray = (np.floor(gray + 0.5) / 255).astype(F)
    levels = []
    for scale in range(len(sigma_space)):
        h, w = height // 2**scale, width // 2**scale
        at = np.ix_(
            [int(F(y) / F(h) * F(height)) for y in range(h)],
            [int(F(x) / F(w) * F(width)) for x in range(w)],
        )
        level = [(codes / 255).astype(F)[at], gray[at], noise[at], ~noise[at]]
        levels.append([array.copy() for array in level])
    result = np.zeros(depth.shape, F)
    for scale in reversed(range(len(levels))):
        d, gray, missing, valid = levels[scale]
        result, valid = literal_level(
            d, gray, missing, valid, sigma_space[scale], sigma_range[scale]
        )
        if scale == 0:
            break
        finer = levels[scale - 1]
        for y, x in np.argwhere(finer[2]):
            parent = (
                int(F(y * d.shape[0]) / F(finer[0].shape[0])),
                int(F(x * d.shape[1]) / F(finer[0].shape[1])),
            )
            finer[0][y, x] = result[parent] if missing[parent] else d[parent]
            finer[3][y, x] = valid[parent]
    return np.where(noise, (result * F(255)).astype(np.uint8), codes) / 255.0 * m


@pytest.mark.parametrize("alpha", [1.0, 5.0])
@pytest.mark.parametrize("size", [(9, 14), (13, 6), (1, 20), (3, 3)])
def test_colorization_equals_the_literal_implementation(size, alpha):
    rgb, depth = scene(size, seed=1)
    filled = fill.fill_depth_colorization(rgb, depth, alpha=alpha)
    expected = literal_colorization(rgb, depth, alpha)
    np.testing.assert_allclose(filled, expected, rtol=1e-9)
    assert (filled > 0).all()


def test_colorization_spreads_depth_over_one_colour():
    rgb = np.full((12, 16, 3), 90, np.uint8)
    depth = np.zeros((12, 16))
    depth[3:5, 3:5] = 2.5
    np.testing.assert_allclose(fill.fill_depth_colorization(rgb, depth), 2.5)


def test_colorization_stops_at_colour_edges():
    rgb = np.full((20, 30, 3), 20, np.uint8)
    rgb[:, 15:] = 230
    depth = np.zeros((20, 30))
    depth[2:5, 2:5], depth[2:5, 25:28] = 1.5, 4.0
    filled = fill.fill_depth_colorization(rgb, depth)
    # Weights across the edge are exp(-7.5): three of the nine pixels are beyond it.
    np.testing.assert_allclose(filled[:, :15], 1.5, atol=0.05)
    np.testing.assert_allclose(filled[:, 15:], 4.0, atol=0.05)


def test_known_depth_is_smoothed_unless_keep_known():
    rgb, depth = scene((12, 15), seed=2)
    known = (depth > 0) & (depth < 10)
    smoothed = fill.fill_depth_colorization(rgb, depth)
    assert np.abs(smoothed - depth)[known].max() > 0.1
    unsmoothed = fill.fill_depth_colorization(rgb, depth, keep_known=True)
    np.testing.assert_array_equal(unsmoothed[known], depth[known])
    np.testing.assert_array_equal(unsmoothed[~known], smoothed[~known])


@hypothesis.given(st.integers(0, 10**6), st.integers(1, 9), st.integers(2, 11))
def test_filled_depth_is_in_the_range_of_known_depth(seed, height, width):
    rgb, depth = scene((height, width), seed)
    depth[0, 0] = 3
    known = depth[(depth > 0) & (depth < 10)]
    filled = fill.fill_depth_colorization(rgb, depth)
    assert filled.shape == depth.shape
    assert filled.min() >= known.min() * (1 - 1e-9)
    assert filled.max() <= known.max() * (1 + 1e-9)


def test_nested_dissection_orders_every_pixel_once():
    for size in [(1, 1), (1, 50), (37, 53), (48, 64)]:
        order = fill._dissected(size)
        np.testing.assert_array_equal(np.sort(order), np.arange(size[0] * size[1]))


@pytest.mark.parametrize("size", [(24, 30), (13, 22), (21, 11)])
def test_cross_bf_equals_the_literal_implementation(size):
    rgb, depth = scene(size, seed=3, holes=0.5)
    depth[:9, :9] = 0  # too wide a hole for the finest scale
    sigmas = {"sigma_space": (12, 5, 8), "sigma_range": (0.2, 0.08, 0.02)}
    filled = fill.fill_depth_cross_bf(rgb, depth)
    expected = literal_cross_bf(rgb, depth, **sigmas)
    # The last bit of a float can change one code of 255.
    codes = np.abs(filled - expected) * 255 / depth[depth < 10].max()
    assert codes.max() < 1.01 and (codes > 0.01).mean() < 0.005
    np.testing.assert_array_equal(filled > 0, expected > 0)


def test_cross_bf_uses_one_scale_per_sigma():
    rgb, depth = scene((20, 20), seed=4)
    filled = fill.fill_depth_cross_bf(rgb, depth, sigma_space=(3,), sigma_range=(0.1,))
    expected = literal_cross_bf(rgb, depth, (3,), (0.1,))
    assert np.abs(filled - expected).max() < 1.01 * depth[depth < 10].max() / 255
    assert (np.abs(filled - expected) > 1e-6).mean() < 0.01


def test_cross_bf_rounds_known_depth_to_8_bits():
    rgb, depth = scene((16, 20), seed=5)
    known = (depth > 0) & (depth < 10)
    filled = fill.fill_depth_cross_bf(rgb, depth)
    step = depth[known].max() / 255
    assert np.abs(filled - depth)[known].max() <= step / 2 + 1e-12
    codes = filled / step
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-9)


def test_cross_bf_leaves_pixels_far_from_known_depth():
    rgb = np.full((200, 120, 3), 128, np.uint8)
    depth = np.zeros((200, 120))
    depth[:20] = 3
    filled = fill.fill_depth_cross_bf(rgb, depth)
    # The reach is five pixels at each scale: 5 * 4 + 5 * 2 + 5.
    assert (filled[:55] > 2.9).all() and (filled[55:] == 0).all()


def test_the_pyramid_samples_rows_in_single_precision():
    rows, columns = fill._sampled((480, 640), 1)
    assert [int(F(y) / F(240) * F(480)) for y in range(240)] == rows.tolist()
    assert [int(F(x) / F(320) * F(640)) for x in range(320)] == columns.tolist()
    assert fill._sampled((13, 22), 2)[0].tolist() == [0, 4, 8]


@pytest.mark.parametrize(
    "method", [fill.fill_depth_colorization, fill.fill_depth_cross_bf]
)
@pytest.mark.parametrize("missing", [0.0, 10.0])
def test_depth_without_known_pixels_stays_empty(method, missing):
    rgb = np.zeros((6, 7, 3), np.uint8)
    assert (method(rgb, np.full((6, 7), missing)) == 0).all()


def test_a_real_frame_is_filled(shared_data):
    folder = shared_data / "sync_png16" / "basement_0001a"
    with Image.open(folder / "sync_depth_00000.png") as image:
        depth = np.asarray(image) / 1000
    with Image.open(folder / "rgb_00000.jpg") as image:
        rgb = np.asarray(image)
    known = depth > 0
    filled = fill.fill_depth_colorization(rgb, depth)
    assert filled.min() >= depth[known].min() * 0.999
    assert np.median(np.abs(filled - depth)[known]) < 0.01
    filled = fill.fill_depth_cross_bf(rgb, depth)
    assert (filled > 0).mean() > 0.95 > known.mean()
    assert np.abs(filled - depth)[known].max() <= depth.max() / 510 + 1e-9
