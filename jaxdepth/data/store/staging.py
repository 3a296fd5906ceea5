"""Where a store grows: block by block, so that what was stopped goes on where it was.

A block is what becomes one training shard and the full-size shards beside it. Its files
are whole before its record says that it is finished, and all records are there before
the manifest is: without a manifest nothing is a store.
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

from jaxdepth.data.store.reader import MANIFEST
from jaxdepth.runtime import atomic, locks
from jaxdepth.runtime.errors import UserError

logger = logging.getLogger(__name__)
RECORDS = "records"


@dataclasses.dataclass
class Record:
    """A finished block. Rows are the source's.

    Attributes:
      kept: rows in the training shard, in order.
      empty: rows without any depth.
      broken: (row, reason) of what can't be used.
      unmasked: frames whose extremes stayed, as they have no other depth.
      cameras: the different intrinsics of the kept frames, None for unknown ones.
      full: stem of a full-size shard -> its rows.
      files: name -> {"bytes", "sha256"}.
    """

    kept: list[int] = dataclasses.field(default_factory=list)
    empty: list[int] = dataclasses.field(default_factory=list)
    broken: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    unmasked: int = 0
    cameras: list[list[float] | None] = dataclasses.field(default_factory=list)
    full: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Record | None":
        """None for what is no record, as after a crash of the whole machine."""
        try:
            values = json.loads(text)
            broken = [(row, reason) for row, reason in values.pop("broken")]
            return cls(**values, broken=broken)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


@runtime_checkable
class Place(Protocol):
    """Somewhere for a store to grow in, one key at a time.

    Attributes:
      folder: where a block's files are to be written.
    """

    folder: Path

    def records(self) -> dict[int, Record]:
        """The blocks that are finished already, by number."""
        ...

    def keep(self, number: int, record: Record) -> None:
        """Have a block's files, which are in `folder`, and remember its record."""
        ...

    def finish(self, manifest: dict[str, Any]) -> None:
        """Make it a store."""
        ...


class Folder:
    """A hidden folder beside `out` that takes its name when the store is whole.

    As a context it cleans up: finished blocks stay after an interruption or a failure
    of the machine, for the next call with the same key, and go where the data are
    wrong. Whoever enters holds the lock of `out`.
    """

    def __init__(self, out: Path, key: str):
        self.out = out
        self.folder = out.with_name(f".{out.name}.{key}.part")
        self._records = self.folder / RECORDS

    def __enter__(self) -> "Folder":
        self._records.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._remove_other_keys()
            return
        kept = len(self.records()) if self.folder.is_dir() else 0
        if kept == 0 or issubclass(kind, UserError):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        logger.info(
            "%d finished shards of %s are kept: the same command goes on from there",
            kept,
            self.out,
        )

    def records(self) -> dict[int, Record]:
        found = {}
        for file in sorted(self._records.glob("*.json")):
            record = Record.from_json(file.read_bytes())
            if record is not None and all(
                _has_size(self.folder / name, known["bytes"])
                for name, known in record.files.items()
            ):
                found[int(file.stem)] = record
        return found

    def keep(self, number: int, record: Record) -> None:
        write_whole(self._records / f"{number:05d}.json", record.to_json().encode())

    def finish(self, manifest: dict[str, Any]) -> None:
        text = json.dumps(manifest, indent=1)
        write_whole(self.folder / MANIFEST, text.encode())
        os.replace(self.folder, self.out)
        # After the renaming: a crash in between leaves a store with some files more.
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


def folder_of(out: str | Path, *, what: str) -> Path:
    """Where a folder that comes into being beside its name, and then takes it, goes.

    A link is followed: what it names takes the place of what it leads to, and comes
    into being there. UserError where no folder can take that place.

    Args:
      what: the flag or argument that names it.
    """
    path = Path(out).expanduser()
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if os.path.isdir(path) and (os.path.ismount(path) or path.samefile(Path())):
        raise UserError(
            f"{what} {str(out)!r} is the folder you are in, or a disk's own: name a "
            "folder in it, which is made"
        )
    check_above(path, what=what)
    return path


def check_above(path: Path, *, what: str) -> None:
    """UserError where a file stands in the way of the folders above `path`."""
    above = path.absolute().parents
    there = next(parent for parent in above if os.path.exists(parent))
    if not os.path.isdir(there):
        raise UserError(f"{what} {path}: {there} is no folder")


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
    """Write `array` as .npy, whole or not at all; its size and checksum."""
    with atomic.atomic_write(file, durable=True) as stream:
        checked = _Checked(stream)
        np.save(checked, array)
    return {"bytes": checked.size, "sha256": checked.digest.hexdigest()}


def write_whole(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic.atomic_write(file, durable=True) as stream:
        stream.write(content)


class _Checked:
    """A stream that counts and sums what goes through it into a file.

    np.save writes into it piece by piece. Into a file of its own it writes at once,
    and its error on a full disk does not say that the disk is full.
    """

    def __init__(self, stream: BinaryIO):
        self.stream, self.size, self.digest = stream, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.digest.update(data)
        return self.stream.write(data)
