"""Splits given by lists of folders, one per line, as in 7-Scenes and ScanNet.

TrainSplit.txt of a scene of 7-Scenes has lines "sequence1" for its folder seq-01, and
scannetv2_train.txt has lines "scene0191_00".
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdepth.data.sources import listed, lists
from jaxdepth.data.sources.lists import Part
from jaxdepth.runtime.errors import UserError, printable


class Split(NamedTuple):
    """The parts of the frames in listed folders.

    Attributes:
      parts: folder -> part, of every listed folder that exists.
      used: the lists, relative to the data's folder; [] if there are none.
      notes: one line each, also for lists that are not used.
    """

    parts: dict[Path, Part]
    used: list[str]
    notes: list[str]

    def of(self, folder: Path) -> Part | None:
        """The part of a folder, by the innermost listed folder that holds it."""
        above = (folder, *folder.parents)
        return next((self.parts[f] for f in above if f in self.parts), None)


def read(root: Path, images: Sequence[Path]) -> Split:
    """Read the lists of folders in a folder and up to two levels below.

    A list has train, val or test as a word in its file name, one name per line, and a
    folder of the images for at least one of them. Names are relative to the list's
    folder, or are the name of one folder.

    Raises: UserError for a folder that is listed in two parts.
    """
    nearest = {image.parent for image in images}
    folders = {f for folder in nearest for f in (folder, *folder.parents) if f != root}
    folders = {folder for folder in folders if folder.is_relative_to(root)}
    by_name: dict[str, list[Path]] = {}
    for folder in sorted(folders):
        by_name.setdefault(folder.name, []).append(folder)
    parts: dict[Path, Part] = {}
    used, notes = [], []
    for file in _candidates(root, folders):
        part = _part_of(file)
        names = [] if part is None else _names(file)
        if part is None or not names:
            continue
        found = [(name, _folder(name, file.parent, folders, by_name)) for name in names]
        present = [folder for _, folder in found if folder is not None]
        if not present:
            notes.append(
                f"list {file.relative_to(root)} is not used: the data has no folder of "
                f"the names in it, such as {printable(names[0], 60)}"
            )
            continue
        for folder in present:
            if parts.setdefault(folder, part) != part:
                raise UserError(
                    f"{file}: {printable(folder.relative_to(root))} is also listed for "
                    f"{parts[folder]}: remove one of the lines"
                )
        used.append(str(file.relative_to(root)))
        if missing := [name for name, folder in found if folder is None]:
            notes.append(
                f"{len(missing)} of {len(found)} folders that {used[-1]} lists do not "
                f"exist or hold no frame, such as {printable(missing[0])}"
            )
    return Split(parts, used, notes)


def _candidates(root: Path, folders: Iterable[Path]) -> list[Path]:
    """The text files in the data's folder and in those above or beside the images."""
    near = {root, *(f for f in folders if len(f.relative_to(root).parts) <= 2)}
    near |= {p for p in root.glob("*") if p.is_dir() and not p.name.startswith(".")}
    return sorted(
        path for folder in near for path in folder.glob("*") if lists.is_list(path)
    )


def _part_of(file: Path) -> Part | None:
    """The part in a file name, whose words may also be joined as in TrainSplit."""
    return lists.part_of(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", file.name))


def _names(file: Path) -> list[str]:
    """The lines of a list; [] unless each is one name, of a folder."""
    listing = lists.peek(file)
    if listing is None or any(len(row.columns) != 1 for row in listing.rows):
        return []
    names = [row.columns[0].replace("\\", "/") for row in lists.read(file).rows]
    return [] if any(map(listed.is_file_name, names)) else names


def _folder(
    name: str, start: Path, folders: set[Path], by_name: dict[str, list[Path]]
) -> Path | None:
    """The folder that a line names; None if there is none, or several."""
    number = re.fullmatch(r"sequence(\d+)", name)  # 7-Scenes
    if number is not None:
        return _one(f"seq-{int(number[1]):02d}", start, folders, by_name)
    return _one(name.strip("/"), start, folders, by_name)


def _one(
    name: str, start: Path, folders: set[Path], by_name: dict[str, list[Path]]
) -> Path | None:
    if start / name in folders:
        return start / name
    same = by_name.get(name.rsplit("/", 1)[-1], [])
    return same[0] if len(same) == 1 and "/" not in name else None
