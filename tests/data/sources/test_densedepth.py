"""The format densedepth: synthetic lists with the layout of its archive."""

import numpy as np
import pytest

from jaxdepth.data import split
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import BrokenFrame, open_source
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import UserError
from tests.data.sources import made

CODE = 51  # 2 m: 51 / 255 * 10


def train_line(scene, number):
    stem = f"data/nyu2_train/{scene}_out/{number}"
    return f"{stem}.jpg,{stem}.png"


def official_line(index):
    stem = f"data/nyu2_test/{index - 1:05d}"
    return f"{stem}_colors.png,{stem}_depth.png"


def write(root, train=(), test=()):
    """Write lists and files: codes for training, millimetres for testing."""
    for k, line in enumerate((*train, *test)):
        rgb, metres = line.split(",")
        made.image(root, rgb, 10 * k)
        if line in train:
            made.depth(root, metres, CODE, dtype=np.uint8)
        else:
            made.depth(root, metres, 2500)
    if train:
        made.text(root, "data/nyu2_train.csv", "\n".join(train) + "\n")
    if test:
        made.text(root, "data/nyu2_test.csv", "\n".join(test) + "\n")
    return root


@pytest.fixture
def both(tmp_path):
    train = [train_line("living_room_0038", 37), train_line("kitchen_0028b", 1)]
    return write(tmp_path, train, lines_of_test(2))


def lines_of_test(count):
    return [official_line(index) for index in splits.official()["test"][:count]]


@pytest.mark.parametrize("inside", ["", "data"])
def test_both_lists_are_read(both, inside):
    source = open_source(both / inside)
    assert source.format == "densedepth" and source.truths == ("filled",)
    assert source.eight_bit and made.notes(source) == []
    indices = splits.official()["test"][:2]
    scenes = [splits.official()["scenes"][index - 1] for index in indices]
    assert [info.scene for info in source.infos] == [
        "living_room_0038", "kitchen_0028b", *scenes
    ]  # fmt: skip
    assert [info.official_index for info in source.infos] == [None, None, *indices]
    assert source.infos[0].name == "data/nyu2_train/living_room_0038_out/37.jpg"
    for row, metres in enumerate((2, 2, 2.5, 2.5)):
        frame = source.frame(row)
        assert abs(int(frame.rgb[0, 0, 0]) - 10 * row) <= 2  # JPEG
        assert frame.filled is not None
        np.testing.assert_allclose(frame.filled, metres, rtol=1e-6)
    assert source.splits() == {
        "official": {"train": [0, 1], "eval": [2, 3]},
        "all": {"train": [0, 1, 2, 3], "eval": []},
    }
    made.same_elsewhere(source)


def test_codes_are_converted_to_metres(tmp_path):
    root = write(tmp_path, [train_line("kitchen_0028b", 1)])
    codes = np.arange(48, dtype=np.uint8).reshape(made.SIZE) * 5
    made.depth(root, "data/nyu2_train/kitchen_0028b_out/1.png", codes, dtype=np.uint8)
    filled = open_source(root).frame(0).filled
    assert filled is not None
    np.testing.assert_allclose(filled, codes / 255 * 10, rtol=1e-6)


def test_one_list_without_the_other_is_read(both):
    train = open_source(both / "data" / "nyu2_train.csv")
    assert train.eight_bit
    assert train.splits()["own"] == {"train": [0, 1], "eval": []}
    test = open_source(both / "data" / "nyu2_test.csv")
    assert not test.eight_bit
    assert test.splits()["official"] == {"train": [], "eval": [0, 1]}


@pytest.mark.parametrize("mask", ["auto", "on"])
def test_a_store_keeps_the_extremes_of_codes(both, tmp_path, mask):
    codes = np.full(made.SIZE, 100)
    codes[0], codes[1] = 40, 200
    made.depth(both, "data/nyu2_train/kitchen_0028b_out/1.png", codes, dtype=np.uint8)
    opened = store_writer.write(
        open_source(both), tmp_path / "s", size=made.SIZE, mask_extremes=mask
    )
    depth_codes = opened.gather([1], depth="filled")[1][0]
    np.testing.assert_array_equal(depth_codes, np.round(codes / 25.5 * 1000))


def test_scenes_of_the_test_set_are_left_out_of_training(tmp_path):
    train = [train_line("bookstore_0001d", 1), train_line("kitchen_0028b", 1)]
    source = open_source(write(tmp_path, train, lines_of_test(1)))
    splits, notes = split.complete(source)
    assert splits["official"] == {"train": [1], "eval": [2]}
    assert notes[0].startswith("left 1 frames of bookstore_0001d out")


def test_numbers_outside_the_test_set_are_not_official_indices(tmp_path):
    train = splits.official()["train"][0]
    source = open_source(
        write(tmp_path, test=[*lines_of_test(1), official_line(train)])
    )
    assert [info.official_index for info in source.infos] == [None, None]
    assert source.splits()["own"]["eval"] == [0, 1]


def test_an_unreadable_frame_does_not_affect_the_others(both):
    (both / "data/nyu2_train/kitchen_0028b_out/1.png").write_text("not a picture")
    broken = made.broken_rows(open_source(both))
    assert broken.keys() == {1} and "1.png" in broken[1]


def test_different_sizes_are_not_a_broken_frame(both):
    made.depth(both, "data/nyu2_train/kitchen_0028b_out/1.png", CODE, (7, 8), np.uint8)
    with pytest.raises(UserError, match="the same size") as error:
        open_source(both).frame(1)
    assert not isinstance(error.value, BrokenFrame)


def test_wrong_lists_are_rejected(both):
    listed = both / "data" / "nyu2_train.csv"
    good = listed.read_text().splitlines()[0]
    for line in ("a.jpg", "a.jpg,b.png,c.png", "a,b"):
        listed.write_text(f"{good}\n{line}\n")
        made.refused(listed, "nyu2_train.csv, line 2")
    listed.write_text("data/x/1.jpg,data/x/1.png\n")
    made.refused(listed, "none of its files exists", "data/x/1.jpg", both / "data")
    listed.write_text("")
    made.refused(listed, "names no files", data_format="densedepth")
    listed.unlink()
    (both / "data" / "nyu2_test.csv").unlink()
    made.refused(both, "nyu2_train.csv", data_format="densedepth")


def test_other_units_are_rejected(both):
    made.depth(both, "data/nyu2_test/00000_depth.png", 25)  # centimetres
    made.depth(both, "data/nyu2_test/00001_depth.png", 25)
    made.refused(both / "data" / "nyu2_test.csv", "millimetres")


def test_changed_files_have_another_fingerprint(both):
    first = open_source(both).fingerprint()
    assert open_source(both).fingerprint() == first
    made.image(both, "data/nyu2_train/kitchen_0028b_out/1.jpg", size=(60, 80))
    assert open_source(both).fingerprint() != first
