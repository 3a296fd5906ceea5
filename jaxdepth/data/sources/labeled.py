"""`nyu_depth_v2_labeled.mat`: MATLAB v7.3, which is HDF5 with all axes reversed."""

import functools
import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jaxdepth.data.nyu import splits, toolbox
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, files
from jaxdepth.runtime.errors import UserError

logger = logging.getLogger(__name__)
FRAMES = 1449  # of the official file
# The colour camera, to which images are undistorted and depth is registered, at
# 480x640: fx, fy, cx, cy in pixels.
INTRINSICS = toolbox.RGB_CAMERA.intrinsics
TAKES: frozenset[str] = frozenset()


def recognises(path: Path) -> bool:
    """An HDF5 file, or one that is named as MATLAB's are."""
    return path.is_file() and (path.suffix == ".mat" or _is_hdf5(path))


def source_of(path: Path, options: ReadOptions) -> "Labeled":
    return Labeled(path)


def camera_of(shape: tuple[int, ...]) -> tuple[float, float, float, float] | None:
    """NYU's colour camera, for frames at its own size; None at another."""
    return INTRINSICS if shape[:2] == (480, 640) else None


class Labeled:
    """The labeled set, or a part of it.

    `images` (N,3,W,H) uint8, `depths` and, if there, `rawDepths` (N,W,H) metres,
    `scenes` as references to strings. Frames are read one by one.

    A file of 1449 rows has official indices. A smaller one has them in FILE.json
    beside it (`frames`, from 1; `rows`), or else its scene names decide.
    """

    format = "nyu_labeled"
    eight_bit = False
    truths: tuple[str, ...]

    def __init__(self, path: Path):
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
        except Exception as error:  # HDF5 raises what it meets in damaged bytes
            raise self._broken(error) from None
        self._nothing = np.zeros(shapes["depths"][:0:-1], np.float32)
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
        self._look()

    @functools.cached_property
    def _file(self) -> Any:
        return h5py.File(self.path, "r")

    def __getstate__(self) -> dict[str, Any]:
        # An open HDF5 file doesn't travel to another process: it is opened there.
        return {k: v for k, v in self.__dict__.items() if k != "_file"}

    def frame(self, row: int) -> Frame:
        """Read one frame; one that was never written is black, without any truth."""
        if self._written is not None and row not in self._written:
            black = np.zeros((*self._nothing.shape, 3), np.uint8)
            raw = self._nothing if "raw" in self.truths else None
            return Frame(black, filled=self._nothing, raw=raw)
        fields = {"filled": "depths", "raw": "rawDepths"}
        rgb = np.ascontiguousarray(self._row("images", row).transpose(2, 1, 0))
        depth = {
            kind: np.ascontiguousarray(files.to_metres(self._row(fields[kind], row).T))
            for kind in self.truths
        }
        return Frame(rgb, depth.get("filled"), depth.get("raw"), camera_of(rgb.shape))

    def _row(self, field: str, row: int) -> np.ndarray:
        """One frame's part of a field, as stored. BrokenFrame where it is damaged."""
        try:
            return self._file[field][row]
        except Exception as error:  # HDF5 raises what it meets in damaged bytes
            raise files.broken(self.path, f"row {row} of {field}", error) from None

    def fingerprint(self) -> dict[str, Any]:
        stat = self.path.stat()
        beside = self._sidecar
        return {
            "path": str(self.path.resolve()),
            "bytes": stat.st_size,
            "changed": stat.st_mtime_ns,
            "beside": beside.stat().st_mtime_ns if beside.exists() else 0,
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        found = splits.by_official_frames(
            [info.official_index for info in self.infos],
            [info.scene for info in self.infos],
        )
        everything = {"train": list(range(self._count)), "eval": []}
        return {**(found or {}), "all": everything}

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
                f"{self.path} is a MATLAB v5 file; the labeled set is the v7.3 file "
                "nyu_depth_v2_labeled.mat (2.97 GB)"
            )
        if not _is_hdf5(self.path):
            raise UserError(
                f"{self.path} is not a MATLAB v7.3 (HDF5) file, nor a folder or a "
                "store: give nyu_depth_v2_labeled.mat"
            )

    def _broken(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path} can't be read ({files.reason_of(error)}): it is truncated or "
            "damaged; download it again"
        )

    def _shapes(self) -> tuple[int, dict[str, tuple[int, ...]]]:
        """How many frames, and the shapes of the fields. UserError where wrong."""
        fields = [f for f in ("images", "depths", "rawDepths") if f in self._file]
        for field in sorted({"images", "depths", *fields}):
            if not isinstance(self._file.get(field), h5py.Dataset):
                have = ", ".join(sorted(self._file)[:8]) or "nothing"
                raise UserError(
                    f"{self.path} has no dataset {field} (it has {have}): give "
                    "nyu_depth_v2_labeled.mat"
                )
        shapes = {field: self._file[field].shape for field in fields}
        image = shapes["images"]
        if len(image) != 4 or image[1] != 3 or not image[0]:
            raise UserError(
                f"{self.path}: images has shape {image}, not (frames, 3, width, height)"
            )
        if not 0 < image[2] * image[3] <= files.LARGEST:
            raise UserError(
                f"{self.path}: images has shape {image}, whose frames are none"
            )
        if image[2:] == (480, 640):
            raise UserError(
                f"{self.path}: images has shape {image}, but MATLAB's files have "
                "(frames, 3, width, height), depths (frames, width, height): write it "
                "with its last two axes exchanged"
            )
        if self._file["images"].dtype != np.uint8:
            raise UserError(
                f"{self.path}: images is {self._file['images'].dtype}, not uint8"
            )
        for field in fields[1:]:
            if self._file[field].dtype.kind not in "uif":
                raise UserError(
                    f"{self.path}: {field} is {self._file[field].dtype}, not metres"
                )
            if shapes[field] != (image[0], *image[2:]):
                raise UserError(
                    f"{self.path}: {field} has shape {shapes[field]} and images "
                    f"{image}: image and depth must have one size"
                )
        return image[0], shapes

    def _scenes(self) -> list[str | None]:
        if "scenes" not in self._file:
            return [None] * self._count
        held = self._file["scenes"]
        text = h5py.check_string_dtype(held.dtype) is not None
        values = np.asarray(held.asstr() if text else held).ravel()
        if len(values) != self._count:
            return [None] * self._count
        if text:  # as h5py writes them, not MATLAB
            return [str(value) or None for value in values]
        texts = (
            "".join(map(chr, np.ravel(self._file[r] if r else ()))) for r in values
        )
        # MATLAB's empty string is stored as its shape, two zeros.
        return [text.strip("\0") or None for text in texts]

    def _truths(self, shapes: dict[str, Any]) -> tuple[str, ...]:
        """Which kinds of depth there are: raw that equals filled is no other kind."""
        if "rawDepths" not in shapes:
            self.notes.append(f"{self.name} has no rawDepths: filled depth alone")
            return ("filled",)
        same = seen = 0
        for raw, filled in files.sample(
            lambda row: (self._row("rawDepths", row), self._row("depths", row)),
            self._rows_with_depth(),
        ):
            raw, filled = files.to_metres(raw), files.to_metres(filled)
            there = raw > 0
            seen += int(there.sum())
            same += int((raw[there] == filled[there]).sum())
        if seen and same == seen:
            self.notes.append(
                f"rawDepths of {self.name} equal depths wherever they are not 0: they "
                "count as filled depth, and there is no raw depth"
            )
            return ("filled",)
        return ("filled", "raw")

    def _written_rows(self) -> set[int] | None:
        """Rows whose depth takes space; None where that is not to be known.

        A file may have all 1449 rows and hold a few: the others are not worth reading.
        """
        depths = self._file["depths"]
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
        where = self._sidecar
        try:
            values = json.loads(where.read_text())
            frames = [int(i) for i in values["frames"]]
            rows = [int(r) for r in values.get("rows", range(len(frames)))]
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(
                f"{where} does not list the official frames ({error}): it needs "
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
                f"{where} does not fit {self.name}, which has {self._count} rows"
            )
        indices: list[int | None] = [None] * self._count
        for row, index in zip(rows, frames, strict=True):
            indices[row] = index
        return indices

    def _look(self) -> None:
        """Refuse a wrong unit before everything is read."""
        files.check_metres(
            files.sample(
                lambda row: files.to_metres(self._row("depths", row)),
                self._rows_with_depth(),
            ),
            where=str(self.path),
            hint="a labeled .mat holds metres; convert it",
        )


def _is_hdf5(path: Path) -> bool:
    try:
        return h5py.is_hdf5(path)
    except OSError:
        return False


def _scene(index: int | None) -> str | None:
    return None if index is None else splits.official()["scenes"][index - 1]
