"""Predictions of a finished run for pictures: which images, and what of them."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import cli, finished_runs, run, run_predictions
from jaxdepth.runtime.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps on a folder, with its evaluation images."""
    root = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    for name, count in (("train", 8), ("other", 5)):
        (root / name).mkdir()
        for k in range(count):
            rgb = rng.integers(0, 256, (24, 32, 3), np.uint8)
            depth = (1000 * (k + 1 + rng.random((24, 32)))).astype(np.uint16)
            depth[:4] = 0
            Image.fromarray(rgb).save(root / name / f"{k}_rgb.png")
            Image.fromarray(depth).save(root / name / f"{k}_depth.png")
    argv = [
        "--arch=cnn", "--size=19x25", "--batch_size=8", "--steps=2",
        "--mask_extremes=off",
        f"--data={root / 'train'}", "--split=all", f"--eval_data={root / 'other'}",
        f"--workdir={root / 'run'}", f"--cache_dir={root / 'cache'}",
    ]  # fmt: skip
    assert run.command(argv) == cli.OK
    return root


def test_scores_are_the_run_s_own_and_images_the_ones_it_saw(trained):
    found = finished_runs.read(str(trained / "run"))
    opened = run_predictions.Trained(found, step="last")
    scored = opened.score()
    last = found.evaluations[-1]
    assert scored.entry["metrics"]["rmse"] == pytest.approx(last["metrics"]["rmse"])
    assert len(scored.images) == len(opened) == 5
    shown = opened.examples([4, 1])
    assert [e.name for e in shown] == [scored.images[k]["name"] for k in (4, 1)]
    predictor = predictor_lib.load(trained / "run", step="last")
    for example, place in zip(shown, (4, 1), strict=True):
        there = example.target > 0
        assert not there[:4].any() and there[4:].all()
        assert int(example.target[there].min()) == place + 1  # metres of that image
        np.testing.assert_array_equal(example.pred, predictor.predict(example.rgb))
        # Protocol plain scores the whole frame where it has truth.
        error = (example.pred - example.target)[there].astype(float)
        rmse = scored.images[place]["rmse"]
        assert rmse == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
    assert shown[0].camera is None


def test_output_is_at_the_network_s_own_size(trained):
    opened = run_predictions.Trained(finished_runs.read(str(trained / "run")))
    rgb = opened.frames([0])[0]["rgb"]
    assert opened.output(rgb).shape == (5, 7)  # a quarter of 20x27, rounded up


def test_what_is_missing_is_told(trained, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"evaluations": []}))
    with pytest.raises(UserError, match=r"has no config\.json"):
        run_predictions.Trained(finished_runs.read(str(tmp_path)))
    saved = json.loads((trained / "run" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="no checkpoint"):
        run_predictions.Trained(finished_runs.read(str(tmp_path)))


def test_order_is_from_the_worst_to_the_best():
    images = [{"rmse": r, "delta1": d} for r, d in ((1, 0.5), (3, 0.9), (None, 0.1))]
    assert run_predictions.ranked(images, "rmse") == [1, 0]
    assert run_predictions.ranked(images, "delta1") == [2, 0, 1]
