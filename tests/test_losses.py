"""Losses against float64 NumPy: values, gradients, and what must never reach them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth import losses

SHAPE = (3, 4, 5)


def reference(name, pred, target, valid, si_lambda=0.5, scope="image"):
    """Loss and gradient in float64, written from the formulas, image by image.

    Gradients are the closed forms; c of berHu is a constant in them.
    """
    if name in ("si_grad", "si_berhu", "l1_grad"):
        parts = {"si_grad": "log grad", "si_berhu": "berhu", "l1_grad": "grad"}
        first = reference(name[:2], pred, target, valid, si_lambda)
        more = reference(parts[name], pred, target, valid, scope=scope)
        return first[0] + 0.5 * more[0], first[1] + 0.5 * more[1]
    pred, target = np.asarray(pred, np.float64), np.asarray(target, np.float64)
    used = [b for b in range(len(pred)) if valid[b].any()]
    grad, total = np.zeros(pred.shape), 0.0
    shared = max((abs(pred[b] - target[b])[valid[b]].max() for b in used), default=0)
    for b in used:
        p, t = pred[b][valid[b]], target[b][valid[b]]
        n = len(p)
        if name == "mse":
            value, g = np.mean((p - t) ** 2), 2 * (p - t) / n
        elif name == "si":
            q = np.maximum(p, 1e-3)
            d = np.log(q) - np.log(t)
            value = np.mean(d**2) - si_lambda * np.mean(d) ** 2
            g = (2 * d - 2 * si_lambda * d.mean()) / n / q * (p > 1e-3)
        elif name == "l1":
            value, g = abs(p - t).mean(), np.sign(p - t) / n
        elif name in ("grad", "log grad"):
            log = name == "log grad"
            value, g = gradient_of_one(pred[b], target[b], valid[b], log)
            g = g[valid[b]]
        elif name == "hu":
            value, g = hu_of_one(pred[b], target[b], valid[b])
            g = g[valid[b]]
        else:
            assert name == "berhu"
            e = abs(p - t)
            c = 0.2 * (shared if scope == "batch" else e.max())
            small = (e <= c) | (c == 0)
            c = c or 1.0
            value = np.where(small, e, (e**2 + c**2) / (2 * c)).mean()
            g = np.where(small, np.sign(p - t), (p - t) / c) / n
        total += value
        grad[b][valid[b]] = g
    count = max(len(used), 1)
    return total / count, grad / count


def gradient_of_one(pred, target, valid, log):
    """Gradient matching of one image, neighbour by neighbour, in metres or log."""
    height, width = pred.shape
    value, grad = 0.0, np.zeros(pred.shape)

    def d(i, j):
        if not log:
            return pred[i, j] - target[i, j]
        return np.log(max(pred[i, j], 1e-3)) - np.log(target[i, j])

    for apart in (1, 2, 4, 8):
        n = max(valid[::apart, ::apart].sum(), 1)
        for i in range(0, height, apart):
            for j in range(0, width, apart):
                for other in ((i + apart, j), (i, j + apart)):
                    if other[0] >= height or other[1] >= width:
                        continue
                    if not (valid[i, j] and valid[other]):
                        continue
                    step = d(*other) - d(i, j)
                    value += abs(step) / n
                    for place, sign in ((other, 1), ((i, j), -1)):
                        slope = 1.0
                        if log:
                            slope = (pred[place] > 1e-3) / max(pred[place], 1e-3)
                        grad[place] += sign * np.sign(step) * slope / n
    return value, grad


SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float64)


def hu_of_one(pred, target, valid):
    """Loss of Hu et al. 2019 of one image, window by window, and its gradient."""
    height, width = pred.shape
    count = valid.sum()
    error = np.where(valid, pred - target, 0)
    value = np.log(abs(error) + 0.5)[valid].sum() / count
    grad = np.sign(error) / (abs(error) + 0.5) / count
    windows = [
        (slice(i, i + 3), slice(j, j + 3))
        for i in range(height - 2)
        for j in range(width - 2)
        if valid[i : i + 3, j : j + 3].all()
    ]
    for window in windows:
        slopes, total = [], 0.0
        for kernel in (SOBEL, SOBEL.T):
            change = (kernel * (pred - target)[window]).sum()
            total += np.log(abs(change) + 0.5)
            slope = np.sign(change) / (abs(change) + 0.5)
            grad[window] += slope * kernel / len(windows)
            slopes.append([(kernel * x[window]).sum() for x in (pred, target)])
        n, m = (np.array([-x, -y, 1.0]) for x, y in zip(*slopes, strict=True))
        lengths = np.linalg.norm(n) * np.linalg.norm(m)
        cosine = n @ m / lengths
        value += (total + 1 - cosine) / len(windows)
        slope = -(m / lengths - cosine * n / (n @ n))  # of 1 - cosine, by n
        for kernel, along in ((SOBEL, slope[0]), (SOBEL.T, slope[1])):
            grad[window] += -along * kernel / len(windows)
    return value, grad


def random_batch(seed, shape=SHAPE):
    rng = np.random.default_rng(seed)
    pred = rng.uniform(0.05, 9, shape).astype(np.float32)
    target = rng.uniform(0.5, 10, shape).astype(np.float32)
    valid = rng.random(shape) < rng.uniform(0.05, 1)
    valid[0, :, :3] |= rng.random() < 0.5  # often a whole 3x3 window
    return pred, target, valid


@jax.jit
def _mse(pred, target, valid):
    return jax.value_and_grad(lambda p: losses.mse(p, target, valid=valid))(pred)


@partial(jax.jit, static_argnames="si_lambda")
def _si(pred, target, valid, si_lambda=0.5):
    def loss(p):
        return losses.si(p, target, valid=valid, si_lambda=si_lambda)

    return jax.value_and_grad(loss)(pred)


@jax.jit
def _berhu(pred, target, valid):
    return jax.value_and_grad(lambda p: losses.berhu(p, target, valid=valid))(pred)


@jax.jit
def _berhu_batch(pred, target, valid):
    def loss(p):
        return losses.berhu(p, target, valid=valid, berhu_scope="batch")

    return jax.value_and_grad(loss)(pred)


@jax.jit
def _si_grad(pred, target, valid):
    return jax.value_and_grad(lambda p: losses.si_grad(p, target, valid=valid))(pred)


@jax.jit
def _si_berhu(pred, target, valid):
    def loss(p):
        return losses.si_berhu(p, target, valid=valid, berhu_scope="batch")

    return jax.value_and_grad(loss)(pred)


@jax.jit
def _l1(pred, target, valid):
    return jax.value_and_grad(lambda p: losses.l1(p, target, valid=valid))(pred)


@jax.jit
def _l1_grad(pred, target, valid):
    return jax.value_and_grad(lambda p: losses.l1_grad(p, target, valid=valid))(pred)


@jax.jit
def _hu(pred, target, valid):
    return jax.value_and_grad(lambda p: losses.hu(p, target, valid=valid))(pred)


# name, scope, and the compiled loss with its gradient
CASES = [
    ("mse", "image", _mse),
    ("si", "image", _si),
    ("berhu", "image", _berhu),
    ("berhu", "batch", _berhu_batch),
    ("si_grad", "image", _si_grad),
    ("si_berhu", "batch", _si_berhu),
    ("l1", "image", _l1),
    ("l1_grad", "image", _l1_grad),
    ("hu", "image", _hu),
]
each_loss = pytest.mark.parametrize(
    ("name", "scope", "loss"),
    CASES,
    ids=[f"{name}-{scope}" for name, scope, _ in CASES],
)


@each_loss
@given(seed=st.integers(0, 2**32 - 1))
def test_value_and_gradient_are_the_formulas(name, scope, loss, seed):
    pred, target, valid = random_batch(seed)
    value, grad = loss(pred, target, valid)
    expected, expected_grad = reference(name, pred, target, valid, scope=scope)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mse", "si", "si_grad", "l1", "l1_grad", "hu"])
def test_closed_form_gradient_is_the_finite_difference(name):
    # Ties the reference itself to the value. (berHu's c moves under differences.)
    pred, target, valid = random_batch(1)
    valid[2] = True  # an image with whole windows
    _, grad = reference(name, pred, target, valid)
    wide = pred.astype(np.float64)
    for place in [(0, 0, 0), (1, 2, 3), (2, 3, 4)]:
        step = np.zeros_like(wide)
        step[place] = 1e-5
        up, _ = reference(name, wide + step, target, valid)
        down, _ = reference(name, wide - step, target, valid)
        np.testing.assert_allclose((up - down) / 2e-5, grad[place], atol=1e-7)


@given(
    seed=st.integers(0, 2**32 - 1),
    si_lambda=st.sampled_from([0.0, 0.5, 0.85, 1.0]),
    factor=st.floats(0.2, 20),
)
def test_si(seed, si_lambda, factor):
    pred, target, valid = random_batch(seed)
    value, _ = _si(pred, target, valid, si_lambda=si_lambda)
    expected, _ = reference("si", pred, target, valid, si_lambda=si_lambda)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    assert value >= 0
    # Fully scale-invariant: unmoved by scaling the prediction.
    first, _ = _si(pred, target, valid, si_lambda=1.0)
    scaled, _ = _si(np.float32(factor) * pred, target, valid, si_lambda=1.0)
    np.testing.assert_allclose(scaled, first, rtol=1e-4, atol=1e-6)


@each_loss
@given(seed=st.integers(0, 2**32 - 1))
def test_invalid_pixels_reach_nothing(name, scope, loss, seed):
    pred, target, valid = random_batch(seed)
    rng = np.random.default_rng(seed)
    rubbish = np.array([np.nan, np.inf, -np.inf, 0, -1, 1e30], np.float32)
    bad_target = np.where(valid, target, rng.choice(rubbish, SHAPE))
    bad_pred = np.where(valid, pred, rng.choice(rubbish, SHAPE))
    value, grad = loss(pred, target, valid)
    for p, t in [(pred, bad_target), (bad_pred, bad_target)]:
        other, other_grad = loss(p, t, valid)
        np.testing.assert_array_equal(other, value)
        np.testing.assert_array_equal(other_grad, grad)
    np.testing.assert_array_equal(np.asarray(grad)[~valid], 0)


@each_loss
def test_images_without_a_valid_pixel_add_nothing(name, scope, loss):
    pred, target, _ = random_batch(3)
    valid = np.ones(SHAPE, bool)
    alone, alone_grad = loss(pred[:2], target[:2], valid[:2])
    valid[2] = False
    target[2] = np.nan
    value, grad = loss(pred, target, valid)
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    np.testing.assert_allclose(grad[:2], alone_grad, rtol=1e-6)
    np.testing.assert_array_equal(grad[2], 0)
    value, grad = loss(pred, target, np.zeros(SHAPE, bool))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def edge_cases():
    ones = np.ones(SHAPE, np.float32)
    lone = np.zeros(SHAPE, bool)
    lone[:, 1, 1] = True
    everywhere = np.ones(SHAPE, bool)
    tiny = ones.copy()
    tiny[:, 0, 0] = 1e-38
    return {
        "equal depths": (ones * 3, ones * 2, everywhere),
        "no error, c = 0": (ones, ones, everywhere),
        "one valid pixel": (ones * 3, ones, lone),
        "one valid pixel, exact": (ones, ones, lone),
        "pred zero": (ones * 0, ones, everywhere),
        "pred tiny": (tiny, ones, everywhere),
        "error tiny": (ones + tiny * 1e-7, ones, everywhere),
        "errors of 1e-30": (tiny * 1e8, tiny * 2e8, everywhere),
        "pred huge": (ones * 1e15, ones, everywhere),
    }


@each_loss
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", edge_cases())
def test_edge_cases_are_finite_and_right(name, scope, loss, case, dtype):
    pred, target, valid = edge_cases()[case]
    pred = jnp.asarray(pred, dtype)
    value, grad = loss(pred, target, valid)
    assert value.dtype == jnp.float32
    assert grad.dtype == dtype
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(grad, np.float32)).all()
    # What the float32 arithmetic was given, bfloat16 rounding included.
    seen = np.asarray(pred, np.float32)
    expected, expected_grad = reference(name, seen, target, valid, scope=scope)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    coarse = 1e-2 if dtype == jnp.bfloat16 else 1e-4
    np.testing.assert_allclose(
        np.asarray(grad, np.float32), expected_grad, rtol=coarse, atol=1e-6
    )


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_prediction_that_is_not_finite_shows(name):
    pred, target, _ = random_batch(5)
    for bad in (np.nan, np.inf):
        pred[1, 2, 3] = bad
        value, _ = losses.loss_sums(
            name, jnp.asarray(pred), jnp.asarray(target), valid=jnp.ones(SHAPE, bool)
        )
        assert not np.isfinite(value)


@pytest.mark.parametrize(("name", "scope"), [(n, s) for n, s, _ in CASES])
def test_sums_over_devices_are_the_batch(name, scope):
    pred, target, valid = random_batch(7, (8, 4, 5))
    valid[3] = False
    pred[6] += 20  # the largest error, on one device alone

    def sums(p, t, v):
        options = losses.LossOptions(berhu_scope=scope, axis_name="devices")
        return losses.loss_sums(name, p, t, valid=v, options=options)

    def share(p, t, v):
        grad = jax.grad(lambda p: sums(p, t, v)[0])(p)
        return jax.lax.psum(sums(p, t, v), "devices"), grad

    split = [x.reshape(4, 2, 4, 5) for x in (pred, target, valid)]
    (total, images), grad = jax.pmap(
        share, axis_name="devices", devices=jax.devices()[:4]
    )(*split)
    expected, expected_grad = reference(name, pred, target, valid, scope=scope)
    assert images[0] == 7
    np.testing.assert_allclose(total[0] / images[0], expected, rtol=1e-5)
    grad = np.asarray(grad).reshape(8, 4, 5) / 7
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_unknown_names_are_refused():
    pred, target, valid = (jnp.asarray(x) for x in random_batch(0))
    with pytest.raises(KeyError, match="huber"):
        losses.loss_sums("huber", pred, target, valid=valid)


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 2, 5), (2, 5, 2)])
def test_images_without_a_window_have_no_gradient_terms(shape):
    pred, target, _ = random_batch(2, shape)
    value, grad = _hu(pred, target, np.ones(shape, bool))
    error = (pred - target).astype(np.float64)
    np.testing.assert_allclose(value, np.log(abs(error) + 0.5).mean(), rtol=1e-5)
    expected = np.sign(error) / (abs(error) + 0.5) / error.size
    np.testing.assert_allclose(grad, expected, rtol=1e-5)


def test_hu_of_steep_predictions_is_finite():
    pred, target, _ = random_batch(4)
    value, grad = _hu(pred * 1e30, target, np.ones(SHAPE, bool))
    assert np.isfinite(value) and np.isfinite(grad).all()
