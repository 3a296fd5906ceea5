"""Official indices and held-out scenes, counted and recomputed."""

import hashlib
import json
from collections import Counter

import pytest

from jaxdepth.data.nyu import splits


def frames_of(rows: list[int]) -> set[str]:
    """Scenes of rows that are official frames 1 to 1449 in order."""
    return {splits.official()["scenes"][row] for row in rows}


@pytest.fixture(scope="module")
def whole():
    known = splits.official()
    found = splits.by_official_frames(list(range(1, 1450)), known["scenes"])
    assert found is not None
    return found


def test_official_counts_and_first_frames(whole):
    official = whole["official"]
    assert (len(official["train"]), len(official["eval"])) == (795, 654)
    assert sorted(official["train"] + official["eval"]) == list(range(1449))
    # The published lists begin so, counted from 1.
    assert [row + 1 for row in official["train"][:8]] == [3, 4, 5, 6, 7, 8, 10, 11]
    assert [row + 1 for row in official["eval"][:6]] == [1, 2, 9, 14, 15, 16]


def test_held_out_counts(whole):
    counts = {
        name: (len(rows), len(frames_of(rows)))
        for name, rows in {
            "tune": whole["tune"]["eval"],
            "report": whole["report"]["eval"],
            "train": whole["tune"]["train"],
        }.items()
    }
    assert counts == {"tune": (81, 27), "report": (83, 28), "train": (631, 194)}
    assert whole["tune"]["train"] == whole["report"]["train"]


def test_no_scene_on_two_sides(whole):
    sides = [
        frames_of(rows)
        for rows in (
            whole["tune"]["train"], whole["tune"]["eval"],
            whole["report"]["eval"], whole["official"]["eval"],
        )
    ]  # fmt: skip
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_scenes_come_in_the_order_of_their_hash(whole):
    known = splits.official()
    scenes = Counter(known["scenes"][i - 1] for i in known["train"])
    ordered = sorted(scenes, key=lambda s: hashlib.sha256(s.encode()).hexdigest())
    assert frames_of(whole["tune"]["eval"]) == set(ordered[:27])
    assert frames_of(whole["report"]["eval"]) == set(ordered[27:55])


def test_scene_names_decide_without_indices(whole):
    known = splits.official()
    by_name = splits.by_official_frames([None] * 1449, known["scenes"])
    assert by_name == whole


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
def test_a_raw_folders_letter_is_no_part_of_its_scene(folder, scene):
    assert splits.scene_of_folder(folder) == scene


def test_test_scenes_are_known_by_folder_and_by_scene():
    known = splits.official()
    assert all(splits.is_test_scene(known["scenes"][i - 1]) for i in known["test"])
    assert not any(splits.is_test_scene(known["scenes"][i - 1]) for i in known["train"])
    assert splits.is_test_scene("bookstore_0001d")
    assert not splits.is_test_scene("my_room_0001a")


def test_the_folders_that_bts_trains_on_show_one_test_scene(shared_data):
    listed = (shared_data / "nyu_splits" / "train_scenes.txt").read_text().split()
    assert len(listed) == 284
    shown = [name for name in listed if splits.is_test_scene(name)]
    assert shown == [f"bookstore_0001{letter}" for letter in "defghij"]


def test_lists_equal_the_published_ones(shared_data):
    published = json.loads((shared_data / "nyu_splits" / "splits.json").read_text())
    known = splits.official()
    assert known["train"] == published["trainNdxs"]
    assert known["test"] == published["testNdxs"]
    assert known["scenes"] == published["scenes"]
