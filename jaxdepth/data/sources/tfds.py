"""nyu_depth_v2 as prepared by TensorFlow Datasets: TFRecord or ArrayRecord files."""

import bisect
import functools
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, files, labeled
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError

NAME = "nyu_depth_v2"
INFO = "dataset_info.json"
PARTS = ("train", "validation")
MOST = 1 << 20  # frames of a split; the published ones have 47,584 and 654


class Tfds:
    """The frames of the splits train and validation, in the order of the record files.

    Features are `image` uint8 and `depth` float16 in metres. The records are the files
    of FastDepth in shuffled order, without names: the scene and official index of a
    frame are unknown. If validation has 654 frames, they are the official test set.

    Frames can be read in any order.
    """

    format = "tfds"
    OPTIONS: frozenset[str] = frozenset()
    truths: tuple[str, ...]
    eight_bit = False

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the path is a version's folder, its parent or its grandparent."""
        return _folder(path) is not None

    def __init__(self, path: Path, options: ReadOptions):
        folder = _folder(path)
        if folder is None:
            raise UserError(f"{path} holds no {NAME}/VERSION/{INFO} of TFDS")
        self.path = folder
        self.name = f"{NAME} {folder.name}"
        self._check_features()
        counts = {part: self._shards(part) for part in PARTS}
        self._record_files = [f for part in counts.values() for f, _ in part]
        lengths = [n for part in counts.values() for _, n in part]
        self._ends = list(itertools.accumulate(lengths))
        train, evaluation = (sum(n for _, n in part) for part in counts.values())
        self.infos = [
            FrameInfo(f"{part} {k:05d}")
            for part, count in zip(PARTS, (train, evaluation), strict=True)
            for k in range(count)
        ]
        self._train = range(train)
        self._evaluation = range(train, train + evaluation)
        self.notes = [
            "scenes and names of frames are unknown: frames of test scenes, and frames "
            "that FastDepth holds out, are not left out of training"
        ]
        rows = range(len(self.infos))
        depths = files.sample(lambda row: files.to_metres(self._read(row)[1]), rows)
        self.truths = (files.kind_of(depths),)
        self.notes += files.check_metres(
            depths,
            where=str(folder),
            hint="format tfds expects metres: convert the depth",
        )

    def __getstate__(self) -> dict[str, Any]:
        # Open record files and TFDS's builder can't be pickled.
        unpicklable = ("_builder", "_reader")
        return {k: v for k, v in self.__dict__.items() if k not in unpicklable}

    def frame(self, row: int) -> Frame:
        rgb, depth = self._read(row)
        truth = {self.truths[0]: files.to_metres(depth)}
        return Frame(
            rgb, truth.get("filled"), truth.get("raw"), labeled.camera_of(rgb.shape)
        )

    def fingerprint(self) -> dict[str, Any]:
        listed = [self.path / INFO, *self._record_files]
        return {"path": str(self.path.resolve()), **files.stamp(listed)}

    def splits(self) -> dict[str, dict[str, list[int]]]:
        unknown = [None] * len(self.infos)
        return splits.from_lists(
            self._train,
            self._evaluation,
            indices=unknown,
            official_test=len(self._evaluation) == len(splits.official()["test"]),
        )

    @functools.cached_property
    def _builder(self) -> Any:
        """TFDS's builder for the folder. Raises UserError if the folder is damaged."""
        try:
            import tensorflow  # noqa: F401
            import tensorflow_datasets
        except ImportError as error:
            raise UserError(
                f"{self.path} can't be read without TensorFlow and "
                f"tensorflow-datasets ({error}): install them"
            ) from None
        try:
            return tensorflow_datasets.builder_from_directory(str(self.path))
        except Exception as error:  # damaged JSON causes errors of many types
            raise UserError(
                f"{self.path} can't be read as a data set of TFDS: "
                f"{files.reason_of(error)}"
            ) from None

    def _check_features(self) -> None:
        features = self._builder.info.features
        depth, image = (dict(features).get(name) for name in ("depth", "image"))
        if (
            image is None
            or depth is None
            or image.np_dtype != np.uint8
            or image.shape != (*depth.shape, 3)
            or np.dtype(depth.np_dtype).kind != "f"
        ):
            raise UserError(
                f"{self.path} has features {files.reason_of(features)}: expected image "
                "(H, W, 3) uint8 and depth (H, W) in metres"
            )

    def _shards(self, part: str) -> list[tuple[Path, int]]:
        """The record files of a split, with their numbers of frames."""
        infos = self._builder.info.splits
        if part not in infos:
            return []
        try:
            paths = [Path(path) for path in infos[part].filepaths]
            counts = [int(count) for count in infos[part].shard_lengths]
            shards = list(zip(paths, counts, strict=True))
        except Exception as error:  # damaged JSON causes errors of many types
            raise UserError(
                f"{self.path / INFO} does not describe the files of {part}: "
                f"{files.reason_of(error)}"
            ) from None
        if any(file.parent != self.path for file, _ in shards):
            raise UserError(f"{self.path / INFO} names files outside of {self.path}")
        if not all(0 <= count <= MOST for count in counts) or sum(counts) > MOST:
            raise UserError(
                f"{self.path / INFO} is damaged: the numbers of records of {part} are "
                f"{files.reason_of(counts)}"
            )
        return shards

    def _read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Read image (H, W, 3) and depth (H, W) as stored. Raises BrokenFrame."""
        shard = bisect.bisect_right(self._ends, row)
        file = self._record_files[shard]
        index = row - (self._ends[shard - 1] if shard else 0)
        try:
            record = self._reader_of(file).read(index)
            example = self._builder.info.features.deserialize_example(record)
            return example["image"].numpy(), example["depth"].numpy()
        except Exception as error:  # from TensorFlow, TFDS or array_record
            raise files.broken(file, f"record {index}", error) from None

    def _reader_of(self, file: Path) -> Any:
        """Reader of a file. The last one is reused: access is mostly sequential."""
        reader = self.__dict__.get("_reader")
        if reader is None or reader.file != file:
            regular.check(file)
            arrays = self._builder.info.file_format.value == "array_record"
            reader = (_ArrayRecords if arrays else _TfRecords)(file)
            self._reader = reader
        return reader


class _TfRecords:
    """Random access to the records of a TFRecord file; checksums are verified."""

    def __init__(self, file: Path):
        from tensorflow.python.lib.io import tf_record

        self.file = file
        self._offsets = _offsets(file)
        # Documented in its module, but not part of TensorFlow's public API; all public
        # readers start at the first record.
        self._reader = tf_record.tf_record_random_reader(str(file))

    def read(self, index: int) -> bytes:
        if index >= len(self._offsets):
            raise ValueError("the file has fewer records")
        return self._reader.read(self._offsets[index])[0]


class _ArrayRecords:
    """Random access to the records of an ArrayRecord file."""

    def __init__(self, file: Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.file = file
        self._reader = ArrayRecordDataSource([str(file)])

    def read(self, index: int) -> bytes:
        return self._reader[index]


def _offsets(file: Path) -> list[int]:
    """The byte offsets of the records of a TFRecord file.

    A record is its length (8 bytes, little-endian), the checksum of the length (4),
    the data and the checksum of the data (4).
    """
    offsets, offset, size = [], 0, file.stat().st_size
    with open(file, "rb") as stream:
        while offset + 16 <= size:
            offsets.append(offset)
            stream.seek(offset)
            (length,) = struct.unpack("<Q", stream.read(8))
            offset += length + 16
    return offsets


def _folder(path: Path) -> Path | None:
    """Find the folder of the newest version at a path. Never raises."""
    candidates = [path, *_versions(path), *_versions(path / NAME)]
    return next((f for f in candidates if _is_prepared(f)), None)


def _versions(path: Path) -> list[Path]:
    try:
        return sorted((f.parent for f in path.glob(f"*/{INFO}")), reverse=True)
    except OSError:
        return []


def _is_prepared(folder: Path) -> bool:
    try:
        regular.check(folder / INFO)
        return json.loads((folder / INFO).read_text())["name"] == NAME
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
