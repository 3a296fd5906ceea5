"""Writes a store from any source: reads frames, resizes them, writes shards.

`write` writes to a given folder, `prepare` to the cache folder. A call that was stopped
resumes after its last finished shard (see `staging.py`).
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdepth import camera as camera_lib
from jaxdepth.camera import Camera
from jaxdepth.data import split, units
from jaxdepth.data.sources import ReadOptions, Source, open_source
from jaxdepth.data.store import remote, resample, staging
from jaxdepth.data.store.frames import Arrays, Packed, Packer, in_order
from jaxdepth.data.store.manifest import VERSION, sealed, version_of
from jaxdepth.data.store.reader import Store, is_store
from jaxdepth.data.store.staging import MOST_SIZES, Record, StagingArea
from jaxdepth.runtime import storage, versions
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.progress import Progress

logger = logging.getLogger(__name__)
SHARD = 128  # source frames per training shard
FULL_SHARD = 64  # frames per full-size shard
FULL_BYTES = 256 << 20  # full-size frames buffered until a shard is written
# A source without an evaluation split may itself be an evaluation set if it has at most
# this many frames: full-size copies of all of them are kept. Copies take 1.5 MB per
# frame; none are kept of larger sources (a raw dump, a list of training frames).
FULL_AT_MOST = 1000


@dataclasses.dataclass(frozen=True)
class Packing:
    """The options of a store; part of its key.

    Attributes:
      size: (height, width) of the training frames.
      mask_extremes: "on": before any resize, remove pixels equal to the frame's
        minimum or maximum valid depth (the paper, section 4), except from 8-bit depth
        and where no depth would be left; "auto": only from raw depth; "off".
      max_depth: metres; depth beyond it is missing in the training frames, and ignored
        by `mask_extremes`. It determines `depth_unit`.
      keep_full: the frames of which full-size copies are kept: "auto": those that a
        split evaluates on, or without such a split all frames if there are at most
        `FULL_AT_MOST`; "all"; "none".
      skip_wrong: leave out and list all frames for which the source raises UserError,
        not only those whose files can't be read.
      eval_fraction, test_scenes: see `split.complete`.
    """

    size: tuple[int, int] = (240, 320)
    mask_extremes: str = "auto"
    max_depth: float = 10.0
    keep_full: str = "auto"
    skip_wrong: bool = False
    eval_fraction: float = 0.1
    test_scenes: str = "drop"

    @property
    def depth_unit(self) -> int:
        """Codes per metre of the stored depth."""
        return units.depth_unit(self.max_depth)


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
    """Write a store to a folder and open it. See `Packing` and `Job.write`."""
    packing = Packing(size, mask_extremes, max_depth, keep_full, skip_wrong)
    Job(source, packing).write(out, workers=workers, progress=progress)
    return Store.open(out)


def prepare(
    data: str | Source,
    packing: Packing,
    *,
    cache_dir: Path,
    data_format: str = "auto",
    options: ReadOptions | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Store:
    """Open `data` as a store; if it is not one, prepare one in the cache folder.

    A store that was prepared from the same files with the same options is reused. A
    store at a URL is downloaded to the cache folder once.
    """
    if isinstance(data, str):
        if remote.is_remote(data):
            return remote.download(data, cache_dir=cache_dir, progress=progress)
        if is_store(data):
            return Store.open(data)
        data = open_source(data, data_format=data_format, options=options)
    job = Job(data, packing, options)
    out = job.folder(cache_dir)
    # Replace a damaged store; nothing else can have that name.
    job.write(out, workers=workers, progress=progress, replace=True)
    return Store.open(out)


class Job:
    """Writes a store from a source, with given options.

    Args:
      options: the options with which the source was opened.

    Attributes:
      key: 16 hexadecimal digits, a hash of the data and the options.
      splits: the splits of the source, completed by the rules of `split`.
      full_rows: rows of which full-size copies are kept.
      masked: kinds of depth whose extremes are removed from each frame.
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
        self.splits, self._split_notes = split.complete(
            source,
            eval_fraction=packing.eval_fraction,
            test_scenes=packing.test_scenes,
        )
        mask = packing.mask_extremes
        self.masked = tuple(
            kind
            for kind in source.truths
            if not source.eight_bit
            and (mask == "on" or (mask == "auto" and kind == "raw"))
        )
        self.full_rows = self._full_rows()

    def folder(self, cache_dir: Path) -> Path:
        """The folder of this store in a cache folder."""
        (height, width), name = self.packing.size, self.source.format
        return Path(cache_dir).expanduser() / f"{name}-{height}x{width}-{self.key}"

    def _key(self) -> str:
        key = {
            "version": VERSION,
            "shards": [SHARD, FULL_SHARD, FULL_BYTES],
            "shrink": resample.VERSION,
            "depth_unit": self.packing.depth_unit,
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
        evaluated = {row for rows in self.splits.values() for row in rows["eval"]}
        own = any(s["eval"] for n, s in self.splits.items() if n != split.HELD_OUT)
        small = not own and total <= FULL_AT_MOST
        if self.packing.keep_full == "all" or small:
            return frozenset(range(total))
        return frozenset(evaluated)

    def finished(self, out: str | Path) -> dict[str, Any] | None:
        """Return the manifest at a path or URL if this job wrote that store."""
        manifest = None
        with contextlib.suppress(UserError):  # `write` reports it
            if remote.is_remote(str(out)):
                manifest = remote.manifest_at(str(out))
            else:
                manifest = Store.open(out).manifest
        if manifest is None or manifest.get("key") != self.key:
            return None
        return manifest

    def write(
        self,
        out: str | Path,
        *,
        workers: int = 0,
        progress: Progress | None = None,
        replace: bool = False,
    ) -> dict[str, Any]:
        """Write the store atomically, unless it exists; return its manifest.

        A call that was stopped leaves its finished shards in a hidden folder beside
        `out`, or at the URL, and the next call with the same key resumes. Parallel
        calls for the same folder wait for each other.

        Args:
          out: a folder, or a URL that fsspec supports, to which finished shards are
            uploaded, and the manifest last.
          workers: the number of processes that read; see `frames.in_order`.
          progress: called with (what, done, total).
          replace: delete anything else at `out`.

        Raises: UserError if `out` holds something else, the data are wrong, or no
          frame has depth; MachineError if storage fails.
        """
        with storage.write_errors(f"the store {out}"):
            if (manifest := self.finished(out)) is not None:
                return manifest
            if remote.is_remote(str(out)):
                with remote.RemoteStaging(str(out), self.key) as area:
                    return self._run(area, workers, progress)
            out = staging.resolve_output(out, what="store")
            with staging.locked(out):
                if (manifest := self.finished(out)) is not None:
                    return manifest
                _check_free(out, replace=replace)
                with staging.LocalStaging(out, self.key) as area:
                    return self._run(area, workers, progress)

    def _run(
        self, area: StagingArea, workers: int, progress: Progress | None
    ) -> dict[str, Any]:
        """Write the blocks that the staging area does not have, and publish it."""
        total = len(self.source.infos)
        blocks = [
            range(first, min(first + SHARD, total)) for first in range(0, total, SHARD)
        ]
        records = area.records()
        todo = [number for number in range(len(blocks)) if number not in records]
        done = total - sum(len(blocks[number]) for number in todo)
        if done:
            logger.info("resuming: %d of %d frames are packed already", done, total)
        rows = (row for number in todo for row in blocks[number])
        with contextlib.closing(
            in_order(self._packer(), rows, workers=workers, scratch=area.folder)
        ) as packed:
            for number in todo:
                block = _Block(number, area.folder, self.source.truths)
                for row in blocks[number]:
                    if progress is not None:
                        progress(f"preparing {self.source.name}", done, total)
                    block.add(row, next(packed))
                    done += 1
                records[number] = block.close()
                area.commit(number, records[number])
        if progress is not None:
            progress(f"preparing {self.source.name}", total, total)
        ordered = [records[number] for number in range(len(blocks))]
        manifest = sealed(self._manifest(ordered))
        area.publish(manifest)
        return manifest

    def try_row(self, row: int) -> Packed:
        """Read and pack one frame, to measure the time."""
        packer = self._packer()
        return packer.pack(row, packer.read(row))

    def _packer(self) -> Packer:
        return Packer(
            source=self.source,
            size=self.packing.size,
            masked=self.masked,
            depth_unit=self.packing.depth_unit,
            last_code=units.last_code(self.packing.max_depth, self.packing.depth_unit),
            full_rows=self.full_rows,
            skip_wrong=self.packing.skip_wrong,
        )

    def _manifest(self, records: list[Record]) -> dict[str, Any]:
        """The content of manifest.json, from the records of all blocks."""
        source, infos = self.source, self.source.infos
        kept = [row for record in records for row in record.kept]
        empty = [infos[row].name for record in records for row in record.empty]
        broken = [
            {"name": infos[row].name, "reason": reason}
            for record in records
            for row, reason in record.broken
        ]
        if not kept:
            scale = getattr(source, "scale", None)
            reason = _no_frames_reason(len(infos), broken, _read(records), scale)
            raise UserError(f"{source.name}: {reason}")
        stored = {row: k for k, row in enumerate(kept)}
        return {
            "version": version_of(self.packing.depth_unit),
            "key": self.key,
            "name": source.name,
            "format": source.format,
            # Long lists, such as one entry per file, are part of the key only.
            "origin": {
                k: v
                for k, v in self._origin.items()
                if not isinstance(v, list | dict) or len(v) <= 8
            },
            "versions": versions.installed(("jaxdepth", "numpy"))
            | {k: v for k, v in self._origin.items() if k in ("toolbox", "renderer")},
            "options": self.options,
            "size": list(self.packing.size),
            "depths": list(source.truths),
            "unit": f"1/{self.packing.depth_unit} metre, 0 = missing",
            "depth_unit": self.packing.depth_unit,
            # As it was read, before --max_depth and --mask_extremes.
            "read": {k: summary.to_dict() for k, summary in _read(records).items()},
            "depth_scale": getattr(source, "scale", None),
            "mask_extremes": list(self.masked),
            "count": len(kept),
            "left_out": empty,
            "broken": broken,
            "splits": self._stored_splits(stored),
            "notes": self._notes(records, empty, broken),
            **self._frames(records),
            "shards": [len(record.kept) for record in records],
            "full": {
                stem: [stored[row] for row in rows]
                for record in records
                for stem, rows in record.full.items()
            },
            "files": {k: v for record in records for k, v in record.files.items()},
        }

    def _frames(self, records: list[Record]) -> dict[str, Any]:
        """The entries of the manifest that describe frames and their cameras.

        A frame's `camera` is an index into `cameras`, or null. All are at the training
        size; `camera` of the manifest is the median of those that are known.
        """
        cameras = [
            None if camera is None else Camera(*camera)
            for record in records
            for camera in record.cameras
        ]
        known = [camera for camera in cameras if camera is not None]
        median = camera_lib.median(known)
        index = {camera: k for k, camera in enumerate(dict.fromkeys(known))}
        kept = (
            (self.source.infos[row], digest)
            for record in records
            for row, digest in zip(record.kept, record.digests, strict=True)
        )
        return {
            "camera": None
            if median is None
            else {"size": list(self.packing.size), **median._asdict()},
            "cameras": [list(camera) for camera in index],
            "frames": [
                {
                    "name": info.name,
                    "scene": info.scene,
                    "official_index": info.official_index,
                    "digest": digest,
                    "camera": None if camera is None else index[camera],
                }
                for (info, digest), camera in zip(kept, cameras, strict=True)
            ],
        }

    def _stored_splits(self, stored: dict[int, int]) -> dict[str, dict[str, list[int]]]:
        """The splits of the source, as rows of the store."""
        return {
            name: {
                part: [stored[row] for row in rows if row in stored]
                for part, rows in parts.items()
            }
            for name, parts in self.splits.items()
        }

    def _notes(
        self, records: list[Record], empty: list[str], broken: list[dict[str, str]]
    ) -> list[str]:
        notes = [*self.source.notes, *self._split_notes]
        if broken:
            notes.append(
                f"left out {len(broken)} frames that can't be used, first "
                f"{broken[0]['name']}: {broken[0]['reason']}"
            )
        if empty:
            notes.append(
                f"left out {len(empty)} frames without any depth, first {empty[0]}"
            )
        sizes = {(h, w) for record in records for h, w in record.sizes}
        notes += resample.crop_notes(sorted(sizes), self.packing.size)
        if self.masked:
            kinds = " and ".join(self.masked)
            unmasked = sum(record.unmasked for record in records)
            notes.append(
                f"masked each frame's smallest and largest {kinds} depth "
                "(--mask_extremes)"
                + (
                    f", except in {unmasked} depth maps that hold no other depth"
                    if unmasked
                    else ""
                )
            )
        if self.source.eight_bit:
            notes.append(
                "depth is 8-bit, in steps of some centimetres: no extremes are masked"
            )
        return notes


def _check_free(out: Path, *, replace: bool) -> None:
    """Raise UserError if `out` exists and is not empty; delete it if `replace`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if replace:
        shutil.rmtree(out)
        return
    try:
        Store.open(out)
        why = "it is a store of other data, or written with other options"
    except UserError as error:
        why = str(error).removesuffix(": prepare it again")
    raise UserError(f"{out} exists and is not empty ({why}): name another folder")


def _read(records: list[Record]) -> dict[str, units.Summary]:
    """Summaries of all depth that was read, by kind."""
    totals: dict[str, units.Summary] = {}
    for record in records:
        for kind, values in record.read.items():
            summary = units.Summary.from_dict(values)
            totals.setdefault(kind, units.Summary()).add(summary)
    return totals


def _no_frames_reason(
    total: int,
    broken: list[dict[str, str]],
    read: dict[str, units.Summary],
    scale: float | None,
) -> str:
    summary = next(iter(read.values()), units.Summary())
    if not broken and summary.valid:
        reason = f"none of {total} frames has depth within --max_depth ({summary})"
        table = "" if scale is None else f"; {units.candidates(summary, scale=scale)}"
        return reason + table
    if not broken:
        return f"none of {total} frames has depth"
    return (
        f"none of {total} frames can be used, first {broken[0]['name']}: "
        f"{broken[0]['reason']}"
    )


class _Block:
    """Collects frames into one training shard and its full-size shards."""

    def __init__(self, number: int, folder: Path, kinds: tuple[str, ...]):
        self._number, self._folder, self._kinds = number, folder, kinds
        self._small: list[Arrays] = []
        self._full: dict[tuple[int, ...], list[tuple[int, Arrays]]] = {}
        self._full_bytes = 0
        self._read: dict[str, units.Summary] = {}
        self._record = Record()

    def add(self, row: int, frame: Packed) -> None:
        """Add the next frame; write a full-size shard when it is complete."""
        if frame.broken is not None:
            self._record.broken.append((row, frame.broken))
            return
        for kind, summary in frame.read.items():
            self._read.setdefault(kind, units.Summary()).add(summary)
        if frame.small is None:
            self._record.empty.append(row)
            return
        self._record.kept.append(row)
        self._record.unmasked += frame.unmasked
        digest = hashlib.sha256(frame.small["rgb"].tobytes())
        self._record.digests.append(digest.hexdigest()[:16])
        camera = frame.camera
        self._record.cameras.append(None if camera is None else list(camera))
        size = list(frame.size)
        if size not in self._record.sizes and len(self._record.sizes) < MOST_SIZES:
            self._record.sizes.append(size)
        self._small.append(frame.small)
        if frame.full is not None:
            size = frame.full["rgb"].shape[:2]
            self._full.setdefault(size, []).append((row, frame.full))
            # The limits apply to all sizes together, because there may be many.
            self._full_bytes += sum(x.nbytes for x in frame.full.values())
            count = sum(map(len, self._full.values()))
            if count >= FULL_SHARD or self._full_bytes >= FULL_BYTES:
                self._flush_full(max(self._full, key=lambda s: len(self._full[s])))

    def close(self) -> Record:
        """Write the remaining shards; return the record of the block."""
        for size in list(self._full):
            self._flush_full(size)
        if self._small:
            self._save(f"train-{self._number:05d}", self._small)
        self._record.read = {k: summary.to_dict() for k, summary in self._read.items()}
        return self._record

    def _flush_full(self, size: tuple[int, ...]) -> None:
        rows, arrays = zip(*self._full.pop(size), strict=True)
        self._full_bytes -= sum(x.nbytes for frame in arrays for x in frame.values())
        stem = f"full-{self._number:05d}-{len(self._record.full)}"
        self._save(stem, arrays)
        self._record.full[stem] = list(rows)

    def _save(self, stem: str, arrays: Sequence[Arrays]) -> None:
        for kind in ("rgb", *self._kinds):
            name = f"{stem}.{kind}.npy"
            stacked = np.stack([frame[kind] for frame in arrays])
            self._record.files[name] = staging.save_npy(self._folder / name, stacked)
