"""HDF5 files that refer to other files, or claim more than they hold."""

import h5py
import numpy as np
import pytest

from jaxdepth.data.sources import hdf5


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(6)
    return path


def stored(tmp_path, build):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        build(file)
    return path


def external_link(file, secret):
    file["a"] = h5py.ExternalLink(str(secret), "data")


def external_storage(file, secret):
    file.create_dataset(
        "a", (6,), np.int64, external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file, secret):
    layout = h5py.VirtualLayout((6,), np.int64)
    layout[:] = h5py.VirtualSource(str(secret), "data", (6,))
    file.create_virtual_dataset("a", layout)


def soft_link(file, secret):
    file["other"] = h5py.ExternalLink(str(secret), "/")
    file["a"] = h5py.SoftLink("/other/data")


@pytest.mark.parametrize("build", [external_link, external_storage, virtual, soft_link])
def test_other_files_are_never_opened(tmp_path, secret, build):
    path = stored(tmp_path, lambda file: build(file, secret))
    with h5py.File(path, "r") as file:
        assert np.size(file["a"][()]) == 6  # pyright: ignore  # h5py follows it
    with h5py.File(path, "r") as file:
        assert "a" in list(file)
        with pytest.raises(hdf5.InvalidDataset, match=r"a (is a link|takes its data)"):
            hdf5.dataset(file, "a")


def test_a_link_that_leads_nowhere_is_listed_and_rejected(tmp_path):
    path = stored(tmp_path, lambda f: external_link(f, tmp_path / "absent.h5"))
    with h5py.File(path, "r") as file:
        assert list(file) == ["a"]
        with pytest.raises(hdf5.InvalidDataset, match="a is a link"):
            hdf5.dataset(file, "a")


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (1, 64, 64), "compression": "gzip"},
        {"chunks": (1, 64, 64)},
        {},
    ],
)
def test_datasets_are_read(tmp_path, options):
    values = np.random.default_rng(0).integers(0, 255, (9, 64, 64), np.uint8)
    path = stored(tmp_path, lambda f: f.create_dataset("a", data=values, **options))
    with h5py.File(path, "r") as file:
        assert (hdf5.dataset(file, "a")[()] == values).all()
        assert hdf5.dataset(file, "b") is None


def test_zeros_and_rows_never_written_are_read(tmp_path):
    def build(file):
        a = file.create_dataset(
            "a", (1449, 640, 480), np.float32,
            chunks=(1, 640, 480), compression="gzip", compression_opts=9,
        )  # fmt: skip
        a[:30] = np.zeros((30, 640, 480), np.float32)

    with h5py.File(stored(tmp_path, build), "r") as file:
        assert not hdf5.dataset(file, "a")[5].any()


@pytest.mark.parametrize(
    "shape, chunks, message",
    [
        ((3, 8192, 8192), None, "needs 192 MiB, but only 0 bytes are stored"),
        ((3, 10000, 10000), (3, 10000, 10000), "chunks of 286 MiB"),
        ((1449, 3, 640, 48000), (1, 3, 64, 480), "needs 127353 MiB, but only 0 bytes"),
    ],
)
def test_claims_without_data_are_rejected(tmp_path, shape, chunks, message):
    def build(file):
        file.create_dataset("a", shape, np.uint8, chunks=chunks)

    path = stored(tmp_path, build)
    with (
        h5py.File(path, "r") as file,
        pytest.raises(hdf5.InvalidDataset, match=message),
    ):
        hdf5.dataset(file, "a")


def test_a_group_is_no_dataset(tmp_path):
    path = stored(tmp_path, lambda file: file.create_group("a"))
    with h5py.File(path, "r") as file, pytest.raises(hdf5.InvalidDataset):
        hdf5.dataset(file, "a")
