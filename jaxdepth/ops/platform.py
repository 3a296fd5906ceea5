"""The platform that array functions here choose their forms for."""

import contextlib
import functools
import logging
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

logger = logging.getLogger(__name__)

# Options of the compiler, by what a device calls itself.
#
# TPU v5e: how much of the core's own memory, 128 MiB, one fusion may use. With more,
# windows of the 64-channel stages are larger: by the compiler's estimate 8 % fewer
# cycles of the whole step. It is what v6e does unasked.
#
# CPU: convolutions and matrix products by Eigen, sums by YNNPACK. With products by
# YNNPACK, too, inference takes 8 % longer; with convolutions, the kernel gradient of
# 3x3 twice as long; with sums by Eigen, sums do (float32, AVX-512, jaxlib 0.10.2).
COMPILER_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"},
    "TPU v5 lite": {"xla_tpu_scoped_vmem_limit_kib": "32768"},
}

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


def compiler_options(device: Any = None) -> dict[str, Any]:
    """Those of `COMPILER_OPTIONS` for a device that its compiler knows.

    To be given to `jax.jit`. `device`: None for the first of this host.
    """
    device = jax.local_devices()[0] if device is None else device
    options = COMPILER_OPTIONS.get(getattr(device, "device_kind", ""), {})
    known = {k: v for k, v in options.items() if _takes(device, k, v)}
    if len(known) < len(options):
        logger.debug("unknown to this compiler: %s", ", ".join(options.keys() - known))
    return known


@functools.cache
def _takes(device: Any, name: str, value: str) -> bool:
    """Whether the compiler for a device accepts an option: it is asked for one sum."""
    one = jax.ShapeDtypeStruct((), np.float32, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + x).lower(one).compile({name: value})
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        return False
    return True
