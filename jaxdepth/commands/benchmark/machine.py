"""Measured peaks of the device, and its memory."""

import dataclasses
import resource
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdepth.commands.benchmark import timing
from jaxdepth.commands.benchmark.report import Report, memory_bytes
from jaxdepth.ops import platform

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory")


@dataclasses.dataclass(frozen=True)
class Peaks:
    """FLOP/s (two per multiplication) and bytes/s (read and written) of one device."""

    flops: float
    bytes: float


def peaks(
    dtype: Any, report: Report, *, trial: bool = False, repeats: int = 5
) -> Peaks:
    """Measure a large matrix product in `dtype` and a large copy.

    Args:
      trial: use small ones, for tests; their rates are meaningless.
    """
    # Large enough that caches and kernel launches do not matter.
    n, size = (2048, 2**28) if jax.default_backend() == "cpu" else (8192, 2**30)
    if trial:
        n, size = 128, 2**20
    times = timing.time_alternating(
        [_matrix_product(n, dtype), _copy(size)], repeats=repeats, seconds=0.1
    )
    product, copy = times.values()
    flops = [2 * n**3 / seconds for seconds in product]
    moved = [2 * size / seconds for seconds in copy]
    name = f"matrix product {n}x{n}x{n}, {jnp.dtype(dtype).name}"
    report.show("this device at most", {name: [f / 1e12 for f in flops]}, "TFLOP/s")
    name = f"copy of {size / 2**20:.0f} MiB, read and written"
    report.show("this device at most", {name: [b / 1e9 for b in moved]}, "GB/s")
    return Peaks(float(np.median(flops)), float(np.median(moved)))


def _matrix_product(n: int, dtype: Any) -> timing.Workload:
    keys = jax.random.split(jax.random.key(0), 2)
    # Random, because a product of zeros needs less power and runs faster.
    left, right = (jax.random.normal(key, (n, n), dtype) for key in keys)
    product = jax.jit(jnp.matmul, compiler_options=platform.compiler_options())
    return timing.Workload(
        "product", lambda: product(left, right), jax.block_until_ready
    )


def _copy(size: int) -> timing.Workload:
    values = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    # The compiler would remove a plain copy.
    invert = jax.jit(jnp.bitwise_not)
    return timing.Workload("copy", lambda: invert(values), jax.block_until_ready)


def peak_memory() -> tuple[int, str]:
    """Peak bytes of the fullest device, or else of this process; and its name."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = max(s.get("peak_bytes_in_use", 0) for s in stats)
    if used:
        return used, "device"
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    return kilobytes * unit, "process (RSS)"


def memory_limit() -> int:
    """Bytes that a device may use: its limit, or 90 % of the host's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or memory_bytes() * 9 // 10


def is_out_of_memory(error: BaseException) -> bool:
    """Whether JAX or PyTorch raised this error for lack of memory."""
    # JaxRuntimeError and PyTorch's OutOfMemoryError are RuntimeErrors.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(w in str(error) for w in OUT_OF_MEMORY)
    )
