"""Camera files: their formats, where they are searched, and unusable ones."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.sources import BrokenFrame, ReadOptions, camera_files, open_source
from tests.data.sources import layouts_made, made

SIZE = (48, 64)
K = ((50.0, 0, 31.0), (0, 51.0, 23.0), (0, 0, 1))
FLAT = [value for row in K for value in row]
FILES = {
    "intrinsics.txt": "50 0 31 0 51 23 0 0 1",
    "K.txt": "50 0 31\n0 51 23\n0 0 1\n",
    "intrinsic.txt": "5.0e1,0,31,0\n0,5.1e1,23,0\n0,0,1,0\n0,0,0,1\n",
    "calib.txt": "cam0=[50 0 31; 0 51 23; 0 0 1]\ndoffs=0\nwidth=64\nheight=48\n",
    "calibration.txt": "# fx fy cx cy\n50 51 31 23\n",
    "camera.txt": "[[50, 0, 31], [0, 51, 23], [0, 0, 1]]",
    "cam.txt": "fx: 50\nfy: 51\ncx: 31\ncy: 23\n",
    "camera_matrix.csv": "50,0,31\r\n0,51,23\r\n0,0,1\r\n",
    "color.pincam": "64 48 50 51 31 23",
    "camera_intrinsics.txt": "50 0 0\n0 51 0\n31 23 1\n",  # column-major
    "rgb_intrinsics.txt": "\ufeff128 96 100 102 62.5 46.5",
    "camera.json": json.dumps({"K": FLAT}),
    "cam_params.json": json.dumps(
        {"camera": {"w": 64, "h": 48, "fx": 50, "fy": 51, "cx": 31, "cy": 23}}
    ),
    "transforms.json": json.dumps(
        {"fl_x": 100, "fl_y": 102, "cx": 62.5, "cy": 46.5, "w": 128, "h": 96}
    ),
    "camera_intrinsic.json": json.dumps(
        {"width": 64, "height": 48, "intrinsic_matrix": [50, 0, 0, 0, 51, 0, 31, 23, 1]}
    ),
    "camera.yaml": (
        "%YAML:1.0\nCamera.fx: 50\nCamera.fy: 51.\nCamera.cx: 31\nCamera.cy: 23\n"
    ),
    "calibration.yml": (
        "image_width: 128\nimage_height: 96\ncamera_matrix:\n  rows: 3\n  cols: 3\n"
        "  data: [100, 0, 62.5, 0, 102, 46.5, 0, 0, 1]\nprojection_matrix:\n"
        "  data: [7, 0, 7, 0, 0, 7, 7, 0, 0, 0, 1, 0]\n"
    ),
    "info.txt": (
        "m_colorWidth = 64\nm_colorHeight = 48\n"
        "m_calibrationColorIntrinsic = 50 0 31 0 0 51 23 0 0 0 1 0 0 0 0 1\n"
    ),
}  # fmt: skip


def pairs(root, count=2):
    for k in range(count):
        layouts_made.image(root / f"rgb/{k}.png", k)
        layouts_made.depth(root / f"depth/{k}.png", k)
    return root


@pytest.mark.parametrize("folder", ["", "rgb", "camera_intrinsics"])
@pytest.mark.parametrize("name", FILES)
def test_a_camera_file_is_found_and_read(tmp_path, name, folder):
    if folder == "camera_intrinsics" and name == "info.txt":
        pytest.skip("this name is not searched in folders of cameras")
    file = pairs(tmp_path) / folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(FILES[name], encoding="utf-8")
    source = open_source(tmp_path)
    np.testing.assert_allclose(made.camera_of(source, 1), (50, 51, 31, 23), rtol=1e-9)
    (note,) = source.notes
    assert note.startswith(f"camera read from {file.relative_to(tmp_path)}")
    assert (", scaled from 96x128" in note) == ("128" in FILES[name])
    made.same_elsewhere(source)


@pytest.mark.parametrize(
    "values", [np.array(K), np.array([50, 51, 31, 23]), np.array(K, np.float32)]
)
def test_a_camera_can_be_an_array(tmp_path, values):
    pairs(tmp_path)
    np.save(tmp_path / "K.npy", values)
    source = open_source(tmp_path)
    assert source.frame(0).intrinsics == (50, 51, 31, 23)
    assert source.notes == ["camera read from K.npy"]


@pytest.mark.parametrize("values", [np.ones((2, 2), complex), np.ones((5, 5))])
def test_other_arrays_are_no_cameras(tmp_path, values):
    np.save(pairs(tmp_path) / "K.npy", values)
    (note,) = open_source(tmp_path).notes
    assert note.startswith("K.npy is not used as a camera: it ")


def test_the_innermost_file_is_used_and_colour_before_others(tmp_path):
    pairs(tmp_path / "a")
    pairs(tmp_path / "b")
    made.text(tmp_path, "K.txt", "60 0 31 0 60 23 0 0 1")
    made.text(tmp_path, "b/intrinsic_color.txt", "70 0 31 0 70 23 0 0 1")
    made.text(tmp_path, "b/camera.txt", "80 0 31 0 80 23 0 0 1")
    made.text(tmp_path, "b/intrinsic_depth.txt", "90 0 31 0 90 23 0 0 1")
    source = open_source(tmp_path)
    fx = [made.camera_of(source, row)[0] for row in range(4)]
    assert fx == [60, 60, 70, 70]
    assert "camera read from K.txt and 1 more" in source.notes


def test_files_of_single_images_take_precedence(tmp_path):
    pairs(tmp_path)
    made.text(tmp_path, "K.txt", "60 0 31 0 60 23 0 0 1")
    made.text(tmp_path, "intrinsics/1.txt", "70 0 31 0 70 23 0 0 1")
    source = open_source(tmp_path)
    assert [made.camera_of(source, row)[0] for row in range(2)] == [60, 70]


def test_data_without_a_camera_file_have_no_camera_and_no_note(tmp_path):
    source = open_source(pairs(tmp_path))
    assert source.frame(0).intrinsics is None and source.notes == []


def test_a_camera_for_larger_images_is_scaled(tmp_path):
    pairs(tmp_path)
    made.text(tmp_path, "color.pincam", "640 480 500 510 319.5 239.5")
    assert open_source(tmp_path).frame(0).intrinsics == pytest.approx(
        (50, 51, 31.5, 23.5)
    )


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("K.txt", "my favourite camera", "'my' is not a number"),
        ("K.txt", "", "it has 0 numbers"),
        ("K.txt", "50 51 31", "it has 3 numbers"),
        ("K.txt", "1 2 3 4 5 6 7 8 9", "its last row is not 0 0 1"),
        ("K.txt", "0 51 31 23", "not plausible in pixels"),
        ("K.txt", "-50 51 31 23", "not plausible in pixels"),
        ("K.txt", "0.8 0.9 0.5 0.5", "not plausible in pixels"),  # normalised
        ("K.txt", "nan 51 31 23", "not finite"),
        ("K.txt", "500 0 320 0 500 240 0 0 1", "may be for images of another size"),
        ("K.txt", "50 51 63 23", "far from the centre"),
        ("color.pincam", "640 360 500 510 320 180", "another aspect ratio, 48x64"),
        ("color.pincam", "0 48 50 51 31 23", "size is not positive"),
        ("color.pincam", "inf 48 50 51 31 23", "size is not positive"),
        ("camera.json", "{", "no JSON"),
        ("camera.json", "[" * 100_000, "no JSON"),
        ("camera.json", '{"fx": "50", "fy": 51, "cx": 31, "cy": 23}', "no fx"),
        (
            "camera.json",
            f'{{"fx": 1{"0" * 400}, "fy": 51, "cx": 31, "cy": 23}}',
            "no fx",
        ),
        ("camera.json", '{"K": [1, 2, 3]}', "no fx"),
    ],
)
def test_an_unusable_camera_file_is_named_and_the_data_are_read(
    tmp_path, name, content, reason
):
    pairs(tmp_path)
    made.text(tmp_path, name, content)
    source = open_source(tmp_path)
    assert source.frame(0).intrinsics is None and source.frame(1).intrinsics is None
    (note,) = source.notes
    assert note.startswith(f"{name} is not used as a camera: ") and reason in note


def test_binary_and_large_camera_files_are_named(tmp_path, monkeypatch):
    pairs(tmp_path)
    (tmp_path / "K.txt").write_bytes(b"\xff\xfe\x00")
    assert "not text in UTF-8" in open_source(tmp_path).notes[0]
    monkeypatch.setattr(camera_files, "LARGEST", 10)
    made.text(tmp_path, "K.txt", "50 0 31 0 51 23 0 0 1")
    assert "is larger than" in open_source(tmp_path).notes[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_no_camera_file(tmp_path):
    os.mkfifo(pairs(tmp_path) / "K.txt")
    assert open_source(tmp_path).notes == []


def test_a_second_usable_file_replaces_an_unusable_one(tmp_path):
    pairs(tmp_path)
    made.text(tmp_path, "K.txt", "words")
    made.text(tmp_path, "camera.txt", "50 51 31 23")
    source = open_source(tmp_path)
    assert source.frame(0).intrinsics == (50, 51, 31, 23)
    assert source.notes == ["camera read from camera.txt"]


def test_one_unusable_file_of_many_is_a_broken_frame(tmp_path):
    root = layouts_made.arkitscenes(tmp_path)
    for file in root.glob("**/41069020_301.*.pincam"):
        file.write_text("64 48 0 54 31.5 23.5")
    broken = made.broken_rows(source := open_source(root))
    assert list(broken) == [1]
    assert "_301.245.pincam can't be used as the camera of" in broken[1]
    assert any("is not used as a camera" in note for note in source.notes)


def test_unusable_files_of_all_images_are_ignored_with_a_note(tmp_path):
    pairs(tmp_path)
    for k in range(2):
        made.text(tmp_path, f"calib/{k}.txt", "P0: 1 2 3\n")  # another meaning
    source = open_source(tmp_path)
    assert source.frame(0).intrinsics is None
    assert "calib/0.txt is not used as a camera" in source.notes[0]
    assert "(2 such files)" in source.notes[0]


def test_an_image_of_another_size_than_its_shared_camera_is_broken(tmp_path):
    pairs(tmp_path)
    layouts_made.image(tmp_path / "rgb/1.png", 1, (96, 128))
    layouts_made.depth(tmp_path / "depth/1.png", 1, size=(96, 128))
    made.text(tmp_path, "K.txt", "50 51 31 23")
    source = open_source(tmp_path)
    assert source.frame(0).intrinsics == (50, 51, 31, 23)
    with pytest.raises(BrokenFrame, match="another size"):
        source.frame(1)


def test_a_camera_of_images_larger_than_their_depth_is_scaled_with_them(tmp_path):
    layouts_made.image(tmp_path / "rgb/0.png", 0, (96, 128))
    layouts_made.depth(tmp_path / "depth/0.png", 0)
    made.text(tmp_path, "K.txt", "100 102 63.5 47.5")
    assert open_source(tmp_path).frame(0).intrinsics == (50, 51, 31.5, 23.5)


def test_a_listed_focal_length_is_preferred(tmp_path):
    pairs(tmp_path)
    made.text(tmp_path, "K.txt", "50 51 31 23")
    made.text(tmp_path, "train.txt", "rgb/0.png depth/0.png 60\n")
    source = open_source(tmp_path, data_format="folder")
    assert source.frame(0).intrinsics == (60, 60, 31.5, 23.5)


@pytest.mark.parametrize(
    ("size", "fx"),
    [((480, 640), 518.8579), ((240, 320), 259.42895), ((427, 561), None)],
)
def test_the_focal_length_of_nyu_s_lists_is_that_of_480x640(size, fx):
    camera = camera_files.of_focal(518.8579, size)
    assert (camera and camera[0]) == (fx and pytest.approx(fx, rel=1e-5))


@pytest.mark.parametrize(("value", "units"), [(5000, 5000), (0.001, 1000), (1, None)])
def test_a_stated_depth_scale_is_used(tmp_path, value, units):
    for k in range(2):
        layouts_made.image(tmp_path / f"rgb/{k}.png", k)
        layouts_made.depth(tmp_path / f"depth/{k}.png", k, scale=units or 1000)
    content = {"K": FLAT, "depth_scale": value}
    made.text(tmp_path, "camera.json", json.dumps(content))
    source = open_source(tmp_path)
    assert source.frame(0).depths["raw"].max() == pytest.approx(2.63, rel=1e-4)
    assert (f"depth has {units} units per metre by camera.json" in source.notes) == (
        units is not None
    )
    given = open_source(tmp_path, options=ReadOptions(depth_scale=2000.0))
    expected = 2.63 * (units or 1000) / 2000
    assert given.frame(0).depths["raw"].max() == pytest.approx(expected, rel=1e-4)


def test_different_depth_scales_are_rejected(tmp_path):
    for name, scale in (("a", 5000), ("b", 1000)):
        pairs(tmp_path / name)
        content = {"K": FLAT, "depth_scale": scale}
        made.text(tmp_path, f"{name}/camera.json", json.dumps(content))
    made.refused(tmp_path, "a/camera.json states 5000", "b/camera.json states 1000")


def test_links_out_of_the_folder_are_rejected(tmp_path):
    root = pairs(tmp_path / "data")
    outside = made.text(tmp_path, "other/K.txt", "50 51 31 23")
    (root / "K.txt").symlink_to(outside)
    made.refused(root, "K.txt is outside", "--allow_outside")
    source = open_source(root, options=ReadOptions(allow_outside=True))
    assert source.frame(0).intrinsics == (50, 51, 31, 23)


def test_a_file_beside_the_images_of_tum_is_used(tmp_path):
    root = layouts_made.tum(tmp_path)
    made.text(root, "camera.txt", "55 56 31 23")
    source = open_source(root)
    assert source.format == "tum"
    assert source.frame(0).intrinsics == (55, 56, 31, 23)


def test_camera_files_above_the_data_are_not_read(tmp_path):
    root = pairs(tmp_path / "data")
    made.text(tmp_path, "K.txt", "50 51 31 23")
    made.text(tmp_path, "cam_params.json", FILES["cam_params.json"])  # not Replica
    assert open_source(root).frame(0).intrinsics is None


def test_a_relative_folder_is_searched(tmp_path, monkeypatch):
    pairs(tmp_path)
    made.text(tmp_path, "K.txt", "50 51 31 23")
    monkeypatch.chdir(tmp_path)
    for path in (".", "../" + tmp_path.name):
        assert open_source(path).frame(0).intrinsics == (50, 51, 31, 23)


def test_images_of_matterport_without_a_camera_are_named(tmp_path):
    root = layouts_made.matterport(tmp_path)
    (conf,) = root.glob("*/undistorted_camera_parameters/*.conf")
    lines = conf.read_text().splitlines()
    conf.write_text("\n".join(lines[:-2]))  # without the last image
    broken = made.broken_rows(open_source(root))
    assert len(broken) == 1 and "has no camera of" in next(iter(broken.values()))


def test_the_file_of_one_matterport_camera_counts_rows_from_the_top(tmp_path):
    root = layouts_made.matterport(tmp_path)
    for image in root.glob("*/undistorted_color_images/*.jpg"):
        uuid, camera, _ = image.stem.split("_")
        name = f"{uuid}_intrinsics_{camera[1]}.txt"
        file = image.parents[1] / "matterport_camera_intrinsics" / name
        layouts_made.text(file, "64 48 60 61 33.5 25.5 0.1 -0.3 0 0 0")
    source = open_source(root)
    assert source.frame(0).intrinsics == (60, 61, 33.5, 25.5)


def test_exif_gives_the_focal_length_where_no_file_does(tmp_path):
    root = pairs(tmp_path)
    for path in root.glob("rgb/*.png"):
        exif = Image.Exif()
        exif[0x0112] = 1  # Pillow drops EXIF without a tag of the image itself
        exif.get_ifd(0x8769)[0xA405] = 27  # mm, of 35 mm film
        with Image.open(path) as image:
            image.copy().save(path, exif=exif)
    source = open_source(root)
    height, width = source.frame(0).rgb.shape[:2]
    focal = 27 * np.hypot(height, width) / 43.27
    expected = (focal, focal, (width - 1) / 2, (height - 1) / 2)
    assert source.frame(0).intrinsics == pytest.approx(expected)
    note = "focal lengths of images without a camera file are those of their EXIF data"
    assert any(note in line for line in source.notes)
    made.text(root, "K.txt", "50 51 31 23")
    assert open_source(root).frame(0).intrinsics == (50, 51, 31, 23)
