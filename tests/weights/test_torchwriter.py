"""State dicts written in PyTorch's format."""

import zipfile

import numpy as np
import pytest

from jaxdepth.weights import torchfile, torchwriter

ARRAYS = {
    "a.weight": np.random.default_rng(0).normal(size=(300, 2, 5, 1)).astype("f4"),
    "a.half": np.arange(4, dtype=np.float16),
    "a.num_batches_tracked": np.zeros((), np.int64),
    "a.empty": np.zeros((0, 3), np.float32),
    "a.turned": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "große.Ähnlichkeit": np.ones(1, np.float32),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.pth"
    with open(path, "wb") as file:
        torchwriter.write(file, ARRAYS)
    return path


def assert_same(got):
    assert list(got) == list(ARRAYS)
    for name, x in ARRAYS.items():
        assert got[name].dtype == x.dtype and got[name].shape == x.shape
        np.testing.assert_array_equal(got[name], x)


def test_pytorch_reads_the_file_with_weights_only(path):
    torch = pytest.importorskip("torch", reason="reading with PyTorch needs torch")
    for options in ({}, {"mmap": True}):
        tensors = torch.load(path, weights_only=True, **options)
        assert_same({name: x.numpy() for name, x in tensors.items()})


def test_torchfile_reads_the_file(path):
    assert_same(torchfile.read(path))


def test_arrays_are_aligned_for_memory_mapping(path):
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for key, x in enumerate(ARRAYS.values()):
            info = archive.getinfo(f"archive/data/{key}")
            start = info.header_offset + 30 + len(info.filename) + len(info.extra)
            assert start % 64 == 0
            assert content[start : start + x.nbytes] == x.tobytes()


def test_equal_arrays_give_equal_files(path, tmp_path):
    with open(tmp_path / "again", "wb") as file:
        torchwriter.write(file, ARRAYS)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
