from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxdepth.ops import conv, platform


def test_it_is_jaxs_own_unless_told():
    assert platform.current() == "cpu"
    with platform.compiling_for("tpu"):
        assert platform.current() == "tpu"
        with platform.compiling_for("gpu"):
            assert platform.current() == "gpu"
        assert platform.current() == "tpu"
    assert platform.current() == "cpu"


def test_what_was_traced_for_one_platform_does_not_serve_another():
    pointwise = jax.jit(conv.conv2d)
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 1, 2, 3))

    def is_dot():
        return " dot_general[" in str(jax.make_jaxpr(pointwise)(x, kernel))

    assert is_dot()
    with platform.compiling_for("tpu"):
        assert not is_dot()
    assert is_dot()


@pytest.mark.parametrize(
    "kind, taken, wanted",
    [
        ("TPU v5 lite", True, {"xla_tpu_scoped_vmem_limit_kib": "32768"}),
        ("TPU v5 lite", False, {}),
        ("TPU v4", True, {}),
        ("an unknown device", True, {}),
    ],
)
def test_options_reach_the_compiler_that_knows_them(kind, taken, wanted, monkeypatch):
    monkeypatch.setattr(platform, "_takes", lambda device, name, value: taken)
    assert platform.compiler_options(SimpleNamespace(device_kind=kind)) == wanted


def test_a_compiler_is_asked_whether_it_knows_an_option():
    device = jax.devices()[0]
    assert not platform._takes(device, "xla_tpu_scoped_vmem_limit_kib", "32768")
    name = "xla_cpu_experimental_ynn_fusion_type"
    assert platform._takes(device, name, "LIBRARY_FUSION_TYPE_REDUCE")


def test_on_cpu_neither_convolutions_nor_products_are_ynnpacks():
    options = platform.compiler_options()
    x, kernel = jnp.ones((2, 9, 9, 8)), jnp.ones((3, 3, 8, 8))
    convolved = jax.jit(conv.conv2d, compiler_options=options).lower(x, kernel)
    product = jax.jit(jnp.dot, compiler_options=options).lower(x[0, 0], kernel[0, 0])
    for lowered in (convolved, product):
        assert "ynn_fusion" not in str(lowered.compile().as_text())
