"""A folder of image and depth files, paired by lists or by name; or one list."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdepth.data import units
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import (
    Frame,
    FrameInfo,
    ReadOptions,
    camera_files,
    cameras,
    files,
    layouts,
    listed,
    lists,
    pairing,
    scene_lists,
)
from jaxdepth.data.sources.listed import Listed
from jaxdepth.runtime.errors import UserError


class Folder:
    """Image and depth pairs, matched by lists of files or by file name.

    By list: text files in the folder or its direct sub-folders whose lines name files
    (see `lists` and `listed`): image, depth, and optionally filled depth, a mask or
    confidence map, and a focal length in pixels. If a list names files of this folder,
    only listed frames are read. A list of images alone selects pairs that are matched
    by name. Marigold's lists have the columns image, raw depth and filled depth; if
    their folders and numbers are those of the labeled set, their frames have official
    indices.

    Without lists: in a published layout (see `layouts`), or else by name (see
    `pairing`).

    The name of a list, or else of a folder, with the whole word train, val or test
    assigns its frames to that part of the split; so do lists of folders (see
    `scene_lists`). The scene is the sub-folder of the image.

    The camera is that of a listed focal length, or else of a camera file (see
    `cameras`).

    Depth in metres is the value decoded by `depth_code`, divided by `depth_scale`
    (default 1 for npy and floating-point images; for integer images that of the layout
    or of a camera file, or else 1000). Values that are
    0, negative, NaN or infinite, or removed by a mask, are missing. 8-bit PNG requires
    a `depth_scale`. Distance along the ray and disparity (stored value / `depth_scale`,
    default 1, in pixels) are converted to planar depth, see `units.Geometry`.
    """

    format = "folder"
    OPTIONS = frozenset(
        {
            "depth_scale", "depth_code", "depth_kind", "depth_fx", "baseline", "doffs",
            "allow_outside",
        }
    )  # fmt: skip
    truths: tuple[str, ...] = ("filled",)

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the path is a folder, or a list of image and depth files."""
        return path.is_dir() or listed.recognises(path)

    def __init__(self, path: Path, options: ReadOptions):
        if not self.recognises(path):
            raise UserError(f"{path} is not a folder of images and depth, or a list")
        self.path = path
        self.root = path if path.is_dir() else path.parent
        self.name = files.name_of(path)
        self.depth_scale = options.depth_scale
        self.depth_code = options.depth_code
        self.geometry = options.geometry
        self.notes: list[str] = []
        self._layout: layouts.Found | None = None
        self.frames = self._read(options.allow_outside)
        self.eight_bit = False
        self._has_confidence = False
        self._default_scale = self._layout.scale if self._layout else 1000.0
        self._cameras = cameras.Cameras(
            self.root,
            known=self._layout and self._layout.camera,
            above=self._layout and self._layout.camera_above,
            allow_outside=options.allow_outside,
        )
        self._read_cameras()
        self._official = _official_indices(self.frames)
        self.infos = [
            FrameInfo(name, _scene(frame, name, index), index)
            for frame, name, index in zip(
                self.frames, map(self._name, self.frames), self._official, strict=True
            )
        ]
        self._inspect_sample()

    def frame(self, row: int) -> Frame:
        entry = self.frames[row]
        rgb = files.read_rgb(entry.image)
        size = rgb.shape[0], rgb.shape[1]
        if entry.focal is None:
            camera = self._cameras.of(entry.image, size)
        else:
            camera = camera_files.of_focal(entry.focal, size)
        depths = {}
        for kind, file in self._depth_files(entry).items():
            depths[kind], _, eight_bit = self._depth(file, entry.mask)
            if eight_bit != self.eight_bit:
                bits = {False: "more than 8", True: "8"}
                raise UserError(
                    f"{file} has {bits[eight_bit]} bits a pixel and other depth of "
                    f"{self.path} {bits[self.eight_bit]}: one --depth_scale does not "
                    "apply to both"
                )
            rgb, camera = files.match_size(rgb, depths[kind], entry.image, file, camera)
        unit = self.depth_scale or self._default_scale
        return Frame(
            rgb,
            **depths,
            intrinsics=camera,
            unit=1000.0 if self.scale is None else unit,
        )

    def fingerprint(self) -> dict[str, Any]:
        every = [f for frame in self.frames for f in frame[1:5] if f is not None]
        held = {self._cameras.file_of(frame.image) for frame in self.frames}
        every += sorted(file for file in held if file is not None)
        return {
            "path": str(self.path.resolve()),
            "depth_scale": self.depth_scale or self._default_scale,
            "depth_code": self.depth_code,
            "geometry": dataclasses.asdict(self.geometry),
            "parts": [frame.part for frame in self.frames],
            **files.stamp(every),
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        scenes = [info.scene for info in self.infos]
        everything = {"train": list(range(len(self.frames))), "eval": []}
        if None not in self._official:
            official = splits.by_official_frames(self._official, scenes)
            return {**(official or {}), "all": everything}
        parts = [frame.part for frame in self.frames]
        return splits.from_parts(parts, indices=self._official)

    def _read(self, allow_outside: bool) -> list[Listed]:
        """Read the frames; add notes on how they were paired."""
        found = listed.read_all(self.path, allow_outside=allow_outside)
        self.notes += found.notes
        frames = list(found.frames)
        if found.used:
            self.notes.append(f"pairs read from {', '.join(found.used)}")
        if not frames or any(frame.depth is None for frame in frames):
            named = self._unlisted(allow_outside)
            frames = self._selected(frames, named) if frames else named
        if not found.used:
            frames = self._with_parts(frames)
        self.notes += splits.part_notes([frame.part for frame in frames])
        return frames

    def _unlisted(self, allow_outside: bool) -> list[Listed]:
        """The pairs of a published layout, or else those that are matched by name."""
        paths = files.below(self.root)
        layout = layouts.find(self.root, paths)
        if layout is None:
            named, notes = pairing.pairs(self.root, paths, allow_outside=allow_outside)
            self.notes += notes
        else:
            named = layout.frames
            pairing.check_inside(self.root, named, allow_outside=allow_outside)
            self._layout = layout
            self.notes += layout.notes
            self.notes += pairing.unused(self.root, paths, named)
        if (unread := pairing.unread(self.root, paths)) is not None:
            self.notes.append(unread)
        return named

    def _with_parts(self, frames: list[Listed]) -> list[Listed]:
        """Assign the parts of a split by lists of folders, or by names of folders."""
        split = scene_lists.read(self.root, [frame.image for frame in frames])
        if not split.used:
            self.notes += split.notes
            folders = [str(self._name(frame).rpartition("/")[0]) for frame in frames]
            parts = [lists.part_of(folder) if folder else None for folder in folders]
            return [f._replace(part=p) for f, p in zip(frames, parts, strict=True)]
        self.notes.append(f"split read from {', '.join(split.used)}")
        self.notes += split.notes
        part = {f: split.of(f) for f in {frame.image.parent for frame in frames}}
        parted = [frame._replace(part=part[frame.image.parent]) for frame in frames]
        kept = [frame for frame in parted if frame.part is not None]
        if len(kept) < len(frames):
            self.notes.append(
                f"left out {len(frames) - len(kept)} frames of folders that no list "
                "names"
            )
        return kept

    def _read_cameras(self) -> None:
        """Read the camera files; add notes on them and on the unit that they state."""
        images = [frame.image for frame in self.frames if frame.focal is None]
        self.notes += self._cameras.notes(images)
        if self.depth_scale is not None:
            return
        if (stated := self._cameras.depth_scale(images)) is not None:
            self._default_scale = stated[0]
            self.notes.append(f"depth has {stated[0]:g} units per metre by {stated[1]}")

    def _selected(self, wanted: list[Listed], named: list[Listed]) -> list[Listed]:
        """For listed images without depth, use the pairs that are matched by name."""
        by_image = {frame.image: frame for frame in named}
        selected = []
        for frame in wanted:
            if frame.depth is None and frame.image not in by_image:
                raise UserError(
                    f"{self.path}: no depth file has the name of the listed image "
                    f"{lists.printable(frame.name)}"
                )
            pair = frame if frame.depth is not None else by_image[frame.image]
            selected.append(pair._replace(part=frame.part))
        return selected

    def _name(self, frame: Listed) -> str:
        """Path of the image relative to the folder; as listed if it is outside."""
        return files.name_in(self.root, frame.image) or frame.name

    def _depth_files(self, frame: Listed) -> dict[str, Path]:
        files_of = {"filled": frame.filled, "raw": frame.depth}
        if len(self.truths) == 1:
            files_of = {self.truths[0]: frame.depth or frame.filled}
        return {kind: file for kind, file in files_of.items() if file is not None}

    def _depth(self, file: Path, mask: Path | None) -> tuple[np.ndarray, float, bool]:
        """Read depth in metres, (H, W) float32.

        Returns: the depth; stored units per metre; whether the file has 8 bits.
        """
        values = units.decode(files.read_depth(file), self.depth_code, where=file)
        eight_bit = values.dtype == np.uint8
        pixels = self.geometry.kind == "disparity"
        if eight_bit and self.depth_scale is None and not pixels:
            raise UserError(
                f"{file} is 8-bit depth of unknown unit: give "
                "--depth_scale=UNITS_PER_METRE (25.5 if 255 is 10 m)"
            )
        npy = file.suffix.lower() in (".npy", ".npz") or values.dtype.kind == "f"
        scale = self.depth_scale or (1.0 if npy or pixels else self._default_scale)
        metres = self.geometry.planar(files.to_metres(values, scale))
        if mask is not None:
            levels = self._has_confidence and listed.is_confidence(mask)
            metres = listed.masked(metres, files.read_mask(mask), mask, levels=levels)
        return metres, scale, eight_bit

    def _inspect_sample(self) -> None:
        """Determine masks, bit depth, kinds of ground truth and unit from a sample."""
        self._decode_layout()
        self.frames = _without_masks_as_depth(self.frames)
        self._has_confidence = _have_levels([frame.mask for frame in self.frames])
        with_filled = sum(frame.filled is not None for frame in self.frames)
        if 0 < with_filled < len(self.frames):
            self.notes.append(
                f"filled depth of {with_filled} frames is not used: "
                f"{len(self.frames) - with_filled} frames have none"
            )
        sampled = files.sample(
            lambda frame: [
                self._depth(f, frame.mask) for f in frame[2:4] if f is not None
            ],
            self.frames,
        )
        self.eight_bit = any(eight for both in sampled for *_, eight in both)
        depths = [both[0][0] for both in sampled]
        both = with_filled == len(self.frames)
        self.truths = ("filled", "raw") if both else (files.kind_of(depths),)
        pixels = self.geometry.kind == "disparity"
        self.scale = None if pixels else sampled[0][0][1]
        file = next(iter(self._depth_files(self.frames[0]).values()))
        self.notes += files.check_metres(
            depths,
            where=str(self.path),
            hint="give --depth_scale=UNITS_PER_METRE",
            scale=self.scale,
            name="" if pixels else "/".join(file.parts[-2:]),
        )
        self.notes += files.constant_notes(depths, file)
        self.notes += files.orientation_notes([frame.image for frame in self.frames])
        self.notes += files.size_notes(
            (frame.image, next(iter(self._depth_files(frame).values())))
            for frame in self.frames
        )

    def _decode_layout(self) -> None:
        """Decode SUN RGB-D's depth if a sample shows that its bits are rotated.

        The lowest 3 bits are then 0 for depth up to 8.19 m, and 1 up to 16.4 m. In
        three quarters of plain values, they are larger.
        """
        rotated = self._layout is not None and self._layout.rotated
        if not rotated or self.depth_code != "plain":
            return
        sampled = files.sample(
            files.read_depth, [frame.depth for frame in self.frames if frame.depth]
        )
        stored = [x for x in sampled if x.dtype.kind in "ui" and x.dtype.itemsize > 1]
        low = [float(((x & 7) > 1).mean()) for x in stored]
        if stored and np.mean(low) < 0.1:
            self.depth_code = "sunrgbd"
            self.notes.append(
                "the bits of depth are rotated: --depth_code=sunrgbd used"
            )
        else:
            self.notes.append(
                "depth is read as plain millimetres: its bits are not rotated as in "
                "SUN RGB-D's own files"
            )


def _have_levels(masks: Sequence[Path | None]) -> bool:
    """Whether a sample of confidence maps has the level 2."""
    present = [path for path in masks if path is not None]
    present = [path for path in present if listed.is_confidence(path)]
    if not present:
        return False
    return any((values == 2).any() for values in files.sample(files.read_any, present))


def _without_masks_as_depth(frames: list[Listed]) -> list[Listed]:
    """Use a column of filled depth as a mask if its files hold only two values.

    Raises: UserError if depth itself is such a mask.
    """
    if _are_masks([frame.depth for frame in frames]):
        raise UserError(
            f"{frames[0].depth} and others hold only 0 and one other value: they are "
            "masks, not depth"
        )
    if _are_masks([frame.filled for frame in frames]):
        return [f._replace(filled=None, mask=f.mask or f.filled) for f in frames]
    return frames


def _are_masks(paths: Sequence[Path | None]) -> bool:
    """Whether a sample of the files holds masks, see `is_mask`; False for no files."""
    present = [path for path in paths if path is not None]
    if not present:
        return False
    sampled = files.sample(files.read_any, present)
    # A constant depth map is not a mask.
    varied = any(len(np.unique(values)) == 2 for values in sampled)
    return varied and all(map(listed.is_mask, sampled))


def _official_indices(frames: Sequence[Listed]) -> list[int | None]:
    """Official indices by name: kitchen_0004/rgb_0001.png is frame 1 of kitchen_0004.

    All None unless every frame has filled depth and a number that fits its scene.
    """
    scenes = splits.official()["scenes"]
    indices: list[int | None] = []
    for frame in frames:
        digits = re.search(r"(\d+)$", frame.image.stem)
        index = int(digits[1]) if digits else 0
        fits = 0 < index <= len(scenes) and scenes[index - 1] == frame.image.parent.name
        if frame.filled is None or not fits:
            return [None] * len(frames)
        indices.append(index)
    return indices


def _scene(frame: Listed, name: str, index: int | None) -> str | None:
    """The scene of a frame: its official scene, that of its layout, or its folder.

    DIODE's scans scene_00019/scan_00183 are of one scene.
    """
    if index is not None:
        return frame.image.parent.name
    if frame.scene is not None:
        return frame.scene
    key = pairing.key_of(Path(name))
    folder = key.rsplit("/", 1)[0] if "/" in key else None
    return folder and re.sub(r"(scene_\d+)/scan_\d+$", r"\1", folder)
