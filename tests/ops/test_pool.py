import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.ops import platform
from jaxdepth.ops import pool as ops

NONE, ONE, END = (0, 0), (1, 1), (0, 1)
CASES = [(2, (NONE, NONE)), (2, (END, NONE)), (3, (ONE, ONE)), (3, (END, ONE))]


def literal_pool(x, size, padding):
    x = np.pad(x, [(0, 0), *padding, (0, 0)], constant_values=-np.inf)
    height, width = ((n - size) // 2 + 1 for n in x.shape[1:3])
    y = np.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
    for i, j in np.ndindex(height, width):
        window = x[:, 2 * i : 2 * i + size, 2 * j : 2 * j + size]
        y[:, i, j] = window.max((1, 2))
    return y


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("size, padding", CASES)
def test_equals_the_literal_loop(size, padding, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 3)).astype(np.float32)
    got = jax.jit(functools.partial(ops.max_pool, size=size, padding=padding))(x)
    np.testing.assert_array_equal(got, literal_pool(x, size, padding))


@pytest.mark.parametrize("size, padding", CASES)
def test_slices_windows_and_indices_have_the_same_gradient(size, padding):
    x = jnp.array(np.random.default_rng(1).normal(size=(2, 8, 7, 3)), jnp.float32)

    def gradient(backend):
        def loss(x):
            return jnp.sum(jnp.sin(ops.max_pool(x, size, padding=padding)))

        with platform.compiling_for(backend):
            return jax.jit(jax.grad(loss))(x)

    by_windows = gradient("tpu")
    np.testing.assert_allclose(gradient("cpu"), by_windows, atol=1e-6)
    np.testing.assert_allclose(gradient("gpu"), by_windows, atol=1e-6)


def test_on_gpu_the_first_of_equal_entries_has_the_gradient():
    # Integers, so that most windows have ties; XLA's windows pass it to the first, too.
    x = jnp.array(np.random.default_rng(2).integers(0, 3, (2, 9, 8, 3)), jnp.float32)

    def gradient(backend):
        def loss(x):
            y = ops.max_pool(x, 3, padding=(ONE, ONE))
            return jnp.sum(y * jnp.arange(y.size, dtype=jnp.float32).reshape(y.shape))

        with platform.compiling_for(backend):
            return jax.jit(jax.grad(loss))(x)

    np.testing.assert_array_equal(gradient("gpu"), gradient("tpu"))


def test_padding_is_never_the_maximum():
    x = jnp.full((1, 3, 3, 1), -1e30)
    y = ops.max_pool(x, 2, padding=(END, END))
    np.testing.assert_array_equal(y, np.full((1, 2, 2, 1), -1e30, np.float32))


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("n", range(1, 8))
def test_same_padding_rounds_up_and_pads_the_end_more(n, size):
    (low, high), _ = ops.same_padding(n, 4, size)
    assert high - low in (0, 1)
    assert (n + low + high - size) // 2 + 1 == -(-n // 2)


def test_same_padding_of_an_even_map_is_at_the_end():
    # As TensorFlow 2 pads a 3x3 pool of stride 2 over 114x152 and over 5x6.
    assert ops.same_padding(114, 152, 3) == ((0, 1), (0, 1))
    assert ops.same_padding(5, 6, 3) == ((1, 1), (0, 1))
