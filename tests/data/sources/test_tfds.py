"""The format tfds: nyu_depth_v2 prepared by TFDS from files like FastDepth's."""

import concurrent.futures
import importlib.resources
import json
import multiprocessing
import shutil
import sys

import h5py
import numpy as np
import pytest

from jaxdepth.data.nyu import splits, toolbox
from jaxdepth.data.sources import open_source, tfds
from tests.data.sources import made

tensorflow_datasets = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("tensorflow")

COUNTS = {"train": 5, "val": 2}
SHARDS = 2  # of each split


def content(part, k):
    """Image (H, W, 3) and depth (H, W), representable in float16, of one file."""
    y, x = np.mgrid[:480, :640]
    rgb = np.stack([y // 2, x // 3, np.full_like(x, 20 * k + 100 * (part == "val"))])
    depth = (1 + k + x / 640 + (part == "val") * 0.5).astype(np.float16)
    return rgb.astype(np.uint8).transpose(1, 2, 0), depth.astype(np.float32)


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def prepared(request, tmp_path_factory):
    """The data folder of TFDS, written by its builder."""
    download = tmp_path_factory.mktemp("download")
    for part, count in COUNTS.items():
        for k in range(count):
            folder = download / "nyudepthv2" / part / "scene"
            folder.mkdir(parents=True, exist_ok=True)
            rgb, depth = content(part, k)
            with h5py.File(folder / f"{k:05d}.h5", "w") as file:
                file["rgb"], file["depth"] = rgb.transpose(2, 0, 1), depth
    root = tmp_path_factory.mktemp("tensorflow_datasets")
    manager = tensorflow_datasets.download.DownloadManager
    with pytest.MonkeyPatch.context() as patch:
        # TFDS imports the backport of importlib.resources but does not install it.
        patch.setitem(sys.modules, "importlib_resources", importlib.resources)
        patch.setattr(manager, "download_and_extract", lambda *_: str(download))
        patch.setattr(
            tensorflow_datasets.core.utils.gcs_utils, "gcs_dataset_info_files",
            lambda _: None,
        )  # fmt: skip
        builder = tensorflow_datasets.builder(
            "nyu_depth_v2", data_dir=str(root), file_format=request.param
        )
        builder.download_and_prepare(
            download_config=tensorflow_datasets.download.DownloadConfig(
                num_shards=SHARDS, try_download_gcs=False
            )
        )
    return root


@pytest.fixture
def copied(prepared, tmp_path):
    shutil.copytree(prepared / "nyu_depth_v2", tmp_path / "nyu_depth_v2")
    return tmp_path / "nyu_depth_v2" / "0.0.1"


def number(rgb):
    """The file that a frame is from: ("train" | "val", k)."""
    blue = int(rgb[0, 0, 2])
    return ("val", (blue - 100) // 20) if blue >= 100 else ("train", blue // 20)


def content_of(frame):
    return content(*number(frame.rgb))


@pytest.mark.parametrize("inside", ["", "nyu_depth_v2", "nyu_depth_v2/0.0.1"])
def test_every_frame_equals_the_prepared_one(prepared, inside):
    source = open_source(prepared / inside)
    assert source.format == "tfds" and source.truths == ("filled",)
    assert source.name == "nyu_depth_v2 0.0.1"
    assert [info.name for info in source.infos] == [
        *(f"train {k:05d}" for k in range(5)), "validation 00000", "validation 00001"
    ]  # fmt: skip
    seen = []
    for row in range(7):
        frame = source.frame(row)
        seen.append(number(frame.rgb))
        rgb, depth = content(*seen[-1])
        np.testing.assert_array_equal(frame.rgb, rgb)
        assert frame.filled is not None and frame.filled.dtype == np.float32
        np.testing.assert_array_equal(frame.filled, depth)
        assert frame.intrinsics == toolbox.RGB_CAMERA.intrinsics
    assert sorted(seen[:5]) == [("train", k) for k in range(5)]
    assert sorted(seen[5:]) == [("val", k) for k in range(2)]
    assert source.splits() == {
        "own": {"train": [0, 1, 2, 3, 4], "eval": [5, 6]},
        "all": {"train": [0, 1, 2, 3, 4, 5, 6], "eval": []},
    }
    (note,) = source.notes
    assert note.startswith("scenes and names of frames are unknown")


def test_the_order_of_frames_equals_that_of_tfds(prepared):
    source = open_source(prepared)
    assert isinstance(source, tfds.Tfds)
    builder = tensorflow_datasets.builder_from_directory(source.path)
    for part, rows in (("train", range(5)), ("validation", range(5, 7))):
        if builder.info.file_format.value == "tfrecord":
            examples = list(builder.as_dataset(split=part).as_numpy_iterator())
        else:
            examples = list(builder.as_data_source(part))
        for row, example in zip(rows, examples, strict=True):
            np.testing.assert_array_equal(source.frame(row).rgb, example["image"])


def test_rows_can_be_read_in_any_order(prepared):
    source = open_source(prepared)
    numbers = [number(source.frame(row).rgb) for row in range(7)]
    for row in (6, 0, 3, 3, 5, 2, 6, 1):
        assert number(source.frame(row).rgb) == numbers[row]
    made.same_elsewhere(source)


@pytest.mark.slow
def test_other_processes_can_read_any_row(prepared, request):
    if "array_record" in request.node.name:
        pytest.skip("two processes that start TensorFlow are enough")
    source = open_source(prepared)
    expected = [number(source.frame(row).rgb) for row in range(7)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        frames = list(pool.map(source.frame, range(7), chunksize=4))
    assert [number(frame.rgb) for frame in frames] == expected


def test_a_record_is_read_without_those_before_it(copied, monkeypatch):
    source = open_source(copied)
    assert isinstance(source, tfds.Tfds)
    if not source._record_files[0].name.count("tfrecord"):
        pytest.skip("ArrayRecord has an index of its own")
    read = []
    real = tfds._TfRecords.read
    monkeypatch.setattr(
        tfds._TfRecords, "read", lambda me, k: read.append(k) or real(me, k)
    )
    file = source._record_files[0]
    offsets = tfds._offsets(file)
    assert offsets[0] == 0 and len(offsets) >= 2
    source.frame(len(offsets) - 1)
    assert read == [len(offsets) - 1]
    # Damage to earlier records does not matter.
    content = bytearray(file.read_bytes())
    content[16 : offsets[-1]] = bytes(offsets[-1] - 16)
    file.write_bytes(content)
    assert made.broken_rows(open_source(copied)).keys() == set(range(len(offsets) - 1))


def test_a_flipped_bit_breaks_only_its_frame(copied):
    source = open_source(copied)
    assert isinstance(source, tfds.Tfds)
    file, count = source._record_files[0], source._ends[0]
    content, rng = file.read_bytes(), np.random.default_rng(0)
    used = np.flatnonzero(np.frombuffer(content, np.uint8))  # ArrayRecord pads
    detected = 0
    for place in rng.choice(used, 12):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.integers(8)
        file.write_bytes(flipped)
        damaged = open_source(copied)
        broken = made.broken_rows(damaged)
        assert broken.keys() <= set(range(count))
        assert all(file.name in text for text in broken.values())
        # The other frames are unchanged.
        for row in set(range(count)) - broken.keys():
            rgb, depth = content_of(damaged.frame(row))
            np.testing.assert_array_equal(damaged.frame(row).rgb, rgb)
            np.testing.assert_array_equal(damaged.frame(row).filled, depth)
        detected += bool(broken)
    assert detected > 6


def test_truncation_breaks_the_frames_after_it(copied):
    source = open_source(copied)
    assert isinstance(source, tfds.Tfds)
    file, count = source._record_files[0], source._ends[0]
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"text\n" * 99):
        file.write_bytes(damaged)
        broken = made.broken_rows(open_source(copied))
        assert count - 1 in broken and broken.keys() <= set(range(count))
    file.unlink()
    assert made.broken_rows(open_source(copied)).keys() == set(range(count))


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damaged", ["", "[]", "{", '{"name": "nyu_depth_v2"}'])
def test_damaged_descriptions_are_an_error(copied, name, damaged):
    (copied / name).write_text(damaged)
    made.refused(copied, copied, data_format="tfds")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shardLengths", ["-1", "3"]),
        ("shardLengths", ["3", "99999999999999"]),
        ("shardLengths", ["3"]),
        ("filepathTemplate", "{DATASET}-{SPLIT]"),
        ("filepathTemplate", "../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"),
    ],
)
def test_damaged_descriptions_of_record_files_are_an_error(copied, key, value):
    path = copied / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0][key] = value
    path.write_text(json.dumps(info))
    made.refused(copied, copied)


def test_a_deeply_nested_description_is_not_recognised(copied):
    (copied / "dataset_info.json").write_text("[" * 100_000)
    assert not tfds.Tfds.recognises(copied)


def test_other_features_are_rejected(copied):
    path = copied / "features.json"
    text = path.read_text()
    for old, new in (('"depth"', '"depth_map"'), ("float16", "int32"), ("640", "64")):
        path.write_text(text.replace(old, new, 1))
        made.refused(copied, "image (H, W, 3) uint8 and depth")


def test_654_frames_of_validation_are_the_official_test_set(copied):
    path = copied / "dataset_info.json"
    info = json.loads(path.read_text())
    for split in info["splits"]:
        if split["name"] == "validation":
            split["shardLengths"] = ["2", "652"]
    path.write_text(json.dumps(info))
    by_name = open_source(copied).splits()
    assert len(by_name["official"]["eval"]) == len(splits.official()["test"]) == 654
    assert by_name["official"]["train"] == [0, 1, 2, 3, 4]


def test_other_data_sets_of_tfds_are_not_recognised(copied, tmp_path):
    info = copied / "dataset_info.json"
    info.write_text(info.read_text().replace('"nyu_depth_v2"', '"mnist"'))
    made.refused(copied, "holds no nyu_depth_v2", data_format="tfds")
    assert not tfds.Tfds.recognises(tmp_path)


def test_missing_tensorflow_is_an_error(copied, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    made.refused(copied, "TensorFlow", "install")


def test_changed_files_have_another_fingerprint(copied):
    first = open_source(copied)
    assert isinstance(first, tfds.Tfds)
    before = first.fingerprint()
    assert open_source(copied).fingerprint() == before
    first._record_files[-1].unlink()
    assert open_source(copied).fingerprint() != before
