"""KITTI: folders of the downloads, lists, and depth beyond 65 m."""

import shutil

import numpy as np
import pytest

from jaxdepth.data.sources import ReadOptions, open_source
from jaxdepth.data.store import writer as store_writer
from tests.data.sources import made

SIZE = (15, 50)  # a third and less of the frames, with their aspect ratio
DRIVES = ("2011_09_26_drive_0001_sync", "2011_09_26_drive_0002_sync")
CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
S_rect_02: 1.242000e+03 3.750000e+02
P_rect_02: 7.2e+02 0.0 6.0e+02 4.4e+01 0.0 7.1e+02 1.7e+02 2.1e-01 0.0 0.0 1.0 2.7e-03
P_rect_03: 7.0e+02 0.0 6.0e+02 4.4e+01 0.0 7.0e+02 1.7e+02 2.1e-01 0.0 0.0 1.0 2.7e-03
"""


def lidar(value):
    """A sparse depth map around `value` metres, in 1/256 m."""
    rng = np.random.default_rng(value)
    codes = np.round((value + rng.uniform(-1, 1, SIZE)) * 256).astype(np.uint16)
    return np.where(rng.random(SIZE) < 0.2, codes, 0).astype(np.uint16)


def paths(drive, number):
    image = f"{drive[:10]}/{drive}/image_02/data/{number:010d}.png"
    return image, f"{drive}/proj_depth/groundtruth/image_02/{number:010d}.png"


def write(root, *, images="raw/", depth="data_depth_annotated/{part}/"):
    """Write four frames of two drives; the first image of each has no depth."""
    parts = dict(zip(DRIVES, ("train", "val"), strict=True))
    for drive, part in parts.items():
        for number in range(5):
            image, truth = paths(drive, number)
            made.image(root, images + image, 50 * number, SIZE)
            if number:
                values = lidar(20 * number)
                made.depth(root, depth.format(part=part) + truth, values, SIZE)
    return root


def listed(root, name, **more):
    lines = [
        " ".join((image, truth if number else "None", "721.5377"))
        for drive in DRIVES
        for number in range(5)
        for image, truth in [paths(drive, number)]
    ]
    return made.text(root, name, "\n".join(lines))


def check(source, focal):
    assert len(source.infos) == 8
    for row in range(8):
        frame = source.frame(row)
        np.testing.assert_array_equal(frame.raw, lidar(20 * (row % 4 + 1)) / 256)
        assert frame.rgb.shape == (*SIZE, 3) and frame.rgb[0, 0, 0] == 50 * (
            row % 4 + 1
        )
        assert (frame.intrinsics or [None])[0] == focal
    assert {info.scene.split("/")[-3 if "/" in info.scene else 0]
            for info in source.infos} == set(DRIVES)  # fmt: skip


@pytest.mark.parametrize("options", [ReadOptions(), ReadOptions(depth_scale=256.0)])
def test_the_folders_of_the_downloads(tmp_path, options):
    made.text(write(tmp_path), "raw/2011_09_26/calib_cam_to_cam.txt", CALIBRATION)
    image = tmp_path / "raw" / paths(DRIVES[0], 4)[0]
    image.rename(image.with_suffix(".jpg"))
    source = open_source(tmp_path, options=options)
    assert source.format == "kitti" and source.truths == ("raw",)
    check(source, 720.0)
    assert source.frame(0).intrinsics == (720.0, 710.0, 600.0, 170.0)
    assert source.splits()["own"] == {"train": [0, 1, 2, 3], "eval": [4, 5, 6, 7]}
    assert "left out 2 images without a partner" in source.notes
    assert (
        source.fingerprint()
        != open_source(tmp_path, options=ReadOptions(depth_scale=250.0)).fingerprint()
    )


@pytest.mark.parametrize("drive", [DRIVES[0], "my_drive"])
def test_drives_that_hold_images_and_depth(tmp_path, drive):
    for number in range(3):
        made.image(tmp_path, f"{drive}/image_02/data/{number}.png", number, SIZE)
        made.depth(tmp_path, f"{drive}/proj_depth/groundtruth/image_02/{number}.png",
                   lidar(30), SIZE)  # fmt: skip
    for path in (tmp_path, tmp_path / drive):
        source = open_source(path)
        assert source.format == "kitti" and len(source.infos) == 3
        assert source.frame(0).intrinsics is None
        assert "own" not in source.splits()


def test_a_loop_of_links_ends(tmp_path):
    write(tmp_path)
    for name in "abcdefgh":
        (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
    assert len(open_source(tmp_path).infos) == 8


def test_missing_images_and_eight_bit_depth_are_errors(tmp_path):
    _, truth = paths(DRIVES[0], 0)
    made.depth(tmp_path, truth, 5, SIZE)
    made.refused(tmp_path, "0 images", "1 depth files")
    made.image(tmp_path, f"{DRIVES[0]}/image_02/data/{0:010d}.png", 0, SIZE)
    made.depth(tmp_path, truth, 5, SIZE, np.uint8)
    made.refused(tmp_path, "8-bit depth")


LAYOUTS = [
    {},
    {"images": ""},
    {"depth": "data_depth_annotated/"},
    {"images": "", "depth": ""},
    {"images": "raw/", "depth": "raw/"},
]


@pytest.mark.parametrize(
    "name", ["eigen_train_files_with_gt.txt", "splits/eigen_train.txt"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lists_with_missing_depth(tmp_path, layout, name):
    file = listed(write(tmp_path, **layout), name)
    for path in (tmp_path, file):
        source = open_source(path, options=ReadOptions(depth_scale=256.0))
        assert source.format == "bts"
        check(source, 721.5377)
        left_out = f"left out 2 lines of {file.name} that name no depth"
        assert left_out in source.notes


def test_linked_folders_of_lists_need_a_flag(tmp_path):
    # A list must not read the files of a folder elsewhere through a link.
    write(tmp_path / "elsewhere")
    file = listed(tmp_path, "kitti/eigen_train.txt")
    for name in ("raw", "data_depth_annotated"):
        (tmp_path / "kitti" / name).symlink_to(tmp_path / "elsewhere" / name)
        made.refused(file.parent, "is outside", "--allow_outside")
        (tmp_path / "kitti" / name).unlink()
        shutil.copytree(tmp_path / "elsewhere" / name, tmp_path / "kitti" / name)
    shutil.rmtree(tmp_path / "kitti/data_depth_annotated")
    (tmp_path / "kitti/data_depth_annotated").symlink_to(
        tmp_path / "elsewhere/data_depth_annotated"
    )
    made.refused(file.parent, "is outside", "--allow_outside")
    options = ReadOptions(depth_scale=256.0, allow_outside=True)
    check(open_source(file.parent, options=options), 721.5377)


def test_lists_without_focal_length(tmp_path):
    file = listed(write(tmp_path), "kitti_train.txt")
    lines = [line.rpartition(" ")[0] for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    source = open_source(tmp_path, options=ReadOptions(depth_scale=256.0))
    assert source.format == "folder"
    check(source, None)


def test_a_store_keeps_sparse_depth_to_80_metres(tmp_path):
    source = open_source(write(tmp_path / "k"))
    opened = store_writer.write(
        source, tmp_path / "s", size=SIZE, max_depth=80.0, mask_extremes="off"
    )
    assert opened.depth_unit == 256
    codes = opened.gather(range(8), depth="raw")[1]
    for row in range(8):
        stored = lidar(20 * (row % 4 + 1))
        np.testing.assert_array_equal(
            codes[row], np.where(stored > 80 * 256, 0, stored)
        )
    assert (codes > 65.535 * 256).any()


def test_the_size_note_gives_a_size_that_keeps_the_frame(tmp_path):
    root = tmp_path / "k"
    drive = DRIVES[0]
    # The sizes of KITTI's cameras.
    for k, size in enumerate(((375, 1242), (370, 1226), (376, 1241), (374, 1238))):
        made.image(root, f"{drive}/image_02/data/{k}.png", k, size)
        truth = f"{drive}/proj_depth/groundtruth/image_02/{k}.png"
        made.depth(root, truth, np.full(size, 5000), size)
    source = open_source(root)
    wide = store_writer.write(source, tmp_path / "a", max_depth=80.0)
    (note,) = [note for note in wide.notes if "cut off" in note]
    assert "--size=240x795 of prepare-data" in note and "60%" in note
    whole = store_writer.write(source, tmp_path / "b", size=(240, 795), max_depth=80.0)
    assert not [note for note in whole.notes if "cut off" in note]
