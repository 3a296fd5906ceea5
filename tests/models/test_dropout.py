import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.models.dropout import drop
from jaxdepth.runtime.errors import UserError

X = jnp.ones((4, 10, 12, 5))


def keys(n=4):
    return jax.random.split(jax.random.key(0), n)


def test_rate_and_scale():
    y = np.asarray(drop(X, keys(), rate=0.4, train=True))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.6)}
    # 2400 draws: four standard deviations are 0.04.
    assert abs((y == 0).mean() - 0.4) < 0.04


def test_images_have_different_masks():
    y = np.asarray(drop(X, keys(), rate=0.5, train=True))
    assert not (y[0] == y[1]).all()


def test_a_mask_depends_on_its_key_only():
    batch = drop(X, keys(), rate=0.5, train=True)
    halves = [
        drop(X[k : k + 2], keys()[k : k + 2], rate=0.5, train=True) for k in (0, 2)
    ]
    np.testing.assert_array_equal(batch, jnp.concatenate(halves))


@pytest.mark.parametrize("rate, train", [(0.0, True), (0.5, False)])
def test_without_rate_or_training_nothing_is_dropped(rate, train):
    np.testing.assert_array_equal(drop(X, None, rate=rate, train=train), X)


def test_missing_keys_are_reported():
    with pytest.raises(UserError, match="keys="):
        drop(X, None, rate=0.5, train=True)


def test_dtype_is_kept():
    assert drop(X.astype(jnp.bfloat16), keys(), rate=0.5, train=True).dtype == (
        jnp.bfloat16
    )
