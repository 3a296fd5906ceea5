"""The labeled `.mat`: real frames in both layouts, and wrong or damaged files."""

import json
import subprocess
import sys
import time
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import ReadOptions, open_source
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import UserError
from tests.data.sources import made

W, H = 8, 6
TRAIN_SCENES = ["kitchen_0003", "office_0004"]


def write_mat(path, *, scenes=None, drop=(), **fields):
    """A file like MATLAB's v7.3: HDF5 behind 512 bytes, axes reversed."""
    rng = np.random.default_rng(0)
    n = len(fields.get("depths", np.zeros(4)))
    depth = rng.uniform(1, 9, (n, W, H)).astype(np.float32)
    fields = {
        "images": rng.integers(0, 256, (n, 3, W, H), np.uint8),
        "depths": depth,
        "rawDepths": np.where(rng.random(depth.shape) < 0.3, 0, depth + 0.01),
        **fields,
    }
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in fields.items():
            if name not in drop:
                file[name] = value
        if scenes is not None:
            cell = file.create_dataset("scenes", (1, n), h5py.ref_dtype)
            for k, scene in enumerate(scenes):
                text = np.frombuffer(scene.encode("utf-16-le"), "<u2")[:, None]
                cell[0, k] = file.create_dataset(f"#refs#/{k}", data=text).ref
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, HDF5 schema 1.00 .".ljust(124) + b"\0\2IM")
    return path, {k: np.asarray(v) for k, v in fields.items() if k not in drop}


def refused(path, match):
    """Assert that the data fail with a one-line UserError."""
    with pytest.raises(UserError, match=match) as error:
        source = open_source(path)
        for row in range(len(source.infos)):
            source.frame(row)
    text = str(error.value)
    assert "\n" not in text and str(path) in text


@pytest.fixture(scope="module")
def build(shared_data, tmp_path_factory):
    tool = shared_data.parent / "tools" / "build_labeled_mat.py"
    if not tool.exists():
        pytest.skip("no build_labeled_mat.py beside the sample data")

    def run(name, *flags):
        out = tmp_path_factory.mktemp("mat") / name
        subprocess.run(
            [sys.executable, tool, "--out", out, "--gzip=0", *flags],
            check=True, capture_output=True,
        )  # fmt: skip
        return out

    return run


def real(shared_data, index):
    """RGB, and the 8-bit codes that its depth was computed from."""
    root = shared_data / "nyu_train"
    with Image.open(root / "rgb" / f"{index:04d}.jpg") as image:
        rgb = np.asarray(image.convert("RGB"))
    with Image.open(root / "depth8" / f"{index:04d}.png") as image:
        return rgb, np.asarray(image).astype(float)


def test_axes_are_transposed_to_height_and_width(tmp_path):
    path, fields = write_mat(tmp_path / "a.mat")
    source = open_source(path)
    assert source.truths == ("filled", "raw")
    for row in range(4):
        frame = source.frame(row)
        assert frame.rgb.shape == (H, W, 3) and frame.rgb.dtype == np.uint8
        for x, y in [(0, 0), (7, 2), (3, 5)]:
            np.testing.assert_array_equal(
                frame.rgb[y, x], fields["images"][row, :, x, y]
            )
            assert frame.filled is not None and frame.raw is not None
            assert frame.filled[y, x] == fields["depths"][row, x, y]
            assert frame.raw[y, x] == np.float32(fields["rawDepths"][row, x, y])


def test_non_finite_and_negative_depth_is_missing(tmp_path):
    depth = np.full((2, W, H), 2.0, np.float32)
    depth[0, 0, :4] = [np.nan, np.inf, -np.inf, -3]
    path, _ = write_mat(tmp_path / "a.mat", depths=depth, drop=("rawDepths",))
    filled = open_source(path).frame(0).filled
    assert filled is not None
    np.testing.assert_array_equal(filled[:4, 0], 0)
    assert (filled > 0).sum() == W * H - 4


def test_the_compact_layout_is_read_with_its_list(build, shared_data):
    path = build("c.mat", "--limit", "6")
    source = open_source(path)
    indices = [3, 4, 5, 6, 7, 8]
    assert [info.official_index for info in source.infos] == indices
    scenes = splits.official()["scenes"]
    assert [info.scene for info in source.infos] == [scenes[i - 1] for i in indices]
    rgb, code = real(shared_data, 5)
    frame = source.frame(2)
    np.testing.assert_array_equal(frame.rgb, rgb)
    assert frame.filled is not None and frame.filled.shape == (480, 640)
    expected = np.minimum((code + 0.5) / 255 * 9.99547, 9.99547)
    np.testing.assert_allclose(frame.filled, expected, rtol=1e-6)
    assert source.splits()["official"] == {"train": list(range(6)), "eval": []}


def test_raw_depth_equal_to_filled_depth_is_ignored(build):
    source = open_source(build("c.mat", "--limit", "3"))
    assert source.truths == ("filled",)
    assert any("equal depths wherever they are not 0" in note for note in source.notes)
    assert source.frame(0).raw is None


def test_without_the_list_splits_follow_scene_names(build):
    path = build("c.mat", "--limit", "40")
    with_list = open_source(path).splits()
    path.with_name("c.mat.json").unlink()
    source = open_source(path)
    assert all(info.official_index is None for info in source.infos)
    assert source.splits() == with_list
    assert len(with_list["tune"]["train"]) < 40


def test_the_official_layout_may_hold_few_frames(build, shared_data, tmp_path):
    indices = [3, 140, 700, 1443]
    have = {int(p.stem) for p in (shared_data / "nyu_train" / "rgb").glob("*.jpg")}
    indices = [i for i in indices if i in have] or sorted(have)[:3]
    path = build("o.mat", "--layout", "official", "--indices", *map(str, indices))
    begin = time.monotonic()
    source = open_source(path)
    assert len(source.infos) == 1449
    assert source.truths == ("filled",)  # despite the empty rows
    assert [info.official_index for info in source.infos] == list(range(1, 1450))
    opened = store_writer.write(source, tmp_path / "s", size=(24, 32))
    # Reading and resizing the empty rows alone would take a minute.
    assert time.monotonic() - begin < 20
    names = [info["official_index"] for info in opened.manifest["frames"]]
    assert names == indices
    left = 1449 - len(indices)
    assert any(f"left out {left} frames without any depth" in n for n in opened.notes)
    assert opened.splits["official"]["train"] == list(range(len(indices)))
    rgb, _ = real(shared_data, indices[-1])
    block = rgb[:20, :20].astype(float).mean((0, 1))
    stored, depth = opened.gather([len(indices) - 1], depth="filled")
    np.testing.assert_array_equal(stored[0, 0, 0], np.floor(block + 0.5))
    assert (depth > 0).all()


def test_a_smaller_file_of_official_scenes_without_raw_depth(tmp_path):
    official = splits.official()
    indices = official["train"][0], official["test"][0]
    scenes = [official["scenes"][i - 1] for i in indices]
    depth = np.full((2, W, H), 2.0)
    path, _ = write_mat(
        tmp_path / "a.mat", depths=depth, scenes=scenes, drop=("rawDepths",)
    )
    source = open_source(path)
    assert source.truths == ("filled",)
    assert any("no rawDepths" in note for note in source.notes)
    assert [info.scene for info in source.infos] == scenes
    assert source.splits()["official"] == {"train": [0], "eval": [1]}


def test_other_scenes_have_no_official_split(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat", scenes=["my_room"] * 4)
    assert open_source(path).splits() == {"all": {"train": [0, 1, 2, 3], "eval": []}}


def test_an_empty_matlab_string_is_no_scene(tmp_path):
    # MATLAB stores an empty string as its shape.
    path, _ = write_mat(tmp_path / "a.mat", scenes=["my_room", "", "a", "b"])
    with h5py.File(path, "r+") as file:
        empty = file.create_dataset("#refs#/empty", data=np.zeros(2, np.uint64))
        empty.attrs["MATLAB_empty"] = np.uint8(1)
        cell = file["scenes"]
        assert isinstance(cell, h5py.Dataset)
        cell[0, 1] = empty.ref
    assert [i.scene for i in open_source(path).infos] == ["my_room", None, "a", "b"]


def test_frames_of_huge_size_are_rejected(tmp_path):
    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        for name, shape in (("images", (1, 3)), ("depths", (1,))):
            kind = np.uint8 if name == "images" else np.float32
            file.create_dataset(name, (*shape, 10**4, 10**4), kind, chunks=True)
    refused(path, "images has shape")


def test_the_list_may_name_rows(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat")
    sidecar = tmp_path / "a.mat.json"
    sidecar.write_text(json.dumps({"frames": [10, 3], "rows": [2, 0]}))
    indices = [info.official_index for info in open_source(path).infos]
    assert indices == [3, None, 10, None]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"frames": 3}', '{"frames": [1, 2], "rows": [0]}',
     '{"frames": [0]}', '{"frames": [1450]}', '{"frames": [1], "rows": [4]}',
     '{"frames": ["a"]}', '{"frames": [1, 2, 3, 4, 5]}'],
)  # fmt: skip
def test_a_list_that_does_not_fit_is_rejected(tmp_path, text):
    path, _ = write_mat(tmp_path / "a.mat")
    (tmp_path / "a.mat.json").write_text(text)
    refused(path, "does not list the official frames|belongs to another file")


def test_a_truncated_file_is_an_error(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat")
    content = path.read_bytes()
    for length in (len(content) - 100, len(content) // 2, 700, 513):
        path.write_bytes(content[:length])
        refused(path, "truncated or damaged|not a MATLAB")


def test_damaged_bytes_cause_a_one_line_error_or_none(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat", scenes=TRAIN_SCENES * 2)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for place in rng.integers(512, min(len(content), 4096), 6):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            source = open_source(path)
            for row in range(len(source.infos)):
                source.frame(row)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_damaged_row_does_not_affect_the_others(tmp_path):
    plain, fields = write_mat(tmp_path / "plain.mat")
    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            chunks = (1, *value.shape[1:])
            file.create_dataset(name, data=value, chunks=chunks, compression="gzip")
        chunk = file["depths"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 255  # gzip has a checksum
    path.write_bytes(content)
    source = open_source(path)
    broken = made.broken_rows(source)
    assert broken.keys() == {2}
    assert str(path) in broken[2] and "can't be read as row 2 of depths" in broken[2]
    np.testing.assert_array_equal(
        source.frame(3).depths["filled"], open_source(plain).frame(3).depths["filled"]
    )


def test_a_field_that_is_not_a_dataset_is_rejected(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat", drop=("rawDepths",))
    with h5py.File(path, "a") as file:
        file["rawDepths"] = np.dtype("f4")
    refused(path, "rawDepths is not a dataset")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a MATLAB v7.3"),
        (b"just some text\n" * 100, "not a MATLAB v7.3"),
        (b"MATLAB 5.0 MAT-file, Platform: PCWIN64".ljust(600), "MATLAB v5"),
        (b"PK\3\4" + bytes(600), "not a MATLAB v7.3"),
    ],
)
def test_other_files_named_mat_are_rejected(tmp_path, content, match):
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    path.write_bytes(content)
    refused(path, match)


@pytest.mark.parametrize("field", ["images", "depths"])
def test_a_missing_dataset_is_an_error(tmp_path, field):
    path, _ = write_mat(tmp_path / "a.mat", drop=(field,))
    refused(path, f"no dataset {field}")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"images": np.zeros((4, W, H), np.uint8)}, r"images has shape \(4, 8, 6\)"),
        ({"images": np.zeros((4, W, H, 3), np.uint8)}, "images has shape"),
        ({"images": np.zeros((0, 3, W, H), np.uint8)}, "images has shape"),
        ({"images": np.zeros((4, 3, W, H), np.float32)}, "float32, not uint8"),
        ({"depths": np.ones((4, H, W), np.float32)}, "depths has shape"),
        ({"depths": np.ones((3, W, H), np.float32),
          "images": np.zeros((4, 3, W, H), np.uint8)}, "depths has shape"),
        ({"rawDepths": np.ones((4, W, H - 1), np.float32)}, "rawDepths has shape"),
        ({"depths": np.full((4, W, H), b"a")}, "expected numbers, in metres"),
    ],
)  # fmt: skip
def test_wrong_shapes_and_types_are_rejected(tmp_path, fields, match):
    path, _ = write_mat(tmp_path / "a.mat", **fields)
    refused(path, match)


@pytest.mark.parametrize(
    ("factor", "match"), [(1000, "median depth would be"), (0.001, "no depth is above")]
)
def test_a_wrong_unit_is_rejected(tmp_path, factor, match):
    depth = np.random.default_rng(0).uniform(1, 5, (4, W, H)) * factor
    path, _ = write_mat(tmp_path / "a.mat", depths=depth)
    refused(path, match)


def test_a_depth_scale_is_rejected(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat")
    with pytest.raises(UserError, match="does not use it"):
        open_source(path, options=ReadOptions(depth_scale=1000.0))


def test_missing_files_and_folders_are_errors(tmp_path):
    refused(tmp_path / "none.mat", "no such file or folder")
    with pytest.raises(UserError, match="directory"):
        open_source(tmp_path, data_format="nyu_labeled")


def test_a_changed_list_changes_the_fingerprint(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat")
    first = open_source(path).fingerprint()
    assert open_source(path).fingerprint() == first
    (tmp_path / "a.mat.json").write_text('{"frames": [1, 2, 3, 4]}')
    assert open_source(path).fingerprint() != first


def test_axes_in_numpy_order_are_rejected(tmp_path):
    fields = {
        "images": np.zeros((1, 3, 480, 640), np.uint8),
        "depths": np.ones((1, 480, 640), np.float32),
    }
    path, _ = write_mat(tmp_path / "a.mat", drop=("rawDepths",), **fields)
    refused(path, "swap its last two axes")


def test_scenes_may_be_plain_strings(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat")
    with h5py.File(path, "r+") as file:
        file["scenes"] = [b"a", b"b", b"b", b""]
    source = open_source(path)
    assert [info.scene for info in source.infos] == ["a", "b", "b", None]


@pytest.mark.parametrize("field", ["images", "depths", "rawDepths", "scenes"])
def test_a_file_that_refers_to_another_file_is_refused(tmp_path, field):
    path, _ = write_mat(tmp_path / "a.mat", scenes=TRAIN_SCENES * 2)
    with h5py.File(tmp_path / "secret.h5", "w") as secret, h5py.File(path, "a") as file:
        stored: Any = file[field]
        secret["data"] = stored[()] if field != "scenes" else [b"secret"] * 4
        del file[field]
        file[field] = h5py.ExternalLink("secret.h5", "data")
    refused(path, rf"{field} is a link to other data")


def test_a_scene_in_another_file_is_refused(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat", scenes=TRAIN_SCENES * 2)
    (tmp_path / "secret").write_text("secret" * 10)
    with h5py.File(path, "a") as file:
        text = file.create_dataset(
            "#refs#/secret", (8,), np.uint16, external=[(tmp_path / "secret", 0, 16)]
        )
        cell: Any = file["scenes"]
        cell[0, 1] = text.ref
    refused(path, "takes its data from other files")


def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path):
    path, _ = write_mat(tmp_path / "a.mat", drop=("images", "depths", "rawDepths"))
    with h5py.File(path, "a") as file:
        file.create_dataset("images", (1, 3, 8000, 8000), np.uint8)
        file.create_dataset("depths", (1, 8000, 8000), np.float32)
    assert path.stat().st_size < 10_000
    refused(path, "needs 183 MiB, but only 0 bytes are stored")
