"""Stores at a URL (gs://, or whatever fsspec knows): sent up shard by shard, copied
once to the cache folder to be read."""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from jaxdepth.data.store import staging
from jaxdepth.data.store.reader import MANIFEST, Store, is_store, manifest_of, sha256
from jaxdepth.data.store.staging import RECORDS, Record
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.storage import storage_errors

logger = logging.getLogger(__name__)
MARK = "preparing.json"  # which key's shards lie where there is no manifest yet
THREADS = 4  # files on their way at a time
Progress = Callable[[str, int, int], None]


def is_remote(path: str) -> bool:
    return "://" in path


def manifest_at(url: str) -> dict[str, Any] | None:
    """The manifest of a remote store; None where there is none."""
    text = _manifest_text(url)
    return None if text is None else manifest_of(text, where=url)


def copied(url: str, *, cache_dir: Path, progress: Progress | None = None) -> Store:
    """A remote store's copy in the cache folder, made when it is first asked for.

    The copy belongs to the URL and the manifest's content: a store that was replaced
    is copied again. What was copied before an interruption is not fetched twice.

    Raises: UserError where there is no store, or a shard differs from its checksum;
      MachineError where it can't be reached or the cache can't be written.
    """
    url = url.rstrip("/")
    text = _manifest_text(url)
    if text is None:
        raise UserError(
            f"{url} is not a store: it has no {MANIFEST}. Other data are read from "
            "local paths: jaxdepth prepare-data makes a store of them, there or here"
        )
    manifest = manifest_of(text, where=url)
    digest = hashlib.sha256(url.encode() + b"\0" + text).hexdigest()[:16]
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]) or "store"
    out = cache_dir.expanduser() / f"{name}-{digest}"
    try:
        with staging.locked(out):
            if is_store(out):
                with contextlib.suppress(UserError):  # a damaged one is copied again
                    return Store.open(out)
                shutil.rmtree(out)
            part = out.with_name(f".{out.name}.part")
            part.mkdir(exist_ok=True)
            _fetch(url, manifest["files"], part, progress)
            staging.write_whole(part / MANIFEST, text)
            part.rename(out)
        return Store.open(out)
    except OSError as error:
        reason = error.strerror or error
        raise MachineError(f"{url} could not be copied to {out}: {reason}") from error


def _manifest_text(url: str) -> bytes | None:
    with storage_errors(url):
        system, root = _opened(url)
        try:
            return system.cat_file(f"{root}/{MANIFEST}")
        except FileNotFoundError:
            return None


def _opened(url: str) -> tuple[Any, str]:
    """The file system, without what it remembers of the place, and the path in it."""
    system, root = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    return system, str(root).rstrip("/")


def _fetch(
    url: str, files: dict[str, Any], folder: Path, progress: Progress | None
) -> None:
    """Get all files that the folder lacks, several at a time, and check them."""
    with storage_errors(url):
        system, root = _opened(url)

    def get(name: str) -> None:
        known, file = files[name], folder / name
        if file.is_file() and sha256(file) == known["sha256"]:
            return
        part = folder / f".{name}"
        with storage_errors(f"{url}/{name}"):
            system.get_file(f"{root}/{name}", str(part))
        if sha256(part) != known["sha256"]:
            part.unlink()
            raise UserError(f"{url}/{name} is damaged: prepare it again")
        part.rename(file)

    mib = sum(known["bytes"] for known in files.values()) / 2**20
    for done, _ in enumerate(_by_threads(get, list(files)), 1):
        if progress is not None:
            progress(f"copying {mib:.0f} MiB from {url}, files", done, len(files))


def _by_threads(act: Callable[[str], None], names: list[str]) -> Iterator[None]:
    """Act on each name, several at a time, and yield after each; an error ends it."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting = [pool.submit(act, name) for name in names]
        try:
            for future in concurrent.futures.as_completed(waiting):
                future.result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)


class Remote:
    """A URL that a store grows at: finished blocks go up, the manifest last.

    Nothing is locked there: two machines that prepare the same data with the same
    options at one URL write the same files. What another key left there is refused.
    """

    def __init__(self, url: str, key: str):
        self.url, self.key = url.rstrip("/"), key

    def __enter__(self) -> "Remote":
        with storage_errors(self.url):
            self._system, self._root = _opened(self.url)
            there = self._names()
            if there and self._key_there(there) != self.key:
                raise UserError(
                    f"{self.url} is not empty ({sorted(there)[0]}): name another "
                    "place, or remove what is there"
                )
            self._system.makedirs(self._root, exist_ok=True)
            self._system.pipe_file(f"{self._root}/{MARK}", self.key.encode())
        self.folder = Path(tempfile.mkdtemp(prefix="jaxdepth-"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if kind is None:
            return
        with contextlib.suppress(Exception):  # what stopped us comes first
            if self._names().keys() == {MARK}:
                self._system.rm(f"{self._root}/{MARK}")
                return
            logger.info(
                "%d finished shards stay at %s: the same command goes on from there",
                len(self.records()),
                self.url,
            )

    def records(self) -> dict[int, Record]:
        with storage_errors(self.url):
            sizes, found = self._names(), {}
            for name in sizes:
                match = re.fullmatch(rf"{RECORDS}/(\d+)\.json", name)
                if match is None:
                    continue
                text = self._system.cat_file(f"{self._root}/{name}")
                record = Record.from_json(text)
                if record is not None and all(
                    sizes.get(file) == known["bytes"]
                    for file, known in record.files.items()
                ):
                    found[int(match[1])] = record
        return found

    def keep(self, number: int, record: Record) -> None:
        def put(name: str) -> None:
            with storage_errors(f"{self.url}/{name}"):
                self._system.put_file(str(self.folder / name), f"{self._root}/{name}")
            (self.folder / name).unlink()

        for _ in _by_threads(put, list(record.files)):
            pass
        with storage_errors(self.url):
            self._system.makedirs(f"{self._root}/{RECORDS}", exist_ok=True)
            self._system.pipe_file(
                f"{self._root}/{RECORDS}/{number:05d}.json", record.to_json().encode()
            )

    def finish(self, manifest: dict[str, Any]) -> None:
        with storage_errors(self.url):
            self._system.pipe_file(
                f"{self._root}/{MANIFEST}", json.dumps(manifest, indent=1).encode()
            )
            # After it: an interruption in between leaves a store with some files more.
            self._system.rm(f"{self._root}/{RECORDS}", recursive=True)
            self._system.rm(f"{self._root}/{MARK}")

    def _names(self) -> dict[str, int]:
        """Names below the URL, and their sizes."""
        found = self._system.find(self._root, detail=True)
        return {
            path.removeprefix(f"{self._root}/"): info["size"]
            for path, info in found.items()
        }

    def _key_there(self, names: dict[str, int]) -> str | None:
        if MARK not in names:
            return None
        return self._system.cat_file(f"{self._root}/{MARK}").decode()
