"""The command prepare-data."""

import dataclasses
import itertools
import logging
import re
import subprocess
import sys
import types
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdepth.commands import cli, prepare_data
from jaxdepth.config import Config
from jaxdepth.data import dataset
from jaxdepth.data.sources import ReadOptions, open_source
from jaxdepth.data.store import writer as store_writer
from jaxdepth.data.store.reader import Store
from jaxdepth.data.store.writer import Job, Packing
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flags_of
from jaxdepth.training.step import to_training_frame
from tests.data.memory import Memory, frame

ROOT = Path(__file__).parents[2]


def make_pairs(folder, count=12, size=(24, 32)):
    """Write distinct images and depth maps of two scenes."""
    for k in range(count):
        shot = frame(k, size)
        for kind, array in (
            ("rgb", shot.rgb),
            ("depth", (shot.depths["filled"] * 1000).astype(np.uint16)),
        ):
            file = folder / f"scene{k % 2}" / kind / f"{k:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
    return folder


@pytest.fixture
def pairs(tmp_path):
    return make_pairs(tmp_path / "pairs")


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def prepare(*argv):
    return prepare_data.command([*map(str, argv)])


def test_a_folder_becomes_a_store(pairs, tmp_path, log):
    out = tmp_path / "out"
    assert prepare(pairs, out, "--size=12x16") == cli.OK
    opened = Store.open(out)
    expected = store_writer.write(open_source(pairs), tmp_path / "again", size=(12, 16))
    assert opened.manifest["files"] == expected.manifest["files"]
    assert "format folder, 12 frames of 2 scenes, filled depth" in log.text
    assert "out: 12 frames of 12x16, 12 of them at full size too, 0." in log.text
    assert re.search(r"; 12 packed now in \d+\.\d s, \d+\.\d frames/s", log.text)
    assert f"--data={out} --size=11x15" in log.text
    log.clear()
    before = (out / "manifest.json").stat().st_mtime_ns
    assert prepare(pairs, out, "--size=12x16") == cli.OK
    assert "already holds these data" in log.text and "packed now" not in log.text
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"is not empty .*: name another folder"):
        prepare(pairs, out, "--size=6x8")


def test_unusable_frames_are_listed(pairs, tmp_path, log, monkeypatch):
    broken = pairs / "scene0" / "rgb" / "04.png"
    broken.write_bytes(broken.read_bytes()[:60])
    other = pairs / "scene1" / "rgb" / "07.png"
    Image.fromarray(np.zeros((10, 32, 3), np.uint8)).save(other)
    empty = pairs / "scene1" / "depth" / "01.png"
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(empty)
    monkeypatch.setattr(prepare_data, "LISTED", 1)
    assert prepare(pairs, tmp_path / "out", "--size=12x16") == cli.OK
    manifest = Store.open(tmp_path / "out").manifest
    reasons = {b["name"]: b["reason"] for b in manifest["broken"]}
    assert set(reasons) == {"scene0/rgb/04.png", "scene1/rgb/07.png"}
    assert "04.png" in reasons["scene0/rgb/04.png"]
    assert "must have the same size" in reasons["scene1/rgb/07.png"]
    assert manifest["left_out"] == ["scene1/rgb/01.png"] and manifest["count"] == 9
    lines = [record.getMessage() for record in log.records]
    index = lines.index("2 frames can't be used, all named in manifest.json:")
    assert lines[index + 1].startswith("  scene0/rgb/04.png: ")
    assert lines[index + 2] == "  and 1 more"
    assert any("left out 1 frames without any depth, first scene1" in x for x in lines)


def test_a_dry_run_prints_the_sizes_and_writes_nothing(pairs, tmp_path, log, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert prepare(pairs, tmp_path / "out", "--size=12x16", "--dry_run") == cli.OK
    assert prepare(pairs, "--size=1200x1600", "--dry_run") == cli.OK
    assert sorted(tmp_path.rglob("*")) == before
    assert "split all: 12 train, 0 evaluate" in log.text
    table = capsys.readouterr().out
    mib = 12 * 1200 * 1600 / 2**20
    row = rf"1200x1600 +12 +{3 * mib:.1f} +{2 * mib:.1f} +{5 * mib:.1f}\n"
    assert re.search(row, table)
    assert re.search(r"24x32 \(full size\) +12 ", table)


def test_every_read_option_has_a_flag():
    flags = {n: f.default for n, f in flags_of(prepare_data.PrepareConfig).items()}
    for field in dataclasses.fields(ReadOptions):
        assert flags[field.name] == field.default
    config = prepare_data.PrepareConfig(files=("a", "b"), every=3, fill="cross_bf")
    assert config.read_options == ReadOptions(every=3, fill="cross_bf")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "FILES: missing .SOURCE OUT"),
        (["pairs"], "give SOURCE OUT: 1 names"),
        (["pairs", "out", "more"], "3 names"),
        (["none", "out"], "no such file"),
        (["pairs", "pairs/out"], "is inside pairs"),
        (["pairs", "."], "'.' is the current folder"),
        (["pairs", ""], "'' is the current folder"),
        (["gs://b/x", "out"], "local paths"),
        (["pairs", "out", "--size=12"], "HEIGHTxWIDTH"),
        (["pairs", "out", "--max_depth=256"], "--max_depth=256: at most 255.99 m"),
        (["pairs", "out", "--max_depth=0"], "above 0"),
        (["pairs", "out", "--every=0"], "at least 1"),
        (["pairs", "out", "--every=2"], "does not use it"),
        (["pairs", "out", "--workers=-1"], "at least 0"),
        (["pairs", "out", "--data_format=foldr"], r"did you mean folder\?"),
        (["pairs", "out", "--sise=12x16"], r"did you mean --size\?"),
        (["pairs", "nowhere://b/out"], "nowhere://b/out can't be opened"),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(
    pairs, tmp_path, monkeypatch, argv, words
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=words) as error:
        prepare(*argv)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_as_source_is_an_error(pairs, tmp_path):
    prepare(pairs, tmp_path / "out", "--size=12x16")
    with pytest.raises(UserError, match="is a store already: train on it with --data"):
        prepare(tmp_path / "out", tmp_path / "other")


def test_workers_are_used_if_reading_is_slow(monkeypatch):
    clock = itertools.count()  # each reading of the clock is one second later
    monkeypatch.setattr(prepare_data.os, "sched_getaffinity", lambda _: set(range(8)))

    def chosen(frames, seconds):
        """Workers if the sample of frames is read in `seconds` per frame."""
        tick = prepare_data.SAMPLE * seconds
        timer = types.SimpleNamespace(monotonic=lambda: tick * next(clock))
        monkeypatch.setattr(prepare_data, "time", timer)
        source = Memory([frame(size=(2, 2))] * frames)
        return prepare_data.choose_workers(Job(source, Packing((2, 2))))

    assert chosen(frames=1000, seconds=0.05) == 8
    # 4 s, and 4.5 s with workers, most of it to start them; 6 s, and 4.75 s with them.
    assert chosen(frames=80, seconds=0.05) == 0
    assert chosen(frames=120, seconds=0.05) == 8
    # Reading takes less than returning a frame to the parent.
    assert chosen(frames=5000, seconds=0.003) == 0


COMMANDS = [
    # split -> numbers of training and evaluation frames; stored size; flags
    ({"own": (9, 3), "all": (9, 0)}, (240, 320), "--data=s"),
    ({"official": (9, 3), "tune": (8, 1)}, (240, 320), "--data=s"),
    ({"official": (9, 0), "tune": (6, 3)}, (120, 160),
     "--data=s --size=114x152 --split=tune"),
    ({"all": (9, 0)}, (240, 320), "--data=s --split=all --eval_data=PATH"),
    ({"own": (0, 9), "all": (9, 0)}, (120, 160), "--data=PATH --eval_data=s"),
]  # fmt: skip


@pytest.mark.parametrize(("splits", "size", "flags"), COMMANDS)
def test_the_training_command(splits, size, flags):
    manifest = {
        "size": size,
        "full": {"full-00000-0": [0]},
        "splits": {
            name: {"train": [0] * train, "eval": [0] * evaluated}
            for name, (train, evaluated) in splits.items()
        },
    }
    command = prepare_data.training_command(manifest, "s")
    assert command == f"jaxdepth run {flags}"


def test_the_training_command_uses_all_depth(pairs, tmp_path, log):
    prepare(pairs, tmp_path / "out", "--size=12x16", "--max_depth=80")
    assert f"--data={tmp_path / 'out'} --size=11x15 --max_depth=80" in log.text


def test_training_frames_are_not_enlarged_or_stretched(pairs, tmp_path):
    prepare(pairs, tmp_path / "out", "--size=120x160")
    flags = Config.of(data=str(tmp_path / "out"), split="all", cache_dir=str(tmp_path))
    words = "smaller than the 240x320 that --size=228x304 is cropped from: train with "
    with pytest.raises(UserError, match=f"{words}--size=114x152, or prepare") as error:
        dataset.open_data(flags.replace(size="228x304"))
    assert "\n" not in str(error.value)
    with pytest.raises(
        UserError, match="whose aspect ratio is not that of --size=64x64"
    ):
        dataset.open_data(flags.replace(size="64x64"))
    # The stored size works, and so does one that rounds differently.
    for size in ("114x152", "48x64"):
        with pytest.raises(UserError, match="leaves no frame to evaluate on"):
            dataset.open_data(flags.replace(size=size))


def test_a_run_cannot_ask_for_depth_that_its_store_left_out(pairs, tmp_path):
    prepare(pairs, tmp_path / "out", "--size=48x64", "--max_depth=5")
    flags = Config.of(
        data=str(tmp_path / "out"), size="46x61", cache_dir=str(tmp_path), max_depth=8
    )
    with pytest.raises(UserError, match=r"--max_depth=8: .* holds depth up to 5 m"):
        dataset.open_data(flags)
    dataset.open_data(flags.replace(max_depth=5.0))


def test_a_remote_store_with_larger_frames_can_be_trained_on(tmp_path, log):
    source = make_pairs(tmp_path / "pairs", size=(96, 128))
    url = f"memory://{uuid.uuid4().hex}/prepared"
    assert prepare(source, url, "--size=96x128") == cli.OK
    assert f"--data={url} --size=91x121" in log.text
    flags = Config.of(data=url, size="48x64", cache_dir=str(tmp_path))
    with pytest.raises(
        UserError, match="12 of 12 evaluation frames are training frames"
    ):
        dataset.open_data(flags.replace(split="all", eval_data=url))
    data = dataset.open_data(flags)
    assert (
        data.train.path == data.evaluation.path and data.train.path.parent == tmp_path
    )
    stored = data.train.gather(data.train_rows, depth=data.depth)
    rgb, depth = to_training_frame(*stored, flags.frame_size)
    # One of the two scenes is held out.
    assert rgb.shape == (6, 51, 67, 3) and depth.shape == (6, 51, 67)
    assert [f["rgb"].shape for f in data.frames()] == [(96, 128, 3)] * 6


@pytest.mark.slow
def test_the_script_packs_real_frames_with_workers(shared_data, tmp_path):
    tool = shared_data.parent / "tools" / "build_labeled_mat.py"
    if not tool.exists():
        pytest.skip("no build_labeled_mat.py beside the sample data")
    mat, out = tmp_path / "nyu.mat", tmp_path / "out"
    subprocess.run(
        [sys.executable, tool, "--out", mat, "--gzip=0", "--limit=12"],
        check=True, capture_output=True,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "tools/prepare_data.py", mat, out, "--workers=2"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (cli.OK, "")
    opened = Store.open(out)
    assert not opened.damaged()
    assert len(opened) == 12 and opened.manifest["camera"]["size"] == [240, 320]
    # The colour camera of NYU at half size.
    assert opened.manifest["camera"]["fx"] == pytest.approx(518.858 / 2, abs=1e-3)
    source = open_source(mat)
    rgb, depth = opened.gather([0, 11], depth="filled")
    for k, row in enumerate([0, 11]):
        shot = source.frame(row)
        mean = shot.rgb.reshape(240, 2, 320, 2, 3).astype(float).mean((1, 3))
        np.testing.assert_array_equal(rgb[k], np.floor(mean + 0.5))
        metres = shot.depths["filled"].astype(float)
        metres = metres.reshape(240, 2, 320, 2).mean((1, 3))
        assert np.abs(depth[k] - 1000 * metres).max() <= 1
    wrong = subprocess.run(
        [sys.executable, "tools/prepare_data.py", mat, out, "--size=120x160"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert wrong.returncode == cli.USER and wrong.stderr.count("\n") == 1
