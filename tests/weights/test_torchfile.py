"""Checkpoint files of PyTorch, read without it and without running code."""

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import re
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import torchfile

from . import torch_files


def some_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(3, 2, 5)).astype(np.float32),
        "a.half": rng.normal(size=(4,)).astype(np.float16),
        "a.double": rng.normal(size=(2, 2)),
        "a.count": np.array(7, np.int64),
        "a.empty": np.zeros((0, 3), np.float32),
    }


def assert_same(got, wanted):
    assert list(got) == list(wanted)
    for name, x in wanted.items():
        assert got[name].dtype == x.dtype and got[name].shape == x.shape
        np.testing.assert_array_equal(got[name], x)


@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_come_back_value_for_value(tmp_path, legacy):
    path = torch_files.save(tmp_path / "x.pth", some_arrays(), legacy=legacy)
    assert torchfile.is_torch_file(path)
    assert_same(torchfile.read(path), some_arrays())


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_pytorch_itself(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="writes files with PyTorch")
    path = tmp_path / "x.pth"
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    content = {
        "epoch": 3,
        "names": ["a", ("b", 2.5)],
        "state_dict": module.state_dict(),
        "view": base[1:, ::2].t(),
        "half": base.to(torch.bfloat16),
        "bool": base > 3,
        "parameter": torch.nn.Parameter(base[0]),
        "none": None,
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    got = torchfile.read(path)
    assert got["epoch"] == 3 and got["names"] == ["a", ["b", 2.5]]
    assert got["none"] is None
    assert_same(
        got["state_dict"], {k: v.numpy() for k, v in module.state_dict().items()}
    )
    np.testing.assert_array_equal(got["view"], base[1:, ::2].t().numpy())
    np.testing.assert_array_equal(got["half"], base.numpy())
    np.testing.assert_array_equal(got["bool"], (base > 3).numpy())
    np.testing.assert_array_equal(got["parameter"], base[0].numpy())


@pytest.mark.parametrize("legacy", [False, True])
def test_expanded_and_shared_tensors_of_pytorch_itself(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="writes files with PyTorch")
    path = tmp_path / "x.pth"
    base = torch.arange(6, dtype=torch.float32)
    content = {
        "expanded": base[:3].expand(4, 3),
        "scalar": torch.tensor(2.0).expand(2, 2),
        "head": base[:2],
        "tail": base[2:],
        "same": base,
        "bf16": base.to(torch.bfloat16)[1:],
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    got = torchfile.read(path)
    for name, x in content.items():
        np.testing.assert_array_equal(got[name], x.float().numpy())
        assert got[name].dtype == np.float32


def test_an_expanded_tensor_costs_nothing_however_large_it_claims_to_be(tmp_path):
    tree, _ = torch_files.tensors({"a": np.ones(1, np.float32)}, legacy=False)
    tree["a"].args = (tree["a"].args[0], 0, (1 << 40,), (0,), False, {})
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", torch_files.dumps(tree))
        archive.writestr("x/data/0", np.ones(1, np.float32).tobytes())
    assert torchfile.read(path)["a"].shape == (1 << 40,)


@pytest.mark.parametrize("legacy", [False, True])
def test_where_a_tensor_lay_does_not_matter(tmp_path, legacy):
    arrays = some_arrays()
    halves = {"bf16": np.array([0x3F80, 0xC020], np.uint16)}
    path = torch_files.save(
        tmp_path / "x.pth", arrays | halves, legacy=legacy, location="cuda:0"
    )
    wanted = {"bf16": np.array([1, -2.5], np.float32)}
    assert_same(torchfile.read(path), arrays | wanted)


class Meter(dict):
    """A dict of a class of their own."""


def as_training_scripts_keep_it(state_dict):
    return {
        "epoch": np.int64(3),
        "best_acc1": np.float64(76.5),
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("x")),
        "classes": {"a", "b"},
        "frozen": frozenset({1}),
        "meters": collections.defaultdict(list, {"loss": [1.0]}),
        "meter": Meter(a=1),
        "milestones": collections.Counter([30, 30]),
        "mean": np.array([1.5, 2.5]),
        "names": np.array(["a", "b"]),
        "when": datetime.datetime(2020, 1, 1),
        "optimizer": {"state": {0: {"step": 4}}, "param_groups": [{"params": [0]}]},
        "state_dict": state_dict,
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_scripts_keep_beside_weights_is_no_hindrance(tmp_path, legacy):
    path = torch_files.save(
        tmp_path / "x.pth",
        some_arrays(),
        legacy=legacy,
        wrap=as_training_scripts_keep_it,
    )
    got = torchfile.read(path)
    assert_same(got["state_dict"], some_arrays())
    assert (got["epoch"], got["best_acc1"]) == (3, 76.5)
    assert got["meters"] == {"loss": [1.0]}
    np.testing.assert_array_equal(got["mean"], [1.5, 2.5])
    assert got["args"].what == "argparse.Namespace"


@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints_of_pytorch_itself(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="writes files with PyTorch")
    path = tmp_path / "x.pth"
    module = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = as_training_scripts_keep_it(module.state_dict())
    content |= {
        "optimizer": optimizer.state_dict(),
        "best_acc1": torch.tensor(76.5),
        "device": torch.device("cpu"),
        "dtype": torch.complex64,
        "sparse": torch.eye(2).to_sparse(),
        "random": torch.get_rng_state(),
        "model": module,
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    got = torchfile.read(path)
    wanted = {k: v.numpy() for k, v in module.state_dict().items()}
    assert_same(got["state_dict"], wanted)
    assert got["best_acc1"] == 76.5
    assert got["model"].what == "torch.nn.modules.conv.Conv2d"


@pytest.mark.parametrize("legacy", [False, True])
def test_classes_that_are_not_known_are_never_imported(tmp_path, legacy, monkeypatch):
    (tmp_path / "evil_package.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    kept = torch_files.Call(torch_files.Named("evil_package", "Settings"), {"a": 1})
    kept = torch_files.Build(kept, {"b": 2})
    path = torch_files.save(
        tmp_path / "x.pth",
        some_arrays(),
        legacy=legacy,
        wrap=lambda d: {"args": kept, "state_dict": d},
    )
    got = torchfile.read(path)
    assert_same(got["state_dict"], some_arrays())
    assert got["args"].what == "evil_package.Settings" and not vars(got["args"])
    assert "evil_package" not in sys.modules


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("builtins", "set.__init__"),
        ("runpy", "run_path"),
        ("importlib", "import_module"),
        ("types", "FunctionType"),
        ("functools", "partial"),
        ("torch", "load"),
        ("torch", "hub.load"),
        ("torch._utils", "os.system"),
        ("torch._utils", "_import_dotted_name"),
        ("numpy", "load"),
        ("anything", "function"),
        ("anything", "Outer.function"),
    ],
)
def test_what_is_not_data_is_refused_and_does_not_run(tmp_path, legacy, name):
    marker = tmp_path / "ran"
    call = torch_files.Call(torch_files.Named(*name), f"touch {marker}")
    path = torch_files.save(
        tmp_path / "x.pth", some_arrays(), legacy=legacy, wrap=lambda d: {"a": call}
    )
    words = re.escape(f"{name[0]}.{name[1]}, which is not data")
    with pytest.raises(UserError, match=words):
        torchfile.read(path)
    assert not marker.exists()


def test_python_2_s_name_of_the_builtins_is_refused_too(tmp_path):
    call = torch_files.Call(torch_files.Named("__builtin__", "eval"), "1")
    path = torch_files.save(tmp_path / "x.pth", {}, wrap=lambda d: {"a": call})
    with pytest.raises(UserError, match=r"builtins\.eval, which is not data"):
        torchfile.read(path)


def test_a_memo_larger_than_the_file_is_refused(tmp_path):
    """Python allocates it: at the largest index that is 64 GB."""
    content = (
        pickle.dumps([1], protocol=2)[:-1] + b"r" + (1 << 20).to_bytes(4, "little")
    )
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content + b".")
    with pytest.raises(UserError, match="place 1048576 of a memo"):
        torchfile.read(path)


def test_a_pickle_can_t_change_the_functions_it_calls(tmp_path):
    rebuild = torch_files.Named("torch._utils", "_rebuild_tensor_v2")
    change = torch_files.Build(rebuild, (None, {"__defaults__": (1, 2)}))
    path = torch_files.save(tmp_path / "x.pth", {}, wrap=lambda d: {"a": change})
    with pytest.raises(UserError, match="a function whose attributes are set"):
        torchfile.read(path)


def test_a_bare_pickle_is_refused_before_its_payload(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(UserError, match="system, which is not data"):
        torchfile.read(path)
    assert not (tmp_path / "ran").exists()
    path.write_bytes(pickle.dumps([1, 2], protocol=2))
    with pytest.raises(UserError, match=r"not one of torch\.save"):
        torchfile.read(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_files_are_one_clear_line_at_any_length(tmp_path, legacy):
    whole = torch_files.save(tmp_path / "x.pth", some_arrays(), legacy=legacy)
    content = whole.read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(0, len(content) - 1, 37):
        cut.write_bytes(content[:length])
        with pytest.raises(UserError) as caught:
            torchfile.read(cut)
        assert "\n" not in str(caught.value)


def test_tensors_beyond_their_storage_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    tree, _ = torch_files.tensors({"a": np.zeros(8, np.float32)}, legacy=False)
    for size, stride, offset in (((9,), (1,), 0), ((2,), (1,), 7), ((2, 2), (9, 1), 0)):
        tree["a"].args = (tree["a"].args[0], offset, size, stride, False, {})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", torch_files.dumps(tree))
            archive.writestr("x/data/0", np.zeros(8, np.float32).tobytes())
        with pytest.raises(UserError, match="beyond its storage"):
            torchfile.read(path)


def test_other_files_are_named_for_what_they_are(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match="no such file"):
        torchfile.read(path)
    with pytest.raises(UserError, match="is a folder"):
        torchfile.read(tmp_path)
    path.write_text("hello")
    with pytest.raises(UserError, match="no checkpoint of PyTorch"):
        torchfile.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match="a zip archive, but not one of"):
        torchfile.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", torch_files.dumps({}))
        archive.writestr("m/code/m.py", "")
    with pytest.raises(UserError, match="TorchScript archive, a program"):
        torchfile.read(path)


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    torch_files.save(path, {"a": np.zeros(1 << 20, np.float32)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    monkeypatch.setattr(zipfile.ZipFile, "read", pytest.fail)
    with pytest.raises(UserError, match="would be 4 MiB unpacked"):
        torchfile.read(path)


def test_half_an_archive_is_damaged(tmp_path):
    path = torch_files.save(tmp_path / "x.pth", some_arrays())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        torchfile.read(path)


def test_files_of_pytorch_s_first_years_are_named(tmp_path):
    path = tmp_path / "x.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert torchfile.is_torch_file(path)
    with pytest.raises(UserError, match=r"tar archive, as PyTorch before 0\.1\.10"):
        torchfile.read(path)
    tree, _ = torch_files.tensors({"a": np.zeros(8, np.float32)}, legacy=True)
    pid = tree["a"].args[0].pid
    tree["a"].args[0].pid = (*pid[:5], ("1", 2, 3))
    system = {"little_endian": True}
    parts = (0x1950A86A20F9469CFC6C, 1001, system, tree, ["0"])
    path.write_bytes(b"".join(map(torch_files.dumps, parts)))
    with pytest.raises(UserError, match=r"x\.pth holds views .* before 0\.4"):
        torchfile.read(path)
