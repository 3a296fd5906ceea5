"""Runs on stores of both units: the same depth gives the same numbers."""

import json

import numpy as np
import pytest

from jaxdepth.commands import cli, run
from jaxdepth.data.sources import Frame, ReadOptions
from jaxdepth.data.store.writer import Job, Packing
from tests.data.memory import Memory

SIZE = (60, 80)


def eighths(seed):
    """A frame whose depth both units hold exactly: up to 60 m, in steps of 1/8 m."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    depth = rng.integers(8, 8 * 60, SIZE) / 8
    return Frame(rgb, filled=np.where(rng.random(SIZE) < 0.2, 0, depth))


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    split = {"own": {"train": [*range(8)], "eval": [8, 9]}}
    for unit, max_depth in ((1000, 60.0), (256, 80.0)):
        source = Memory([eighths(k) for k in range(10)], split=split)
        packing = Packing(size=SIZE, max_depth=max_depth)
        Job(source, packing, ReadOptions()).write(folder / str(unit))
    return folder


@pytest.mark.parametrize("cache", ["none", "device"])
def test_runs_do_not_depend_on_the_unit(stores, tmp_path, cache):
    results = {}
    for unit in (1000, 256):
        out = tmp_path / str(unit)
        flags = [
            "--arch=cnn", "--size=57x76", "--steps=2", "--batch_size=8", "--lr=1e-4",
            "--max_depth=60", "--augment=full", f"--cache={cache}", "--log_every=1",
            f"--data={stores / str(unit)}", f"--workdir={out}",
            f"--cache_dir={tmp_path}",
        ]  # fmt: skip
        assert run.command(flags) == cli.OK
        lines = (out / "metrics.jsonl").read_text().splitlines()
        saved = json.loads((out / "results.json").read_text())
        last = saved["evaluations"][-1]
        results[unit] = {
            "training mean": json.loads((out / "config.json").read_text())[
                "training_mean"
            ],
            "loss": [x["loss"] for x in map(json.loads, lines) if "loss" in x],
            "validation": last["loss"],
            "rmse": last["metrics"]["rmse"],
            **{k: v["rmse"] for k, v in saved["baselines"].items()},
        }
    for name, value in results[1000].items():
        assert results[256][name] == pytest.approx(value, rel=1e-3), name
    assert 25 < results[256]["training mean"] < 35
