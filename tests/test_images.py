"""Reading of photos: modes, orientation, damaged files, folders."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxdepth import images as images_lib
from jaxdepth.runtime.errors import UserError


def colours(height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path, array, mode=None, **more):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **more)
    return path


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp"])
def test_lossless_formats_are_read_exactly(tmp_path, suffix):
    rgb = colours()
    more = {"lossless": True} if suffix == "webp" else {}
    found = images_lib.read(save(tmp_path / f"a.{suffix}", rgb, **more))
    np.testing.assert_array_equal(found, rgb)
    assert found.dtype == np.uint8


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    grey = colours()[..., 0]
    found = images_lib.read(save(tmp_path / "grey.png", grey))
    np.testing.assert_array_equal(found, np.stack([grey] * 3, -1))
    flat = np.zeros((4, 4, 3), np.uint8)
    flat[:2] = (204, 0, 51)  # of the web palette
    palette = images_lib.read(save(tmp_path / "p.gif", flat, "P"))
    np.testing.assert_array_equal(palette, flat)
    rgba = np.concatenate([colours(), colours()[..., :1]], -1)
    found = images_lib.read(save(tmp_path / "rgba.png", rgba))
    np.testing.assert_array_equal(found, rgba[..., :3])
    bits = np.array([[0, 1], [1, 0]], bool)
    found = images_lib.read(save(tmp_path / "bits.png", bits))
    np.testing.assert_array_equal(found[..., 1], bits * 255)


def test_cmyk_becomes_rgb(tmp_path):
    flat = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    found = images_lib.read(save(tmp_path / "a.jpg", flat, "CMYK", quality=100))
    assert np.abs(found.astype(int) - flat).max() <= 4


def test_16_bit_grey_is_scaled_to_8(tmp_path):
    values = np.array([[0, 257, 25700], [200, 65535, 128]], np.uint16)
    for name in ("a.png", "a.tif"):
        found = images_lib.read(save(tmp_path / name, values))
        expected = np.array([[0, 1, 100], [1, 255, 0]])
        np.testing.assert_array_equal(found, np.stack([expected] * 3, -1))
    # Dark images stay dark: the type decides the scale, not the largest value.
    dark = np.full((2, 2), 200, np.uint16)
    assert images_lib.read(save(tmp_path / "dark.png", dark)).max() == 1


UPRIGHT = {
    # EXIF orientation -> the rotation that makes the stored image upright.
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    8: lambda x: np.rot90(x, 1),
}


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 8])
def test_exif_orientation_is_applied(tmp_path, orientation):
    rgb = colours()
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", rgb, exif=exif)
    expected = UPRIGHT[orientation](rgb)
    np.testing.assert_array_equal(images_lib.read(path), expected)
    with Image.open(path) as image:
        np.testing.assert_array_equal(images_lib.as_rgb(image), expected)


def test_broken_files_are_errors_with_their_name(tmp_path):
    good = io.BytesIO()
    Image.fromarray(colours(40, 40)).save(good, "PNG")
    cases = {
        "empty.png": b"",
        "text.jpg": b"not an image at all",
        "cut.png": good.getvalue()[: len(good.getvalue()) // 2],
        "head.png": good.getvalue()[:20],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="read") as error:
            images_lib.read(tmp_path / name)
        assert str(tmp_path / name) in one_line(error)
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(UserError) as error:
            images_lib.read(path)
        assert str(path) in one_line(error)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_damaged_bytes_raise_no_other_errors(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"exif": exif} if suffix in ("png", "jpg", "tif", "webp") else {}
    path = save(tmp_path / f"a.{suffix}", colours(20, 20), **more)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 4):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(1, len(content) + 1)])
        try:
            found = images_lib.read(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert found.ndim == 3 and found.dtype == np.uint8


def test_arrays_are_converted_to_rgb(tmp_path):
    rgb = colours()
    path = save(tmp_path / "a.png", rgb)
    for image in (
        path,
        str(path),
        Image.open(path),
        rgb,
        np.dstack([rgb, rgb[..., 0]]),
    ):
        np.testing.assert_array_equal(images_lib.as_rgb(image), rgb)
    grey = images_lib.as_rgb(rgb[..., 1])
    np.testing.assert_array_equal(grey, np.stack([rgb[..., 1]] * 3, -1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
    ],
)
def test_invalid_arrays_are_rejected(image, message):
    with pytest.raises(UserError, match=message) as error:
        images_lib.as_rgb(image)
    one_line(error)


def test_palette_with_transparency_in_memory_does_not_warn():
    image = Image.fromarray(colours()).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert images_lib.as_rgb(image).shape == (6, 8, 3)


def test_folders_are_searched_and_files_are_kept(tmp_path):
    for name in ("b.JPG", "a.png", "c.webp"):
        save(tmp_path / name, colours())
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / "folder.png").mkdir()
    odd = save(tmp_path / "odd", colours(), format="PNG")
    found, notes = images_lib.find([odd, tmp_path])
    assert [p.name for p in found] == ["odd", "a.png", "b.JPG", "c.webp"]
    assert notes == [f"of {tmp_path} 2 other files and 1 folders are left out"]


def test_missing_files_and_empty_folders_are_errors(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="holds no image") as error:
        images_lib.find([tmp_path])
    one_line(error)
    with pytest.raises(UserError, match="there is no such file"):
        images_lib.find([tmp_path / "none.jpg"])
    with pytest.raises(UserError, match="File name too long"):
        images_lib.find([tmp_path / ("a" * 300)])


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_equals_that_of_pillow(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "a.png"
    Image.fromarray(colours()).save(path, exif=exif)
    with Image.open(path) as image:
        want = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(images_lib.read(path), want)


def test_a_wrong_exif_tag_does_not_prevent_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0  # XResolution, a fraction
    path = tmp_path / "a.jpg"
    Image.fromarray(colours()).save(path, exif=exif)
    # Text, as some cameras write: an error when EXIF is rewritten.
    fraction = (0x011A).to_bytes(2, "big") + (5).to_bytes(2, "big")
    little = (0x011A).to_bytes(2, "little") + (5).to_bytes(2, "little")
    data = path.read_bytes()
    assert (data.count(fraction) + data.count(little)) == 1
    data = data.replace(little, little[:2] + (2).to_bytes(2, "little"))
    data = data.replace(fraction, fraction[:2] + (2).to_bytes(2, "big"))
    path.write_bytes(data)
    with Image.open(path) as image, pytest.raises((TypeError, ValueError, OSError)):
        ImageOps.exif_transpose(image)
    height, width = colours().shape[:2]
    assert images_lib.read(path).shape == (width, height, 3)


def test_floats_up_to_one_are_scaled_to_255(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(path)
    assert images_lib.read(path)[0, :, 0].tolist() == [0, 128, 255]
