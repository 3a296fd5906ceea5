"""Splits by lists of folders."""

import pytest

from jaxdepth.data.sources import open_source
from tests.data.sources import made


def scenes(root, *names):
    for k, name in enumerate(names):
        made.image(root, f"{name}/color/{k}.jpg", k)
        made.depth(root, f"{name}/depth/{k}.png", 2000 + k)
    return root


def parts_of(root) -> dict[str, list[str | None]]:
    source = open_source(root)
    return {
        part: [source.infos[row].scene for row in rows]
        for part, rows in source.splits()["own"].items()
    }


@pytest.mark.parametrize("place", ["", "Tasks/"])
@pytest.mark.parametrize(
    "names",
    [("scannetv2_train.txt", "scannetv2_val.txt"), ("TrainSet.txt", "ValSet.txt")],
)
def test_lists_of_folders_are_the_split(tmp_path, place, names):
    scenes(tmp_path, "scans/scene0000_00", "scans/scene0000_01", "scans/scene0001_00")
    made.text(tmp_path, place + names[0], "scene0000_00\nscene0001_00\n\n")
    made.text(tmp_path, place + names[1], "# validation\nscene0000_01\n")
    assert parts_of(tmp_path) == {
        "train": ["scans/scene0000_00", "scans/scene0001_00"],
        "eval": ["scans/scene0000_01"],
    }
    (note,) = (n for n in open_source(tmp_path).notes if n.startswith("split read"))
    assert place + names[0] in note and place + names[1] in note


def test_paths_in_lists_are_relative_to_the_list(tmp_path):
    scenes(tmp_path, "one/kitchen", "two/kitchen")
    made.text(tmp_path, "train.txt", "one/kitchen\n")
    made.text(tmp_path, "test.txt", "./two/kitchen/\n")
    assert parts_of(tmp_path) == {"train": ["one/kitchen"], "eval": ["two/kitchen"]}


def test_folders_that_are_missing_or_not_listed_are_counted(tmp_path):
    scenes(tmp_path, "a", "b", "c")
    made.text(tmp_path, "train.txt", "a\ngone\nlost\n")
    made.text(tmp_path, "val.txt", "b\n")
    assert parts_of(tmp_path) == {"train": ["a"], "eval": ["b"]}
    notes = made.notes(open_source(tmp_path))
    assert notes == [
        "split read from train.txt, val.txt",
        "2 of 3 folders that train.txt lists do not exist or hold no frame, such as "
        "gone",
        "left out 1 frames of folders that no list names",
    ]


def test_a_folder_in_both_parts_is_rejected(tmp_path):
    scenes(tmp_path, "a", "b")
    made.text(tmp_path, "train.txt", "a\nb\n")
    made.text(tmp_path, "val.txt", "b\n")
    made.refused(tmp_path, "val.txt: b is also listed for train")


@pytest.mark.parametrize("name", ["chair", "17", "zip/scene0000_00"])
def test_lists_of_other_names_are_named_as_unused(tmp_path, name):
    scenes(tmp_path, "a", "b")
    made.text(tmp_path, "train_x.txt", f"{name}\ntable\n")
    source = open_source(tmp_path)
    assert source.splits().keys() == {"all"}
    (note,) = made.notes(source)
    assert note.startswith("list train_x.txt is not used") and name in note


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train_notes.txt", "the folder a has a kitchen\n"),
        ("scenes.txt", "a\nb\n"),  # which part?
        ("train.txt", ""),
    ],
)
def test_other_texts_are_no_lists_of_folders(tmp_path, name, content):
    scenes(tmp_path, "a", "b")
    made.text(tmp_path, name, content)
    source = open_source(tmp_path)
    assert source.splits().keys() == {"all"} and made.notes(source) == []


def test_an_ambiguous_name_is_not_guessed(tmp_path):
    scenes(tmp_path, "x/kitchen", "y/kitchen", "x/bath")
    made.text(tmp_path, "train.txt", "kitchen\n")
    made.text(tmp_path, "val.txt", "bath\n")
    source = open_source(tmp_path)
    assert [info.scene for info in source.infos] == ["x/bath"]
    assert "left out 2 frames of folders that no list names" in source.notes


def test_lists_of_frames_are_preferred(tmp_path):
    scenes(tmp_path, "a", "b")
    made.text(tmp_path, "train.csv", "a/color/0.jpg,a/depth/0.png\n")
    made.text(tmp_path, "val.txt", "b\n")
    source = open_source(tmp_path)
    assert [info.name for info in source.infos] == ["a/color/0.jpg"]
