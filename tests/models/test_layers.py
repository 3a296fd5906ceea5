import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdepth.models import cnn, create_model, resnet, upproj
from jaxdepth.models.layers import batch_norm, conv_norm
from jaxdepth.ops.conv import Conv


def test_batch_norm_decays_by_a_tenth_and_keeps_the_biased_variance():
    norm = batch_norm(epsilon=0.0)(use_running_average=False)
    x = np.random.default_rng(0).normal(3, 2, size=(2, 3, 2, 1)).astype(np.float32)
    variables = norm.init(jax.random.key(0), x)
    y, changed = norm.apply(variables, x, mutable=["batch_stats"])
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], [0.1 * x.mean()], rtol=5e-5)
    np.testing.assert_allclose(stats["var"], [0.9 + 0.1 * x.var()], rtol=5e-5)
    np.testing.assert_allclose(y, (x - x.mean()) / x.std(), atol=1e-4)


@pytest.mark.parametrize("use_bias", [False, True])
def test_inference_normalises_by_the_kernel_where_it_is_smaller_than_the_map(use_bias):
    norm = functools.partial(batch_norm(), use_running_average=True)
    rng = np.random.default_rng(1)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            conv = Conv(5, (3, 3), use_bias=use_bias, name="conv")
            return conv_norm(conv, norm(name="bn"), x)

    def multiplications(size):
        """Of maps, in the program for a map of this size."""
        x = jnp.asarray(rng.normal(size=(2, size, size, 4)), jnp.float32)
        init, apply = jax.jit(Network().init), jax.jit(Network().apply)
        variables = randomised(init(jax.random.key(0), x), rng)
        conv_part, norm_part = (
            {
                name: variables[name][part]
                for name in variables
                if part in variables[name]
            }
            for part in ("conv", "bn")
        )
        y = Conv(5, (3, 3), use_bias=use_bias).apply(conv_part, x)
        expected = jnp.asarray(norm().apply(norm_part, y))
        got = jnp.asarray(apply(variables, x))
        np.testing.assert_allclose(got, expected, rtol=5e-5, atol=5e-5)
        jaxpr = str(jax.make_jaxpr(Network().apply)(variables, x))
        return jaxpr.count(f"f32[2,{size},{size},5] = mul")

    assert multiplications(9) == 0
    assert multiplications(3) == 1


def randomised(variables, rng):
    """Variables of a network with positive random statistics and parameters."""
    return jax.tree.map(
        lambda v: jnp.asarray(np.asarray(v) + rng.uniform(0.1, 1, v.shape), v.dtype),
        variables,
    )


@pytest.mark.parametrize(
    "arch, layout, widths",
    [
        ("cnn", "torchvision", {"features": (4, 6, 8)}),
        ("upproj", "torchvision", {}),
        ("upproj", "fcrn", {}),
    ],
)
def test_predictions_equal_those_with_separate_normalisations(
    arch, layout, widths, monkeypatch
):
    if arch == "upproj":
        widths = {"stage_sizes": (1, 1), "width": 4, "decoder_in": 8}
        widths["decoder_features"] = (6, 4)
    model = create_model(arch, layout=layout, **widths)
    rng = np.random.default_rng(2)
    image = jnp.asarray(rng.normal(size=(2, 40, 52, 3)), jnp.float32)
    variables = randomised(jax.jit(model.init)(jax.random.key(0), image), rng)
    folded = jnp.asarray(jax.jit(model.apply)(variables, image))
    for module in (cnn, resnet, upproj):
        monkeypatch.setattr(
            module,
            "conv_norm",
            lambda conv, norm, x, **options: norm(conv(x), **options),
        )
    # A function of its own: the traces of `model.apply` are cached.
    expected = jnp.asarray(jax.jit(lambda *args: model.apply(*args))(variables, image))
    assert not np.array_equal(folded, expected)
    np.testing.assert_allclose(folded, expected, rtol=1e-5)
