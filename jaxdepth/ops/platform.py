"""The platform that array functions are compiled for, and its compiler options."""

import contextlib
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

logger = logging.getLogger(__name__)

# Compiler options by device kind.
#
# TPU v5e: how much of the core's 128 MiB of vector memory one fusion may use. More
# memory allows larger windows in the 64-channel stages: 8 % fewer cycles per step by
# the compiler's estimate. This is the default on v6e.
#
# CPU: convolutions and matrix products by oneDNN where jaxlib contains it (0.12 does,
# 0.10.2 does not), otherwise by Eigen; sums by YNNPACK. Products by YNNPACK would slow
# inference by 8 %; convolutions by YNNPACK would double the time of the kernel gradient
# of 3x3; Eigen takes twice as long for sums (float32, AVX-512, jaxlib 0.10.2). oneDNN
# is not used while YNNPACK computes convolutions.
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
        "xla_cpu_experimental_onednn_custom_call": True,
    },
    "TPU v5 lite": {"xla_tpu_scoped_vmem_limit_kib": "32768"},
}

# None means JAX's default backend. A user context is part of the key of JAX's tracing
# cache, so functions are traced again for another platform.
_target = jax.make_user_context(default_value=None)


def current() -> str:
    """The platform to compute on or compile for: "cpu", "gpu" or "tpu"."""
    return _target.value or jax.default_backend()


def compiling_for(platform: str) -> contextlib.AbstractContextManager[None]:
    """Context manager in which `current` returns `platform`.

    Needed for ahead-of-time compilation: on a machine without a TPU, JAX's default
    backend is "cpu" while it compiles for TPU.
    """
    return _target(platform)


def compiler_options(device: Any = None) -> dict[str, Any]:
    """The `COMPILER_OPTIONS` for a device, without those that its compiler rejects.

    Args:
      device: None for the first device of this host.

    Returns: the `compiler_options` of `jax.jit`.
    """
    device = jax.local_devices()[0] if device is None else device
    options = COMPILER_OPTIONS.get(getattr(device, "device_kind", ""), {})
    accepted = {k: v for k, v in options.items() if _accepts(device, k, v)}
    if len(accepted) < len(options):
        rejected = ", ".join(options.keys() - accepted)
        logger.debug("compiler options not supported: %s", rejected)
    return accepted


@functools.cache
def has_onednn() -> bool:
    """Whether `COMPILER_OPTIONS` let oneDNN compute on this machine's CPU.

    jaxlib 0.10.2 accepts the option without an effect, so a product is compiled.
    """
    device = jax.local_devices(backend="cpu")[0]
    shape, sharding = (512, 512), SingleDeviceSharding(device)
    matrix = jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
    product = jax.jit(jnp.matmul, compiler_options=compiler_options(device))
    return "__onednn$matmul" in str(product.lower(matrix, matrix).compile().as_text())


@functools.cache
def _accepts(device: Any, name: str, value: Any) -> bool:
    """Whether a device's compiler accepts an option, tested by compiling a sum."""
    one = jax.ShapeDtypeStruct((), np.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + x).lower(one).compile({name: value})
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        return False
    return True
