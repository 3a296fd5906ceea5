"""The format bts: lists as BTS, AdaBins and ZoeDepth use them, and real frames."""

import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data import split
from jaxdepth.data.nyu import splits, toolbox
from jaxdepth.data.sources import BrokenFrame, ReadOptions, open_source
from jaxdepth.runtime.errors import UserError
from tests.data.sources import made

TRAIN = "nyudepthv2_train_files_with_gt.txt"
TEST = "nyudepthv2_test_files_with_gt.txt"
FOCAL = "518.8579"


def train_line(scene, number):
    stem = f"/{scene}/{{}}_{number:05d}"
    return f"{stem.format('rgb')}.jpg {stem.format('sync_depth')}.png {FOCAL}"


def official_line(index):
    """A line of the test list: a folder per scene type, numbers from 0."""
    kind = splits.official()["scenes"][index - 1].rsplit("_", 1)[0]
    stem = f"{kind}/{{}}_{index - 1:05d}"
    return f"{stem.format('rgb')}.jpg {stem.format('sync_depth')}.png {FOCAL}"


def write(root, lines, **more):
    """Write the listed files: frame k has colour 10 k and depth k + 1 m."""
    for k, line in enumerate(lines):
        rgb, metres, _ = line.split()
        made.image(root, rgb.lstrip("/"), 10 * k, **more)
        if metres != "None":
            made.depth(root, metres.lstrip("/"), 1000 * (k + 1), **more)


@pytest.fixture
def both(tmp_path):
    """A folder with a training list of two scenes, a test list, and their files."""
    train = [
        train_line("kitchen_0028b", 45),
        train_line("kitchen_0028b", 0),
        train_line("nyu_office_0", 3),
    ]
    test = [official_line(index) for index in splits.official()["test"][:2]]
    write(tmp_path, train + test)
    made.text(tmp_path, TRAIN, "\n".join(train) + "\n")
    made.text(tmp_path, TEST, "\n".join(test))  # without a final newline
    return tmp_path


def test_both_lists_of_a_folder_are_read(both):
    source = open_source(both)
    assert (
        source.format == "bts"
        and source.truths == ("raw",)
        and made.notes(source) == []
    )
    assert [info.scene for info in source.infos[:3]] == [
        "kitchen_0028b", "kitchen_0028b", "nyu_office_0"
    ]  # fmt: skip
    assert source.infos[0].name == "kitchen_0028b/rgb_00045.jpg"
    indices = splits.official()["test"][:2]
    assert [info.official_index for info in source.infos] == [None] * 3 + indices
    assert source.infos[3].scene == splits.official()["scenes"][indices[0] - 1]
    for row in range(5):
        frame = source.frame(row)
        assert abs(int(frame.rgb[0, 0, 0]) - 10 * row) <= 2  # JPEG
        assert frame.raw is not None and frame.filled is None
        np.testing.assert_array_equal(frame.raw, np.float32(row + 1))
        # The camera of 480x640, at the size of these frames.
        assert frame.intrinsics is not None
        assert frame.intrinsics[0] == pytest.approx(518.8579 * 8 / 640)
    assert source.splits() == {
        "official": {"train": [0, 1, 2], "eval": [3, 4]},
        "all": {"train": [0, 1, 2, 3, 4], "eval": []},
    }
    made.same_elsewhere(source)


def test_real_synchronised_frames_are_read_by_a_list(shared_data, tmp_path):
    scene = "basement_0001a"
    shutil.copytree(shared_data / "sync_png16" / scene, tmp_path / "sync" / scene)
    lines = [train_line(scene, number) for number in (0, 50, 100)]
    listed = made.text(tmp_path, f"lists/{TRAIN}", "\n".join(lines))
    source = open_source(listed)  # its files are in the sibling folder sync/
    assert [info.scene for info in source.infos] == [scene] * 3
    frame = source.frame(1)
    with Image.open(tmp_path / "sync" / scene / "sync_depth_00050.png") as stored:
        expected = np.asarray(stored) / 1000
    assert frame.raw is not None
    np.testing.assert_allclose(frame.raw, expected, rtol=1e-6)
    assert (frame.raw == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert frame.intrinsics == toolbox.RGB_CAMERA.intrinsics
    assert source.splits()["own"] == {"train": [0, 1, 2], "eval": []}


@pytest.mark.parametrize("where", ["", "sync", "train", "a/b"])
def test_listed_files_are_searched_in_parent_and_known_folders(tmp_path, where):
    line = train_line("kitchen_0028b", 1)
    inner = "" if where == "a/b" else where
    write(tmp_path / inner, [line])
    folder = "a/b/" if where == "a/b" else ""
    source = open_source(made.text(tmp_path, f"{folder}{TRAIN}", line))
    assert source.frame(0).rgb.shape == (*made.SIZE, 3)


def test_test_frames_are_searched_in_official_splits(tmp_path):
    index = splits.official()["test"][0]
    write(tmp_path / "official_splits" / "test", [official_line(index)])
    made.text(tmp_path, TEST, official_line(index))
    source = open_source(tmp_path)
    assert source.splits()["official"] == {"train": [], "eval": [0]}


def test_missing_files_are_an_error(tmp_path):
    listed = made.text(tmp_path, TRAIN, train_line("kitchen_0028b", 1))
    parts = (
        "none of its files",
        "/kitchen_0028b/rgb_00001.jpg",
        tmp_path,
        "parent",
        "sync",
    )
    made.refused(listed, *parts)
    made.refused(tmp_path, *parts)


def test_scenes_of_the_test_set_are_left_out_of_training(tmp_path):
    scenes = ["bookstore_0001d", "kitchen_0028b", "bookstore_0001j"]
    lines = [train_line(scene, 1) for scene in scenes]
    write(tmp_path, lines)
    source = open_source(made.text(tmp_path, TRAIN, "\n".join(lines)))
    splits, (note,) = split.complete(source)
    assert splits == {
        "own": {"train": [1], "eval": []},
        "all": {"train": [1], "eval": []},
    }
    assert note.startswith("left 2 frames of bookstore_0001d and 1 more out of train")


def test_lines_without_depth_are_counted(tmp_path):
    lines = [
        train_line("a", 1),
        f"a/rgb_2.jpg None {FOCAL}",
        f"a/rgb_3.jpg None {FOCAL}",
    ]
    write(tmp_path, lines)
    listed = made.text(tmp_path, TRAIN, "\n".join(lines))
    source = open_source(listed)
    assert len(source.infos) == 1
    assert made.notes(source) == [f"left out 2 lines of {TRAIN} that name no depth"]
    listed.write_text("\n".join(lines[1:]))
    made.refused(listed, "no line names a depth file")


def test_frames_outside_the_test_set_have_no_official_index(tmp_path):
    train, test = splits.official()["train"][0], splits.official()["test"][:2]
    for name, lines in {
        "a training frame": [official_line(test[0]), official_line(train)],
        "another folder": [official_line(test[0]), train_line("attic", test[1] - 1)],
    }.items():
        root = tmp_path / name
        write(root, lines)
        made.text(root, TEST, "\n".join(lines))
        source = open_source(root)
        assert [info.official_index for info in source.infos] == [None, None]
        assert source.splits()["own"]["eval"] == [0, 1]


def test_an_unreadable_frame_does_not_affect_the_others(both):
    (both / "kitchen_0028b" / "sync_depth_00000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (both / "nyu_office_0" / "rgb_00003.jpg").unlink()
    broken = made.broken_rows(open_source(both))
    assert broken.keys() == {1, 2}
    assert "damaged PNG header" in broken[1] and "sync_depth_00000.png" in broken[1]
    assert "rgb_00003.jpg" in broken[2]


def test_different_sizes_are_not_a_broken_frame(tmp_path):
    line = train_line("a", 1)
    write(tmp_path, [line])
    made.depth(tmp_path, line.split()[1].lstrip("/"), size=(7, 8))
    source = open_source(made.text(tmp_path, TRAIN, line))
    with pytest.raises(UserError, match="the same size") as error:
        source.frame(0)
    assert not isinstance(error.value, BrokenFrame)


def test_wrong_lists_are_rejected(both):
    for line in ("a.jpg b.png", "a.jpg b.png x", "a.jpg b.png 0", "a b.png 5", "a"):
        text = f"{train_line('kitchen_0028b', 45)}\n{line}\n"
        made.text(both, TRAIN, text)
        made.refused(both / TRAIN, f"{TRAIN}, line 2", data_format="bts")
    (both / TRAIN).write_bytes(b"\xff\xfe\0")
    made.refused(both / TRAIN, "not text", data_format="bts")
    made.refused(both / "kitchen_0028b", "holds no list", data_format="bts")


def test_two_training_lists_are_rejected(both):
    shutil.copy(both / TRAIN, both / f"dense_{TRAIN}")
    made.refused(both, TRAIN, f"dense_{TRAIN}", "give one of them")


def test_lists_of_other_data_in_the_folder_are_left_out(both):
    kitti = "2011/image_02/data/05.png 2011/proj_depth/05.png 721.5377\n"
    made.text(both, "eigen_train_files_with_gt.txt", kitti)
    source = open_source(both)
    assert len(source.infos) == 5
    assert any(
        "eigen_train" in note and "none of its files" in note
        for note in made.notes(source)
    )


def test_lists_without_focal_length_are_another_format(tmp_path):
    made.image(tmp_path, "a.jpg")
    made.depth(tmp_path, "b.png")
    made.text(tmp_path, "list.txt", "a.jpg b.png\n")
    assert open_source(tmp_path).format == "folder"
    made.depth(tmp_path, "c.png")
    made.text(tmp_path, "list.txt", "a.jpg b.png c.png\n")
    assert open_source(tmp_path).format == "folder"


def test_depth_scale_is_applied_and_checked(tmp_path):
    line = "a/5.png a/depth/5.png 721.5377"  # like KITTI, in units of 1/256 m
    made.image(tmp_path, "a/5.png", size=(480, 640))
    made.depth(tmp_path, "a/depth/5.png", 256 * 40, size=(480, 640))
    listed = made.text(tmp_path, "train.txt", line)
    frame = open_source(listed, options=ReadOptions(depth_scale=256.0)).frame(0)
    np.testing.assert_array_equal(frame.raw, np.float32(40))
    assert frame.intrinsics == (721.5377, 721.5377, 319.5, 239.5)
    made.depth(tmp_path, "a/depth/5.png", 65000, size=(480, 640))
    made.refused(
        listed, "--depth_scale", listed, options=ReadOptions(depth_scale=256.0)
    )
    made.depth(tmp_path, "a/depth/5.png", 200, (480, 640), np.uint8)
    made.refused(listed, "8-bit depth")


def test_changed_files_have_another_fingerprint(both):
    first = open_source(both).fingerprint()
    assert open_source(both).fingerprint() == first
    made.image(both, "kitchen_0028b/rgb_00000.jpg", size=(60, 80))
    assert open_source(both).fingerprint() != first
