"""The scripts in examples/ run as their docstrings say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TINY = [
    "--arch=cnn", "--size=38x57", "--rooms=16", "--batch_size=4", "--steps=2",
    "--augment=none",
]  # fmt: skip


def execute(folder: Path, *words: str) -> str:
    """Run Python in an empty folder; its output."""
    environment = tiny.environment() | {"HOME": str(folder)}
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
    # Evaluation of the run needs the same plugin; the error names it.
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


def test_own_data_from_a_plugin_are_packed(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for k in range(8):
            rgb = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
            Image.fromarray(rgb).save(tmp_path / folder / f"{k}.png")
            depth = rng.uniform(1, 5, (48, 64))
            np.savez(tmp_path / folder / f"{k}.npz", depth=depth)
    plugin = f"--plugin={EXAMPLES / 'own_dataset.py'}"
    for workers in (0, 2):  # two processes must import the plugin as well
        words = ["prepare-data", "a", f"store{workers}", "--size=24x32", plugin]
        output = execute(tmp_path, "-m", "jaxdepth", *words, f"--workers={workers}")
        assert "8 frames" in output
    words = [*TINY, "--size=38x48", "--split=all", "--eval_data=b", "--data=a"]
    output = execute(tmp_path, "-m", "jaxdepth", "run", *words, plugin)
    assert "a, split all, raw depth: 8 images train, 8 evaluate" in output.replace(
        "b, split all", "a, split all"
    )
