from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxlib.version
import pytest

from jaxdepth.ops import conv, platform


def test_current_is_the_default_backend_unless_overridden():
    assert platform.current() == "cpu"
    with platform.compiling_for("tpu"):
        assert platform.current() == "tpu"
        with platform.compiling_for("gpu"):
            assert platform.current() == "gpu"
        assert platform.current() == "tpu"
    assert platform.current() == "cpu"


def test_functions_are_traced_again_for_another_platform():
    pointwise = jax.jit(conv.conv2d)
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 1, 2, 3))

    def is_dot():
        return " dot_general[" in str(jax.make_jaxpr(pointwise)(x, kernel))

    assert is_dot()
    with platform.compiling_for("tpu"):
        assert not is_dot()
    assert is_dot()


@pytest.mark.parametrize(
    "kind, accepted, expected",
    [
        ("TPU v5 lite", True, platform.COMPILER_OPTIONS["TPU v5 lite"]),
        ("TPU v5 lite", False, {}),
        ("TPU v4", True, {}),
        ("an unknown device", True, {}),
    ],
)
def test_only_accepted_options_are_returned(kind, accepted, expected, monkeypatch):
    monkeypatch.setattr(platform, "_accepts", lambda device, name, value: accepted)
    assert platform.compiler_options(SimpleNamespace(device_kind=kind)) == expected


def test_options_are_tested_by_compiling():
    device = jax.devices()[0]
    assert not platform._accepts(device, "xla_tpu_scoped_vmem_limit_kib", "32768")
    name = "xla_cpu_experimental_ynn_fusion_type"
    assert platform._accepts(device, name, "LIBRARY_FUSION_TYPE_REDUCE")


def test_cpu_products_and_since_jaxlib_0_12_convolutions_use_ynnpack():
    options = platform.compiler_options()
    x, kernel = jnp.ones((2, 9, 9, 32)), jnp.ones((3, 3, 32, 32))
    convolved = jax.jit(conv.conv2d, compiler_options=options).lower(x, kernel)
    product = jax.jit(jnp.dot, compiler_options=options).lower(x[0, 0], kernel[0, 0])
    used = ["ynn_fusion" in str(x.compile().as_text()) for x in (convolved, product)]
    assert used == [jaxlib.version.__version_info__ >= (0, 12), True]
