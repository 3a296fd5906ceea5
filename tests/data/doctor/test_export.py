"""Exported frames equal the frames of their source."""

import dataclasses
import errno

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.doctor import export, measurements
from jaxdepth.data.sources import FrameInfo, ReadOptions, open_source
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import MachineError, UserError
from tests.data import painted
from tests.data.memory import Memory


def source_of(count=6, **more) -> Memory:
    return Memory(painted.frames(count, size=(36, 48), boxes=5), **more)


def read_back(out):
    """The frames of a folder by name without suffix."""
    opened = open_source(out)
    return {
        info.name.rsplit(".", 1)[0]: (opened.frame(row), info.scene)
        for row, info in enumerate(opened.infos)
    }


def same(exported, frame, kind="filled"):
    np.testing.assert_array_equal(exported.rgb, frame.rgb)
    (depth,) = exported.depths.values()
    expected = np.round(frame.depths[kind].astype(np.float64) * 1000)
    np.testing.assert_array_equal(np.round(depth.astype(np.float64) * 1000), expected)


def test_exported_frames_equal_the_source(tmp_path):
    source = source_of()
    done = export.export(source, tmp_path / "new" / "out")
    assert done.text == "6 frames, 6 of 36x48" and not done.broken
    back = read_back(tmp_path / "new" / "out")
    assert len(back) == 6
    for k in range(6):
        exported, scene = back[f"rgb/scene_{k // 2}/frame_{k}"]
        same(exported, source.frames[k])
        assert scene == f"scene_{k // 2}"
    with Image.open(tmp_path / "new/out/depth/scene_0/frame_1.png") as depth:
        assert depth.mode == "I;16" and depth.size == (48, 36)
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"out"}


def test_a_second_export_is_identical(tmp_path):
    export.export(source_of(), tmp_path / "a")
    export.export(open_source(tmp_path / "a"), tmp_path / "b")
    first, second = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*.png")}
        for root in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second and len(first) == 12


NAMES = [
    ("rgb/0001.jpg", None, "0001"),
    ("kitchen_0001a/rgb_00045.jpg", "kitchen_0001a", "kitchen_0001a/00045"),
    ("frame 0003", "living_room_0004", "living_room_0004/frame_0003"),
    ("test/00001_colors.png", None, "test/00001"),
    ("a.png", None, "a"),
    ("A.jpg", None, "A_00005"),
    ("../up: 1.5", "image", "up_1.5"),
    ("depth", None, "00007"),
]


def test_names_are_unique_and_portable(tmp_path):
    source = source_of(len(NAMES))
    source.infos = [FrameInfo(name, scene) for name, scene, _ in NAMES]
    assert export._names(source.infos) == [name for _, _, name in NAMES]
    export.export(source, tmp_path / "out")
    back = read_back(tmp_path / "out")
    for frame, (_, _, name) in zip(source.frames, NAMES, strict=True):
        same(back[f"rgb/{name}"][0], frame)


def test_holes_are_kept_and_far_depth_is_clipped(tmp_path):
    source = source_of(1)
    depth = source.frames[0].depths["filled"]
    depth[:2], depth[5, :3] = 0, 70.0
    export.export(source, tmp_path / "out")
    ((exported, _),) = read_back(tmp_path / "out").values()
    (back,) = exported.depths.values()
    # 65535 is a saturated code, which readers take as missing.
    assert (back[:2] == 0).all() and (back[5, :3] == 0).all()
    (file,) = (tmp_path / "out" / "depth").rglob("*.png")
    with Image.open(file) as stored:
        assert (np.asarray(stored)[5, :3] == 65535).all()


def test_frames_of_a_store_are_exported_at_full_size_if_kept(tmp_path):
    source = source_of(split={"own": {"train": [0, 1, 2, 3], "eval": [4, 5]}})
    store_writer.write(source, tmp_path / "s", size=(18, 24))
    opened = measurements.open_data(tmp_path / "s").source
    done = export.export(opened, tmp_path / "out")
    assert done.text.startswith("6 frames, 4 of 18x24, 2 of 36x48; 4 at training")
    back = read_back(tmp_path / "out")
    same(back["rgb/scene_2/frame_4"][0], source.frames[4])
    rgb, millimetres = opened.store.gather([1], depth="filled")  # type: ignore
    small = back["rgb/scene_0/frame_1"][0]
    np.testing.assert_array_equal(small.rgb, rgb[0])
    assert small.filled is not None
    np.testing.assert_array_equal(np.round(small.filled * 1000), millimetres[0])


def test_a_store_of_another_unit_is_exported_in_it(tmp_path):
    source = source_of(2)
    depth = source.frames[0].depths["filled"]
    depth[3, 4], depth[5, 6] = 79.5, 200.0
    store_writer.write(source, tmp_path / "s", size=(18, 24), max_depth=80.0)
    opened = measurements.open_data(tmp_path / "s").source
    done = export.export(opened, tmp_path / "out")
    assert done.text.endswith("depth is in 1/256 m: read it with --depth_scale=256")
    back = open_source(tmp_path / "out", options=ReadOptions(depth_scale=256))
    (exported,) = back.frame(0).depths.values()
    np.testing.assert_array_equal(exported, np.round(depth * 256) / 256)
    mm = export.export(source, tmp_path / "mm").text
    assert mm.endswith("; 2 pixels beyond 65.534 m are 65535, which is read as missing")


def test_either_kind_of_depth_is_exported(tmp_path):
    frames = [
        dataclasses.replace(f, raw=np.where(np.arange(48) < 9, 0, f.depths["filled"]))
        for f in painted.frames(3, size=(36, 48))
    ]
    source = Memory(frames, truths=("filled", "raw"))
    for kind in ("filled", "raw"):
        export.export(source, tmp_path / kind, depth=kind)
        same(read_back(tmp_path / kind)["rgb/scene_0/frame_1"][0], frames[1], kind)
    with pytest.raises(UserError, match="--depth=raw: memory has only filled depth"):
        export.export(source_of(), tmp_path / "x", depth="raw")


def test_broken_frames_are_left_out(tmp_path):
    source = source_of(broken={2: "cut short"}, wrong=(4,))
    done = export.export(source, tmp_path / "out")
    assert done.broken == [("frame 2", "cut short"), ("frame 4", "frame 4 is wrong")]
    assert len(read_back(tmp_path / "out")) == 4 == done.sizes.total()
    with pytest.raises(UserError, match="no frame"):
        export.export(source_of(1, wrong=(0,)), tmp_path / "none")
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_existing_files_are_not_overwritten(tmp_path):
    (tmp_path / "empty").mkdir()
    export.export(source_of(), tmp_path / "empty")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="not empty"):
        export.export(source_of(), tmp_path / "empty")
    (tmp_path / "file").write_text("content")
    with pytest.raises(UserError, match="not empty"):
        export.export(source_of(), tmp_path / "file")
    assert sorted(p for p in tmp_path.rglob("*") if p.name != "file") == before


def test_a_linked_folder_is_written_to(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export.export(source_of(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and len(read_back(tmp_path / "empty")) == 6


def test_a_full_disk_leaves_no_files(tmp_path, monkeypatch):
    def full(path, rgb):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "_save_rgb", full)
    with pytest.raises(MachineError, match="No space left"):
        export.export(source_of(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_exported_real_frames_equal_the_source(shared_data, tmp_path):
    source = open_source(shared_data / "sync_png16")
    export.export(source, tmp_path / "out")
    back = read_back(tmp_path / "out")
    assert len(back) == 3
    for row, info in enumerate(source.infos):
        number = info.name.rsplit("_")[-1].split(".")[0]
        same(back[f"rgb/basement_0001a/{number}"][0], source.frame(row), "raw")
