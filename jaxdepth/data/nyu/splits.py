"""The official split of NYU Depth V2's labeled set, and held-out scenes of its 795."""

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

HELD_OUT = 80  # frames that `tune` and `report` have at least


@functools.cache
def official() -> dict[str, Any]:
    """`train` (795) and `test` (654), 1-based; `scenes`, the name of every frame's."""
    return json.loads(
        (resources.files("jaxdepth.data") / "nyu_splits.json").read_text()
    )


@functools.cache
def parts() -> dict[str, str]:
    """Scene -> "test", "tune", "report" or "train".

    The scenes of the 795 in ascending order of the hex SHA-256 of their names: whole
    scenes until at least 80 frames are `tune` (81 frames, 27 scenes), then until at
    least 80 are `report` (83, 28); the rest trains (631, 194).
    """
    known = official()
    frames: dict[str, int] = {}
    for index in known["train"]:
        scene = known["scenes"][index - 1]
        frames[scene] = frames.get(scene, 0) + 1
    found = {known["scenes"][index - 1]: "test" for index in known["test"]}
    names = iter(sorted(frames, key=lambda s: hashlib.sha256(s.encode()).hexdigest()))
    for part in ("tune", "report"):
        count = 0
        while count < HELD_OUT:
            scene = next(names)
            found[scene] = part
            count += frames[scene]
    return found | dict.fromkeys(names, "train")


def scene_of_folder(name: str) -> str:
    """The labeled set's scene that a raw folder belongs to.

    Raw folders carry a letter, which the labeled set's names do not: basement_0001a
    and basement_0001b are of basement_0001.
    """
    return re.sub(r"(?<=\d)[a-z]$", "", name)


def is_test_scene(name: str) -> bool:
    """Whether a raw folder (or its path) is of a scene that official test frames show.

    BTS's list of training folders has such: bookstore_0001d to bookstore_0001j, while
    test frames 84-91 and 117-119 are of bookstore_0001.
    """
    return parts().get(scene_of_folder(name.rsplit("/", 1)[-1])) == "test"


def by_official_frames(
    indices: Sequence[int | None], scenes: Sequence[str | None]
) -> dict[str, dict[str, list[int]]] | None:
    """Rows of every split, for frames with official indices or official scene names.

    Args:
      indices: each row's official index, from 1, or None.
      scenes: each row's scene, or None.

    Returns: {"official" | "tune" | "report": {"train": rows, "eval": rows}}; None where
    a row is of no official scene.
    """
    known = official()
    part = []
    for index, scene in zip(indices, scenes, strict=True):
        name = known["scenes"][index - 1] if index is not None else scene
        if name is None or name not in parts():
            return None
        part.append(parts()[name])

    def rows(*wanted: str) -> list[int]:
        return [row for row, name in enumerate(part) if name in wanted]

    return {
        "official": {"train": rows("train", "tune", "report"), "eval": rows("test")},
        "tune": {"train": rows("train"), "eval": rows("tune")},
        "report": {"train": rows("train"), "eval": rows("report")},
    }


def from_lists(
    train: Sequence[int],
    evaluation: Sequence[int],
    *,
    scenes: Sequence[str | None],
    indices: Sequence[int | None],
    official_test: bool | None = None,
) -> dict[str, dict[str, list[int]]]:
    """Splits of data that say themselves what trains and what evaluates.

    Args:
      train, evaluation: rows.
      scenes: each row's raw folder or scene, or None.
      indices: each row's official index, from 1, or None.
      official_test: whether official test frames evaluate; None: by their indices.

    Returns: "official", where nothing but official test frames evaluates, or else
    "own"; and "all", in which every row trains. But in "all", rows of test scenes don't
    train.
    """
    if official_test is None:
        test = set(official()["test"])
        official_test = all(indices[row] in test for row in evaluation)
    known = official_test and len(evaluation) > 0
    kept = [row for row in train if not is_test_scene(scenes[row] or "")]
    return {
        "official" if known else "own": {"train": kept, "eval": list(evaluation)},
        "all": {"train": list(range(len(indices))), "eval": []},
    }


def test_scene_notes(train: Sequence[int], scenes: Sequence[str | None]) -> list[str]:
    """What the user should read of rows that `from_lists` keeps from training."""
    shown = [scenes[row] for row in train if is_test_scene(scenes[row] or "")]
    if not shown:
        return []
    names = sorted({str(name) for name in shown})
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [
        f"{len(shown)} frames of {names[0]}{more} don't train: the official test set "
        "shows that scene"
    ]
