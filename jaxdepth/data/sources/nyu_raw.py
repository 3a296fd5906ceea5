"""A raw dump of NYU Depth V2: one folder per scene, as the recorder wrote it."""

import dataclasses
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8, UInt16

from jaxdepth.data.nyu import fill, splits, toolbox
from jaxdepth.data.sources import BrokenFrame, Frame, FrameInfo, ReadOptions, files
from jaxdepth.runtime.errors import UserError

TAKES = frozenset({"every", "doubles", "max_gap", "variant", "fill"})
FILLS: dict[str, Callable[..., Float64[np.ndarray, "h w"]]] = {
    "colorization": fill.fill_depth_colorization,
    "cross_bf": fill.fill_depth_cross_bf,
}
# By the first letter of a file's name: depth, RGB, accelerometer. INDEX.txt is none.
NAMES = {
    kind: re.compile(rf"{kind}-\d+(\.\d+)?-.*\.{suffix}")
    for kind, suffix in (("d", "pgm"), ("r", "ppm"), ("a", "dump"))
}
LEVELS = 2  # folders between the path and a scene's, as where each zip has its own


def recognises(path: Path) -> bool:
    """A folder with raw depth in it, or in the folders below."""
    return next(_scene_folders(path), None) is not None


def source_of(path: Path, options: ReadOptions) -> "NyuRaw":
    return NyuRaw(path, options)


class _Files(NamedTuple):
    folder: str
    depth: str
    rgb: str


class NyuRaw:
    """Raw depth and RGB, matched in time and projected as the NYU toolbox does.

    A folder that holds d-SECONDS-TICKS.pgm is a scene of that name. `rgb` is the
    undistorted image and `raw` the depth that it has, in whole millimetres as the
    toolbox's PNG; with `fill`, `filled` is that without its holes.

    In this order: frames are matched, doubles left out, then what lies `max_gap`
    apart, and of the rest of each scene one in `every` is kept.
    """

    format = "nyu_raw"
    eight_bit = False
    truths: tuple[str, ...]

    def __init__(self, path: Path, options: ReadOptions | None = None):
        self.options = options or ReadOptions()
        if self.options.every < 1:
            raise UserError(f"--every={self.options.every}: must be at least 1")
        self.path = path
        self.name = files.name_of(path)
        self.truths = ("raw",) if self.options.fill == "none" else ("filled", "raw")
        self.notes: list[str] = []
        self._frames = self._find()
        self.infos = [
            FrameInfo(f"{scene}/{Path(frame.depth).stem}", scene)
            for frame in self._frames
            for scene in [os.path.basename(frame.folder)]
        ]
        self._splits = self._split()

    def frame(self, row: int) -> Frame:
        folder, depth_name, rgb_name = self._frames[row]
        disparity = read_depth(Path(folder, depth_name))
        rgb = read_rgb(Path(folder, rgb_name))
        depth, rgb = toolbox.project_depth_map(
            disparity, rgb, variant=self.options.variant
        )
        filled = None
        if self.options.fill != "none":
            filled = FILLS[self.options.fill](rgb, depth).astype(np.float32)
        millimetres = toolbox.millimetres(depth).astype(np.float32)
        return Frame(
            rgb,
            filled=filled,
            raw=millimetres / np.float32(1000),
            intrinsics=toolbox.RGB_CAMERA.intrinsics,
        )

    def fingerprint(self) -> dict[str, Any]:
        taken = dataclasses.asdict(self.options)
        return {
            "path": str(self.path.resolve()),
            "toolbox": toolbox.VERSION,
            **{name: taken[name] for name in sorted(TAKES)},
            **files.stamp(
                Path(frame.folder, name)
                for frame in self._frames
                for name in (frame.depth, frame.rgb)
            ),
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """By scene: "official", "tune" and "report" where any is official; "all".

        A raw folder bears its scene's name and, where a scene was recorded in pieces,
        a letter. No piece of a test scene trains, whatever lists of raw folders say;
        scenes that were never labeled train and evaluate nothing.
        """
        return self._splits

    def _find(self) -> list[_Files]:
        """The files of every frame, and notes on what is left out."""
        found: list[_Files] = []
        doubles = apart = total = 0
        # "." has no name to call a scene by.
        for folder in _scene_folders(Path(os.path.abspath(self.path))):
            matches = self._matched(folder)
            total += len(matches)
            if self.options.doubles == "drop":
                matches, left_out = toolbox.without_doubles(matches)
                doubles += left_out
            limit = self.options.max_gap
            near = [match for match in matches if limit is None or match.gap <= limit]
            apart += len(matches) - len(near)
            found += [
                _Files(str(folder), match.depth, match.rgb)
                for match in near[:: self.options.every]
            ]
        if doubles:
            self.notes.append(
                f"{doubles} of {total} frames left out, as their image is matched by "
                "more than one depth map (--doubles=keep keeps them)"
            )
        if apart:
            self.notes.append(
                f"{apart} of {total} frames left out, as image and depth are more than "
                f"{self.options.max_gap:g} s apart (--max_gap)"
            )
        if not found:
            why = f" ({'; '.join(self.notes)})" if self.notes else ""
            raise UserError(
                f"{self.path} holds no raw frame, d-SECONDS-TICKS.pgm with "
                f"r-SECONDS-TICKS.ppm in a scene's folder{why}"
            )
        return found

    def _matched(self, folder: Path) -> list[toolbox.Match]:
        names = sorted(entry.name for entry in os.scandir(folder))
        depth, rgb, accel = (
            [name for name in names if NAMES[kind].fullmatch(name)] for kind in "dra"
        )
        if not rgb:
            self.notes.append(f"{folder.name} left out, as it holds no image")
            return []
        return toolbox.synchronise(depth, rgb, accel)

    def _split(self) -> dict[str, dict[str, list[int]]]:
        scenes = [info.scene or "" for info in self.infos]
        part = [splits.parts().get(splits.scene_of_folder(scene)) for scene in scenes]
        found = {"all": {"train": list(range(len(part))), "eval": []}}
        if not any(part):
            return found
        parts = dict(zip(scenes, part, strict=True))
        self._note(
            [scene for scene in parts if parts[scene] == "test"],
            "of official test scenes: they never train, but with --split=all",
        )
        self._note(
            [scene for scene in parts if parts[scene] is None],
            "of no labeled scene: they train, and nothing is evaluated on them",
        )
        for name, evaluates in (("official", "test"), ("tune",) * 2, ("report",) * 2):
            held_out = {"test"} if name == "official" else {"test", "tune", "report"}
            found[name] = {
                "train": [row for row, p in enumerate(part) if p not in held_out],
                "eval": [row for row, p in enumerate(part) if p == evaluates],
            }
        return found

    def _note(self, scenes: list[str], what: str) -> None:
        if scenes:
            folders = "1 folder" if len(scenes) == 1 else f"{len(scenes)} folders"
            self.notes.append(f"{folders} {what}; first {min(scenes)}")


def read_depth(path: Path) -> UInt16[np.ndarray, "480 640"]:
    """Disparities, 0 to 2047. BrokenFrame for anything else.

    The recorder wrote them little-endian, against the standard of PGM.
    """
    payload = _payload(path, b"P5 640 480 65535\n", 2)
    disparity = np.frombuffer(payload, "<u2").reshape(toolbox.SIZE)
    if disparity.max() > toolbox.NO_READING:
        raise BrokenFrame(
            f"{path} holds {disparity.max()}, which is no disparity of 11 bits: it is "
            "damaged, or its bytes are swapped"
        )
    return disparity


def read_rgb(path: Path) -> UInt8[np.ndarray, "480 640 3"]:
    """Colours. BrokenFrame for anything but a 480x640 PPM of 8 bits."""
    payload = _payload(path, b"P6 640 480 255\n", 3)
    return np.frombuffer(payload, np.uint8).reshape(*toolbox.SIZE, 3)


def read_accel(path: Path) -> Float64[np.ndarray, "4"]:
    """x, y, z in counts (819 are 1 g) and tilt in half degrees (-128: moving).

    BrokenFrame for a file that isn't libfreenect's 12-byte record.
    """
    record = struct.Struct("<hhhbxi")  # the last is the motor's status
    content = _bytes(path)
    if len(content) != record.size:
        raise BrokenFrame(f"{path} has {len(content)} bytes, not {record.size}")
    return np.array(record.unpack(content)[:4], np.float64)


def _payload(path: Path, header: bytes, pixel: int) -> bytes:
    """What follows the header: `pixel` bytes for each of 480x640."""
    content = _bytes(path)
    if not content:
        raise BrokenFrame(f"{path} is empty")
    if not content.startswith(header):
        line = header.decode().strip()
        raise BrokenFrame(f"{path} does not begin with {line}: no raw frame")
    size = len(header) + pixel * toolbox.SIZE[0] * toolbox.SIZE[1]
    if len(content) != size:
        how = "cut short" if len(content) < size else "too long"
        raise BrokenFrame(f"{path} is {how}: {len(content)} bytes of {size}")
    return content[len(header) :]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise files.broken(path, "a raw frame", error.strerror or error) from None


def _scene_folders(path: Path, levels: int = LEVELS) -> Iterator[Path]:
    """Folders with raw depth, `path` or below it, in the order of their names."""
    folders: list[str] = []
    raw = False
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if NAMES["d"].fullmatch(entry.name):
                    raw = True
                    break
                if levels and entry.is_dir():
                    folders.append(entry.name)
    except OSError:  # no folder, or one that may not be read
        return
    if raw:
        yield path
        return
    for name in sorted(folders):
        yield from _scene_folders(path / name, levels - 1)
