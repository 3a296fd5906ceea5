"""One sequence of TUM RGB-D: lists of timestamps and files; depth as 16-bit PNG."""

import bisect
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdepth.data import units
from jaxdepth.data.sources import (
    Frame,
    FrameInfo,
    ReadOptions,
    camera_files,
    cameras,
    files,
    lists,
)
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError

SCALE = 5000.0  # stored units per metre
MAX_GAP = 0.02  # seconds between an image and its depth (associate.py's default)
ASSOCIATIONS = "associations.txt"
SIZE = (480, 640)
# fx, fy, cx, cy of the colour cameras at that size, by freiburg number. Source: the
# benchmark's page on file formats.
CAMERAS = {
    "1": (517.306408, 516.469215, 318.643040, 255.313989),
    "2": (520.908620, 521.007327, 325.141442, 249.701764),
    "3": (535.4, 539.2, 320.1, 247.6),
}


class Match(NamedTuple):
    """The listed names of an image and of the depth map recorded with it."""

    image: str
    depth: str


class Tum:
    """The frames of a sequence, in temporal order; depth is raw, 0 = missing.

    Image and depth are matched by associations.txt if it exists, else by `associate`
    from rgb.txt and depth.txt. Lines of associations.txt are "time image time depth",
    or "time depth time image" if the file names show it. One match in `every` is kept.

    Depth in metres is the stored value / `depth_scale` (default 5000), registered to
    the image. The camera is that of a camera file (see `cameras`), or else that of the
    freiburg number in the folder's name or in a comment of the lists.
    """

    format = "tum"
    OPTIONS = frozenset({"every", "depth_scale", "depth_code", "allow_outside"})
    truths: tuple[str, ...] = ("raw",)
    eight_bit = False

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the folder has associations.txt, or rgb.txt and depth.txt."""
        if _is_list(path / ASSOCIATIONS, 4):
            return True
        return all(_is_list(path / name, 2) for name in ("rgb.txt", "depth.txt"))

    def __init__(self, path: Path, options: ReadOptions):
        if options.every < 1:
            raise UserError(f"--every={options.every}: must be at least 1")
        self.path = path
        self._root = lists.Root(path, allow_outside=options.allow_outside)
        self.name = files.name_of(path)
        self.scale = self.depth_scale = options.depth_scale or SCALE
        self.depth_code = options.depth_code
        self.notes: list[str] = []
        self.matches = self._matches()[:: options.every]
        self.infos = [FrameInfo(match.image, self.name) for match in self.matches]
        images = [self._root.path(match.image) for match in self.matches]
        known = CAMERAS.get(_freiburg(path))
        self._cameras = cameras.Cameras(
            path,
            known=known and camera_files.Stated(known, SIZE),
            allow_outside=options.allow_outside,
        )
        self.notes += self._cameras.notes(images)
        depths = files.sample(self._depth, self.matches)
        self.notes += files.constant_notes(depths, self.matches[0].depth)
        self.notes += files.check_metres(
            depths,
            where=str(path),
            hint="give --depth_scale=UNITS_PER_METRE",
            scale=self.scale,
            name=self.matches[0].depth,
        )
        self.notes += files.orientation_notes(images)
        self.notes += files.size_notes(
            (self._root.path(m.image), self._root.path(m.depth)) for m in self.matches
        )

    def frame(self, row: int) -> Frame:
        match = self.matches[row]
        image = self._root.path(match.image)
        rgb, depth = files.read_rgb(image), self._depth(match)
        camera = self._cameras.of(image, (rgb.shape[0], rgb.shape[1]))
        depth_file = self._root.path(match.depth)
        rgb, camera = files.match_size(rgb, depth, image, depth_file, camera)
        return Frame(rgb, raw=depth, intrinsics=camera, unit=self.depth_scale)

    def fingerprint(self) -> dict[str, Any]:
        named = [self._root.path(name) for match in self.matches for name in match]
        images = (self._root.path(match.image) for match in self.matches)
        held = {self._cameras.file_of(image) for image in images}
        named += sorted(file for file in held if file is not None)
        return {
            "path": str(self.path.resolve()),
            "depth_scale": self.depth_scale,
            "depth_code": self.depth_code,
            **files.stamp(named),
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        return {"all": {"train": list(range(len(self.matches))), "eval": []}}

    def _matches(self) -> list[Match]:
        """Match images and depth, in temporal order. Raises UserError if none match.

        Adds a note on how they were matched.
        """
        associations = self.path / ASSOCIATIONS
        if files.is_file(associations):
            self.notes.append(f"{ASSOCIATIONS} gives the pairs of image and depth")
            rows = _rows(associations, 4)
            if all("depth" in row[1] and "depth" not in row[3] for row in rows):
                # As in ICL-NUIM.
                self.notes.append(f"{ASSOCIATIONS} names depth before the image")
                return [Match(rgb, depth) for _, depth, _, rgb in rows]
            return [Match(rgb, depth) for _, rgb, _, depth in rows]
        rgb, depth = (_rows(self.path / name, 2) for name in ("rgb.txt", "depth.txt"))
        pairs = associate([time for time, _ in rgb], [time for time, _ in depth])
        if not pairs:
            raise UserError(
                f"{self.path}: no image of rgb.txt is within {MAX_GAP} s of a depth "
                "map of depth.txt"
            )
        alone = len(rgb) - len(pairs)
        if alone:
            self.notes.append(
                f"left out {alone} of {len(rgb)} images: no depth within {MAX_GAP} s"
            )
        return [Match(rgb[i][1], depth[j][1]) for i, j in pairs]

    def _depth(self, match: Match) -> Any:
        file = self._root.path(match.depth)
        values = units.decode(files.read_depth(file), self.depth_code, where=file)
        if values.dtype.itemsize == 1:
            raise UserError(f"{file} has 8-bit depth: format tum expects 16 bits")
        return files.to_metres(values, self.depth_scale)


def associate(
    first: Sequence[float], second: Sequence[float], max_gap: float = MAX_GAP
) -> list[tuple[int, int]]:
    """Match timestamps of two lists; returns pairs of indices in temporal order.

    Pairs less than `max_gap` seconds apart are taken greedily, the closest first; each
    timestamp is used at most once.

    Source: associate.py of the TUM RGB-D tools.
    """
    order = sorted(range(len(second)), key=second.__getitem__)
    times = [second[j] for j in order]
    near = []
    for i, time in enumerate(first):
        begin = bisect.bisect_left(times, time - max_gap)
        end = bisect.bisect_right(times, time + max_gap)
        for j in order[begin:end]:
            gap = abs(time - second[j])
            if gap < max_gap:
                near.append((gap, time, second[j], i, j))
    taken: list[tuple[int, int]] = []
    seen_first: set[int] = set()
    seen_second: set[int] = set()
    for *_, i, j in sorted(near):
        if i not in seen_first and j not in seen_second:
            seen_first.add(i)
            seen_second.add(j)
            taken.append((i, j))
    return sorted(taken, key=lambda pair: (first[pair[0]], second[pair[1]]))


def _is_list(file: Path, columns: int) -> bool:
    listing = lists.peek(file)
    if listing is None or not listing.rows:
        return False
    return _times(listing.rows[0].columns, columns) is not None


def _times(names: Sequence[str], columns: int) -> list[float] | None:
    """The timestamps of a line "time file ..."; None for any other line."""
    if len(names) != columns:
        return None
    try:
        times = [float(text) for text in names[::2]]
    except ValueError:
        return None
    return times if all(map(math.isfinite, times)) else None


def _rows(file: Path, columns: int) -> list[Any]:
    """Read a list as rows [time, file, ...]. Raises UserError for an invalid line."""
    rows = []
    listing = lists.read(file)
    for row in listing.rows:
        names = row.columns
        times = _times(names, columns)
        if times is None:
            expected = " ".join(["time file"] * (columns // 2))
            raise UserError(
                f'{listing.where(row)}: expected "{expected}", not '
                f"{lists.printable(' '.join(names))!r}"
            )
        rows.append([x for pair in zip(times, names[1::2], strict=True) for x in pair])
    if not rows:
        raise UserError(f"{file} names no files")
    return rows


def _freiburg(path: Path) -> str:
    """The freiburg number of the camera; "" if unknown."""
    comments = []
    for name in ("rgb.txt", "depth.txt"):
        try:
            regular.check(path / name)
            head = (path / name).read_text(errors="replace")[:1000]
        except OSError:
            continue
        comments += [line for line in head.splitlines() if line.startswith("#")]
    for text in (path.absolute().name, *comments):
        if match := re.search(r"freiburg(\d)|(?<![a-z])fr(\d)(?!\d)", text):
            return match[1] or match[2]
    return ""
