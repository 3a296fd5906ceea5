"""Hostile files are rejected with one line, in little time and memory."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import fcrn, files, pickles, resnet, torchfile

from . import hostile

SECONDS, MB = 10, 1000  # 3.6 s were seen on a slow machine


@pytest.mark.slow
def test_hostile_files_are_rejected_in_little_time_and_memory(tmp_path):
    """Every file in a process of its own, with RLIMIT_AS and a timeout."""
    cases = hostile.write_all(tmp_path)
    lines = "\n".join(f"{name}\t{command}\t{path}" for name, command, path in cases)
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.weights.run_bounded",
            str(tmp_path),
        ],
        input=lines,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=1500,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases), done.stderr[-2000:]
    print()
    wrong = []
    for result in results:
        row = "{name} | {message} | {code} | {seconds:.2f} | {mb}".format(
            **{"message": "", "seconds": -1, "mb": -1, **result}
        ).replace(f"{tmp_path}/", "")
        print(row)
        small = result.get("seconds", 99) < SECONDS and result.get("mb", 9999) < MB
        one_line = "\n" not in result.get("message", "") and len(row) < 400
        if result["code"] != 2 or not small or not one_line:
            wrong.append(row)
    assert not wrong, "\n".join(wrong)


def test_checkpoints_can_t_claim_more_than_their_files_hold(tmp_path, monkeypatch):
    """TensorFlow would allocate what a damaged index claims."""
    index = tmp_path / "a.index"
    index.write_bytes(bytes(100))
    float32 = types.SimpleNamespace(size=4)
    reader = types.SimpleNamespace(
        get_variable_to_shape_map=lambda: {"conv1/weights": [1 << 20, 1 << 20]},
        get_variable_to_dtype_map=lambda: {"conv1/weights": float32},
        get_tensor=pytest.fail,
    )
    tensorflow = types.SimpleNamespace(
        train=types.SimpleNamespace(load_checkpoint=lambda prefix: reader)
    )
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    with pytest.raises(UserError, match="need 4194304 MiB, too much"):
        fcrn.read(tmp_path / "a")


def test_shards_that_are_fifos_are_not_opened(tmp_path):
    (tmp_path / "a.index").write_bytes(bytes(100))
    os.mkfifo(tmp_path / "a.data-00000-of-00001")
    with pytest.raises(UserError, match="of-00001 is a FIFO"):
        fcrn.read(tmp_path / "a")


@pytest.mark.parametrize("read", [files.read, resnet.read_state_dict, torchfile.read])
def test_fifos_and_devices_are_rejected(tmp_path, read):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(UserError, match="is a FIFO, device or socket"):
            read(path)


def test_tuples_of_few_entries_can_be_keys():
    key = pickles.Tuple(("a", pickles.Tuple((1, 2))))
    same: Any = ("a", (1, 2))
    assert {key: 3}[same] == 3
    with pytest.raises(ValueError, match="nested tuples as a key"):
        hash(pickles.Tuple([key] * 40))


def test_tensors_share_the_memory_of_their_storage(tmp_path):
    content = hostile.state_dict_of_views({"a": (1, 1, 4, 5), "b": (1, 1, 4, 5)}, 20, 1)
    data = np.arange(20, dtype=np.float32)
    path = hostile.zipped(tmp_path / "x.pth", content, storages={"0": data.tobytes()})
    got = torchfile.read(path)
    np.testing.assert_array_equal(got["b"], data.reshape(1, 1, 4, 5))
    assert np.shares_memory(got["a"], got["b"]) and not got["a"].flags.writeable
