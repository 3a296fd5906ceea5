"""The running average of a network against a loop written out."""

import jax.numpy as jnp
import numpy as np

from jaxdepth.training.state import update_ema


def test_the_average_follows_the_formula():
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(400, 3)).astype(np.float32)
    got, expected = {"a": jnp.zeros(3)}, np.zeros(3)
    for step, x in enumerate(seen):
        got = update_ema(got, {"a": jnp.asarray(x)}, decay=0.97, step=jnp.int32(step))
        d = min(0.97, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * x
        np.testing.assert_allclose(got["a"], expected, atol=1e-6)
    assert got["a"].dtype == jnp.float32


def test_what_never_moves_stays_bit_for_bit():
    x = {"a": jnp.asarray(np.random.default_rng(1).normal(size=100), jnp.float32)}
    got = x
    for step in range(50):
        got = update_ema(got, x, decay=0.99, step=step)
    assert np.asarray(got["a"]).tobytes() == np.asarray(x["a"]).tobytes()
