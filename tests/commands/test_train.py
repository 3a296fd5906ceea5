"""Complete runs at a small size: their outputs, and the errors of wrong flags."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

import jaxdepth
from jaxdepth import workdir
from jaxdepth.commands import cli, compare, evaluate, pack, predict, run
from jaxdepth.commands import train as train_command
from jaxdepth.config import Config
from jaxdepth.data.store.reader import Store
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.training import sharding
from jaxdepth.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
TINY = ["--size=48x64", "--rooms=12", "--batch_size=8", "--augment=none"]


def train(folder: Path, cache: Path, *flags: str) -> int:
    return run.command(
        ["--arch=cnn", *TINY, f"--workdir={folder}", f"--cache_dir={cache}", *flags]
    )


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("runs") / "one"
    assert train(folder, cache, "--steps=4", "--eval_every=2") == cli.OK
    return folder


def test_a_run_writes_all_files_of_a_work_directory(trained):
    results = json.loads((trained / "results.json").read_text())
    entries = results["evaluations"]
    assert [e["step"] for e in entries] == sorted(e["step"] for e in entries)
    last = entries[-1]
    assert (last["step"], last["protocol"], last["averaging"]) == (4, "plain", "pooled")
    assert last["data"] == "rooms" and last["split"] == "own" and last["images"] == 32
    assert last["size"] == "48x64" and last["truth"] == "raw"
    assert 0 < last["metrics"]["rmse"] < 20 and 0 <= last["metrics"]["delta1"] <= 1
    assert all(0 < e["loss"] < 10 for e in entries)
    assert set(results["baselines"]) == {"constant", "constant_delta", "mean_map"}
    assert all(m["rmse"] > 0 for m in results["baselines"].values())
    assert {"command", "versions", "devices", "images_per_s"} <= set(results)
    records = [
        json.loads(x) for x in (trained / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert {"loss", "learning_rate", "images_per_s"} <= set(records[-1])
    for name in ("panels/step-0000004.png", "curves.png"):
        assert min(picture(trained / name).shape[:2]) > 200
    log = (trained / "run.log").read_text()
    assert "no data given: training on 12 rendered rooms" in log and "rmse" in log
    assert list((trained / "events").iterdir())


def test_baselines_agree_with_numpy(trained, cache):

    results = json.loads((trained / "results.json").read_text())
    folder = next(p for p in cache.iterdir() if p.name.startswith("rooms"))
    rooms = Store.open(folder)
    rows = rooms.splits["own"]
    train_m = rooms.gather(rows["train"], depth="raw")[1] / 1000
    truth = np.stack([f["depth"]["raw"] for f in rooms.full_frames(rows["eval"])])
    valid, measured = truth > 0, train_m > 0
    constant = train_m[measured].mean()
    expected = np.sqrt(np.mean((truth[valid] - constant) ** 2))
    assert results["baselines"]["constant"]["rmse"] == pytest.approx(expected, rel=1e-5)
    mean_map = (train_m.sum(0) + (~measured).all(0) * constant) / np.maximum(
        measured.sum(0), 1
    )
    error = (truth - mean_map)[valid]
    expected = np.sqrt(np.mean(error**2))
    assert results["baselines"]["mean_map"]["rmse"] == pytest.approx(expected, rel=1e-4)


def test_a_finished_run_is_resumed_with_more_steps(trained, cache, capsys):
    before = json.loads((trained / "results.json").read_text())["evaluations"]
    assert train(trained, cache, "--steps=6", "--eval_every=6") == cli.OK
    after = json.loads((trained / "results.json").read_text())["evaluations"]
    assert after[: len(before)] == before and after[-1]["step"] == 6
    records = [
        json.loads(x) for x in (trained / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in records][-2:] == [5, 6]


def test_steps_of_a_damaged_checkpoint_are_trained_again(tmp_path, trained, cache):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    last = max(int(p.name) for p in (folder / "checkpoints").iterdir())
    for file in (folder / "checkpoints" / str(last) / "model").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert train(folder, cache, f"--steps={last}", "--eval_every=6") == cli.OK
    assert jaxdepth.load(str(folder), step="last") is not None
    opened = Checkpoints(str(folder / "checkpoints"), read_only=True)
    assert opened.steps()[-1] == last


def test_a_work_directory_is_locked_by_one_run(tmp_path, cache):
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        workdir.WorkDir.open(folder).locked(),
        pytest.raises(UserError, match="in use by another run"),
    ):
        train(folder, cache, "--steps=1")
    assert train(folder, cache, "--steps=1") == cli.OK


def test_resume_from_a_run_needs_more_steps_than_it_has(tmp_path, trained, cache):
    steps = Checkpoints(str(trained / "checkpoints"), read_only=True).steps()[-1]
    with pytest.raises(
        UserError, match=f"--steps={steps} includes them; give a larger"
    ):
        train(tmp_path / "a", cache, f"--resume={trained}", f"--steps={steps}")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match=r"--steps_per_call=5: .* not a multiple"):
        train(
            tmp_path / "a", cache,
            f"--resume={trained}", "--steps=20", "--steps_per_call=5",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"architectures": ["of another program"]}'),
        ("config.json", '{"config": [1]}'),
        ("config.json", '{"config": {"steps": {}}}'),
    ],
)
def test_a_configuration_of_another_program_is_refused(tmp_path, cache, name, text):
    (tmp_path / name).write_text(text)
    words = "was not written by jaxdepth run|is damaged"
    with pytest.raises(UserError, match=words):
        train(tmp_path, cache, "--steps=1")
    with pytest.raises(UserError, match=words):
        jaxdepth.load(str(tmp_path))


def test_results_without_evaluations_are_written_again(tmp_path, cache):
    assert train(tmp_path, cache, "--steps=1") == cli.OK
    (tmp_path / "results.json").write_text("{}")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": null}\n')
    assert train(tmp_path, cache, "--steps=2") == cli.OK


def test_refused_flags_do_not_change_the_run(trained, cache):
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="more than --steps=2"):
        train(trained, cache, "--steps=2")
    with pytest.raises(UserError, match="--protocol=auto before, eigen now"):
        train(trained, cache, "--steps=8", "--protocol=eigen")
    assert before == {
        p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()
    }


def test_files_in_the_work_directory_survive_an_error(cache, tmp_path):
    (tmp_path / "kept").write_text("here")
    with pytest.raises(UserError):
        train(tmp_path, cache, "--steps=1", "--resume=/nowhere")
    # The corrected command works as in a new folder.
    assert train(tmp_path, cache, "--steps=1") == cli.OK
    assert (tmp_path / "kept").read_text() == "here"


def test_a_loss_that_is_not_finite_is_never_saved(cache, tmp_path, caplog):
    # The loss is logged every 50 steps but saved at each, so saving must check it.
    flags = ["--lr=1e30", "--steps=30", "--log_every=50", "--save_every=1"]
    assert train(tmp_path / "run", cache, *flags, "--eval_every=0") == cli.NON_FINITE
    assert "loss is not finite" in caplog.text
    saved = Checkpoints(str(tmp_path / "run" / "checkpoints"), read_only=True).steps()
    records = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert records[-1]["loss"] is None and max(saved, default=0) < records[-1]["step"]


def test_resume_from_another_run(trained, cache, tmp_path):
    last_step = Checkpoints(str(trained / "checkpoints"), read_only=True).steps()[-1]
    flags = [f"--steps={last_step + 2}", f"--resume={trained}", "--eval_every=0"]
    assert train(tmp_path / "next", cache, *flags) == cli.OK
    records = (tmp_path / "next" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in records] == [
        last_step + 1,
        last_step + 2,
    ]
    with pytest.raises(
        UserError, match="has --arch=cnn, this run has --arch=cnn_trans"
    ):
        train(tmp_path / "other", cache, *flags, "--arch=cnn_trans")
    for flag in ("--optimizer=sgd", "--freeze=encoder", "--encoder_lr_factor=0.5"):
        with pytest.raises(
            UserError, match=f"this run has {flag}, which needs another"
        ):
            train(tmp_path / "other", cache, *flags, flag)
    # Weight decay, clipping and learning rate do not change the state of Adam.
    alike = ["--optimizer=adamw", "--weight_decay=0.1", "--decay=all", "--lr=0.1"]
    alike += ["--clip_norm=1", "--schedule=cosine"]
    assert train(tmp_path / "alike", cache, *flags, *alike) == cli.OK


def records(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def optimizers(folder: Path) -> list[int]:
    """Steps whose checkpoints hold the optimizer state."""
    paths = folder.glob("checkpoints/*/optimizer")
    return sorted(int(path.parent.name) for path in paths)


def test_a_run_without_optimizer_state_predicts_and_is_resumed(
    trained, cache, tmp_path, caplog
):
    caplog.set_level("INFO")
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    last = Checkpoints(str(trained / "checkpoints"), read_only=True).steps()[-1]
    assert optimizers(folder) == [last]
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    expected = jaxdepth.load(folder, step="last").predict(image)

    assert pack.command(["--trim", str(folder)]) == cli.OK
    freed = re.search(
        r"deleted the optimizer state, (\d+) MB\. .* exactly", caplog.text
    )
    assert freed is not None and optimizers(folder) == []
    caplog.clear()
    assert pack.command([str(folder), "--trim"]) == cli.OK
    assert "have no optimizer state to delete" in caplog.text

    actual = jaxdepth.load(folder, step="last").predict(image)
    np.testing.assert_array_equal(actual, expected)
    file = tmp_path / "packed.safetensors"
    assert pack.command([str(folder), str(file), "--step=last"]) == cli.OK
    argv = [f"--checkpoint={folder}", f"--cache_dir={cache}", "--step=last"]
    assert evaluate.command(argv) == cli.OK

    words = r"has no optimizer state: the optimizer starts anew"
    flags = [f"--steps={last + 1}", "--eval_every=0"]
    for source, network in ((folder, f"step {last} of {folder}"), (file, str(file))):
        caplog.clear()
        target = tmp_path / f"from-{source.stem}"
        # The network fits any optimizer.
        more = ["--optimizer=sgd", f"--resume={source}"]
        assert train(target, cache, *flags, *more) == cli.OK
        assert caplog.text.count(words) == 1 and network in caplog.text
        assert records(target) == [last + 1]
    with pytest.raises(UserError, match=f"--steps={last} includes them"):
        train(tmp_path / "n", cache, f"--resume={file}", f"--steps={last}")
    with pytest.raises(UserError, match="has --arch=cnn, this run has --arch=cnn_tran"):
        train(tmp_path / "n", cache, *flags, f"--resume={file}", "--arch=cnn_trans")
    assert not (tmp_path / "n").exists()

    caplog.clear()
    assert train(folder, cache, f"--steps={last}", "--eval_every=0") == cli.OK
    assert words not in caplog.text  # no step is left to take
    assert train(folder, cache, *flags) == cli.OK
    assert caplog.text.count(words) == 1 and records(folder)[-1] == last + 1
    assert optimizers(folder) == [last + 1]


def test_trim_refuses_a_run_in_progress_and_names_mistakes(trained, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = optimizers(folder)
    with (
        workdir.WorkDir.open(folder).locked(),
        pytest.raises(UserError, match=r"is in use by another run: wait for its end$"),
    ):
        pack.command(["--trim", str(folder)])
    for argv, words in (
        ([str(folder), "a.safetensors"], "the work directory of one run"),
        ([str(folder), "--dtype=float32"], "give no other flag"),
        ([str(tmp_path)], "is not the work directory of a run"),
    ):
        with pytest.raises(UserError, match=words):
            pack.command(["--trim", *argv])
    assert optimizers(folder) == before
    # A run that was stopped can be trimmed, too; the line says that it was.
    saved = json.loads((folder / "config.json").read_text())
    saved["config"]["steps"] = 50
    (folder / "config.json").write_text(json.dumps(saved))
    caplog.set_level("INFO")
    assert pack.command(["--trim", str(folder)]) == cli.OK
    assert f"The run, which stopped at step {before[-1]} of 50, can't" in caplog.text


def test_a_run_may_keep_no_optimizer_state(cache, tmp_path):
    flags = ["--steps=4", "--eval_every=1", "--keep_optimizer=false"]
    assert train(tmp_path, cache, *flags) == cli.OK
    assert optimizers(tmp_path) == []
    opened = Checkpoints(str(tmp_path / "checkpoints"), read_only=True)
    results = json.loads((tmp_path / "results.json").read_text())["evaluations"]
    best = min(results, key=lambda e: (e["metrics"]["rmse"], e["step"]))
    assert set(opened.steps()) == {best["step"], 4}
    assert train(tmp_path, cache, *flags) == cli.OK
    assert records(tmp_path) == [1, 2, 3, 4]


def test_a_stopped_run_resumes_exactly(cache, tmp_path):
    """Also if it keeps no optimizer state at its end."""
    flags = ["--steps=4", "--eval_every=0", "--save_every=2", "--keep_optimizer=false"]
    flags += ["--schedule=cosine", "--rooms=16"]
    assert train(tmp_path / "whole", cache, *flags) == cli.OK
    stopped = tmp_path / "stopped"
    flags[0] = "--steps=4"
    with pytest.MonkeyPatch.context() as patched:
        # The machine stops after the save of step 2.
        patched.setattr(Checkpoints, "finish", None)
        save = Checkpoints.save

        def stop(self, step, *args, **kwargs):
            save(self, step, *args, **kwargs)
            self.wait()
            raise OSError(5, "stopped")

        patched.setattr(Checkpoints, "save", stop)
        with pytest.raises(MachineError):
            train(stopped, cache, *flags)
    assert optimizers(stopped) == [2]
    assert train(stopped, cache, *flags) == cli.OK
    assert records(stopped) == [1, 2, 3, 4] and optimizers(stopped) == []
    one, two = (
        jaxdepth.load(folder, step=4).variables
        for folder in (tmp_path / "whole", stopped)
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_the_network_of_a_run_is_its_moving_average(trained, cache, tmp_path):
    folder = tmp_path / "run"
    flags = ["--steps=4", "--eval_every=4", "--ema=0.9"]
    assert train(folder, cache, *flags) == cli.OK
    network = jaxdepth.load(folder)
    usual = jaxdepth.load(trained, step="last")
    # Trained with equal flags, so that only the average differs.
    first, second = (
        np.asarray(n.variables["params"]["head"]["bias"]) for n in (network, usual)
    )
    assert np.abs(first - second).max() > 1e-6
    out = tmp_path / "scores.json"
    argv = [f"--checkpoint={folder}", f"--cache_dir={cache}", f"--out={out}"]
    assert evaluate.command(argv) == cli.OK
    rescored = json.loads(out.read_text())["evaluations"][-1]["metrics"]
    last = json.loads((folder / "results.json").read_text())["evaluations"][-1]
    assert rescored["rmse"] == pytest.approx(last["metrics"]["rmse"], rel=1e-5)
    with pytest.raises(UserError, match=r"has --ema=0\.0, this run has --ema=0\.9"):
        train(tmp_path / "next", cache, *flags, f"--resume={trained}")


def test_a_used_work_directory_is_refused(trained, cache):
    with pytest.raises(UserError, match="--resume=never"):
        train(trained, cache, "--steps=4", "--resume=never")
    with pytest.raises(UserError, match=r"--lr=0\.0006 before, 0\.5 now"):
        train(trained, cache, "--steps=8", "--lr=0.5")


def test_evaluate_reproduces_the_metrics_of_the_run(trained, cache, tmp_path, capsys):
    out, table = tmp_path / "scores.json", tmp_path / "images.csv"
    code = evaluate.command(
        [
            f"--checkpoint={trained}",
            "--step=last",
            f"--cache_dir={cache}",
            f"--out={out}",
            f"--per_image={table}",
        ]
    )
    assert code == cli.OK
    rescored = json.loads(out.read_text())["evaluations"][-1]
    last = json.loads((trained / "results.json").read_text())["evaluations"][-1]
    assert rescored["metrics"]["rmse"] == pytest.approx(
        last["metrics"]["rmse"], rel=1e-5
    )
    assert len(table.read_text().splitlines()) == 33
    assert rescored["parts"].keys() == last["parts"].keys()
    # Rooms are no scenes: the interval is over images, and holds the number.
    assert (rescored["interval"]["unit"], rescored["interval"]["units"]) == (
        "image",
        32,
    )
    low, high = rescored["interval"]["metrics"]["rmse"]
    assert low < rescored["metrics"]["rmse"] < high
    output = capsys.readouterr().out
    assert "near edges" in output and "bootstrap over 32 images" in output
    with pytest.raises(UserError, match="exists"):
        evaluate.command([f"--checkpoint={trained}", f"--out={out}"])


def test_compare_scores_both_runs_on_the_same_images(trained, cache, tmp_path, capsys):
    flags = [f"--cache_dir={cache}", "--resamples=50"]
    out = tmp_path / "pair.json"
    argv = [str(trained), str(trained), f"--out={out}", *flags]
    assert compare.command(argv) == cli.OK
    (actual,) = json.loads(out.read_text())["comparisons"]
    assert (actual["unit"], actual["units"], actual["split"]) == ("image", 32, "own")
    rmse = actual["metrics"]["rmse"]
    assert rmse["a"] == rmse["b"] and rmse["a_better"] == 0.5
    assert "A better in" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists"):
        compare.command(argv)


def test_predict_any_photo(trained, tmp_path, capsys):
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, size in (("a.jpg", (50, 70, 3)), ("b.png", (301, 200, 3))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(photos / name)
    (photos / "notes.txt").write_text("no photo")
    out = tmp_path / "out"
    argv = [f"--checkpoint={trained}", f"--out={out}", str(photos), "--ply", "--fx=60"]
    assert predict.command(argv) == cli.OK
    for name, size in (("a", (50, 70)), ("b", (301, 200))):
        depth = np.load(out / f"{name}.npy")
        assert depth.dtype == np.float32 and depth.shape == size and depth.min() > 0
        stored = picture(out / f"{name}.png")
        assert np.abs(stored / 1000 - depth).max() <= 0.00051
        assert (out / f"{name}.ply").stat().st_size > 15 * depth.size
        assert picture(out / f"{name}_color.png").shape == (*size, 3)
    predicted = jaxdepth.load(str(trained)).predict(photos / "a.jpg", fx=60.0)
    np.testing.assert_allclose(predicted, np.load(out / "a.npy"), rtol=1e-4)


LOADS = """
import collections, json, sys
import jax, numpy as np
import jaxdepth
folder, cache = sys.argv[1:]
seen = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name]))
jaxdepth.load(folder, cache_dir=None)
assert jax.config.jax_compilation_cache_dir is None  # by the import, too
jaxdepth.load(folder, cache_dir=cache).predict(np.zeros((60, 80, 3), np.uint8))
names = ("cache_hits", "cache_misses")
print(json.dumps([seen[f"/jax/compilation_cache/{k}"] for k in names]))
"""


def test_a_second_process_predicts_with_the_compiled_programs(trained, tmp_path):
    environment = tiny.environment()
    environment.pop("JAX_COMPILATION_CACHE_DIR")

    def count():
        done = subprocess.run(
            [sys.executable, "-c", LOADS, str(trained), str(tmp_path)],
            capture_output=True, text=True, env=environment, check=True,
        )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])

    (hits, misses), (hits_again, misses_again) = count(), count()
    assert misses > 0 and misses_again == 0 and hits_again == hits + misses


def test_load_keeps_a_cache_that_is_set_already(trained, tmp_path):
    def folder():
        return jax.config.values["jax_compilation_cache_dir"]

    before = folder()
    jaxdepth.load(trained, cache_dir=tmp_path / "other")
    assert folder() == before is not None
    assert not (tmp_path / "other").exists()


def test_predict_refuses_and_skips(trained, tmp_path, capsys):
    good = tmp_path / "a.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(good)
    (tmp_path / "sub").mkdir()
    twin = tmp_path / "sub" / "a.jpg"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(twin)
    check = f"--checkpoint={trained}"
    before = good.read_bytes()
    with pytest.raises(UserError, match=r"a\.png would replace"):
        predict.command([check, str(good), f"--out={tmp_path}"])
    other = tmp_path / "a.jpg"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(other)
    with pytest.raises(UserError, match=r"a\.png would replace"):
        predict.command([check, str(other), f"--out={tmp_path}"])
    with pytest.raises(UserError, match="would both become"):
        predict.command([check, str(good), str(twin), f"--out={tmp_path / 'o'}"])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(twin.read_bytes()[:200])
    argv = [check, str(good), str(broken), f"--out={tmp_path / 'o'}"]
    assert predict.command(argv) == cli.USER
    assert (tmp_path / "o" / "a.npy").exists() and good.read_bytes() == before
    # Outputs of this command are replaced, also those of an interrupted call.
    (tmp_path / "o" / "a_color.png").unlink()
    assert predict.command(argv[:2] + argv[3:]) == cli.OK
    with pytest.raises(UserError, match="no such file"):
        predict.command([check, str(tmp_path / "none.png")])


def test_depth_beside_its_photo_is_not_replaced(trained, tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.jpg")
    np.save(tmp_path / "a.npy", np.full((20, 30), 2.5))
    before = (tmp_path / "a.npy").read_bytes()
    with pytest.raises(UserError, match=r"a\.npy would replace"):
        predict.command([f"--checkpoint={trained}", f"--out={tmp_path}", str(tmp_path)])
    assert (tmp_path / "a.npy").read_bytes() == before


def test_any_shape_of_photo_is_predicted(trained):
    network = jaxdepth.load(trained)  # `load` also takes a Path
    for size in ((1, 1), (3, 90), (200, 2)):
        depth = network.predict(np.zeros((*size, 3), np.uint8)).metres
        assert depth.shape == size and np.isfinite(depth).all() and depth.min() > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--protocol=all"], "is defined on frames of 480x640"),
        (["--resume=/nowhere"], "no such|not the work directory"),
        (["--data=/nowhere/nyu.mat"], "no such file"),
        (["--split=tune"], "leave --split out"),
        (["--batch_size=6"], "use a multiple of 8"),
        (["--arch=cnn", "--layout=fcrn"], "layout of upproj"),
        (["--recipe=table4_nyu"], "needs --weights"),
        (["--recipe=table4_imagenet"], "needs --weights"),
    ],
)
def test_wrong_flags_are_reported_in_one_line_and_write_nothing(
    flags, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        run.command([*TINY, "--steps=1", f"--cache_dir={tmp_path / 'c'}", *flags])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_wrong_run_to_resume_is_refused_before_data_are_prepared(trained, tmp_path):
    for flags, words in (
        (["--resume=/nowhere"], "no such|not the work directory"),
        (["--arch=cnn_trans", f"--resume={trained}"], "has --arch=cnn, this run has"),
    ):
        with pytest.raises(UserError, match=words):
            train(tmp_path / "run", tmp_path / "cache", "--steps=9", *flags)
    assert not list(tmp_path.rglob("*"))


def test_a_checkpoint_of_another_arch_is_refused(trained, cache, tmp_path):
    copy = tmp_path / "other"
    copy.mkdir()
    saved = json.loads((trained / "config.json").read_text())
    saved["config"]["arch"] = "cnn_trans"
    (copy / "config.json").write_text(json.dumps(saved))
    (copy / "checkpoints").symlink_to(trained / "checkpoints")
    with pytest.raises(UserError, match="of another network"):
        jaxdepth.load(str(copy))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "words"),
    [(60, "checkpoint of step 2 could not be written"), (4, "results.json could not")],
)
def test_full_storage_is_reported_in_one_line(trained, cache, tmp_path, blocks, words):
    # Limits the size of files, in KiB. File modes would not limit root.
    command = [sys.executable, "-m", "experiments.run", "--arch=cnn", *TINY]
    command += [f"--workdir={tmp_path / 'run'}", f"--cache_dir={cache}", "--steps=6"]
    command += ["--save_every=2", "--eval_every=3"]
    environment = tiny.environment(tensorflow=False)
    del environment["JAX_COMPILATION_CACHE_DIR"]  # would be damaged for other tests
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f {blocks}; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == cli.MACHINE
    assert words in done.stderr and "last good checkpoint: none" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_sigterm_saves_and_prints_the_command_to_resume(cache, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "experiments.run", "--arch=cnn", *TINY]
    command += [f"--workdir={folder}", f"--cache_dir={cache}", "--steps=100000"]
    command += ["--log_every=1", "--eval_every=0", "--save_every=0"]
    environment = tiny.environment()
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    ) as process:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == cli.PREEMPTED
    assert "To resume: jaxdepth run" in output and str(folder) in output
    assert [p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]


def test_the_default_batch_size_divides_over_the_devices():
    placement = sharding.Placement.over("jit")  # eight devices
    config = Config.of(batch_size=9, accumulate=2)
    with pytest.raises(UserError, match="is not divisible by 8 devices"):
        train_command._resolve_batch(config, placement, round_up=False)
    assert (
        train_command._resolve_batch(config, placement, round_up=True).train.batch_size
        == 16
    )
