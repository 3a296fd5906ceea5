"""`batch_norm` against the separate operations, in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxdepth.ops.batch_norm import batch_norm

EPSILON = 1e-3
CASES = list(itertools.product([False, True], [False, True]))


def arguments(batch: int = 4):
    rng = np.random.default_rng(0)
    x, residual = rng.normal(0.7, 2.0, (2, batch, 5, 3, 6))
    return x, rng.normal(1.0, 0.5, 6), rng.normal(size=6), residual


def separate(x, scale, offset, residual, relu):
    """The definition; `relu` and `residual` may be False and None."""
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = (x - mean) / (variance + EPSILON) ** 0.5 * scale + offset
    y = y if residual is None else y + residual
    return (y * (y > 0) if relu else y), mean, variance


def given(x, scale, offset, residual, relu, **options):
    options = {"axis_name": None} | options
    return batch_norm(x, scale, offset, residual, relu=relu, epsilon=EPSILON, **options)


@pytest.mark.parametrize("has_residual, relu", CASES)
def test_values_and_gradients_equal_the_definition(has_residual, relu):
    values = arguments()
    weights = np.random.default_rng(1).normal(size=values[0].shape)
    every = (0, 1, 2, 3) if has_residual else (0, 1, 2)

    def loss(operator, *values):
        residual = values[3] if has_residual else None
        return jnp.sum(weights * operator(*values[:3], residual, relu)[0] ** 2)

    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        values = [jnp.asarray(v) for v in values]
        used = values if has_residual else [*values[:3], None]
        results = given(*used, relu=relu), separate(*used, relu=relu)
        for got, expected in zip(*results, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
        results = [
            jax.grad(functools.partial(loss, operator), every)(*values)
            for operator in (given, separate)
        ]
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10)


def test_bfloat16_keeps_statistics_and_their_gradients_in_float32():
    x, scale, offset, residual = (jnp.asarray(v, jnp.float32) for v in arguments())
    low, low_residual = x.astype(jnp.bfloat16), residual.astype(jnp.bfloat16)
    out, mean, variance = given(low, scale, offset, low_residual, True)
    assert (out.dtype, mean.dtype) == (jnp.bfloat16, jnp.float32)
    with jax.numpy_rank_promotion("allow"):
        exact = separate(low.astype(jnp.float32), scale, offset, residual, True)
    np.testing.assert_allclose(mean, exact[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variance, exact[2], rtol=1e-4)
    np.testing.assert_allclose(out.astype(np.float32), exact[0], atol=0.06)
    grads = jax.grad(
        lambda *values: jnp.sum(given(*values, relu=True)[0].astype(jnp.float32) ** 2),
        (0, 1, 2, 3),
    )(low, scale, offset, low_residual)
    dtypes = [grad.dtype for grad in grads]
    assert dtypes == [jnp.bfloat16, jnp.float32, jnp.float32, jnp.bfloat16]


@pytest.mark.parametrize("groups", [None, ((0, 1), (2, 3))])
def test_devices_that_share_statistics_equal_one_batch(groups):
    x, scale, offset, residual = (jnp.asarray(v, jnp.float32) for v in arguments(8))
    weights = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
    mesh, split = Mesh(np.array(jax.devices()[:4]), ("data",)), P("data")

    def loss(x, residual, weights, **options):
        out, *_ = given(x, scale, offset, residual, True, **options)
        return jnp.sum(weights * out**2)

    def local(*values):
        options = {"axis_name": "data", "axis_index_groups": groups}
        return jax.grad(functools.partial(loss, **options), (0, 1))(*values)

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=split, out_specs=split, check_vma=False
    )
    got = jax.jit(sharded)(x, residual, weights)
    parts = [slice(0, 4), slice(4, 8)] if groups else [slice(0, 8)]
    whole = [jax.grad(loss, (0, 1))(x[k], residual[k], weights[k]) for k in parts]
    expected = [jnp.concatenate(grads) for grads in zip(*whole, strict=True)]
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
