"""Writing stores: frames left out, interruptions and resuming, the cache."""

import concurrent.futures
import dataclasses
import errno
import resource
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from jaxdepth.data import split, units
from jaxdepth.data.sources import Frame, ReadOptions
from jaxdepth.data.store import writer as store_writer
from jaxdepth.data.store.reader import Store, is_store
from jaxdepth.data.store.writer import Job, Packing
from jaxdepth.runtime.errors import MachineError, UserError
from tests.data.memory import (
    SIZE,
    Memory,
    contents,
    depths,
    frame,
    one_line,
    written,
)


def test_frames_without_depth_are_left_out_of_frames_and_splits(tmp_path):
    frames = [frame(k) for k in range(6)]
    nothing = np.zeros((24, 32), np.float32)
    for row in (1, 4):
        frames[row] = Frame(frames[row].rgb, filled=nothing)
    split = {"own": {"train": [0, 1, 2], "eval": [3, 4, 5]}}
    opened = written(tmp_path, frames, split=split)
    assert len(opened) == 4
    assert opened.splits == {"own": {"train": [0, 1], "eval": [2, 3]}}
    assert opened.manifest["left_out"] == ["frame 1", "frame 4"]
    assert "left out 2 frames without any depth, first frame 1" in opened.notes
    # Full-size copies are kept of the evaluation frames only.
    assert [opened.has_full(row) for row in range(4)] == [False, False, True, True]
    full = next(iter(opened.full_frames([3])))
    assert full["name"] == "frame 5"
    np.testing.assert_array_equal(full["rgb"], frames[5].rgb)
    with pytest.raises(UserError, match="no full-size copy of frame 0") as error:
        next(opened.full_frames([0]))
    one_line(error)


def test_data_without_any_depth_are_an_error(tmp_path):
    empty = Frame(frame().rgb, filled=np.zeros((24, 32), np.float32))
    with pytest.raises(UserError, match="none of 2 frames has depth"):
        written(tmp_path, [empty, empty])
    assert list(tmp_path.iterdir()) == []


def test_keep_full_all_keeps_a_copy_of_every_frame(tmp_path):
    split = {"own": {"train": [0, 1], "eval": [2]}}
    opened = written(tmp_path, [frame(k) for k in range(3)], split=split,
                     keep_full="all")  # fmt: skip
    assert all(opened.has_full(row) for row in range(3))


@pytest.mark.parametrize(("most", "kept"), [(3, True), (2, False)])
def test_without_a_split_full_sizes_are_kept_of_small_sources_only(
    tmp_path, monkeypatch, most, kept
):
    monkeypatch.setattr(store_writer, "FULL_AT_MOST", most)
    opened = written(tmp_path, [frame(k) for k in range(3)])
    held_out = opened.splits[split.HELD_OUT]["eval"]
    assert len(held_out) == 1
    for row in range(3):
        assert opened.has_full(row) == (kept or row in held_out)


EXTREMES = [
    # kind, mask_extremes, eight_bit, removed
    ("raw", "auto", False, True),
    ("filled", "auto", False, False),
    ("filled", "on", False, True),
    ("raw", "off", False, False),
    ("raw", "auto", True, False),
    ("raw", "on", True, False),
]


@pytest.mark.parametrize(("kind", "mask", "eight_bit", "removed"), EXTREMES)
def test_mask_extremes_removes_the_minimum_and_maximum(
    tmp_path, kind, mask, eight_bit, removed
):
    depth = np.full(SIZE, 3.0, np.float32)
    depth[0, :3], depth[1, :2], depth[2, 0], depth[3, 0] = 0.5, 9.5, 0.0, 12.0
    shot = dataclasses.replace(frame(size=SIZE), **{"filled": None, kind: depth})
    opened = written(
        tmp_path, [shot], kinds=(kind,), mask_extremes=mask, eight_bit=eight_bit
    )
    small = depths(opened, kind)[0]
    full = next(iter(opened.full_frames([0])))["depth"][kind]
    # 12 m is beyond --max_depth, so the maximum valid depth is 9.5 m.
    removed_pixels = (small == 0) & (depth > 0) & (depth < 12)
    assert small[3, 0] == 0 and full[3, 0] == 12
    expected = (depth == 0.5) | (depth == 9.5) if removed else np.zeros(SIZE, bool)
    np.testing.assert_array_equal(removed_pixels, expected)
    np.testing.assert_array_equal((full == 0) & (depth > 0), expected)
    assert opened.manifest["mask_extremes"] == ([kind] if removed else [])
    notes = " ".join(opened.notes)
    assert ("mask_extremes" in notes) == removed
    assert ("8-bit" in notes) == eight_bit


@pytest.mark.parametrize("kind", ["filled", "raw"])
def test_depth_beyond_max_depth_does_not_reach_its_neighbours(tmp_path, kind):
    # A sentinel beside measured depth, at twice the training size.
    depth = np.full((24, 32), 3.0, np.float32)
    depth[::2, 1::3] = 40.0
    missing = np.where(depth == 40, 0, depth).astype(np.float32)
    stored = []
    for name, values in (("sentinel", depth), ("zero", missing)):
        shot = dataclasses.replace(frame(), **{"filled": None, kind: values})
        opened = written(tmp_path, [shot], out=name, kinds=(kind,), mask_extremes="off")
        stored.append(depths(opened, kind))
    np.testing.assert_array_equal(*stored)
    np.testing.assert_array_equal(stored[0], 3000)


def test_frames_without_depth_within_max_depth_are_left_out(tmp_path):
    far = Frame(frame().rgb, filled=np.full((24, 32), 30, np.float32))
    opened = written(tmp_path, [frame(), far])
    assert opened.manifest["left_out"] == ["frame 1"]
    assert len(written(tmp_path, [frame(), far], out="far", max_depth=40.0)) == 2


def test_mask_extremes_never_removes_all_depth(tmp_path):
    flat, two = np.full(SIZE, 2.0, np.float32), np.full(SIZE, 2.0, np.float32)
    two[:5] = 4.0
    rgb = frame(size=SIZE).rgb
    shots = [Frame(rgb, raw=flat), Frame(rgb, raw=two), frame(1, SIZE, ("raw",))]
    opened = written(tmp_path, shots, kinds=("raw",))
    stored = depths(opened, "raw")
    np.testing.assert_array_equal(stored[0], 2000)
    np.testing.assert_array_equal(stored[1], two * 1000)
    assert "except in 2 depth maps that hold no other depth" in " ".join(opened.notes)


def test_a_full_disk_is_a_machine_error(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(MachineError, match="No space left on device") as error:
        written(tmp_path, [frame()])
    assert str(tmp_path / "s") in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_never_overwritten(tmp_path):
    (tmp_path / "s").mkdir()
    opened = written(tmp_path, [frame()])  # an empty folder is used
    before = contents(opened.path)
    with pytest.raises(UserError, match=r"s exists and is not empty \(it is a store of "
                       "other data") as error:  # fmt: skip
        written(tmp_path, [frame(1)])
    one_line(error)
    assert contents(opened.path) == before
    (opened.path / "train-00000.rgb.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"is not empty \(.*rgb.npy is missing or cut"):
        written(tmp_path, [frame()])
    (tmp_path / "f").write_text("mine")
    with pytest.raises(UserError, match=r"f exists .* is not a store"):
        written(tmp_path, [frame()], out="f")
    assert (tmp_path / "f").read_text() == "mine"


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "a").symlink_to(tmp_path / "disk" / "empty")
    (tmp_path / "b").symlink_to(tmp_path / "disk" / "new")
    for name, target in (("a", "empty"), ("b", "new")):
        opened = written(tmp_path, [frame()], out=name)
        assert len(opened) == 1 and (tmp_path / name).is_symlink()
        assert (tmp_path / "disk" / target / "manifest.json").is_file()
        again = written(tmp_path, [frame()], out=name)  # exists already
        assert again.manifest == opened.manifest
    assert {p.name for p in tmp_path.iterdir()} == {"disk", "a", "b"}


@pytest.mark.parametrize("out", [".", "", "/"])
def test_the_current_folder_and_a_root_are_errors(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the current folder, or the root of a disk"):
        written(Path(), [frame()], out=out)
    assert not list(tmp_path.iterdir())


def test_an_output_below_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder"):
        written(tmp_path / "file" / "deep", [frame()])


def test_a_prepared_store_is_reused(tmp_path):
    frames = [frame(k) for k in range(3)]
    first, again = Memory(frames), Memory(frames)

    def prepare(source, size=SIZE, **options):
        packing = store_writer.Packing(size, **options)
        return store_writer.prepare(source, packing, cache_dir=tmp_path)

    opened = prepare(first)
    assert prepare(again).path == opened.path
    assert (first.read, again.read) == (3, 0)
    others = [
        prepare(again, size=(6, 8)),
        prepare(again, mask_extremes="on"),
        prepare(again, max_depth=8.0),
        prepare(again, keep_full="all"),
        prepare(again, eval_fraction=0.5),
        prepare(again, test_scenes="keep"),
        prepare(Memory(frames[:2])),
    ]
    assert len({opened.path, *(other.path for other in others)}) == 8
    # An existing store is opened from its path.
    assert prepare(str(opened.path)).path == opened.path


def test_the_unit_of_depth_is_part_of_the_key(monkeypatch):
    source = Memory([frame()])
    keys = [Job(source, Packing(SIZE, max_depth=m)).key for m in (65.0, 66.0)]
    monkeypatch.setattr(units, "depth_unit", lambda max_depth: 256)
    keys += [Job(source, Packing(SIZE, max_depth=m)).key for m in (65.0, 66.0)]
    assert len(set(keys)) == 3 and keys[1] == keys[3]


def test_a_damaged_prepared_store_is_replaced(tmp_path):
    source = Memory([frame(k) for k in range(3)])
    opened = store_writer.prepare(
        source, store_writer.Packing(SIZE), cache_dir=tmp_path
    )
    before = depths(opened)
    (opened.path / "train-00000.filled.npy").write_bytes(b"")
    again = store_writer.prepare(source, store_writer.Packing(SIZE), cache_dir=tmp_path)
    np.testing.assert_array_equal(depths(again), before)


def test_unreadable_frames_are_left_out_and_listed(tmp_path):
    split = {"own": {"train": [0, 1, 2], "eval": [3, 4, 5]}}
    reasons = {1: "1.png is cut short", 3: "3.png\nis no image"}
    opened = written(tmp_path, [frame(k) for k in range(6)], split=split,
                     broken=reasons)  # fmt: skip
    assert opened.manifest["broken"] == [
        {"name": "frame 1", "reason": "1.png is cut short"},
        {"name": "frame 3", "reason": "3.png is no image"},
    ]
    assert opened.splits == {"own": {"train": [0, 1], "eval": [2, 3]}}
    note = "left out 2 frames that can't be used, first frame 1: 1.png is cut short"
    assert note in opened.notes and len(opened) == 4
    assert next(iter(opened.full_frames([2])))["name"] == "frame 4"


def test_without_usable_frames_the_error_gives_the_first_reason(tmp_path):
    with pytest.raises(UserError, match="none of 2 frames can be used, first frame 0: "
                       "bad") as error:  # fmt: skip
        written(tmp_path, [frame(), frame()], broken={0: "bad", 1: "worse"})
    one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_wrong_frames_are_errors_unless_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "SHARD", 2)
    frames = [frame(k) for k in range(6)]
    with pytest.raises(UserError, match="frame 5 is wrong"):
        written(tmp_path, frames, wrong=(5,))
    # The user must change the data, so no finished shards are kept.
    assert list(tmp_path.iterdir()) == []
    opened = written(tmp_path, frames, wrong=(5,), skip_wrong=True)
    assert opened.manifest["broken"] == [
        {"name": "frame 5", "reason": "frame 5 is wrong"}
    ]


def test_keep_full_none_keeps_no_copies(tmp_path):
    split = {"own": {"train": [0], "eval": [1]}}
    opened = written(tmp_path, [frame(), frame()], split=split, keep_full="none")
    assert not opened.has_full(1) and opened.splits["own"]["eval"] == [1]


def test_the_manifest_records_versions_and_options(tmp_path):
    source = Memory([frame()])
    options = ReadOptions(every=3)
    manifest = store_writer.Job(source, store_writer.Packing(SIZE), options).write(
        tmp_path / "s"
    )
    assert manifest == Store.open(tmp_path / "s").manifest
    assert manifest["versions"] == {
        "jaxdepth": metadata.version("jaxdepth"),
        "numpy": np.__version__,
        "renderer": 7,
    }
    assert manifest["options"]["packing"]["size"] == list(SIZE)
    assert manifest["options"]["read"]["every"] == 3
    assert manifest["format"] == "folder" and manifest["broken"] == []


STOPS = [KeyboardInterrupt(), MemoryError(), OSError(errno.EIO, "Input/output error")]


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: type(stop).__name__)
def test_an_interrupted_call_resumes_after_the_last_shard(tmp_path, monkeypatch, stop):
    monkeypatch.setattr(store_writer, "SHARD", 4)
    frames = [frame(k, (30, 44)) for k in range(18)]
    frames[5] = Frame(frames[5].rgb, filled=np.zeros((30, 44), np.float32))
    more = {"broken": {6: "cut short"}, "seconds": 0.0}
    complete = written(tmp_path, frames, out="complete", **more)
    expected = MachineError if isinstance(stop, OSError) else type(stop)
    with pytest.raises(expected):
        written(tmp_path, frames, stop_at=(15, stop), **more)
    assert not is_store(tmp_path / "s")
    again = Memory(frames, **more)
    seen = []
    opened = store_writer.write(
        again, tmp_path / "s", size=SIZE, progress=lambda *about: seen.append(about[1])
    )
    # Two shards were finished; the frames of the third are read again.
    assert seen[0] == 8 and again.read == 10
    assert contents(opened.path) == contents(complete.path)
    assert {p.name for p in tmp_path.iterdir()} == {"s", "complete"}


def test_a_full_disk_keeps_finished_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "SHARD", 4)
    frames, save, saved = [frame(k) for k in range(12)], np.save, []

    def full(stream, array):
        if len(saved) == 6:
            stream.write(b"half a shard")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(stream)
        save(stream, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(MachineError, match="No space left on device") as error:
        written(tmp_path, frames)
    one_line(error)
    monkeypatch.setattr(np, "save", save)
    source = Memory(frames)
    assert not store_writer.write(source, tmp_path / "s", size=SIZE).damaged()
    assert source.read == 8


def test_a_limit_on_the_file_size_is_a_machine_error(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(MachineError, match="File too large"):
            written(tmp_path, [frame(k) for k in range(9)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_finished_shard_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "SHARD", 2)
    frames = [frame(k) for k in range(12)]
    complete = written(tmp_path, frames, out="complete")
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, frames, stop_at=(11, KeyboardInterrupt()))
    (part,) = tmp_path.glob(".s.*.part")
    shard = part / "train-00001.rgb.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    (part / "records" / "00000.json").write_text('{"kept": [0')
    (part / ".train-00009.rgb.npy.123").write_bytes(b"half")
    source = Memory(frames)
    opened = store_writer.write(source, tmp_path / "s", size=SIZE)
    assert source.read == 12 - 2
    assert contents(opened.path) == contents(complete.path)


def test_finished_shards_of_other_options_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "SHARD", 2)
    frames = [frame(k) for k in range(12)]
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, frames, stop_at=(11, KeyboardInterrupt()), max_depth=5.0)
    source = Memory(frames)
    store_writer.write(source, tmp_path / "s", size=SIZE)
    assert source.read == 12
    # The shards of the other options are deleted.
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_an_existing_store_is_not_written_again(tmp_path):
    first, again = Memory([frame()]), Memory([frame()])
    store_writer.write(first, tmp_path / "s", size=SIZE)
    store_writer.write(again, tmp_path / "s", size=SIZE)
    assert (first.read, again.read) == (1, 0)


def test_parallel_calls_write_one_store(tmp_path):
    frames = [frame(k) for k in range(40)]
    sources = [Memory(frames, seconds=0.002) for _ in range(4)]

    def prepare(source):
        return store_writer.prepare(
            source, store_writer.Packing(SIZE), cache_dir=tmp_path
        )

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(prepare, sources))
    assert list(tmp_path.iterdir()) == [opened[0].path]
    # One of them reads, the others wait for it.
    assert sorted(source.read for source in sources) == [0, 0, 0, 40]
    for store in opened:
        assert not store.damaged()


def test_progress_counts_every_frame(tmp_path):
    seen = []
    source = Memory([frame(k) for k in range(20)])
    store_writer.write(
        source,
        tmp_path / "s",
        size=SIZE,
        progress=lambda *about: seen.append(about[1:]),
    )
    assert seen == [(k, 20) for k in range(21)]
