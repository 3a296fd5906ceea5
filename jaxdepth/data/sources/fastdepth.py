"""HDF5 of FastDepth and sparse-to-dense: one {train,val}/SCENE/N.h5 per frame."""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, files, hdf5, labeled
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError

PARTS = ("train", "val")
# Files of every training scene that FastDepth's loader holds out (dataloaders/nyu.py).
HOLD_OUT = ("00001.h5", "00201.h5")
OFFICIAL = "official"  # the folder of the labeled set's frames


class FastDepth:
    """The frames of train/ and val/, with or without one folder per scene.

    A file holds `rgb` (3, H, W) uint8 and `depth` (H, W) in metres. Depth is treated as
    filled, as in the authors' files, unless a sample of it has holes. Files 00001.h5
    and 00201.h5 of training scenes are left out of training. The file names in
    val/official/ are official indices of test frames.
    """

    format = "fastdepth"
    OPTIONS: frozenset[str] = frozenset()
    truths: tuple[str, ...]
    eight_bit = False

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the folder, or its nyudepthv2/, has HDF5 files in train/ or val/."""
        return _root(path) is not None

    def __init__(self, path: Path, options: ReadOptions):
        root = _root(path)
        if root is None:
            raise UserError(f"{path} holds no HDF5 files in train/ or val/")
        self.path = root
        self.name = files.name_of(path)
        self.notes: list[str] = []
        train, evaluation = (_files(root / part) for part in PARTS)
        self.files = train + evaluation
        self._evaluation = range(len(train), len(self.files))
        indices = [None] * len(train) + _official_indices(evaluation)
        self.infos = [
            FrameInfo(str(file.relative_to(root)), _scene(file, index), index)
            for file, index in zip(self.files, indices, strict=True)
        ]
        self._train = [k for k, file in enumerate(train) if file.name not in HOLD_OUT]
        if held := len(train) - len(self._train):
            self.notes.append(
                f"left {held} frames named {' or '.join(HOLD_OUT)} out of training, as "
                "FastDepth does"
            )
        depths = files.sample(lambda file: _read(file)[1], self.files)
        self.truths = (files.kind_of(depths),)
        self.notes += files.check_metres(
            depths,
            where=str(root),
            hint="format fastdepth expects metres: convert the depth",
        )

    def frame(self, row: int) -> Frame:
        rgb, depth = _read(self.files[row])
        camera = labeled.camera_of(rgb.shape)
        if self.truths[0] == "filled":
            return Frame(rgb, filled=depth, intrinsics=camera)
        return Frame(rgb, raw=depth, intrinsics=camera)

    def fingerprint(self) -> dict[str, Any]:
        return {"path": str(self.path.resolve()), **files.stamp(self.files)}

    def splits(self) -> dict[str, dict[str, list[int]]]:
        return splits.from_lists(
            self._train,
            self._evaluation,
            indices=[info.official_index for info in self.infos],
        )


def _root(path: Path) -> Path | None:
    """Find the folder with HDF5 files in train/ or val/. Never raises."""
    for root in (path, path / "nyudepthv2"):
        for part in PARTS:
            for pattern in (f"{part}/*.h5", f"{part}/*/*.h5"):
                try:
                    if next(root.glob(pattern), None) is not None:
                        return root
                except OSError:
                    continue
    return None


def _files(folder: Path) -> list[Path]:
    both = [*folder.glob("*.h5"), *folder.glob("*/*.h5")]
    return sorted(file for file in both if not file.name.startswith("."))


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read RGB (H, W, 3) and depth (H, W) in metres. Raises BrokenFrame."""
    try:
        regular.check(file)
        with h5py.File(file, "r") as stored:
            rgb, depth = (_dataset(stored, name) for name in ("rgb", "depth"))
            shapes = rgb.shape, depth.shape
            if len(rgb.shape) != 3 or rgb.shape != (3, *depth.shape):
                raise ValueError(
                    f"rgb has shape {shapes[0]} and depth {shapes[1]}: expected "
                    "(3, H, W) and (H, W)"
                )
            if rgb.dtype != np.uint8 or depth.dtype.kind != "f":
                raise ValueError(
                    f"rgb is {rgb.dtype} and depth {depth.dtype}: expected uint8 and "
                    "floating-point"
                )
            if not 0 < math.prod(depth.shape) <= files.LARGEST:
                raise ValueError(
                    f"depth has shape {shapes[1]}, which is empty or too large"
                )
            return (
                np.ascontiguousarray(rgb[()].transpose(1, 2, 0)),
                files.to_metres(depth[()]),
            )
    except Exception as error:  # damaged bytes make HDF5 raise errors of many types
        raise files.broken(file, "HDF5 of rgb and depth", error) from None


def _dataset(stored: h5py.File, name: str) -> Any:
    dataset = hdf5.dataset(stored, name)
    if dataset is None:
        raise ValueError(f"it has no dataset {name}")
    return dataset


def _official_indices(evaluation: list[Path]) -> list[int | None]:
    """Official indices of the files of val/official/; all None unless all are valid."""
    test = set(splits.official()["test"])
    indices: list[int | None] = []
    for file in evaluation:
        index = int(file.stem) if file.stem.isdecimal() else 0
        if file.parent.name != OFFICIAL or index not in test:
            return [None] * len(evaluation)
        indices.append(index)
    return indices


def _scene(file: Path, index: int | None) -> str | None:
    if index is not None:
        return splits.official()["scenes"][index - 1]
    return None if file.parent.name in (*PARTS, OFFICIAL) else file.parent.name
