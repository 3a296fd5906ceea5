"""The platform that array functions here choose their forms for."""

import contextlib

import jax

# JAX's own backend where None. Being a user context it is part of the key under which
# JAX keeps what it traced: another platform means that a function is traced anew.
_target = jax.make_user_context(default_value=None)


def current() -> str:
    """What is computed or compiled for: "cpu", "gpu" or "tpu"."""
    return _target.value or jax.default_backend()


def compiling_for(platform: str) -> contextlib.AbstractContextManager[None]:
    """While it lasts, forms are chosen as on `platform`, whatever JAX runs on.

    For compiling ahead of time: on a machine without a TPU JAX's backend is "cpu"
    while it compiles for one.
    """
    return _target(platform)
