"""Frames from lists: columns, masks, parts of a split, lists that are not used."""

import numpy as np
import pytest

from jaxdepth.data.sources import ReadOptions, listed, open_source
from tests.data.sources import made

DEPTH = np.arange(48, dtype=np.uint16).reshape(6, 8) + 1000  # stored millimetres
MASK = np.tile(np.array([0, 1], np.uint8), (6, 4))


def pairs(root, count=2, image="x/{}.jpg", depth="y/d{}.png"):
    """Image and depth files whose names don't pair."""
    for k in range(count):
        made.image(root, image.format(k), 10 * k)
        made.depth(root, depth.format(k), DEPTH + k)
    return root


def array(root, name, values):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return path


def names(source, rows=None):
    infos = source.infos if rows is None else [source.infos[row] for row in rows]
    return [info.name for info in infos]


@pytest.mark.parametrize(
    "text",
    [
        "image,depth\nx/0.jpg,y/d0.png\nx/1.jpg,y/d1.png\n",
        "depth;rgb\ny/d0.png;x/0.jpg\ny/d1.png;x/1.jpg\n",
        ",image,depth\n0,x/0.jpg,y/d0.png\n1,x/1.jpg,y/d1.png\n",
        "x\\0.jpg y\\d0.png\nx\\1.jpg y\\d1.png\n",
        "/home/me/set/x/0.jpg /home/me/set/y/d0.png\n/home/me/set/x/1.jpg "
        "/home/me/set/y/d1.png\n",
    ],
)
def test_forms_of_a_list_give_the_same_frames(tmp_path, text):
    made.text(pairs(tmp_path), "frames.csv", text)
    source = open_source(tmp_path)
    assert names(source) == ["x/0.jpg", "x/1.jpg"]
    assert made.notes(source) == ["pairs read from frames.csv"]
    np.testing.assert_array_equal(
        source.frame(1).filled, (DEPTH + 1).astype(np.float32) / 1000
    )
    made.same_elsewhere(source)


def test_a_list_can_be_given_itself(tmp_path):
    pairs(tmp_path, 3)
    path = made.text(tmp_path, "some.txt", "x/2.jpg y/d2.png\n")
    source = open_source(path)
    assert source.format == "folder" and names(source) == ["x/2.jpg"]


def test_a_list_in_a_sub_folder_is_read(tmp_path):
    made.text(pairs(tmp_path), "splits/train.txt", "x/1.jpg y/d1.png\n")
    assert names(open_source(tmp_path)) == ["x/1.jpg"]


@pytest.mark.parametrize("image", ["x/{}.jpg", "y/{}.jpg"], ids=["unpaired", "paired"])
def test_names_of_lists_decide_the_split(tmp_path, image):
    depth = "y/{}.png" if image.startswith("y") else "y/d{}.png"
    pairs(tmp_path, 5, image, depth)
    lines = [f"{image.format(k)} {depth.format(k)}" for k in range(5)]
    made.text(tmp_path, "latest_train.txt", "\n".join(lines[:2]))
    made.text(tmp_path, "my-test.csv", "\n".join(lines[3:4]))
    source = open_source(tmp_path)
    own = source.splits()["own"]
    assert names(source, own["train"]) == [image.format(k) for k in (0, 1)]
    assert names(source, own["eval"]) == [image.format(3)]
    assert len(source.infos) == 3  # frames that no list names are left out


def test_val_evaluates_and_test_is_left_for_a_final_number(tmp_path):
    pairs(tmp_path, 3)
    for k, part in enumerate(("train", "val", "test")):
        made.text(tmp_path, f"{part}.txt", f"x/{k}.jpg y/d{k}.png\n")
    source = open_source(tmp_path)
    own = source.splits()["own"]
    assert names(source, own["train"]) == ["x/0.jpg"]
    assert names(source, own["eval"]) == ["x/1.jpg"]
    assert any("the 1 of test are not used" in note for note in source.notes)


@pytest.mark.parametrize("prefix", ["", "scene/"])
def test_folders_named_train_and_val_are_the_split(tmp_path, prefix):
    for k, part in enumerate(("train", "train", "val")):
        made.image(tmp_path, f"{part}/{prefix}rgb/{k}.jpg", k)
        made.depth(tmp_path, f"{part}/{prefix}depth/{k}.png")
    source = open_source(tmp_path)
    assert source.splits()["own"] == {"train": [0, 1], "eval": [2]}
    assert made.notes(source) == []


def test_a_list_of_images_selects_pairs_by_name(tmp_path):
    pairs(tmp_path, 4, "rgb/{}.jpg", "depth/{}.png")
    made.text(tmp_path, "train.txt", "rgb/0.jpg\nrgb/3.jpg\n")
    made.text(tmp_path, "test.txt", "rgb/1.jpg\n")
    source = open_source(tmp_path)
    own = source.splits()["own"]
    assert names(source, own["train"]) == ["rgb/0.jpg", "rgb/3.jpg"]
    assert names(source, own["eval"]) == ["rgb/1.jpg"]


@pytest.mark.parametrize(
    ("name", "values", "stored"),
    [
        ("y/{}_mask.npy", MASK, np.uint8), ("y/{}_mask.npy", MASK, bool),
        ("y/{}_m.png", MASK * 255, np.uint8), ("y/{}_conf.png", MASK * 2, np.uint8),
        ("y/{}_conf.png", MASK + 1, np.uint8), ("y/{}_m.npy", MASK, np.float32),
    ],
)  # fmt: skip
def test_a_column_of_masks_clears_pixels_and_is_never_depth(
    tmp_path, name, values, stored
):
    pairs(tmp_path)
    for k in range(2):
        path, values = tmp_path / name.format(k), values.astype(stored)
        if path.suffix == ".npy":
            array(tmp_path, name.format(k), values)
        else:
            made.depth(tmp_path, name.format(k), values, dtype=np.uint8)
    lines = [f"x/{k}.jpg y/d{k}.png {name.format(k)}" for k in range(2)]
    made.text(tmp_path, "list.txt", "\n".join(lines))
    source = open_source(tmp_path)
    assert source.truths == ("raw",)
    expected = np.where(MASK > 0, DEPTH, 0).astype(np.float32) / 1000
    np.testing.assert_array_equal(source.frame(0).raw, expected)


def test_masks_by_name_clear_pixels(tmp_path):
    for k in range(2):  # as DIODE's files
        made.image(tmp_path, f"s/{k}.png", k)
        metres = (DEPTH / 1000).astype(np.float32)
        array(tmp_path, f"s/{k}_depth.npy", metres[..., None])
        array(tmp_path, f"s/{k}_depth_mask.npy", MASK)
    source = open_source(tmp_path)
    assert len(source.infos) == 2 and source.truths == ("raw",)
    np.testing.assert_array_equal(source.frame(0).depths["raw"] > 0, MASK > 0)


def test_depth_files_that_are_masks_are_refused(tmp_path):
    pairs(tmp_path)
    made.depth(tmp_path, "y/d0.png", MASK)
    made.depth(tmp_path, "y/d1.png", MASK)
    made.text(tmp_path, "list.txt", "x/0.jpg y/d0.png\nx/1.jpg y/d1.png\n")
    made.refused(tmp_path, "they are masks, not depth")


def test_a_focal_length_is_the_camera_of_the_frame(tmp_path):
    made.text(pairs(tmp_path), "kitti.txt", "x/0.jpg y/d0.png 721.5\n")
    source = open_source(tmp_path, data_format="folder")
    assert source.frame(0).intrinsics == (721.5, 721.5, 3.5, 2.5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x/1.jpg y/d1.png", "line 2: 'x/1.jpg y/d1.png' has 2 columns, but other"),
        ("x/1.jpg y/d1.png 0", "line 2: '0' is not a focal length"),
        ("x/1.jpg y/d1.png nan", "line 2: 'nan' is not a focal length"),
        ("x/1.jpg y/gone.png 5e2", "line 2: 'y/gone.png' is not a file in"),
        ("x/1.jpg y/d 1.png 5e2", "line 2: 'x/1.jpg y/d 1.png 5e2' has 4 columns"),
        ("x/0.jpg y/d1.png 5e2", "x/0.jpg is listed twice"),
        (
            "x/1.jpg x/1.jpg 5e2",
            "'x/1.jpg x/1.jpg 5e2' names the same file twice",
        ),
    ],
)
def test_a_line_of_uncertain_meaning_is_refused(tmp_path, line, message):
    text = f"x/0.jpg y/d0.png 518.9\n{line}\nx/2.jpg y/d2.png 518.9\n"
    made.text(pairs(tmp_path, 3), "list.csv", text)
    made.refused(tmp_path, message, data_format="folder")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x/0.jpg y/d0.png 518.9 519.5\n", "column 4 is '519.5'"),
        ("x/0.jpg y/d0.png kitchen\n", "column 3 is 'kitchen'"),
        (
            "image,depth,weather\nx/0.jpg,y/d0.png,sunny\n",
            "'weather' is unknown",
        ),
    ],
)
def test_an_unexpected_column_is_refused(tmp_path, text, message):
    path = made.text(pairs(tmp_path), "list.txt", text)
    made.refused(tmp_path, path, message)


def test_lists_that_are_not_used_are_named(tmp_path):
    made.text(pairs(tmp_path, 3), "train.txt", "x/0.jpg y/d0.png\n")
    made.text(tmp_path, "all.txt", "x/0.jpg y/d0.png\nx/1.jpg y/d1.png\n")
    made.text(tmp_path, "other.txt", "z/0.jpg z/1.png\n")
    made.text(tmp_path, "classes.txt", "x/0.jpg kitchen\n")
    made.text(tmp_path, "README.txt", "Taken with a phone.\n")
    source = open_source(tmp_path)
    assert names(source) == ["x/0.jpg"]
    notes = "\n".join(source.notes)
    assert (
        "ignored the list all.txt: its name contains none of the words train" in notes
    )
    assert "ignored the list other.txt: none of the files that it names exists" in notes
    assert "ignored the list classes.txt: column 2 is 'kitchen'" in notes
    assert "README" not in notes


def test_lines_without_depth_are_counted(tmp_path):
    text = "x/0.jpg y/d0.png 5e2\nx/1.jpg None 5e2\n"
    made.text(pairs(tmp_path), "list.csv", text)
    source = open_source(tmp_path, data_format="folder")
    assert names(source) == ["x/0.jpg"]
    assert source.notes[0] == "left out 1 lines of list.csv that name no depth"


def test_files_outside_the_folder_are_refused_unless_allowed(tmp_path):
    pairs(tmp_path / "other")
    made.text(tmp_path / "data", "list.txt", "../other/x/0.jpg ../other/y/d0.png\n")
    made.refused(tmp_path / "data", "is outside", "--allow_outside")
    options = ReadOptions(allow_outside=True)
    assert len(open_source(tmp_path / "data", options=options).infos) == 1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((6, 8), 7, np.uint8), "has values up to 7: expected a mask"),
        (np.ones((5, 8), np.uint8), "they must have the same size"),
    ],
)
def test_a_mask_of_another_size_or_meaning_is_refused(tmp_path, mask, message):
    pairs(tmp_path)
    array(tmp_path, "mask.npy", mask)
    text = "image,depth,mask\nx/0.jpg,y/d0.png,mask.npy\n"
    made.text(tmp_path, "list.csv", text)
    made.refused(tmp_path, message, "mask.npy")


def test_masks_are_told_from_depth_by_their_values():
    assert listed.is_mask(MASK) and listed.is_mask(MASK * 255)
    assert listed.is_mask(MASK.astype(bool)) and listed.is_mask(MASK * 1.0)
    assert not listed.is_mask(DEPTH) and not listed.is_mask(MASK * 2)


CASES = {
    "01_diode_mask_list": (0, 2, ("raw",)),
    "02_split_lists/names_do_not_pair": (3, 1, ("filled",)),
    "02_split_lists/names_pair": (3, 1, ("filled",)),
    "02_split_lists/marigold_nyu": (3, 2, ("filled", "raw")),
    "06_train_val_folders": (3, 2, ("filled",)),
}


@pytest.mark.parametrize("case", CASES)
def test_published_forms_of_lists(shared_data, case):
    folder = shared_data.parent / "cases" / case
    if not folder.exists():
        pytest.skip("no folder of cases beside the sample data")
    train, evaluation, truths = CASES[case]
    source = open_source(folder)
    splits = source.splits()
    parts = splits.get("official") or splits["own"]
    assert (len(parts["train"]), len(parts["eval"])) == (train, evaluation)
    assert source.truths == truths
