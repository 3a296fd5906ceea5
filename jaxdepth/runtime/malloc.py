"""The memory of a process that trains on a CPU."""

import ctypes
import logging
import sys

import jax

logger = logging.getLogger(__name__)

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep() -> None:
    """Let this process keep the memory that it has used, for the next step.

    On a CPU a step's intermediate arrays are one block, of 1.2 GiB for `upproj` and a
    batch of 4, which glibc asks of the system for every step and gives back after it:
    zeroing its pages took a sixth of the step. Kept, memory goes back to the system
    when the process ends.

    Computations on the CPU then run on the thread that calls them, the only one whose
    blocks of that size glibc can keep.

    It is of the whole process: for commands, not for a library, and before JAX computes
    anything. With another C library than glibc it does nothing.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        logger.debug("no mallopt in this C library")
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
