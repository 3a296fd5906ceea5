"""The format nyu_raw: real files through the toolbox, and damaged dumps."""

import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdepth.config import Config
from jaxdepth.data import dataset, split
from jaxdepth.data.nyu import fill, splits, toolbox
from jaxdepth.data.sources import (
    BrokenFrame,
    ReadOptions,
    labeled,
    nyu_raw,
    open_source,
)
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import UserError

SCENE = "basement_0001a"
P5, P6 = b"P5 640 480 65535\n", b"P6 640 480 255\n"
WALL = np.full((480, 640), 800, "<u2")
WALL[:, 300:340] = 2047


def depth_name(time, ticks=7):
    return f"d-{1316653580 + time:.6f}-{ticks}.pgm"


def rgb_name(time, ticks=7):
    return f"r-{1316653580 + time:.6f}-{ticks}.ppm"


def write_scene(folder, depth_times, rgb_times, *, disparity=WALL):
    """Write a scene's folder with the recorder's files."""
    folder.mkdir(parents=True)
    for time in depth_times:
        (folder / depth_name(time)).write_bytes(P5 + disparity.tobytes())
    for time in rgb_times:
        (folder / rgb_name(time)).write_bytes(P6 + bytes(480 * 640 * 3))
    (folder / "INDEX.txt").write_text("\n".join(os.listdir(folder)))
    return folder


def write_empty(folder, depth_times, rgb_times):
    """Write a scene's folder with empty files, for tests that use names only."""
    folder.mkdir(parents=True)
    for time in depth_times:
        (folder / depth_name(time)).touch()
    for time in rgb_times:
        (folder / rgb_name(time)).touch()
    return folder


def millimetres(depth):
    """Metres in millimetres, rounded as in a store."""
    return np.round(depth.astype(np.float64) * 1000)


def names(source):
    return [info.name for info in source.infos]


def times(source):
    return [toolbox.seconds(info.name) - 1316653580 for info in source.infos]


@pytest.fixture
def dump(shared_data):
    return shared_data / "raw_kinect"


def test_a_real_frame_equals_that_of_the_toolbox(dump, shared_data):
    source = open_source(dump)
    assert isinstance(source, nyu_raw.NyuRaw)
    assert names(source) == [f"{SCENE}/d-1316653580.471513-1316138413"]
    assert source.infos[0].scene == SCENE
    assert source.truths == ("raw",) and source.name == "raw_kinect"
    frame = source.frame(0)
    assert frame.raw is not None and frame.filled is None
    reference = shared_data / "sync_png16" / SCENE
    with Image.open(reference / "sync_depth_00000.png") as image:
        np.testing.assert_array_equal(millimetres(frame.raw), image)
    with Image.open(reference / "rgb_00000.jpg") as image:
        assert np.abs(frame.rgb - np.asarray(image, float)).mean() < 4.4
    assert frame.intrinsics == labeled.INTRINSICS
    np.testing.assert_allclose(
        labeled.INTRINSICS, (518.857901, 519.469611, 325.582449, 253.736166), 1e-8
    )


def test_a_store_holds_the_millimetres_of_the_png(dump, shared_data, tmp_path):
    opened = store_writer.write(
        open_source(dump), tmp_path / "s", size=(480, 640), mask_extremes="off"
    )
    _, depth = opened.gather([0], depth="raw")
    with Image.open(shared_data / "sync_png16" / SCENE / "sync_depth_00000.png") as png:
        np.testing.assert_array_equal(depth[0], png)
    assert opened.manifest["camera"]["fx"] == pytest.approx(518.857901)


def test_a_single_scene_folder_is_read(dump, monkeypatch):
    assert names(open_source(dump / SCENE)) == names(open_source(dump))
    monkeypatch.chdir(dump / SCENE)
    assert names(open_source(".")) == names(open_source(dump))
    assert open_source(".").name == SCENE


@pytest.mark.parametrize("method", ["colorization", "cross_bf"])
def test_fill_adds_filled_depth_to_raw_depth(dump, method, monkeypatch):
    assert nyu_raw.FILLS[method] is getattr(fill, f"fill_depth_{method}")
    arguments = []
    monkeypatch.setitem(
        nyu_raw.FILLS, method, lambda *both: arguments.extend(both) or both[1] + 0.5
    )
    source = open_source(dump, options=ReadOptions(fill=method))
    assert source.truths == ("filled", "raw")
    frame = source.frame(0)
    disparity = nyu_raw.read_depth(next((dump / SCENE).glob("d-*")))
    rgb = nyu_raw.read_rgb(next((dump / SCENE).glob("r-*")))
    depth, rgb = toolbox.project_depth_map(disparity, rgb)
    np.testing.assert_array_equal(arguments[0], rgb)
    np.testing.assert_array_equal(arguments[1], depth)
    np.testing.assert_array_equal(frame.filled, (depth + 0.5).astype(np.float32))
    np.testing.assert_array_equal(frame.raw, open_source(dump).frame(0).raw)


def test_filled_depth_has_fewer_holes_than_raw_depth(dump):
    frame = open_source(dump, options=ReadOptions(fill="cross_bf")).frame(0)
    assert frame.raw is not None and frame.filled is not None
    assert (frame.filled > 0).mean() > 0.95 > 0.75 > (frame.raw > 0).mean()


def test_variant_a_differs_from_variant_b(dump):
    newer = open_source(dump).frame(0).raw
    older = open_source(dump, options=ReadOptions(variant="A")).frame(0).raw
    assert 0 < (newer != older).mean() < 0.02


def test_scenes_below_the_folder_are_sorted_by_name(tmp_path):
    write_empty(tmp_path / "basements" / "basement_0001b", [0], [0])
    write_empty(tmp_path / "basements" / "basement_0001a", [0.5, 0.25], [0.25, 0.5])
    write_empty(tmp_path / "attic_0001", [1], [1])
    (tmp_path / "basements" / "README.txt").touch()
    source = open_source(tmp_path)
    assert [info.scene for info in source.infos] == [
        "attic_0001", "basement_0001a", "basement_0001a", "basement_0001b",
    ]  # fmt: skip
    assert times(source) == [1, 0.25, 0.5, 0]


def test_a_folder_without_raw_depth_is_not_recognised(tmp_path, shared_data):
    assert not nyu_raw.NyuRaw.recognises(tmp_path / "none")
    (tmp_path / "r-1.0-2.ppm").touch()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "d-notes.txt").touch()
    assert not nyu_raw.NyuRaw.recognises(tmp_path)
    assert not nyu_raw.NyuRaw.recognises(tmp_path / "r-1.0-2.ppm")
    for other in ("sync_png16", "tum_rgbd", "nyu_train"):
        assert not nyu_raw.NyuRaw.recognises(shared_data / other)
    with pytest.raises(UserError, match="holds no raw frame"):
        open_source(tmp_path, data_format="nyu_raw")


def test_doubles_are_left_out_and_counted(tmp_path):
    write_empty(tmp_path / SCENE, [0, 0.125, 0.5, 0.75, 1], [0, 0.5, 0.75])
    source = open_source(tmp_path)
    assert times(source) == [0.5]
    assert any("left out 4 of 5 frames" in note for note in source.notes)
    source = open_source(tmp_path, options=ReadOptions(doubles="keep"))
    assert times(source) == [0, 0.125, 0.5, 0.75, 1] and source.notes == []


def test_frames_with_a_gap_above_max_gap_are_left_out(tmp_path):
    write_empty(tmp_path / SCENE, [0, 1, 2], [0.125, 1.25, 2])
    source = open_source(tmp_path, options=ReadOptions(max_gap=0.125))
    assert times(source) == [0, 2]
    assert any("left out 1 of 3 frames" in note for note in source.notes)
    assert times(open_source(tmp_path)) == [0, 1, 2]


def test_doubles_are_left_out_before_gaps(tmp_path):
    # Two frames share an image. Were the distant one left out first for its gap, the
    # other would not be a double.
    write_empty(tmp_path / SCENE, [0, 1, 5], [0, 5])
    source = open_source(tmp_path, options=ReadOptions(max_gap=0.5))
    assert times(source) == [5]


def test_every_applies_to_the_remaining_frames_of_each_scene(tmp_path):
    grid = [k / 4 for k in range(20)]
    doubled = sorted([*grid, 0.0625])
    write_empty(tmp_path / "a_0001", doubled, grid)
    write_empty(tmp_path / "b_0001", grid[:9], grid)
    source = open_source(tmp_path, options=ReadOptions(every=7))
    scene_times = [
        (info.scene, t) for info, t in zip(source.infos, times(source), strict=True)
    ]
    assert scene_times == [
        ("a_0001", 0.25), ("a_0001", 2), ("a_0001", 3.75),
        ("b_0001", 0), ("b_0001", 1.75),
    ]  # fmt: skip


def test_an_empty_selection_is_an_error_with_the_reason(tmp_path):
    write_empty(tmp_path / SCENE, [0, 0.1], [0])
    with pytest.raises(UserError, match=r"holds no raw frame.*left out 2 of 2 frames"):
        open_source(tmp_path)
    with pytest.raises(UserError, match="--every=0"):
        open_source(tmp_path, options=ReadOptions(every=0))


def test_a_scene_without_images_is_left_out_with_a_note(tmp_path):
    write_empty(tmp_path / "a_0001", [0], [])
    write_empty(tmp_path / "b_0001", [0], [0])
    source = open_source(tmp_path)
    assert [info.scene for info in source.infos] == ["b_0001"]
    assert any("left out a_0001: it holds no image" in note for note in source.notes)


def test_a_depth_scale_is_rejected(tmp_path):
    write_empty(tmp_path / SCENE, [0], [0])
    with pytest.raises(UserError, match="does not use it"):
        open_source(tmp_path, options=ReadOptions(depth_scale=1000.0))


CONTENT = P5 + WALL.tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"P5", "does not begin with P5 640 480 65535"),
        (b"not a picture at all\n" * 30000, "does not begin with"),
        (b"P5 320 240 65535\n" + CONTENT[17:], "does not begin with"),
        (b"P2" + CONTENT[2:], "does not begin with"),
        (CONTENT[:-1], "truncated: 614416 bytes, not 614417"),
        (CONTENT[:17], "truncated"),
        (CONTENT + b"\n", "too long"),
        (P5 + WALL.astype(">u2").tobytes(), "above 11 bits"),
    ],
)
def test_a_broken_depth_file_is_named_with_the_reason(tmp_path, content, reason):
    folder = write_scene(tmp_path / SCENE, [0, 1], [0, 1])
    source = open_source(tmp_path)
    file = folder / depth_name(0)
    file.write_bytes(content)
    with pytest.raises(BrokenFrame, match=reason) as error:
        source.frame(0)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert source.frame(1).raw is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (CONTENT, "does not begin with P6 640 480 255"),
        (P6 + bytes(480 * 640 * 3 - 5), "truncated: 921610 bytes, not 921615"),
        (P6 + bytes(480 * 640 * 3 + 1), "too long"),
    ],
)
def test_a_broken_image_is_named_with_the_reason(tmp_path, content, reason):
    folder = write_scene(tmp_path / SCENE, [0], [0])
    file = folder / rgb_name(0)
    file.write_bytes(content)
    with pytest.raises(BrokenFrame, match=reason) as error:
        open_source(tmp_path).frame(0)
    assert str(file) in str(error.value)


def test_a_missing_file_is_a_broken_frame(tmp_path):
    folder = write_scene(tmp_path / SCENE, [0], [0])
    source = open_source(tmp_path)
    before = source.fingerprint()
    (folder / depth_name(0)).unlink()
    with pytest.raises(BrokenFrame, match="can't be read"):
        source.frame(0)
    assert source.fingerprint() != before


def test_a_frame_without_readings_has_no_depth(tmp_path):
    write_scene(tmp_path / SCENE, [0], [0], disparity=np.full_like(WALL, 2047))
    frame = open_source(tmp_path).frame(0)
    assert frame.raw is not None and not frame.raw.any()
    filled = open_source(tmp_path, options=ReadOptions(fill="colorization")).frame(0)
    assert filled.filled is not None and not filled.filled.any()


def test_depth_is_little_endian(tmp_path):
    file = tmp_path / depth_name(0)
    disparity = np.arange(480 * 640).reshape(480, 640) % 2048
    file.write_bytes(P5 + disparity.astype("<u2").tobytes())
    np.testing.assert_array_equal(nyu_raw.read_depth(file), disparity)


def test_a_source_can_be_pickled(dump):
    source = open_source(dump)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.infos == source.infos and copy.fingerprint() == source.fingerprint()
    np.testing.assert_array_equal(copy.frame(0).raw, source.frame(0).raw)


def test_the_fingerprint_depends_on_files_and_options(tmp_path):
    folder = write_empty(
        tmp_path / SCENE, [0, 1], [0, 1]
    )  # empty files: content is not read
    first = open_source(tmp_path).fingerprint()
    assert open_source(tmp_path).fingerprint() == first
    options = [
        ReadOptions(every=2), ReadOptions(doubles="keep"), ReadOptions(max_gap=0.5),
        ReadOptions(variant="A"), ReadOptions(fill="cross_bf"),
    ]  # fmt: skip
    others = [open_source(tmp_path, options=o).fingerprint() for o in options]
    os.utime(folder / rgb_name(1), (1, 1))
    others.append(open_source(tmp_path).fingerprint())
    (folder / depth_name(0)).write_bytes(b"other")
    others.append(open_source(tmp_path).fingerprint())
    write_empty(tmp_path / "b_0001", [0], [0])
    others.append(open_source(tmp_path).fingerprint())
    assert len({str(f) for f in [first, *others]}) == len(others) + 1


def scenes_of(part):
    return sorted(scene for scene, p in splits.parts().items() if p == part)


def test_splits_follow_scenes_and_test_scenes_are_left_out_of_training(tmp_path):
    tune, report = scenes_of("tune")[0], scenes_of("report")[0]
    train, test = scenes_of("train")[0], scenes_of("test")[0]
    folders = [f"{train}a", f"{train}b", tune, f"{report}c", test, "bookstore_0001d",
               "nyu_office_0"]  # fmt: skip
    for folder in folders:
        write_empty(tmp_path / folder, [0], [0])
    source = open_source(tmp_path)
    scene = [info.scene for info in source.infos]
    splits, notes = split.complete(source)

    def of(name, part):
        return sorted(str(scene[row]) for row in splits[name][part])

    trained = sorted([f"{train}a", f"{train}b", "nyu_office_0"])
    assert of("official", "train") == sorted([*trained, tune, f"{report}c"])
    assert of("official", "eval") == sorted([test, "bookstore_0001d"])
    assert of("tune", "train") == of("report", "train") == trained
    assert of("tune", "eval") == [tune] and of("report", "eval") == [f"{report}c"]
    assert of("all", "train") == sorted([*trained, tune, f"{report}c"])
    assert notes[0].startswith(
        f"left 2 frames of {min(test, 'bookstore_0001d')} and 1 more out"
    )
    assert any(
        "1 folder of scenes without labeled frames" in n and "nyu_office_0" in n
        for n in source.notes
    )


def test_test_scenes_in_the_training_list_of_bts_are_left_out(shared_data, tmp_path):
    listed = (shared_data / "nyu_splits" / "train_scenes.txt").read_text().split()
    for folder in listed:
        write_empty(tmp_path / folder, [0], [0])
    source = open_source(tmp_path)
    scene = [info.scene for info in source.infos]
    evaluated = {scene[row] for row in source.splits()["official"]["eval"]}
    assert evaluated == {f"bookstore_0001{letter}" for letter in "defghij"}
    trained = {scene[row] for row in source.splits()["official"]["train"]}
    assert trained == set(listed) - evaluated


def test_training_scenes_without_test_scenes_are_for_training(dump):
    assert open_source(dump).splits()["official"] == {"train": [0], "eval": []}


def test_training_scenes_need_other_data_for_evaluation(dump, tmp_path):
    config = Config.of(data=str(dump), size="60x80", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="--eval_data"):
        dataset.open_data(config)
    test_scene = tmp_path / "held_out" / f"{scenes_of('test')[0]}b"
    shutil.copytree(dump / SCENE, test_scene)
    for image in test_scene.glob("r-*"):  # an equal image would be refused
        content = image.read_bytes()
        image.write_bytes(content[:50] + content[50:][::-1])
    config = config.replace(eval_data=str(test_scene.parent))
    data = dataset.open_data(config)
    assert data.train_rows.tolist() == data.eval_rows.tolist() == [0]
    assert data.name == "held_out" and data.nyu and data.depth == "raw"


def test_other_recordings_have_no_official_split(tmp_path):
    write_empty(tmp_path / "my_room", [0, 1], [0, 1])
    source = open_source(tmp_path)
    assert source.splits() == {"all": {"train": [0, 1], "eval": []}}
    assert source.notes == []
