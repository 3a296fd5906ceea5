"""Reading stores: equality with the source, damaged files and manifests."""

import copy
import dataclasses
import hashlib
import json
import os
import resource

import numpy as np
import pytest

from jaxdepth.data.sources import Frame
from jaxdepth.data.store import resample
from jaxdepth.data.store import writer as store_writer
from jaxdepth.data.store.manifest import sealed
from jaxdepth.data.store.reader import FullSizeStore, Store, is_store
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError
from tests.data.memory import depths, frame, one_line, written


def test_training_frames_are_means_of_blocks(tmp_path):
    frames = [frame(k) for k in range(5)]
    opened = written(tmp_path, frames)
    rgb, depth = opened.gather([4, 0, 2, 2], depth="filled")
    for k, row in enumerate([4, 0, 2, 2]):
        blocks = frames[row].rgb.reshape(12, 2, 16, 2, 3).astype(float).mean((1, 3))
        np.testing.assert_array_equal(rgb[k], np.floor(blocks + 0.5))
        metres = frames[row].depths["filled"].astype(float).reshape(12, 2, 16, 2)
        millimetres = metres.mean((1, 3)) * 1000
        assert np.abs(depth[k] - millimetres).max() <= 0.5 + 1e-3
    assert (rgb.dtype, depth.dtype) == (np.uint8, np.uint16)


def test_full_frames_equal_the_source(tmp_path):
    frames = [frame(k, kinds=("filled", "raw")) for k in range(3)]
    opened = written(tmp_path, frames, kinds=("filled", "raw"), mask_extremes="off")
    for row, full in zip([2, 0], opened.full_frames([2, 0]), strict=True):
        np.testing.assert_array_equal(full["rgb"], frames[row].rgb)
        for kind, metres in frames[row].depths.items():
            np.testing.assert_allclose(full["depth"][kind], metres, atol=1e-6)
        assert (full["name"], full["scene"]) == (f"frame {row}", f"scene {row // 2}")


def test_depth_is_never_averaged_with_holes(tmp_path):
    # One half at 2 m, the other at 6 m, with random holes: a mean that included a hole
    # as 0 would give another value.
    shot = frame(3, size=(30, 44))
    depth = np.full((30, 44), 2.0, np.float32)
    depth[:, 22:] = 6.0
    depth[np.random.default_rng(1).random(depth.shape) < 0.6] = 0
    depth[:5, :5] = 0
    shot = Frame(shot.rgb, raw=depth)
    opened = written(
        tmp_path, [shot], kinds=("raw",), mask_extremes="off", size=(9, 13)
    )
    small = depths(opened, "raw")[0]
    edge = 22 * 13 // 44
    assert set(np.unique(small[:, :edge])) <= {0, 2000}
    assert set(np.unique(small[:, edge + 1 :])) <= {0, 6000}
    assert small[0, 0] == 0 and (small > 0).mean() > 0.9


def test_a_store_may_have_several_shards(tmp_path, monkeypatch):
    frames = [frame(k) for k in range(16)]
    # No frame of the second shard has depth, and not all of the third.
    for row in (3, 4, 5, 7):
        frames[row] = Frame(frames[row].rgb, filled=np.zeros((24, 32), np.float32))
    kept = [k for k in range(16) if k not in (3, 4, 5, 7)]
    monkeypatch.setattr(store_writer, "SHARD", 3)
    monkeypatch.setattr(store_writer, "FULL_SHARD", 2)
    written(tmp_path, frames)
    # Reading does not depend on the constants used for writing.
    monkeypatch.undo()
    opened = Store.open(tmp_path / "s")
    assert opened.manifest["shards"] == [3, 0, 2, 3, 3, 1]
    assert len(list((tmp_path / "s").glob("train-*.rgb.npy"))) == 5
    assert len(list((tmp_path / "s").glob("full-*.rgb.npy"))) == 8
    rows = np.array([11, 0, 3, 3, 2, 5, 4])
    rgb, depth = opened.gather(rows, depth="filled")
    for k, row in enumerate(rows):
        shot = frames[kept[row]]
        np.testing.assert_array_equal(rgb[k], resample.to_size(shot.rgb, (12, 16)))
        small = resample.to_size(resample.to_codes(shot.filled), (12, 16))
        np.testing.assert_array_equal(depth[k], small)
    for row, full in zip(rows, opened.full_frames(rows), strict=True):
        np.testing.assert_array_equal(full["rgb"], frames[kept[row]].rgb)
        assert full["name"] == f"frame {kept[row]}"


def test_frames_may_differ_in_size(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "FULL_SHARD", 3)
    sizes = [(24, 32), (36, 40), (24, 32), (10, 50), (36, 40), (6, 8), (12, 16)]
    frames = [frame(k, size) for k, size in enumerate(sizes)]
    opened = written(tmp_path, frames)
    for row, full in enumerate(opened.full_frames(range(len(sizes)))):
        np.testing.assert_array_equal(full["rgb"], frames[row].rgb)
        assert full["depth"]["filled"].shape == sizes[row]
    rgb, depth = opened.gather(range(len(sizes)), depth="filled")
    assert rgb.shape == (7, 12, 16, 3) and (depth > 0).all()
    # A frame of the training size is stored unchanged.
    np.testing.assert_array_equal(rgb[6], frames[6].rgb)
    # A smaller frame is enlarged; depth is repeated, never interpolated.
    nearest = np.round(frames[5].depths["filled"] * 1000).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(depth[5], nearest)


def test_a_wider_frame_is_cropped_about_its_centre(tmp_path):
    shot = frame(2, size=(12, 40))
    opened = written(tmp_path, [shot])
    rgb, depth = opened.gather([0], depth="filled")
    np.testing.assert_array_equal(rgb[0], shot.rgb[:, 12:28])
    expected = np.round(shot.depths["filled"][:, 12:28] * 1000)
    np.testing.assert_array_equal(depth[0], expected)


def test_cameras_follow_the_pixels(tmp_path):
    # 24x40 is cropped to 24x32 about the centre and halved. A frame that is left out
    # does not count.
    shots = [
        dataclasses.replace(frame(k, (24, 40)), intrinsics=(50.0, 60.0, 19.0, 11.0))
        for k in range(3)
    ]
    shots[1] = Frame(shots[1].rgb, filled=np.zeros((24, 40), np.float32))
    opened = written(tmp_path, shots)
    # The centre of pixel 19 is 19.5 - 4 from the crop's edge: 7.75 pixels of half size.
    assert opened.manifest["camera"] == {
        "size": [12, 16], "fx": 25.0, "fy": 30.0, "cx": 7.25, "cy": 5.25
    }  # fmt: skip
    assert [opened.camera(row) for row in range(2)] == [(25.0, 30.0, 7.25, 5.25)] * 2


def test_frames_of_several_cameras_have_their_own(tmp_path):
    cameras = [(40.0, 40.0, 15.0, 11.0), None, (60.0, 44.0, 17.0, 12.0)] * 2
    cameras[3] = (50.0, 48.0, 16.0, 11.0)
    shots = [
        dataclasses.replace(frame(k), intrinsics=camera)
        for k, camera in enumerate(cameras)
    ]
    opened = written(tmp_path, shots, keep_full="all")
    for row, full in enumerate(opened.full_frames(range(6))):
        own = cameras[row]
        assert (opened.camera(row) is None) == (own is None)
        assert full["camera"] == (None if own is None else pytest.approx(own))
    # Medians of 40, 60, 50, 60; 40, 44, 48, 44; and so on, halved.
    assert opened.manifest["camera"] == {
        "size": [12, 16], "fx": 27.5, "fy": 22.0, "cx": 8.0, "cy": 5.5
    }  # fmt: skip
    assert written(tmp_path, [frame(1)], out="m").manifest["camera"] is None


def test_a_missing_kind_of_depth_is_an_error(tmp_path):
    opened = written(tmp_path, [frame()])
    with pytest.raises(UserError, match="has no raw depth, but filled") as error:
        opened.gather([0], depth="raw")
    one_line(error)


def test_numpy_and_json_can_read_a_store(tmp_path):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    manifest = json.loads((opened.path / "manifest.json").read_text())
    assert manifest["count"] == 3 and manifest["size"] == [12, 16]
    rgb = np.load(opened.path / "train-00000.rgb.npy")
    depth = np.load(opened.path / "train-00000.filled.npy")
    assert rgb.shape == (3, 12, 16, 3) and depth.dtype == np.uint16
    assert not opened.damaged()


def test_opening_detects_missing_and_truncated_files(tmp_path):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    file = opened.path / "train-00000.filled.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="missing or cut short") as error:
        Store.open(opened.path)
    assert str(file) in one_line(error)
    file.unlink()
    with pytest.raises(UserError, match="missing or cut short"):
        Store.open(opened.path)


def test_checksums_detect_damage_of_the_same_length(tmp_path):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    file = opened.path / "train-00000.filled.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    seen = []
    again = Store.open(opened.path)
    assert again.damaged(lambda *call: seen.append(call)) == [file.name]
    count = len(opened.manifest["files"])
    assert [call[1:] for call in seen] == [(k + 1, count) for k in range(count)]


@pytest.mark.parametrize("kind", ["rgb", "filled"])
@pytest.mark.parametrize("where", [0, 90, 200, -1])  # magic, header, pixels
def test_reading_a_damaged_shard_is_an_error(tmp_path, kind, where):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    for stem, read in {
        "train-00000": lambda store: store.gather([0], depth="filled"),
        "full-00000-0": lambda store: list(store.full_frames([0])),
    }.items():
        file = opened.path / f"{stem}.{kind}.npy"
        content = bytearray(file.read_bytes())
        content[where] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match="missing or damaged") as error:
            read(Store.open(opened.path))
        assert str(file) in one_line(error)
        content[where] ^= 1
        file.write_bytes(content)
        read(Store.open(opened.path))


def test_a_checksum_is_computed_once_and_again_after_a_change(tmp_path, monkeypatch):
    opened, computed = written(tmp_path, [frame(k) for k in range(3)]), []

    def counting(file):
        computed.append(file.name)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    monkeypatch.setattr(regular, "sha256", counting)
    for _ in range(2):
        Store.open(opened.path).gather([0, 2], depth="filled")
    assert sorted(computed) == ["train-00000.filled.npy", "train-00000.rgb.npy"]
    file = opened.path / "train-00000.rgb.npy"
    file.write_bytes(file.read_bytes())
    Store.open(opened.path).gather([1], depth="filled")
    assert computed[2:] == [file.name]


def changed(manifest, path, value):
    """The manifest with the value at a path of keys replaced."""
    key, *rest = path
    new = copy.copy(manifest)
    new[key] = changed(manifest[key], rest, value) if rest else value
    return new


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("name",), None),
        (("size",), [12]),
        (("size",), [12, -16]),
        (("size",), [12, 1e9]),
        (("size",), [12, 1 << 40]),
        (("depths",), []),
        (("depths",), ["filled", "filled"]),
        (("depths",), ["disparity"]),
        (("depths",), "filled"),
        (("depths",), ["filled", "raw"]),
        (("frames", 1), {}),
        (("frames", 0, "name"), 3),
        (("frames", 0, "scene"), ["a"]),
        (("frames", 0, "official_index"), "7"),
        (("shards",), [4, -1]),
        (("shards",), [True, 2]),
        (("shards",), [1, 2]),
        (("count",), 2),
        (("splits",), []),
        (("splits", "all"), {"train": [0]}),
        (("splits", "all", "train"), [0, 3]),
        (("splits", "all", "train"), [0, -1]),
        (("splits", "all", "eval"), [0.5]),
        (("notes",), [1]),
        (("full", "full-00000-0"), [0, 1, 9]),
        (("full", "full-00009-0"), [0]),
        (("files", "train-00000.rgb.npy", "bytes"), "1"),
        (("files", "train-00000.rgb.npy", "sha256"), None),
        (("frames", 0, "camera"), 7),
        (("frames", 0, "camera"), -1),
        (("cameras",), [[0, 1, 1, 1]]),
        (("cameras",), [[1, 1, 1]]),
        (("cameras",), [[1, 1, 1, float("nan")]]),
        (("broken",), [{"name": "a"}]),
        (("left_out",), {"a": 1}),
        (("depth_unit",), 0),
        (("depth_unit",), 500),
        (("depth_unit",), "256"),
        (("depth_unit",), 256),  # stores of this unit have another version
        (("version",), 3),
    ],
)
def test_a_manifest_with_a_wrong_value_is_an_error(tmp_path, path, value):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    manifest = sealed(changed(opened.manifest, path, value))
    (opened.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest\.json is damaged") as error:
        Store.open(opened.path)
    one_line(error)


@pytest.mark.parametrize(
    ("path", "value"), [(("size",), [12, 18]), (("full", "full-00000-0"), [0, 1])]
)
def test_shards_of_other_shapes_than_the_manifest_are_errors(tmp_path, path, value):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    manifest = sealed(changed(opened.manifest, path, value))
    (opened.path / "manifest.json").write_text(json.dumps(manifest))
    again = Store.open(opened.path)
    with pytest.raises(UserError, match=r"damaged \(it holds uint8 \(3, ") as error:
        again.gather([0], depth="filled")
        list(again.full_frames([0]))
    one_line(error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"version": 2}',
        '{"version": 2, "files": {}}',
        '{"version": 2, "files": []}',
        "[" * 100_000,
        "9" * 5000,
        '{"version": 2, "files": {"a.npy": {"bytes": "many", "sha256": ""}}}',
        '{"version": 1}',
        '{"version": 99}',
    ],
)
def test_a_damaged_manifest_is_an_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"damaged|version 1,|version 99,") as error:
        Store.open(tmp_path)
    assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"max_depth": 10.0', b'"max_depth": 80.0'),
        (b'"max_depth": 10.0', b'"max_depth": 10.1'),
        (b'"frame 1"', b'"frame 7"'),
        (b'"depth_scale": null', b'"depth_scale": 5000'),
    ],
)
def test_a_changed_manifest_is_detected_by_its_checksum(tmp_path, old, new):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    file = opened.path / "manifest.json"
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    with pytest.raises(UserError, match=r"damaged.*checksum differs.*again") as error:
        Store.open(opened.path)
    assert str(file) in one_line(error)
    file.write_text(json.dumps(json.loads(content), indent=7))  # the same content
    Store.open(opened.path)


def test_the_checksum_is_the_sha256_of_the_sorted_content(tmp_path):
    opened = written(tmp_path, [frame()])
    manifest = json.loads((opened.path / "manifest.json").read_text())
    stored = manifest.pop("checksum")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert stored == hashlib.sha256(text.encode()).hexdigest()


def test_stores_of_earlier_versions_open_as_millimetres(tmp_path):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    expected = opened.gather([1], depth="filled")[1]
    manifest = {
        name: value
        for name, value in opened.manifest.items()
        if name not in ("checksum", "depth_unit")
    }
    (opened.path / "manifest.json").write_text(json.dumps(manifest))
    earlier = Store.open(opened.path)
    assert earlier.depth_unit == 1000
    np.testing.assert_array_equal(earlier.gather([1], depth="filled")[1], expected)


def test_far_depth_has_256_codes_per_metre(tmp_path):
    rng = np.random.default_rng(0)
    metres = rng.uniform(0, 90, (24, 32)).astype(np.float32)
    metres[rng.random(metres.shape) < 0.3] = 0
    metres[0, :4] = 0.001, 80, 80.004, 200  # metres
    shot = Frame(frame().rgb, filled=metres)
    opened = written(tmp_path, [shot], size=(24, 32), max_depth=80.0)
    assert opened.depth_unit == opened.manifest["depth_unit"] == 256
    assert opened.manifest["version"] == 3  # refused by releases that expect 1000
    codes = opened.gather([0], depth="filled")[1][0]
    expected = np.round(metres.astype(np.float64) * 256)
    expected[(metres > 80) | (metres == 0)] = 0
    expected[0, :3] = 1, 80 * 256, 0  # code 0 would be missing
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(opened.metres(codes), expected / 256)
    # Full-size frames hold all depth: protocols have limits of their own.
    full = next(opened.full_frames([0]))["depth"]["filled"]
    assert full[0, 3] == 200 and np.abs(full - metres).max() < 1 / 256


def test_metres_of_millimetre_codes_are_those_of_earlier_versions(tmp_path):
    opened = written(tmp_path, [frame()])
    codes = np.arange(65536, dtype=np.uint16)
    metres = opened.metres(codes)
    for earlier in (
        codes.astype(np.float32) / np.float32(1000),
        codes / np.float32(1000),
        (codes / 1000).astype(np.float32),
    ):
        assert metres.tobytes() == earlier.tobytes()


@pytest.mark.parametrize("key", ["frames", "full", "shards", "left_out", "splits"])
def test_a_manifest_without_a_required_key_is_an_error(tmp_path, key):
    opened = written(tmp_path, [frame()])
    manifest = {k: v for k, v in opened.manifest.items() if k != key}
    (opened.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"damaged.*{key}"):
        Store.open(opened.path)


@pytest.mark.parametrize("name", ["../a.npy", "/a.npy", "a/b.npy", ".a", ""])
def test_shard_names_that_leave_the_folder_are_errors(tmp_path, name):
    # Downloading a malicious store would write outside the cache folder.
    opened = written(tmp_path, [frame()])
    manifest = opened.manifest
    manifest["files"][name] = {"bytes": 1, "sha256": ""}
    (opened.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not the name of a shard"):
        Store.open(opened.path)


def test_a_store_may_have_more_shards_than_the_limit_of_open_files(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(store_writer, "SHARD", 1)
    frames = [frame(size=(2, 2)) for _ in range(80)]
    written(tmp_path, frames, size=(1, 1))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 100, before[1]))
    try:
        opened = Store.open(tmp_path / "s")
        assert opened.gather(range(80), depth="filled")[0].shape == (80, 1, 1, 3)
    finally:
        del opened
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_path_that_is_not_a_store_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert not is_store(path)
        with pytest.raises(UserError, match="is not a store"):
            Store.open(path)


def test_full_size_frames_in_memory_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "FULL_BYTES", 3 * 24 * 32 * 5)  # three frames
    frames = [frame(k) for k in range(7)]
    opened = written(tmp_path, frames)
    assert len(list((tmp_path / "s").glob("full-*.rgb.npy"))) == 3
    for row, full in enumerate(opened.full_frames(range(7))):
        np.testing.assert_array_equal(full["rgb"], frames[row].rgb)


@pytest.mark.parametrize("size", [(24, 32), (18, 24), (21, 29)])
def test_full_size_copies_give_the_training_frames_of_a_larger_store(tmp_path, size):
    shots = [
        dataclasses.replace(
            frame(k, kinds=("filled", "raw")), intrinsics=(50.0 + k, 60.0, 19.0, 11.0)
        )
        for k in range(5)
    ]
    # Depth reaches 9 m: what is beyond 5 m is kept at full size only.
    options = {"kinds": ("filled", "raw"), "max_depth": 5.0, "keep_full": "all"}
    small = written(tmp_path, shots, **options)
    larger = written(tmp_path, shots, **options, size=size, out="larger")
    assert FullSizeStore.covers(small, size)
    opened, rows = FullSizeStore(small, size), [4, 0, 2, 2]
    for kind in ("filled", "raw"):
        for got, expected in zip(
            opened.gather(rows, depth=kind),
            larger.gather(rows, depth=kind),
            strict=True,
        ):
            np.testing.assert_array_equal(got, expected)
            assert got.dtype == expected.dtype
    for row in range(5):
        assert opened.camera(row) == pytest.approx(larger.camera(row))
    for got, expected in zip(
        opened.full_frames([3]), larger.full_frames([3]), strict=True
    ):
        np.testing.assert_array_equal(got["depth"]["raw"], expected["depth"]["raw"])
        assert got["camera"] == pytest.approx(expected["camera"])
    with pytest.raises(UserError, match="has no ray depth, but filled and raw"):
        opened.gather([0], depth="ray")


def test_full_size_copies_must_be_complete_and_large_enough(tmp_path):
    shots = [frame(k) for k in range(3)]
    complete = written(tmp_path, shots, keep_full="all")
    assert FullSizeStore.covers(complete, (24, 32))
    assert not FullSizeStore.covers(complete, (25, 32))
    assert not FullSizeStore.covers(complete, (24, 33))
    missing = written(tmp_path, shots, keep_full="none", out="m")
    assert not FullSizeStore.covers(missing, (18, 24))
