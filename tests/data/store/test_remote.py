"""Stores at a URL, on fsspec's file system in memory."""

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
    """Names of files that went up and came down."""
    seen = {"put_file": [], "get_file": []}
    for name, found in seen.items():
        plain = getattr(MemoryFileSystem, name)

        def counted(self, a, b, *more, _plain=plain, _found=found, **named):
            _found.append(str(a).rpartition("/")[2])
            return _plain(self, a, b, *more, **named)

        monkeypatch.setattr(MemoryFileSystem, name, counted)
    return seen


def send(url, source=None, **packing_options):
    source = Memory(FRAMES, KINDS) if source is None else source
    job = store_writer.Job(source, store_writer.Packing(SIZE, **packing_options))
    return job.write(url)


def there(url):
    """What lies at the URL: names and contents."""
    system, root = fsspec.core.url_to_fs(url)
    return {
        path.removeprefix(f"{root}/"): system.cat_file(path)
        for path in system.find(root)
    }


def put(url, name, content):
    system, root = fsspec.core.url_to_fs(url)
    system.pipe_file(f"{root}/{name}", content)


def copy(url, tmp_path, **more):
    return store_writer.prepared(url, cache_dir=tmp_path / "cache", size=SIZE, **more)


def test_there_and_back(url, tmp_path, calls):
    local = written(tmp_path, FRAMES, kinds=KINDS)
    assert send(url) == local.manifest
    assert there(url) == {p.name: p.read_bytes() for p in local.path.iterdir()}
    seen = []
    found = copy(f"{url}/", tmp_path, progress=lambda *about: seen.append(about))
    assert not found.damaged()
    assert found.manifest == local.manifest
    for kind in KINDS:
        np.testing.assert_array_equal(depths(found, kind), depths(local, kind))
    assert sorted(calls["get_file"]) == sorted(local.manifest["files"])
    assert len(seen) == len(local.manifest["files"]) and url in seen[0][0]
    # Once is enough: nothing but the manifest is asked for again.
    assert copy(url, tmp_path).path == found.path
    assert len(calls["get_file"]) == len(local.manifest["files"])


def test_what_is_up_already_is_not_sent_or_made_again(url, tmp_path, calls):
    local = written(tmp_path, FRAMES, kinds=KINDS)
    stopped = Memory(FRAMES, KINDS, stop_at=(9, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        send(url, stopped)
    assert "manifest.json" not in there(url)
    with pytest.raises(UserError, match="is not a store: it has no manifest"):
        copy(url, tmp_path)
    first, again = list(calls["put_file"]), Memory(FRAMES, KINDS)
    calls["put_file"].clear()
    send(url, again)
    assert again.read == 6
    assert len(first) == 6 and not set(first) & set(calls["put_file"])
    assert there(url) == {p.name: p.read_bytes() for p in local.path.iterdir()}
    once_more = Memory(FRAMES, KINDS)
    send(url, once_more)
    assert once_more.read == 0


def test_the_manifest_goes_up_last(url, monkeypatch):
    plain = MemoryFileSystem.pipe_file

    def fail(self, path, value, **more):
        assert "manifest.json" not in there(url)
        if path.endswith("manifest.json"):
            raise ConnectionError("connection reset")
        plain(self, path, value, **more)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    with pytest.raises(MachineError, match="connection reset") as error:
        send(url)
    assert url in one_line(error)
    monkeypatch.undo()
    source = Memory(FRAMES, KINDS)
    monkeypatch.setattr(store_writer, "SHARD", 4)
    send(url, source)
    assert source.read == 0 and "manifest.json" in there(url)


def test_a_shard_that_went_up_in_part_is_sent_again(url, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        send(url, Memory(FRAMES, KINDS, stop_at=(9, KeyboardInterrupt())))
    put(url, "train-00000.rgb.npy", b"half")
    source = Memory(FRAMES, KINDS)
    send(url, source)
    assert source.read == 10
    assert not copy(url, tmp_path).damaged()


def test_what_lies_there_is_not_mixed_up(url):
    with pytest.raises(KeyboardInterrupt):
        send(url, Memory(FRAMES, KINDS, stop_at=(9, KeyboardInterrupt())))
    before = there(url)
    with pytest.raises(UserError, match="is not empty") as error:
        send(url, max_depth=5.0)
    one_line(error)
    assert there(url) == before
    send(url)
    with pytest.raises(UserError, match="is not empty"):
        send(url, max_depth=5.0)
    other = f"memory://{uuid.uuid4().hex}"
    put(other, "thesis.tex", b"years of work")
    with pytest.raises(UserError, match=r"is not empty \(thesis\.tex\)"):
        send(other)
    assert there(other) == {"thesis.tex": b"years of work"}


def test_what_never_began_leaves_nothing(url):
    nothing = Frame(FRAMES[0].rgb, filled=np.zeros((24, 32), np.float32))
    source = Memory([nothing], stop_at=(0, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        send(url, source)
    assert there(url) == {}


def test_a_damaged_shard_is_noticed(url, tmp_path, calls):
    send(url)
    good = there(url)["train-00001.filled.npy"]
    put(url, "train-00001.filled.npy", good[:-1] + b"?")
    with pytest.raises(
        UserError, match=r"train-00001\.filled\.npy is damaged"
    ) as error:
        copy(url, tmp_path)
    assert url in one_line(error)
    assert not any(is_store(p) for p in (tmp_path / "cache").iterdir())
    # Once it is repaired, what was copied well is not fetched again.
    put(url, "train-00001.filled.npy", good)
    before = set(calls["get_file"])
    calls["get_file"].clear()
    assert not copy(url, tmp_path).damaged()
    assert before & set(calls["get_file"]) == {"train-00001.filled.npy"}


def test_a_shard_that_is_missing_is_told(url, tmp_path):
    send(url)
    system, root = fsspec.core.url_to_fs(url)
    system.rm(f"{root}/train-00001.filled.npy")
    with pytest.raises(UserError, match=r"train-00001\.filled\.npy: there is no such"):
        copy(url, tmp_path)


def test_a_copy_follows_the_store(url, tmp_path):
    send(url)
    before = copy(url, tmp_path)
    system, root = fsspec.core.url_to_fs(url)
    system.rm(root, recursive=True)
    send(url, Memory(FRAMES[:3], KINDS))
    assert (len(before), len(copy(url, tmp_path))) == (10, 3)


def test_a_damaged_copy_is_made_again(url, tmp_path):
    send(url)
    found = copy(url, tmp_path)
    (found.path / "train-00000.rgb.npy").write_bytes(b"")
    assert not copy(url, tmp_path).damaged()


def test_a_damaged_manifest_is_told(url, tmp_path):
    send(url)
    manifest = json.loads(there(url)["manifest.json"])
    elsewhere = {"../a": {"bytes": 1, "sha256": ""}}
    for text, words in (
        ("{", "is damaged"),
        (json.dumps(manifest | {"version": 1}), "version 1, this reads 2"),
        (json.dumps(manifest | {"files": elsewhere}), "no name of a shard"),
    ):
        put(url, "manifest.json", text.encode())
        with pytest.raises(UserError, match=words) as error:
            copy(url, tmp_path)
        assert url in one_line(error)


class Refusing(MemoryFileSystem):
    """A bucket that does not exist, or a library with errors of its own."""

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
    """As gcsfs has it: a kind that is no OSError, with lines in its text."""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (FileNotFoundError("b/no-such-bucket"), UserError, "no such file, folder or b"),
        (PermissionError("403"), UserError, "access is refused"),
        (HttpError("Invalid bucket,\n 400"), MachineError, "HttpError: Invalid bucket"),
        (OSError(28, "No space left"), MachineError, "No space left"),
    ],
)
def test_a_place_that_refuses_is_one_line(monkeypatch, error, kind, words):
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    monkeypatch.setattr(Refusing, "error", error)
    with pytest.raises(kind, match=words) as caught:
        send("refusing://b/store")
    assert "refusing://b/store" in one_line(caught)


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere://bucket/s", "nowhere"), ("gs://bucket/s", "gcsfs")],
)
def test_a_place_that_nobody_knows_is_one_line(name, words, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    for act in (lambda: send(name), lambda: copy(name, tmp_path)):
        with pytest.raises(UserError, match=words) as caught:
            act()
        assert name in one_line(caught)


def test_what_is_remote():
    assert remote.is_remote("gs://b/c") and remote.is_remote("memory://x")
    assert not remote.is_remote("/a/b") and not remote.is_remote("C:\\a")
