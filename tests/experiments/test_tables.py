"""The smallest whole table: three networks that train, and their numbers."""

import json

import pytest
import tiny

from jaxdepth.commands import cli
from jaxdepth.commands.paper import tables


@pytest.mark.slow
def test_a_table_by_one_command(tmp_path, monkeypatch, capsys):
    for name in ("XLA_FLAGS", "PYTHONPATH"):
        monkeypatch.setenv(name, tiny.environment(tensorflow=False)[name])
    flags = ["--table=2", "--scale=smoke", f"--workdir={tmp_path / 't'}"]
    flags += [f"--cache_dir={tmp_path / 'c'}", "--size=19x38", "--steps=2"]
    assert tables.command(flags) == cli.OK
    contents = json.loads((tmp_path / "t" / "tables.json").read_text())
    (table,) = contents["tables"]
    assert table["measured_by"].startswith("plain, pooled, raw truth, rooms")
    for row in table["rows"]:
        (seed,) = row["seeds"]
        results = tmp_path / "t" / seed["workdir"] / "results.json"
        last = json.loads(results.read_text())["evaluations"][-1]
        assert row["status"] == "done" and last["step"] == 2
        assert row["mean"]["rmse"] == last["metrics"]["rmse"] > 0
        assert row["flags"]["train_images"] == 32
    printed = capsys.readouterr().out
    assert "Table 2, losses on cnn (scale smoke)" in printed and "mean_map" in printed
    # A second call reuses the finished runs.
    before = (tmp_path / "t" / "cnn" / "seed-0" / "run.log").read_text()
    assert tables.command(flags) == cli.OK
    assert (tmp_path / "t" / "cnn" / "seed-0" / "run.log").read_text() == before
