"""Reading PyTorch checkpoint files without PyTorch and without running code."""

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


def example_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(3, 2, 5)).astype(np.float32),
        "a.half": rng.normal(size=(4,)).astype(np.float16),
        "a.double": rng.normal(size=(2, 2)),
        "a.count": np.array(7, np.int64),
        "a.empty": np.zeros((0, 3), np.float32),
    }


def assert_same(got, expected):
    assert list(got) == list(expected)
    for name, x in expected.items():
        assert got[name].dtype == x.dtype and got[name].shape == x.shape
        np.testing.assert_array_equal(got[name], x)


@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_are_read_exactly(tmp_path, legacy):
    path = torch_files.save(tmp_path / "x.pth", example_arrays(), legacy=legacy)
    assert torchfile.is_torch_file(path)
    assert_same(torchfile.read(path), example_arrays())


@pytest.mark.parametrize("legacy", [False, True])
def test_files_from_pytorch_are_read_exactly(tmp_path, legacy):
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
def test_expanded_and_shared_tensors_from_pytorch_are_read_exactly(tmp_path, legacy):
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


def test_expanded_tensors_allocate_no_memory(tmp_path):
    tree, _ = torch_files.tensors({"a": np.ones(1, np.float32)}, legacy=False)
    tree["a"].args = (tree["a"].args[0], 0, (1 << 40,), (0,), False, {})
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", torch_files.dumps(tree))
        archive.writestr("x/data/0", np.ones(1, np.float32).tobytes())
    assert torchfile.read(path)["a"].shape == (1 << 40,)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_device_of_a_tensor_is_ignored(tmp_path, legacy):
    arrays = example_arrays()
    halves = {"bf16": np.array([0x3F80, 0xC020], np.uint16)}
    path = torch_files.save(
        tmp_path / "x.pth", arrays | halves, legacy=legacy, location="cuda:0"
    )
    expected = {"bf16": np.array([1, -2.5], np.float32)}
    assert_same(torchfile.read(path), arrays | expected)


class Meter(dict):
    """A subclass of dict."""


def training_checkpoint(state_dict):
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
def test_other_content_of_training_checkpoints_is_read_or_replaced(tmp_path, legacy):
    path = torch_files.save(
        tmp_path / "x.pth",
        example_arrays(),
        legacy=legacy,
        wrap=training_checkpoint,
    )
    got = torchfile.read(path)
    assert_same(got["state_dict"], example_arrays())
    assert (got["epoch"], got["best_acc1"]) == (3, 76.5)
    assert got["meters"] == {"loss": [1.0]}
    np.testing.assert_array_equal(got["mean"], [1.5, 2.5])
    assert got["args"].what == "argparse.Namespace"


@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints_from_pytorch_are_read(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="writes files with PyTorch")
    path = tmp_path / "x.pth"
    module = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = training_checkpoint(module.state_dict())
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
    expected = {k: v.numpy() for k, v in module.state_dict().items()}
    assert_same(got["state_dict"], expected)
    assert got["best_acc1"] == 76.5
    assert got["model"].what == "torch.nn.modules.conv.Conv2d"


@pytest.mark.parametrize("legacy", [False, True])
def test_unknown_classes_are_not_imported(tmp_path, legacy, monkeypatch):
    (tmp_path / "evil_package.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    settings = torch_files.Call(torch_files.Named("evil_package", "Settings"), {"a": 1})
    settings = torch_files.Build(settings, {"b": 2})
    path = torch_files.save(
        tmp_path / "x.pth",
        example_arrays(),
        legacy=legacy,
        wrap=lambda d: {"args": settings, "state_dict": d},
    )
    got = torchfile.read(path)
    assert_same(got["state_dict"], example_arrays())
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
def test_functions_are_rejected_and_not_run(tmp_path, legacy, name):
    marker = tmp_path / "ran"
    call = torch_files.Call(torch_files.Named(*name), f"touch {marker}")
    path = torch_files.save(
        tmp_path / "x.pth", example_arrays(), legacy=legacy, wrap=lambda d: {"a": call}
    )
    words = re.escape(f"{name[0]}.{name[1]}, which is not data")
    with pytest.raises(UserError, match=words):
        torchfile.read(path)
    assert not marker.exists()


def test_builtins_of_python_2_are_rejected(tmp_path):
    call = torch_files.Call(torch_files.Named("__builtin__", "eval"), "1")
    path = torch_files.save(tmp_path / "x.pth", {}, wrap=lambda d: {"a": call})
    with pytest.raises(UserError, match=r"builtins\.eval, which is not data"):
        torchfile.read(path)


def test_a_memo_larger_than_the_file_is_rejected(tmp_path):
    """Python allocates the memo: 64 GB for the largest index."""
    content = (
        pickle.dumps([1], protocol=2)[:-1] + b"r" + (1 << 20).to_bytes(4, "little")
    )
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content + b".")
    with pytest.raises(UserError, match="memo index 1048576"):
        torchfile.read(path)


def test_pickles_can_t_change_the_functions_they_call(tmp_path):
    rebuild = torch_files.Named("torch._utils", "_rebuild_tensor_v2")
    change = torch_files.Build(rebuild, (None, {"__defaults__": (1, 2)}))
    path = torch_files.save(tmp_path / "x.pth", {}, wrap=lambda d: {"a": change})
    with pytest.raises(UserError, match="a function whose attributes are set"):
        torchfile.read(path)


def test_bare_pickles_are_rejected_before_their_payload_runs(tmp_path):
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
def test_truncated_files_raise_one_line_errors(tmp_path, legacy):
    path = torch_files.save(tmp_path / "x.pth", example_arrays(), legacy=legacy)
    content = path.read_bytes()
    truncated = tmp_path / "truncated.pth"
    for length in range(0, len(content) - 1, 37):
        truncated.write_bytes(content[:length])
        with pytest.raises(UserError) as caught:
            torchfile.read(truncated)
        assert "\n" not in str(caught.value)


def test_tensors_beyond_their_storage_are_rejected(tmp_path):
    path = tmp_path / "x.pth"
    tree, _ = torch_files.tensors({"a": np.zeros(8, np.float32)}, legacy=False)
    for size, stride, offset in (((9,), (1,), 0), ((2,), (1,), 7), ((2, 2), (9, 1), 0)):
        tree["a"].args = (tree["a"].args[0], offset, size, stride, False, {})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", torch_files.dumps(tree))
            archive.writestr("x/data/0", np.zeros(8, np.float32).tobytes())
        with pytest.raises(UserError, match="beyond its storage"):
            torchfile.read(path)


def test_other_files_are_rejected(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match="No such file"):
        torchfile.read(path)
    with pytest.raises(UserError, match="Is a directory"):
        torchfile.read(tmp_path)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a PyTorch checkpoint"):
        torchfile.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match="a zip archive, but not one of"):
        torchfile.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", torch_files.dumps({}))
        archive.writestr("m/code/m.py", "")
    with pytest.raises(UserError, match="TorchScript program, not a checkpoint"):
        torchfile.read(path)


def test_archives_that_expand_too_much_are_rejected(tmp_path, monkeypatch):
    path = tmp_path / "x.pth"
    torch_files.save(path, {"a": np.zeros(1 << 20, np.float32)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    monkeypatch.setattr(zipfile.ZipFile, "read", pytest.fail)
    with pytest.raises(UserError, match="would unpack to 4 MiB"):
        torchfile.read(path)


def test_an_unknown_byte_order_is_rejected(tmp_path):
    path = torch_files.save(tmp_path / "a.pth", example_arrays())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["archive/byteorder"] = b"sideways"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="unknown byte order"):
        torchfile.read(path)


def test_a_truncated_archive_is_damaged(tmp_path):
    path = torch_files.save(tmp_path / "x.pth", example_arrays())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        torchfile.read(path)


def test_files_of_the_first_pytorch_versions_are_rejected(tmp_path):
    path = tmp_path / "x.pth"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert torchfile.is_torch_file(path)
    with pytest.raises(
        UserError, match=r"tar archive, written by PyTorch before 0\.1\.10"
    ):
        torchfile.read(path)
    tree, _ = torch_files.tensors({"a": np.zeros(8, np.float32)}, legacy=True)
    pid = tree["a"].args[0].pid
    tree["a"].args[0].pid = (*pid[:5], ("1", 2, 3))
    system = {"little_endian": True}
    parts = (0x1950A86A20F9469CFC6C, 1001, system, tree, ["0"])
    path.write_bytes(b"".join(map(torch_files.dumps, parts)))
    with pytest.raises(UserError, match=r"x\.pth holds views .* before 0\.4"):
        torchfile.read(path)
