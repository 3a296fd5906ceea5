"""The official split of NYU Depth V2, and scenes held out from its training set."""

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

HELD_OUT = 80  # smallest number of frames in `tune` and in `report`


@functools.cache
def official() -> dict[str, Any]:
    """Load the official split: indices `train` (795), `test` (654) from 1; `scenes`."""
    return json.loads(
        (resources.files("jaxdepth.data") / "nyu_splits.json").read_text()
    )


@functools.cache
def parts() -> dict[str, str]:
    """The part of each scene: scene -> "test", "tune", "report" or "train".

    The scenes of the 795 training frames are sorted by the hex SHA-256 of their names.
    The first ones, until they have at least 80 frames, are `tune` (81 frames, 27
    scenes); the next ones, until at least 80 frames, are `report` (83, 28); the others
    are `train` (631, 194).
    """
    indices, scenes = official(), official()["scenes"]
    frames: dict[str, int] = {}
    for index in indices["train"]:
        scene = scenes[index - 1]
        frames[scene] = frames.get(scene, 0) + 1
    part_of = {scenes[index - 1]: "test" for index in indices["test"]}
    names = iter(sorted(frames, key=lambda s: hashlib.sha256(s.encode()).hexdigest()))
    for part in ("tune", "report"):
        count = 0
        while count < HELD_OUT:
            scene = next(names)
            part_of[scene] = part
            count += frames[scene]
    return part_of | dict.fromkeys(names, "train")


def scene_of_folder(name: str) -> str:
    """Convert the name of a raw folder to its scene name in the labeled set.

    Raw folders have a letter appended: basement_0001a and basement_0001b are recordings
    of basement_0001.
    """
    return re.sub(r"(?<=\d)[a-z]$", "", name)


def is_test_scene(name: str) -> bool:
    """Whether a raw folder, or its path, belongs to a scene of official test frames.

    The list of training folders of BTS contains such folders, bookstore_0001d to
    bookstore_0001j: test frames 84-91 and 117-119 are of bookstore_0001.
    """
    return parts().get(scene_of_folder(name.rsplit("/", 1)[-1])) == "test"


def by_official_frames(
    indices: Sequence[int | None], scenes: Sequence[str | None]
) -> dict[str, dict[str, list[int]]] | None:
    """Splits of frames with official indices or official scene names.

    Args:
      indices: official index of each row, from 1, or None.
      scenes: scene of each row, or None; used where the index is None.

    Returns: {"official" | "tune" | "report": {"train": rows, "eval": rows}}; None if
      the scene of any row is unknown.
    """
    part = []
    for index, scene in zip(indices, scenes, strict=True):
        name = official()["scenes"][index - 1] if index is not None else scene
        if name is None or name not in parts():
            return None
        part.append(parts()[name])

    def rows(*names: str) -> list[int]:
        return [row for row, name in enumerate(part) if name in names]

    return {
        "official": {"train": rows("train", "tune", "report"), "eval": rows("test")},
        "tune": {"train": rows("train"), "eval": rows("tune")},
        "report": {"train": rows("train"), "eval": rows("report")},
    }


def from_lists(
    train: Sequence[int],
    evaluation: Sequence[int],
    *,
    indices: Sequence[int | None],
    official_test: bool | None = None,
) -> dict[str, dict[str, list[int]]]:
    """Splits of data that come with training and evaluation sets.

    Args:
      train, evaluation: rows.
      indices: official index of each row, from 1, or None.
      official_test: whether `evaluation` is the official test set; None: derived from
        its indices.

    Returns: "official" if `evaluation` holds only official test frames, else "own"; and
      "all", which trains on every row. `data.split.complete` removes test scenes.
    """
    if official_test is None:
        test = set(official()["test"])
        official_test = all(indices[row] in test for row in evaluation)
    name = "official" if official_test and len(evaluation) > 0 else "own"
    return {
        name: {"train": list(train), "eval": list(evaluation)},
        "all": {"train": list(range(len(indices))), "eval": []},
    }


def from_parts(
    parts: Sequence[str | None], *, indices: Sequence[int | None] | None = None
) -> dict[str, dict[str, list[int]]]:
    """Splits of rows that are named "train", "val" or "test", as `from_lists`.

    `val` evaluates, or `test` where there is no `val`. Rows without a name (None)
    train. Without rows to evaluate on, only "all" is returned.
    """
    rows: dict[str | None, list[int]] = {"train": [], "val": [], "test": []}
    for row, part in enumerate(parts):
        rows[part or "train"].append(row)
    evaluation = rows["val"] or rows["test"]
    indices = [None] * len(parts) if indices is None else indices
    every = from_lists(rows["train"], evaluation, indices=indices)
    return every if evaluation else {"all": every["all"]}


def part_notes(parts: Sequence[str | None]) -> list[str]:
    """Notes on the use of named parts that is not obvious, see `from_parts`."""
    notes = []
    if "val" in parts and "test" in parts:
        notes.append(
            f"evaluation uses the {parts.count('val')} frames of val; the "
            f"{parts.count('test')} of test are not used: give them as --eval_data "
            "for the final evaluation"
        )
    if None in parts and any(parts):
        notes.append(
            f"{parts.count(None)} frames are in no folder named train, val or test: "
            "they are used for training"
        )
    return notes


def test_scene_notes(
    left_out: Sequence[int], scenes: Sequence[str | None]
) -> list[str]:
    """The note on rows of test scenes left out of training; [] if there are none."""
    if not left_out:
        return []
    names = sorted({str(scenes[row]) for row in left_out})
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"left {len(left_out)} frames of {names[0]}{more} out of training: they "
        "show scenes of the official test set (--test_scenes=keep trains on them)"
    ]
