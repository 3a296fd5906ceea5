"""Shrinking frames to the training size, and the camera that goes with it."""

import errno
import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth.data import store
from jaxdepth.data.sources import Frame


def frame(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    rgb = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    depth = draw.integers(1, 10000, (height, width)).astype(np.uint16)
    return rgb, np.where(draw.random((height, width)) < 0.4, 0, depth).astype(np.uint16)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
def test_whole_factors_give_the_mean_of_blocks(seed, factor, rows, columns):
    rgb, depth = frame(seed, rows * factor, columns * factor)
    small_rgb = store._to_size(rgb, (rows, columns))
    small_depth = store._to_size(depth, (rows, columns))
    assert small_rgb.dtype == np.uint8 and small_depth.dtype == np.uint16
    for i in range(rows):
        for j in range(columns):
            block = np.s_[i * factor : (i + 1) * factor, j * factor : (j + 1) * factor]
            mean = rgb[block].astype(float).mean((0, 1))
            np.testing.assert_array_equal(small_rgb[i, j], np.floor(mean + 0.5))
            there = depth[block][depth[block] > 0].astype(float)
            expected = there.mean() if len(there) else 0.0
            assert abs(small_depth[i, j] - expected) <= 0.5


def test_large_values_do_not_overflow():
    white = np.full((64, 64, 3), 255, np.uint8)
    assert (store._to_size(white, (1, 1)) == 255).all()
    far = np.full((64, 64), 65535, np.uint16)
    assert (store._to_size(far, (1, 1)) == 65535).all()


@pytest.mark.parametrize("shape", [(48, 64), (60, 64), (48, 100), (48, 63)])
def test_intrinsics_follow_the_pixels(shape):
    # A ramp of columns: the value at the new principal point is the old one.
    height, width = shape
    fx, fy, cx, cy = 50.0, 52.0, width / 2 + 1.25, height / 2 - 2.5
    black = np.zeros((height, width, 3), np.uint8)
    found = store._intrinsics(
        Frame(black, filled=None, intrinsics=(fx, fy, cx, cy)), (12, 16)
    )
    assert found is not None
    ramp = np.tile(np.arange(width, dtype=np.uint16) * 100 + 1000, (height, 1))
    small = (store._to_size(ramp, (12, 16))[6].astype(float) - 1000) / 100
    at = np.interp(found[2], np.arange(16), small)
    assert at == pytest.approx(cx, abs=0.02)
    step = np.diff(small).mean()  # source pixels in one of the small frame
    assert found[0] == pytest.approx(fx / step, rel=1e-3)


def test_real_disk_limits_are_named(tmp_path):
    # In a process of its own: the limit holds for all files that it writes.
    code = f"""
import resource
import numpy as np
from pathlib import Path
from jaxdepth.data import store
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))
try:
    store._save_npy(Path({str(tmp_path / "x.npy")!r}), np.zeros(9999, np.uint16))
except OSError as error:
    print(error.errno)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) == errno.EFBIG


def test_what_is_saved_is_npy(tmp_path):
    array = np.arange(24, dtype=np.uint16).reshape(2, 3, 4).transpose(0, 2, 1)
    told = store._save_npy(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    np.save(tmp_path / "b.npy", array)
    both = [(tmp_path / name).read_bytes() for name in ("a.npy", "b.npy")]
    assert both[0] == both[1] and told["bytes"] == len(both[0])
    assert json.dumps(told)
