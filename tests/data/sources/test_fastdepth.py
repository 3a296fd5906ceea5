"""The format fastdepth: real frames, and HDF5 files that are wrong or damaged."""

import errno
import shutil

import h5py
import numpy as np
import pytest
from PIL import Image

from jaxdepth.data import split
from jaxdepth.data.nyu import splits, toolbox
from jaxdepth.data.sources import open_source
from tests.data.sources import made

H, W = made.SIZE


def write(root, name, metres=2.0, value=0, **fields):
    """Write a frame of one colour and one depth; `fields` replace these, None omits."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {
        "rgb": np.full((3, H, W), value, np.uint8),
        "depth": np.full((H, W), metres, np.float32),
        **fields,
    }
    with h5py.File(path, "w") as file:
        for field, content in fields.items():
            if content is not None:
                file[field] = content
    return path


@pytest.fixture
def both(tmp_path):
    """The layout of nyudepthv2.tar.gz, with two test frames."""
    for k, number in enumerate((1, 6, 11, 201)):
        write(tmp_path, f"nyudepthv2/train/kitchen_0028b/{number:05d}.h5", 1 + k, k)
    write(tmp_path, "nyudepthv2/train/bookstore_0001e/00006.h5", 5, 4)
    for k, index in enumerate(splits.official()["test"][:2]):
        write(tmp_path, f"nyudepthv2/val/official/{index:05d}.h5", 6 + k, 5 + k)
    return tmp_path


@pytest.mark.parametrize("inside", ["", "nyudepthv2"])
def test_training_and_test_frames_are_read(both, inside):
    source = open_source(both / inside)
    assert source.format == "fastdepth" and source.truths == ("filled",)
    names = [info.name for info in source.infos]
    assert names[:2] == ["train/bookstore_0001e/00006.h5",
                         "train/kitchen_0028b/00001.h5"]  # fmt: skip
    indices = splits.official()["test"][:2]
    assert [i.official_index for i in source.infos] == [None] * 5 + indices
    official = [splits.official()["scenes"][index - 1] for index in indices]
    assert [info.scene for info in source.infos] == [
        "bookstore_0001e", *["kitchen_0028b"] * 4, *official
    ]  # fmt: skip
    for row, metres in enumerate((5, 1, 2, 3, 4, 6, 7)):
        frame = source.frame(row)
        assert frame.filled is not None and frame.raw is None
        np.testing.assert_array_equal(frame.filled, np.float32(metres))
        assert frame.rgb.shape == (H, W, 3) and frame.intrinsics is None
    made.same_elsewhere(source)


def test_held_out_files_and_test_scenes_are_left_out_of_training(both):
    source = open_source(both)
    splits, notes = split.complete(source)
    assert splits == {
        "official": {"train": [2, 3], "eval": [5, 6]},
        "all": {"train": [1, 2, 3, 4, 5, 6], "eval": []},
    }
    assert source.notes[0].startswith("left 2 frames named 00001.h5 or 00201.h5 out")
    assert notes[0].startswith("left 1 frames of bookstore_0001e out")


def test_real_frames_are_read(shared_data):
    source = open_source(shared_data / "h5_fastdepth")
    assert source.truths == ("raw",)  # a quarter of these frames is missing
    assert [info.name for info in source.infos] == ["val/00001.h5", "val/00002.h5"]
    # Numbers in val/ itself are not official indices.
    assert [info.official_index for info in source.infos] == [None, None]
    assert source.splits()["own"] == {"train": [], "eval": [0, 1]}
    beside = shared_data / "sync_png16" / "basement_0001a"
    for row, number in enumerate(("00000", "00100")):
        frame = source.frame(row)
        with Image.open(beside / f"sync_depth_{number}.png") as stored:
            np.testing.assert_allclose(
                frame.depths["raw"], np.asarray(stored) / 1000, rtol=1e-6
            )
        with Image.open(beside / f"rgb_{number}.jpg") as image:
            np.testing.assert_array_equal(frame.rgb, np.asarray(image))
        assert frame.intrinsics == toolbox.RGB_CAMERA.intrinsics
    made.same_elsewhere(source)


def test_numbers_outside_the_test_set_are_not_official_indices(tmp_path):
    for number in (1, 2, 3):  # counted from 1: 3 is a training frame
        write(tmp_path, f"val/official/{number:05d}.h5")
    source = open_source(tmp_path)
    assert [info.official_index for info in source.infos] == [None] * 3
    assert source.splits()["own"]["eval"] == [0, 1, 2]


def test_non_finite_and_non_positive_depth_is_missing(tmp_path):
    metres = np.full((H, W), 2.0, np.float32)
    metres[0, :5] = [np.nan, np.inf, -np.inf, -1, 0]
    write(tmp_path, "train/a/00002.h5", depth=metres)
    source = open_source(tmp_path)
    assert source.truths == ("raw",)
    raw = source.frame(0).depths["raw"]
    np.testing.assert_array_equal(raw == 0, ~(np.isfinite(metres) & (metres > 0)))


WRONG = {
    "rgb": [None, np.zeros((H, W, 3), np.uint8), np.zeros((3, H, W), np.float32),
            np.zeros((H, W), np.uint8), np.uint8(3)],
    "depth": [None, np.ones((H + 1, W), np.float32), np.ones((H, W), np.uint16),
              np.ones((1, H, W), np.float32), np.zeros((0, W), np.float32)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "content"), [(k, v) for k, values in WRONG.items() for v in values]
)
def test_files_with_wrong_fields_are_broken_frames(tmp_path, field, content):
    write(tmp_path, "train/a/00002.h5")
    path = write(tmp_path, "train/a/00003.h5", **{field: content})
    broken = made.broken_rows(open_source(tmp_path))
    assert broken.keys() == {1} and str(path) in broken[1]


@pytest.mark.parametrize("size", [(0, W), (1 << 14, 1 << 13)])
def test_empty_and_huge_sizes_are_broken_frames(tmp_path, size):
    write(tmp_path, "train/a/00002.h5")
    path = tmp_path / "train/a/00003.h5"
    with h5py.File(path, "w") as file:  # sizes as in damaged files; no data
        file.create_dataset("rgb", (3, *size), np.uint8, maxshape=(3, None, None))
        file.create_dataset("depth", size, np.float32, maxshape=(None, None))
    broken = made.broken_rows(open_source(tmp_path))
    assert broken.keys() == {1} and f"shape {size}" in broken[1]


def test_damaged_files_are_broken_frames(shared_data, tmp_path):
    root = shutil.copytree(
        shared_data / "h5_fastdepth", tmp_path / "h5", copy_function=shutil.copy
    )
    path = root / "val" / "00002.h5"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255  # covered by gzip's checksum
    for damaged in (b"", content[:300000], b"text\n" * 99, bytes(flipped)):
        path.write_bytes(damaged)
        broken = made.broken_rows(open_source(root))
        assert broken.keys() == {1} and str(path) in broken[1]


def test_storage_errors_are_not_broken_frames(both, monkeypatch):
    source = open_source(both)

    def fail(*_):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(OSError, match="too many open files"):
        source.frame(0)


def test_data_without_any_readable_frame_are_an_error(tmp_path):
    for number in range(3):
        made.text(tmp_path, f"train/a/{number:05d}.h5", "text")
    made.refused(tmp_path, "no frame could be read", "00000.h5")


def test_wrong_folders_and_units_are_rejected(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    made.refused(tmp_path, "no HDF5 files in train/ or val/", data_format="fastdepth")
    write(tmp_path, "train/a/00002.h5", metres=2000)
    made.refused(tmp_path, "median depth would be 2000 m")


def test_changed_files_have_another_fingerprint(both):
    first = open_source(both).fingerprint()
    assert open_source(both).fingerprint() == first
    write(both, "nyudepthv2/train/kitchen_0028b/00016.h5")
    assert open_source(both).fingerprint() != first
