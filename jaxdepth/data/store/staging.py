"""Staging area for a store that is being written, so that a stopped call can resume.

A store is written in blocks. A block is one training shard with its full-size shards.
Its record is written after its files, and the manifest after all records. A folder
without a manifest is not a store.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import numpy as np

from jaxdepth.data import units
from jaxdepth.data.store.reader import MANIFEST
from jaxdepth.runtime import atomic, locks
from jaxdepth.runtime.errors import UserError

logger = logging.getLogger(__name__)
RECORDS = "records"


MOST_SIZES = 8  # largest number of frame sizes in a record


@dataclasses.dataclass
class Record:
    """A finished block. Rows are rows of the source.

    Attributes:
      kept: rows in the training shard, in order.
      empty: rows without any depth.
      broken: (row, reason) of frames that can't be used.
      unmasked: number of depth maps whose extremes were kept, because there is no
        other depth in them.
      cameras: the cameras of the kept frames at the training size, None if unknown.
      sizes: the distinct (height, width) of the kept frames, at most `MOST_SIZES`.
      read: kind of depth -> summary of all depth that was read, as a JSON object.
      full: stem of a full-size shard -> its rows.
      digests: of the images of the training shard, to recognise equal frames.
      files: name -> {"bytes", "sha256"}.
    """

    kept: list[int] = dataclasses.field(default_factory=list)
    empty: list[int] = dataclasses.field(default_factory=list)
    broken: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    unmasked: int = 0
    cameras: list[list[float] | None] = dataclasses.field(default_factory=list)
    sizes: list[list[int]] = dataclasses.field(default_factory=list)
    read: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    full: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    digests: list[str] = dataclasses.field(default_factory=list)
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Serialize the record."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Record | None":
        """Parse a record; None if it is damaged, as after a crash of the machine."""
        try:
            values = json.loads(text)
            broken = [(row, reason) for row, reason in values.pop("broken")]
            for summary in values["read"].values():
                units.Summary.from_dict(summary)
            return cls(**values, broken=broken)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


@runtime_checkable
class StagingArea(Protocol):
    """Holds the finished blocks of a store that is being written.

    Attributes:
      folder: the local folder that a block's files are written to.
    """

    folder: Path

    def records(self) -> dict[int, Record]:
        """Return the finished blocks by number."""
        ...

    def commit(self, number: int, record: Record) -> None:
        """Save a block, whose files are in `folder`, and its record."""
        ...

    def publish(self, manifest: dict[str, Any]) -> None:
        """Turn the finished blocks into a store."""
        ...


class LocalStaging:
    """A hidden folder beside `out`, which is renamed to `out` when it is complete.

    On exit the context manager keeps the finished blocks after an interruption or a
    MachineError, for the next call with the same key, and deletes them after a
    UserError. The caller holds the lock of `out`.
    """

    def __init__(self, out: Path, key: str):
        self.out = out
        self.folder = out.with_name(f".{out.name}.{key}.part")
        self._records = self.folder / RECORDS

    def __enter__(self) -> "LocalStaging":
        self._records.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._remove_other_keys()
            return
        finished = len(self.records()) if self.folder.is_dir() else 0
        if finished == 0 or issubclass(kind, UserError):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        logger.info(
            "%d finished shards of %s are kept: run the same command to continue",
            finished,
            self.out,
        )

    def records(self) -> dict[int, Record]:
        """Return the finished blocks by number, without those that lack files."""
        records = {}
        for file in sorted(self._records.glob("*.json")):
            record = Record.from_json(file.read_bytes())
            if record is not None and all(
                _has_size(self.folder / name, entry["bytes"])
                for name, entry in record.files.items()
            ):
                records[int(file.stem)] = record
        return records

    def commit(self, number: int, record: Record) -> None:
        """Write the record; the files are in place already."""
        write_file(self._records / f"{number:05d}.json", record.to_json().encode())

    def publish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest, rename the folder to `out`, and delete the records."""
        text = json.dumps(manifest, indent=1)
        write_file(self.folder / MANIFEST, text.encode())
        os.replace(self.folder, self.out)
        # Deleted after the rename: a crash only leaves unused files in the store.
        shutil.rmtree(self.out / RECORDS, ignore_errors=True)
        for file in self.out.iterdir():
            if file.is_file() and file.name not in {MANIFEST, *manifest["files"]}:
                file.unlink(missing_ok=True)

    def _remove_other_keys(self) -> None:
        pattern = rf"\.{re.escape(self.out.name)}\.[0-9a-f]{{16}}\.part"
        for other in self.out.parent.iterdir():
            if re.fullmatch(pattern, other.name):
                shutil.rmtree(other, ignore_errors=True)


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def resolve_output(out: str | Path, *, what: str) -> Path:
    """Return the path of an output folder that is staged beside it and then renamed.

    A symbolic link is followed, so that the folder is staged beside the link's target.

    Args:
      what: the flag or argument that gave `out`, for messages.

    Raises UserError if no folder can be renamed to that path.
    """
    path = Path(out).expanduser()
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if os.path.isdir(path) and (os.path.ismount(path) or path.samefile(Path())):
        raise UserError(
            f"{what} {str(out)!r} is the current folder, or the root of a disk: name "
            "a new folder in it"
        )
    check_parents(path, what=what)
    return path


def check_parents(path: Path, *, what: str) -> None:
    """Raise UserError if a parent of `path` is a file."""
    parents = path.absolute().parents
    nearest = next(parent for parent in parents if os.path.exists(parent))
    if not os.path.isdir(nearest):
        raise UserError(f"{what} {path}: {nearest} is not a folder")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of a store that is to be written; wait for it if it is held.

    The lock is a file beside `out`, whose parent folder is created.
    """

    def report() -> None:
        logger.info("%s is being prepared by another process: waiting for it", out)

    out.parent.mkdir(parents=True, exist_ok=True)
    with locks.file_lock(out.with_name(f".{out.name}.lock"), if_held=report):
        yield


def save_npy(file: Path, array: np.ndarray) -> dict[str, Any]:
    """Write a .npy file atomically; return its size and checksum."""
    with atomic.atomic_write(file, durable=True) as stream:
        hashed = _HashingStream(stream)
        np.save(hashed, array)
    return {"bytes": hashed.size, "sha256": hashed.digest.hexdigest()}


def write_file(file: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic.atomic_write(file, durable=True) as stream:
        stream.write(content)


class _HashingStream:
    """Writes bytes to a file and computes their number and SHA-256 checksum.

    `np.save` writes to it in pieces. To a real file, it writes with one call, whose
    error does not report that the disk is full.
    """

    def __init__(self, stream: BinaryIO):
        self.stream, self.size, self.digest = stream, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.digest.update(data)
        return self.stream.write(data)
