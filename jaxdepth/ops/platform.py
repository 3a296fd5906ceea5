"""The platform that array functions are compiled for, and its compiler options."""

import contextlib
import functools
import logging
from typing import Any

import jax
import jaxlib.version
import numpy as np
from jax.sharding import SingleDeviceSharding

logger = logging.getLogger(__name__)

# Compiler options by device kind.
#
# TPU v5e: how much of the core's 128 MiB of vector memory one fusion may use. More
# memory allows larger windows in the 64-channel stages: 8 % fewer cycles per step by
# the compiler's estimate. This is the default on v6e.
#
# TPU v5e and v6e: fusing a 1x1 convolution into the one that its result is added to, so
# that the first result is not stored. First block of stage 1, kcycles and MB an image:
# 149 and 52 become 123 and 41 (v5e), 84 and 59 become 64 and 43 (v6e).
#
# CPU: convolutions, matrix products and sums by YNNPACK, which jaxlib contains. 3x3
# convolutions take 20 to 30 % less time than with Eigen, products with a transposed
# operand half of it, and sums half of it (float32, AVX-512). `jaxdepth.ops.conv` keeps
# kernel gradients from it, which it would slow down. In jaxlib 0.10.2, inference of
# `cnn` takes 94 ms with its convolutions and 84 ms with Eigen's (`cnn_fc` 44 and 36).
YNNPACK_CONVOLVES = jaxlib.version.__version_info__ >= (0, 12)
_YNNPACK = ["REDUCE", "INDIVIDUAL_DOT"]
_YNNPACK += ["INDIVIDUAL_CONVOLUTION"] if YNNPACK_CONVOLVES else []
FUSED_SUMS = {"xla_tpu_enable_multi_level_output_dot_dot_fusion": True}
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": ",".join(
            f"LIBRARY_FUSION_TYPE_{name}" for name in _YNNPACK
        )
    },
    "TPU v5 lite": {"xla_tpu_scoped_vmem_limit_kib": "32768"} | FUSED_SUMS,
    "TPU v6 lite": FUSED_SUMS,
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
    kind = getattr(device, "device_kind", "")
    options = COMPILER_OPTIONS.get(kind, {})
    accepted = {k: v for k, v in options.items() if _accepts(device, k, v)}
    if len(accepted) < len(options):
        rejected = ", ".join(options.keys() - accepted)
        logger.debug("compiler options not supported: %s", rejected)
    return accepted


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
