"""Training and evaluation splits, beyond those that a source defines.

Two rules apply to every format: scenes of NYU's official test set are left out of
training, and a share of the frames is held out if a source has no evaluation set.
"""

import hashlib
import math
from collections.abc import Sequence

from jaxdepth.data.nyu import splits as nyu_splits
from jaxdepth.data.sources import FrameInfo, Source

HELD_OUT = "held_out"
Splits = dict[str, dict[str, list[int]]]


def complete(
    source: Source, *, eval_fraction: float = 0.1, test_scenes: str = "drop"
) -> tuple[Splits, list[str]]:
    """Complete the splits of a source by the rules of this module.

    Args:
      eval_fraction: share of the frames that the split "held_out" evaluates on, for a
        source without an evaluation set; 0: no such split.
      test_scenes: "drop" leaves frames in folders named after scenes of the official
        test set out of training, "keep" trains on them. Frames with an official index
        are those of the labeled set, and follow its splits.

    Returns: splits as in `Source.splits`, and one-line notes.
    """
    splits, infos = source.splits(), source.infos
    notes: list[str] = []
    if test_scenes == "drop":
        left_out = {row for row, info in enumerate(infos) if _shows_test_scene(info)}
        trained = {row for rows in splits.values() for row in rows["train"]}
        notes = nyu_splits.test_scene_notes(
            sorted(left_out & trained), [info.scene for info in infos]
        )
        splits = {
            name: {
                "train": [row for row in rows["train"] if row not in left_out],
                "eval": rows["eval"],
            }
            for name, rows in splits.items()
        }
    if eval_fraction and not any(rows["eval"] for rows in splits.values()):
        rows = splits.get("all", {"train": list(range(len(infos)))})["train"]
        evaluation = held_out(rows, infos, eval_fraction)
        if evaluation and len(evaluation) < len(rows):
            train = [row for row in rows if row not in evaluation]
            splits[HELD_OUT] = {"train": train, "eval": sorted(evaluation)}
    return splits, notes


def held_out(
    rows: Sequence[int], infos: Sequence[FrameInfo], fraction: float
) -> set[int]:
    """Choose rows to evaluate on: whole scenes, by the hash of their names.

    Scenes are taken in ascending order of the hex SHA-256 of their names until they
    hold the share `fraction` of the frames. With fewer than two scenes, single frames
    are taken in the same way.
    """
    groups: dict[str, list[int]] = {}
    for row in rows:
        groups.setdefault(infos[row].scene or "", []).append(row)
    if len(groups) < 2:
        groups = {infos[row].name: [row] for row in rows}
    wanted, evaluation = math.ceil(fraction * len(rows)), set[int]()
    for name in sorted(groups, key=lambda s: hashlib.sha256(s.encode()).hexdigest()):
        group = groups[name]
        if len(evaluation) >= wanted or len(evaluation) + len(group) == len(rows):
            break
        evaluation.update(group)
    return evaluation


def _shows_test_scene(info: FrameInfo) -> bool:
    return (
        info.official_index is None
        and info.scene is not None
        and nyu_splits.is_test_scene(info.scene)
    )
