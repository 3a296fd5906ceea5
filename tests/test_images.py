"""Reading of photos: modes, orientation, damaged files, folders."""

import io
import os
import struct
import subprocess
import sys

import hostile_photos
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps, features

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
        np.testing.assert_array_equal(images_lib.as_photo(image).rgb, expected)


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
        np.testing.assert_array_equal(images_lib.as_photo(image).rgb, rgb)
    grey = images_lib.as_photo(rgb[..., 1]).rgb
    np.testing.assert_array_equal(grey, np.stack([rgb[..., 1]] * 3, -1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4, 3), 2, np.float32), "float32"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (7, "^7 of type int is not an image: expected a path, the bytes of an image"),
        ([1, 2], "of type list is not an image"),
        ({"rgb": "x" * 99}, r"^\{'rgb': 'x+\.\.\. of type dict is not an image"),
        (None, "^None of type NoneType"),
        (Image.new("RGB", (0, 4)), r"the PIL image is empty: its size is \(0, 4\)"),
        (b"", "the content of 0 bytes can't be read as an image"),
        (
            io.StringIO("text"),
            r"the open file can't .* returns str, not bytes; open it",
        ),
    ],
)
def test_other_objects_are_rejected(image, message):
    with pytest.raises(UserError, match=message) as error:
        images_lib.as_photo(image)
    one_line(error)


def test_palette_with_transparency_in_memory_does_not_warn():
    image = Image.fromarray(colours()).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert images_lib.as_photo(image).rgb.shape == (6, 8, 3)


def test_folders_are_searched_and_files_are_kept(tmp_path):
    for name in ("b.JPG", "a.png", "c.webp"):
        save(tmp_path / name, colours())
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    (tmp_path / "folder.png").mkdir()
    odd = save(tmp_path / "odd", colours(), format="PNG")
    found, notes = images_lib.find([odd, tmp_path])
    assert [p.name for p in found] == ["odd", "a.png", "b.JPG", "c.webp"]
    others = "._a.png, folder.png/, notes.txt, odd"
    assert notes == [f"skipped in {tmp_path} (hidden or no image): {others}"]
    for k in range(30):
        (tmp_path / f"n\x1b{k:02}").write_text("")
    (note,) = images_lib.find([tmp_path])[1]
    assert note.endswith(r", n\x1b17 and 14 others") and note.count(", ") == 19


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


@pytest.mark.parametrize("name", hostile_photos.PHOTOS)
def test_hostile_photos_are_rejected_or_bounded(tmp_path, name, caplog):
    make, words = hostile_photos.PHOTOS[name]
    make(tmp_path / name)
    try:
        rgb = images_lib.read(tmp_path / name)
    except UserError as error:
        text = str(error)
    else:
        text = caplog.text
        assert rgb.size <= 3 * images_lib.LARGEST
    assert words in text and "\x1b" not in text
    assert bool(text) == bool(words)


def test_no_program_is_started_for_a_photo(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started.append)
    monkeypatch.setattr(subprocess, "Popen", started.append)
    hostile_photos.PHOTOS["eps.jpg"][0](tmp_path / "a.jpg")
    with pytest.raises(UserError, match="none of the formats"):
        images_lib.read(tmp_path / "a.jpg")
    assert not started


def test_a_large_photo_is_read_in_bounded_memory(tmp_path):
    hostile_photos.png_of_zeros(tmp_path / "a.png", 13000)
    code = (
        "import sys; from jaxdepth import images; images.read(sys.argv[1]);"
        "status = open('/proc/self/status').read();"
        "print(status.split('VmHWM:')[1].split()[0])"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from /proc")
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 700_000  # kB; 1,800,000 at full size


@pytest.mark.parametrize("kind", ["RGB", "P", "RGBA", "I;16", "I", "F", "1"])
def test_large_photos_are_averaged(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(images_lib, "LARGEST", 1 << 16)
    rng = np.random.default_rng(0)
    if kind in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]
        stored = rng.integers(0, 65536, (1100, 130)).astype(dtype)
        image, grey = Image.fromarray(stored), np.round(stored / 257.0)
        full = np.repeat(grey[..., None], 3, -1)
    else:
        values = rng.integers(0, 256, (1100, 130, 3), np.uint8)
        image = Image.fromarray(values).convert(kind)
        full = np.asarray(image.convert("RGB")).astype(float)
    path = tmp_path / "a.tif"
    image.save(path)
    found = images_lib.read(path)
    # 1100 x 130 pixels are reduced by 2 (550 x 65 <= 65,536).
    expected = full.reshape(550, 2, 65, 2, 3).mean((1, 3))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1


def test_a_large_jpeg_is_reduced_by_its_decoder(tmp_path, monkeypatch, caplog):
    rows, columns = np.mgrid[:300, :200]
    smooth = np.stack([rows * 0.8, columns, rows + columns], -1) / 2
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", smooth.astype(np.uint8), exif=exif, quality=95)
    monkeypatch.setattr(images_lib, "LARGEST", 5000)
    monkeypatch.setattr(images_lib, "LIMIT", 50000)
    found = images_lib.read(path)  # by 4: 75 x 50
    expected = smooth.reshape(75, 4, 50, 4, 3).mean((1, 3))
    assert np.abs(found - np.rot90(expected, -1).astype(float)).max() <= 4
    note = f"{path} is 200x300, which is too large: its depth is predicted at 50x75"
    assert note in caplog.text
    # The decoder of a progressive JPEG needs the memory of the full size.
    save(path, smooth.astype(np.uint8), progressive=True)
    with pytest.raises(UserError, match="300x200 pixels, more than"):
        images_lib.read(path)


def test_the_first_photo_of_a_stereo_camera_is_read(tmp_path):
    left, right = (np.full((16, 24, 3), grey, np.uint8) for grey in (40, 200))
    images = [Image.fromarray(one) for one in (left, right)]
    images[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=images[1:])
    np.testing.assert_array_equal(images_lib.read(tmp_path / "a.jpg"), left)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path):
    flat = np.full((32, 48, 3), (200, 100, 50), np.uint8)
    found = images_lib.read(save(tmp_path / "a.avif", flat, quality=100))
    assert np.abs(found.astype(int) - flat).max() <= 3


def test_heic_is_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="extra heic is absent")
    flat = np.full((64, 48, 3), (200, 100, 50), np.uint8)
    pillow_heif.from_pillow(Image.fromarray(flat)).save(tmp_path / "a.heic")
    found = images_lib.read(tmp_path / "a.heic")
    assert np.abs(found.astype(int) - flat).max() <= 6


def test_heic_without_its_library_is_an_error_with_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    hostile_photos.PHOTOS["heic.jpg"][0](tmp_path / "a.heic")
    assert images_lib.is_photo(tmp_path / "a.heic")  # not left out of its folder
    with pytest.raises(UserError, match="pip install pillow-heif"):
        images_lib.read(tmp_path / "a.heic")


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"IEND"])
def test_checksums_of_a_png_are_verified(tmp_path, kind):
    chunk = b"tEXt" + b"Comment\0no"
    save(tmp_path / "a.png", colours(), compress_level=0)
    data = (tmp_path / "a.png").read_bytes()
    wrong = struct.pack(">I", len(chunk) - 4) + chunk + bytes(4)
    place = {b"IDAT": data.index(b"IDAT") + 30, b"IEND": len(data) - 1}
    damaged = bytearray(data[:33] + wrong + data[33:] if kind == b"tEXt" else data)
    if kind in place:
        damaged[place[kind]] ^= 1
    (tmp_path / "a.png").write_bytes(damaged)
    with pytest.raises(UserError, match="can't be read as an image"):
        images_lib.read(tmp_path / "a.png")


def test_floats_that_are_not_numbers_are_black(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[np.nan, 0.5, 1]], np.float32)).save(path)
    assert images_lib.read(path)[0, :, 0].tolist() == [0, 128, 255]


def exif_of(**tags):
    """EXIF data with these camera tags."""
    numbers = {
        "focal": 0x920A, "film": 0xA405, "per_unit": 0xA20E, "unit": 0xA210,
        "width": 0xA002,
    }  # fmt: skip
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({numbers[name]: x for name, x in tags.items()})
    return exif


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        # The diagonal of 36x48 pixels is 60, that of 35 mm film 43.27 mm.
        ({"film": 26}, 26 * 60 / 43.27),
        ({"film": 26, "focal": 4.2, "per_unit": 1000.0}, 26 * 60 / 43.27),
        # A sensor with 200 pixels per inch (the default unit), cm, mm.
        ({"focal": 4.2, "per_unit": 200.0}, 4.2 * 200 / 25.4),
        ({"film": 0, "focal": 4.2, "per_unit": 100.0, "unit": 3}, 42.0),
        ({"focal": 4.2, "per_unit": 10.0, "unit": 4}, 42.0),
        # The photo was taken with 96 columns, and halved.
        ({"focal": 4.2, "per_unit": 20.0, "unit": 4, "width": 96}, 42.0),
        ({}, None),
        ({"focal": 4.2}, None),
        ({"film": 0}, None),
        ({"film": 65535}, None),  # implausible
        ({"focal": 4.2, "per_unit": 10.0, "unit": 1}, None),  # no unit
        ({"focal": "soft", "per_unit": 10.0}, None),
    ],
)
def test_focal_length_by_exif(tmp_path, tags, expected):
    path = save(tmp_path / "a.jpg", colours(36, 48), exif=exif_of(**tags))
    found = images_lib.focal_length(path)
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-4))
    assert images_lib.read_photo(path).fx == found
    with Image.open(path) as image:
        assert images_lib.as_photo(image).fx == found


def test_focal_lengths_are_those_of_the_whole_photo(tmp_path, monkeypatch):
    turned = exif_of(film=26)
    turned[0x0112] = 6
    path = save(tmp_path / "a.jpg", colours(36, 48), exif=turned)
    monkeypatch.setattr(images_lib, "LARGEST", 36 * 48 // 4)
    photo = images_lib.read_photo(path)
    assert photo.rgb.shape == (24, 18, 3) and photo.reduced == 2
    assert photo.fx == pytest.approx(26 * 60 / 43.27)


def test_other_images_have_no_focal_length(tmp_path):
    assert images_lib.as_photo(colours()).fx is None
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    for name in ("a.jpg", "missing.jpg"):
        assert images_lib.focal_length(tmp_path / name) is None


class Stream(io.RawIOBase):
    """A file that can't seek and returns few bytes at a time, such as a socket."""

    def __init__(self, content):
        self.rest = content

    def readable(self):
        return True

    def read(self, size=-1):
        taken, self.rest = self.rest[:7], self.rest[7:]
        return taken


def test_bytes_and_open_files_are_read_as_paths_are(tmp_path):
    exif = exif_of(film=26)
    exif[0x0112] = 6
    path = save(tmp_path / "a.png", colours(36, 48), exif=exif)
    expected = images_lib.read_photo(path)
    assert expected.fx is not None and expected.rgb.shape == (48, 36, 3)
    content = path.read_bytes()
    (tmp_path / "written.png").write_bytes(content)
    with open(path, "rb") as file, open(tmp_path / "written.png", "r+b") as end:
        end.seek(0, 2)  # as after a download into it
        for same in (
            content, bytearray(content), memoryview(content), io.BytesIO(content),
            file, end, Stream(content), str(path), *os.scandir(tmp_path),
        ):  # fmt: skip
            found = images_lib.as_photo(same)
            np.testing.assert_array_equal(found.rgb, expected.rgb)
            assert found[1:] == expected[1:]
        assert not file.closed


def test_errors_of_open_files_name_them(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    damaged = r"a\.png can't be read as an image: damaged"
    with (
        open(tmp_path / "a.png", "rb") as file,
        pytest.raises(UserError, match=damaged),
    ):
        images_lib.as_photo(file)
    with pytest.raises(UserError, match=r"a\.png can't be read as an image: .* closed"):
        images_lib.as_photo(file)
    path = save(tmp_path / "cut.jpg", colours(60, 60))
    path.write_bytes(path.read_bytes()[:-300])
    unreadable = "the PIL image can't be read as an image"
    with Image.open(path) as image, pytest.raises(UserError, match=unreadable):
        images_lib.as_photo(image)


def test_endless_files_are_not_read_to_the_end(monkeypatch):
    monkeypatch.setattr(images_lib, "LARGEST_FILE", 1 << 20)

    class Zeros(io.RawIOBase):
        def read(self, size=-1):
            return bytes(size)

    with pytest.raises(UserError, match="more than 1 MiB"):
        images_lib.as_photo(Zeros())


def test_lists_and_batches_are_several_images():
    rgb = colours()
    for batch in (np.stack([rgb] * 2), np.moveaxis(np.stack([rgb] * 2), -1, 1)):
        images = images_lib.several(batch)
        assert images is not None and len(images) == 2
        for photo in images_lib.as_photos(images):
            np.testing.assert_array_equal(photo.rgb, rgb)
    assert images_lib.several([]) == [] and images_lib.several((rgb,)) == [rgb]
    assert images_lib.several(np.zeros((0, 4, 5, 3), np.uint8)) == []
    for one in (rgb, rgb[..., 0], images_lib.Photo(rgb), "a.png", b"", None):
        assert images_lib.several(one) is None
    with pytest.raises(UserError, match=r"^image 1 of 3: 7 of type int"):
        list(images_lib.as_photos([rgb, 7, rgb]))
