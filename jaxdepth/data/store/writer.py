"""Any source's frames packed into a store: read, shrunk, written shard by shard.

`write` makes a store where it is told to, `prepared` one in the cache folder. What was
stopped goes on after its last finished shard (`places.py`).
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdepth.data.sources import ReadOptions, Source, open_source
from jaxdepth.data.store import remote, resample, staging
from jaxdepth.data.store.frames import Arrays, Packed, Packer, in_order
from jaxdepth.data.store.reader import VERSION, Store, is_store
from jaxdepth.data.store.staging import Place, Record
from jaxdepth.runtime import versions
from jaxdepth.runtime.errors import MachineError, UserError

logger = logging.getLogger(__name__)
SHARD = 128  # frames of the source that one training shard is made of
FULL_SHARD = 64
FULL_BYTES = 256 << 20  # of full-size frames that wait to be written
# Frames that may be a set to evaluate on, where no split says so: a raw dump or a list
# of training frames is larger, and takes 1.5 MB a frame.
FULL_AT_MOST = 1000
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Packing:
    """How frames become a store; part of its key.

    Attributes:
      size: (height, width) of the training frames.
      mask_extremes: remove pixels equal to the frame's own smallest or largest valid
        millimetre (the paper, section 4) before any resize; "auto": of raw depth.
        Never of 8-bit truth, nor where nothing would be left.
      max_depth: metres; farther truth is no truth for `mask_extremes`.
      keep_full: "auto" keeps full-size copies of frames that a split evaluates on,
        and, where no split does, of all of up to `FULL_AT_MOST`; "all" of all; "none"
        of none.
      skip_wrong: leave out and list every frame that the source refuses, not only
        those whose files can't be read.
    """

    size: tuple[int, int] = (240, 320)
    mask_extremes: str = "auto"
    max_depth: float = 10.0
    keep_full: str = "auto"
    skip_wrong: bool = False


def write(
    source: Source,
    out: str | Path,
    *,
    size: tuple[int, int] = (240, 320),
    mask_extremes: str = "auto",
    max_depth: float = 10.0,
    keep_full: str = "auto",
    skip_wrong: bool = False,
    workers: int = 0,
    progress: Progress | None = None,
) -> Store:
    """Write a store into a folder, and open it. See `Packing` and `Job.write`."""
    packing = Packing(size, mask_extremes, max_depth, keep_full, skip_wrong)
    Job(source, packing).write(out, workers=workers, progress=progress)
    return Store.open(out)


def prepared(
    data: str | Source,
    *,
    cache_dir: Path,
    size: tuple[int, int],
    data_format: str = "auto",
    options: ReadOptions | None = None,
    mask_extremes: str = "auto",
    max_depth: float = 10.0,
    keep_full: str = "auto",
    workers: int = 0,
    progress: Progress | None = None,
) -> Store:
    """A store of the data: the given one, or one kept in the cache folder.

    What was prepared before, from the same files with the same options, is used again.
    A store at a URL is copied to the cache folder once.
    """
    if isinstance(data, str):
        if remote.is_remote(data):
            return remote.copied(data, cache_dir=cache_dir, progress=progress)
        if is_store(data):
            return Store.open(data)
        data = open_source(data, data_format=data_format, options=options)
    job = Job(data, Packing(size, mask_extremes, max_depth, keep_full), options)
    name = f"{data.format}-{size[0]}x{size[1]}-{job.key}"
    out = Path(cache_dir).expanduser() / name
    # A damaged one is made again: nothing else has that name.
    job.write(out, workers=workers, progress=progress, replace=True)
    return Store.open(out)


class Job:
    """A source that is to be packed in one way.

    Args:
      options: what the source was opened with.

    Attributes:
      key: 16 hex digits that change with the data and the options.
      splits: the source's.
      full_rows: rows whose full-size frames are kept.
      masked: kinds of truth that lose each frame's extremes.
    """

    def __init__(
        self, source: Source, packing: Packing, options: ReadOptions | None = None
    ):
        self.source, self.packing = source, packing
        self.options = {
            "packing": {**dataclasses.asdict(packing), "size": list(packing.size)},
            "read": dataclasses.asdict(options or ReadOptions()),
        }
        self._origin = source.fingerprint()
        self.key = self._key()
        self.splits = source.splits()
        mask = packing.mask_extremes
        self.masked = tuple(
            kind
            for kind in source.truths
            if not source.eight_bit
            and (mask == "on" or (mask == "auto" and kind == "raw"))
        )
        self.full_rows = self._full_rows()

    def _key(self) -> str:
        key = {
            "version": VERSION,
            "shards": [SHARD, FULL_SHARD, FULL_BYTES],
            "shrink": resample.VERSION,
            "format": self.source.format,
            "source": self._origin,
            **self.options,
        }
        text = json.dumps(key, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _full_rows(self) -> frozenset[int]:
        if self.packing.keep_full == "none":
            return frozenset()
        total = len(self.source.infos)
        wanted = {row for rows in self.splits.values() for row in rows["eval"]}
        few = not wanted and total <= FULL_AT_MOST
        if self.packing.keep_full == "all" or few:
            return frozenset(range(total))
        return frozenset(wanted)

    def finished(self, out: str | Path) -> dict[str, Any] | None:
        """The manifest of the store that this job made at a path or URL, if it did."""
        found = None
        with contextlib.suppress(UserError):  # what is wrong there is told later on
            if remote.is_remote(str(out)):
                found = remote.manifest_at(str(out))
            else:
                found = Store.open(out).manifest
        return found if found is not None and found.get("key") == self.key else None

    def write(
        self,
        out: str | Path,
        *,
        workers: int = 0,
        progress: Progress | None = None,
        replace: bool = False,
    ) -> dict[str, Any]:
        """Write the store, whole or not at all, unless it is there. Its manifest.

        A call that was stopped leaves its finished shards, in a hidden folder beside
        `out` or at the URL, where the next one with the same key goes on. For a
        folder, calls at the same time wait for one another.

        Args:
          out: a folder, or a URL that fsspec knows: there shards go up as they are
            finished, the manifest last.
          workers: processes that read; see `frames.in_order`.
          progress: called with (what, done, total).
          replace: remove what is at `out` and is no such store.

        Raises: UserError where `out` is in the way, the data are wrong, or no frame
          has truth; MachineError where storage fails.
        """
        try:
            if (found := self.finished(out)) is not None:
                return found
            if remote.is_remote(str(out)):
                with remote.Remote(str(out), self.key) as place:
                    return self._run(place, workers, progress)
            out = staging.folder_of(out, what="store")
            with staging.locked(out):
                if (found := self.finished(out)) is not None:
                    return found
                _make_way(out, replace=replace)
                with staging.Folder(out, self.key) as place:
                    return self._run(place, workers, progress)
        except OSError as error:
            raise MachineError(
                f"the store {out} could not be written: {error.strerror or error}"
            ) from error

    def _run(
        self, place: Place, workers: int, progress: Progress | None
    ) -> dict[str, Any]:
        """Pack what the place has no record of, and finish it."""
        total = len(self.source.infos)
        blocks = [
            range(first, min(first + SHARD, total)) for first in range(0, total, SHARD)
        ]
        records = place.records()
        todo = [number for number in range(len(blocks)) if number not in records]
        done = total - sum(len(blocks[number]) for number in todo)
        if done:
            logger.info("going on: %d of %d frames were packed before", done, total)
        rows = (row for number in todo for row in blocks[number])
        with contextlib.closing(
            in_order(self._packer(), rows, workers=workers, scratch=place.folder)
        ) as packed:
            for number in todo:
                block = _Block(number, place.folder, self.source.truths)
                for row in blocks[number]:
                    if progress is not None:
                        progress(f"preparing {self.source.name}", done, total)
                    block.add(row, next(packed))
                    done += 1
                records[number] = block.close()
                place.keep(number, records[number])
        if progress is not None:
            progress(f"preparing {self.source.name}", total, total)
        manifest = self._manifest([records[number] for number in range(len(blocks))])
        place.finish(manifest)
        return manifest

    def try_row(self, row: int) -> Packed:
        """Read and pack one frame, to see what it takes and what comes."""
        packer = self._packer()
        return packer.pack(row, packer.read(row))

    def _packer(self) -> Packer:
        return Packer(
            source=self.source,
            size=self.packing.size,
            masked=self.masked,
            max_mm=round(self.packing.max_depth * 1000),
            full_rows=self.full_rows,
            skip_wrong=self.packing.skip_wrong,
        )

    def _manifest(self, records: list[Record]) -> dict[str, Any]:
        """What manifest.json says, once all blocks are finished."""
        source, infos = self.source, self.source.infos
        kept = [row for record in records for row in record.kept]
        empty = [infos[row].name for record in records for row in record.empty]
        broken = [
            {"name": infos[row].name, "reason": reason}
            for record in records
            for row, reason in record.broken
        ]
        if not kept:
            raise UserError(f"{source.name}: {_nothing_left(len(infos), broken)}")
        place = {row: k for k, row in enumerate(kept)}
        return {
            "version": VERSION,
            "key": self.key,
            "name": source.name,
            "format": source.format,
            # What is listed file by file is in the key alone.
            "origin": {
                k: v
                for k, v in self._origin.items()
                if not isinstance(v, list | dict) or len(v) <= 8
            },
            "versions": self._versions(),
            "options": self.options,
            "size": list(self.packing.size),
            "depths": list(source.truths),
            "unit": "millimetre, 0 = missing",
            "intrinsics": self._camera(records),
            "mask_extremes": list(self.masked),
            "count": len(kept),
            "left_out": empty,
            "broken": broken,
            "splits": {
                name: {
                    part: [place[row] for row in rows if row in place]
                    for part, rows in split.items()
                }
                for name, split in self.splits.items()
            },
            "notes": self._notes(records, empty, broken),
            "frames": [
                {
                    "name": infos[row].name,
                    "scene": infos[row].scene,
                    "official_index": infos[row].official_index,
                }
                for row in kept
            ],
            "shards": [len(record.kept) for record in records],
            "full": {
                stem: [place[row] for row in rows]
                for record in records
                for stem, rows in record.full.items()
            },
            "files": {k: v for record in records for k, v in record.files.items()},
        }

    def _versions(self) -> dict[str, Any]:
        """Of what made the numbers: this package, NumPy, toolbox or renderer."""
        named = {
            k: self._origin[k] for k in ("toolbox", "renderer") if k in self._origin
        }
        return versions.installed(("jaxdepth", "numpy")) | named

    def _camera(self, records: list[Record]) -> dict[str, Any] | None:
        """Intrinsics at the training size where all frames share them."""
        found = {
            None if camera is None else tuple(camera)
            for record in records
            for camera in record.cameras
        }
        camera = found.pop() if len(found) == 1 else None
        if camera is None:
            return None
        named = dict(zip(("fx", "fy", "cx", "cy"), camera, strict=True))
        return {"size": list(self.packing.size), **named}

    def _notes(
        self, records: list[Record], empty: list[str], broken: list[dict[str, str]]
    ) -> list[str]:
        notes = list(self.source.notes)
        if broken:
            notes.append(
                f"{len(broken)} frames that can't be used left out, first "
                f"{broken[0]['name']}: {broken[0]['reason']}"
            )
        if empty:
            notes.append(
                f"{len(empty)} frames without any depth left out, first {empty[0]}"
            )
        if self.masked:
            kinds = " and ".join(self.masked)
            unmasked = sum(record.unmasked for record in records)
            notes.append(
                f"each frame's smallest and largest {kinds} depth left out "
                "(--mask_extremes)"
                + (f"; not in {unmasked} that have no other" if unmasked else "")
            )
        if self.source.eight_bit:
            notes.append("depth is 8-bit: steps of some centimetres, extremes kept")
        return notes


def _make_way(out: Path, *, replace: bool) -> None:
    """UserError where something is at `out`, unless that is to be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if replace:
        shutil.rmtree(out)
        return
    try:
        Store.open(out)
        why = "it is a store of other data or with other options"
    except UserError as error:
        why = str(error).removesuffix(": prepare it again")
    raise UserError(f"{out} exists and is not empty ({why}): name another folder")


def _nothing_left(total: int, broken: list[dict[str, str]]) -> str:
    if not broken:
        return f"none of {total} frames has depth"
    return (
        f"none of {total} frames can be used, first {broken[0]['name']}: "
        f"{broken[0]['reason']}"
    )


class _Block:
    """Frames on their way into one training shard and its full-size shards."""

    def __init__(self, number: int, folder: Path, kinds: tuple[str, ...]):
        self._number, self._folder, self._kinds = number, folder, kinds
        self._small: list[Arrays] = []
        self._full: dict[tuple[int, ...], list[tuple[int, Arrays]]] = {}
        self._bytes = 0  # of those
        self._cameras: dict[tuple[float, ...] | None, None] = {}
        self._record = Record()

    def add(self, row: int, frame: Packed) -> None:
        """Take the next frame; a full-size shard that is complete is written."""
        if frame.broken is not None:
            self._record.broken.append((row, frame.broken))
            return
        if frame.small is None:
            self._record.empty.append(row)
            return
        self._record.kept.append(row)
        self._record.unmasked += frame.unmasked
        self._cameras[frame.camera] = None
        self._small.append(frame.small)
        if frame.full is not None:
            size = frame.full["rgb"].shape[:2]
            self._full.setdefault(size, []).append((row, frame.full))
            # Many sizes share the memory that one would take.
            self._bytes += sum(x.nbytes for x in frame.full.values())
            held = sum(map(len, self._full.values()))
            if held >= FULL_SHARD or self._bytes >= FULL_BYTES:
                self._flush_full(max(self._full, key=lambda s: len(self._full[s])))

    def close(self) -> Record:
        """Write what is left; the record of all of it."""
        for size in list(self._full):
            self._flush_full(size)
        if self._small:
            self._save(f"train-{self._number:05d}", self._small)
        self._record.cameras = [None if c is None else list(c) for c in self._cameras]
        return self._record

    def _flush_full(self, size: tuple[int, ...]) -> None:
        rows, arrays = zip(*self._full.pop(size), strict=True)
        self._bytes -= sum(x.nbytes for one in arrays for x in one.values())
        stem = f"full-{self._number:05d}-{len(self._record.full)}"
        self._save(stem, arrays)
        self._record.full[stem] = list(rows)

    def _save(self, stem: str, arrays: Sequence[Arrays]) -> None:
        for kind in ("rgb", *self._kinds):
            name = f"{stem}.{kind}.npy"
            stacked = np.stack([one[kind] for one in arrays])
            self._record.files[name] = staging.save_npy(self._folder / name, stacked)
