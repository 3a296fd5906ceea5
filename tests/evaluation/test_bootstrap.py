"""The bootstrap against a loop that recomputes the metrics of every resample."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.evaluation import bootstrap
from jaxdepth.evaluation.metrics import AVERAGINGS, METRICS, Sums, row_sums

SCENES = ["b", "a", "b", "c", "a", "c", "c"]
EMPTY = 3  # index of an image without ground truth


def sums(seed, *, noise=0.3, negative=None):
    rng = np.random.default_rng(0)
    target = rng.uniform(1, 6, (len(SCENES), 3, 8)).astype(np.float32)
    valid = rng.random(target.shape) < 0.7
    valid[EMPTY] = False
    hard = np.linspace(1, 2, len(SCENES))[:, None, None]
    error = np.random.default_rng(seed).normal(0.05, noise * hard, target.shape)
    pred = (target * np.exp(error)).astype(np.float32)
    if negative is not None:
        pred[negative] = -1
        valid[negative] = True
    image_sums = Sums()
    image_sums.update(
        row_sums(*map(jnp.asarray, (pred, target)), valid=jnp.asarray(valid))
    )
    return image_sums


def literal(image_sums, averaging, units, seed, count):
    """Metrics of every resample, computed from the images of the drawn units."""
    names = sorted({u for k, u in enumerate(units) if k != EMPTY})
    drawn = np.random.default_rng(seed).integers(0, len(names), (count, len(names)))
    rows = []
    for draw in drawn:
        images = [
            image
            for k in draw
            for image, unit in enumerate(units)
            if unit == names[k] and image != EMPTY
        ]
        rows.append(image_sums.select(images).compute(averaging))
    return {k: np.array([row[k] for row in rows], float) for k in METRICS}


@pytest.mark.parametrize("averaging", AVERAGINGS)
@pytest.mark.parametrize("unit", ["image", "scene"])
def test_intervals_of_one_run_equal_the_loop(averaging, unit):
    image_sums = sums(1)
    if unit == "image":
        how = bootstrap.over_images(image_sums, count=200, seed=5)
        units = list(range(len(SCENES)))
    else:
        how = bootstrap.over_scenes(image_sums, SCENES, count=200, seed=5)
        units = SCENES
    assert how is not None
    expected = literal(image_sums, averaging, units, 5, 200)
    got = bootstrap.of_one(image_sums, averaging, how)
    assert (got["unit"], got["units"], got["resamples"], got["seed"]) == (
        unit, len(set(units) - ({EMPTY} if unit == "image" else set())), 200, 5
    )  # fmt: skip
    for name in METRICS:
        low, high = np.percentile(expected[name], (2.5, 97.5))
        np.testing.assert_allclose(got["metrics"][name], (low, high), rtol=1e-9)
        assert low < image_sums.compute(averaging)[name] < high


@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_intervals_of_a_pair_equal_the_loop(averaging):
    a, b = sums(1, noise=0.2), sums(2)
    how = bootstrap.over_images(a, count=300, seed=1)
    units = list(range(len(SCENES)))
    left = literal(a, averaging, units, 1, 300)
    right = literal(b, averaging, units, 1, 300)
    got = bootstrap.of_pair(a, b, averaging, how)["metrics"]
    for name in METRICS:
        difference = left[name] - right[name]
        sign = -1 if name.startswith("delta") else 1
        share = np.mean(sign * difference < 0) + np.mean(difference == 0) / 2
        assert got[name]["a_better"] == pytest.approx(share)
        np.testing.assert_allclose(
            got[name]["interval"], np.percentile(difference, (2.5, 97.5)), atol=1e-9
        )
        one: Any = a.compute(averaging)[name]
        two: Any = b.compute(averaging)[name]
        assert (got[name]["a"], got[name]["b"]) == (one, two)
        assert got[name]["difference"] == one - two
    assert got["rmse"]["a_better"] > 0.9 > 0.1 > 1 - got["delta1"]["a_better"]


def test_equal_runs_tie():
    same = sums(3)
    how = bootstrap.over_images(same, count=50)
    for got in bootstrap.of_pair(same, same, "pooled", how)["metrics"].values():
        assert got["a_better"] == 0.5 and got["interval"] == [0, 0]


@pytest.mark.parametrize("averaging", AVERAGINGS)
def test_undefined_metrics_have_no_interval(averaging):
    a, b = sums(1, negative=0), sums(2)
    how = bootstrap.over_images(a, count=100)
    one = bootstrap.of_one(a, averaging, how)["metrics"]
    assert one["silog"] is None and one["rmse_log"] is None
    assert one["rmse"] is not None and one["delta1"] is not None
    pair = bootstrap.of_pair(b, a, averaging, how)["metrics"]
    assert pair["silog"]["difference"] is None and pair["silog"]["a"] is not None
    assert pair["rmse"]["a_better"] > 0.5


def test_scenes_must_be_known_and_at_least_two():
    image_sums = sums(1)
    assert bootstrap.over_scenes(image_sums, [None, *SCENES[1:]]) is None
    assert bootstrap.over_scenes(image_sums, ["one"] * len(SCENES)) is None
    # The scene of an image without ground truth may be unknown.
    scenes = [None if k == EMPTY else s for k, s in enumerate(SCENES)]
    how = bootstrap.over_scenes(image_sums, scenes)
    assert how is not None and how.units == 3


@pytest.mark.parametrize("averaging", AVERAGINGS)
@pytest.mark.parametrize("chunk", [1, 20])
def test_intervals_do_not_depend_on_the_chunk_size(averaging, chunk, monkeypatch):
    a, b = sums(1), sums(2)
    how = bootstrap.over_images(a, count=30, seed=3)
    want = bootstrap.of_pair(a, b, averaging, how)["metrics"]
    monkeypatch.setattr(bootstrap, "CHUNK", chunk)
    got = bootstrap.of_pair(a, b, averaging, how)["metrics"]
    for name in METRICS:  # equal up to the order of rounding
        np.testing.assert_allclose(got[name]["interval"], want[name]["interval"])
        assert got[name]["a_better"] == want[name]["a_better"]


def test_a_single_image_has_no_interval():
    one = sums(1).select([0])
    how = bootstrap.over_images(one, count=10)
    assert set(bootstrap.of_one(one, "pooled", how)["metrics"].values()) == {None}
    pair = bootstrap.of_pair(one, one, "pooled", how)["metrics"]["rmse"]
    assert pair["a"] is not None and pair["a_better"] is None
