"""Frames from lists of files: determines the columns and the folder of a list."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxdepth import images as images_lib
from jaxdepth.data.sources import lists
from jaxdepth.data.sources.lists import Listing, Part, Root, Row
from jaxdepth.runtime.errors import UserError

MASK_WORDS = ("mask", "valid", "confidence", "conf")
DEPTH_SUFFIXES = (".npy", ".npz", ".pfm", ".pgm", ".exr")
SUFFIXES = (*images_lib.SUFFIXES, *DEPTH_SUFFIXES)
# Kinds of columns, by whole words of their headings.
HEADINGS = {
    "image": ("rgb", "image", "images", "color", "colour", "img", "photo", "input"),
    "filled": ("filled", "dense"),
    "mask": MASK_WORDS,
    "depth": ("depth", "depths", "raw", "sparse", "gt", "target", "label", "disparity"),
    "focal": ("focal", "fx", "f"),
}
# Folders that listed paths may be relative to, in the list's folder or in one of its
# parents: a list may be in a sub-folder such as splits/, and BTS uses these names.
BELOW = ("", "sync", "official_splits/test", "train", "test", "raw")
FOCAL_LENGTHS = 10.0, 1e5  # pixels; the accepted range


class Listed(NamedTuple):
    """The files of one frame, as a list names them.

    `scene` is None where the folder of the image is the scene.
    """

    name: str
    image: Path
    depth: Path | None = None
    filled: Path | None = None
    mask: Path | None = None
    focal: float | None = None
    part: Part | None = None
    scene: str | None = None


@dataclasses.dataclass(frozen=True)
class Lists:
    """The frames of all lists of a folder.

    Attributes:
      frames: in the order of the lists. `depth` is None in lists of images alone.
      used: the names of the lists that they come from.
      notes: one line for each list that is not used, and for lines that are left out.
    """

    frames: tuple[Listed, ...]
    used: tuple[str, ...]
    notes: tuple[str, ...]


def read_all(path: Path, *, allow_outside: bool = False) -> Lists:
    """Read a list, or all lists in a folder and in its direct sub-folders.

    If the path of any list names a part of a split, lists whose paths name none are not
    used, because they may repeat frames of the others.

    Raises: UserError, with file and line, for a line that is ambiguous or names missing
      files; UserError for an image that is listed twice.
    """
    notes: list[str] = []
    read: dict[Path, list[Listed]] = {}
    root = path if path.is_dir() else path.parent
    for file in candidates(path):
        try:
            frames, more = _read(file, root, allow_outside=allow_outside)
        except _Unused as error:
            if file == path:
                raise UserError(f"{file}: {error}") from None
            notes.append(f"ignored the list {file.relative_to(root)}: {error}")
            continue
        notes += more
        read[file.relative_to(root)] = frames
    used, more = lists.with_parts(list(read))
    notes += more
    _check_unique({path: read[path] for path in used})
    frames = [
        frame._replace(part=lists.part_of(path))
        for path in used
        for frame in read[path]
    ]
    return Lists(tuple(frames), tuple(map(str, used)), tuple(notes))


def recognises(path: Path) -> bool:
    """Whether the path is a list whose first line names an image. Never raises."""
    listing = lists.peek(path) if lists.is_list(path) else None
    return bool(
        listing and listing.rows and any(map(is_file_name, listing.rows[0].columns))
    )


class _Unused(Exception):
    """A file is not a list of frames of the folder; the message is the reason."""


def candidates(path: Path) -> list[Path]:
    """Find text files at a path whose first lines name files. Never raises."""
    try:
        nearby = [*path.glob("*"), *path.glob("*/*")] if path.is_dir() else [path]
    except OSError:
        return []
    visible = [p for p in nearby if not any(n.startswith(".") for n in p.parts[-2:])]
    return [file for file in sorted(visible) if _may_list_frames(file)]


def _may_list_frames(file: Path) -> bool:
    listing = lists.peek(file) if lists.is_list(file) else None
    if listing is None:
        return False
    return any(any(map(is_file_name, row.columns)) for row in listing.rows[:20])


def _read(
    file: Path, root: Path, *, allow_outside: bool
) -> tuple[list[Listed], list[str]]:
    """Read the frames of a list, and notes. Raises UserError and _Unused."""
    listing = lists.without_index(lists.read(file))
    folder = _folder_of(listing, root, allow_outside)
    kinds = _column_kinds(listing)
    frames, no_depth = [], 0
    for row in listing.rows:
        if len(row.columns) != len(kinds):
            raise UserError(
                f"{listing.where(row)}: {_text(row)} has {len(row.columns)} columns, "
                f"but other lines have {len(kinds)}"
            )
        entry = dict(zip(kinds, row.columns, strict=True))
        if entry.get("depth") == lists.NO_FILE:
            no_depth += 1
            continue
        frames.append(_frame(listing, row, entry, folder))
    notes = (
        [f"left out {no_depth} lines of {file.name} that name no depth"]
        if no_depth
        else []
    )
    if not frames:
        raise _Unused("no line names a depth file")
    return frames, notes


def _folder_of(listing: Listing, root: Path, allow_outside: bool) -> Root:
    """The folder that a list's names are relative to. Raises _Unused."""
    names = [cell for row in listing.rows for cell in row.columns if is_file_name(cell)]
    for start in (root, listing.file.parent):
        folder = lists.root_of(start, names, below=BELOW, allow_outside=allow_outside)
        if folder is not None:
            return folder
    first = lists.printable(names[0]) if names else "nothing"
    raise _Unused(f"none of the files that it names exists, such as {first}")


def _column_kinds(listing: Listing) -> list[str]:
    """The kind of each column: "image", "depth", "filled", "mask" or "focal".

    Raises: UserError for a column of unknown meaning.
    """
    if listing.heading:
        return [_kind_by_heading(listing, word) for word in listing.heading]
    typical = _typical(listing)
    kinds: list[str] = []
    for number, cell in enumerate(typical.columns, 1):
        if is_file_name(cell):
            kinds.append(_kind_of_file(cell, kinds))
        elif lists.is_number(cell) and "focal" not in kinds and number > 1:
            kinds.append("focal")
        else:
            kinds.append("")
        if not kinds[-1] or kinds.count(kinds[-1]) > 1:
            problem = (
                f"column {number} is {lists.printable(cell)!r}: expected image, depth, "
                "filled depth, mask or focal length"
            )
            if lists.part_of(listing.file.name) is None and not _has_pairs(typical):
                raise _Unused(problem)
            raise UserError(
                f"{listing.where(typical)}: {problem}; name the columns in "
                "the first line"
            )
    return kinds


def _has_pairs(row: Row) -> bool:
    return sum(map(is_file_name, row.columns)) > 1


def _kind_by_heading(listing: Listing, heading: str) -> str:
    words = re.findall(r"[a-z]+", heading)
    for kind, known in HEADINGS.items():
        if any(word in known for word in words):
            return kind
    raise UserError(
        f"{listing.file}: column {lists.printable(heading)!r} is unknown; name the "
        "columns image, depth, filled, mask or focal, and remove others"
    )


def _typical(listing: Listing) -> Row:
    """The first row with the most frequent number of columns, and no missing file."""
    complete = [row for row in listing.rows if lists.NO_FILE not in row.columns]
    rows = complete or listing.rows
    widths = [len(row.columns) for row in rows]
    width = max(set(widths), key=widths.count)
    return rows[widths.index(width)]


def _kind_of_file(name: str, before: Sequence[str]) -> str:
    """The kind of an unnamed column, by a file name and the kinds of columns before."""
    words = re.findall(r"[a-z]+", Path(name.replace("\\", "/")).stem.lower())
    if any(word in MASK_WORDS for word in words):
        return "mask"
    if "image" not in before:
        return "image"
    return "filled" if "depth" in before else "depth"


def _frame(listing: Listing, row: Row, entry: dict[str, str], folder: Root) -> Listed:
    """Resolve the files and the focal length of one row.

    Raises: UserError for a missing file, a file that is named twice, or an invalid
      focal length.
    """
    paths: dict[str, Path] = {}
    for kind in ("image", "depth", "filled", "mask"):
        name = entry.get(kind)
        if name is None or (name == lists.NO_FILE and kind != "image"):
            continue
        path = folder.find(name)
        if path is None:
            raise UserError(
                f"{listing.where(row)}: {lists.printable(name)!r} is not a file in "
                f"{folder.folder}"
            )
        paths[kind] = path
    focal = entry.get("focal")
    low, high = FOCAL_LENGTHS
    if focal is not None and not (
        lists.is_number(focal) and low <= float(focal) <= high
    ):
        raise UserError(
            f"{listing.where(row)}: {lists.printable(focal)!r} is not a focal length "
            "in pixels"
        )
    if len(set(paths.values())) < len(paths) or "image" not in paths:
        raise UserError(f"{listing.where(row)}: {_text(row)} names the same file twice")
    name = entry["image"].replace("\\", "/").lstrip("/")
    return Listed(
        name,
        paths["image"],
        paths.get("depth"),
        paths.get("filled"),
        paths.get("mask"),
        float(focal) if focal else None,
    )


def _text(row: Row) -> str:
    return repr(lists.printable(" ".join(row.columns)))


def is_file_name(cell: str) -> bool:
    """Whether a cell of a list ends in the suffix of an image or an array."""
    return cell.lower().endswith(SUFFIXES)


def _check_unique(read: Mapping[Path, list[Listed]]) -> None:
    """Raise UserError for an image that is listed twice."""
    first: dict[Path, Path] = {}
    for file, frames in read.items():
        for frame in frames:
            if frame.image in first:
                other = first[frame.image]
                where = (
                    f"twice in {file}" if other == file else f"in {other} and {file}"
                )
                raise UserError(f"{frame.name} is listed {where}: remove one of them")
            first[frame.image] = file


def is_mask(values: np.ndarray) -> bool:
    """Whether values are a binary mask: 0 and one of 1, 255 and the largest value."""
    if values.dtype == bool:
        return True
    present = np.unique(values)
    largest = np.iinfo(values.dtype).max if values.dtype.kind in "ui" else 1
    return len(present) <= 2 and set(present.tolist()) <= {0, 1, 255, largest}


def is_confidence(file: Path) -> bool:
    """Whether the name of a mask, or of its folder, has the word confidence or conf."""
    words = re.findall(r"[a-z]+", f"{file.parent.name} {file.stem}".lower())
    return "confidence" in words or "conf" in words


def masked(
    depth: np.ndarray, mask: np.ndarray, file: Path, *, levels: bool = False
) -> np.ndarray:
    """Set depth to 0 where a mask is 0, or a confidence map (0, 1, 2) is below 2.

    Args:
      levels: the mask is a confidence map, even if it has no 2.

    Raises: UserError for a mask of another size or with more values.
    """
    if mask.shape != depth.shape:
        raise UserError(
            f"{file} is {mask.shape[0]}x{mask.shape[1]} and its depth "
            f"{depth.shape[0]}x{depth.shape[1]}: they must have the same size"
        )
    if is_mask(mask) and not levels:
        return np.where(mask != 0, depth, 0)
    if set(np.unique(mask).tolist()) <= {0, 1, 2}:
        return np.where(mask == 2, depth, 0)
    raise UserError(
        f"{file} has values up to {mask.max()}: expected a mask (0 and 1, or 0 and "
        "255) or a confidence map (0, 1 and 2)"
    )
