"""Hypersim: planar depth, files that belong together, and the official split."""

import re
from typing import Any

import h5py
import numpy as np
import pytest

from jaxdepth.data import split
from jaxdepth.data.sources import open_source
from jaxdepth.data.sources.hypersim import SPLIT
from tests.data.sources import made

H, W = 12, 16
HEADING = (
    "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,"
    "split_partition_name"
)


def shot(
    root, scene="ai_001_001", camera="cam_00", number=0, *, depth: Any = 3.0, **more
):
    """Write the image and the depth of a frame, as the downloads have them."""
    images = f"{scene}/images/scene_{camera}_final_preview"
    made.image(root, f"{images}/frame.{number:04d}.tonemap.jpg", 40 * number, (H, W))
    made.image(root, f"{images}/frame.{number:04d}.diff.jpg", 7, (H, W))
    return geometry(root, scene, camera, number, depth=depth, **more)


def geometry(
    root, scene, camera, number, *, depth: Any = 3.0, name="dataset", dtype="f2"
):
    folder = root / scene / "images" / f"scene_{camera}_geometry_hdf5"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"frame.{number:04d}.depth_meters.hdf5"
    with h5py.File(file, "w") as stored:
        stored[name] = np.broadcast_to(np.asarray(depth, dtype), (H, W))
    return file


@pytest.fixture
def data(tmp_path):
    for scene in ("ai_001_001", "ai_001_002", "ai_002_001"):
        for number in range(3):
            shot(tmp_path, scene, number=number)
    made.text(
        tmp_path,
        "metadata_camera_parameters.csv",
        "scene_name,settings_camera_fov,scene_file\nai_001_001,1.04719758,a.vrscene\n",
    )
    made.text(tmp_path, "ai_001_001/_detail/metadata_cameras.csv", "camera\ncam_00\n")
    return tmp_path


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_distance_along_the_ray_becomes_planar_depth(tmp_path, dtype):
    # A plane at 2.5 m in front of the camera, and a hole.
    f = 886.81 * W / 1024
    expected = np.full((H, W), 2.5)
    ray = np.zeros((H, W))
    for y in range(H):
        for x in range(W):
            u, v = x - (W - 1) / 2, y - (H - 1) / 2
            ray[y, x] = 2.5 * (u * u + v * v + f * f) ** 0.5 / f
    ray[2, 3], ray[4, 5], ray[6, 7] = np.nan, np.inf, -1
    expected[2, 3] = expected[4, 5] = expected[6, 7] = 0
    shot(tmp_path, depth=ray, dtype=dtype)
    source = open_source(tmp_path)
    assert (source.format, source.truths) == ("hypersim", ("raw",))
    frame = source.frame(0)
    assert frame.raw is not None and frame.raw.dtype == np.float32
    tolerance = 2.5 * 2**-11 if dtype == "f2" else 1e-6
    np.testing.assert_allclose(frame.raw, expected, atol=tolerance * 1.5)
    assert frame.intrinsics == (f, f, (W - 1) / 2, (H - 1) / 2)


def test_scenes_and_names(data):
    source = open_source(data)
    assert source.truths == ("filled",) and len(source.infos) == 9
    assert source.infos[4].name == (
        "ai_001_002/images/scene_cam_00_final_preview/frame.0001.tonemap.jpg"
    )
    assert [i.scene for i in source.infos[::3]] == [
        "ai_001_001", "ai_001_002", "ai_002_001"
    ]  # fmt: skip
    splits, _ = split.complete(source)
    held = {source.infos[row].scene for row in splits["held_out"]["eval"]}
    assert len(held) == 1  # a whole scene
    assert not source.notes


@pytest.mark.parametrize("below", ["ai_001_001", "ai_001_001/images"])
def test_one_scene(data, below):
    source = open_source(data / below)
    assert source.format == "hypersim"
    assert [info.scene for info in source.infos] == ["ai_001_001"] * 3


ROWS = [
    "ai_001_001,cam_00,0,True,,train", "ai_001_001,cam_00,1,True,,train",
    "ai_001_001,cam_00,2,False,blurry,", "ai_001_001,cam_01,0,True,,train",
    *(f"ai_001_002,cam_00,{k},True,,val" for k in range(3)),
    "ai_002_001,cam_00,0,True,,test",
]  # fmt: skip


@pytest.mark.parametrize("place", ["", "analysis/"])
def test_the_official_split(data, place):
    made.text(data, place + SPLIT, "\r\n".join([HEADING, *ROWS]) + "\r\n")
    source = open_source(data)
    assert source.format == "hypersim" and len(source.infos) == 6
    own = source.splits()["own"]
    numbers = [re.findall(r"(ai_\w{7}).*frame\.(\d+)", i.name) for i in source.infos]
    assert [numbers[row][0] for row in own["train"]] == [
        ("ai_001_001", "0000"), ("ai_001_001", "0001")
    ]  # fmt: skip
    assert {numbers[row][0][0] for row in own["eval"]} == {"ai_001_002"}
    text = "; ".join(source.notes)
    assert "3 frames that" in text and "the 1 of test are not used" in text
    before = source.fingerprint()
    made.text(data, place + SPLIT, "\n".join([HEADING, *ROWS[:5]]))
    assert open_source(data).fingerprint() != before


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([HEADING, "ai_001_001,cam_00,x,True,,train"], "line 2: expected a number"),
        ([HEADING, "ai_001_001,cam_00,0,True,,dev set"], "'0' and 'dev set'"),
        ([HEADING, *ROWS, "ai_001_001,cam_00"], "line 10: expected 6 columns"),
        (["scene,camera", "a,b"], "expected the columns scene_name"),
        ([HEADING, "ai_009_001,cam_00,0,True,,train"], "includes none of its frames"),
    ],
)
def test_a_wrong_split_is_an_error(data, lines, words):
    made.text(data, SPLIT, "\n".join(lines))
    made.refused(data, SPLIT, words)


def test_folders_named_train_and_val_are_the_split(tmp_path):
    for part, number in (("train", 0), ("train", 1), ("val", 2)):
        shot(tmp_path / part, "ai_001_001" if part == "train" else "ai_003_001",
             number=number)  # fmt: skip
    assert open_source(tmp_path).splits()["own"] == {"train": [0, 1], "eval": [2]}


def test_files_without_a_partner_are_counted(data):
    shot(data, number=5).unlink()
    geometry(data, "ai_001_001", "cam_01", 0)
    geometry(data, "ai_001_001", "cam_01", 1)
    notes = open_source(data).notes
    assert notes == [
        "left out 1 images without depth",
        "left out 2 depth files without image",
    ]


def test_missing_downloads_are_named(tmp_path):
    file = shot(tmp_path / "a")
    file.unlink()
    made.refused(
        tmp_path / "a", "1 images of Hypersim and no depth: download", "geometry"
    )
    geometry(tmp_path / "b", "ai_001_001", "cam_00", 0)
    made.refused(tmp_path / "b", "1 depth files of Hypersim and no images", "preview")
    shot(tmp_path / "c").unlink()
    geometry(tmp_path / "c", "ai_001_001", "cam_01", 0)
    made.refused(tmp_path / "c", "none show the same frame")


def test_damaged_depth_is_a_broken_frame(data):
    folder = data / "ai_001_002/images/scene_cam_00_geometry_hdf5"
    (folder / "frame.0000.depth_meters.hdf5").write_bytes(b"no HDF5")
    geometry(data, "ai_001_002", "cam_00", 1, name="depth")
    outside = made.text(data, "secret.bin", "x" * (4 * H * W))
    with h5py.File(folder / "frame.0002.depth_meters.hdf5", "w") as stored:
        stored.create_dataset(
            "dataset", (H, W), "f4", external=[(str(outside), 0, 4 * H * W)]
        )
    broken = made.broken_rows(open_source(data))
    assert list(broken) == [3, 4, 5]
    for row, words in zip(
        broken, ("as HDF5", "has no dataset (H, W)", "other files"), strict=True
    ):
        assert words in broken[row] and "\n" not in broken[row]


def test_links_that_leave_the_folder_are_rejected(data, tmp_path_factory):
    elsewhere = shot(tmp_path_factory.mktemp("elsewhere"))
    link = geometry(data, "ai_001_001", "cam_00", 0)
    link.unlink()
    link.symlink_to(elsewhere)
    made.refused(data, "is outside", "--allow_outside")
