import jax
import jax.numpy as jnp

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
