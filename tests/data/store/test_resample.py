"""Resampling of frames and intrinsics to the training size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth.data import units
from jaxdepth.data.sources import Frame
from jaxdepth.data.store import resample
from jaxdepth.ops import resize


def frame(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    rgb = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    depth = draw.integers(1, 10000, (height, width)).astype(np.uint16)
    return rgb, np.where(draw.random((height, width)) < 0.4, 0, depth).astype(np.uint16)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
def test_integer_factors_give_the_mean_of_blocks(seed, factor, rows, columns):
    rgb, depth = frame(seed, rows * factor, columns * factor)
    small_rgb = resample.to_size(rgb, (rows, columns))
    small_depth = resample.to_size(depth, (rows, columns))
    assert small_rgb.dtype == np.uint8 and small_depth.dtype == np.uint16
    for i in range(rows):
        for j in range(columns):
            block = np.s_[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            mean = rgb[block].astype(float).mean((0, 1))
            np.testing.assert_array_equal(small_rgb[i, j], np.floor(mean + 0.5))
            valid = depth[block][depth[block] > 0].astype(float)
            expected = valid.mean() if len(valid) else 0.0
            assert abs(small_depth[i, j] - expected) <= 0.5


def test_large_values_do_not_overflow():
    white = np.full((64, 64, 3), 255, np.uint8)
    assert (resample.to_size(white, (1, 1)) == 255).all()
    far = np.full((64, 64), 65535, np.uint16)
    assert (resample.to_size(far, (1, 1)) == 65535).all()


@pytest.mark.parametrize("shape", [(48, 64), (60, 64), (48, 100), (48, 63)])
def test_cameras_follow_the_pixels(shape):
    # A ramp over the columns: its value at the new principal point is the old cx.
    height, width = shape
    fx, fy, cx, cy = 50.0, 52.0, width / 2 + 1.25, height / 2 - 2.5
    black = np.zeros((height, width, 3), np.uint8)
    camera = resample.camera_at(
        Frame(black, filled=None, intrinsics=(fx, fy, cx, cy)), (12, 16)
    )
    assert camera is not None
    ramp = np.tile(np.arange(width, dtype=np.uint16) * 100 + 1000, (height, 1))
    small = (resample.to_size(ramp, (12, 16))[6].astype(float) - 1000) / 100
    at = np.interp(camera[2], np.arange(16), small)
    assert at == pytest.approx(cx, abs=0.02)
    step = np.diff(small).mean()  # source pixels per pixel of the small frame
    assert camera[0] == pytest.approx(fx / step, rel=1e-3)
    back = resample.frame_camera(camera, (12, 16), shape)
    assert back == pytest.approx((fx, fy, cx, cy))


def test_invalid_depth_becomes_zero():
    metres = np.array([[np.nan, np.inf, -1, 0], [0.0024, 0.0026, 65.535, 65.536]])
    codes = resample.to_codes(metres)
    np.testing.assert_array_equal(codes, [[0, 0, 0, 0], [2, 3, 65535, 0]])
    metres[1, 2:] = 255.996, 256
    codes = resample.to_codes(metres, 256)
    np.testing.assert_array_equal(codes, [[0, 0, 0, 0], [1, 1, 65535, 0]])


@pytest.mark.parametrize("unit", [1000, 256])
def test_valid_depth_below_half_a_code_is_not_missing(unit):
    near = np.array([[1e-9, 0.4 / unit, 0.5 / unit, 1 / unit]], np.float32)
    np.testing.assert_array_equal(resample.to_codes(near, unit), [[1, 1, 1, 1]])


@given(st.integers(0, 999), st.sampled_from([np.float16, np.float32, np.float64]))
def test_millimetre_codes_are_those_of_earlier_versions(seed, dtype):
    # A copy of the earlier formula; it lost depth up to half a millimetre.
    draw = np.random.default_rng(seed)
    depth = draw.uniform(0.0006, 70, (20, 30)).astype(dtype)
    depth[draw.random(depth.shape) < 0.2] = 0
    depth[0, :5] = np.nan, np.inf, -1, 65.535, 10
    scaled = np.round(np.asarray(depth, np.float64) * 1000)
    valid = np.isfinite(scaled) & (scaled > 0) & (scaled <= 65535)
    earlier = np.where(valid, scaled, 0).astype(np.uint16)
    assert resample.to_codes(depth).tobytes() == earlier.tobytes()
    for max_depth in (10.0, 2.3, 0.3, 65.535, 5.001):
        limit = units.last_code(max_depth, 1000)
        assert limit == round(max_depth * 1000)
        kept = resample.within(earlier, limit)
        assert kept.tobytes() == np.where(earlier <= limit, earlier, 0).tobytes()


@pytest.mark.parametrize(
    ("max_depth", "unit", "last"),
    [
        (10.0, 1000, 10_000), (65.535, 1000, 65_535), (65.536, 256, 16_777),
        (80.0, 256, 20_480), (100.1, 256, 25_625), (255.99, 256, 65_533),
    ],
)  # fmt: skip
def test_the_unit_follows_max_depth_and_no_code_is_beyond_it(max_depth, unit, last):
    assert units.depth_unit(max_depth) == unit
    assert units.last_code(max_depth, unit) == last
    assert last / unit <= max_depth < (last + 1) / unit


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (9, 12)])
def test_depth_beyond_the_limit_is_not_averaged(size):
    rng = np.random.default_rng(0)
    depth = rng.integers(1000, 3000, (12, 16)).astype(np.uint16)
    depth[rng.random(depth.shape) < 0.3] = 40_000
    depth[0, 0] = 10_000
    small = resample.to_size(resample.within(depth, 10_000), size)
    assert small.dtype == np.uint16 and small.max() <= 10_000
    for i in range(size[0]):  # overlap-weighted mean over the valid pixels of a cell
        for j in range(size[1]):
            total = area = 0.0
            for y, x in np.argwhere(depth <= 10_000):
                rows = min((i + 1) * 12 / size[0], y + 1) - max(i * 12 / size[0], y)
                columns = min((j + 1) * 16 / size[1], x + 1) - max(j * 16 / size[1], x)
                overlap = max(rows, 0) * max(columns, 0)
                total, area = total + overlap * float(depth[y, x]), area + overlap
            expected = total / area if area > 1e-9 else 0
            assert abs(small[i, j] - expected) <= 0.51


@pytest.mark.parametrize("factor", [2, 3])
def test_integer_factors_equal_the_general_resize(factor):
    # The general resize multiplies by matrices; depth has holes.
    rng = np.random.default_rng(0)
    shape = (6 * factor, 8 * factor)
    metres = rng.integers(0, 9000, shape) * (rng.random(shape) < 0.5)
    depth = metres.astype(np.uint16)
    rgb = rng.integers(0, 256, (*shape, 3), np.uint8)
    mean, valid = resize.masked_area(depth[None].astype(float), depth[None] > 0, (6, 8))
    small = resample.to_size(depth, (6, 8))
    np.testing.assert_array_equal(small > 0, valid[0])
    assert np.abs(small - mean[0]).max() <= 0.5 + 1e-6
    colours = resize.resize_area(rgb[None].astype(float), (6, 8))[0]
    assert np.abs(resample.to_size(rgb, (6, 8)) - colours).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(("old", "new"), [(20, 24), (12, 24), (7, 24), (23, 24)])
def test_enlarged_depth_is_centred(old, new):
    ramp = np.arange(1, old + 1, dtype=np.uint16)
    grown = resample.to_size(np.tile(ramp, (old, 1)), (new, new))[0]
    np.testing.assert_array_equal(grown, (old + 1) - grown[::-1])  # symmetric
    centres = (np.arange(new) + 0.5) * old / new + 0.5
    assert np.abs(grown - centres).max() <= 0.5


@given(
    st.integers(0, 999),
    st.sampled_from([256.0, 1000.0, 5000.0, 10000.0]),
    st.sampled_from([1000, 256]),
)
def test_extremes_are_compared_as_integers_of_the_source(seed, unit, depth_unit):
    draw = np.random.default_rng(seed)
    # Few consecutive integers, so that several of them round to one millimetre.
    first = int(unit)
    stored = draw.integers(first, first + 8, (5, 6))
    stored[draw.random((5, 6)) < 0.2] = 0
    stored[0, 0] = 20 * first  # beyond last_code
    near = stored[(stored > 0) & (stored < 11 * first)]
    depth = (stored / unit).astype(np.float32)
    masked = resample.without_extremes(
        depth, unit=unit, last_code=10 * depth_unit, depth_unit=depth_unit
    )
    extreme = (stored == near.min()) | (stored == near.max())
    expected = np.where(extreme, 0, resample.to_codes(depth, depth_unit))
    if (expected[1:] == 0).all() and (expected[0, 1:] == 0).all():
        assert masked is None
    else:
        np.testing.assert_array_equal(masked, expected)


@pytest.mark.parametrize(
    ("frame", "size", "words"),
    [
        ((375, 1242), (240, 320), ["60% is cut off", "--size=240x795 of prepare-data"]),
        ((640, 480), (240, 320), ["44% is cut off", "--size=427x320 of prepare-data"]),
        ((540, 960), (240, 320), ["25% is cut off", "--size=228x405 of run"]),
        ((480, 640), (240, 320), []),
        ((425, 560), (240, 320), []),
    ],
)
def test_what_is_cut_off_is_noted_with_the_size_that_keeps_it(frame, size, words):
    notes = resample.crop_notes([(480, 640), frame], size)
    assert len(notes) == bool(words)
    assert all(word in notes[0] for word in words)
