"""Gridding of depth maps with grids of known energy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth.commands.paper import gridding

ROWS, COLUMNS = np.mgrid[:64, :96]


def room(seed: int = 0) -> np.ndarray:
    """Smooth depth with a box in front, metres."""
    rng = np.random.default_rng(seed)
    slope = 2 + rng.uniform(0.5, 2) * COLUMNS / 96 + rng.uniform(0, 1) * ROWS / 64
    box = (abs(ROWS - 40) < 14) & (abs(COLUMNS - 30) < 17)
    return np.where(box, 1.5 + ROWS / 100, slope)


def grid(period: int) -> np.ndarray:
    """1 at every `period`-th pixel of both axes, 0 elsewhere, as after unpooling."""
    return ((ROWS % period == 0) & (COLUMNS % period == 0)).astype(float)


@pytest.mark.parametrize("kind", ["rows", "columns", "both"])
def test_a_wave_has_all_energy_at_its_period(kind):
    wave = {
        "rows": np.cos(np.pi * ROWS),
        "columns": np.cos(np.pi * COLUMNS),
        "both": np.cos(np.pi * (ROWS + COLUMNS)),
    }[kind]
    found = gridding.gridding(3 + 0.1 * wave, 2)
    assert found.share == pytest.approx(1, abs=1e-6)
    assert found.prominence > 1e6
    assert gridding.gridding(3 + 0.1 * wave, 4).share < 1e-6


def test_share_follows_from_the_amplitudes():
    # The energy of a cosine is half its squared amplitude; the full square at period 2.
    depth = 3 + 0.3 * np.cos(np.pi * COLUMNS) + 0.4 * np.cos(np.pi / 2 * ROWS)
    depth += 0.5 * np.cos(2 * np.pi * 5 / 96 * COLUMNS)
    total = 0.09 + 0.16 / 2 + 0.25 / 2
    assert gridding.gridding(depth, 2).share == pytest.approx(0.09 / total, rel=1e-3)
    assert gridding.gridding(depth, 4).share == pytest.approx(0.08 / total, rel=1e-3)


def test_spectrum_equals_the_fourier_sum():
    depth = room()[:8, :12]
    window = np.sin(np.pi * np.arange(8) / 8)[:, None] ** 2 * (
        np.sin(np.pi * np.arange(12) / 12)[None] ** 2
    )
    centred = (depth - (depth * window).sum() / window.sum()) * window
    found = gridding.spectrum(depth)
    for i, j in ((0, 0), (4, 6), (2, 3), (7, 1)):
        total = 0j
        for y in range(8):
            for x in range(12):
                total += centred[y, x] * np.exp(-2j * np.pi * (i * y / 8 + j * x / 12))
        assert found[i, j] == pytest.approx(abs(total) ** 2, abs=1e-9)


@pytest.mark.parametrize("period", [2, 4])
def test_a_grid_is_prominent_at_its_period(period):
    smooth = gridding.gridding(room(), period)
    added = 0.05 * period**2 * grid(period)  # equal mean for both periods
    gridded = gridding.gridding(room() + added, period)
    assert smooth.prominence < 5 < 50 < gridded.prominence
    assert gridded.share > 20 * smooth.share
    twice = gridding.gridding(room() + 2 * added, period)
    assert twice.prominence == pytest.approx(4 * gridded.prominence, rel=0.1)


def test_a_grid_of_period_2_has_no_period_4():
    assert gridding.gridding(room() + 0.2 * grid(2), 4).prominence < 5


def test_noise_has_no_grid():
    found = [
        gridding.gridding(np.random.default_rng(k).normal(3, 1, (64, 96)), period)
        for k in range(20)
        for period in (2, 4)
    ]
    assert np.mean([f.prominence for f in found]) == pytest.approx(1, abs=0.1)


@given(st.floats(0.01, 100), st.floats(-5, 5))
def test_scale_and_offset_of_depth_do_not_matter(factor, offset):
    depth = room() + 0.1 * grid(2)
    a, b = gridding.gridding(depth, 2), gridding.gridding(factor * depth + offset, 2)
    assert b.share == pytest.approx(a.share, rel=1e-6)
    assert b.prominence == pytest.approx(a.prominence, rel=1e-6)


def test_constant_depth_and_odd_sizes():
    assert gridding.gridding(np.full((64, 96), 2.5), 2) == gridding.Gridding(0.0, 1.0)
    odd = np.pad(room(), ((0, 3), (0, 1)), mode="edge")
    assert gridding.gridding(odd, 2) == gridding.gridding(room(), 2)
    with pytest.raises(ValueError, match="too small"):
        gridding.gridding(np.ones((20, 96)), 2)
    with pytest.raises(ValueError, match="period 3"):
        gridding.gridding(room(), 3)
