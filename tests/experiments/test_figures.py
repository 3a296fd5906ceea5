"""Figures of runs: what is drawn is what the runs left."""

import json

import pytest
from PIL import Image

from experiments import figures
from jaxdepth import cli
from jaxdepth.errors import UserError


def run_folder(folder, rmse, *, protocol="plain"):
    """A work directory of two evaluations."""
    folder.mkdir()
    same = {"protocol": protocol, "averaging": "pooled", "truth": "raw"}
    same |= {"data": "rooms", "split": "own", "size": "48x64"}
    names = ("delta1", "delta2", "delta3", "abs_rel", "log10")
    entries = [
        {"step": step, **same, "metrics": {"rmse": value} | dict.fromkeys(names, 0.5)}
        for step, value in zip((10, 20), rmse, strict=True)
    ]
    (folder / "results.json").write_text(json.dumps({"evaluations": entries}))
    lines = [json.dumps({"step": k, "loss": 1 / (k + 1)}) for k in range(20)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return str(folder)


def test_two_runs_beside_each_other(tmp_path, capsys):
    runs = [
        run_folder(tmp_path / "a", (1.5, 1.25)),
        run_folder(tmp_path / "b", (1.0, None)),
    ]
    out = tmp_path / "figures"
    assert figures.command([*runs, f"--out={out}"]) == cli.OK
    said = capsys.readouterr().out
    assert "plain, pooled, raw truth, rooms, split own, trained at 48x64" in said
    assert "1.500" in said and "1.250" in said and "1.000" in said
    with Image.open(out / "figure5.png") as picture:
        assert picture.width > 2 * picture.height > 400
    assert "<svg" in (out / "figure5.svg").read_text()


def test_what_can_not_be_compared_is_told(tmp_path):
    a = run_folder(tmp_path / "a", (1.5, 1.25))
    b = run_folder(tmp_path / "b", (1.0, 0.9), protocol="laina")
    for argv, words in (
        ([a, b], "scored differently"),
        ([], "give the work directories"),
        ([str(tmp_path / "none")], "not the work directory"),
    ):
        with pytest.raises(UserError, match=words):
            figures.command([*argv, f"--out={tmp_path / 'o'}"])
    assert not (tmp_path / "o").exists()
