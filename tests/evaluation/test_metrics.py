"""Metrics against float64 NumPy, and how their sums merge."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth.evaluation.metrics import AVERAGINGS, METRICS, Sums, part_sums, row_sums

SHAPE = (4, 6, 9)


def reference(pred, target, rel="truth"):
    """The nine metrics of flat arrays, in float64."""
    p, t = np.asarray(pred, np.float64), np.asarray(target, np.float64)
    ratio, e = np.maximum(p / t, t / p), np.log(p) - np.log(t)
    return {
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
        "abs_rel": np.mean(abs(p - t) / (t if rel == "truth" else p)),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": np.sqrt(np.mean(e**2)),
        "log10": np.mean(abs(np.log10(p) - np.log10(t))),
        "silog": 100 * np.std(e),
    }


def random_batch(seed, shape=SHAPE):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.5, 10, shape).astype(np.float32)
    pred = (target * rng.uniform(0.4, 2.5, shape)).astype(np.float32)
    return pred, target, rng.random(shape) < rng.uniform(0.1, 1)


_row_sums = jax.jit(row_sums, static_argnames="rel")


def sums_of(pred, target, valid, rel="truth", counted=None):
    sums = Sums()
    sums.update(_row_sums(pred, target, valid=valid, rel=rel), counted=counted)
    return sums


def compute(sums, averaging) -> dict[str, Any]:
    return sums.compute(averaging)


def assert_metrics(found, expected, rtol=1e-5):
    assert tuple(found) == tuple(METRICS)
    for name in METRICS:
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, err_msg=name)


@given(seed=st.integers(0, 2**32 - 1), rel=st.sampled_from(["truth", "pred"]))
def test_both_averagings(seed, rel):
    pred, target, valid = random_batch(seed)
    valid[1] = False
    valid[:, 2, :3] = True  # three pixels at least, but in image 1
    valid[1] = False
    target[~valid] = np.nan
    sums = sums_of(pred, target, valid, rel)
    pooled = reference(pred[valid], target[valid], rel)
    assert_metrics(compute(sums, "pooled"), pooled, rtol=1e-4)
    each = [reference(pred[b][valid[b]], target[b][valid[b]], rel) for b in (0, 2, 3)]
    mean = {k: np.mean([r[k] for r in each]) for k in METRICS}
    assert_metrics(compute(sums, "per_image"), mean, rtol=1e-4)
    rows = sums.per_image()
    for row, expected in zip([rows[0], rows[2], rows[3]], each, strict=True):
        assert_metrics({k: row[k] for k in METRICS}, expected, rtol=1e-4)
    assert all(rows[1][k] is None for k in METRICS)
    assert rows[1]["pixels"] == 0
    assert sums.images == 3
    assert len(sums) == 4
    assert sums.counts == {
        "pixels": valid.sum(),
        "nonpositive": 0,
        "nonfinite": 0,
        "images_without_truth": 1,
    }


@given(seed=st.integers(0, 2**32 - 1), cuts=st.sets(st.integers(1, 11)))
def test_merging_is_exact_in_any_batching_and_order(seed, cuts):
    pred, target, valid = random_batch(seed, (12, 3, 5))
    # The device's part, once: what is tested is the host's.
    rows = {k: np.asarray(x) for k, x in _row_sums(pred, target, valid=valid).items()}
    whole = Sums()
    whole.update(rows)
    edges = [0, *sorted(cuts), 12]
    merged = Sums()
    for begin, end in itertools.pairwise(edges):
        part = Sums()
        part.update({k: x[begin:end] for k, x in rows.items()})
        merged.merge(part)
    order = np.random.default_rng(seed).permutation(12)
    for other in (merged, whole.select(order)):
        for averaging in AVERAGINGS:
            assert compute(other, averaging) == compute(whole, averaging)
        assert other.counts == whole.counts
    assert merged.per_image() == whole.per_image()
    assert whole.select(order).per_image()[0] == whole.per_image()[order[0]]


def test_merge_leaves_the_other_as_it_was():
    first, second = sums_of(*random_batch(0)), sums_of(*random_batch(1))
    before = second.per_image()
    first.merge(second)
    first.merge(sums_of(*random_batch(2)))
    assert len(first) == 12
    assert second.per_image() == before


def test_float32_rows_lose_nothing_over_many_pixels():
    # 4.9e6 pixels: one float32 accumulator would be off by about 1e-3.
    rng = np.random.default_rng(0)
    target = rng.uniform(0.7, 10, (16, 480, 640)).astype(np.float32)
    pred = target + rng.normal(0.5, 0.3, target.shape).astype(np.float32).clip(-0.6)
    valid = np.ones(target.shape, bool)
    found = compute(sums_of(pred, target, valid), "pooled")
    assert_metrics(found, reference(pred, target), rtol=2e-6)


def test_silog_survives_a_large_common_factor():
    rng = np.random.default_rng(0)
    target = rng.uniform(0.7, 10, (2, 20, 30)).astype(np.float32)
    spread = np.exp(rng.normal(0, 1e-3, target.shape))
    pred = (1000 * target * spread).astype(np.float32)
    found = compute(sums_of(pred, target, np.ones(target.shape, bool)), "pooled")
    np.testing.assert_allclose(found["silog"], 0.1, rtol=0.05)
    expected = reference(pred, target)["silog"]
    np.testing.assert_allclose(found["silog"], expected, rtol=1e-3)


def test_a_perfect_prediction():
    _, target, valid = random_batch(0)
    found = compute(sums_of(target, target, valid), "pooled")
    assert [found[f"delta{k}"] for k in (1, 2, 3)] == [1, 1, 1]
    assert all(found[k] == 0 for k in METRICS if not k.startswith("delta"))


def test_delta_is_strict():
    # 1.25 and its square are exact in float32.
    target = jnp.full((1, 1, 4), 4.0)
    pred = jnp.array([[[5.0, 3.2, 6.25, 4.9]]])
    found = sums_of(pred, target, jnp.ones((1, 1, 4), bool)).compute("pooled")
    assert found["delta1"] == 0.25
    assert found["delta2"] == 0.75


def test_rmse_pooled_is_not_below_the_mean_over_images():
    pred, target, _ = random_batch(9)
    sums = sums_of(pred, target, np.ones(SHAPE, bool))
    assert compute(sums, "pooled")["rmse"] > compute(sums, "per_image")["rmse"]


@pytest.mark.parametrize("bad", [0.0, -0.0, -2.0, 1e-40])
def test_predictions_that_are_not_positive(bad):
    pred, target, _ = random_batch(1)
    valid = np.ones(SHAPE, bool)
    valid[0, 0, 2] = False
    pred[0, 0, :3] = bad  # two that count, one that does not
    sums = sums_of(pred, target, valid)
    for averaging in AVERAGINGS:
        found = compute(sums, averaging)
        none = [k for k in METRICS if found[k] is None]
        assert none == ["rmse_log", "log10", "silog"]
    assert sums.counts["nonpositive"] == 2
    assert sums.counts["nonfinite"] == 0
    p, t = pred[valid].astype(np.float64), target[valid].astype(np.float64)
    found = compute(sums, "pooled")
    np.testing.assert_allclose(found["abs_rel"], np.mean(abs(p - t) / t), rtol=1e-5)
    np.testing.assert_allclose(found["rmse"], np.sqrt(np.mean((p - t) ** 2)), rtol=1e-5)
    ratio = np.maximum(p / t, t / np.where(p > 1e-38, p, 1e-300))
    np.testing.assert_allclose(found["delta3"], np.mean(ratio < 1.25**3), rtol=1e-6)
    # The other images' logarithms stay in the table.
    table = sums.per_image()
    assert table[0]["log10"] is None
    assert table[0]["nonpositive"] == 2
    assert table[1]["log10"] == pytest.approx(reference(pred[1], target[1])["log10"])
    # As a denominator it spoils abs_rel too.
    assert (
        compute(sums_of(pred, target, valid, rel="pred"), "pooled")["abs_rel"] is None
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_predictions_that_are_not_finite(bad):
    pred, target, _ = random_batch(1)
    valid = np.ones(SHAPE, bool)
    valid[2, 1, 1] = False
    pred[2, 1, :2] = bad
    sums = sums_of(pred, target, valid)
    for averaging in AVERAGINGS:
        found = compute(sums, averaging)
        assert [k for k in METRICS if found[k] is None] == list(METRICS)[3:]
    assert sums.counts["nonfinite"] == 1
    assert sums.counts["nonpositive"] == 0
    good = pred.copy()
    good[2, 1, :2] = 1e9  # wrong in every delta
    expected = reference(good[valid], target[valid])
    assert compute(sums, "pooled")["delta3"] == pytest.approx(expected["delta3"])


def test_places_that_fill_a_batch_are_no_images():
    pred, target, valid = random_batch(4)
    valid[2:] = False
    sums = sums_of(pred, target, valid, counted=[True, True, False, True])
    alone = sums_of(pred[:2], target[:2], valid[:2])
    assert len(sums) == 3
    assert sums.images == 2
    assert sums.counts["images_without_truth"] == 1
    for averaging in AVERAGINGS:
        assert compute(sums, averaging) == pytest.approx(compute(alone, averaging))


def test_nothing_at_all():
    for sums in (Sums(), sums_of(*random_batch(0)[:2], np.zeros(SHAPE, bool))):
        for averaging in AVERAGINGS:
            assert compute(sums, averaging) == dict.fromkeys(METRICS)
        assert sums.images == 0
        assert sums.counts["pixels"] == 0
    assert Sums().per_image() == []


def test_further_sums_are_counted_beside():
    rows = dict(_row_sums(*random_batch(0)[:2], valid=np.ones(SHAPE, bool)))
    sums = Sums()
    sums.update(rows | {"odd": np.ones((4, 2))})
    assert sums.counts["odd"] == 8


@given(seed=st.integers(0, 2**32 - 1))
def test_invalid_pixels_reach_nothing(seed):
    pred, target, valid = random_batch(seed)
    rubbish = np.array([np.nan, np.inf, 0, -1, 1e30], np.float32)
    rng = np.random.default_rng(seed)
    other = sums_of(
        np.where(valid, pred, rng.choice(rubbish, SHAPE)),
        np.where(valid, target, rng.choice(rubbish, SHAPE)),
        valid,
    )
    assert other.per_image() == sums_of(pred, target, valid).per_image()


def test_parts_are_the_sums_of_their_pixels():
    pred, target, valid = random_batch(3)
    pred[0, 0, :2], pred[1, 2, 3] = -1, np.nan
    rng = np.random.default_rng(4)
    masks = {name: rng.random(SHAPE) < 0.5 for name in ("a", "b")}
    found = jax.jit(part_sums)(pred, target, valid=valid, parts=masks)
    for name, mask in masks.items():
        expected = _row_sums(pred, target, valid=valid & mask)
        assert found[name].keys() == expected.keys()
        for key, x in expected.items():
            np.testing.assert_allclose(
                found[name][key], x, rtol=1e-6, atol=1e-6, err_msg=key
            )
