"""The work directory: names, JSON, remote mirrors, and who may go on."""

import dataclasses
import gc
import json
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest

from jaxdepth import workdir
from jaxdepth.config import Config
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.workdir import WorkDir


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_runs_are_numbered():
    names = [workdir.choose(Config(arch="cnn")).name for _ in range(2)]
    assert names == ["runs/cnn-si-001", "runs/cnn-si-002"]
    Path("runs/cnn-si-041").mkdir()
    Path("runs/cnn-si-notes").mkdir()
    assert workdir.choose(Config(arch="cnn")).name == "runs/cnn-si-042"
    assert workdir.choose(Config(loss="mse")).name == "runs/upproj-mse-001"


def test_a_run_that_never_started_leaves_no_folder():
    here = workdir.choose(Config())
    workdir.discard_if_empty(here)
    assert not Path("runs").exists()
    here = workdir.choose(Config())
    (here.local / "mine").write_text("x")
    workdir.discard_if_empty(here)
    assert (here.local / "mine").exists()


def test_never_refuses_a_used_folder_alone():
    Path("a").mkdir()
    never = Config(workdir="a", resume="never")
    assert workdir.choose(never).name == "a"
    Path("a/config.json").write_text("{}")
    with pytest.raises(UserError, match="--resume=never"):
        workdir.choose(never)
    assert workdir.choose(Config(workdir="a")).used()


def test_a_file_in_the_way():
    Path("a").write_text("mine")
    for name in ("a", "a/b"):
        with pytest.raises(UserError, match="file"):
            workdir.choose(Config(workdir=name)).create()
    assert Path("a").read_text() == "mine"


def test_json_is_plain_and_whole(monkeypatch):
    here = WorkDir.open("run")
    here.create()
    here.write_json("x.json", {"a": float("nan"), "b": np.float32(1.5), "c": (1, None)})
    text = Path("run/x.json").read_text()
    assert json.loads(text) == {"a": None, "b": 1.5, "c": [1, None]}
    assert here.read_json("x.json") == json.loads(text)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        here.write_json("x.json", {"a": 1})
    assert Path("run/x.json").read_text() == text
    assert [p.name for p in Path("run").iterdir() if p.suffix == ".part"] == []


def test_what_is_no_run_is_named():
    Path("empty").mkdir()
    with pytest.raises(UserError, match="empty is not the work directory of a run"):
        WorkDir.open("empty").read_json(workdir.CONFIG)
    Path("empty/config.json").write_text("{")
    with pytest.raises(UserError, match=r"empty/config\.json is not JSON"):
        WorkDir.open("empty").read_json(workdir.CONFIG)


def test_who_may_go_on():
    before = Config(lr=1e-3, steps=5)
    workdir.refuse_changes(before, dataclasses.replace(before, steps=9), where="r")
    changed = dataclasses.replace(before, lr=1e-2, loss="mse")
    with pytest.raises(UserError, match=r"--loss=si before, mse now.*--lr=0\.001"):
        workdir.refuse_changes(before, changed, where="r")


def test_a_remote_place_is_mirrored():
    name = f"memory://{uuid.uuid4().hex}/run"
    here = WorkDir.open(name)
    here.create()
    here.write_json(workdir.CONFIG, {"config": {}})
    (here.local / "panels" / "a.png").write_bytes(b"png")
    here.sync()
    system = fsspec.filesystem("memory")
    assert system.cat(f"{name}/panels/a.png") == b"png"
    again = WorkDir.open(name)
    assert again.used() and again.local != here.local
    assert again.read_json(workdir.CONFIG) == {"config": {}}
    assert again.checkpoints == f"{name}/checkpoints"
    there = again.local
    del again
    gc.collect()
    assert here.local.exists() and not there.exists()


def test_a_place_that_nobody_can_open_is_one_line():
    with pytest.raises(UserError, match="nowhere://a/b can't be opened"):
        WorkDir.open("nowhere://a/b")


def test_environment_names_versions_and_devices():
    found = workdir.environment()
    assert found["devices"]["count"] == 8 and found["devices"]["platform"] == "cpu"
    assert {"jax", "flax", "jaxdepth", "python"} <= set(found["versions"])
