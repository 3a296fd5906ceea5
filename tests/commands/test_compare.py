"""Comparison of two runs: refusals, intervals and the written comparison."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.commands import compare as compare_command
from jaxdepth.commands import evaluate as evaluate_command
from jaxdepth.evaluation import metrics, protocols
from jaxdepth.evaluation.scores import Scores
from jaxdepth.runtime.errors import UserError


def scored(
    noise, *, names=("a", "b", "c"), scenes=("x", "x", "y"), rgb=7, raw=8, **entry
):
    """Scores of a run on three images; `rgb` and `raw` are checksums of the last."""
    rng = np.random.default_rng(0)
    target = rng.uniform(1, 6, (3, 4, 5)).astype(np.float32)
    error = rng.normal(0, noise, target.shape).astype(np.float32)
    sums = metrics.Sums()
    sums.update(
        metrics.row_sums(
            jnp.asarray(target * np.exp(error)),
            jnp.asarray(target),
            valid=jnp.ones(target.shape, bool),
        )
    )
    scores = Scores(sums=sums, names=list(names), scenes=list(scenes), truths={"raw"})
    conditions = {
        "protocol": "plain", "averaging": "pooled", "truth": "raw", "data": "d",
        "split": "s", "size": "19x38", "frame_size": "4x5", "images": 3,
        "flip_average": False, "abs_rel_over": "truth",
    }  # fmt: skip
    entries = [conditions | {"averaging": "per_image"} | entry, conditions | entry]
    plain = protocols.choose("plain")
    other = int(noise * 100)  # checksum of ground truth that was not used
    checksums = [{"rgb": k, "raw": k, "filled": other} for k in range(2)]
    checksums.append({"rgb": rgb, "raw": raw, "filled": other})
    return evaluate_command.Scored(entries, {"plain": scores}, plain, checksums, [])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"protocol": "laina"}, "protocol is plain for A and laina for B"),
        ({"split": "t"}, "split is s for A and t for B"),
        ({"truth": "filled"}, "truth is raw for A and filled for B"),
        ({"flip_average": True}, "flip_average is False for A and True for B"),
        ({"names": ("a", "c", "b")}, "on different images"),
        ({"rgb": 0}, "the images that they were scored on differ"),
        ({"raw": 0}, "the raw depth of the images that they were scored on differ"),
    ],
)
def test_runs_that_were_scored_differently_are_refused(other, words):
    with pytest.raises(UserError, match=words):
        compare_command.refuse_different(scored(0.1), scored(0.1, **other))
    compare_command.refuse_different(scored(0.1), scored(0.2, size="57x76"))


def test_step_and_size_of_each_run_are_shown_and_written(tmp_path, monkeypatch, capsys):
    scored_runs = {
        "a": scored(0.1, step=3),
        "b": scored(0.2, step=7, size="57x76"),
    }
    monkeypatch.setattr(evaluate_command, "score", lambda c: scored_runs[c.checkpoint])
    monkeypatch.setenv("HOME", str(tmp_path))
    config = compare_command.CompareConfig(("a", "b"), resamples=20, out="~/c.json")
    assert compare_command.run(config) == 0
    printed = capsys.readouterr().out
    assert "A a (step 3, trained at 19x38), B b (step 7, trained at 57x76):" in printed
    assert (
        "higher is better for delta1, delta2, delta3, lower for all others" in printed
    )
    (first, _) = json.loads((tmp_path / "c.json").read_text())["comparisons"]
    assert first["step_of"] == {"a": 3, "b": 7}
    assert first["size_of"] == {"a": "19x38", "b": "57x76"}


def test_different_pixels_are_refused():
    a, b = scored(0.1), scored(0.1)
    table = b.scores["plain"].sums.table
    table["count"][1] -= 1
    with pytest.raises(UserError, match="different pixels"):
        compare_command.refuse_different(a, b)


def test_intervals_over_images_and_over_scenes():
    config = compare_command.CompareConfig(("a", "b"), resamples=500, seed=2)
    a, b = (scored(noise).scores["plain"] for noise in (0.05, 0.3))
    images, scenes = compare_command.compare(a, b, "pooled", config)
    assert (images["unit"], images["units"]) == ("image", 3)
    assert (scenes["unit"], scenes["units"]) == ("scene", 2)
    for comparison in (images, scenes):
        assert comparison["resamples"] == 500 and comparison["seed"] == 2
        rmse = comparison["metrics"]["rmse"]
        assert rmse["a_better"] == 1 and rmse["interval"][1] < 0
        assert rmse["difference"] == rmse["a"] - rmse["b"]
    unknown = dataclasses.replace(a, scenes=[None] * 3)
    assert len(compare_command.compare(unknown, b, "pooled", config)) == 1


def test_wrong_flags_are_refused():
    with pytest.raises(UserError, match="two work directories"):
        compare_command.run(compare_command.CompareConfig(("a",)))
    with pytest.raises(UserError, match="--resamples=0"):
        compare_command.CompareConfig(("a", "b"), resamples=0)
