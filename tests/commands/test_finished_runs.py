"""Runs and tables found in folders, whatever these lack."""

import json

import pytest

from jaxdepth.commands import finished_runs
from jaxdepth.runtime.errors import UserError

ENTRY = dict.fromkeys(
    ("step", "protocol", "averaging", "truth", "data", "split", "size"), "x"
) | {"metrics": {}}


def folder(path, **files):
    path.mkdir(parents=True)
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values))
    return str(path)


def test_tables_give_the_first_finished_seed_of_each_run_once(tmp_path):
    for name in ("cnn/seed-1", "fc/seed-0"):
        folder(tmp_path / "t" / name, results={"evaluations": [ENTRY]})
    seeds = [
        {"seed": k, "workdir": f"cnn/seed-{k}", "evaluation": (k and ENTRY) or None}
        for k in (0, 1)
    ]
    other = [{"seed": 0, "workdir": "fc/seed-0", "evaluation": ENTRY}]
    absent = [{"seed": 0, "workdir": "gone", "evaluation": None}]
    tables = {
        "tables": [
            {
                "table": "1",
                "rows": [
                    {"label": "CNN+FC", "seeds": other},
                    {"label": "CNN", "seeds": seeds},
                    {"label": "CNN+Res", "seeds": absent},
                ],
            },
            {"table": "2", "rows": [{"label": "SI", "seeds": seeds}]},
        ]
    }
    (tmp_path / "t" / "tables.json").write_text(json.dumps(tables))
    alone = folder(tmp_path / "alone", config={"config": {"arch": "cnn"}})
    found = finished_runs.find([str(tmp_path / "t"), alone, alone])
    names = [run.name for run in found.runs]
    assert names == ["CNN+FC, table 1", "CNN, table 1", alone]
    assert found.runs[1].workdir.name.endswith("cnn/seed-1")
    assert found.runs[2].flag("arch") == "cnn" and found.runs[2].evaluations == []
    assert list(found.tables) == [str(tmp_path / "t")]


def test_what_is_no_run_or_damaged_is_named(tmp_path):
    cut = {k: v for k, v in ENTRY.items() if k != "split"}
    old = folder(tmp_path / "old", results={"evaluations": [cut]})
    bad = folder(tmp_path / "bad", tables={"tables": [{"rows": [{}]}]})
    torn = folder(tmp_path / "torn")
    (tmp_path / "torn" / "results.json").write_text('{"evaluations": [')
    for name, words in (
        (str(tmp_path), "nor of tables"),
        (old, "an evaluation without split"),
        (bad, r"tables\.json is damaged"),
        (torn, "is not JSON"),
    ):
        with pytest.raises(UserError, match=words):
            finished_runs.find([name])


def test_bytes_that_are_no_text_and_metrics_that_are_none(tmp_path):
    null = folder(tmp_path / "a", results={"evaluations": [ENTRY | {"metrics": None}]})
    bad = folder(tmp_path / "b")
    (tmp_path / "b" / "results.json").write_bytes(b"\xff")
    for name, words in ((null, "an evaluation without metrics"), (bad, "is not JSON")):
        with pytest.raises(UserError, match=words):
            finished_runs.find([name])
    fine = folder(tmp_path / "c", results={"evaluations": [ENTRY]})
    (tmp_path / "c" / "metrics.jsonl").write_bytes(b'\xff\n{"step": 1, "loss": 2}\n')
    assert finished_runs.find([fine]).runs[0].records == [{"step": 1, "loss": 2}]


def test_tables_at_a_url(tmp_path):
    name = folder(tmp_path / "t", tables={"tables": []})
    assert finished_runs.find([f"file://{name}"]).tables == {
        f"file://{name}": {"tables": []}
    }
