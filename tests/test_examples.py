"""The scripts in examples/ run as their docstrings say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TINY = [
    "--arch=cnn", "--size=38x57", "--rooms=16", "--batch_size=4", "--steps=2",
    "--augment=none",
]  # fmt: skip


def execute(folder: Path, *words: str) -> str:
    """Run Python in an empty folder; its output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(folder)}
    del environment["XLA_FLAGS"]  # one device
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) <= 45


def test_a_loss_from_a_plugin_trains_and_is_recorded(tmp_path):
    plugin = EXAMPLES / "own_loss.py"
    words = [*TINY, "--loss=relative", f"--plugin={plugin}", "--workdir=run"]
    execute(tmp_path, "-m", "jaxdepth", "run", *words)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["loss"] == "relative" and config["plugin"] == str(plugin)
    # Scoring the run needs the same plugin, and says so.
    words = ["-m", "jaxdepth", "evaluate", "--checkpoint=run", "--step=last"]
    output = execute(tmp_path, *words, f"--plugin={plugin}")
    assert "plain" in output
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and f"--plugin={plugin}" in done.stderr


def test_a_loss_from_a_script_trains(tmp_path):
    output = execute(tmp_path, str(EXAMPLES / "own_loss.py"), *TINY)
    assert "with loss relative" in output


def test_an_own_loop_trains(tmp_path):
    output = execute(tmp_path, str(EXAMPLES / "own_loop.py"), "2")
    assert "step 2: loss" in output
