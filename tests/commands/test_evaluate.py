"""`jaxdepth evaluate` on the run's evaluation data and on other data."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from jaxdepth.commands import cli, evaluate, pack, run
from jaxdepth.commands import compare as compare_command
from jaxdepth.commands import evaluate as evaluate_command
from jaxdepth.config import EvaluateConfig
from jaxdepth.evaluation import metrics
from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import packed


def pairs(folder, count, *, seed, scale=1000):
    """A folder of pairs of image and 16-bit depth; `scale` units per metre."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for k in range(count):
        rgb = rng.integers(0, 256, (24, 32, 3), np.uint8)
        depth = rng.uniform(1, 4, (24, 32)) * scale
        Image.fromarray(rgb).save(folder / f"{k}_rgb.png")
        Image.fromarray(depth.astype(np.uint16)).save(folder / f"{k}_depth.png")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a run that trained on `train` and evaluated on `other`.

    Both data sets have a depth scale of 5000.
    """
    root = tmp_path_factory.mktemp("evaluate")
    flags = [
        "--arch=cnn", "--size=19x38", "--batch_size=8", "--steps=2", "--augment=none",
        f"--data={pairs(root / 'train', 8, seed=0, scale=5000)}", "--split=all",
        f"--eval_data={pairs(root / 'other', 5, seed=1, scale=5000)}",
        "--depth_scale=5000", "--max_depth=3", f"--workdir={root / 'run'}",
        f"--cache_dir={root / 'cache'}",
    ]  # fmt: skip
    assert run.command(flags) == cli.OK
    return root


def scores(root, *flags):
    out = root / f"{len(list(root.iterdir()))}.json"
    command = [f"--checkpoint={root / 'run'}", f"--cache_dir={root / 'cache'}"]
    assert evaluate.command([*command, f"--out={out}", *flags]) == cli.OK
    return json.loads(out.read_text())["evaluations"][-1]


def test_results_name_the_evaluation_data(root):
    last = json.loads((root / "run" / "results.json").read_text())["evaluations"][-1]
    assert (last["data"], last["split"], last["images"]) == ("other", "all", 5)
    saved = json.loads((root / "run" / "config.json").read_text())["data"]
    assert (saved["split"], saved["eval_split"]) == ("all", "all")


def test_default_flags_reproduce_the_metrics_of_the_run(root):
    last = json.loads((root / "run" / "results.json").read_text())["evaluations"][-1]
    rescored = scores(root, "--step=last")
    for key in ("data", "split", "images", "protocol", "size", "truth"):
        assert rescored[key] == last[key]
    # The run's --max_depth=3 applies, too.
    assert rescored["metrics"]["rmse"] == pytest.approx(
        last["metrics"]["rmse"], rel=1e-5
    )
    farther = scores(root, "--step=last", "--max_depth=10")
    assert farther["metrics"]["rmse"] > rescored["metrics"]["rmse"]


def test_training_data_are_read_with_the_depth_scale_of_the_run(root):
    actual = scores(root, f"--data={root / 'train'}")
    assert (actual["data"], actual["split"], actual["images"]) == ("train", "all", 8)
    assert actual["metrics"]["rmse"] < 4  # metres, not five times as many


def test_other_data_are_read_with_the_default_depth_scale(root):
    actual = scores(root, f"--data={pairs(root / 'third', 3, seed=2)}")
    assert (actual["data"], actual["images"]) == ("third", 3)
    assert actual["metrics"]["rmse"] < 4


def test_wrong_flags_are_refused_before_scoring(root):
    command = [f"--checkpoint={root / 'run'}", f"--cache_dir={root / 'cache'}"]
    for flags, words in (
        ([f"--out={root / 'no' / 'x.json'}"], "there is no folder"),
        ([f"--per_image={root / 'run' / 'config.json'}"], "exists"),
        (["--data=rooms", "--split=tune"], "rooms have their own split"),
        (["--split=tune"], "has the splits all"),
        ([f"--out={root / 'x'}", f"--per_image={root / '.' / 'x'}"], "both name"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate.command([*command, *flags])


def test_output_files_in_the_home_folder(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    command = [f"--checkpoint={root / 'run'}", f"--cache_dir={root / 'cache'}"]
    command += ["--out=~/s.json", "--per_image=~/s.csv"]
    assert evaluate.command(command) == cli.OK
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 and rows[0]["flip_average"] == "False"
    assert len(json.loads((tmp_path / "s.json").read_text())["evaluations"]) == 2


def test_skipped_frames_are_noted(root, caplog):
    caplog.set_level("INFO")
    data = pairs(root / "gaps", 4, seed=3)
    file = data / "1_rgb.png"
    file.write_bytes(file.read_bytes()[:100])
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(data / "2_depth.png")
    out = root / "gaps.json"
    command = [f"--checkpoint={root / 'run'}", f"--cache_dir={root / 'cache'}"]
    assert evaluate.command([*command, f"--data={data}", f"--out={out}"]) == cli.OK
    actual = json.loads(out.read_text())
    assert actual["evaluations"][-1]["images"] == 2
    for words in ("1 frames that can't be used", "1 frames without any depth"):
        assert any(words in note for note in actual["notes"])
        assert words in caplog.text


def test_different_images_of_the_same_names_are_not_compared(root):
    for name in ("one", "two"):
        (root / name).mkdir()
    first = pairs(root / "one" / "p", 3, seed=4)
    second = pairs(root / "two" / "p", 3, seed=5)

    def scored(data):
        return evaluate_command.score(
            EvaluateConfig(
                checkpoint=str(root / "run"),
                data=str(data),
                max_depth=10.0,
                cache_dir=str(root / "cache"),
            )
        )

    a = scored(first)
    compare_command.refuse_different(a, scored(first))
    with pytest.raises(UserError, match="the images that they were scored on differ"):
        compare_command.refuse_different(a, scored(second))


def test_a_registered_metric_is_in_every_output(root, tmp_path, capsys):
    metrics.register_metric("mae", lambda pred, target: abs(pred - target), unit="m")
    checkpoint = [f"--cache_dir={root / 'cache'}"]
    files = [f"--out={tmp_path / 'x.json'}", f"--per_image={tmp_path / 'x.csv'}"]
    try:
        command = [*checkpoint, f"--checkpoint={root / 'run'}", *files]
        assert evaluate.command(command) == cli.OK
        printed = capsys.readouterr().out
        runs = [str(root / "run")] * 2
        comparison = tmp_path / "c.json"
        command = [*checkpoint, *runs, "--resamples=20", f"--out={comparison}"]
        assert compare_command.command(command) == cli.OK
    finally:
        metrics.METRICS.unregister("mae")
    assert "mae" in printed
    (last,) = json.loads((tmp_path / "x.json").read_text())["evaluations"][-1:]
    with open(tmp_path / "x.csv", newline="") as file:
        values = [float(row["mae"]) for row in csv.DictReader(file)]
    assert last["interval"]["metrics"]["mae"][0] < np.mean(values)
    assert 0 < last["metrics"]["mae"] < last["metrics"]["rmse"]
    (compared,) = json.loads(comparison.read_text())["comparisons"]
    assert compared["metrics"]["mae"]["difference"] == 0


def listed(folder, fx):
    """A list of the pairs of a folder with their focal length in pixels."""
    lines = [f"{k}_rgb.png {k}_depth.png {fx}" for k in range(8)]
    (folder / "frames.txt").write_text("\n".join(lines))
    return folder


def test_runs_record_the_camera_and_evaluation_uses_it(tmp_path):
    train = listed(pairs(tmp_path / "train", 8, seed=0), 20)
    other = listed(pairs(tmp_path / "other", 8, seed=1), 30)
    flags = [
        "--arch=cnn", "--size=19x38", "--batch_size=8", "--steps=1", "--augment=none",
        f"--data={train}", "--split=all", f"--eval_data={other}",
        f"--workdir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}",
    ]  # fmt: skip
    assert run.command(flags) == cli.OK
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    # Frames of 24x32 are scaled by 40 / 32 to cover 20x40.
    assert saved["camera"] == {
        "size": [20, 40], "fx": 25.0, "fy": 25.0,
        "cx": 19.5, "cy": pytest.approx(9.5),
    }  # fmt: skip
    last = json.loads((tmp_path / "run" / "results.json").read_text())["evaluations"]
    factor = {"min": 1.5, "max": 1.5, "unknown": 0}
    assert last[-1]["camera_factor"] == factor
    whole = scores(tmp_path)
    assert whole["camera_factor"] == factor
    assert whole["metrics"]["rmse"] == pytest.approx(last[-1]["metrics"]["rmse"])
    assert scores(tmp_path, "--fx=40")["camera_factor"]["max"] == 2.0
    off = scores(tmp_path, "--fx=none")
    assert off["camera_factor"] == {"min": None, "max": None, "unknown": 8}
    assert off["metrics"]["rmse"] != pytest.approx(whole["metrics"]["rmse"])


def test_unknown_focal_lengths_are_said(root, caplog):
    caplog.set_level("INFO")
    note = "note: the focal length of the training data is unknown"
    scores(root, f"--data={root / 'other'}", "--depth_scale=5000")
    assert note in caplog.text
    caplog.clear()
    scores(root, f"--data={root / 'other'}", "--depth_scale=5000", "--fx=none")
    scores(root, f"--data={root / 'train'}", "--split=all")
    assert note not in caplog.text


def test_a_packed_network_has_the_scores_of_its_run(root):
    """`jaxdepth pack`, then `evaluate` and `predict` with the file."""
    scored = scores(root, "--step=2", "--max_depth=3")
    reference = root / "scores.json"
    flags = [f"--checkpoint={root / 'run'}", "--step=2", f"--out={reference}"]
    assert evaluate.command([*flags, f"--cache_dir={root / 'cache'}"]) == cli.OK
    file = root / "packed.safetensors"
    words = [str(root / "run"), str(file), "--step=2", "--dtype=float32"]
    assert pack.command([*words, f"--scores={reference},{reference}"]) == cli.OK
    network = packed.read(file)
    assert network.step == 2 and network.data["train_name"] == "train"
    assert network.evaluations == 2 * json.loads(reference.read_text())["evaluations"]
    assert "data set train" in network.licence
    assert str(root) not in network.command and "--arch=cnn" in network.command
    again = root / "again.json"
    flags = [
        f"--checkpoint={file}", f"--data={root / 'other'}", "--split=all",
        "--depth_scale=5000", f"--cache_dir={root / 'cache'}", f"--out={again}",
    ]  # fmt: skip
    assert evaluate.command(flags) == cli.OK
    entry = json.loads(again.read_text())["evaluations"][-1]
    assert entry["metrics"] == pytest.approx(scored["metrics"], rel=1e-6)


def test_wrong_use_of_packing(root, tmp_path):
    out = str(tmp_path / "n.safetensors")
    reference = tmp_path / "scores.json"
    flags = [f"--checkpoint={root / 'run'}", "--step=2", f"--out={reference}"]
    assert evaluate.command([*flags, f"--cache_dir={root / 'cache'}"]) == cli.OK
    values = json.loads(reference.read_text())
    values["evaluations"][0]["step"] = 1
    reference.write_text(json.dumps(values))
    run_folder = str(root / "run")
    for words, message in (
        ([run_folder], "give WORKDIR OUT"),
        ([run_folder, str(tmp_path / "n.npz")], r"ends in \.safetensors"),
        ([run_folder, out, f"--scores={reference}"], "scores of step 1, but step 2"),
        ([run_folder, out, f"--scores={tmp_path}"], "can't be read"),
        ([str(root / "train"), out], "is not the work directory of a run"),
        ([out, str(tmp_path / "m.safetensors")], "give the work directory of a run"),
    ):
        with pytest.raises(UserError, match=message):
            pack.command(words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json"]
    assert pack.command([run_folder, out]) == cli.OK
    with pytest.raises(UserError, match="is a packed network, without data"):
        evaluate.command([f"--checkpoint={out}"])
