"""JAX and memory settings of a process, set by commands before JAX computes."""

import ctypes
import logging
import sys
import warnings
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

logger = logging.getLogger(__name__)
COMPILATION_CACHE = "compiled"  # subfolder of the cache folder

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def has_compilation_cache() -> bool:
    """Whether JAX's persistent compilation cache has a folder, whoever set it."""
    return _cache_folder() is not None


def _cache_folder() -> str | None:
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]


def enable_compilation_cache(cache_dir: str) -> None:
    """Enable JAX's persistent compilation cache in a subfolder of `cache_dir`.

    JAX_COMPILATION_CACHE_DIR takes precedence. If the folder can't be written, programs
    are compiled without a cache. JAX runs the programs in the folder, so only the user
    should have write access to it. On multi-host runs only host 0 writes.
    """
    folder = str(Path(cache_dir).expanduser() / COMPILATION_CACHE)
    configured = _cache_folder()
    if configured is not None and Path(configured).name != COMPILATION_CACHE:
        return
    # JAX reads the setting only once, at the first compilation.
    compilation_cache.reset_cache()
    compilation_cache.set_cache_dir(folder)
    # A run compiles about a hundred small programs, which together take seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.filterwarnings("ignore", ".*persistent compilation cache")


def retain_host_memory() -> None:
    """Keep freed memory in this process, so that the next step on a CPU reuses it.

    The intermediate arrays of a CPU step are one block (1.2 GiB for `upproj` with a
    batch of 4). By default glibc maps it for every step and unmaps it afterwards, and
    zeroing its pages took a sixth of the step. With this setting, the memory returns
    to the system when the process ends.

    Also disables asynchronous dispatch on the CPU: glibc can retain blocks of that
    size only for the main thread, so computations have to run there.

    Affects the whole process: call it from commands, not from a library, before JAX
    computes anything. Does nothing for C libraries other than glibc.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        logger.debug("this C library has no mallopt")
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
