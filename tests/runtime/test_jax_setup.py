"""The persistent compilation cache, and memory that a process retains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from jaxdepth.runtime import jax_setup

ROOT = Path(__file__).parents[2]
# Trains, and prints the exit code and the numbers of cache hits and misses.
COUNTING = """
import collections, json, sys
import jax
from jaxdepth.commands import run
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name]))
code = run.command(sys.argv[1:])
names = ("cache_hits", "cache_misses")
print(json.dumps([code, *(seen[f"/jax/compilation_cache/{k}"] for k in names)]))
"""


def count(*argv: str) -> tuple[int, int]:
    """Run a command in a process of its own; return (cache hits, cache misses)."""
    environment = tiny.environment(tensorflow=False)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *argv],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    code, hits, misses = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    return hits, misses


def test_a_second_run_compiles_nothing(tmp_path):
    flags = ["--arch=cnn", "--size=32x48", "--rooms=4", "--batch_size=4"]
    flags += ["--steps=1", f"--cache_dir={tmp_path / 'cache'}"]
    hits, misses = count(*flags, f"--workdir={tmp_path / 'a'}")
    assert misses > 0
    folder = tmp_path / "cache" / jax_setup.COMPILATION_CACHE
    files = sorted(folder.glob("*-cache"))
    assert len(files) == misses
    hits_again, misses_again = count(*flags, f"--workdir={tmp_path / 'b'}")
    # Fewer programs run: the rooms are not rendered again.
    assert misses_again == 0 and 0 < hits_again <= hits + misses
    assert files == sorted(folder.glob("*-cache"))


# Page faults of calls that need 64 MiB each. Retained memory grows once or twice
# before it always has a free block of that size, so many calls are counted.
PAGE_FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
if sys.argv[1] == "retain":
    from jaxdepth.runtime import jax_setup
    jax_setup.retain_host_memory()
f = jax.jit(lambda x: jax.lax.optimization_barrier(x + 1)[::-1].sum())
x = jnp.ones((1 << 21, 4))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
f(x).block_until_ready()
before = faults()
for _ in range(24):
    f(x).block_until_ready()
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_the_next_step_reuses_the_memory_of_the_last():
    def faults(mode):
        command = [sys.executable, "-c", PAGE_FAULTS, mode]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True,
            env=os.environ | {"XLA_FLAGS": ""},
        )  # fmt: skip
        return int(done.stdout)

    assert faults("retain") < 0.2 * faults("release")
