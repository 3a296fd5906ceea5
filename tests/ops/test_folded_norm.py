"""`folded_norm` against a separate 1x1 convolution and batch normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxdepth.ops import platform
from jaxdepth.ops.folded_norm import folded_norm

EPSILON = 1e-3


@pytest.fixture(params=["tpu", "gpu"])
def folded(request):
    """`folded_norm` in the form of a platform."""
    with platform.compiling_for(request.param):
        yield functools.partial(folded_norm, epsilon=EPSILON, axis_name=None)


def arguments(dtype=jnp.float32, batch: int = 4):
    """Features after a ReLU, with a mean as large as their standard deviation."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(0.3, 1.0, (batch, 5, 3, 6)), 0)
    kernel = rng.normal(size=(6, 24))
    scale, offset = rng.normal(1.0, 0.5, 24), rng.normal(size=24)
    small = (jnp.asarray(v, jnp.float32) for v in (kernel, scale, offset))
    return jnp.asarray(x, dtype), *small


def separate(x, kernel, scale, offset, residual=None):
    y = jnp.einsum("bhwc,cf->bhwf", x, kernel, precision="highest")
    mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
    normal = (y - mean[None, None, None]) / jnp.sqrt(variance + EPSILON)
    out = normal * scale + offset
    if residual is not None:
        out = jax.nn.relu(out + residual)
    return out, mean, variance


def test_values_and_statistics_in_float64(folded):
    x, kernel, scale, offset = (np.asarray(v, np.float64) for v in arguments())
    y = x @ kernel
    mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
    normalised = (y - mean) / np.sqrt(variance + EPSILON) * scale + offset
    for got, expected in zip(
        jax.jit(folded)(*arguments()), (normalised, mean, variance), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("zero_scale", [False, True])
def test_gradients_equal_those_of_the_separate_operations(
    zero_scale, has_residual, folded
):
    x, kernel, scale, offset = arguments()
    if zero_scale:  # the initial value of a residual block's last scale
        scale = 0.0 * scale
    values = [x, kernel, scale, offset]
    if has_residual:
        values.append(jnp.cos(jnp.arange(4 * 5 * 3 * 24.0)).reshape(4, 5, 3, 24))

    def loss(operator, *values):
        y, mean, variance = operator(*values)
        weights = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        return jnp.sum(weights * y * y) + jnp.sum(mean * variance)

    every = tuple(range(1, len(values) + 1))
    gradients = jax.jit(jax.grad(loss, every), static_argnums=0)
    with jax.numpy_rank_promotion("allow"):
        expected = gradients(separate, *values)
    got = gradients(folded, *values)
    for a, b in zip(got, expected, strict=True):
        largest = np.abs(b).max() + 1e-6
        np.testing.assert_allclose(a, b, atol=5e-5 * largest)


def test_bfloat16_keeps_statistics_and_kernel_gradients_in_float32(folded):
    x, kernel, scale, offset = arguments(jnp.bfloat16)
    y, mean, variance = jax.jit(folded)(x, kernel, scale, offset)
    assert (y.dtype, mean.dtype, variance.dtype) == (jnp.bfloat16, *[jnp.float32] * 2)
    with jax.numpy_rank_promotion("allow"):
        exact = jax.jit(separate)(x.astype(jnp.float32), kernel, scale, offset)
    # Statistics of the given bfloat16 input are computed in float32.
    np.testing.assert_allclose(mean, exact[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, exact[2], rtol=1e-4)
    np.testing.assert_allclose(y.astype(np.float32), exact[0], atol=0.06)

    def loss(x, kernel):
        return jnp.sum(folded(x, kernel, scale, offset)[0].astype(jnp.float32) ** 2)

    x_grad, kernel_grad = jax.jit(jax.grad(loss, (0, 1)))(x, kernel)
    assert (x_grad.dtype, kernel_grad.dtype) == (jnp.bfloat16, jnp.float32)


def test_devices_on_a_shared_axis_equal_one_batch(folded):
    x, *rest = arguments()
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P("data"), P()),
        out_specs=(P("data"), P(), P()),
        check_vma=False,
    )
    def sharded(x, rest):
        return folded_norm(x, *rest, epsilon=EPSILON, axis_name="data")

    for got, expected in zip(
        jax.jit(sharded)(x, rest), jax.jit(folded)(x, *rest), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=5e-5, atol=5e-5)
