"""`nyu_depth_v2_labeled.mat`: MATLAB v7.3, that is, HDF5 with all axes reversed."""

import functools
import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxdepth.data.nyu import splits, toolbox
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, files, hdf5
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError

logger = logging.getLogger(__name__)
FRAMES = 1449  # of the official file
LONGEST_NAME = 1000  # characters of a scene's name
FIELDS = ("images", "depths", "rawDepths")
# fx, fy, cx, cy in pixels at 480x640 of the colour camera. Images are undistorted, and
# depth is registered to them.
INTRINSICS = toolbox.RGB_CAMERA.intrinsics


def camera_of(shape: tuple[int, ...]) -> tuple[float, float, float, float] | None:
    """Intrinsics of NYU's colour camera; None unless the frame is 480x640."""
    return INTRINSICS if shape[:2] == (480, 640) else None


class Labeled:
    """The labeled set of NYU Depth V2, or a part of it.

    `images` (N, 3, W, H) uint8; `depths` and, optionally, `rawDepths` (N, W, H) in
    metres; `scenes` as references to strings. Frames are read one by one.

    The rows of a file with 1449 rows are the official frames, in order. For a smaller
    file, FILE.json in the same folder gives the official indices (`frames`, from 1) of
    the rows (`rows`, default: all); without it, only scene names are known.
    """

    format = "nyu_labeled"
    OPTIONS: frozenset[str] = frozenset()
    eight_bit = False
    truths: tuple[str, ...]

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the path is an HDF5 file or ends in .mat."""
        return path.is_file() and (path.suffix == ".mat" or _is_hdf5(path))

    def __init__(self, path: Path, options: ReadOptions):
        self.path = path
        self.name = path.name
        self.notes: list[str] = []
        self._check_signature()
        try:
            self._count, shapes = self._shapes()
            scenes = self._scenes()
            self._written = self._written_rows()
        except UserError:
            raise
        except hdf5.InvalidDataset as error:
            raise UserError(f"{self.path}: {error}") from None
        except Exception as error:  # damaged bytes make HDF5 raise errors of many types
            raise self._broken(error) from None
        self._no_depth = np.zeros(shapes["depths"][:0:-1], np.float32)
        self.truths = self._truths(shapes)
        indices = self._official_indices()
        self.infos = [
            FrameInfo(
                f"frame {index:04d}" if index is not None else f"row {row:04d}",
                _scene(index) or scene,
                index,
            )
            for row, (index, scene) in enumerate(zip(indices, scenes, strict=True))
        ]
        self._check_unit()

    @functools.cached_property
    def _file(self) -> Any:
        return h5py.File(self.path, "r")

    @functools.cached_property
    def _datasets(self) -> dict[str, Any]:
        """The datasets of the fields that the file has. Raises hdf5.InvalidDataset."""
        fields = {f: hdf5.dataset(self._file, f) for f in (*FIELDS, "scenes")}
        return {field: data for field, data in fields.items() if data is not None}

    def __getstate__(self) -> dict[str, Any]:
        # An open HDF5 file can't be pickled: each process opens the file itself.
        opened = ("_file", "_datasets")
        return {k: v for k, v in self.__dict__.items() if k not in opened}

    def frame(self, row: int) -> Frame:
        """Read one frame. A row that was never written is black and has no depth."""
        if self._written is not None and row not in self._written:
            black = np.zeros((*self._no_depth.shape, 3), np.uint8)
            raw = self._no_depth if "raw" in self.truths else None
            return Frame(black, filled=self._no_depth, raw=raw)
        fields = {"filled": "depths", "raw": "rawDepths"}
        rgb = np.ascontiguousarray(self._row("images", row).transpose(2, 1, 0))
        depth = {
            kind: np.ascontiguousarray(files.to_metres(self._row(fields[kind], row).T))
            for kind in self.truths
        }
        return Frame(rgb, depth.get("filled"), depth.get("raw"), camera_of(rgb.shape))

    def _row(self, field: str, row: int) -> np.ndarray:
        """Read one row of a field as stored. Raises BrokenFrame if it is damaged."""
        try:
            return self._datasets[field][row]
        except Exception as error:  # damaged bytes make HDF5 raise errors of many types
            raise files.broken(self.path, f"row {row} of {field}", error) from None

    def fingerprint(self) -> dict[str, Any]:
        stat = self.path.stat()
        sidecar = self._sidecar
        return {
            "path": str(self.path.resolve()),
            "bytes": stat.st_size,
            "changed": stat.st_mtime_ns,
            "beside": sidecar.stat().st_mtime_ns if sidecar.exists() else 0,
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        official = splits.by_official_frames(
            [info.official_index for info in self.infos],
            [info.scene for info in self.infos],
        )
        everything = {"train": list(range(self._count)), "eval": []}
        return {**(official or {}), "all": everything}

    @property
    def _sidecar(self) -> Path:
        return Path(f"{self.path}.json")

    def _check_signature(self) -> None:
        try:
            with open(self.path, "rb") as file:
                head = file.read(128)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None
        if head.startswith(b"MATLAB 5.0"):
            raise UserError(
                f"{self.path} is a MATLAB v5 file: give nyu_depth_v2_labeled.mat, a "
                "v7.3 file (2.97 GB)"
            )
        if not _is_hdf5(self.path):
            raise UserError(
                f"{self.path} is not a MATLAB v7.3 (HDF5) file, a folder or a store: "
                "give nyu_depth_v2_labeled.mat"
            )

    def _broken(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path} can't be read ({files.reason_of(error)}): it is truncated or "
            "damaged; download it again"
        )

    def _shapes(self) -> tuple[int, dict[str, tuple[int, ...]]]:
        """The number of frames, and the shapes of the fields. Raises UserError."""
        fields = [field for field in FIELDS if field in self._datasets]
        for field in ("depths", "images"):
            if field not in fields:
                have = ", ".join(sorted(self._file)[:8]) or "nothing"
                raise UserError(
                    f"{self.path} has no dataset {field} (it has {have}): give "
                    "nyu_depth_v2_labeled.mat"
                )
        shapes = {field: self._datasets[field].shape for field in fields}
        self._check_images(shapes["images"])
        for field in fields[1:]:
            self._check_depth(field, shapes)
        return shapes["images"][0], shapes

    def _check_images(self, shape: tuple[int, ...]) -> None:
        problem = ""
        if len(shape) != 4 or shape[1] != 3 or not shape[0]:
            problem = f"has shape {shape}, not (frames, 3, width, height)"
        elif not 0 < shape[2] * shape[3] <= files.LARGEST:
            problem = f"has shape {shape}: frames of that size can't be read"
        elif shape[2:] == (480, 640):
            problem = (
                f"has shape {shape}, but MATLAB's files have (frames, 3, width, "
                "height), depths (frames, width, height): swap its last two axes"
            )
        elif self._datasets["images"].dtype != np.uint8:
            problem = f"is {self._datasets['images'].dtype}, not uint8"
        if problem:
            raise UserError(f"{self.path}: images {problem}")

    def _check_depth(self, field: str, shapes: dict[str, tuple[int, ...]]) -> None:
        images = shapes["images"]
        if self._datasets[field].dtype.kind not in "uif":
            raise UserError(
                f"{self.path}: {field} is {self._datasets[field].dtype}: expected "
                "numbers, in metres"
            )
        if shapes[field] != (images[0], *images[2:]):
            raise UserError(
                f"{self.path}: {field} has shape {shapes[field]} and images "
                f"{images}: image and depth must have the same size"
            )

    def _scenes(self) -> list[str | None]:
        dataset = self._datasets.get("scenes")
        if dataset is None or dataset.size != self._count:
            return [None] * self._count
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        values = np.asarray(dataset.asstr() if is_text else dataset).ravel()
        if is_text:  # strings written by h5py; MATLAB writes references
            return [str(value) or None for value in values]
        texts = ("".join(map(chr, self._referenced(r))) for r in values)
        # MATLAB's empty string is stored as its shape, two zeros.
        return [text.strip("\0") or None for text in texts]

    def _referenced(self, reference: Any) -> np.ndarray:
        """The characters of the string that a MATLAB reference points to."""
        data = hdf5.checked(self._file[reference], "scenes") if reference else None
        if data is None or data.size > LONGEST_NAME:
            return np.zeros(0, np.uint16)
        return np.ravel(data)

    def _truths(self, shapes: dict[str, Any]) -> tuple[str, ...]:
        """Kinds of ground truth. Raw depth is ignored if it equals filled depth."""
        if "rawDepths" not in shapes:
            self.notes.append(f"{self.name} has no rawDepths: only filled depth")
            return ("filled",)
        same = compared = 0
        for raw, filled in files.sample(
            lambda row: (self._row("rawDepths", row), self._row("depths", row)),
            self._rows_with_depth(),
        ):
            raw, filled = files.to_metres(raw), files.to_metres(filled)
            valid = raw > 0
            compared += int(valid.sum())
            same += int((raw[valid] == filled[valid]).sum())
        if compared and same == compared:
            self.notes.append(
                f"rawDepths of {self.name} equal depths wherever they are not 0: they "
                "are not raw depth, and only filled depth is used"
            )
            return ("filled",)
        return ("filled", "raw")

    def _written_rows(self) -> set[int] | None:
        """Indices of rows with stored depth; None (unknown) if depth is not chunked.

        A partial file may have all 1449 rows, most of which were never written.
        """
        depths = self._datasets["depths"]
        if depths.chunks is None:
            return None
        rows: set[int] = set()
        depths.id.chunk_iter(
            lambda chunk: rows.update(
                range(chunk.chunk_offset[0], chunk.chunk_offset[0] + depths.chunks[0])
            )
        )
        return rows

    def _rows_with_depth(self) -> list[int]:
        rows = range(self._count) if self._written is None else sorted(self._written)
        return [row for row in rows if row < self._count]

    def _official_indices(self) -> list[int | None]:
        if self._sidecar.exists():
            indices = self._from_sidecar()
            if indices is not None:
                return indices
        if self._count == FRAMES:
            return list(range(1, FRAMES + 1))
        return [None] * self._count

    def _from_sidecar(self) -> list[int | None] | None:
        file = self._sidecar
        try:
            regular.check(file)
            values = json.loads(file.read_text())
            frames = [int(i) for i in values["frames"]]
            rows = [int(r) for r in values.get("rows", range(len(frames)))]
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(
                f"{file} does not list the official frames ({error}): it needs "
                '{"frames": [...], "rows": [...]}'
            ) from None
        if self._count == FRAMES:
            return None
        good = (
            len(frames) == len(rows)
            and all(1 <= i <= FRAMES for i in frames)
            and all(0 <= r < self._count for r in rows)
        )
        if not good:
            raise UserError(
                f"{file} belongs to another file: {self.name} has {self._count} rows"
            )
        indices: list[int | None] = [None] * self._count
        for row, index in zip(rows, frames, strict=True):
            indices[row] = index
        return indices

    def _check_unit(self) -> None:
        """Check the unit of a sample, before all frames are read."""
        self.notes += files.check_metres(
            files.sample(
                lambda row: files.to_metres(self._row("depths", row)),
                self._rows_with_depth(),
            ),
            where=str(self.path),
            hint="a labeled .mat file holds metres: convert the depth",
        )


def _is_hdf5(path: Path) -> bool:
    try:
        return h5py.is_hdf5(path)
    except OSError:
        return False


def _scene(index: int | None) -> str | None:
    return None if index is None else splits.official()["scenes"][index - 1]
