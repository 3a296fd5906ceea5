"""DenseDepth's nyu_data.zip: nyu2_train.csv and nyu2_test.csv, image and depth."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdepth import images as images_lib
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, files, labeled
from jaxdepth.runtime.errors import UserError

LISTS = ("nyu2_train.csv", "nyu2_test.csv")
CODES_PER_METRE = 25.5  # of 8-bit depth: code / 255 * 10 m (DenseDepth, data.py)
MILLIMETRES = 1000.0
TAKES: frozenset[str] = frozenset()


def recognises(path: Path) -> bool:
    """One of the two lists, or a folder that holds one or both, or their data/."""
    return any(_names_pairs(file) for file in _lists(path))


def source_of(path: Path, options: ReadOptions) -> "DenseDepth":
    return DenseDepth(path)


class Row(NamedTuple):
    """One frame of a list."""

    name: str
    image: Path
    depth: Path


class DenseDepth:
    """The frames of nyu2_train.csv, nyu2_test.csv or both.

    Paths in the lists start with data/ and are looked for from the list's folder and
    those above it. Depth is filled. An 8-bit picture holds codes, metres = code / 255 *
    10 (the training set: steps of 39 mm); a 16-bit one millimetres (the test set).

    The scene is the training frame's folder without "_out". Test frames bear their
    official index, counted from 0: nyu2_test/00000_colors.png.
    """

    format = "densedepth"
    truths: tuple[str, ...] = ("filled",)

    def __init__(self, path: Path):
        self.path = path
        self.name = files.name_of(path)
        found = _lists(path)
        if not found:
            raise UserError(f"{path} holds neither of {' and '.join(LISTS)}")
        train = [r for f in found if "test" not in f.name for r in _read(f)]
        evaluation = [r for f in found if "test" in f.name for r in _read(f)]
        self.rows = train + evaluation
        self._train = range(len(train))
        self._evaluation = range(len(train), len(self.rows))
        indices = [None] * len(train) + _official_indices(evaluation)
        self.infos = [
            FrameInfo(row.name, _scene(row, index), index)
            for row, index in zip(self.rows, indices, strict=True)
        ]
        scenes = [info.scene for info in self.infos]
        self.notes = splits.test_scene_notes(self._train, scenes)
        seen = files.sample(lambda row: _depth(row.depth), self.rows)
        # Some 8-bit depth is enough: the store then masks no frame's extremes.
        self.eight_bit = any(eight for _, eight in seen)
        files.check_metres(
            [depth for depth, _ in seen],
            where=str(path),
            hint="8-bit depth holds codes of 10 m / 255, 16-bit depth millimetres",
        )

    def frame(self, row: int) -> Frame:
        _, image, depth_file = self.rows[row]
        rgb = files.read_rgb(image)
        depth, _ = _depth(depth_file)
        files.check_same_size(rgb, depth, image, depth_file)
        return Frame(rgb, filled=depth, intrinsics=labeled.camera_of(rgb.shape))

    def fingerprint(self) -> dict[str, Any]:
        return {
            "path": str(self.path.resolve()),
            "parts": [len(self._train), len(self._evaluation)],
            **files.stamp(f for row in self.rows for f in (row.image, row.depth)),
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        return splits.from_lists(
            self._train,
            self._evaluation,
            scenes=[info.scene for info in self.infos],
            indices=[info.official_index for info in self.infos],
        )


def _lists(path: Path) -> list[Path]:
    """The lists at a path: itself, or in it, or in its data/. Never raises."""
    if path.name in LISTS and files.is_file(path):
        return [path]
    for folder in (path, path / "data"):
        found = [folder / name for name in LISTS if files.is_file(folder / name)]
        if found:
            return found
    return []


def _names_pairs(file: Path) -> bool:
    lines = files.peek_list(file, 1)
    return bool(lines) and _is_pair(lines[0])


def _is_pair(columns: list[str]) -> bool:
    suffixes = images_lib.SUFFIXES
    return len(columns) == 2 and all(c.lower().endswith(suffixes) for c in columns)


def _read(file: Path) -> list[Row]:
    """The frames of a list. UserError where it lists none, or none that is there."""
    found = files.read_list(file)
    for number, columns in found:
        if not _is_pair(columns):
            raise UserError(
                f"{file}, line {number}: an image and its depth are wanted, not "
                f"{','.join(columns)[:120]!r}"
            )
    if not found:
        raise UserError(f"{file} lists no frame")
    names = [columns[0] for _, columns in found]
    root = files.find_root(file.parent, names)
    if root is None:
        raise UserError(
            f"none of what {file} lists is there, such as {names[0]}: it was looked "
            f"for in {file.parent.absolute()} and every folder above it"
        )
    return [
        Row(rgb.lstrip("/"), files.in_folder(root, rgb), files.in_folder(root, depth))
        for _, (rgb, depth) in found
    ]


def _depth(file: Path) -> tuple[np.ndarray, bool]:
    """Metres, and whether the file had 8 bits a pixel."""
    values = files.read_depth(file)
    eight_bit = values.dtype == np.uint8
    scale = CODES_PER_METRE if eight_bit else MILLIMETRES
    return files.to_metres(values, scale), eight_bit


def _official_indices(rows: list[Row]) -> list[int | None]:
    """The number in a test frame's name, from 1; None for all where one isn't."""
    test = set(splits.official()["test"])
    found: list[int | None] = []
    for row in rows:
        digits = re.match(r"\d+", row.image.name)
        index = int(digits[0]) + 1 if digits else 0
        if index not in test:
            return [None] * len(rows)
        found.append(index)
    return found


def _scene(row: Row, index: int | None) -> str | None:
    if index is not None:
        return splits.official()["scenes"][index - 1]
    folder = row.image.parent.name
    return folder.removesuffix("_out") if folder.endswith("_out") else None
