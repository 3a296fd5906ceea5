"""The official split and the held-out scenes: counts and recomputation."""

import hashlib
import json
from collections import Counter

import pytest

from jaxdepth.data.nyu import splits


def scenes_of(rows: list[int]) -> set[str]:
    """The scenes of rows; row k is official frame k + 1."""
    return {splits.official()["scenes"][row] for row in rows}


@pytest.fixture(scope="module")
def by_name():
    scenes = splits.official()["scenes"]
    by_name = splits.by_official_frames(list(range(1, 1450)), scenes)
    assert by_name is not None
    return by_name


def test_official_counts_and_first_frames(by_name):
    official = by_name["official"]
    assert (len(official["train"]), len(official["eval"])) == (795, 654)
    assert sorted(official["train"] + official["eval"]) == list(range(1449))
    # The published lists start with these, counted from 1.
    assert [row + 1 for row in official["train"][:8]] == [3, 4, 5, 6, 7, 8, 10, 11]
    assert [row + 1 for row in official["eval"][:6]] == [1, 2, 9, 14, 15, 16]


def test_held_out_counts(by_name):
    counts = {
        name: (len(rows), len(scenes_of(rows)))
        for name, rows in {
            "tune": by_name["tune"]["eval"],
            "report": by_name["report"]["eval"],
            "train": by_name["tune"]["train"],
        }.items()
    }
    assert counts == {"tune": (81, 27), "report": (83, 28), "train": (631, 194)}
    assert by_name["tune"]["train"] == by_name["report"]["train"]


def test_no_scene_is_in_two_parts(by_name):
    parts = [
        scenes_of(rows)
        for rows in (
            by_name["tune"]["train"], by_name["tune"]["eval"],
            by_name["report"]["eval"], by_name["official"]["eval"],
        )
    ]  # fmt: skip
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_scenes_are_held_out_in_the_order_of_their_hash(by_name):
    official = splits.official()
    scenes = Counter(official["scenes"][i - 1] for i in official["train"])
    ordered = sorted(scenes, key=lambda s: hashlib.sha256(s.encode()).hexdigest())
    assert scenes_of(by_name["tune"]["eval"]) == set(ordered[:27])
    assert scenes_of(by_name["report"]["eval"]) == set(ordered[27:55])


def test_scene_names_give_the_same_splits_as_indices(by_name):
    scenes = splits.official()["scenes"]
    assert splits.by_official_frames([None] * 1449, scenes) == by_name


def test_other_data_have_no_official_split():
    assert splits.by_official_frames([None, None], ["kitchen_0004", "my_room"]) is None
    assert splits.by_official_frames([None], [None]) is None


@pytest.mark.parametrize(
    ("folder", "scene"),
    [
        ("basement_0001a", "basement_0001"),
        ("basement_0001", "basement_0001"),
        ("nyu_office_0", "nyu_office_0"),
        ("study", "study"),
        ("", ""),
    ],
)
def test_the_letter_of_a_raw_folder_is_not_part_of_its_scene(folder, scene):
    assert splits.scene_of_folder(folder) == scene


def test_test_scenes_are_recognised_by_folder_and_by_scene():
    official = splits.official()
    scenes = official["scenes"]
    assert all(splits.is_test_scene(scenes[i - 1]) for i in official["test"])
    assert not any(splits.is_test_scene(scenes[i - 1]) for i in official["train"])
    assert splits.is_test_scene("bookstore_0001d")
    assert not splits.is_test_scene("my_room_0001a")


def test_the_training_list_of_bts_contains_one_test_scene(shared_data):
    listed = (shared_data / "nyu_splits" / "train_scenes.txt").read_text().split()
    assert len(listed) == 284
    test_folders = [name for name in listed if splits.is_test_scene(name)]
    assert test_folders == [f"bookstore_0001{letter}" for letter in "defghij"]


def test_lists_equal_the_published_ones(shared_data):
    published = json.loads((shared_data / "nyu_splits" / "splits.json").read_text())
    official = splits.official()
    assert official["train"] == published["trainNdxs"]
    assert official["test"] == published["testNdxs"]
    assert official["scenes"] == published["scenes"]
