"""Raw dumps of NYU Depth V2: one folder of recorded files per scene."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8, UInt16

from jaxdepth.data.nyu import fill, splits, toolbox
from jaxdepth.data.sources import BrokenFrame, Frame, FrameInfo, ReadOptions, files
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError

FILLS: dict[str, Callable[..., Float64[np.ndarray, "h w"]]] = {
    "colorization": fill.fill_depth_colorization,
    "cross_bf": fill.fill_depth_cross_bf,
}
# File names by their first letter: depth, RGB, accelerometer.
NAMES = {
    kind: re.compile(rf"{kind}-\d+(\.\d+)?-.*\.{suffix}")
    for kind, suffix in (("d", "pgm"), ("r", "ppm"), ("a", "dump"))
}
LEVELS = 2  # of folders between the path and the scenes: each zip may add one


class _Files(NamedTuple):
    folder: str
    depth: str
    rgb: str


class NyuRaw:
    """Raw depth and RGB, synchronised and projected like the NYU toolbox.

    A folder with d-SECONDS-TICKS.pgm files is a scene. `rgb` is the undistorted image;
    `raw` is depth projected into it, rounded to millimetres like the toolbox's PNG
    files; `filled`, with `fill`, is `raw` with its holes filled.

    Frames are matched; then doubles are left out, then frames with a gap above
    `max_gap`; of the remaining frames of each scene, one in `every` is kept.
    """

    format = "nyu_raw"
    OPTIONS = frozenset({"every", "doubles", "max_gap", "variant", "fill"})
    eight_bit = False
    truths: tuple[str, ...]

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the folder, or one at most two levels below, has raw depth."""
        return next(_scene_folders(path), None) is not None

    def __init__(self, path: Path, options: ReadOptions):
        self.options = options
        if self.options.every < 1:
            raise UserError(f"--every={self.options.every}: must be at least 1")
        self.path = path
        self.name = files.name_of(path)
        self.truths = ("raw",) if self.options.fill == "none" else ("filled", "raw")
        self.notes: list[str] = []
        self._frames = self._frame_files()
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
        options = dataclasses.asdict(self.options)
        return {
            "path": str(self.path.resolve()),
            "toolbox": toolbox.VERSION,
            **{name: options[name] for name in sorted(self.OPTIONS)},
            **files.stamp(
                Path(frame.folder, name)
                for frame in self._frames
                for name in (frame.depth, frame.rgb)
            ),
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """Splits by scene: "all"; "official", "tune" and "report" for labeled scenes.

        A raw folder is named after its scene, plus a letter if the scene was recorded
        in pieces. Scenes without labeled frames are for training only.
        """
        return self._splits

    def _frame_files(self) -> list[_Files]:
        """The files of every frame. Adds a note for each reason to leave frames out."""
        frames: list[_Files] = []
        doubles = apart = total = 0
        # Absolute, because scenes are named after folders and "." has no name.
        for folder in _scene_folders(Path(os.path.abspath(self.path))):
            matches = self._matched(folder)
            total += len(matches)
            if self.options.doubles == "drop":
                matches, left_out = toolbox.drop_duplicates(matches)
                doubles += left_out
            limit = self.options.max_gap
            near = [match for match in matches if limit is None or match.gap <= limit]
            apart += len(matches) - len(near)
            frames += [
                _Files(str(folder), match.depth, match.rgb)
                for match in near[:: self.options.every]
            ]
        if doubles:
            self.notes.append(
                f"left out {doubles} of {total} frames: their image is matched by "
                "more than one depth map (--doubles=keep keeps them)"
            )
        if apart:
            self.notes.append(
                f"left out {apart} of {total} frames: image and depth are more than "
                f"{self.options.max_gap:g} s apart (--max_gap)"
            )
        if not frames:
            why = f" ({'; '.join(self.notes)})" if self.notes else ""
            raise UserError(
                f"{self.path} holds no raw frame: expected d-SECONDS-TICKS.pgm and "
                f"r-SECONDS-TICKS.ppm in a folder per scene{why}"
            )
        return frames

    def _matched(self, folder: Path) -> list[toolbox.Match]:
        names = sorted(entry.name for entry in os.scandir(folder))
        depth, rgb, accel = (
            [name for name in names if NAMES[kind].fullmatch(name)] for kind in "dra"
        )
        if not rgb:
            self.notes.append(f"left out {folder.name}: it holds no image")
            return []
        return toolbox.synchronise(depth, rgb, accel)

    def _split(self) -> dict[str, dict[str, list[int]]]:
        scenes = [info.scene or "" for info in self.infos]
        part = [splits.parts().get(splits.scene_of_folder(scene)) for scene in scenes]
        by_name = {"all": {"train": list(range(len(part))), "eval": []}}
        if not any(part):
            return by_name
        parts = dict(zip(scenes, part, strict=True))
        self._note(
            [scene for scene in parts if parts[scene] is None],
            "of scenes without labeled frames are used for training only",
        )
        for name, evaluates in (("official", "test"), ("tune",) * 2, ("report",) * 2):
            held_out = {"test"} if name == "official" else {"test", "tune", "report"}
            by_name[name] = {
                "train": [row for row, p in enumerate(part) if p not in held_out],
                "eval": [row for row, p in enumerate(part) if p == evaluates],
            }
        return by_name

    def _note(self, scenes: list[str], what: str) -> None:
        if scenes:
            folders = "1 folder" if len(scenes) == 1 else f"{len(scenes)} folders"
            self.notes.append(f"{folders} {what}; first {min(scenes)}")


def read_depth(path: Path) -> UInt16[np.ndarray, "480 640"]:
    """Read raw disparities, 0 to 2047. Raises BrokenFrame.

    The files are little-endian, contrary to the PGM standard.
    """
    payload = _payload(path, b"P5 640 480 65535\n", 2)
    disparity = np.frombuffer(payload, "<u2").reshape(toolbox.SIZE)
    if disparity.max() > toolbox.NO_READING:
        raise BrokenFrame(
            f"{path} holds {disparity.max()}, above 11 bits: it is damaged, or its "
            "bytes are swapped"
        )
    return disparity


def read_rgb(path: Path) -> UInt8[np.ndarray, "480 640 3"]:
    """Read a 480x640 PPM of 8 bits. Raises BrokenFrame."""
    payload = _payload(path, b"P6 640 480 255\n", 3)
    return np.frombuffer(payload, np.uint8).reshape(*toolbox.SIZE, 3)


def _payload(path: Path, header: bytes, pixel: int) -> bytes:
    """Read the data after the header: `pixel` bytes for each of 480x640 pixels."""
    try:
        regular.check(path)
        content = path.read_bytes()
    except OSError as error:
        raise files.broken(path, "a raw frame", error.strerror or error) from None
    if not content:
        raise BrokenFrame(f"{path} is empty")
    if not content.startswith(header):
        line = header.decode().strip()
        raise BrokenFrame(f"{path} does not begin with {line}: not a raw frame")
    size = len(header) + pixel * toolbox.SIZE[0] * toolbox.SIZE[1]
    if len(content) != size:
        problem = "truncated" if len(content) < size else "too long"
        raise BrokenFrame(f"{path} is {problem}: {len(content)} bytes, not {size}")
    return content[len(header) :]


def _scene_folders(path: Path, levels: int = LEVELS) -> Iterator[Path]:
    """Find folders with raw depth: `path` or folders below it, sorted by name."""
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
    except OSError:  # not a folder, or not readable
        return
    if raw:
        yield path
        return
    for name in sorted(folders):
        yield from _scene_folders(path / name, levels - 1)
