"""Folders that are laid out as the publishers of RGB-D data sets ship them."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import ReadOptions, open_source
from jaxdepth.data.split import complete
from jaxdepth.data.store import writer
from tests.data.sources import layouts_made, made

CAMERAS = {
    "scannet": lambda k: (58.0, 58.5, 32.0, 23.5),
    "scannet_info": lambda k: (58.0, 58.5, 32.0, 23.5),
    "sunrgbd": lambda k: (50.0 + k, 51.0 + k, 31.0, 23.0),
    "seven_scenes": lambda k: (58.5, 58.5, 31.55, 23.55),
    "arkitscenes": lambda k: (53.0 + k, 54.0 + k, 31.5, 23.5),
    "arkit_upsampling": lambda k: None,
    "stray_extracted": lambda k: (50, 1501 / 30, 961 / 30 - 0.5, 721 / 30 - 0.5),
    "replica": lambda k: (30.0, 30.5, 31.5, 23.5),
    # The file counts rows from the bottom: 47 - 20.5.
    "matterport": lambda k: (54.0 + k, 55.0 + k, 32.5, 26.5),
    "redwood": lambda k: (52.5, 52.6, 31.5, 23.5),
    "redwood_rooms": lambda k: (52.5, 52.5, 31.5, 23.5),
    "tum": lambda k: (
        51.7306408, 51.6469215, (318.64304 + 0.5) / 10 - 0.5,
        (255.313989 + 0.5) / 10 - 0.5,
    ),
}  # fmt: skip
MASKED = ("arkitscenes", "stray_extracted")  # confidence below 2 in 16 columns


@pytest.fixture(params=layouts_made.LAYOUTS)
def layout(request, tmp_path):
    return request.param, layouts_made.LAYOUTS[request.param](tmp_path / "data")


def number_of(frame) -> int:
    """The number of the frame whose texture this is, at any of the sizes in use."""
    rows, columns = frame.rgb.shape[:2]
    errors = []
    for k in range(layouts_made.FRAMES):
        choices = []
        for factor in (1, 2, 4):  # images may have been shrunk
            full = layouts_made.rgb(k, (rows * factor, columns * factor))
            cells = full.reshape(rows, factor, columns, factor, 3).mean((1, 3))
            choices.append(np.abs(cells - frame.rgb).mean())
        errors.append(min(choices))
    assert min(errors) < 12  # JPEG
    return int(np.argmin(errors))


def test_every_frame_has_its_depth_and_camera(layout):
    name, root = layout
    source = open_source(root)
    assert len(source.infos) == layouts_made.FRAMES
    seen = set()
    for row in range(len(source.infos)):
        frame = source.frame(row)
        k = number_of(frame)
        seen.add(k)
        depth = frame.depths["raw"]
        expected = layouts_made.metres(k, depth.shape)
        if name in MASKED:
            expected[:, :16] = 0
        if (name, k) == ("arkitscenes", 1):
            expected[:] = 0
        np.testing.assert_allclose(depth, expected, atol=6e-4)
        camera = CAMERAS[name](k)
        if camera is None:
            assert frame.intrinsics is None
        else:
            found = made.camera_of(source, row)
            np.testing.assert_allclose(found, camera, rtol=1e-6)
    assert seen == set(range(layouts_made.FRAMES))
    made.same_elsewhere(source)


def test_every_layout_becomes_a_store(layout, tmp_path):
    name, root = layout
    source = open_source(root)
    opened = writer.write(source, tmp_path / "store", size=(24, 32))
    empty = 1 if name == "arkitscenes" else 0
    assert len(opened) == layouts_made.FRAMES - empty
    assert opened.manifest["broken"] == []


@pytest.mark.parametrize(
    ("name", "train", "evaluation"),
    [
        (
            "seven_scenes",
            ["frame-000000", "frame-000002"],
            ["frame-000001", "frame-000003"],
        ),
        ("arkitscenes", ["_300.244", "_301.244", "_302.244"], ["_303.244"]),
    ],
)
def test_published_splits_are_used(tmp_path, name, train, evaluation):
    source = open_source(layouts_made.LAYOUTS[name](tmp_path))
    own = source.splits()["own"]
    for part, names in (("train", train), ("eval", evaluation)):
        rows = [source.infos[row].name for row in own[part]]
        assert len(rows) == len(names)
        assert all(part in name for part, name in zip(names, rows, strict=True))


def test_sun_rgbd_has_raw_and_filled_depth_and_each_frame_once(tmp_path):
    source = open_source(layouts_made.sunrgbd(tmp_path))
    assert source.truths == ("filled", "raw")
    assert not any("fullres" in info.name for info in source.infos)
    frame = source.frame(0)
    assert frame.filled is not None and frame.raw is not None
    assert (frame.raw[0] == 0).all() and (frame.filled[0] > 0).all()
    notes = " ".join(source.notes)
    assert "depth_bfx" in notes and "--depth_code=sunrgbd" in notes
    assert "8 other images and arrays are not used" in notes and "4 .mat" in notes
    scenes = {info.scene for info in source.infos}
    assert scenes == {
        "kv2/kinect2data/2014-05-26_14-54-02_2605", "xtion/sun3ddata/mit/lab"
    }  # fmt: skip


def test_sun_rgbd_that_was_rotated_back_is_read_as_it_is(tmp_path):
    root = layouts_made.sunrgbd(tmp_path)
    for file in root.glob("**/depth*/*.png"):
        values = np.asarray(Image.open(file))
        Image.fromarray((values >> 3) | (values << 13)).save(file)
    source = open_source(root)
    assert source.frame(0).depths["raw"].max() == pytest.approx(2.63)
    assert "not rotated" in " ".join(source.notes)
    # The flag has its effect whatever the values are.
    forced = open_source(root, options=ReadOptions(depth_code="sunrgbd"))
    assert forced.frame(0).depths["raw"].max() > 20


def test_frames_of_nyu_in_sun_rgbd_have_their_official_scenes(tmp_path):
    test = splits.official()["test"][0]
    train = splits.official()["train"][0]
    for index in (train, test):
        frame = tmp_path / f"kv1/NYUdata/NYU{index:04d}"
        layouts_made.image(frame / f"image/NYU{index:04d}.jpg", index)
        layouts_made.depth(
            frame / f"depth/NYU{index:04d}.png", 0, code=layouts_made.rotated
        )
        layouts_made.text(frame / "intrinsics.txt", "50 0 31 0 50 23 0 0 1")
        layouts_made.text(frame / "extrinsics/1.txt", "1 0 0 0\n")
    source = open_source(tmp_path)
    scenes = splits.official()["scenes"]
    assert {i.scene for i in source.infos} == {scenes[test - 1], scenes[train - 1]}
    parts, notes = complete(source)
    assert [source.infos[row].scene for row in parts["all"]["train"]] == [
        scenes[train - 1]
    ]
    assert "official test set" in notes[0]


def test_a_real_sun_rgbd_frame_in_its_layout(shared_data, tmp_path):
    sample = shared_data / "other_sensors" / "sunrgbd"
    frame = tmp_path / "xtion/xtion_align_data/2014_1"
    for kind in ("image", "fullres"):
        (frame / kind).mkdir(parents=True)
        shutil.copy(sample / "SUN_color.jpg", frame / kind / "0000001.jpg")
    for kind in ("depth", "fullres"):
        (frame / kind).mkdir(exist_ok=True)
        shutil.copy(sample / "SUN_depth.png", frame / kind / "0000002.png")
    made.text(frame, "intrinsics.txt", "570.3 0 320 0 570.3 240 0 0 1")
    source = open_source(tmp_path)
    assert len(source.infos) == 1
    (depth,) = source.frame(0).depths.values()
    assert np.median(depth) == pytest.approx(2.35, abs=0.01)  # 18.4 if not rotated
    assert source.frame(0).intrinsics == (570.3, 570.3, 320, 240)


def test_a_real_frame_of_arkit_is_read(shared_data):
    source = open_source(shared_data / "other_sensors" / "arkit")
    frame = source.frame(0)
    assert frame.rgb.shape == (192, 256, 3)
    depth = frame.depths["filled"]
    assert depth.min() == pytest.approx(1.57, abs=0.01)
    assert depth.max() == pytest.approx(3.51, abs=0.01)


def test_replica_without_its_camera_file_has_its_unit(tmp_path):
    root = layouts_made.replica(tmp_path)
    (root / "cam_params.json").unlink()
    source = open_source(root)
    assert source.frame(0).depths["raw"].max() == pytest.approx(2.63, rel=1e-4)
    assert source.frame(0).intrinsics is None


def test_frames_of_sun3d_are_matched_by_time(tmp_path):
    for k in range(3):
        layouts_made.image(tmp_path / f"image/000000{k}-{k * 33368:012d}.jpg", k)
        depth = tmp_path / f"depth/000000{k + 1}-{k * 33368 + 2000:012d}.png"
        layouts_made.depth(depth, k, code=layouts_made.rotated)
    layouts_made.text(tmp_path / "intrinsics.txt", "50 0 31\n0 50 23\n0 0 1\n")
    layouts_made.text(tmp_path / "extrinsics/20130512130736.txt", "1 0 0 0\n")
    source = open_source(tmp_path)
    depths = [source.frame(row).depths["raw"].max() for row in range(3)]
    np.testing.assert_allclose(depths, [2.63, 2.73, 2.83], rtol=1e-6)


@pytest.mark.parametrize("equal", [True, False])
def test_frames_of_redwood_s_scans_are_matched_by_time(tmp_path, equal):
    for k in range(3):
        time = k * 33368
        layouts_made.image(tmp_path / f"scan/rgb/000000{k}-{time:012d}.jpg", k)
        shift, late = (0, 0) if equal else (1, 102)
        name = f"000000{k + shift}-{time + late:012d}"
        layouts_made.depth(tmp_path / f"scan/depth/{name}.png", k)
    source = open_source(tmp_path)
    depths = [source.frame(row).depths["raw"].max() for row in range(3)]
    np.testing.assert_allclose(depths, [2.63, 2.73, 2.83], rtol=1e-6)
    assert ("matched by the times" in " ".join(source.notes)) == (not equal)


@pytest.mark.parametrize("given", [None, 1000.0])
def test_replica_s_unit_and_camera_are_in_the_folder_above(tmp_path, given):
    root = layouts_made.replica(tmp_path) / "room0"
    source = open_source(root, options=ReadOptions(depth_scale=given))
    frame = source.frame(0)
    assert frame.intrinsics == (30.0, 30.5, 31.5, 23.5)
    expected = 2.63 if given is None else 2.63 * 6.5535
    assert frame.depths["raw"].max() == pytest.approx(expected, rel=1e-4)
    assert ("6553.5 units" in " ".join(source.notes)) == (given is None)


def test_data_of_two_publishers_are_not_mixed(tmp_path):
    layouts_made.replica(tmp_path / "a")
    layouts_made.matterport(tmp_path / "b")
    made.refused(tmp_path, "Matterport3D and Replica", "different units")
    assert len(open_source(tmp_path / "a").infos) == layouts_made.FRAMES


def test_a_better_layout_of_the_same_frames_is_used_alone(tmp_path):
    layouts_made.arkit_upsampling(tmp_path)
    layouts_made.arkitscenes(tmp_path)
    source = open_source(tmp_path)
    assert all("lowres_wide" in info.name for info in source.infos)
    assert "laser scanner (4 pairs)" in " ".join(source.notes)


def test_the_video_of_stray_scanner_must_be_extracted(tmp_path):
    root = layouts_made.stray(tmp_path / "a scan")
    made.refused(
        root, "0 images, 4 depth files", f"ffmpeg -i '{root}/rgb.mp4'", "rgb'/%06d.png"
    )


def test_a_folder_of_tum_recordings_is_named(tmp_path):
    recording = layouts_made.tum(tmp_path)
    made.refused(tmp_path, f"{recording} is a recording of TUM RGB-D")


@pytest.mark.parametrize(
    ("suffix", "advice"),
    [(".zip", "unpack the archives"), (".sens", "SensReader"), (".dpt", "2 .dpt")],
)
def test_files_that_are_not_read_are_counted_by_suffix(tmp_path, suffix, advice):
    for k in range(2):
        layouts_made.image(tmp_path / f"rgb/{k}.png", k)
        (tmp_path / f"depth_{k}{suffix}").write_bytes(b"x")
    made.refused(tmp_path, f"2 {suffix}", advice)
    layouts_made.depth(tmp_path / "depth/0.png", 0)
    source = open_source(tmp_path)
    assert f"files that are not read: 2 {suffix}, first depth_0" in " ".join(
        source.notes
    )


def test_text_files_beside_frames_are_not_named(tmp_path):
    root = layouts_made.scannet(tmp_path)
    layouts_made.text(root / "scene0000_00/scene0000_00.aggregation.json", "{}")
    notes = open_source(root).notes
    assert [note[:11] for note in notes] == ["camera read", "images are "]


@pytest.mark.parametrize("certain", [True, False])
def test_confidence_levels_are_of_the_data_set(tmp_path, certain):
    # A map of 0 and 1 is a mask, unless maps of the data set have the level 2.
    for k in range(2):
        layouts_made.image(tmp_path / f"rgb/{k}.png", k)
        layouts_made.depth(tmp_path / f"depth/{k}.png", k)
        levels = np.ones((48, 64), np.uint8)
        levels[:, :8] = 0
        levels[:, 40:] += np.uint8(certain and k == 1)
        (tmp_path / "confidence").mkdir(exist_ok=True)
        Image.fromarray(levels).save(tmp_path / f"confidence/{k}.png")
    depths = [open_source(tmp_path).frame(row).depths["raw"] for row in range(2)]
    valid = [int((depth[1] > 0).sum()) for depth in depths]
    assert valid == ([0, 24] if certain else [56, 56])


@pytest.mark.parametrize("constant", [True, False])
def test_depth_of_one_value_is_reported(tmp_path, constant):
    for k in range(2):
        layouts_made.image(tmp_path / f"rgb/{k}.png", k)
        if constant:
            made.depth(tmp_path, f"depth/{k}.png", 3000 + k, size=(48, 64))
        else:
            layouts_made.depth(tmp_path / f"depth/{k}.png", k)
    notes = " ".join(open_source(tmp_path).notes)
    assert ("each of 2 sampled depth maps has one value" in notes) == constant


def test_links_out_of_the_folder_are_rejected(tmp_path):
    root = layouts_made.replica(tmp_path / "data")
    outside = made.text(tmp_path, "secret.png", "x")
    (root / "room0/results/depth000000.png").unlink()
    (root / "room0/results/depth000000.png").symlink_to(outside)
    made.refused(root, "is outside", "--allow_outside")


def test_a_changed_camera_changes_the_fingerprint(tmp_path):
    root = layouts_made.replica(tmp_path)
    first = open_source(root).fingerprint()
    assert open_source(root).fingerprint() == first
    content = json.loads((root / "cam_params.json").read_text())
    content["camera"]["fx"] = 601.25
    made.text(root, "cam_params.json", json.dumps(content))
    assert open_source(root).fingerprint() != first
