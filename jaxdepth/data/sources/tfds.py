"""TensorFlow Datasets' nyu_depth_v2 as TFDS prepared it: TFRecord or ArrayRecord."""

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
from jaxdepth.runtime.errors import UserError

NAME = "nyu_depth_v2"
INFO = "dataset_info.json"
PARTS = ("train", "validation")
TAKES: frozenset[str] = frozenset()


def recognises(path: Path) -> bool:
    """A version's folder, the data set's above it, or TFDS's above that."""
    return _folder(path) is not None


def source_of(path: Path, options: ReadOptions) -> "Tfds":
    return Tfds(path)


class Tfds:
    """The frames of splits train and validation, in the order of the record files.

    Features `image` uint8 and `depth` float16 metres. The records hold FastDepth's
    files in a shuffled order, without names: a frame's scene and official index are
    not known. 654 frames of validation are the official test set.

    A frame is read by its place in its file, whichever was read before.
    """

    format = "tfds"
    truths: tuple[str, ...]
    eight_bit = False

    def __init__(self, path: Path):
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
            "frames bear no scene and no name: none is kept from training for being of "
            "a test scene or held out by FastDepth"
        ]
        rows = range(len(self.infos))
        depths = files.sample(lambda row: files.to_metres(self._read(row)[1]), rows)
        self.truths = (files.kind_of(depths),)
        files.check_metres(
            depths, where=str(folder), hint="this data set holds metres; convert it"
        )

    def __getstate__(self) -> dict[str, Any]:
        # Open record files and TFDS's builder stay in their process.
        mine = ("_builder", "_reader")
        return {k: v for k, v in self.__dict__.items() if k not in mine}

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
        nothing = [None] * len(self.infos)
        whole = len(self._evaluation) == len(splits.official()["test"])
        return splits.from_lists(
            self._train,
            self._evaluation,
            scenes=nothing,
            indices=nothing,
            official_test=whole,
        )

    @functools.cached_property
    def _builder(self) -> Any:
        """TFDS's view of the folder. UserError where it is damaged."""
        try:
            import tensorflow  # noqa: F401
            import tensorflow_datasets as tensorflow_datasets
        except ImportError as error:
            raise UserError(
                f"{self.path} is read with TensorFlow and tensorflow-datasets, which "
                f"are not here ({error}): install them"
            ) from None
        try:
            return tensorflow_datasets.builder_from_directory(str(self.path))
        except Exception as error:  # whatever it meets in damaged JSON
            raise UserError(
                f"{self.path} can't be read as a data set of TFDS: "
                f"{files.reason_of(error)}"
            ) from None

    def _check_features(self) -> None:
        found = self._builder.info.features
        depth, image = (dict(found).get(name) for name in ("depth", "image"))
        if (
            image is None
            or depth is None
            or image.np_dtype != np.uint8
            or image.shape != (*depth.shape, 3)
            or np.dtype(depth.np_dtype).kind != "f"
        ):
            raise UserError(
                f"{self.path} has features {files.reason_of(found)}: image (H, W, 3) "
                "uint8 and depth (H, W) in metres are wanted"
            )

    def _shards(self, part: str) -> list[tuple[Path, int]]:
        """The record files of a split, and how many frames each has."""
        known = self._builder.info.splits
        if part not in known:
            return []
        paths = [Path(path) for path in known[part].filepaths]
        return list(zip(paths, known[part].shard_lengths, strict=True))

    def _read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H,W,3) and depth (H,W) as stored. BrokenFrame where damaged."""
        shard = bisect.bisect_right(self._ends, row)
        file = self._record_files[shard]
        place = row - (self._ends[shard - 1] if shard else 0)
        try:
            record = self._reader_of(file).read(place)
            example = self._builder.info.features.deserialize_example(record)
            return example["image"].numpy(), example["depth"].numpy()
        except Exception as error:  # of TensorFlow, TFDS, or the records' library
            raise files.broken(file, f"record {place}", error) from None

    def _reader_of(self, file: Path) -> Any:
        """The reader of one file. The last is kept: rows mostly ascend."""
        reader = self.__dict__.get("_reader")
        if reader is None or reader.file != file:
            arrays = self._builder.info.file_format.value == "array_record"
            reader = (_ArrayRecords if arrays else _TfRecords)(file)
            self._reader = reader
        return reader


class _TfRecords:
    """Records by number. Their checksums are checked as they are read."""

    def __init__(self, file: Path):
        from tensorflow.python.lib.io import tf_record

        self.file = file
        self._offsets = _offsets(file)
        # Documented in its module, though not among TensorFlow's public names, whose
        # readers all start at the beginning.
        self._reader = tf_record.tf_record_random_reader(str(file))

    def read(self, place: int) -> bytes:
        if place >= len(self._offsets):
            raise ValueError("the file ends before it")
        return self._reader.read(self._offsets[place])[0]


class _ArrayRecords:
    """Records by number."""

    def __init__(self, file: Path):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.file = file
        self._reader = ArrayRecordDataSource([str(file)])

    def read(self, place: int) -> bytes:
        return self._reader[place]


def _offsets(file: Path) -> list[int]:
    """Where the records of a TFRecord file begin.

    Each is its length (8 bytes, little-endian), that length's checksum (4), the data
    and their checksum (4).
    """
    found, place, size = [], 0, file.stat().st_size
    with open(file, "rb") as stream:
        while place + 16 <= size:
            found.append(place)
            stream.seek(place)
            (length,) = struct.unpack("<Q", stream.read(8))
            place += length + 16
    return found


def _folder(path: Path) -> Path | None:
    """The newest version's folder at a path. Never raises."""
    among = [path, *_inside(path), *_inside(path / NAME)]
    return next((f for f in among if _is_ours(f)), None)


def _inside(path: Path) -> list[Path]:
    try:
        return sorted((f.parent for f in path.glob(f"*/{INFO}")), reverse=True)
    except OSError:
        return []


def _is_ours(folder: Path) -> bool:
    try:
        return json.loads((folder / INFO).read_text())["name"] == NAME
    except (OSError, ValueError, KeyError, TypeError):
        return False
