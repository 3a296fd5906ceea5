"""Many small programs, each run once: compiling them well would cost the most."""

import jax
import pytest


@pytest.fixture(autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
