"""The list files of BTS, AdaBins and ZoeDepth: lines "rgb depth focal"; PNG depth."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdepth import images as images_lib
from jaxdepth.data import units
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import (
    Frame,
    FrameInfo,
    ReadOptions,
    camera_files,
    files,
    listed,
    lists,
)
from jaxdepth.runtime.errors import UserError


class Line(NamedTuple):
    """One frame of a list."""

    name: str
    image: Path
    depth: Path
    focal: float


class Bts:
    """The frames of one list, or of a training and a test list in one folder.

    Listed paths are relative to the list's folder, to one of its parents, or to sync/,
    official_splits/test/, train/, test/ or raw/ in one of these; KITTI's depth may be
    in data_depth_annotated/, or in train/ and val/ in it. Frames of a list with test,
    val or eval in its name are for evaluation, all others for training. Lines without
    depth ("None", in KITTI's lists) are left out and counted.

    Depth is raw: metres = stored value / `depth_scale` (default 1000; KITTI: 256),
    0 = missing. The scene is the image's folder. If every image of the test list is in
    a folder named after its scene type, such as bathroom/rgb_00045.jpg, the numbers in
    the names are official indices, counted from 0.
    """

    format = "bts"
    OPTIONS = frozenset({"depth_scale", "depth_code", "allow_outside"})
    truths: tuple[str, ...] = ("raw",)
    eight_bit = False

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the path is such a list, or a folder that has only such lists.

        A folder that also has other lists is of the format "folder".
        """
        return bool(_lists(path)) and len(_lists(path)) == len(listed.candidates(path))

    def __init__(self, path: Path, options: ReadOptions):
        self.path = path
        self.name = files.name_of(path)
        self.scale = self.depth_scale = options.depth_scale or 1000.0
        self.depth_code = options.depth_code
        self._allow_outside = options.allow_outside
        self.notes: list[str] = []
        train, evaluation = self._read()
        self.lines = train + evaluation
        self._train = range(len(train))
        self._evaluation = range(len(train), len(self.lines))
        indices = [None] * len(train) + _official_indices(evaluation)
        self.infos = [
            FrameInfo(line.name, _scene(line, index), index)
            for line, index in zip(self.lines, indices, strict=True)
        ]
        depths = files.sample(lambda line: self._depth(line.depth), self.lines)
        self.notes += files.constant_notes(depths, self.lines[0].depth)
        self.notes += files.check_metres(
            depths,
            where=str(path),
            hint="give --depth_scale=UNITS_PER_METRE",
            scale=self.scale,
            name=self.lines[0].depth.name,
        )
        self.notes += files.orientation_notes([line.image for line in self.lines])
        self.notes += files.size_notes((line.image, line.depth) for line in self.lines)

    def frame(self, row: int) -> Frame:
        line = self.lines[row]
        rgb, depth = files.read_rgb(line.image), self._depth(line.depth)
        camera = camera_files.of_focal(line.focal, (rgb.shape[0], rgb.shape[1]))
        rgb, camera = files.match_size(rgb, depth, line.image, line.depth, camera)
        return Frame(rgb, raw=depth, intrinsics=camera, unit=self.depth_scale)

    def fingerprint(self) -> dict[str, Any]:
        return {
            "path": str(self.path.resolve()),
            "depth_scale": self.depth_scale,
            "depth_code": self.depth_code,
            "parts": [len(self._train), len(self._evaluation)],
            **files.stamp(f for line in self.lines for f in (line.image, line.depth)),
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        return splits.from_lists(
            self._train,
            self._evaluation,
            indices=[info.official_index for info in self.infos],
        )

    def _read(self) -> tuple[list[Line], list[Line]]:
        """Read the lines for training and the lines for evaluation."""
        list_files = _lists(self.path) or ([self.path] if self.path.is_file() else [])
        if not list_files:
            raise UserError(f'{self.path} holds no list with lines "rgb depth focal"')
        root = self.path if self.path.is_dir() else self.path.parent
        named, notes = lists.with_parts([file.relative_to(root) for file in list_files])
        self.notes += notes
        list_files = [root / path for path in named]
        parts: dict[bool, tuple[Path, list[Line]]] = {}
        for file in list_files:
            lines = self._lines(file, alone=len(list_files) == 1)
            evaluates = lists.part_of(file.relative_to(root)) in ("val", "test")
            if lines and evaluates in parts:
                raise UserError(
                    f"{parts[evaluates][0]} and {file} both list frames to "
                    f"{'evaluate' if evaluates else 'train'} on: give one of them as "
                    "--data"
                )
            if lines:
                parts[evaluates] = file, lines
        if not parts:
            raise UserError(f"{self.path}: {'; '.join(self.notes)}")
        empty = self.path, []
        return parts.get(False, empty)[1], parts.get(True, empty)[1]

    def _lines(self, file: Path, *, alone: bool) -> list[Line]:
        """Read the frames of a list; if its files are missing, add a note instead.

        Raises: UserError for an invalid line, and for missing files if the list is the
          only one (`alone`).
        """
        rows, no_depth = [], 0
        listing = lists.read(file)
        for row in listing.rows:
            columns = row.columns
            if not _is_line(columns):
                raise UserError(
                    f'{listing.where(row)}: expected "rgb depth focal", not '
                    f"{lists.printable(' '.join(columns))!r}"
                )
            no_depth += columns[1] == "None"
            if columns[1] != "None":
                rows.append(columns)
        if no_depth:
            self.notes.append(
                f"left out {no_depth} lines of {file.name} that name no depth"
            )
        if not rows:
            raise UserError(f"{file}: no line names a depth file")
        names = [row[0] for row in rows]
        root = lists.root_of(
            file.parent, names, below=listed.BELOW, allow_outside=self._allow_outside
        )
        if root is None:
            missing = (
                f"{file.name}: none of its files exists, such as {rows[0][0]}: "
                f"searched {file.parent.absolute()}, its parent folders, and "
                f"{', '.join(listed.BELOW[1:])} in each of them"
            )
            if alone:
                raise UserError(missing)
            self.notes.append(missing)
            return []
        return [
            Line(
                rgb.lstrip("/"),
                root.path(rgb),
                root.path(depth),
                float(focal),
            )
            for rgb, depth, focal in rows
        ]

    def _depth(self, file: Path) -> Any:
        values = units.decode(files.read_depth(file), self.depth_code, where=file)
        if values.dtype.itemsize == 1:
            raise UserError(f"{file} has 8-bit depth: format bts expects 16 bits")
        return files.to_metres(values, self.depth_scale)


def _lists(path: Path) -> list[Path]:
    """Find the lists at a path by their first lines. Never raises."""
    return [file for file in listed.candidates(path) if _is_list(lists.peek(file))]


def _is_list(listing: lists.Listing | None) -> bool:
    """Whether most of the first lines are valid; `_lines` rejects invalid ones."""
    rows = listing.rows[:20] if listing else ()
    return 2 * sum(_is_line(row.columns) for row in rows) > len(rows)


def _is_line(columns: Sequence[str]) -> bool:
    """Whether the columns are an image, a depth file or "None", and a focal length."""
    if len(columns) != 3:
        return False
    rgb, depth, focal = columns
    try:
        usable = 0 < float(focal) < 1e5
    except ValueError:
        return False
    named = all(name.lower().endswith(images_lib.SUFFIXES) for name in (rgb, depth))
    return usable and (named or (depth == "None" and bool(rgb)))


def _official_indices(lines: list[Line]) -> list[int | None]:
    """Official indices of a test list; all None unless every folder is a scene type."""
    official = splits.official()
    indices: list[int | None] = []
    for line in lines:
        digits = re.fullmatch(r"rgb_(\d+)", line.image.stem)
        index = int(digits[1]) + 1 if digits else 0
        if index not in official["test"]:
            return [None] * len(lines)
        scene_type = re.sub(r"_\d+$", "", official["scenes"][index - 1])
        if line.image.parent.name != scene_type:
            return [None] * len(lines)
        indices.append(index)
    return indices


def _scene(line: Line, index: int | None) -> str | None:
    if index is not None:
        return splits.official()["scenes"][index - 1]
    parent = Path(line.name).parent
    return None if parent == Path(".") else str(parent)
