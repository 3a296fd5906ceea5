"""Image and depth files: checksums, formats, sizes, FIFOs, invalid numbers, samples."""

import errno
import math
import os
import signal
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from jaxdepth import images as images_lib
from jaxdepth.data.sources import BrokenFrame, arrays, files, open_source, takes
from jaxdepth.runtime.errors import UserError
from tests.data.sources import made


def chunks(content):
    """(kind, offset of the data, length) of a PNG's chunks."""
    offset, rows = 8, []
    while offset < len(content):
        (length,) = struct.unpack(">I", content[offset : offset + 4])
        rows.append((content[offset + 4 : offset + 8], offset + 8, length))
        offset += length + 12
    return rows


@pytest.mark.parametrize("real", ["rgb", "depth"])
def test_any_flipped_bit_of_a_real_png_is_detected(shared_data, tmp_path, real):
    original = sorted((shared_data / "tum_rgbd" / real).iterdir())[0]
    content, path = original.read_bytes(), tmp_path / "a.png"
    read = files.read_rgb if real == "rgb" else files.read_depth
    rng = np.random.default_rng(0)
    offsets = [*range(8, 60), *rng.integers(8, len(content), 25).tolist()]
    for offset in offsets:
        flipped = bytearray(content)
        flipped[offset] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        with pytest.raises(BrokenFrame, match=r"a\.png can't be read as an image"):
            read(path)


def test_a_wrong_checksum_of_png_pixels_is_detected(tmp_path):
    # The pixels decode, and Pillow reads them without an error.
    path = made.depth(tmp_path, "a.png", np.arange(48).reshape(6, 8) + 500)
    content = bytearray(path.read_bytes())
    (offset, length), = (c[1:] for c in chunks(content) if c[0] == b"IDAT")  # fmt: skip
    content[offset + length] ^= 1
    path.write_bytes(content)
    with Image.open(path) as image:
        assert np.asarray(image).max() == 547
    with pytest.raises(BrokenFrame, match="bad header checksum in b'IDAT'"):
        files.read_depth(path)


def test_a_truncated_png_is_detected(tmp_path):
    path = made.depth(tmp_path, "a.png", 2000)
    content = path.read_bytes()
    for end in (len(content) - 12, len(content) - 1, len(content) // 2, 9):
        path.write_bytes(content[:end])
        with pytest.raises(BrokenFrame, match=r"truncated|Truncated|damaged"):
            files.read_depth(path)


def test_bytes_after_the_end_of_a_png_are_ignored(tmp_path):
    path = made.depth(tmp_path, "a.png", 2000)
    path.write_bytes(path.read_bytes() + b"more")
    assert (files.read_depth(path) == 2000).all()


def test_private_png_chunks_are_ignored(tmp_path):
    path = made.depth(tmp_path, "a.png", 2000)
    content, body = path.read_bytes(), b"juNkanything"
    chunk = struct.pack(">I", 8) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(content[:33] + chunk + content[33:])
    assert (files.read_depth(path) == 2000).all()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.npy"])
def test_missing_files_and_folders_are_broken_frames(tmp_path, name):
    for path in (tmp_path / name, tmp_path / f"\0{name}", tmp_path / f"d/{name}"):
        if path.parent.name == "d":
            path.mkdir(parents=True)
        with pytest.raises(BrokenFrame, match=name):
            files.read_depth(path)
        if name != "a.npy":
            with pytest.raises(BrokenFrame, match=name):
                files.read_rgb(path)


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_storage_errors_are_not_broken_frames(tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, "storage fails")

    made.depth(tmp_path, "a.png")
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    for module in (files, arrays):
        monkeypatch.setattr(module, "open", fail, raising=False)
    for read, name in (
        (files.read_rgb, "a.png"), (files.read_depth, "a.png"),
        (files.read_depth, "a.npy"),
    ):  # fmt: skip
        with pytest.raises(OSError, match="storage fails"):
            read(tmp_path / name)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 6
%%EndComments
8 6 scale showpage
%%EOF
"""


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.eps", "a.tif"])
def test_other_image_formats_are_not_opened(tmp_path, monkeypatch, name):
    def started(*_, **__):
        raise AssertionError("a program was started")

    path = tmp_path / name
    path.write_bytes(EPS)
    with Image.open(path) as image:
        assert image.format == "EPS"
    monkeypatch.setattr(subprocess, "Popen", started)
    for read in (files.read_rgb, files.read_depth):
        with pytest.raises(BrokenFrame, match=rf"{name} can't be .* none of the form"):
            read(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "ppm", "tif", "webp"])
def test_common_formats_are_images(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    colours = np.full((6, 8, 3), (200, 100, 50), np.uint8)
    Image.fromarray(colours).save(path)
    assert np.abs(files.read_rgb(path) - colours.astype(int)).max() < 8


def test_two_photos_in_one_file_are_read_as_the_first(tmp_path):
    first, second = (Image.new("RGB", (8, 6), (k, k, k)) for k in (40, 200))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert (files.read_rgb(tmp_path / "a.jpg") == 40).all()


def huge_png(side: int) -> bytes:
    """A PNG of `side` x `side` pixels, all 0, of correct checksums."""
    rows = zlib.compressobj(9)
    pixels = b"".join(rows.compress(bytes(side + 1)) for _ in range(side))
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0),
        b"IDAT": pixels + rows.flush(),
        b"IEND": b"",
    }
    return images_lib.PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data
        + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )  # fmt: skip


def test_images_of_too_many_pixels_are_not_decoded(tmp_path, monkeypatch):
    # Below Pillow's own limit, which is for colours of a few bytes.
    side = math.isqrt(arrays.LARGEST) + 1
    path = tmp_path / "a.png"
    path.write_bytes(huge_png(side))
    assert path.stat().st_size < 1 << 16
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # decodes
    for read in (files.read_rgb, files.read_depth):
        with pytest.raises(BrokenFrame, match=rf"a.png .*{side}x{side} pixels, more"):
            read(path)


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 6x8 zeros in one tile of `side` x `side`, compressed."""
    data = zlib.compress(bytes(side * side), 9)
    tags = {256: 8, 257: 6, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side,
            324: 8, 325: len(data)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def test_tiles_larger_than_their_tiff_are_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    path.write_bytes(tiled_tiff(16))
    assert (files.read_depth(path) == np.zeros((6, 8))).all()
    path.write_bytes(tiled_tiff(6000))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # decodes
    with pytest.raises(
        BrokenFrame, match="6000x6000 pixels, more than the limit of 34 million"
    ):
        files.read_rgb(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.npy", "a.npz"])
def test_fifos_and_devices_are_not_opened(tmp_path, name):
    (tmp_path / "fifo").mkdir()
    fifo, device = tmp_path / "fifo" / name, tmp_path / name
    os.mkfifo(fifo)  # opening it waits for a writer
    device.symlink_to("/dev/zero")
    for path in (fifo, device):
        for read in (files.read_rgb, files.read_depth, files.read_mask):
            with pytest.raises(BrokenFrame, match="FIFO or a device"):
                read(path)


@pytest.fixture
def alarm():
    """End a test that waits for a FIFO."""
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.mark.parametrize(
    "name", ["list.txt", "rgb.txt", "associations.txt", "train/x.h5",
             "dataset_info.json", "manifest.json"]
)  # fmt: skip
def test_fifos_in_a_folder_are_not_waited_for(tmp_path, alarm, name):
    made.image(tmp_path, "rgb/0.png")
    made.depth(tmp_path, "depth/0.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    if name.endswith(".h5"):  # the only file of its format
        made.refused(tmp_path, f"{name} can't be read", "a FIFO or a device")
    else:
        assert open_source(tmp_path).format == "folder"


def test_a_fifo_is_no_data(tmp_path, alarm):
    os.mkfifo(tmp_path / "a.mat")
    for path in (tmp_path / "a.mat", Path("/dev/zero")):
        made.refused(path, f"--data={path}: a FIFO or a device")
        with pytest.raises(UserError, match="a FIFO or a device"):
            takes(path, "depth_scale")


WRONG_NUMBERS = [np.nan, -np.nan, np.inf, -np.inf, -1.0, 0.0, 1e300, 1e-300]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1, 1000.0])
def test_numbers_not_finite_or_not_positive_are_missing(dtype, scale):
    with np.errstate(all="ignore"):
        values = np.array([[2.5, *WRONG_NUMBERS]]).astype(dtype)
    metres = files.to_metres(values, scale)
    assert metres.dtype == np.float32
    np.testing.assert_array_equal(metres, [[np.float32(2.5 / scale), *[0] * 8]])


@example(bytes.fromhex("0000a07f") * 8)  # a signalling NaN
@given(st.binary(min_size=32, max_size=32))
def test_any_bits_become_finite_non_negative_depth(content):
    for dtype in (np.float16, np.float32, np.float64):
        metres = files.to_metres(np.frombuffer(content, dtype)[None])
        assert np.isfinite(metres).all() and (metres >= 0).all()


@given(st.integers(1, 65534), st.sampled_from([1000.0, 25.5, 1000.1, 1 / 3]))
def test_integers_are_divided_in_double_precision(stored, scale):
    metres = files.to_metres(np.array([[stored]], np.uint16), scale)
    assert metres[0, 0] == np.float32(stored / scale)


SATURATED = [
    ("uint8", 255), ("uint16", 65535), (">u2", 65535), ("int16", 32767),
    ("int32", 65535), ("int32", 2**31 - 1), ("uint32", 2**32 - 1), ("int64", 65535),
    ("float32", 65535), ("float64", 65535), ("float32", 65.535), ("float16", 65.535),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "code"), SATURATED)
@pytest.mark.parametrize("scale", [1.0, 25.5, 1000.0])
def test_saturated_codes_are_missing(dtype, code, scale):
    values = np.array([[7, code, 100]]).astype(dtype)
    expected = [[np.float32(7 / scale), 0, np.float32(100 / scale)]]
    np.testing.assert_array_equal(files.to_metres(values, scale), expected)


def test_codes_near_saturation_are_depth():
    for dtype, code in (("uint8", 254), ("uint16", 65534), ("uint16", 255),
                        ("uint16", 32767), ("float32", 255.0)):  # fmt: skip
        assert files.to_metres(np.array([[code]], dtype)) == np.float32(code)


@pytest.mark.parametrize("unknown", [65.535, 1000.0, 1e10])
def test_a_large_number_where_depth_is_unknown_makes_no_filled_depth(unknown):
    depth = np.full((10, 10), 2.0, np.float32)
    assert files.kind_of([files.to_metres(depth)]) == "filled"
    depth[:3] = unknown
    assert files.kind_of([files.to_metres(depth)]) == "raw"
    # KITTI's and DIODE's outdoor depth.
    far = np.where(depth == 2.0, depth, np.float32(80))
    assert files.kind_of([far]) == "filled"


def test_a_sample_skips_broken_frames():
    def read(row):
        if row % 3:
            raise BrokenFrame(f"row {row}")
        return row

    assert files.sample(read, range(4)) == [0, 3]
    assert files.sample(read, []) == []
    with pytest.raises(UserError, match=r"no frame could be read.*row 1"):
        files.sample(read, [1, 2])


def test_missing_files_are_part_of_the_stamp(tmp_path):
    path = tmp_path / "a"
    before = files.stamp([path, Path("x\0")])
    path.write_text("")
    assert files.stamp([path, Path("x\0")]) != before
    assert before["files"] == 2


def matched(rgb, size, camera=None):
    depth = np.ones(size, np.float32)
    return files.match_size(rgb, depth, Path("a.jpg"), Path("a.png"), camera)


@pytest.mark.parametrize("size", [(6, 8), (5, 8), (7, 9)])
def test_an_image_is_averaged_to_the_size_of_its_depth(size):
    # Cells of 2.5x2.5 pixels, and of other fractions within 1 % of one aspect ratio.
    rows, columns = {(6, 8): (15, 20), (5, 8): (125, 200), (7, 9): (70, 90)}[size]
    rgb = np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)
    small, _ = matched(rgb, size)
    assert small.dtype == np.uint8 and small.shape == (*size, 3)

    def overlap(pixels, cells):  # a row per cell: the part of each pixel in it
        edges = np.arange(cells + 1) * pixels / cells
        index = np.arange(pixels)
        low = np.maximum(edges[:-1, None], index)
        high = np.minimum(edges[1:, None], index + 1)
        return np.maximum(high - low, 0) * cells / pixels

    for channel in range(3):
        mean = overlap(rows, size[0]) @ rgb[..., channel] @ overlap(columns, size[1]).T
        assert np.abs(small[..., channel] - mean).max() <= 0.5 + 1e-3


def test_the_camera_follows_an_image_that_is_shrunk():
    ramp = np.tile(np.arange(200, dtype=np.uint8)[:, None], (150, 1, 3))
    fx, fy, cx, cy = 180.0, 190.0, 104.5, 60.0
    small, camera = matched(ramp, (60, 80), (fx, fy, cx, cy))
    assert camera is not None
    across = small[0, :, 0].astype(float)  # a ramp: the column of the large image
    assert np.interp(camera[2], np.arange(80), across) == pytest.approx(cx, abs=0.5)
    assert camera[:2] == pytest.approx((fx * 0.4, fy * 0.4))
    assert camera[3] == pytest.approx((cy + 0.5) * 0.4 - 0.5)
    assert matched(ramp, (60, 80))[1] is None


def test_images_of_the_size_of_their_depth_are_unchanged():
    rgb, camera = np.zeros((6, 8, 3), np.uint8), (1.0, 1.0, 3.5, 2.5)
    same, kept = matched(rgb, (6, 8), camera)
    assert same is rgb and kept == camera


@pytest.mark.parametrize("size", [(1440, 1920), (968, 1296), (480, 640)])
@pytest.mark.parametrize("small", [(192, 256), (480, 640)])
def test_sizes_of_phones_and_scanners_match(size, small):
    # ARKit's 256x192 under 1920x1440, ScanNet's 640x480 under 1296x968.
    assert matched(np.zeros((*size, 3), np.uint8), small)[0].shape == (*small, 3)


@pytest.mark.parametrize(
    ("size", "small", "problem"),
    [
        ((480, 640), (640, 480), "size or aspect ratio"),  # turned
        ((1080, 1920), (192, 256), "size or aspect ratio"),
        ((480, 640), (480, 634), "size or aspect ratio"),
        ((480, 640), (456, 608), "size or aspect ratio"),  # a crop, perhaps
        ((240, 320), (480, 640), "depth is not resized"),
    ],
)
def test_other_sizes_are_an_error(size, small, problem):
    with pytest.raises(UserError, match=problem) as error:
        matched(np.zeros((*size, 3), np.uint8), small)
    assert f"a.jpg is {size[0]}x{size[1]}" in str(error.value)
    assert f"a.png is {small[0]}x{small[1]}" in str(error.value)
    assert not isinstance(error.value, BrokenFrame)


def test_larger_images_are_noted_once(tmp_path):
    large, small = (60, 80), (12, 16)
    for k in range(3):
        made.image(tmp_path, f"rgb/{k}.png", 40 * k, large)
        made.depth(tmp_path, f"depth/{k}.png", 2000, small)
    (tmp_path / "rgb" / "0.png").write_text("damaged")
    source = open_source(tmp_path)
    note = "images are shrunk to the size of their depth, 12x16 (the first is 60x80)"
    assert made.notes(source) == [note]
    frame = source.frame(2)
    np.testing.assert_array_equal(frame.rgb, np.full((*small, 3), 80))
    assert frame.filled is not None and frame.filled.shape == small
    assert made.notes(source) == [note]


@pytest.mark.parametrize(
    ("root", "path", "name"),
    [
        ("/a/b", "/a/b/c/d.png", "c/d.png"),
        ("/a/b", "/a/bc/d.png", None),
        ("/", "/a/d.png", "a/d.png"),
        (".", "c/d.png", "c/d.png"),
        (".", "/c/d.png", None),
        ("..", "../c/d.png", "c/d.png"),
    ],
)
def test_names_in_a_folder_are_those_of_pathlib(root, path, name):
    assert files.name_in(Path(root), Path(path)) == name
    if name is not None:
        assert Path(path).relative_to(root) == Path(name)
