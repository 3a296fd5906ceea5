"""The store against the source that it was written from."""

import concurrent.futures
import dataclasses
import errno
import json

import numpy as np
import pytest

from jaxdepth.data import store
from jaxdepth.data.sources import Frame, FrameInfo
from jaxdepth.errors import MachineError, UserError
from jaxdepth.ops import resize

SIZE = (12, 16)


@dataclasses.dataclass
class Memory:
    """A source of frames in memory."""

    frames: list[Frame]
    truths: tuple[str, ...] = ("filled",)
    eight_bit: bool = False
    split: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)
    fail_at: int = -1
    read: int = 0
    name: str = "memory"
    format: str = "folder"
    notes: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.infos = [
            FrameInfo(f"frame {k}", scene=f"scene {k // 2}", official_index=None)
            for k in range(len(self.frames))
        ]

    def frame(self, row):
        if row == self.fail_at:
            raise UserError(f"frame {row} is broken")
        self.read += 1
        return self.frames[row]

    def fingerprint(self):
        return {"content": [float(sum(d.sum() for d in f.depths.values()))
                            for f in self.frames]}  # fmt: skip

    def splits(self):
        return self.split or {
            "all": {"train": list(range(len(self.frames))), "eval": []}
        }


def frame(seed=0, size=(24, 32), kinds=("filled",), holes=0.2):
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    depth = {}
    for kind in kinds:
        metres = rng.integers(700, 9000, size).astype(np.float32) / 1000
        metres[rng.random(size) < (holes if kind == "raw" else 0)] = 0
        depth[kind] = metres
    return Frame(rgb, **depth)


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def depths(opened, kind="filled"):
    return opened.gather(np.arange(len(opened)), depth=kind)[1]


def written(tmp_path, frames, *, out="s", kinds=("filled",), **more):
    source_options = {k: more.pop(k) for k in ("eight_bit", "split") if k in more}
    source = Memory(frames, truths=kinds, **source_options)
    return store.write(source, tmp_path / out, **{"size": SIZE, **more})


def test_training_frames_are_means_of_blocks(tmp_path):
    frames = [frame(k) for k in range(5)]
    opened = written(tmp_path, frames)
    rgb, depth = opened.gather([4, 0, 2, 2], depth="filled")
    for place, row in enumerate([4, 0, 2, 2]):
        blocks = frames[row].rgb.reshape(12, 2, 16, 2, 3).astype(float).mean((1, 3))
        np.testing.assert_array_equal(rgb[place], np.floor(blocks + 0.5))
        metres = frames[row].depths["filled"].astype(float).reshape(12, 2, 16, 2)
        millimetres = metres.mean((1, 3)) * 1000
        assert np.abs(depth[place] - millimetres).max() <= 0.5 + 1e-3
    assert (rgb.dtype, depth.dtype) == (np.uint8, np.uint16)


def test_full_frames_equal_the_source(tmp_path):
    frames = [frame(k, kinds=("filled", "raw")) for k in range(3)]
    opened = written(tmp_path, frames, kinds=("filled", "raw"), mask_extremes="off")
    for row, found in zip([2, 0], opened.full_frames([2, 0]), strict=True):
        np.testing.assert_array_equal(found["rgb"], frames[row].rgb)
        for kind, metres in frames[row].depths.items():
            np.testing.assert_allclose(found["depth"][kind], metres, atol=1e-6)
        assert (found["name"], found["scene"]) == (f"frame {row}", f"scene {row // 2}")


def test_depth_is_never_mixed_with_holes(tmp_path):
    # Truth of 2 m and of 6 m in halves, with holes at random: any mean with a hole
    # as 0 would leave these values.
    shot = frame(3, size=(30, 44))
    depth = np.full((30, 44), 2.0, np.float32)
    depth[:, 22:] = 6.0
    depth[np.random.default_rng(1).random(depth.shape) < 0.6] = 0
    depth[:5, :5] = 0
    shot = Frame(shot.rgb, raw=depth)
    opened = written(
        tmp_path, [shot], kinds=("raw",), mask_extremes="off", size=(9, 13)
    )
    small = depths(opened, "raw")[0]
    edge = 22 * 13 // 44
    assert set(np.unique(small[:, :edge])) <= {0, 2000}
    assert set(np.unique(small[:, edge + 1 :])) <= {0, 6000}
    assert small[0, 0] == 0 and (small > 0).mean() > 0.9


def test_unsuited_truth_is_missing():
    metres = np.array([[np.nan, np.inf, -1, 0], [0.0004, 0.0006, 65.535, 65.536]])
    found = store.millimetres(metres)
    np.testing.assert_array_equal(found, [[0, 0, 0, 0], [0, 1, 65535, 0]])


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
def test_extremes_are_removed_when_they_should_be(
    tmp_path, kind, mask, eight_bit, removed
):
    depth = np.full(SIZE, 3.0, np.float32)
    depth[0, :3], depth[1, :2], depth[2, 0], depth[3, 0] = 0.5, 9.5, 0.0, 12.0
    shot = dataclasses.replace(frame(size=SIZE), **{"filled": None, kind: depth})
    opened = written(
        tmp_path, [shot], kinds=(kind,), mask_extremes=mask, eight_bit=eight_bit
    )
    found = depths(opened, kind)[0]
    full = next(iter(opened.full_frames([0])))["depth"][kind]
    # 12 m lie beyond --max_depth, so the largest valid is 9.5 m.
    gone = (found == 0) & (depth > 0)
    expected = (depth == 0.5) | (depth == 9.5) if removed else np.zeros(SIZE, bool)
    np.testing.assert_array_equal(gone, expected)
    np.testing.assert_array_equal((full == 0) & (depth > 0), expected)
    assert opened.manifest["mask_extremes"] == ([kind] if removed else [])
    said = " ".join(opened.notes)
    assert ("mask_extremes" in said) == removed
    assert ("8-bit" in said) == eight_bit


def test_masking_never_removes_everything(tmp_path):
    flat, two = np.full(SIZE, 2.0, np.float32), np.full(SIZE, 2.0, np.float32)
    two[:5] = 4.0
    rgb = frame(size=SIZE).rgb
    shots = [Frame(rgb, raw=flat), Frame(rgb, raw=two), frame(1, SIZE, ("raw",))]
    opened = written(tmp_path, shots, kinds=("raw",))
    found = depths(opened, "raw")
    np.testing.assert_array_equal(found[0], 2000)
    np.testing.assert_array_equal(found[1], two * 1000)
    assert "not in 2 that have no other" in " ".join(opened.notes)


def test_frames_without_truth_are_left_out_and_splits_follow(tmp_path):
    frames = [frame(k) for k in range(6)]
    nothing = np.zeros((24, 32), np.float32)
    for row in (1, 4):
        frames[row] = Frame(frames[row].rgb, filled=nothing)
    split = {"own": {"train": [0, 1, 2], "eval": [3, 4, 5]}}
    opened = written(tmp_path, frames, split=split)
    assert len(opened) == 4
    assert opened.splits == {"own": {"train": [0, 1], "eval": [2, 3]}}
    assert opened.manifest["left_out"] == ["frame 1", "frame 4"]
    assert "2 frames without any depth left out, first frame 1" in opened.notes
    # Full size is kept of what is evaluated on, and of nothing else.
    assert [opened.has_full(row) for row in range(4)] == [False, False, True, True]
    found = next(iter(opened.full_frames([3])))
    assert found["name"] == "frame 5"
    np.testing.assert_array_equal(found["rgb"], frames[5].rgb)
    with pytest.raises(UserError, match="no full-size copy of frame 0") as error:
        next(opened.full_frames([0]))
    one_line(error)


def test_no_truth_at_all_is_an_error(tmp_path):
    empty = Frame(frame().rgb, filled=np.zeros((24, 32), np.float32))
    with pytest.raises(UserError, match="none of 2 frames has depth"):
        written(tmp_path, [empty, empty])
    assert list(tmp_path.iterdir()) == []


def test_keep_full_all_keeps_all(tmp_path):
    split = {"own": {"train": [0, 1], "eval": [2]}}
    opened = written(tmp_path, [frame(k) for k in range(3)], split=split,
                     keep_full="all")  # fmt: skip
    assert all(opened.has_full(row) for row in range(3))


def test_several_shards_are_one_store(tmp_path, monkeypatch):
    frames = [frame(k) for k in range(10)]
    whole = written(tmp_path, frames, out="whole")
    monkeypatch.setattr(store, "SHARD", 3)
    monkeypatch.setattr(store, "FULL_SHARD", 4)
    written(tmp_path, frames, out="cut")
    # What is read does not hang on the constant of the program that reads.
    monkeypatch.undo()
    cut = store.Store.open(tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("train-*.rgb.npy"))) == 4
    assert len(list((tmp_path / "cut").glob("full-*.rgb.npy"))) == 3
    rows = np.array([9, 0, 3, 3, 2, 5])
    for a, b in zip(
        whole.gather(rows, depth="filled"),
        cut.gather(rows, depth="filled"),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    for row, found in zip(rows, cut.full_frames(rows), strict=True):
        np.testing.assert_array_equal(found["rgb"], frames[row].rgb)


def test_frames_of_differing_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FULL_SHARD", 3)
    sizes = [(24, 32), (36, 40), (24, 32), (10, 50), (36, 40), (6, 8), (12, 16)]
    frames = [frame(k, size) for k, size in enumerate(sizes)]
    opened = written(tmp_path, frames)
    for row, found in enumerate(opened.full_frames(range(len(sizes)))):
        np.testing.assert_array_equal(found["rgb"], frames[row].rgb)
        assert found["depth"]["filled"].shape == sizes[row]
    rgb, depth = opened.gather(range(len(sizes)), depth="filled")
    assert rgb.shape == (7, 12, 16, 3) and (depth > 0).all()
    # The one that has the size already is stored as it is.
    np.testing.assert_array_equal(rgb[6], frames[6].rgb)
    # A smaller one is enlarged; depth is repeated, never interpolated.
    near = np.round(frames[5].depths["filled"] * 1000).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(depth[5], near)


def test_a_wider_frame_is_cut_about_its_centre(tmp_path):
    shot = frame(2, size=(12, 40))
    opened = written(tmp_path, [shot])
    rgb, depth = opened.gather([0], depth="filled")
    np.testing.assert_array_equal(rgb[0], shot.rgb[:, 12:28])
    expected = np.round(shot.depths["filled"][:, 12:28] * 1000)
    np.testing.assert_array_equal(depth[0], expected)


def test_intrinsics_follow_the_pixels(tmp_path):
    # 24x40 is cut to 24x32 about the middle and halved; a point far away stays where
    # its pixel goes. A frame that is left out has no say.
    shots = [
        dataclasses.replace(frame(k, (24, 40)), intrinsics=(50.0, 60.0, 19.0, 11.0))
        for k in range(3)
    ]
    shots[1] = Frame(shots[1].rgb, filled=np.zeros((24, 40), np.float32))
    camera = written(tmp_path, shots).manifest["intrinsics"]
    # The centre of pixel 19 is 19.5 - 4 from the cut's edge: 7.75 halved pixels.
    assert camera == {
        "size": [12, 16], "fx": 25.0, "fy": 30.0, "cx": 7.25, "cy": 5.25
    }  # fmt: skip
    mixed = [shots[0], frame(1)]
    assert written(tmp_path, mixed, out="m").manifest["intrinsics"] is None


def test_a_truth_that_is_not_there_is_told(tmp_path):
    opened = written(tmp_path, [frame()])
    with pytest.raises(UserError, match="has no raw depth, but filled") as error:
        opened.gather([0], depth="raw")
    one_line(error)


@pytest.mark.parametrize("factor", [2, 3])
def test_whole_factors_equal_the_general_way(factor):
    # The same mean by matrices, of a map with holes and of colours.
    rng = np.random.default_rng(0)
    shape = (6 * factor, 8 * factor)
    metres = rng.integers(0, 9000, shape) * (rng.random(shape) < 0.5)
    depth = metres.astype(np.uint16)
    rgb = rng.integers(0, 256, (*shape, 3), np.uint8)
    mean, valid = resize.masked_area(depth[None].astype(float), depth[None] > 0, (6, 8))
    found = store._to_size(depth, (6, 8))
    np.testing.assert_array_equal(found > 0, valid[0])
    assert np.abs(found - mean[0]).max() <= 0.5 + 1e-6
    colours = resize.resize_area(rgb[None].astype(float), (6, 8))[0]
    assert np.abs(store._to_size(rgb, (6, 8)) - colours).max() <= 0.5 + 1e-6


def test_numpy_and_json_read_it_without_us(tmp_path):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    manifest = json.loads((opened.path / "manifest.json").read_text())
    assert manifest["count"] == 3 and manifest["size"] == [12, 16]
    rgb = np.load(opened.path / "train-00000.rgb.npy")
    depth = np.load(opened.path / "train-00000.filled.npy")
    assert rgb.shape == (3, 12, 16, 3) and depth.dtype == np.uint16
    opened.check()


def test_a_file_cut_short_or_missing_is_told_when_opened(tmp_path):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    file = opened.path / "train-00000.filled.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="missing or cut short") as error:
        store.Store.open(opened.path)
    assert str(file) in one_line(error)
    file.unlink()
    with pytest.raises(UserError, match="missing or cut short"):
        store.Store.open(opened.path)


def test_damage_of_the_same_length_is_told(tmp_path):
    opened = written(tmp_path, [frame(k) for k in range(3)])
    file = opened.path / "train-00000.filled.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.filled\.npy is damaged"):
        store.Store.open(opened.path).check()
    content[:128] = bytes(128)
    file.write_bytes(content)
    with pytest.raises(UserError, match="missing or damaged") as error:
        store.Store.open(opened.path).gather([0], depth="filled")
    assert str(file) in one_line(error)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 1}', "null", '{"version": 99}']
)
def test_a_damaged_manifest_is_told(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"damaged|version 99") as error:
        store.Store.open(tmp_path)
    assert str(tmp_path) in one_line(error)


def test_what_is_no_store_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        assert not store.is_store(path)
        with pytest.raises(UserError, match="is not a store"):
            store.Store.open(path)


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error):
    monkeypatch.setattr(store, "SHARD", 4)

    def stop(what, done, total):
        assert any(tmp_path.iterdir())  # there is something to clean up
        raise error("stop")

    source = Memory([frame(k) for k in range(20)])
    with pytest.raises(error):
        store.write(source, tmp_path / "s", size=SIZE, progress=stop)
    assert list(tmp_path.iterdir()) == []
    # Nothing is in the way of the next try.
    assert len(store.write(source, tmp_path / "s", size=SIZE)) == 20


def test_a_broken_frame_leaves_nothing(tmp_path):
    source = Memory([frame(k) for k in range(20)], fail_at=18)
    with pytest.raises(UserError, match="frame 18 is broken"):
        store.write(source, tmp_path / "s", size=SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_the_machines_fault(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(MachineError, match="No space left on device") as error:
        written(tmp_path, [frame()])
    assert str(tmp_path / "s") in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_overwritten(tmp_path):
    (tmp_path / "s").mkdir()
    written(tmp_path, [frame()])  # an empty one is not in the way
    before = sorted((tmp_path / "s").iterdir())
    with pytest.raises(UserError, match="exists and is not empty") as error:
        written(tmp_path, [frame(1)])
    one_line(error)
    assert sorted((tmp_path / "s").iterdir()) == before
    (tmp_path / "f").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        written(tmp_path, [frame()], out="f")
    assert (tmp_path / "f").read_text() == "mine"


def test_prepared_data_are_used_again(tmp_path):
    frames = [frame(k) for k in range(3)]
    options = {"cache_dir": tmp_path, "size": SIZE}
    first = Memory(frames)
    opened = store.prepared(first, **options)
    again = Memory(frames)
    assert store.prepared(again, **options).path == opened.path
    assert (first.read, again.read) == (3, 0)
    others = [
        store.prepared(again, **{**options, "size": (6, 8)}),
        store.prepared(again, **options, mask_extremes="on"),
        store.prepared(again, **options, max_depth=8.0),
        store.prepared(again, **options, keep_full="all"),
        store.prepared(Memory(frames[:2]), **options),
    ]
    assert len({opened.path, *(other.path for other in others)}) == 6
    # A store is taken as it is, wherever it lies.
    assert store.prepared(str(opened.path), **options).path == opened.path


def test_a_damaged_prepared_store_is_made_again(tmp_path):
    source = Memory([frame(k) for k in range(3)])
    opened = store.prepared(source, cache_dir=tmp_path, size=SIZE)
    before = depths(opened)
    (opened.path / "train-00000.filled.npy").write_bytes(b"")
    again = store.prepared(source, cache_dir=tmp_path, size=SIZE)
    np.testing.assert_array_equal(depths(again), before)


def test_preparing_at_the_same_time_gives_one_store(tmp_path):
    frames = [frame(k) for k in range(40)]

    def prepare(_):
        return store.prepared(Memory(frames), cache_dir=tmp_path, size=SIZE)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(prepare, range(4)))
    assert list(tmp_path.iterdir()) == [opened[0].path]
    for one in opened:
        one.check()
        np.testing.assert_array_equal(depths(one), depths(opened[0]))


def test_progress_counts_to_the_end(tmp_path):
    seen = []
    source = Memory([frame(k) for k in range(20)])
    store.write(
        source,
        tmp_path / "s",
        size=SIZE,
        progress=lambda *about: seen.append(about[1:]),
    )
    assert seen == [(16, 20), (20, 20)]
