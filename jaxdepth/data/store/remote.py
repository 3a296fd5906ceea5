"""Stores at a URL (gs://, or any other that fsspec supports).

They are uploaded shard by shard, and downloaded once to the cache folder.
"""

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
from jaxdepth.data.store.reader import MANIFEST, Store, is_store, parse_manifest
from jaxdepth.data.store.staging import RECORDS, Record
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.progress import Progress
from jaxdepth.runtime.storage import storage_errors

logger = logging.getLogger(__name__)
MARK = "preparing.json"  # holds the key of an unfinished store at a URL
THREADS = 4  # parallel transfers


def is_remote(path: str) -> bool:
    """Whether `path` is a URL."""
    return "://" in path


def manifest_at(url: str) -> dict[str, Any] | None:
    """Read the manifest of a remote store; None if there is none."""
    text = _manifest_text(url)
    return None if text is None else parse_manifest(text, where=url)


def download(url: str, *, cache_dir: Path, progress: Progress | None = None) -> Store:
    """Open the cached copy of a remote store; download it first if it is missing.

    The copy is named by the URL and the manifest's content, so a store that was
    replaced is downloaded again. After an interruption, only missing shards are
    downloaded.

    Raises:
      UserError: there is no store at `url`, or a shard differs from its checksum.
      MachineError: the URL can't be reached, or the cache can't be written.
    """
    url = url.rstrip("/")
    text = _manifest_text(url)
    if text is None:
        raise UserError(
            f"{url} is not a store: it has no {MANIFEST}. Other data are read from "
            "local paths only: make a store of them with jaxdepth prepare-data"
        )
    manifest = parse_manifest(text, where=url)
    digest = hashlib.sha256(url.encode() + b"\0" + text).hexdigest()[:16]
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]) or "store"
    out = cache_dir.expanduser() / f"{name}-{digest}"
    try:
        with staging.locked(out):
            if is_store(out):
                with contextlib.suppress(UserError):  # damaged: download it again
                    return Store.open(out)
                shutil.rmtree(out)
            part = out.with_name(f".{out.name}.part")
            part.mkdir(exist_ok=True)
            _download_files(url, manifest["files"], part, progress)
            staging.write_file(part / MANIFEST, text)
            part.rename(out)
        return Store.open(out)
    except OSError as error:
        reason = error.strerror or error
        raise MachineError(f"{url} could not be copied to {out}: {reason}") from error


def _manifest_text(url: str) -> bytes | None:
    with storage_errors(url):
        system, root = _file_system(url)
        try:
            return system.cat_file(f"{root}/{MANIFEST}")
        except FileNotFoundError:
            return None


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, without cached listings, and the path in it."""
    system, root = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    return system, str(root).rstrip("/")


def _download_files(
    url: str, files: dict[str, Any], folder: Path, progress: Progress | None
) -> None:
    """Download the files that the folder lacks, in parallel; verify checksums."""
    with storage_errors(url):
        system, root = _file_system(url)

    def get(name: str) -> None:
        checksum, file = files[name]["sha256"], folder / name
        if file.is_file() and regular.sha256(file) == checksum:
            return
        part = folder / f".{name}"
        with storage_errors(f"{url}/{name}"):
            system.get_file(f"{root}/{name}", str(part))
        if regular.sha256(part) != checksum:
            part.unlink()
            raise UserError(f"{url}/{name} is damaged: prepare it again")
        part.rename(file)

    mib = sum(entry["bytes"] for entry in files.values()) / 2**20
    for done, _ in enumerate(_in_parallel(get, list(files)), 1):
        if progress is not None:
            progress(f"copying {mib:.0f} MiB from {url}, files", done, len(files))


def _in_parallel(transfer: Callable[[str], None], names: list[str]) -> Iterator[None]:
    """Call `transfer` for each name on threads; yield after each, stop at an error."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(transfer, name) for name in names]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)


class RemoteStaging:
    """Staging area at a URL: uploads finished blocks, and the manifest last.

    There is no lock: two machines that prepare the same data with the same options at
    one URL write equal files. Entering raises UserError if the URL holds anything else.
    """

    def __init__(self, url: str, key: str):
        self.url, self.key = url.rstrip("/"), key

    def __enter__(self) -> "RemoteStaging":
        with storage_errors(self.url):
            self._system, self._root = _file_system(self.url)
            names = self._names()
            if names and self._read_key(names) != self.key:
                raise UserError(
                    f"{self.url} is not empty ({sorted(names)[0]}): name another URL, "
                    "or delete its content"
                )
            self._system.makedirs(self._root, exist_ok=True)
            self._system.pipe_file(f"{self._root}/{MARK}", self.key.encode())
        self.folder = Path(tempfile.mkdtemp(prefix="jaxdepth-"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if kind is None:
            return
        with contextlib.suppress(Exception):  # report the first error only
            if self._names().keys() == {MARK}:
                self._system.rm(f"{self._root}/{MARK}")
                return
            logger.info(
                "%d finished shards of %s are kept: run the same command to continue",
                len(self.records()),
                self.url,
            )

    def records(self) -> dict[int, Record]:
        """Return the finished blocks by number, without those that lack files."""
        with storage_errors(self.url):
            sizes, records = self._names(), {}
            for name in sizes:
                match = re.fullmatch(rf"{RECORDS}/(\d+)\.json", name)
                if match is None:
                    continue
                text = self._system.cat_file(f"{self._root}/{name}")
                record = Record.from_json(text)
                if record is not None and all(
                    sizes.get(file) == entry["bytes"]
                    for file, entry in record.files.items()
                ):
                    records[int(match[1])] = record
        return records

    def commit(self, number: int, record: Record) -> None:
        """Upload and delete a block's local files, then upload its record."""

        def put(name: str) -> None:
            with storage_errors(f"{self.url}/{name}"):
                self._system.put_file(str(self.folder / name), f"{self._root}/{name}")
            (self.folder / name).unlink()

        for _ in _in_parallel(put, list(record.files)):
            pass
        with storage_errors(self.url):
            self._system.makedirs(f"{self._root}/{RECORDS}", exist_ok=True)
            self._system.pipe_file(
                f"{self._root}/{RECORDS}/{number:05d}.json", record.to_json().encode()
            )

    def publish(self, manifest: dict[str, Any]) -> None:
        """Upload the manifest and delete the records."""
        with storage_errors(self.url):
            self._system.pipe_file(
                f"{self._root}/{MANIFEST}", json.dumps(manifest, indent=1).encode()
            )
            # Deleted last: an interruption only leaves unused files in the store.
            self._system.rm(f"{self._root}/{RECORDS}", recursive=True)
            self._system.rm(f"{self._root}/{MARK}")

    def _names(self) -> dict[str, int]:
        """The files at the URL: name -> size in bytes."""
        entries = self._system.find(self._root, detail=True)
        return {
            path.removeprefix(f"{self._root}/"): info["size"]
            for path, info in entries.items()
        }

    def _read_key(self, names: dict[str, int]) -> str | None:
        if MARK not in names:
            return None
        return self._system.cat_file(f"{self._root}/{MARK}").decode()
