"""Baselines against brute force over all pixels and all constants."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxdepth.evaluation import baselines

depth_maps = hnp.arrays(
    np.uint16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
    elements=st.one_of(st.just(0), st.integers(1, 400)),
)  # fmt: skip


def shares(valid_mm: np.ndarray, limit: int) -> np.ndarray:
    """delta1 of each constant from 1 to `limit` mm, in integer arithmetic."""
    c, t = np.arange(1, limit + 1)[:, None], valid_mm[None].astype(int)
    return ((4 * c < 5 * t) & (4 * t < 5 * c)).mean(1)


@given(depth_maps)
def test_baselines_equal_brute_force(depth):
    valid = (depth > 0) & (depth <= 300)
    if not valid.any():
        with pytest.raises(ValueError, match="no valid training pixel"):
            baselines.fit([depth], max_depth=0.3)
        return
    actual = baselines.fit([depth], max_depth=0.3)
    values = depth[valid].astype(float)
    np.testing.assert_allclose(actual.constant, values.mean() / 1000, rtol=1e-12)
    delta1 = shares(depth[valid], 300)
    chosen = round(actual.constant_delta * 1000)
    assert delta1[chosen - 1] == delta1.max()
    for y, x in np.ndindex(depth.shape[1:]):
        at_pixel = depth[:, y, x][valid[:, y, x]].astype(float)
        expected = at_pixel.mean() if len(at_pixel) else values.mean()
        np.testing.assert_allclose(actual.mean_map[y, x], expected / 1000, rtol=1e-6)


def test_baselines_do_not_depend_on_the_batches():
    depth = np.random.default_rng(0).integers(0, 12000, (10, 6, 8)).astype(np.uint16)
    one = baselines.fit([depth], max_depth=10.0)
    three = baselines.fit(iter([depth[:3], depth[3:4], depth[4:]]), max_depth=10.0)
    assert one.constant == three.constant
    assert one.constant_delta == three.constant_delta
    np.testing.assert_array_equal(one.mean_map, three.mean_map)
    assert one.mean_map.dtype == np.float32 and one.mean_map.shape == (6, 8)


def test_large_sums_are_exact_to_the_millimetre():
    # A float32 sum of these would be off by metres.
    depth = np.full((300, 1, 1), 9999, np.uint16)
    depth[0] = 9998
    actual = baselines.fit(iter([depth] * 200), max_depth=10.0)
    np.testing.assert_allclose(actual.mean_map[0, 0], 9.999 - 1 / 300_000, rtol=1e-7)


def test_max_depth_beyond_uint16_keeps_all_pixels():
    depth = np.full((1, 2, 2), 65535, np.uint16)
    assert baselines.fit([depth], max_depth=80.0).constant == pytest.approx(65.535)


def test_baselines_of_another_unit_are_in_metres_too():
    # Multiples of 1/8 m are whole codes of both units.
    rng = np.random.default_rng(0)
    eighths = rng.integers(0, 8 * 60, (5, 4, 6)).astype(np.uint16)
    mm = baselines.fit([eighths * 125], max_depth=50.0)
    other = baselines.fit([eighths * 32], max_depth=50.0, depth_unit=256)
    assert other.constant == pytest.approx(mm.constant, rel=1e-12)
    np.testing.assert_allclose(other.mean_map, mm.mean_map, rtol=1e-6)
    truth = eighths[(eighths > 0) & (eighths <= 400)] / 8
    shares = [
        (np.maximum(fit.constant_delta / truth, truth / fit.constant_delta) < 1.25)
        for fit in (mm, other)
    ]
    assert shares[0].mean() == shares[1].mean()


@given(depth_maps)
def test_baselines_of_millimetres_are_those_of_earlier_versions(depth):
    if not (depth > 0).any():
        return
    counts = np.bincount(depth[depth > 0], minlength=10_001)
    total, measured = depth.sum(0, dtype=np.float64), (depth > 0).sum(0)
    constant = float((counts * (np.arange(10_001) / 1000)).sum() / counts.sum())
    means = np.where(measured > 0, total / np.maximum(measured, 1) / 1000, constant)
    actual = baselines.fit([depth], max_depth=10.0)
    assert actual.constant == constant
    assert actual.mean_map.tobytes() == means.astype(np.float32).tobytes()


def test_no_valid_pixel_is_an_error():
    for batches in ([], [np.zeros((2, 3, 3), np.uint16)]):
        with pytest.raises(ValueError, match="no valid training pixel"):
            baselines.fit(batches, max_depth=10.0)
