"""Compiled programs, kept on disk: what was compiled once starts at once."""

import warnings
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

FOLDER = "compiled"


def keep(cache_dir: str) -> None:
    """Keep all that is compiled from here on below `cache_dir`, and take it from there.

    Where the user has named a place (JAX_COMPILATION_CACHE_DIR), that is it. A place
    that can't be written costs the saving and nothing else. What lies there is run:
    the folder is to be the user's own. Of several hosts, the first one writes.
    """
    here = str(Path(cache_dir).expanduser() / FOLDER)
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if before is not None and Path(before).name != FOLDER:
        return
    # JAX looks once, at the first compilation, whether there is a place.
    compilation_cache.reset_cache()
    compilation_cache.set_cache_dir(here)
    # A run compiles some hundred small programs; together they cost seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    warnings.filterwarnings("ignore", ".*persistent compilation cache")
