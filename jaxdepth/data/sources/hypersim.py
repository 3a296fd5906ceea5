"""Hypersim: tone-mapped images, and HDF5 files of the distance along the ray."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import h5py
import numpy as np
from jaxtyping import Float

from jaxdepth.camera import centred
from jaxdepth.data import units
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, files, hdf5, lists
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError

FOCAL, WIDTH = 886.81, 1024  # focal length and width of a frame, pixels
# Where the folder "images" of a scene may be; a deeper search would be slow.
IMAGE_FOLDERS = (
    "", "images/", "ai_*/images/",
    *(f"{name}/ai_*/images/" for name in ("scenes", "train", "val", "test")),
)  # fmt: skip
GEOMETRY = "scene_*_geometry_hdf5"
PREVIEW = "scene_*_final_preview"
DEPTH = ".depth_meters.hdf5"
IMAGES = (".tonemap.jpg", ".tonemap.png")
SPLIT = "metadata_images_split_scene_v1.csv"
COLUMNS = (
    "scene_name", "camera_name", "frame_id", "included_in_public_release",
    "split_partition_name",
)  # fmt: skip


Key: TypeAlias = tuple[str, str, int]  # scene, camera and number of a frame


class Shot(NamedTuple):
    """The files of a frame."""

    image: Path
    depth: Path

    @property
    def key(self) -> Key:
        scene, camera, number = _place(self.image)
        return scene.name, camera, number


class Hypersim:
    """The frames of scene folders such as ai_001_001, or of one of them.

    The depth of ai_001_001/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters
    .hdf5 is the distance along the ray in metres, NaN = missing; it is converted to
    planar depth with a focal length of 886.81 pixels at 1024x768. (The tilted
    projections of a few scenes are not corrected.) Its image is ai_001_001/images/
    scene_cam_00_final_preview/frame.0000.tonemap.jpg.

    metadata_images_split_scene_v1.csv, in the folder, a parent or a sub-folder of it,
    is the split: frames that it excludes, or does not have, are left out. Without it,
    folders named train, val and test are the split.
    """

    format = "hypersim"
    OPTIONS = frozenset({"allow_outside"})
    truths: tuple[str, ...]
    eight_bit = False

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the folder has the images or the geometry of a Hypersim scene."""
        return any(True for _ in _folders(path, (GEOMETRY, PREVIEW)))

    def __init__(self, path: Path, options: ReadOptions):
        self.path, self.name = path, files.name_of(path)
        self.notes: list[str] = []
        self.shots = self._paired(options.allow_outside)
        self._split = _split_file(path)
        self._parts = self._partitions()
        self.infos = [
            FrameInfo(shot.image.relative_to(path).as_posix(), scene=shot.key[0])
            for shot in self.shots
        ]
        depths = files.sample(_read, [shot.depth for shot in self.shots])
        self.truths = (files.kind_of(depths),)
        self.notes += files.check_metres(
            depths, where=str(path), hint="these files hold metres; convert them"
        )

    def frame(self, row: int) -> Frame:
        shot = self.shots[row]
        rgb, depth = files.read_rgb(shot.image), _read(shot.depth)
        height, width = rgb.shape[:2]
        focal = FOCAL * width / WIDTH
        camera = centred(focal, focal, (height, width))
        rgb, camera = files.match_size(rgb, depth, shot.image, shot.depth, camera)
        if self.truths[0] == "filled":
            return Frame(rgb, filled=depth, intrinsics=camera)
        return Frame(rgb, raw=depth, intrinsics=camera)

    def fingerprint(self) -> dict[str, Any]:
        every = [file for shot in self.shots for file in shot]
        every += [self._split] if self._split else []
        return {"path": str(self.path.resolve()), **files.stamp(every)}

    def splits(self) -> dict[str, dict[str, list[int]]]:
        return splits.from_parts(self._parts)

    def _paired(self, allow_outside: bool) -> list[Shot]:
        """The frames that have both files. Raises UserError if there are none."""
        depths = {
            _place(file): file
            for folder in _folders(self.path, (GEOMETRY,))
            for file in folder.glob(f"frame.*{DEPTH}")
        }
        images = {
            _place(file): file
            for folder in _folders(self.path, (PREVIEW,))
            for suffix in reversed(IMAGES)  # the first suffix takes precedence
            for file in folder.glob(f"frame.*{suffix}")
        }
        keys = sorted(depths.keys() & images.keys())
        if not keys:
            raise UserError(_no_pair(self.path, len(images), len(depths)))
        for what, missing, count in (
            ("images", "depth", len(images)), ("depth files", "image", len(depths)),
        ):  # fmt: skip
            if count > len(keys):
                self.notes.append(
                    f"left out {count - len(keys)} {what} without {missing}"
                )
        shots = [Shot(images[key], depths[key]) for key in keys]
        if not allow_outside:
            root = lists.Root(self.path)
            for file in (file for shot in shots for file in shot):
                root.find(str(file.relative_to(self.path)))
        return shots

    def _partitions(self) -> list[lists.Part | None]:
        """The part of the split of each frame; leaves out frames that it excludes."""
        parts: list[lists.Part | None]
        if self._split is None:
            parts = [
                _part_by_folder(s.image.relative_to(self.path)) for s in self.shots
            ]
        else:
            parts = self._included(self._split)
        self.notes += splits.part_notes(parts)
        return parts

    def _included(self, file: Path) -> list[lists.Part | None]:
        """Leave out the frames that the official split does not include."""
        parts, total = _read_split(file), len(self.shots)
        self.shots = [shot for shot in self.shots if shot.key in parts]
        if not self.shots:
            raise UserError(f"{self.path}: {file} includes none of its frames")
        self.notes.append(f"split read from {SPLIT}")
        if left_out := total - len(self.shots):
            self.notes.append(
                f"left out {left_out} frames that {SPLIT} does not include"
            )
        return [parts[shot.key] for shot in self.shots]


def _part_by_folder(image: Path) -> lists.Part | None:
    above = [*image.parents][3:4]  # of the scene's folder
    return lists.part_of(above[0]) if above else None


def _folders(path: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """The camera folders of the scenes at a path. Never raises."""
    for folder in IMAGE_FOLDERS:
        for pattern in patterns:
            try:
                yield from sorted(path.glob(folder + pattern))
            except OSError:
                continue


def _place(file: Path) -> tuple[Path, str, int]:
    """Scene folder, camera and number of a file: .../ai_001_001, cam_00, 0."""
    camera = re.sub(r"^scene_|_(geometry_hdf5|final_preview)$", "", file.parent.name)
    digits = re.match(r"frame\.(\d{1,9})\.", file.name)
    return file.absolute().parents[2], camera, int(digits[1]) if digits else -1


def _no_pair(path: Path, images: int, depths: int) -> str:
    """Which of the downloads is missing."""
    if not depths:
        return (
            f"{path} has {images} images of Hypersim and no depth: download the "
            f"folders {GEOMETRY}, with frame.*{DEPTH}"
        )
    if not images:
        return (
            f"{path} has {depths} depth files of Hypersim and no images: download the "
            f"folders {PREVIEW}, with frame.*{IMAGES[0]}"
        )
    return (
        f"{path} has {images} images and {depths} depth files of Hypersim, but "
        "none show the same frame: download both for the same scenes and cameras"
    )


def _read(file: Path) -> Float[np.ndarray, "h w"]:
    """Read planar depth in metres, 0 = missing. Raises BrokenFrame."""
    try:
        regular.check(file)
        with h5py.File(file, "r") as stored:
            data = hdf5.dataset(stored, "dataset")
            if data is None or data.dtype.kind != "f" or len(data.shape) != 2:
                raise ValueError("it has no dataset (H, W) of floating-point numbers")
            if not 0 < data.shape[0] * data.shape[1] <= files.LARGEST:
                raise ValueError(f"its shape is {data.shape}")
            distance = files.to_metres(data[()])
    except Exception as error:  # damaged bytes make HDF5 raise errors of many types
        raise files.broken(file, "HDF5 of depth", error) from None
    return units.Geometry("ray", FOCAL * distance.shape[1] / WIDTH).planar(distance)


def _split_file(path: Path) -> Path | None:
    """Find the split near the data; None if it is not there."""
    near = [path / SPLIT, *sorted(path.glob(f"*/{SPLIT}"))]
    near += [parent / SPLIT for parent in path.absolute().parents[:2]]
    return next((file for file in near if files.is_file(file)), None)


def _read_split(file: Path) -> dict[Key, lists.Part]:
    """The part of each included frame: "train", "val" or "test".

    Raises: UserError, with the line, for a file of another format.
    """
    listing = lists.read(file)
    heading, rows = listing.heading, listing.rows
    if not heading and rows:  # no column has paths, which headings are known by
        heading, rows = rows[0].columns, rows[1:]
    names = [name.lower() for name in heading]
    if any(name not in names for name in COLUMNS):
        raise UserError(f"{file}: expected the columns {', '.join(COLUMNS)}")
    columns = [names.index(name) for name in COLUMNS]
    parts: dict[Key, lists.Part] = {}
    for row in rows:
        if len(row.columns) != len(names):
            raise UserError(f"{listing.where(row)}: expected {len(names)} columns")
        scene, camera, number, included, part = (row.columns[k] for k in columns)
        if included.lower() != "true":
            continue
        known = lists.PART_WORDS.get(part)
        if not re.fullmatch(r"\d{1,9}", number) or known is None:
            raise UserError(
                f"{listing.where(row)}: expected a number and train, val or test, not "
                f"{lists.printable(number)!r} and {lists.printable(part)!r}"
            )
        parts[scene, camera, int(number)] = known
    return parts
