"""DenseDepth's nyu_data.zip: image and depth pairs of nyu2_{train,test}.csv."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdepth import images as images_lib
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, files, labeled, lists
from jaxdepth.runtime.errors import UserError

LISTS = ("nyu2_train.csv", "nyu2_test.csv")
CODES_PER_METRE = 25.5  # of 8-bit depth: code / 255 * 10 m (DenseDepth, data.py)
MILLIMETRES = 1000.0  # per metre, of 16-bit depth


class Row(NamedTuple):
    """One frame of a list."""

    name: str
    image: Path
    depth: Path


class DenseDepth:
    """The frames of nyu2_train.csv, nyu2_test.csv or both.

    Listed paths start with data/ and are relative to the list's folder or to one of its
    parents.
    Depth is filled. 8-bit images hold codes: metres = code / 255 * 10 (the training
    set, in steps of 39 mm). 16-bit images hold millimetres (the test set).

    The scene of a training frame is its folder's name without "_out". The number in a
    test frame's name is its official index, counted from 0: nyu2_test/00000_colors.png.
    """

    format = "densedepth"
    OPTIONS = frozenset({"allow_outside"})
    truths: tuple[str, ...] = ("filled",)

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the path is a list, or a folder with a list in it or in its data/."""
        return any(_names_pairs(file) for file in _lists(path))

    def __init__(self, path: Path, options: ReadOptions):
        self.path = path
        self.name = files.name_of(path)
        paths = _lists(path)
        if not paths:
            raise UserError(f"{path} holds neither {' nor '.join(LISTS)}")
        train, evaluation = (
            [
                row
                for file in paths
                if lists.part_of(file.name) == part
                for row in _read(file, options.allow_outside)
            ]
            for part in ("train", "test")
        )
        self.rows = train + evaluation
        self._train = range(len(train))
        self._evaluation = range(len(train), len(self.rows))
        indices = [None] * len(train) + _official_indices(evaluation)
        self.infos = [
            FrameInfo(row.name, _scene(row, index), index)
            for row, index in zip(self.rows, indices, strict=True)
        ]
        self.notes: list[str] = []
        sampled = files.sample(lambda row: _depth(row.depth), self.rows)
        # True if any depth is 8-bit: the store then masks extremes in no frame.
        self.eight_bit = any(eight for _, eight in sampled)
        depths = [depth for depth, _ in sampled]
        self.notes += files.constant_notes(depths, self.rows[0].depth)
        self.notes += files.check_metres(
            depths,
            where=str(path),
            hint="format densedepth expects 8-bit depth, 255 for 10 m, or 16-bit depth "
            "in millimetres",
        )
        self.notes += files.orientation_notes([row.image for row in self.rows])
        self.notes += files.size_notes((row.image, row.depth) for row in self.rows)

    def frame(self, row: int) -> Frame:
        _, image, depth_file = self.rows[row]
        rgb = files.read_rgb(image)
        depth, _ = _depth(depth_file)
        camera = labeled.camera_of(rgb.shape)
        rgb, camera = files.match_size(rgb, depth, image, depth_file, camera)
        return Frame(rgb, filled=depth, intrinsics=camera)

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
            indices=[info.official_index for info in self.infos],
        )


def _lists(path: Path) -> list[Path]:
    """Find the lists: the path itself, or in the folder or its data/. Never raises."""
    if path.name in LISTS and files.is_file(path):
        return [path]
    for folder in (path, path / "data"):
        paths = [folder / name for name in LISTS if files.is_file(folder / name)]
        if paths:
            return paths
    return []


def _names_pairs(file: Path) -> bool:
    listing = lists.peek(file)
    if listing is None or not listing.rows:
        return False
    return _is_pair(listing.rows[0].columns)


def _is_pair(columns: Sequence[str]) -> bool:
    suffixes = images_lib.SUFFIXES
    return len(columns) == 2 and all(c.lower().endswith(suffixes) for c in columns)


def _read(file: Path, allow_outside: bool) -> list[Row]:
    """Read the frames of a list. Raises UserError if there are none."""
    listing = lists.read(file)
    for row in listing.rows:
        if not _is_pair(row.columns):
            raise UserError(
                f"{listing.where(row)}: expected an image and its depth, not "
                f"{lists.printable(','.join(row.columns))!r}"
            )
    if not listing.rows:
        raise UserError(f"{file} names no files")
    names = [row.columns[0] for row in listing.rows]
    root = lists.root_of(file.parent, names, allow_outside=allow_outside)
    if root is None:
        raise UserError(
            f"{file}: none of its files exists, such as {lists.printable(names[0])}: "
            f"searched {file.parent.absolute()} and its parent folders"
        )
    return [
        Row(rgb.lstrip("/"), root.path(rgb), root.path(depth))
        for rgb, depth in (row.columns for row in listing.rows)
    ]


def _depth(file: Path) -> tuple[np.ndarray, bool]:
    """Read depth in metres, (H, W) float32, and whether the file is 8-bit."""
    values = files.read_depth(file)
    eight_bit = values.dtype == np.uint8
    scale = CODES_PER_METRE if eight_bit else MILLIMETRES
    return files.to_metres(values, scale), eight_bit


def _official_indices(rows: list[Row]) -> list[int | None]:
    """Official indices from the names of test frames; all None unless all are valid."""
    test = set(splits.official()["test"])
    indices: list[int | None] = []
    for row in rows:
        digits = re.match(r"\d+", row.image.name)
        index = int(digits[0]) + 1 if digits else 0
        if index not in test:
            return [None] * len(rows)
        indices.append(index)
    return indices


def _scene(row: Row, index: int | None) -> str | None:
    if index is not None:
        return splits.official()["scenes"][index - 1]
    folder = row.image.parent.name
    return folder.removesuffix("_out") if folder.endswith("_out") else None
