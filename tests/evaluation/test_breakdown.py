"""The error breakdown against loops over the pixels."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.evaluation import breakdown

SHAPE = (2, 13, 17)


def blocks(seed):
    """Depth with flat patches, holes and a slope."""
    rng = np.random.default_rng(seed)
    depth = np.full(SHAPE, 3.0) + np.linspace(0, 0.5, SHAPE[2])
    for _ in range(3):
        b, i, j = (rng.integers(0, n - 2) if n > 2 else rng.integers(n) for n in SHAPE)
        depth[b, i : i + 4, j : j + 5] = rng.uniform(1, 9)
    depth[rng.random(SHAPE) < 0.1] = 0
    return depth.astype(np.float32)


def literal_near(depth, radius):
    """Mask of the pixels within `radius` rows and columns of an edge, by loops."""
    edge = np.zeros(depth.shape, bool)
    for b, i, j in np.ndindex(*depth.shape):
        for di, dj in ((0, 1), (1, 0)):
            if i + di >= depth.shape[1] or j + dj >= depth.shape[2]:
                continue
            one, two = depth[b, i, j], depth[b, i + di, j + dj]
            if one > 0 and two > 0 and max(one, two) / min(one, two) > 1.25:
                edge[b, i, j] = edge[b, i + di, j + dj] = True
    near = np.zeros(depth.shape, bool)
    for b, i, j in np.argwhere(edge):
        for di, dj in itertools.product(range(-radius, radius + 1), repeat=2):
            y, x = i + di, j + dj
            if 0 <= y < depth.shape[1] and 0 <= x < depth.shape[2]:
                near[b, y, x] = True
    return near


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_near_edges_equals_the_loop(radius, seed):
    depth = blocks(seed)
    expected = literal_near(depth, radius)
    assert 0 < expected.sum() < expected.size
    got = breakdown.near_edges(jnp.asarray(depth), radius=radius)
    np.testing.assert_array_equal(got, expected)


def test_holes_and_gentle_slopes_have_no_edges():
    depth = np.full((1, 4, 6), 2.0, np.float32)
    depth[0, :, 3:] = 2.5  # a factor of exactly 1.25 is not an edge
    depth[0, 1] = 0
    depth[0, 2] = np.nan
    assert not np.any(breakdown.near_edges(jnp.asarray(depth), radius=2))
    depth[0, 0, 5] = 3.2
    assert np.any(breakdown.near_edges(jnp.asarray(depth), radius=2))


def test_each_pixel_is_at_one_distance_and_near_or_away():
    depth = np.array([[[0.1, 2.0, 2.01, 4.0, 5.0, 6.5, 10.0, 10.5, 0.0]]], np.float32)
    actual = breakdown.masks(jnp.asarray(depth))
    assert tuple(actual) == breakdown.PARTS
    names = [
        [name for name in actual if name.endswith(" m") and actual[name][0, 0, k]]
        for k in range(depth.size)
    ]
    assert names == [
        ["0-2 m"], ["0-2 m"], ["2-4 m"], ["2-4 m"], ["4-6 m"], ["6-10 m"], ["6-10 m"],
        [], [],
    ]  # fmt: skip
    near, away = actual[breakdown.NEAR], actual[breakdown.AWAY]
    np.testing.assert_array_equal(near, ~away)


@pytest.mark.parametrize(("height", "pixels"), [(480, 8), (240, 4), (60, 1), (20, 1)])
def test_radius_scales_with_the_frame_height(height, pixels):
    depth = np.full((1, height, 41), 2.0, np.float32)
    depth[:, :, 20:] = 4.0
    near = breakdown.masks(jnp.asarray(depth))[breakdown.NEAR]
    columns = np.flatnonzero(np.asarray(near)[0, 1])
    assert (columns.min(), columns.max()) == (19 - pixels, 20 + pixels)
