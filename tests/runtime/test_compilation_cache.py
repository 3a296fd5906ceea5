"""What was compiled once is not compiled again by the next process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from jaxdepth.runtime import compilation_cache

ROOT = Path(__file__).parents[2]
# Trains and says how many programs were found compiled, and how many not.
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
    """(found, compiled) programs of a whole command in a process of its own."""
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", COUNTING, *argv],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    code, found, missed = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    return found, missed


def test_the_second_run_compiles_nothing(tmp_path):
    flags = ["--arch=cnn", "--size=32x48", "--rooms=4", "--batch_size=4"]
    flags += ["--steps=1", f"--cache_dir={tmp_path / 'cache'}"]
    found, missed = count(*flags, f"--workdir={tmp_path / 'a'}")
    assert missed > 0
    files = sorted((tmp_path / "cache" / compilation_cache.FOLDER).glob("*-cache"))
    assert len(files) == missed
    again, missed_again = count(*flags, f"--workdir={tmp_path / 'b'}")
    # Rooms are not rendered again, so there is less to do.
    assert missed_again == 0 and 0 < again <= found + missed
    assert files == sorted(
        (tmp_path / "cache" / compilation_cache.FOLDER).glob("*-cache")
    )
