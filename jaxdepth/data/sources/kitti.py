"""KITTI's annotated depth and raw images, in the folders of its downloads."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jaxdepth.camera import Camera
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import (
    Frame,
    FrameInfo,
    ReadOptions,
    files,
    listed,
    lists,
)
from jaxdepth.runtime.errors import UserError

SCALE = 256.0  # stored units per metre
CAMERAS = ("image_02", "image_03")  # left and right colour
DEEPEST = 4  # folders between the data's folder and a drive
CALIBRATION = "calib_cam_to_cam.txt"  # beside the drives of a date
Key: TypeAlias = tuple[str, str, str]  # drive, camera and stem of a frame


class Pair(NamedTuple):
    """The files of a frame."""

    image: Path
    depth: Path
    key: Key


class Kitti:
    """The frames of drives that have both image and depth.

    The depth of DRIVE/image_02/data/N.png (or .jpg) is DRIVE/proj_depth/groundtruth/
    image_02/N.png. The folders of a drive may be in several places, such as
    raw/2011_09_26/ and data_depth_annotated/train/. Depth is 16-bit and sparse: metres
    = stored value / `depth_scale` (default 256), 0 = missing. Folders named train and
    val above a drive's depth are the split. The scene is the drive. Folders with lists
    are read by them, see `bts` and `folder`.
    """

    format = "kitti"
    OPTIONS = frozenset({"depth_scale", "allow_outside"})
    truths: tuple[str, ...] = ("raw",)
    eight_bit = False

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the folder has KITTI's annotated depth, and no lists."""
        drives = (_depth_folder(d, c) for d in _drives(path) for c in CAMERAS)
        return any(map(os.path.isdir, drives)) and not listed.candidates(path)

    def __init__(self, path: Path, options: ReadOptions):
        self.path, self.name = path, files.name_of(path)
        self.scale = options.depth_scale or SCALE
        self.notes: list[str] = []
        self.pairs = self._paired(options.allow_outside)
        self._parts = [self._part(pair) for pair in self.pairs]
        self.notes += splits.part_notes(self._parts)
        self.infos = [
            FrameInfo(pair.image.relative_to(path).as_posix(), scene=pair.key[0])
            for pair in self.pairs
        ]
        self.notes += files.check_metres(
            files.sample(lambda pair: self._depth(pair.depth), self.pairs),
            where=str(path),
            hint="give --depth_scale=UNITS_PER_METRE",
            scale=None if self.scale == SCALE else self.scale,
        )

    def frame(self, row: int) -> Frame:
        pair = self.pairs[row]
        rgb, depth = files.read_rgb(pair.image), self._depth(pair.depth)
        camera = _camera(pair)
        rgb, camera = files.match_size(rgb, depth, pair.image, pair.depth, camera)
        return Frame(rgb, raw=depth, intrinsics=camera, unit=self.scale)

    def fingerprint(self) -> dict[str, Any]:
        every = [file for pair in self.pairs for file in pair[:2]]
        return {
            "path": str(self.path.resolve()),
            "depth_scale": self.scale,
            **files.stamp([*every, *sorted(set(map(_calibration, self.pairs)))]),
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        return splits.from_parts(self._parts)

    def _part(self, pair: Pair) -> lists.Part | None:
        """The part of the split that a folder above the drive names."""
        above = [*pair.depth.relative_to(self.path).parents][4:5]
        return lists.part_of(above[0]) if above else None

    def _paired(self, allow_outside: bool) -> list[Pair]:
        """The frames that have both files. Raises UserError if there are none."""
        images: dict[Key, Path] = {}
        depths: dict[Key, Path] = {}
        for drive in _drives(self.path):
            for camera in CAMERAS:
                place = drive.absolute().name, camera
                for suffix in ("png", "jpg"):
                    self._add(images, drive / camera / f"data/*.{suffix}", place)
                self._add(depths, _depth_folder(drive, camera) / "*.png", place)
        keys = sorted(images.keys() & depths.keys())
        if not keys:
            raise UserError(
                f"{self.path} holds no pair of KITTI's image and depth ({len(images)} "
                f"images DRIVE/image_02/data/N.png, {len(depths)} depth files DRIVE/"
                "proj_depth/groundtruth/image_02/N.png)"
            )
        for what, count in (("images", len(images)), ("depth files", len(depths))):
            if alone := count - len(keys):
                self.notes.append(f"left out {alone} {what} without a partner")
        pairs = [Pair(images[key], depths[key], key) for key in keys]
        if not allow_outside:
            root = lists.Root(self.path)
            for file in (file for pair in pairs for file in pair[:2]):
                root.find(str(file.relative_to(self.path)))
        return pairs

    def _add(
        self, known: dict[Key, Path], pattern: Path, place: tuple[str, str]
    ) -> None:
        """Add the files of a folder. Raises UserError for a frame that occurs twice."""
        for file in sorted(pattern.parent.glob(pattern.name)):
            if (key := (*place, file.stem)) in known:
                raise UserError(
                    f"{self.path}: {known[key].relative_to(self.path)} and "
                    f"{file.relative_to(self.path)} are the same frame: keep one of "
                    "them"
                )
            known[key] = file

    def _depth(self, file: Path) -> Any:
        values = files.read_depth(file)
        if values.dtype.itemsize == 1:
            raise UserError(f"{file} is 8-bit depth: KITTI has 16-bit PNG")
        return files.to_metres(values, self.scale)


def _drives(path: Path) -> Iterator[Path]:
    """The folders of drives at a path, sorted. Never raises."""
    visited: set[tuple[int, int]] = set()  # links can make a loop
    for folder, subfolders, _ in os.walk(path, followlinks=True):
        at = Path(folder)
        with contextlib.suppress(OSError):
            status = os.stat(folder)
            inode = status.st_dev, status.st_ino
            known = inode in visited or len(at.relative_to(path).parts) > DEEPEST
            visited.add(inode)
            if known:
                subfolders.clear()
        if not {"proj_depth", *CAMERAS}.isdisjoint(subfolders):
            yield at
            subfolders.clear()
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")


def _depth_folder(drive: Path, camera: str) -> Path:
    return drive / "proj_depth" / "groundtruth" / camera


def _calibration(pair: Pair) -> Path:
    return pair.image.absolute().parents[3] / CALIBRATION


def _camera(pair: Pair) -> Camera | None:
    """fx, fy, cx, cy of a drive's rectified camera; None without its calibration."""
    listing = lists.peek(_calibration(pair))
    name = f"P_rect_{pair.key[1][-2:]}:"
    for row in listing.rows if listing else ():
        if row.columns[0] == name and all(map(lists.is_number, row.columns[1:])):
            values = [float(x) for x in row.columns[1:]]
            finite = all(map(math.isfinite, values))
            if len(values) == 12 and finite and min(values[0], values[5]) > 0:
                return Camera(values[0], values[5], values[2], values[6])
    return None
