"""Work directories: names, JSON files, remote mirrors, resuming."""

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
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_runs_are_numbered():
    names = [workdir.choose(Config.of(arch="cnn")).name for _ in range(2)]
    assert names == ["runs/cnn-si-001", "runs/cnn-si-002"]
    Path("runs/cnn-si-041").mkdir()
    Path("runs/cnn-si-notes").mkdir()
    assert workdir.choose(Config.of(arch="cnn")).name == "runs/cnn-si-042"
    assert workdir.choose(Config.of(loss="mse")).name == "runs/upproj-mse-001"


def test_a_run_that_did_not_start_leaves_no_folder():
    chosen = workdir.choose(Config())
    with chosen.locked():
        workdir.discard_if_empty(chosen)
    assert not Path("runs").exists()
    chosen = workdir.choose(Config())
    (chosen.local / "mine").write_text("x")
    with chosen.locked():
        workdir.discard_if_empty(chosen)
    assert [path.name for path in chosen.local.iterdir()] == ["mine"]


def test_a_second_run_in_the_same_folder_is_an_error(tmp_path):
    with (
        WorkDir.open(tmp_path).locked(),
        pytest.raises(UserError, match="is in use by another run") as error,
        WorkDir.open(tmp_path).locked(),
    ):
        pass
    assert "\n" not in str(error.value)
    with WorkDir.open(tmp_path).locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_resume_never_refuses_only_a_used_folder():
    Path("a").mkdir()
    never = Config.of(workdir="a", resume="never")
    assert workdir.choose(never).name == "a"
    Path("a/config.json").write_text("{}")
    with pytest.raises(UserError, match="--resume=never"):
        workdir.choose(never)
    assert workdir.choose(Config.of(workdir="a")).used()


def test_a_file_with_the_name_of_the_folder_is_an_error():
    Path("a").write_text("mine")
    for name in ("a", "a/b"):
        with pytest.raises(UserError, match="file"):
            workdir.choose(Config.of(workdir=name)).create()
    assert Path("a").read_text() == "mine"


def test_json_files_are_plain_and_written_atomically(monkeypatch):
    opened = WorkDir.open("run")
    opened.create()
    opened.write_json(
        "x.json", {"a": float("nan"), "b": np.float32(1.5), "c": (1, None)}
    )
    text = Path("run/x.json").read_text()
    assert json.loads(text) == {"a": None, "b": 1.5, "c": [1, None]}
    assert opened.read_json("x.json") == json.loads(text)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        opened.write_json("x.json", {"a": 1})
    assert Path("run/x.json").read_text() == text
    assert [p.name for p in Path("run").iterdir() if p.suffix == ".part"] == []


def test_a_folder_without_a_run_is_an_error():
    Path("empty").mkdir()
    with pytest.raises(UserError, match="empty is not the work directory of a run"):
        WorkDir.open("empty").read_json(workdir.CONFIG)
    for text in ("{", "[" * 100_000, "9" * 5000):
        Path("empty/config.json").write_text(text)
        with pytest.raises(UserError, match=r"empty/config\.json is not JSON") as error:
            WorkDir.open("empty").read_json(workdir.CONFIG)
        assert "\n" not in str(error.value)
    Path("empty/config.json").unlink()
    Path("empty/config.json").mkdir()
    with pytest.raises(UserError, match=r"empty/config\.json can't be read: Is a dir"):
        WorkDir.open("empty").read_json(workdir.CONFIG)


def test_a_resumed_run_may_change_only_some_flags():
    before = Config.of(lr=1e-3, steps=5)
    workdir.refuse_changes(before, before.replace(steps=9), where="r")
    changed = before.replace(lr=1e-2, loss="mse")
    with pytest.raises(UserError, match=r"--loss=si before, mse now.*--lr=0\.001"):
        workdir.refuse_changes(before, changed, where="r")


def test_a_remote_work_directory_is_mirrored():
    name = f"memory://{uuid.uuid4().hex}/run"
    opened = WorkDir.open(name)
    opened.create()
    opened.write_json(workdir.CONFIG, {"config": {}})
    (opened.local / "panels" / "a.png").write_bytes(b"png")
    opened.sync()
    system = fsspec.filesystem("memory")
    assert system.cat(f"{name}/panels/a.png") == b"png"
    again = WorkDir.open(name)
    assert again.used() and again.local != opened.local
    assert again.read_json(workdir.CONFIG) == {"config": {}}
    assert again.checkpoints == f"{name}/checkpoints"
    mirror = again.local
    del again
    gc.collect()
    assert opened.local.exists() and not mirror.exists()


def test_an_unknown_protocol_is_one_line():
    with pytest.raises(UserError, match="nowhere://a/b can't be opened"):
        WorkDir.open("nowhere://a/b")


def test_environment_records_versions_and_devices():
    recorded = workdir.environment()
    assert recorded["devices"]["count"] == 8
    assert recorded["devices"]["platform"] == "cpu"
    assert {"jax", "flax", "jaxdepth", "python"} <= set(recorded["versions"])
