import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.models import layouts
from jaxdepth.runtime.errors import UserError


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_torchvision_equals_the_usual_normalisation(dtype):
    rgb = np.array([[[[0, 128, 255]]]], dtype)
    # Scaled to 0..1, then normalised by torchvision's ImageNet constants.
    expected = (rgb.astype(np.float64) / 255 - [0.485, 0.456, 0.406]) / [
        0.229,
        0.224,
        0.225,
    ]
    got = layouts.normalize(jnp.array(rgb), "torchvision")
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_fcrn_uses_raw_colours():
    rgb = jnp.array([[[[0.0, 128.0, 255.0]]]])
    np.testing.assert_array_equal(layouts.normalize(rgb, "fcrn"), rgb)


def test_unknown_layouts_are_rejected():
    with pytest.raises(UserError, match="torchvision, fcrn"):
        layouts.layout_named("caffe")


@pytest.mark.parametrize("head", ["softplus", "relu"])
@pytest.mark.parametrize("depth", [0.01, 0.7, 2.7, 10.0, 100.0])
def test_raw_from_depth_is_the_inverse(head, depth):
    raw = jnp.full((1, 1, 1), layouts.raw_from_depth(depth, head))
    np.testing.assert_allclose(layouts.depth_from_raw(raw, head), depth, rtol=1e-5)


@pytest.mark.parametrize("depth", [0.0, -1.0, float("nan")])
def test_initial_depth_must_be_positive(depth):
    with pytest.raises(UserError, match="init_depth"):
        layouts.raw_from_depth(depth, "softplus")


def test_softplus_equals_its_formula():
    raw = np.linspace(-20, 20, 11)[None, None]
    got = layouts.depth_from_raw(jnp.array(raw, jnp.float32), "softplus")
    np.testing.assert_allclose(got, np.log1p(np.exp(raw)), rtol=1e-5)


@pytest.mark.parametrize("head", ["softplus", "relu"])
@pytest.mark.parametrize("raw", [-200.0, -1e4, 200.0])
def test_extreme_raw_outputs_are_finite_with_finite_gradient(head, raw):
    def total(raw):
        return layouts.depth_from_raw(raw, head).sum()

    value, gradient = jax.value_and_grad(total)(jnp.full((1, 1, 1), raw))
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_depth_is_float32():
    raw = jnp.zeros((1, 2, 2), jnp.bfloat16)
    assert layouts.depth_from_raw(raw, "softplus").dtype == jnp.float32
