"""Checkpoint files of PyTorch, read without it and without running code."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from jaxdepth.errors import UserError
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
@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch._utils", "os.system"),
        ("numpy", "load"),
    ],
)
def test_what_is_not_data_is_refused_and_does_not_run(tmp_path, legacy, name):
    marker = tmp_path / "ran"
    call = torch_files.Call(torch_files.Named(*name), f"touch {marker}")
    path = torch_files.save(
        tmp_path / "x.pth", some_arrays(), legacy=legacy, wrap=lambda d: {"a": call}
    )
    with pytest.raises(UserError, match=rf"{name[0]}\.{name[1]}, which is not data"):
        torchfile.read(path)
    assert not marker.exists()


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
