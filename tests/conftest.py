"""Shared fixtures, and the strict settings that every test runs under."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

# Before JAX starts: eight simulated devices, CPU only.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TensorFlow then starts without Keras
# Without LLVM's optimisations, programs compile in half the time; convolutions in loops
# are slow, however. Set JAXDEPTH_TEST_OPTIMIZED=1 to test them as users compile them.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=1"
        if not os.environ.get("JAXDEPTH_TEST_OPTIMIZED")
        else "",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
    ]
)
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def share_compiled_programs() -> None:
    """Compile each program once in a session, for all its workers and processes.

    The first process makes the folder and removes it. The cache has no size limit,
    because JAX would lock and list the folder for each program. So a process may read
    an entry that another one is writing; it then compiles (see `filterwarnings`).
    """
    if "JAXDEPTH_TEST_COMPILED" not in os.environ:
        folder = tempfile.mkdtemp(prefix="jaxdepth-compiled-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["JAXDEPTH_TEST_COMPILED"] = folder
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    jax.config.update(
        "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


share_compiled_programs()

# The first call of a jitted function compiles, which no deadline survives.
hypothesis.settings.register_profile(
    "jaxdepth",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    max_examples=30,
)
hypothesis.settings.load_profile("jaxdepth")


def pytest_collection_finish() -> None:
    """Collect garbage less often, and not in the imported modules."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def data_folder() -> Path | None:
    """The folder of real samples: JAXDEPTH_TEST_DATA, or shared/data beside us."""
    named = os.environ.get("JAXDEPTH_TEST_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Path of the real sample data; the test is skipped where there is none."""
    folder = data_folder()
    if folder is None:
        pytest.skip("no real sample data here: set JAXDEPTH_TEST_DATA to its folder")
    return folder
