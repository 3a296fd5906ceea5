"""Packed frames on disk, read: plain `.npy` shards and a JSON manifest.

A store is a folder. `manifest.json` says what is in it; `train-KKKKK.rgb.npy` holds
(n, h, w, 3) uint8 at the training size and `train-KKKKK.KIND.npy` (n, h, w) uint16
millimetres, 0 = missing, for each kind of truth ("filled", "raw"); `shards` of the
manifest is their n. The frames that evaluation needs are there a second time at their
own full size, as `full-KKKKK-J.*`, shards of one size each; `full` says which frames.
NumPy opens all of it without us. `packing.py` writes it.
"""

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8, UInt16

from jaxdepth.runtime.errors import UserError

VERSION = 2
MANIFEST = "manifest.json"
# Beside what opening reads.
_NEEDED = {"full", "left_out", "broken", "count", "notes", "splits"}


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
        self._ends = np.cumsum(manifest["shards"])
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """Open a store. UserError where it is none, or of another version."""
        path = Path(path).expanduser()
        try:
            text = (path / MANIFEST).read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is not a store: it has no {MANIFEST}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}/{MANIFEST} can't be read: {error}") from None
        manifest = manifest_of(text, where=str(path))
        try:
            found = cls(path, manifest)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(str(path), error) from None
        found._check_sizes()
        _allow_open_files(len(manifest["files"]))
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
        shards = np.searchsorted(self._ends, rows, side="right")
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            count = self.manifest["shards"][shard]
            within = rows[here] - (self._ends[shard] - count)
            rgb[here] = self._map(f"train-{shard:05d}.rgb.npy")[within]
            millimetres[here] = self._map(f"train-{shard:05d}.{depth}.npy")[within]
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
                    "it again with --keep_full=all"
                )
            stem, place = where[row]
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

    def full_sizes(self, rows: Sequence[int] | np.ndarray) -> set[tuple[int, int]]:
        """The sizes of these rows' frames, of those that are kept at their own."""
        places = (self._full_places.get(row) for row in np.asarray(rows).tolist())
        stems = {place[0] for place in places if place is not None}
        shapes = (self._map(f"{stem}.rgb.npy").shape for stem in stems)
        return {(height, width) for _, height, width, _ in shapes}

    def has_full(self, row: int) -> bool:
        """Whether the row is there at its own size."""
        return row in self._full_places

    def damaged(self, progress: Callable | None = None) -> list[str]:
        """The shards that are not what their checksums say; reads all of the store.

        `progress` is called with (what, done, total).
        """
        known = self.manifest["files"]
        found = []
        for done, name in enumerate(known, 1):
            file = self.path / name
            try:
                same = sha256(file) == known[name]["sha256"]
            except OSError:
                same = False
            if not same:
                found.append(name)
            if progress is not None:
                progress(f"summing shards of {self.name}", done, len(known))
        return found

    @functools.cached_property
    def _full_places(self) -> dict[int, tuple[str, int]]:
        return {
            row: (stem, place)
            for stem, rows in self.manifest["full"].items()
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


def manifest_of(text: str | bytes, *, where: str) -> dict[str, Any]:
    """Parse a manifest. UserError where it is damaged or of another version."""
    try:
        manifest = json.loads(text)
        version = manifest["version"]
        if version != VERSION:
            raise UserError(
                f"{where} is a store of version {version}, this reads {VERSION}: "
                "prepare it again"
            )
        for name, known in manifest["files"].items():
            # A copy is written under these names: none may lead out of its folder.
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"{name!r} is no name of a shard")
            if not isinstance(known["bytes"], int) or "sha256" not in known:
                raise ValueError(f"{name} has no size or no checksum")
        if sum(manifest["shards"]) != len(manifest["frames"]):
            raise ValueError("shards and frames do not fit")
        if missing := _NEEDED - manifest.keys():
            raise ValueError(f"no {' or '.join(sorted(missing))}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(where, error) from None
    return manifest


def sha256(file: Path) -> str:
    """Checksum of a file, as the manifest has it."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(where: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {error}"
    return UserError(f"{where}/{MANIFEST} is damaged ({reason}): prepare it again")


def _allow_open_files(count: int) -> None:
    """Let this process hold `count` files more: a mapped shard is an open file."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and count > soft // 4 and wanted > soft:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
