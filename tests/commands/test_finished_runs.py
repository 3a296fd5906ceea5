"""Reading finished runs and folders of tables, and the predictions of a run."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import cli, finished_runs, run
from jaxdepth.runtime.errors import UserError

ENTRY = dict.fromkeys(
    ("protocol", "averaging", "truth", "data", "split", "size"), "x"
) | {"step": 3, "metrics": {"rmse": 0.5, "abs_rel": None}}


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
    selection = finished_runs.find([str(tmp_path / "t"), alone, alone])
    names = [run.name for run in selection.runs]
    assert names == ["CNN+FC, table 1", "CNN, table 1", alone]
    assert selection.runs[1].workdir.name.endswith("cnn/seed-1")
    assert (
        selection.runs[2].flag("arch") == "cnn" and selection.runs[2].evaluations == []
    )
    assert list(selection.tables) == [str(tmp_path / "t")]


def test_other_folders_and_damaged_files_are_refused(tmp_path):
    cut = {k: v for k, v in ENTRY.items() if k != "split"}
    old = folder(tmp_path / "old", results={"evaluations": [cut]})
    bad = folder(tmp_path / "bad", tables={"tables": [{"rows": [{}]}]})
    torn = folder(tmp_path / "torn")
    (tmp_path / "torn" / "results.json").write_text('{"evaluations": [')
    for name, words in (
        (str(tmp_path), "or of tables"),
        (old, "an evaluation without split"),
        (bad, r"tables\.json is damaged"),
        (torn, "is not JSON"),
    ):
        with pytest.raises(UserError, match=words):
            finished_runs.find([name])


@pytest.mark.parametrize(
    ("evaluations", "words"),
    [
        (3, "evaluations are not a list"),
        (None, "evaluations are not a list"),
        ([3], "an evaluation without averaging, "),
        ([[ENTRY]], "an evaluation without averaging, "),
        ([ENTRY, ENTRY | {"step": "3"}], "an evaluation without step"),
        ([ENTRY | {"metrics": [0.5]}], "an evaluation without metrics"),
        ([ENTRY | {"metrics": {"rmse": "0.5"}}], "an evaluation without metrics"),
        ([ENTRY | {"protocol": {}}], "an evaluation without protocol"),
    ],
)
def test_results_with_wrong_values_are_refused(tmp_path, evaluations, words):
    path = folder(tmp_path / "a", results={"evaluations": evaluations})
    with pytest.raises(UserError, match=words):
        finished_runs.find([path])


def test_a_config_that_is_no_object_is_refused(tmp_path):
    path = folder(tmp_path / "a", config={"config": [1]})
    with pytest.raises(UserError, match="its config is not a JSON object"):
        finished_runs.find([path])


def test_undecodable_files_and_null_metrics(tmp_path):
    null = folder(tmp_path / "a", results={"evaluations": [ENTRY | {"metrics": None}]})
    bad = folder(tmp_path / "b")
    (tmp_path / "b" / "results.json").write_bytes(b"\xff")
    for name, words in ((null, "an evaluation without metrics"), (bad, "is not JSON")):
        with pytest.raises(UserError, match=words):
            finished_runs.find([name])
    fine = folder(tmp_path / "c", results={"evaluations": [ENTRY]})
    (tmp_path / "c" / "metrics.jsonl").write_bytes(b'\xff\n{"step": 1, "loss": 2}\n')
    assert finished_runs.find([fine]).runs[0].records == [{"step": 1, "loss": 2}]


def test_tables_in_a_folder_named_by_url(tmp_path):
    name = folder(tmp_path / "t", tables={"tables": []})
    assert finished_runs.find([f"file://{name}"]).tables == {
        f"file://{name}": {"tables": []}
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps on a folder, with its evaluation images."""
    root = tmp_path_factory.mktemp("finished_run")
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


def test_scores_and_examples_are_of_the_evaluation_frames(trained):
    finished = finished_runs.read(str(trained / "run"))
    opened = finished_runs.TrainedRun(finished, step="last")
    scored = opened.score()
    last = finished.evaluations[-1]
    assert scored.entry["metrics"]["rmse"] == pytest.approx(last["metrics"]["rmse"])
    assert len(scored.images) == len(opened) == 5
    examples = opened.examples([4, 1])
    assert [e.name for e in examples] == [scored.images[k]["name"] for k in (4, 1)]
    predictor = predictor_lib.load(trained / "run", step="last")
    for example, index in zip(examples, (4, 1), strict=True):
        measured = example.target > 0
        assert not measured[:4].any() and measured[4:].all()
        assert int(example.target[measured].min()) == index + 1  # metres
        frame = {"rgb": example.rgb, "camera": None}
        np.testing.assert_array_equal(example.pred, predictor.predict_frame(frame))
        # Protocol plain scores all measured pixels of the frame.
        error = (example.pred - example.target)[measured].astype(float)
        rmse = scored.images[index]["rmse"]
        assert rmse == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
    assert examples[0].camera is None


def test_output_has_the_output_size_of_the_network(trained):
    opened = finished_runs.TrainedRun(finished_runs.read(str(trained / "run")))
    rgb = opened.frames([0])[0]["rgb"]
    assert opened.output(rgb).shape == (5, 7)  # a quarter of 20x27, rounded up


def test_missing_config_or_checkpoint_is_an_error(trained, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"evaluations": []}))
    with pytest.raises(UserError, match=r"has no config\.json"):
        finished_runs.TrainedRun(finished_runs.read(str(tmp_path)))
    saved = json.loads((trained / "run" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="no checkpoint"):
        finished_runs.TrainedRun(finished_runs.read(str(tmp_path)))


def test_worst_first_follows_the_direction_of_the_metric():
    images = [{"rmse": r, "delta1": d} for r, d in ((1, 0.5), (3, 0.9), (None, 0.1))]
    assert finished_runs.worst_first(images, "rmse") == [1, 0]
    assert finished_runs.worst_first(images, "delta1") == [2, 0, 1]
