"""The format folder: pairing by name, units, and wrong or damaged files."""

import io
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.sources import ReadOptions, open_source
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import UserError
from tests.data.sources import made

H, W = 6, 8


def image(root, name, value=0, size=(H, W)):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def depth(
    root,
    name,
    metres: float | np.ndarray = 2.0,
    scale=1000,
    size=(H, W),
    dtype=np.uint16,
):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(size, metres * scale, dtype)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


def refused(path, match, *names, **more):
    """Assert that the data fail with a one-line UserError; returns its text."""
    with pytest.raises(UserError, match=match) as error:
        source = open_source(path, **more)
        for row in range(len(source.infos)):
            source.frame(row)
    text = str(error.value)
    assert "\n" not in text
    for name in names:
        assert str(name) in text
    return text


PAIRS = [
    ("rgb/{}.jpg", "depth/{}.png"),
    ("rgb_{}.jpg", "sync_depth_{}.png"),
    ("{}_colors.png", "{}_depth.png"),
    ("{}.jpg", "{}.npy"),
    ("{}.png", "{}.npy"),
    ("{}.jpg", "{}.png"),
    ("images/{}.png", "depths/{}.npy"),
    ("image/{}.PNG", "gt/{}.tif"),
    ("kitchen_1/rgb_{}.jpg", "kitchen_1/sync_depth_{}.png"),
    ("rgb/kitchen_1/{}.jpg", "depth/kitchen_1/{}.png"),
    ("kitchen_1/rgb/{}.jpg", "kitchen_1/depth/{}.png"),
    ("nyu_depth_v2/rgb/{}.jpg", "nyu_depth_v2/depth/{}.png"),
    ("nyu_depth_v2/rgb_{}.png", "nyu_depth_v2/depth_{}.png"),
    ("frame{}.jpg", "depth{}.png"),
    ("frames/{}.jpg", "depth/{}.png"),
    ("rgb/frame_{}.png", "depth/frame_{}.png"),
]


@pytest.mark.parametrize(("image_name", "depth_name"), PAIRS)
def test_files_are_paired_by_name(tmp_path, image_name, depth_name):
    for k in (1, 2, 3):
        image(tmp_path, image_name.format(k), 40 * k)
        scale = 1 if depth_name.endswith("npy") else 1000
        depth(tmp_path, depth_name.format(k), k, scale)
    source = open_source(tmp_path)
    assert len(source.infos) == 3 and made.notes(source) == []
    for k in (1, 2, 3):
        frame = source.frame(k - 1)
        assert abs(int(frame.rgb[0, 0, 0]) - 40 * k) <= 2  # JPEG
        assert frame.filled is not None
        np.testing.assert_array_equal(frame.filled, np.float32(k))
    scene = "kitchen_1" if "kitchen_1" in image_name else None
    if scene is not None:
        assert {info.scene for info in source.infos} == {scene}
    assert source.splits() == {"all": {"train": [0, 1, 2], "eval": []}}


def test_equal_names_in_different_scenes_are_different_frames(tmp_path):
    for k, scene in enumerate(("bath", "den/left", "den/right")):
        image(tmp_path, f"{scene}/rgb_1.png", 10 * k)
        depth(tmp_path, f"{scene}/sync_depth_1.png", 1 + k)
    source = open_source(tmp_path)
    assert [info.scene for info in source.infos] == ["bath", "den/left", "den/right"]
    for k in range(3):
        frame = source.frame(k)
        assert frame.rgb.max() == 10 * k and frame.depths["filled"].max() == 1 + k


@pytest.mark.parametrize(
    ("name", "stored", "given", "metres"),
    [
        ("a.npy", np.full((H, W), 2.5, np.float32), None, 2.5),
        ("a.npy", np.full((H, W), 2500, np.uint16), 1000.0, 2.5),
        ("a.npy", np.full((1, H, W), 2.5, np.float64), None, 2.5),
        ("a.npy", np.full((H, W, 1), 2.5, np.float16), None, 2.5),
        ("a_depth.png", np.full((H, W), 2500, np.uint16), None, 2.5),
        ("a_depth.png", np.full((H, W), 12500, np.uint16), 5000.0, 2.5),
        ("a_depth.png", np.full((H, W), 51, np.uint8), 25.5, 2.0),
    ],
)
def test_depth_is_the_stored_value_divided_by_the_scale(
    tmp_path, name, stored, given, metres
):
    image(tmp_path, "a.jpg")
    if name.endswith("npy"):
        np.save(tmp_path / name, stored)
    else:
        Image.fromarray(stored).save(tmp_path / name)
    source = open_source(tmp_path, options=ReadOptions(depth_scale=given))
    np.testing.assert_allclose(source.frame(0).depths["filled"], metres, rtol=1e-6)
    assert source.eight_bit == (stored.dtype == np.uint8)


def test_depth_with_missing_values_is_raw(tmp_path):
    image(tmp_path, "a.jpg")
    values = np.full((H, W), 2.0, np.float32)
    values[0, :5] = [np.nan, np.inf, -np.inf, -1, 0]
    np.save(tmp_path / "a.npy", values)
    source = open_source(tmp_path)
    assert source.truths == ("raw",)
    raw = source.frame(0).raw
    assert raw is not None and raw.dtype == np.float32
    np.testing.assert_array_equal(raw == 0, ~(np.isfinite(values) & (values > 0)))


def test_8_bit_depth_needs_a_scale_and_keeps_its_extremes(tmp_path):
    image(tmp_path, "a.jpg")
    values = np.full((H, W), 100, np.uint8)
    values[0], values[1] = 0, 200
    Image.fromarray(values).save(tmp_path / "a_depth.png")
    refused(tmp_path, "8-bit depth.*--depth_scale", tmp_path / "a_depth.png")
    source = open_source(tmp_path, options=ReadOptions(depth_scale=25.5))
    assert source.eight_bit and source.truths == ("raw",)
    opened = store_writer.write(source, tmp_path.with_name("store8"), size=(H, W))
    depth_codes = opened.gather([0], depth="raw")[1][0]
    np.testing.assert_array_equal(depth_codes, np.round(values / 25.5 * 1000))


def test_different_sizes_are_an_error_naming_both_files(tmp_path):
    names = image(tmp_path, "a.jpg"), depth(tmp_path, "a_depth.png", size=(H, W + 1))
    assert "6x8" in refused(tmp_path, "the same size", *names)


def test_folders_without_a_pair_are_rejected(tmp_path):
    refused(tmp_path, "no pair of image and depth", tmp_path)
    image(tmp_path, "rgb/1.jpg")
    refused(tmp_path, "1 images, 0 depth files")
    depth(tmp_path, "depth/2.png")
    refused(tmp_path, "1 images, 1 depth files")
    refused(tmp_path / "rgb" / "1.jpg", "not a folder", data_format="folder")


@pytest.mark.parametrize(
    ("name", "other", "paired"),
    [
        ("image.jpg", "arkit_depth.png", True),
        ("room.jpg", "room_d.npy", True),
        ("image_1.jpg", "arkit_depth_2.png", False),
        ("a/image.jpg", "b/arkit_depth.png", False),
    ],
)
def test_one_image_and_one_depth_file_are_a_pair(tmp_path, name, other, paired):
    image(tmp_path, name)
    depth(tmp_path, other, scale=1 if other.endswith("npy") else 1000)
    if not paired:
        refused(tmp_path, "no pair of image and depth")
        return
    (info,) = open_source(tmp_path).infos
    assert info.name == name


def test_unpaired_files_are_counted(tmp_path):
    for k in range(5):
        image(tmp_path, f"rgb/{k}.jpg")
    for k in range(3, 9):
        depth(tmp_path, f"depth/{k}.png")
    for name in ("rgb/._3.jpg", "rgb/notes.txt", ".DS_Store"):
        (tmp_path / name).write_text("not an image")
    source = open_source(tmp_path)
    assert len(source.infos) == 2
    assert made.notes(source) == [
        "left out 3 images without a partner, first rgb/0.jpg",
        "left out 4 depth files without a partner, first depth/5.png",
    ]


def test_two_images_with_one_key_are_rejected(tmp_path):
    image(tmp_path, "rgb/1.jpg")
    image(tmp_path, "rgb_1.png")
    depth(tmp_path, "depth/1.png")
    refused(tmp_path, "have the same key", "rgb/1.jpg", "rgb_1.png")


@pytest.mark.parametrize(
    ("metres", "scale", "match"),
    [
        (2.0, None, "median depth would be 2000 m"),
        (2000, 1e6, "no depth is above 0.002"),
    ],
)
def test_a_wrong_unit_is_rejected(tmp_path, metres, scale, match):
    image(tmp_path, "a.jpg")
    np.save(tmp_path / "a.npy", np.full((H, W), 2000.0))
    refused(
        tmp_path,
        match,
        tmp_path,
        "--depth_scale",
        options=ReadOptions(depth_scale=scale),
    )


@pytest.mark.parametrize(
    ("mode", "match"),
    [("RGB", "colour"), ("RGBA", "colour"), ("P", "colour"), ("1", "masks, not depth")],
)
def test_colour_images_and_masks_are_rejected_as_depth(tmp_path, mode, match):
    image(tmp_path, "a.jpg")
    colour = Image.fromarray(np.full((H, W, 3), 90, np.uint8)).convert(mode)
    colour.save(tmp_path / "a_depth.png")
    refused(tmp_path, match, tmp_path / "a_depth.png")


def test_truncated_files_are_an_error(tmp_path):
    rng = np.random.default_rng(0)
    image(tmp_path, "a.png", size=(40, 40))
    path = tmp_path / "a_depth.png"
    Image.fromarray(rng.integers(1000, 9000, (40, 40)).astype(np.uint16)).save(path)
    content = path.read_bytes()
    for length in (0, 20, len(content) // 2):
        path.write_bytes(content[:length])
        refused(tmp_path, "can't be read as an image", path)
    path.write_bytes(content)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    refused(tmp_path, "can't be read|not an image", tmp_path / "a.png")


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_pickles_are_refused_and_never_executed(tmp_path):
    image(tmp_path, "a.jpg")
    path = tmp_path / "a.npy"
    path.write_bytes(pickle.dumps(Trap()))
    refused(tmp_path, "can't be read as npy", path)
    stream = io.BytesIO()
    np.save(stream, np.array([[Trap()]], dtype=object), allow_pickle=True)
    path.write_bytes(stream.getvalue())
    refused(tmp_path, "can't be read as npy", path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "can't be read as npy"),
        (b"\x93NUMPY\1\0", "can't be read as npy"),
        (b"nonsense" * 40, "can't be read as npy"),
    ],
)
def test_broken_npy_files_are_an_error(tmp_path, content, match):
    image(tmp_path, "a.jpg")
    (tmp_path / "a.npy").write_bytes(content)
    refused(tmp_path, match, tmp_path / "a.npy")


def test_arrays_of_wrong_shape_or_type_are_rejected(tmp_path):
    image(tmp_path, "a.jpg")
    for shape, dtype in (((H, W, 3), float), (5, float), ((H, W), complex)):
        np.save(tmp_path / "a.npy", np.zeros(shape, dtype))
        refused(tmp_path, "one depth map", tmp_path / "a.npy")
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, depth=np.ones((H, W)))
    refused(tmp_path, "npz archive", tmp_path / "a.npy")


def test_changed_files_have_another_fingerprint(tmp_path):
    image(tmp_path, "a.jpg")
    depth(tmp_path, "a_depth.png")
    first = open_source(tmp_path).fingerprint()
    assert open_source(tmp_path).fingerprint() == first
    assert (
        open_source(tmp_path, options=ReadOptions(depth_scale=500.0)).fingerprint()
        != first
    )
    depth(tmp_path, "a_depth.png", size=(H, W + 9))
    assert open_source(tmp_path).fingerprint() != first


def test_an_empty_depth_map_does_not_make_the_others_raw(tmp_path):
    for k in range(8):
        image(tmp_path, f"{k}.jpg")
        metres = np.full((H, W), 1500 + k, np.uint16)
        depth(tmp_path, f"{k}_depth.png", metres * (k != 3), scale=1)
    source = open_source(tmp_path)
    assert source.truths == ("filled",)
    opened = store_writer.write(source, tmp_path / "s", size=(H, W))
    assert opened.manifest["left_out"] == ["3.jpg"]
    assert opened.manifest["mask_extremes"] == []


def test_extremes_are_masked_in_the_stored_unit(tmp_path):
    stored = np.full((H, W), 7000, np.uint16)
    stored[0, :3], stored[1, :3] = (4998, 4999, 5000), (9998, 9999, 10000)
    stored[2, 0] = 0
    image(tmp_path, "a.jpg")
    depth(tmp_path, "a_depth.png", stored, scale=1)
    source = open_source(tmp_path, options=ReadOptions(depth_scale=5000.0))
    opened = store_writer.write(source, tmp_path / "s", size=(H, W), mask_extremes="on")
    (depth_codes,) = opened.gather([0], depth=opened.depths[0])[1]
    np.testing.assert_array_equal(
        depth_codes[:2, :3], [[0, 1000, 1000], [2000, 2000, 0]]
    )


def test_real_synchronised_frames_are_read(shared_data, tmp_path):
    root = shared_data / "sync_png16"
    source = open_source(root)
    assert source.format == "folder"
    assert [info.name for info in source.infos] == [
        f"basement_0001a/rgb_{k}.jpg" for k in ("00000", "00050", "00100")
    ]
    assert {info.scene for info in source.infos} == {"basement_0001a"}
    assert source.truths == ("raw",)  # a quarter of the depth is missing
    raw = source.frame(1).depths["raw"]
    with Image.open(root / "basement_0001a" / "sync_depth_00050.png") as stored:
        np.testing.assert_allclose(raw, np.asarray(stored) / 1000, rtol=1e-6)
    assert (raw == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert raw.max() == pytest.approx(8.3, abs=0.1)
    opened = store_writer.write(source, tmp_path / "s", size=(24, 32))
    assert len(opened) == 3 and opened.manifest["mask_extremes"] == ["raw"]


def test_real_tum_frames_are_read_once_renamed(shared_data, tmp_path):
    # File names are times that differ within a pair: rejected with these names, read
    # once renamed by the association list.
    root = shared_data / "tum_rgbd"
    refused(root, "line 1: column 1 is '1305031453.359684'", data_format="folder")
    lines = (root / "associations.txt").read_text().splitlines()
    for k, line in enumerate(x for x in lines if x and not x.startswith("#")):
        _, rgb, _, metres = line.split()
        for kind, file in (("rgb", rgb), ("depth", metres)):
            (tmp_path / kind).mkdir(exist_ok=True)
            shutil.copy(root / file, tmp_path / kind / f"{k}.png")
    source = open_source(tmp_path, options=ReadOptions(depth_scale=5000))
    raw = source.frame(0).depths["raw"]
    assert raw[raw > 0].min() > 0.7 and raw.max() < 2.1
    assert (raw == 0).mean() == pytest.approx(0.17, abs=0.03)


def test_linked_folders_are_searched_and_hidden_ones_are_not(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    for root in (data / "one", other, data / ".checkpoints"):
        image(root, "a.jpg")
        depth(root, "a.png")
    (data / "two").symlink_to(other)
    (data / "one" / "again").symlink_to(data)  # a loop
    refused(data, "two/a.jpg is outside .*--allow_outside")
    source = open_source(data, options=ReadOptions(allow_outside=True))
    assert [info.name for info in source.infos] == ["one/a.jpg", "two/a.jpg"]


@pytest.mark.parametrize("size", [10, 40_000])
def test_other_text_files_are_not_lists(tmp_path, size):
    image(tmp_path, "a.jpg")
    depth(tmp_path, "a.png")
    (tmp_path / "LICENSE.txt").write_bytes(b"words " * size + b"\xe9")
    assert len(open_source(tmp_path).infos) == 1


@pytest.mark.parametrize("head", ["", "\ufeff", "image,depth\n", "\ufeff# files\n"])
def test_lists_may_have_a_heading_and_a_byte_order_mark(tmp_path, head):
    for k in range(2):
        image(tmp_path, f"x/{k}.jpg")
        depth(tmp_path, f"y/d{k}.png")
    lines = "".join(f"x/{k}.jpg,y/d{k}.png\r\n" for k in range(2))
    (tmp_path / "list.csv").write_text(head + lines, newline="")
    source = open_source(tmp_path)
    assert [info.name for info in source.infos] == ["x/0.jpg", "x/1.jpg"]


def test_depth_map_folders_are_depth_and_unmatched_keys_are_shown(tmp_path):
    for k in range(2):
        image(tmp_path / "a", f"images/{k}.jpg")
        depth(tmp_path / "a", f"depth_map/{k}.png")
        image(tmp_path / "b", f"images/{k}.jpg")
        depth(tmp_path / "b", f"depth/scan{k}.png")
    assert len(open_source(tmp_path / "a").infos) == 2
    refused(tmp_path / "b", "the first keys are '0' and 'scan0'")
