"""Packed frames on disk: plain `.npy` shards and a JSON manifest.

A store is a folder. `manifest.json` says what is in it; `train-KKKKK.rgb.npy` holds
(n, h, w, 3) uint8 at the training size and `train-KKKKK.KIND.npy` (n, h, w) uint16
millimetres, 0 = missing, for each kind of truth ("filled", "raw"). The frames that
evaluation needs are there a second time at their own full size, as `full-KKKKK.*`,
shards of one size each. NumPy opens all of it without us.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8, UInt16

from jaxdepth.data.sources import Frame, ReadOptions, Source, open_source
from jaxdepth.errors import MachineError, UserError
from jaxdepth.ops import resize

logger = logging.getLogger(__name__)
VERSION = 1
MANIFEST = "manifest.json"
SHARD = 256  # frames of the training size in one file
FULL_SHARD = 64
Progress = Callable[[str, int, int], None]


class Store:
    """An open store. `open` reads the manifest; arrays are mapped when first used.

    Attributes:
      path: the folder.
      name: what results call the data.
      size: (height, width) of the training frames.
      depths: kinds of truth, "filled" first.
      splits: name -> {"train": rows, "eval": rows}.
      notes: lines that the user should read.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        self.name: str = manifest["name"]
        self.size: tuple[int, int] = tuple(manifest["size"])
        self.depths: tuple[str, ...] = tuple(manifest["depths"])
        self.splits: dict[str, dict[str, list[int]]] = manifest["splits"]
        self.notes: list[str] = manifest["notes"]
        self._shard: int = manifest["shard"]
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store. UserError where it is none, or of another version."""
        path = Path(path).expanduser()
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            version = manifest["version"]
            if version != VERSION:
                raise UserError(
                    f"{path} is a store of version {version}, this reads {VERSION}: "
                    "prepare it again"
                )
            found = cls(path, manifest)
            found._check_sizes()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is not a store: it has no {MANIFEST}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}/{MANIFEST} is damaged ({type(error).__name__}: {error}): "
                "prepare it again"
            ) from None
        return found

    def __len__(self) -> int:
        return len(self.manifest["frames"])

    def gather(
        self, rows: Sequence[int] | np.ndarray, *, depth: str
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], UInt16[np.ndarray, "n h w"]]:
        """Frames at the training size: colours, and millimetres of kind `depth`.

        UserError where the store has no truth of that kind.
        """
        if depth not in self.depths:
            raise UserError(
                f"{self.path} has no {depth} depth, but {' and '.join(self.depths)}"
            )
        rows = np.asarray(rows)
        rgb = np.empty((len(rows), *self.size, 3), np.uint8)
        millimetres = np.empty((len(rows), *self.size), np.uint16)
        shards, within = np.divmod(rows, self._shard)
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            rgb[here] = self._map(f"train-{shard:05d}.rgb.npy")[within[here]]
            name = f"train-{shard:05d}.{depth}.npy"
            millimetres[here] = self._map(name)[within[here]]
        return rgb, millimetres

    def full_frames(self, rows: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
        """Frames at their own size: `rgb`, `depth` {kind: metres}, `name`, `scene`.

        UserError where a row's full frame was not kept.
        """
        where = self._full_places
        for row in np.asarray(rows).tolist():
            info = self.manifest["frames"][row]
            if row not in where:
                raise UserError(
                    f"{self.path} keeps no full-size copy of {info['name']}: prepare "
                    "it again with all frames kept"
                )
            shard, place = where[row]
            stem = f"full-{shard:05d}"
            yield {
                "rgb": np.asarray(self._map(f"{stem}.rgb.npy")[place]),
                "depth": {
                    kind: self._map(f"{stem}.{kind}.npy")[place].astype(np.float32)
                    / np.float32(1000)
                    for kind in self.depths
                },
                "name": info["name"],
                "scene": info["scene"],
            }

    def has_full(self, row: int) -> bool:
        """Whether the row is there at its own size."""
        return row in self._full_places

    def check(self) -> None:
        """Compare every shard with its checksum. UserError names the first bad one."""
        for name, known in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file() or _sha256(file) != known["sha256"]:
                raise UserError(f"{self.path}/{name} is damaged: prepare it again")

    @functools.cached_property
    def _full_places(self) -> dict[int, tuple[int, int]]:
        return {
            row: (shard, place)
            for shard, rows in enumerate(self.manifest["full"])
            for place, row in enumerate(rows)
        }

    def _map(self, name: str) -> np.ndarray:
        # Threads may map a file twice, which does no harm.
        if name not in self._maps:
            try:
                self._maps[name] = np.load(
                    self.path / name, mmap_mode="r", allow_pickle=False
                )
            except (OSError, ValueError, EOFError, SyntaxError):
                raise UserError(
                    f"{self.path}/{name} is missing or damaged: prepare it again"
                ) from None
        return self._maps[name]

    def _check_sizes(self) -> None:
        for name, known in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != known["bytes"]:
                raise UserError(f"{file} is missing or cut short: prepare it again")


def is_store(path: str | Path) -> bool:
    return (Path(path).expanduser() / MANIFEST).is_file()


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
    progress: Progress | None = None,
) -> Store:
    """A store of the data: the given one, or one kept in the cache folder.

    What was prepared before, from the same files with the same options, is used again.
    """
    if isinstance(data, str):
        if is_store(data):
            return Store.open(data)
        data = open_source(data, data_format=data_format, options=options)
    key = {
        "version": VERSION,
        "format": data.format,
        "size": size,
        "mask_extremes": mask_extremes,
        "max_depth": max_depth,
        "keep_full": keep_full,
        **data.fingerprint(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    out = Path(cache_dir).expanduser() / f"{data.format}-{size[0]}x{size[1]}-{digest}"
    if is_store(out):
        with contextlib.suppress(UserError):  # a damaged one is made again
            return Store.open(out)
        shutil.rmtree(out, ignore_errors=True)
    return write(
        data,
        out,
        size=size,
        mask_extremes=mask_extremes,
        max_depth=max_depth,
        keep_full=keep_full,
        progress=progress,
    )


def write(
    source: Source,
    out: str | Path,
    *,
    size: tuple[int, int] = (240, 320),
    mask_extremes: str = "auto",
    max_depth: float = 10.0,
    keep_full: str = "auto",
    progress: Progress | None = None,
) -> Store:
    """Write a store, whole or not at all.

    Args:
      size: (height, width) of the training frames. A frame is shrunk to cover it and
        cut to its aspect; colour by area mean, depth by the mean over valid area.
      mask_extremes: remove pixels equal to the frame's own smallest or largest valid
        millimetre (the paper, section 4) before any resize; "auto": of raw depth.
        Never of 8-bit truth, nor where nothing would be left.
      max_depth: metres; farther truth is no truth for `mask_extremes`.
      keep_full: "auto" keeps full-size copies of frames that a split evaluates on,
        and of all where no split does; "all" of all.
      progress: called with (what, done, total).

    Raises: UserError where `out` is in the way or no frame has truth; MachineError
      where storage fails.
    """
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty: name another folder")
    part: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}"
        part.mkdir()
        _Writer(source, part, size, mask_extremes, max_depth, keep_full).write(progress)
        try:
            os.replace(part, out)
        except OSError:
            if not is_store(out):  # or else another run was first: its store is ours
                raise
        return Store.open(out)
    except OSError as error:
        raise MachineError(
            f"the store {out} could not be written: {error.strerror or error}"
        ) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


class _Writer:
    """Writes a source's frames into a folder, shard by shard."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        size: tuple[int, int],
        mask_extremes: str,
        max_depth: float,
        keep_full: str,
    ):
        self.source, self.folder, self.size = source, folder, size
        self.kinds = source.truths
        self.max_mm = round(max_depth * 1000)
        self.masked = [
            kind
            for kind in self.kinds
            if not source.eight_bit
            and (mask_extremes == "on" or (mask_extremes == "auto" and kind == "raw"))
        ]
        splits = source.splits()
        wanted = {row for rows in splits.values() for row in rows["eval"]}
        everything = set(range(len(source.infos)))
        self.full_rows = everything if keep_full == "all" or not wanted else wanted
        self.kept: list[int] = []
        self.empty: list[str] = []
        self.unmasked = 0
        self.files: dict[str, dict[str, Any]] = {}
        self.waiting: list[dict[str, np.ndarray]] = []
        self.full: dict[tuple[int, int], list[tuple[int, dict[str, np.ndarray]]]] = {}
        self.full_shards: list[list[int]] = []
        self.shards = 0
        self.cameras: set[tuple[float, ...] | None] = set()

    def write(self, progress: Progress | None) -> None:
        total = len(self.source.infos)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            # Frames are read here, one by one, and resized on threads.
            for first in range(0, total, 16):
                rows = range(first, min(first + 16, total))
                frames = [self.source.frame(row) for row in rows]
                for row, packed in zip(rows, pool.map(self._pack, frames), strict=True):
                    self._add(row, *packed)
                self.cameras |= {
                    _intrinsics(frame, self.size)
                    for row, frame in zip(rows, frames, strict=True)
                    if row in self.kept[-len(rows) :]
                }
                if progress is not None:
                    progress(f"preparing {self.source.name}", rows[-1] + 1, total)
        self._flush()
        for size in list(self.full):
            self._flush_full(size)
        if not self.kept:
            raise UserError(f"{self.source.name}: none of {total} frames has depth")
        text = json.dumps(self._manifest(), indent=1)
        (self.folder / MANIFEST).write_text(text)

    def _pack(self, frame: Frame) -> tuple[dict, dict, bool, int]:
        """Arrays at both sizes, whether there is truth, frames left unmasked."""
        depths = {kind: millimetres(depth) for kind, depth in frame.depths.items()}
        if not any(depth.any() for depth in depths.values()):
            return {}, {}, False, 0
        full = {"rgb": frame.rgb, **depths}
        unmasked = 0
        for kind in self.masked:
            masked = without_extremes(full[kind], max_mm=self.max_mm)
            unmasked += masked is None
            full[kind] = full[kind] if masked is None else masked
        small = {k: _to_size(x, self.size) for k, x in full.items()}
        return full, small, True, unmasked

    def _add(self, row: int, full: dict, small: dict, truth: bool, unmasked: int):
        if not truth:
            self.empty.append(self.source.infos[row].name)
            return
        self.unmasked += unmasked
        place = len(self.kept)
        self.kept.append(row)
        self.waiting.append(small)
        if len(self.waiting) == SHARD:
            self._flush()
        if row in self.full_rows:
            size = full["rgb"].shape[:2]
            self.full.setdefault(size, []).append((place, full))
            # Many sizes share the room that one would have.
            if sum(map(len, self.full.values())) == FULL_SHARD:
                self._flush_full(max(self.full, key=lambda s: len(self.full[s])))

    def _flush(self) -> None:
        if self.waiting:
            self._save(f"train-{self.shards:05d}", self.waiting)
            self.shards += 1
            self.waiting = []

    def _flush_full(self, size: tuple[int, int]) -> None:
        frames = self.full.pop(size)
        self._save(f"full-{len(self.full_shards):05d}", [f for _, f in frames])
        self.full_shards.append([place for place, _ in frames])

    def _save(self, stem: str, frames: list[dict[str, np.ndarray]]) -> None:
        for kind in ("rgb", *self.kinds):
            name = f"{stem}.{kind}.npy"
            frames_of_kind = np.stack([frame[kind] for frame in frames])
            self.files[name] = _save_npy(self.folder / name, frames_of_kind)

    def _camera(self) -> dict[str, Any] | None:
        """Intrinsics at the training size where all frames share them."""
        camera = next(iter(self.cameras)) if len(self.cameras) == 1 else None
        if camera is None:
            return None
        named = dict(zip(("fx", "fy", "cx", "cy"), camera, strict=True))
        return {"size": list(self.size), **named}

    def _manifest(self) -> dict[str, Any]:
        source = self.source
        place = {row: k for k, row in enumerate(self.kept)}
        splits = {
            name: {
                part: [place[r] for r in rows if r in place] for part, rows in s.items()
            }
            for name, s in source.splits().items()
        }
        notes = list(source.notes)
        if self.empty:
            notes.append(
                f"{len(self.empty)} frames without any depth left out, first "
                f"{self.empty[0]}"
            )
        if self.masked:
            notes.append(
                f"each frame's smallest and largest {' and '.join(self.masked)} depth "
                "left out (--mask_extremes)"
                + (
                    f"; not in {self.unmasked} that have no other"
                    if self.unmasked
                    else ""
                )
            )
        if source.eight_bit:
            notes.append("depth is 8-bit: steps of some centimetres, extremes kept")
        return {
            "version": VERSION,
            "jaxdepth": metadata.version("jaxdepth"),
            "name": source.name,
            "format": source.format,
            "origin": source.fingerprint(),
            "size": list(self.size),
            "shard": SHARD,
            "depths": list(self.kinds),
            "unit": "millimetre, 0 = missing",
            "intrinsics": self._camera(),
            "mask_extremes": self.masked,
            "count": len(self.kept),
            "left_out": self.empty,
            "splits": splits,
            "notes": notes,
            "frames": [
                {
                    "name": source.infos[row].name,
                    "scene": source.infos[row].scene,
                    "official_index": source.infos[row].official_index,
                }
                for row in self.kept
            ],
            "full": self.full_shards,
            "files": self.files,
        }


def _intrinsics(frame: Frame, size: tuple[int, int]) -> tuple[float, ...] | None:
    """The frame's fx, fy, cx, cy after `_to_size`."""
    if frame.intrinsics is None:
        return None
    fx, fy, cx, cy = frame.intrinsics
    top, left, rows, columns = _box(frame.rgb.shape[:2], size)
    sy, sx = size[0] / rows, size[1] / columns
    # A pixel's centre, not its corner, has the whole number.
    return (
        fx * sx, fy * sy,
        (cx - left + 0.5) * sx - 0.5, (cy - top + 0.5) * sy - 0.5,
    )  # fmt: skip


def millimetres(depth: np.ndarray) -> UInt16[np.ndarray, "h w"]:
    """Metres to whole millimetres; what uint16 can't hold, or is not there, is 0."""
    scaled = np.round(np.asarray(depth, np.float64) * 1000)
    good = np.isfinite(scaled) & (scaled > 0) & (scaled <= 65535)
    return np.where(good, scaled, 0).astype(np.uint16)


def without_extremes(depth_mm: np.ndarray, *, max_mm: int) -> np.ndarray | None:
    """The frame without the pixels that equal its own smallest or largest valid one.

    None where nothing would be left.
    """
    valid = (depth_mm > 0) & (depth_mm <= max_mm)
    if not valid.any():
        return None
    low, high = depth_mm[valid].min(), depth_mm[valid].max()
    kept = np.where(valid & ((depth_mm == low) | (depth_mm == high)), 0, depth_mm)
    return kept if (kept[valid] > 0).any() else None


def _to_size(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cover `size` and cut to its aspect about the centre; keeps the dtype."""
    if array.shape[:2] == size:
        return array
    array = _cut_to_aspect(array, size)
    factors = {old / new for old, new in zip(array.shape[:2], size, strict=True)}
    if len(factors) == 1 and (factor := factors.pop()).is_integer():
        return _shrink_by(array, int(factor))
    array = array[None]
    if array.ndim == 4:
        shrunk = min(array.shape[1], size[0]), min(array.shape[2], size[1])
        small = resize.resize_area(array.astype(np.float32), shrunk)
        small = resize.resize_bilinear(small, size)
        return np.floor(np.asarray(small[0]) + 0.5).clip(0, 255).astype(np.uint8)
    if array.shape[1] < size[0] or array.shape[2] < size[1]:
        rows, columns = (
            (np.arange(n) * old) // n
            for n, old in zip(size, array.shape[1:], strict=True)
        )
        return array[0][np.ix_(rows, columns)]
    depth, valid = resize.masked_area(array.astype(np.float32), array > 0, size)
    return np.where(valid, np.round(depth), 0)[0].astype(np.uint16)


def _shrink_by(array: np.ndarray, factor: int) -> np.ndarray:
    """What `_to_size` does for a whole factor, in integers: several times faster."""
    blocks = [array[i::factor, j::factor] for i in range(factor) for j in range(factor)]
    total = np.zeros(blocks[0].shape, np.uint32)
    for block in blocks:
        total += block
    if array.ndim == 3:
        area = factor * factor
        return ((2 * total + area) // (2 * area)).astype(np.uint8)
    valid = np.zeros(total.shape, np.uint32)
    for block in blocks:
        valid += block > 0
    return np.round(total / np.maximum(valid, 1)).astype(np.uint16)


def _cut_to_aspect(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    top, left, rows, columns = _box(array.shape[:2], size)
    return array[top : top + rows, left : left + columns]


def _box(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest middle part with `size`'s aspect."""
    height, width = shape
    scale = min(height / size[0], width / size[1])
    rows = min(height, max(1, round(size[0] * scale)))
    columns = min(width, max(1, round(size[1] * scale)))
    # One pixel of rounding is no reason to cut.
    rows = height if height - rows <= 1 else rows
    columns = width if width - columns <= 1 else columns
    return (height - rows) // 2, (width - columns) // 2, rows, columns


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


def _save_npy(file: Path, array: np.ndarray) -> dict[str, Any]:
    """Write `array` as .npy; its size and checksum for the manifest."""
    with open(file, "wb") as stream:
        checked = _Checked(stream)
        np.save(checked, array)
    return {"bytes": checked.size, "sha256": checked.digest.hexdigest()}


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
