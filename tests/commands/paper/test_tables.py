"""The paper's tables: runs that are started, reused or refused, and the output."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdepth import config as config_lib
from jaxdepth.commands import cli
from jaxdepth.commands.paper import published, tables
from jaxdepth.evaluation.metrics import METRICS
from jaxdepth.recipes import RECIPES
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.subprocesses import Completed
from jaxdepth.weights import files

OK = Completed(cli.OK, "", False)


class Runs:
    """A stand-in for `jaxdepth run` that writes a work directory without training.

    Args:
      ends: outcomes of runs that do not succeed, by folder.
      depth: kind of ground truth in the data.
    """

    def __init__(self, ends=None, depth="filled"):
        self.ends, self.depth = ends or {}, depth
        self.started = []

    def __call__(self, flags):
        config = cli.parse_config(flags, prog="test")
        config = config_lib.resolve(config, platform="cpu")
        images = config.data.train_images or 600
        config = config_lib.resolve_steps(config, train_images=images)
        folder = Path(str(config.output.workdir))
        name = "/".join(folder.parts[-2:])
        self.started.append(name)
        # These are resolved from the data.
        saved = config_lib.to_json(config) | {"depth": self.depth, "split": "tune"}
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "config": saved,
            "command": " ".join(["python -m experiments.run", *flags]),
            "data": {"train_images": images},
            "versions": {"jax": "1"},
            "devices": {"platform": "cpu"},
        }
        (folder / "config.json").write_text(json.dumps(record))
        if name in self.ends:
            return self.ends[name]
        (folder / "results.json").write_text(json.dumps(results(config)))
        return OK


def rmse(run, seed, step):
    """An RMSE that differs between runs, seeds and steps."""
    return 1 + 0.1 * sorted(published.RUNS).index(run) + 0.02 * seed**2 + 1 / step


def results(config):
    run = Path(config.output.workdir).parts[-2]
    conditions = {"protocol": "laina@57x76", "averaging": "pooled", "truth": "filled"}
    conditions |= {
        "data": "nyu",
        "split": "tune",
        "size": config.model.size,
        "images": 81,
    }
    entries = []
    for step in (config.train.steps // 2, config.train.steps):
        values = dict.fromkeys(METRICS, 0.5) | {
            "rmse": rmse(run, config.train.seed, step)
        }
        other = values | {"rmse": 99.0}
        entries.append(
            {"step": step, **conditions, "protocol": "eigen", "metrics": other}
        )
        entries.append({"step": step, **conditions, "metrics": values})
    level = dict.fromkeys(METRICS, 0.25) | {"rmse": 2.0 + config.train.seed}
    names = ("constant", "constant_delta", "mean_map")
    return {
        "evaluations": entries,
        "baselines": dict.fromkeys(names, level),
        "command": "python",
        "images_per_s": 3.0,
    }


def tabulate(folder, *flags, runs=None, scale="small", table="all", seeds=1):
    options: dict[str, Any] = {"table": table, "scale": scale, "seeds": seeds}
    config = tables.TablesConfig(workdir=str(folder), **options)
    runs = runs or Runs()
    values = tables.flag_values(flags)
    command = "python -m experiments.tables again"
    code = tables.run(config, values, command=command, start=runs)
    return code, runs, json.loads((folder / "tables.json").read_text())


def test_tables_have_every_row_with_mean_and_spread(tmp_path, capsys):
    code, runs, contents = tabulate(tmp_path, "--data=d", "--seed=3", seeds=2)
    assert code == cli.OK
    # Two of ten runs need weights; each of the others runs once per seed.
    without = [
        run for run in published.RUNS if run not in ("upproj_imagenet", "upproj_nyu")
    ]
    wanted = [f"{run}/seed-{seed}" for run in without for seed in (3, 4)]
    assert sorted(runs.started) == sorted(wanted)
    one, two, three, four = contents["tables"]
    assert contents["seeds"] == [3, 4] and contents["scale"] == "small"
    assert one["measured_by"] == (
        "laina@57x76, pooled, filled truth, nyu, split tune, trained at 57x76, "
        "81 images"
    )
    row = one["rows"][1]
    values = [rmse("cnn", seed, 480) for seed in (3, 4)]
    assert row["mean"]["rmse"] == pytest.approx(np.mean(values))
    assert row["spread"]["rmse"] == pytest.approx(np.std(values, ddof=1))
    assert row["label"] == "CNN" and row["status"] == "done" and not row["ours"]
    assert row["also_in"] == ["Table 2, scale-invariant"]
    assert row["paper"] == {"delta1": 0.195, "abs_rel": 1.2e6, "rmse": 1.22}
    assert row["seeds"][1]["workdir"] == "cnn/seed-4"
    assert row["seeds"][1]["evaluation"]["metrics"]["rmse"] == values[1]
    # The curve has the protocol of the last evaluation.
    curve = [point["metrics"]["rmse"] for point in row["seeds"][0]["curve"]]
    assert curve == [rmse("cnn", 3, step) for step in (240, 480)]
    assert one["rows"][4]["also_in"] == ["Table 4"]
    assert two["rows"][1]["mean"] == row["mean"]
    absent = one["rows"][3]
    assert absent["status"] == "absent" and absent["mean"] is None
    assert "--init=imagenet" in absent["reason"]
    assert {b["name"] for b in one["baselines"]} == {
        "constant", "constant_delta", "mean_map"
    }  # fmt: skip
    assert one["baselines"][0]["mean"]["rmse"] == 5.5
    assert [b["train_images"] for b in three["baselines"]] == [25] * 3
    assert [point["step"] for point in four["curve"]] == [240, 480]
    untrained = statistics.fmean(rmse("upproj_random", s, 240) for s in (3, 4))
    assert four["curve"][0]["rmse"] == {"upproj_random": pytest.approx(untrained)}
    printed = capsys.readouterr().out
    number = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert "seeds 3, 4: mean" in printed
    assert number in printed and "1.220" in printed and "81 images" in printed
    assert "CNN+Res: absent, --init=imagenet needs" in printed
    assert "truth near zero" in printed
    text = (tmp_path / "tables.md").read_text()
    assert f"| {number} | 1.220 |" in text and "experiments.tables again" in text


def test_finished_runs_are_reused_and_stopped_runs_resumed(tmp_path):
    stopped = Runs({"cnn/seed-0": Completed(130, "", True)})
    code, runs, contents = tabulate(tmp_path, runs=stopped, table="2")
    assert code == cli.INTERRUPTED
    assert runs.started == ["cnn_mse/seed-0", "cnn/seed-0"]
    status = [row["status"] for row in contents["tables"][0]["rows"]]
    assert status == ["done", "waiting", "waiting"]
    reasons = [row["reason"] for row in contents["tables"][0]["rows"]]
    assert reasons == [None, "stopped", "not run yet"]
    code, runs, contents = tabulate(tmp_path, table="2")
    assert code == cli.OK and runs.started == ["cnn/seed-0", "cnn_berhu/seed-0"]
    assert all(row["status"] == "done" for row in contents["tables"][0]["rows"])
    # Table 1 shares a run with Table 2.
    _, runs, _ = tabulate(tmp_path, table="1")
    assert [name for name in runs.started if "cnn/" in name] == []
    assert tabulate(tmp_path, table="2")[1].started == []


def test_runs_on_data_with_raw_depth_only_are_reused(tmp_path):
    tabulate(tmp_path, runs=Runs(depth="raw"), table="3")
    assert tabulate(tmp_path, runs=Runs(), table="3")[1].started == []
    # An explicit --depth=filled differs from the run.
    with pytest.raises(UserError, match="--depth=raw before, filled now"):
        tabulate(tmp_path, "--depth=filled", table="3")


def test_runs_on_data_with_filled_depth_only_are_reused(tmp_path):
    tabulate(tmp_path, runs=Runs(depth="filled"), table="3")
    assert tabulate(tmp_path, runs=Runs(), table="3")[1].started == []


def test_runs_of_another_split_are_refused(tmp_path):
    tabulate(tmp_path, "--split=tune", table="3")
    assert tabulate(tmp_path, "--split=tune", table="3")[1].started == []
    with pytest.raises(UserError, match="--split=tune before, auto now"):
        tabulate(tmp_path, table="3")


def test_other_tables_and_foreign_files_are_preserved(tmp_path, capsys):
    tabulate(tmp_path, table="3", seeds=2)
    capsys.readouterr()
    contents = tabulate(tmp_path, table="2")[2]
    assert [table["table"] for table in contents["tables"]] == ["2", "3"]
    assert contents["seeds"] == [0, 1]
    printed = capsys.readouterr().out
    assert "Table 2" in printed and "Table 3, unpooling" not in printed
    text = (tmp_path / "tables.md").read_text()
    assert "seeds 0, 1: mean" in text and "rmse in metres; seed 0" in text
    (tmp_path / "tables.md").write_text("a note")
    with pytest.raises(UserError, match=r"tables\.md exists and was not written"):
        tabulate(tmp_path, table="2")
    assert (tmp_path / "tables.md").read_text() == "a note"


def test_damaged_files_are_named(tmp_path):
    tabulate(tmp_path, table="3")
    path = tmp_path / "unpool_zero" / "seed-0" / "config.json"
    content = path.read_text()
    path.write_text("{}")
    with pytest.raises(UserError, match=r"was not written by jaxdepth run"):
        tabulate(tmp_path, table="3")
    path.write_text(content)
    path.with_name("results.json").write_text("{}")  # the run starts again
    assert tabulate(tmp_path, table="3")[1].started == ["unpool_zero/seed-0"]
    (tmp_path / "tables.json").write_text(
        '{"command": "experiments.tables", "scale": "small", "tables": [{}]}'
    )
    with pytest.raises(UserError, match=r"tables\.json is damaged"):
        tabulate(tmp_path, table="3")


def test_a_run_without_results_has_failed(tmp_path):
    def nothing(_):
        return OK

    code, _, contents = tabulate(tmp_path, runs=nothing, table="3")
    assert code == cli.MACHINE
    assert "wrote no results.json" in contents["tables"][0]["rows"][0]["reason"]


def test_a_failed_run_does_not_affect_other_rows(tmp_path, caplog):
    ends = {"cnn_mse/seed-0": Completed(3, "stopped: the loss is not finite", False)}
    code, runs, contents = tabulate(tmp_path, runs=Runs(ends), table="2")
    assert code == cli.NON_FINITE and len(runs.started) == 3
    rows = contents["tables"][0]["rows"]
    assert [row["status"] for row in rows] == ["failed", "done", "done"]
    assert rows[0]["reason"] == "the loss is not finite"
    assert "cnn_mse/seed-0 failed: the loss is" in caplog.text
    assert "\n\nmean squared: failed, the loss" in (tmp_path / "tables.md").read_text()
    ends = {"cnn_mse/seed-0": Completed(-9, "killed by SIGKILL", False)}
    assert tabulate(tmp_path, runs=Runs(ends), table="2")[0] == cli.MACHINE


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lr=0.5"], r"--lr=0\.001 before, 0\.5 now"),
        (["--steps=7"], r"--steps=480 before, 7 now"),
        (["--data=other"], r"--data=rooms before, other now"),
        (["--train_images=9"], r"--train_images=500 before, 9 now"),
    ],
)
def test_other_flags_are_refused_before_any_run_starts(tmp_path, flags, words):
    tabulate(tmp_path, table="2")
    runs = Runs()
    with pytest.raises(UserError, match=words):
        tabulate(tmp_path, *flags, runs=runs)
    assert not runs.started


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--loss=mse"], "--loss: the rows of a table set this flag"),
        (["--recipe=demo"], "--recipe: the rows"),
        (["--stepz=3"], "did you mean --steps"),
        (["--steps=x"], "--steps=x: expected a whole number"),
        (["picture.png"], "expected a flag"),
        (["--seed=-1"], "--seed=-1: expected a whole number"),
        (["--weights=none.safetensors"], "no such file"),
    ],
)
def test_wrong_flags_are_refused_before_files_are_written(tmp_path, flags, words):
    with pytest.raises(UserError, match=words):
        tabulate(tmp_path / "t", *flags)
    assert not (tmp_path / "t").exists()
    with pytest.raises(UserError, match="--seeds=0"):
        tables.TablesConfig(seeds=0)


def test_weights_are_used_by_the_rows_with_their_init(tmp_path):
    for init, layout in (("imagenet", "torchvision"), ("nyu", "fcrn")):
        weights = files.Weights.of_layout(
            {"params/x": np.zeros(1, np.float32)},
            layout,
            init=init,
            origin="",
            sha256="",
            licence="",
        )
        files.write(tmp_path / f"{init}.safetensors", weights)
    both = ",".join(str(tmp_path / f"{x}.safetensors") for x in ("nyu", "imagenet"))
    runs = Runs()
    code, _, contents = tabulate(
        tmp_path / "t", f"--weights={both}", runs=runs, table="4", scale="paper"
    )
    rows = contents["tables"][0]["rows"]
    assert code == cli.OK and [row["status"] for row in rows] == ["done"] * 3
    flags = [row["flags"] for row in rows]
    assert [f["init"] for f in flags] == ["imagenet", "nyu", "random"]
    assert [f["layout"] for f in flags] == ["torchvision", "fcrn", "torchvision"]
    # The paper's 500 images for 20 epochs in batches of 8.
    assert all((f["train_images"], f["steps"]) == (500, 1250) for f in flags)
    # Finished runs are reused without --weights.
    _, runs, contents = tabulate(tmp_path / "t", table="4", scale="paper")
    assert not runs.started and contents["tables"][0]["rows"][1]["status"] == "done"
    one = str(tmp_path / "nyu.safetensors")
    with pytest.raises(UserError, match="two files are for --init=nyu"):
        tabulate(tmp_path / "u", f"--weights={one},{one}")


def test_flags_override_the_scale(tmp_path):
    _, _, contents = tabulate(
        tmp_path,
        "--size",
        "60x80",
        "--epochs=2",
        "--train_images=64",
        "--warmup_epochs=0.5",
        table="1",
    )
    flags = [row["flags"] for row in contents["tables"][0]["rows"] if row["flags"]]
    assert {(f["size"], f["steps"], f["warmup_steps"]) for f in flags} == {
        ("60x80", 8, 2)
    }
    assert {f["lr"] for f in flags} == {3e-4, 1e-3, 6e-4}


def test_rows_of_a_table_have_the_same_steps_and_images():
    for name in ("1", "2", "4"):
        budgets = {
            tuple(
                published.scaled(row.run, "small")[k] for k in ("steps", "train_images")
            )
            for row in published.TABLES[name].rows
        }
        assert budgets == {(480, 500)}


def test_published_numbers_equal_those_in_the_recipes():
    shown = {
        published.RUNS[row.run].recipe
        for t in published.TABLES.values()
        for row in t.rows
    }
    quoted = {name for name in RECIPES if name.startswith("table")}
    aliases = {"table2_si", "table1_upproj"}  # second names of other recipes
    assert shown == quoted - aliases
    for table in published.TABLES.values():
        for row in table.rows:
            doc = RECIPES[published.RUNS[row.run].recipe].doc
            if row.paper:
                delta1, tail = doc.split("the paper: ")[1].split(" ")[:2]
                assert float(delta1.rstrip(",")) == row.paper["delta1"]
                assert float(tail) == row.paper["rmse"]


def test_flags_are_split_into_those_of_tables_and_those_of_runs(monkeypatch):
    parts = []

    def run(config, flags, *, command, start):
        parts.append((config, flags, command))
        return cli.OK

    monkeypatch.setattr(tables, "run", run)
    words = ["--table", "1", "--lr", "0.1", "--scale=smoke", "--data=x", "--seeds=2"]
    assert tables.flag_values(["--allow_outside", "--lr=1"]) == {
        "allow_outside": "true",
        "lr": "1",
    }
    assert tables.flag_values(["--allow-outside=false"]) == {"allow_outside": "false"}
    assert tables.command(words) == cli.OK
    config = tables.TablesConfig(table="1", scale="smoke", seeds=2)
    command = "jaxdepth tables --table 1 --lr 0.1 --scale=smoke --data=x --seeds=2"
    assert parts == [(config, {"lr": "0.1", "data": "x"}, command)]
