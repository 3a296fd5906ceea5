"""Held-out frames, and scenes of the official test set."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth.data import split
from jaxdepth.data.sources import FrameInfo
from tests.data.memory import Memory, frame


def source(scenes, splits=None):
    memory = Memory([frame(k) for k in range(len(scenes))])
    memory.infos = [FrameInfo(f"{k:03d}.png", s) for k, s in enumerate(scenes)]
    everything = {"all": {"train": list(range(len(scenes))), "eval": []}}
    memory.splits = lambda: everything | (splits or {})
    return memory


def test_whole_scenes_are_held_out_in_the_order_of_their_hash():
    scenes = [f"room_{k // 3}" for k in range(30)]
    splits, notes = split.complete(source(scenes), eval_fraction=0.15)
    by_hash = sorted(set(scenes), key=lambda s: hashlib.sha256(s.encode()).hexdigest())
    expected = [row for row, scene in enumerate(scenes) if scene in by_hash[:2]]
    assert splits[split.HELD_OUT]["eval"] == expected  # 6 frames: at least 4.5
    assert splits[split.HELD_OUT]["train"] == [
        k for k in range(30) if k not in expected
    ]
    assert notes == []


@given(st.lists(st.sampled_from([None, "a", "b", "c"]), max_size=30),
       st.floats(0.01, 0.99))  # fmt: skip
def test_both_parts_have_frames_and_share_no_scene(scenes, fraction):
    splits, _ = split.complete(source(scenes), eval_fraction=fraction)
    if split.HELD_OUT not in splits:
        assert len(scenes) < 2 or len(set(scenes)) > 1
        return
    train, evaluation = splits[split.HELD_OUT].values()
    assert train and evaluation
    assert sorted(train + evaluation) == list(range(len(scenes)))
    if len(set(scenes)) > 1:
        assert not {scenes[k] for k in train} & {scenes[k] for k in evaluation}


@pytest.mark.parametrize(
    ("more", "options"),
    [({"own": {"train": [0], "eval": [1]}}, {}), ({}, {"eval_fraction": 0})],
)
def test_nothing_is_held_out_of_data_with_a_split_or_for_a_fraction_of_0(more, options):
    splits, _ = split.complete(source(["a", "b", "c"], more), **options)
    assert split.HELD_OUT not in splits


def test_scenes_of_the_official_test_set_train_only_if_asked_for():
    scenes = ["kitchen_0028b", "bookstore_0001d", "train/bookstore_0001e", None]
    own = {"own": {"train": [0, 1], "eval": [2]}}
    splits, (note,) = split.complete(source(scenes, own))
    assert splits["own"] == {"train": [0], "eval": [2]}
    assert splits["all"]["train"] == [0, 3]
    assert note.startswith("left 2 frames of bookstore_0001d and 1 more out of train")
    assert "--test_scenes=keep" in note
    splits, notes = split.complete(source(scenes, own), test_scenes="keep")
    assert splits["own"]["train"] == [0, 1] and notes == []
