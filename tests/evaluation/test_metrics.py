"""Metrics against float64 NumPy, merging of sums, and registered metrics."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth.evaluation import metrics
from jaxdepth.evaluation.metrics import AVERAGINGS, METRICS, Sums, part_sums, row_sums

SHAPE = (4, 6, 9)


def reference(pred, target, rel="truth"):
    """The metrics of flat arrays, in float64."""
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


def assert_metrics(actual, expected, rtol=1e-5):
    assert tuple(actual) == tuple(METRICS)
    for name in METRICS:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=rtol, err_msg=name
        )


@given(seed=st.integers(0, 2**32 - 1), rel=st.sampled_from(["truth", "pred"]))
def test_both_averagings_equal_numpy(seed, rel):
    pred, target, valid = random_batch(seed)
    valid[1] = False
    valid[:, 2, :3] = True  # at least three pixels, except in image 1
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
def test_merging_is_exact_for_any_batches_and_order(seed, cuts):
    pred, target, valid = random_batch(seed, (12, 3, 5))
    # The row sums are computed once; merging happens on the host.
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


def test_merge_does_not_change_its_argument():
    first, second = sums_of(*random_batch(0)), sums_of(*random_batch(1))
    before = second.per_image()
    first.merge(second)
    first.merge(sums_of(*random_batch(2)))
    assert len(first) == 12
    assert second.per_image() == before


def test_float32_row_sums_are_accurate_over_many_pixels():
    # 4.9e6 pixels: one float32 accumulator would be off by about 1e-3.
    rng = np.random.default_rng(0)
    target = rng.uniform(0.7, 10, (16, 480, 640)).astype(np.float32)
    pred = target + rng.normal(0.5, 0.3, target.shape).astype(np.float32).clip(-0.6)
    valid = np.ones(target.shape, bool)
    actual = compute(sums_of(pred, target, valid), "pooled")
    assert_metrics(actual, reference(pred, target), rtol=1e-5)


def test_silog_is_accurate_with_a_large_common_factor():
    rng = np.random.default_rng(0)
    target = rng.uniform(0.7, 10, (2, 20, 30)).astype(np.float32)
    spread = np.exp(rng.normal(0, 1e-3, target.shape))
    pred = (1000 * target * spread).astype(np.float32)
    actual = compute(sums_of(pred, target, np.ones(target.shape, bool)), "pooled")
    np.testing.assert_allclose(actual["silog"], 0.1, rtol=0.05)
    expected = reference(pred, target)["silog"]
    np.testing.assert_allclose(actual["silog"], expected, rtol=1e-3)


def test_a_perfect_prediction():
    _, target, valid = random_batch(0)
    actual = compute(sums_of(target, target, valid), "pooled")
    assert [actual[f"delta{k}"] for k in (1, 2, 3)] == [1, 1, 1]
    assert all(actual[k] == 0 for k in METRICS if not k.startswith("delta"))


def test_delta_is_strict():
    # 1.25 and its square are exact in float32.
    target = jnp.full((1, 1, 4), 4.0)
    pred = jnp.array([[[5.0, 3.2, 6.25, 4.9]]])
    actual = sums_of(pred, target, jnp.ones((1, 1, 4), bool)).compute("pooled")
    assert actual["delta1"] == 0.25
    assert actual["delta2"] == 0.75


def test_pooled_rmse_is_above_the_per_image_rmse():
    pred, target, _ = random_batch(9)
    sums = sums_of(pred, target, np.ones(SHAPE, bool))
    assert compute(sums, "pooled")["rmse"] > compute(sums, "per_image")["rmse"]


@pytest.mark.parametrize("bad", [0.0, -0.0, -2.0, 1e-40])
def test_nonpositive_predictions(bad):
    pred, target, _ = random_batch(1)
    valid = np.ones(SHAPE, bool)
    valid[0, 0, 2] = False
    pred[0, 0, :3] = bad  # two valid pixels and an invalid one
    sums = sums_of(pred, target, valid)
    for averaging in AVERAGINGS:
        actual = compute(sums, averaging)
        none = [k for k in METRICS if actual[k] is None]
        assert none == ["rmse_log", "log10", "silog"]
    assert sums.counts["nonpositive"] == 2
    assert sums.counts["nonfinite"] == 0
    p, t = pred[valid].astype(np.float64), target[valid].astype(np.float64)
    actual = compute(sums, "pooled")
    np.testing.assert_allclose(actual["abs_rel"], np.mean(abs(p - t) / t), rtol=1e-5)
    np.testing.assert_allclose(
        actual["rmse"], np.sqrt(np.mean((p - t) ** 2)), rtol=1e-5
    )
    ratio = np.maximum(p / t, t / np.where(p > 1e-38, p, 1e-300))
    np.testing.assert_allclose(actual["delta3"], np.mean(ratio < 1.25**3), rtol=1e-6)
    # The logarithmic metrics of other images stay defined.
    table = sums.per_image()
    assert table[0]["log10"] is None
    assert table[0]["nonpositive"] == 2
    assert table[1]["log10"] == pytest.approx(reference(pred[1], target[1])["log10"])
    # As a denominator it makes abs_rel undefined as well.
    assert (
        compute(sums_of(pred, target, valid, rel="pred"), "pooled")["abs_rel"] is None
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_nonfinite_predictions(bad):
    pred, target, _ = random_batch(1)
    valid = np.ones(SHAPE, bool)
    valid[2, 1, 1] = False
    pred[2, 1, :2] = bad
    sums = sums_of(pred, target, valid)
    for averaging in AVERAGINGS:
        actual = compute(sums, averaging)
        assert [k for k in METRICS if actual[k] is None] == list(METRICS)[3:]
    assert sums.counts["nonfinite"] == 1
    assert sums.counts["nonpositive"] == 0
    good = pred.copy()
    good[2, 1, :2] = 1e9  # wrong in every delta
    expected = reference(good[valid], target[valid])
    assert compute(sums, "pooled")["delta3"] == pytest.approx(expected["delta3"])


def test_padding_entries_are_not_counted():
    pred, target, valid = random_batch(4)
    valid[2:] = False
    sums = sums_of(pred, target, valid, counted=[True, True, False, True])
    alone = sums_of(pred[:2], target[:2], valid[:2])
    assert len(sums) == 3
    assert sums.images == 2
    assert sums.counts["images_without_truth"] == 1
    for averaging in AVERAGINGS:
        assert compute(sums, averaging) == pytest.approx(compute(alone, averaging))


def test_no_image_or_no_valid_pixel():
    for sums in (Sums(), sums_of(*random_batch(0)[:2], np.zeros(SHAPE, bool))):
        for averaging in AVERAGINGS:
            assert compute(sums, averaging) == dict.fromkeys(METRICS)
        assert sums.images == 0
        assert sums.counts["pixels"] == 0
    assert Sums().per_image() == []


def test_further_sums_appear_in_the_counts():
    rows = dict(_row_sums(*random_batch(0)[:2], valid=np.ones(SHAPE, bool)))
    sums = Sums()
    sums.update(rows | {"odd": np.ones((4, 2))})
    assert sums.counts["odd"] == 8


@given(seed=st.integers(0, 2**32 - 1))
def test_invalid_pixels_do_not_matter(seed):
    pred, target, valid = random_batch(seed)
    garbage = np.array([np.nan, np.inf, 0, -1, 1e30], np.float32)
    rng = np.random.default_rng(seed)
    other = sums_of(
        np.where(valid, pred, rng.choice(garbage, SHAPE)),
        np.where(valid, target, rng.choice(garbage, SHAPE)),
        valid,
    )
    assert other.per_image() == sums_of(pred, target, valid).per_image()


def test_part_sums_equal_row_sums_of_the_mask():
    pred, target, valid = random_batch(3)
    pred[0, 0, :2], pred[1, 2, 3] = -1, np.nan
    rng = np.random.default_rng(4)
    masks = {name: rng.random(SHAPE) < 0.5 for name in ("a", "b")}
    actual = jax.jit(part_sums)(pred, target, valid=valid, parts=masks)
    for name, mask in masks.items():
        expected = _row_sums(pred, target, valid=valid & mask)
        assert actual[name].keys() == expected.keys()
        for key, x in expected.items():
            np.testing.assert_allclose(
                actual[name][key], x, rtol=1e-5, atol=1e-5, err_msg=key
            )


def test_compute_equals_numpy():
    pred, target, valid = random_batch(5)
    actual = metrics.compute(pred, target, valid)
    assert_metrics(actual, reference(pred[valid], target[valid]), rtol=1e-5)
    each = [reference(p[v], t[v]) for p, t, v in zip(pred, target, valid, strict=True)]
    mean = {k: np.mean([r[k] for r in each]) for k in METRICS}
    actual = metrics.compute(pred, target, valid, averaging="per_image")
    assert_metrics(actual, mean, rtol=1e-5)


@pytest.mark.parametrize("missing", [0.0, -1.0, np.nan, np.inf])
def test_compute_ignores_pixels_without_ground_truth(missing):
    pred, target, valid = random_batch(6)
    expected = reference(pred[0][valid[0]], target[0][valid[0]])
    target[~valid] = missing
    # One image; float64 as NumPy has it by default; with and without a mask.
    for mask in (None, np.ones(valid[0].shape, bool)):
        actual = metrics.compute(pred[0].astype(float), target[0].astype(float), mask)
        assert_metrics(actual, expected, rtol=1e-5)


def test_compute_without_a_valid_pixel_and_with_wrong_shapes():
    pred, target, valid = random_batch(7)
    actual = metrics.compute(pred, target, np.zeros_like(valid))
    assert actual == dict.fromkeys(METRICS)
    # The tests check the annotated shapes, so that some are a TypeError already.
    for wrong in ((pred, target[:1]), (pred[0], target[0], valid)):
        with pytest.raises((TypeError, ValueError)):
            metrics.compute(*wrong)


@pytest.fixture
def registered():
    """Two metrics of a user, one of them with logarithms."""
    metrics.register_metric("mae", lambda pred, target: abs(pred - target), unit="m")
    metrics.register_metric(
        "log_bias",
        lambda pred, target: jnp.log(pred / target),
        finish=np.exp,
        larger_is_better=True,
        undefined="nonpositive",
    )
    yield
    for name in ("mae", "log_bias"):
        METRICS.unregister(name)


def test_registered_metrics_equal_numpy(registered):
    pred, target, valid = random_batch(8)
    sums = Sums()
    sums.update(row_sums(*map(jnp.asarray, (pred, target)), valid=jnp.asarray(valid)))
    p, t = pred[valid].astype(np.float64), target[valid].astype(np.float64)
    actual = compute(sums, "pooled")
    np.testing.assert_allclose(actual["mae"], np.mean(abs(p - t)), rtol=1e-5)
    bias = np.exp(np.mean(np.log(p / t)))
    np.testing.assert_allclose(actual["log_bias"], bias, rtol=1e-5)
    assert tuple(sums.counts) == (
        "pixels", "nonpositive", "nonfinite", "images_without_truth"
    )  # fmt: skip
    assert metrics.larger_is_better() == ("delta1", "delta2", "delta3", "log_bias")


def test_registered_metrics_are_undefined_like_built_in_ones(registered):
    pred, target, _ = random_batch(8)
    pred[0, 0, 0] = -1
    actual: dict[str, Any] = metrics.compute(pred, target)
    assert actual["log_bias"] is None
    mae = np.mean(abs(pred.astype(np.float64) - target))
    np.testing.assert_allclose(actual["mae"], mae, rtol=1e-5)
    pred[0, 0, 0] = np.nan
    assert metrics.compute(pred, target)["mae"] is None
