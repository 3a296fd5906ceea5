import jax
import numpy as np

from jaxdepth.models.layers import batch_norm


def test_batch_norm_decays_by_a_tenth_and_keeps_the_biased_variance():
    norm = batch_norm(epsilon=0.0)(use_running_average=False)
    x = np.random.default_rng(0).normal(3, 2, size=(2, 3, 2, 1)).astype(np.float32)
    variables = norm.init(jax.random.key(0), x)
    y, changed = norm.apply(variables, x, mutable=["batch_stats"])
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], [0.1 * x.mean()], rtol=5e-5)
    np.testing.assert_allclose(stats["var"], [0.9 + 0.1 * x.var()], rtol=5e-5)
    np.testing.assert_allclose(y, (x - x.mean()) / x.std(), atol=1e-4)
