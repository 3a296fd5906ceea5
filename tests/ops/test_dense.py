import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdepth.ops import dense, platform


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_value_and_gradients_equal_those_of_a_matrix_product(rows, dtype):
    rng = np.random.default_rng(0)
    shapes = (rows, 7), (7, 6), (rows, 6)
    x, kernel, g = (rng.normal(size=shape) for shape in shapes)

    @jax.jit
    def value_and_gradients(x, kernel, g):
        y, back = jax.vjp(dense.dense_product, x, kernel)
        return y, *back(g)

    got = value_and_gradients(*(jnp.asarray(a, dtype) for a in (x, kernel, g)))
    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    for one, expected in zip(got, (x @ kernel, g @ kernel.T, x.T @ g), strict=True):
        assert one.dtype == dtype
        one = np.asarray(one, np.float64)
        np.testing.assert_allclose(one, expected, rtol=tolerance, atol=4 * tolerance)


def test_input_gradient_is_a_sum_on_cpu_only():
    def gradient(x, kernel):
        y, back = jax.vjp(dense.dense_product, x, kernel)
        return back(y)[0]

    arguments = jnp.ones((3, 7)), jnp.ones((7, 6))
    on_cpu = str(jax.make_jaxpr(gradient)(*arguments)).count("dot_general")
    with platform.compiling_for("gpu"):
        on_gpu = str(jax.make_jaxpr(gradient)(*arguments)).count("dot_general")
    assert (on_cpu, on_gpu) == (2, 3)


def test_dense_layer_accepts_more_axes():
    layer = nn.Dense(3, dot_general=dense.dense_product)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 5)), jnp.float32)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])
    np.testing.assert_allclose(y, np.asarray(x) @ kernel, atol=1e-5)
