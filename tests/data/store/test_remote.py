"""Stores at a URL, with fsspec's in-memory file system."""

import json
import uuid

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jaxdepth.data.sources import Frame
from jaxdepth.data.store import remote
from jaxdepth.data.store import writer as store_writer
from jaxdepth.data.store.reader import is_store
from jaxdepth.runtime.errors import MachineError, UserError
from tests.data.memory import SIZE, Memory, depths, frame, one_line, written

FRAMES = [frame(k, kinds=("filled", "raw")) for k in range(10)]
KINDS = ("filled", "raw")


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/a store"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(store_writer, "SHARD", 4)


@pytest.fixture
def calls(monkeypatch):
    """The names of uploaded and downloaded files."""
    names = {"put_file": [], "get_file": []}
    for method, calls in names.items():
        original = getattr(MemoryFileSystem, method)

        def recording(self, a, b, *args, _original=original, _calls=calls, **options):
            _calls.append(str(a).rpartition("/")[2])
            return _original(self, a, b, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, method, recording)
    return names


def upload(url, source=None, **packing_options):
    source = Memory(FRAMES, KINDS) if source is None else source
    job = store_writer.Job(source, store_writer.Packing(SIZE, **packing_options))
    return job.write(url)


def files_at(url):
    """The files at the URL: name -> content."""
    system, root = fsspec.core.url_to_fs(url)
    return {
        path.removeprefix(f"{root}/"): system.cat_file(path)
        for path in system.find(root)
    }


def put(url, name, content):
    system, root = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{root}/{name}", content)


def download(url, tmp_path, **more):
    return store_writer.prepare(
        url, store_writer.Packing(SIZE), cache_dir=tmp_path / "cache", **more
    )


def test_a_store_is_uploaded_and_downloaded(url, tmp_path, calls):
    local = written(tmp_path, FRAMES, kinds=KINDS)
    assert upload(url) == local.manifest
    assert files_at(url) == {p.name: p.read_bytes() for p in local.path.iterdir()}
    seen = []
    copy = download(f"{url}/", tmp_path, progress=lambda *about: seen.append(about))
    assert not copy.damaged()
    assert copy.manifest == local.manifest
    for kind in KINDS:
        np.testing.assert_array_equal(depths(copy, kind), depths(local, kind))
    assert sorted(calls["get_file"]) == sorted(local.manifest["files"])
    assert len(seen) == len(local.manifest["files"]) and url in seen[0][0]
    # Later calls read only the manifest.
    assert download(url, tmp_path).path == copy.path
    assert len(calls["get_file"]) == len(local.manifest["files"])


def test_uploaded_shards_are_not_packed_or_uploaded_again(url, tmp_path, calls):
    local = written(tmp_path, FRAMES, kinds=KINDS)
    stopped = Memory(FRAMES, KINDS, stop_at=(9, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        upload(url, stopped)
    assert "manifest.json" not in files_at(url)
    with pytest.raises(UserError, match="is not a store: it has no manifest"):
        download(url, tmp_path)
    first, again = list(calls["put_file"]), Memory(FRAMES, KINDS)
    calls["put_file"].clear()
    upload(url, again)
    assert again.read == 6
    assert len(first) == 6 and not set(first) & set(calls["put_file"])
    assert files_at(url) == {p.name: p.read_bytes() for p in local.path.iterdir()}
    once_more = Memory(FRAMES, KINDS)
    upload(url, once_more)
    assert once_more.read == 0


def test_the_manifest_is_uploaded_last(url, monkeypatch):
    original = MemoryFileSystem.pipe_file

    def fail(self, path, value, **more):
        assert "manifest.json" not in files_at(url)
        if path.endswith("manifest.json"):
            raise ConnectionError("connection reset")
        original(self, path, value, **more)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    with pytest.raises(MachineError, match="connection reset") as error:
        upload(url)
    assert url in one_line(error)
    monkeypatch.undo()
    source = Memory(FRAMES, KINDS)
    monkeypatch.setattr(store_writer, "SHARD", 4)
    upload(url, source)
    assert source.read == 0 and "manifest.json" in files_at(url)


def test_a_partial_shard_is_uploaded_again(url, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        upload(url, Memory(FRAMES, KINDS, stop_at=(9, KeyboardInterrupt())))
    put(url, "train-00000.rgb.npy", b"half")
    source = Memory(FRAMES, KINDS)
    upload(url, source)
    assert source.read == 10
    assert not download(url, tmp_path).damaged()


def test_other_files_at_the_url_are_an_error_and_stay(url):
    with pytest.raises(KeyboardInterrupt):
        upload(url, Memory(FRAMES, KINDS, stop_at=(9, KeyboardInterrupt())))
    before = files_at(url)
    with pytest.raises(UserError, match="is not empty") as error:
        upload(url, max_depth=5.0)
    one_line(error)
    assert files_at(url) == before
    upload(url)
    with pytest.raises(UserError, match="is not empty"):
        upload(url, max_depth=5.0)
    other = f"memory://{uuid.uuid4().hex}"
    put(other, "thesis.tex", b"years of work")
    with pytest.raises(UserError, match=r"is not empty \(thesis\.tex\)"):
        upload(other)
    assert files_at(other) == {"thesis.tex": b"years of work"}


def test_without_a_finished_shard_nothing_is_left(url):
    nothing = Frame(FRAMES[0].rgb, filled=np.zeros((24, 32), np.float32))
    source = Memory([nothing], stop_at=(0, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        upload(url, source)
    assert files_at(url) == {}


def test_a_damaged_shard_is_an_error(url, tmp_path, calls):
    upload(url)
    good = files_at(url)["train-00001.filled.npy"]
    put(url, "train-00001.filled.npy", good[:-1] + b"?")
    with pytest.raises(
        UserError, match=r"train-00001\.filled\.npy is damaged"
    ) as error:
        download(url, tmp_path)
    assert url in one_line(error)
    assert not any(is_store(p) for p in (tmp_path / "cache").iterdir())
    # Once it is repaired, only that shard is downloaded again.
    put(url, "train-00001.filled.npy", good)
    before = set(calls["get_file"])
    calls["get_file"].clear()
    assert not download(url, tmp_path).damaged()
    assert before & set(calls["get_file"]) == {"train-00001.filled.npy"}


def test_a_missing_shard_is_an_error(url, tmp_path):
    upload(url)
    system, root = fsspec.core.url_to_fs(url)
    system.rm(f"{root}/train-00001.filled.npy")
    with pytest.raises(UserError, match=r"train-00001\.filled\.npy: there is no such"):
        download(url, tmp_path)


def test_a_replaced_store_is_downloaded_again(url, tmp_path):
    upload(url)
    before = download(url, tmp_path)
    system, root = fsspec.core.url_to_fs(url)
    system.rm(root, recursive=True)
    upload(url, Memory(FRAMES[:3], KINDS))
    assert (len(before), len(download(url, tmp_path))) == (10, 3)


def test_a_damaged_copy_is_downloaded_again(url, tmp_path):
    upload(url)
    damaged = download(url, tmp_path)
    (damaged.path / "train-00000.rgb.npy").write_bytes(b"")
    assert not download(url, tmp_path).damaged()


def test_a_damaged_manifest_is_an_error(url, tmp_path):
    upload(url)
    manifest = json.loads(files_at(url)["manifest.json"])
    outside = {"../a": {"bytes": 1, "sha256": ""}}
    for text, words in (
        ("{", "is damaged"),
        (json.dumps(manifest | {"version": 1}), "version 1, expected 2"),
        (json.dumps(manifest | {"files": outside}), "not the name of a shard"),
        (json.dumps(manifest | {"name": "other"}), "its checksum differs"),
    ):
        put(url, "manifest.json", text.encode())
        with pytest.raises(UserError, match=words) as error:
            download(url, tmp_path)
        assert url in one_line(error)


class Refusing(MemoryFileSystem):
    """A file system that raises `error` on writes, as for a missing bucket."""

    protocol = "refusing"
    error: BaseException = FileNotFoundError("b/no-such-bucket")

    def cat_file(self, path, start=None, end=None, **kwargs):
        raise FileNotFoundError(path)

    def find(self, path, **kwargs):
        return {}

    def makedirs(self, path, exist_ok=False):
        pass

    def pipe_file(self, path, value, **kwargs):
        raise self.error


class HttpError(Exception):
    """Like gcsfs's: not an OSError, with several lines."""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FileNotFoundError("b/no-such-bucket"), UserError, "no such file, folder or b"),
        (PermissionError("403"), UserError, "access denied"),
        (HttpError("Invalid bucket,\n 400"), MachineError, "HttpError: Invalid bucket"),
        (OSError(28, "No space left"), MachineError, "No space left"),
    ],
)
def test_errors_of_the_file_system_are_one_line(monkeypatch, error, kind, words):
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    monkeypatch.setattr(Refusing, "error", error)
    with pytest.raises(kind, match=words) as caught:
        upload("refusing://b/store")
    assert "refusing://b/store" in one_line(caught)


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere://bucket/s", "nowhere"), ("gs://bucket/s", "gcsfs")],
)
def test_unknown_protocols_are_one_line(name, words, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    for call in (lambda: upload(name), lambda: download(name, tmp_path)):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert name in one_line(caught)


def test_urls_are_remote():
    assert remote.is_remote("gs://b/c") and remote.is_remote("memory://x")
    assert not remote.is_remote("/a/b") and not remote.is_remote("C:\\a")
