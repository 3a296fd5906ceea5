"""Reads a store: a folder of `.npy` shards and a JSON manifest, `manifest.json`.

`train-KKKKK.rgb.npy` holds (n, h, w, 3) uint8 at the training size, and
`train-KKKKK.KIND.npy` (n, h, w) uint16 codes for each kind of depth ("filled", "raw"):
metres = code / `depth_unit` of the manifest, 0 = missing. The manifest's `shards` lists
n of each shard. Frames for evaluation are also stored at their full size, in
`full-KKKKK-J.*` with one size per shard; the manifest's `full` lists their rows. NumPy
can read the shards without this package. `writer.py` writes stores.
"""

import contextlib
import functools
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

from jaxdepth.camera import Camera
from jaxdepth.data import units
from jaxdepth.data.store import manifest as manifest_lib
from jaxdepth.data.store import resample
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError

MANIFEST = "manifest.json"
_locks: dict[Path, threading.Lock] = {}  # of files whose checksum is being computed
_checksums: dict[tuple, str] = {}  # SHA-256 by path and state of the file


class Store:
    """A store. `open` reads the manifest; arrays are memory-mapped on first use.

    A shard's checksum is verified when it is first used in a process. The threads
    that load batches read the whole shard for that, at 2 GB/s or more from the page
    cache.

    Attributes:
      path: the folder.
      name: the name of the data set in results.
      size: (height, width) of the training frames.
      depths: the kinds of depth, "filled" first.
      depth_unit: codes per metre: 1000, or 256 for a --max_depth beyond 65.535 m.
      splits: name -> {"train": rows, "eval": rows}.
      notes: lines to show to the user.
    """

    depth_unit: int = 1000  # of stores of earlier versions

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        self.name: str = manifest["name"]
        self.size: tuple[int, int] = tuple(manifest["size"])
        self.depths: tuple[str, ...] = tuple(manifest["depths"])
        self.splits: dict[str, dict[str, list[int]]] = manifest["splits"]
        self.notes: list[str] = manifest["notes"]
        self.depth_unit = manifest.get("depth_unit", self.depth_unit)
        self._ends = np.cumsum(manifest["shards"])
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store. Raises UserError if it is damaged or of another version."""
        path = Path(path).expanduser()
        try:
            regular.check(path / MANIFEST)
            text = (path / MANIFEST).read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is not a store: it has no {MANIFEST}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}/{MANIFEST} can't be read: {error}") from None
        manifest = parse_manifest(text, where=str(path))
        store = cls(path, manifest)
        store._check_sizes()
        _allow_open_files(len(manifest["files"]))
        return store

    def __len__(self) -> int:
        return len(self.manifest["frames"])

    def gather(
        self, rows: Sequence[int] | np.ndarray, *, depth: str
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], UInt16[np.ndarray, "n h w"]]:
        """Read frames at the training size: colour, and depth codes, see `metres`.

        Args:
          depth: the kind of depth, "filled" or "raw".

        Raises UserError if the store has no such depth, or a shard is damaged.
        """
        self._check_depth(depth)
        rows = np.asarray(rows)
        rgb = np.empty((len(rows), *self.size, 3), np.uint8)
        codes = np.empty((len(rows), *self.size), np.uint16)
        shards = np.searchsorted(self._ends, rows, side="right")
        for shard in np.unique(shards):
            selected = np.flatnonzero(shards == shard)
            count = self.manifest["shards"][shard]
            within = rows[selected] - (self._ends[shard] - count)
            stem = f"train-{shard:05d}"
            rgb[selected] = self._map(f"{stem}.rgb.npy")[within]
            codes[selected] = self._map(f"{stem}.{depth}.npy")[within]
        return rgb, codes

    def _check_depth(self, kind: str) -> None:
        if kind not in self.depths:
            raise UserError(
                f"{self.path} has no {kind} depth, but {' and '.join(self.depths)}"
            )

    def metres(self, codes: UInt16[np.ndarray, "*n"]) -> Float32[np.ndarray, "*n"]:
        """Convert depth codes of this store to metres, 0 = missing."""
        return codes.astype(np.float32) / np.float32(self.depth_unit)

    def full_frames(self, rows: Sequence[int] | np.ndarray) -> Iterator[dict[str, Any]]:
        """Read frames at full size.

        Yields: `rgb`, `depth` {kind: metres}, `name`, `scene`, and `camera`, a `Camera`
          at full size or None.

        Raises UserError if the store has no full-size copy of a row.
        """
        for row in np.asarray(rows).tolist():
            info = self.manifest["frames"][row]
            if not self.has_full(row):
                raise UserError(
                    f"{self.path} has no full-size copy of {info['name']}: prepare it "
                    "again with --keep_full=all"
                )
            stem, index = self._full_indices[row]
            rgb = np.asarray(self._map(f"{stem}.rgb.npy")[index])
            camera = self.camera(row)
            yield {
                "rgb": rgb,
                "depth": {
                    kind: self.metres(self._map(f"{stem}.{kind}.npy")[index])
                    for kind in self.depths
                },
                "name": info["name"],
                "scene": info["scene"],
                "camera": camera
                and resample.frame_camera(camera, self.size, rgb.shape[:2]),
            }

    def camera(self, row: int) -> Camera | None:
        """The camera of a frame at the training size; None if it is unknown."""
        index = self.manifest["frames"][row].get("camera")
        return None if index is None else Camera(*self.manifest["cameras"][index])

    def full_sizes(self, rows: Sequence[int] | np.ndarray) -> set[tuple[int, int]]:
        """Return the full sizes, (height, width), of those rows that have one."""
        rows = np.asarray(rows).tolist()
        stems = {self._full_indices[row][0] for row in rows if self.has_full(row)}
        shapes = (self._map(f"{stem}.rgb.npy").shape for stem in stems)
        return {(height, width) for _, height, width, _ in shapes}

    def has_full(self, row: int) -> bool:
        """Whether the store has a full-size copy of the row."""
        return row in self._full_indices

    def damaged(self, progress: Callable | None = None) -> list[str]:
        """Return the names of shards that differ from their checksums; reads them all.

        Args:
          progress: called with (what, done, total).
        """
        files = self.manifest["files"]
        damaged = []
        for done, name in enumerate(files, 1):
            try:
                same = _sha256_once(self.path / name) == files[name]["sha256"]
            except OSError:
                same = False
            if not same:
                damaged.append(name)
            if progress is not None:
                progress(f"checking shards of {self.name}", done, len(files))
        return damaged

    @functools.cached_property
    def _full_indices(self) -> dict[int, tuple[str, int]]:
        """Row -> stem of its full-size shard, and its index in that shard."""
        return {
            row: (stem, index)
            for stem, rows in self.manifest["full"].items()
            for index, row in enumerate(rows)
        }

    def _map(self, name: str) -> np.ndarray:
        # Two threads may both map a file; that is harmless.
        if name not in self._maps:
            file = self.path / name
            try:
                if _sha256_once(file) != self.manifest["files"][name]["sha256"]:
                    raise ValueError("the checksum differs")
                array = np.load(file, mmap_mode="r", allow_pickle=False)
                self._check_shape(name, array)
            except (OSError, ValueError, EOFError, SyntaxError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(
                    f"{file} is missing or damaged ({reason}): delete {self.path} and "
                    "prepare it again"
                ) from None
            self._maps[name] = array
        return self._maps[name]

    def _check_shape(self, name: str, array: np.ndarray) -> None:
        """Raise ValueError if a shard does not match the manifest."""
        stem, kind, _ = name.rsplit(".", 2)
        rows = self.manifest["full"].get(stem)
        if rows is None:
            count, size = self.manifest["shards"][int(stem[len("train-") :])], self.size
        else:
            count, size = len(rows), array.shape[1:3]
        expected = np.dtype(np.uint8 if kind == "rgb" else np.uint16)
        shape = (count, *size, 3) if kind == "rgb" else (count, *size)
        if array.shape != shape or array.dtype != expected:
            raise ValueError(
                f"it holds {array.dtype} {array.shape}, not {expected} {shape}"
            )

    def _check_sizes(self) -> None:
        for name, entry in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != entry["bytes"]:
                raise UserError(f"{file} is missing or cut short: prepare it again")


class FullSizeStore(Store):
    """A store whose training frames are resampled from its full-size copies.

    For networks whose training frame is larger than the stored one. Frames and cameras
    equal those of a store that was prepared at this size.

    Attributes:
      size: (height, width) of the training frames, as given.
      others: as in `Store`.
    """

    def __init__(self, store: Store, size: tuple[int, int]):
        super().__init__(store.path, store.manifest)
        self.size = size
        packing = self.manifest.get("options", {}).get("packing", {})
        max_depth = packing.get("max_depth", units.FARTHEST_CODE / self.depth_unit)
        self._last_code = units.last_code(max_depth, self.depth_unit)

    @staticmethod
    def covers(store: Store, size: tuple[int, int]) -> bool:
        """Whether all full-size copies are there, none smaller than `size`."""
        rows = range(len(store))
        return all(map(store.has_full, rows)) and all(
            height >= size[0] and width >= size[1]
            for height, width in store.full_sizes(rows)
        )

    def gather(
        self, rows: Sequence[int] | np.ndarray, *, depth: str
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], UInt16[np.ndarray, "n h w"]]:
        """As `Store.gather`, at the size of this object."""
        self._check_depth(depth)
        rows = np.asarray(rows)
        rgb = np.empty((len(rows), *self.size, 3), np.uint8)
        codes = np.empty((len(rows), *self.size), np.uint16)
        for k, row in enumerate(rows.tolist()):
            stem, index = self._full_indices[row]
            frame = {
                kind: np.asarray(self._map(f"{stem}.{kind}.npy")[index])
                for kind in ("rgb", depth)
            }
            small = resample.training_frame(frame, self.size, last_code=self._last_code)
            rgb[k], codes[k] = small["rgb"], small[depth]
        return rgb, codes

    def camera(self, row: int) -> Camera | None:
        """The camera of a frame at the size of this object; None if it is unknown."""
        stored = super().camera(row)
        if stored is None:
            return None
        stem, _ = self._full_indices[row]
        shape = self._map(f"{stem}.rgb.npy").shape[1:3]
        full = resample.frame_camera(stored, tuple(self.manifest["size"]), shape)
        return resample.camera_from(full, shape, self.size)


def is_store(path: str | Path) -> bool:
    """Whether the folder has a manifest."""
    return (Path(path).expanduser() / MANIFEST).is_file()


def parse_manifest(text: str | bytes, *, where: str) -> dict[str, Any]:
    """Parse a manifest. Raises UserError if it is damaged or of another version.

    Args:
      where: the path or URL of the store, for messages.
    """
    try:
        manifest = json.loads(text)
        version = manifest["version"]
        if version not in (manifest_lib.VERSION, manifest_lib.OTHER_UNIT):
            raise UserError(
                f"{where} is a store of version {version!r:.20}, expected "
                f"{manifest_lib.VERSION}: prepare it again"
            )
        for name in manifest["files"]:
            # Downloads are written under these names, which must not contain a path.
            if not re.fullmatch(r"\w[\w.-]{0,99}", name):
                raise ValueError(f"{name!r} is not the name of a shard")
        manifest_lib.check(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(where, error) from None
    return manifest


def _sha256_once(file: Path) -> str:
    """Return the SHA-256 of a file, cached in this process until the file changes."""
    with _locks.setdefault(file, threading.Lock()):
        stat = file.stat()
        state = (file, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if state not in _checksums:
            _checksums[state] = regular.sha256(file)
        return _checksums[state]


def _damaged(where: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {error}"
    return UserError(f"{where}/{MANIFEST} is damaged ({reason}): prepare it again")


def _allow_open_files(count: int) -> None:
    """Raise the limit on open files: each mapped shard keeps one open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and count > soft // 4 and wanted > soft:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
