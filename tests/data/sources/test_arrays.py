"""Array files: npy, npz and other encodings, intact, damaged and hostile."""

import io
import pickle
import struct
import sys
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.sources import BrokenFrame, files, open_source
from jaxdepth.runtime.errors import UserError
from tests.data.sources import made

DEPTH = np.arange(48, dtype=np.float32).reshape(6, 8) / 8 + 1
COLOURS = np.arange(144, dtype=np.uint8).reshape(6, 8, 3)


def npy(array, **more) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **more)
    return stream.getvalue()


def header(text: str, version=(1, 0)) -> bytes:
    """An npy file of 48 floats after any header."""
    encoded = text.encode().ljust(117) + b"\n"
    size = len(encoded).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + encoded + DEPTH.tobytes()


def described(shape="(6, 8)", descr="'<f4'", order="False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "f2", "f8", "u1", "<u2", ">u2", "i4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (1, 6, 8)])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, dtype, order, shape):
    array = np.asarray(DEPTH.reshape(shape), dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    values = files.read_depth(tmp_path / "a.npy")
    np.testing.assert_array_equal(values, array.reshape(6, 8))
    assert values.dtype == np.dtype(dtype).newbyteorder("=")
    np.savez_compressed(tmp_path / "a.npz", array.reshape(6, 8))
    np.testing.assert_array_equal(files.read_depth(tmp_path / "a.npz"), values)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_the_headers_of_these_tests_are_valid(tmp_path, version):
    (tmp_path / "a.npy").write_bytes(header(described(), version))
    np.testing.assert_array_equal(files.read_depth(tmp_path / "a.npy"), DEPTH)


DAMAGED = {
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "other magic": b"\x93NUMPZ" + npy(DEPTH)[6:],
    "version 3": header(described(), (3, 0)),
    "version 9": header(described(), (9, 9)),
    "pickle": pickle.dumps(DEPTH),
    "objects": npy(np.array([[None]]), allow_pickle=True),
    "cut": npy(DEPTH)[:-1],
    "longer": npy(DEPTH) + b"0",
    "more rows": header(described("(6, 9)")),
    "fewer rows": header(described("(6, 7)")),
    "petabytes": header(described("(3000000000, 3000000)")),
    "overflow": header(described("(4294967296, 4294967296)")),
    "negative": header(described("(-6, -8)")),
    "negative axis": header(described("(-1, 8)")),
    "float size": header(described("(6.0, 8)")),
    "true size": header(described("(True, 48)")),
    "name": header(described("(n, 8)")),
    "call": header(described("(print(1), 8)")),
    "bad literal": header(described("(6_, 08)")),
    "invalid decimal": header(described("(6or 0, 8)")),
    "no shape": header("{'descr': '<f4', 'fortran_order': False}"),
    "more keys": header(described()[:-1] + "'a': 1}"),
    "unknown type": header(described(descr="'<q9'")),
    "list type": header(described(descr="[1, 2]")),
    "order": header(described(order="None")),
    "nested": header("(" * 110),
    "zero bytes": header("\0" * 100),
    "not utf-8": header("\xff" * 50),
    "large header": b"\x93NUMPY\2\0\xff\xff\xff\x7f" + b" " * 99,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_npy_files_are_broken_frames(tmp_path, name):
    path = tmp_path / "a.npy"
    path.write_bytes(DAMAGED[name])
    tracemalloc.start()
    for read in (files.read_depth, files.read_rgb, files.read_mask):
        with pytest.raises(BrokenFrame, match=r"a\.npy can't be read as npy") as error:
            read(path)
        assert "\n" not in str(error.value)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_random_bytes_in_a_header_never_raise_other_errors(tmp_path):
    rng, path, intact = np.random.default_rng(0), tmp_path / "a.npy", npy(DEPTH)
    end = len(intact) - DEPTH.nbytes
    for _ in range(1500):
        content = bytearray(intact)
        for offset in rng.integers(end, size=rng.integers(1, 4)):
            content[offset] = rng.integers(256)
        path.write_bytes(content)
        try:
            values = files.read_depth(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert values.size == 48


def test_arrays_of_too_many_pixels_are_not_read(tmp_path):
    side = 1 << 14
    with open(tmp_path / "a.npy", "wb") as stream:  # sparse: no disk is used
        stream.write(header(described(f"({side}, {side})", "'|u1'"))[: -DEPTH.nbytes])
        stream.truncate(stream.tell() + side * side)
    for read in (files.read_depth, files.read_rgb):
        with pytest.raises(BrokenFrame, match="too large"):
            read(tmp_path / "a.npy")


def test_files_longer_than_their_header_claims_are_not_read(tmp_path):
    with open(tmp_path / "a.npy", "wb") as stream:  # sparse: no disk is used
        stream.write(npy(DEPTH))
        stream.truncate(1 << 28)
    tracemalloc.start()
    with pytest.raises(BrokenFrame, match=r"needs 192 bytes, but the file has"):
        files.read_depth(tmp_path / "a.npy")
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_an_npz_archive_needs_one_depth_map(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, image=COLOURS, depth=DEPTH, fx=500.0)
    np.testing.assert_array_equal(files.read_depth(path), DEPTH)
    np.savez(path, depth=DEPTH, valid=DEPTH > 2)
    np.testing.assert_array_equal(files.read_depth(path), DEPTH)
    cases: list[dict[str, Any]] = [{"depth": DEPTH, "other": DEPTH}, {"x": COLOURS}, {}]
    for more in cases:
        np.savez(path, **more)
        with pytest.raises(UserError, match=rf"a.npz holds {len(more) // 2 * 2} arr"):
            files.read_depth(path)


def archive(path, content: bytes, **more) -> None:
    with zipfile.ZipFile(path, "w", **more) as opened:
        opened.writestr("depth.npy", content)


def test_damaged_npz_files_are_broken_frames(tmp_path):
    path = tmp_path / "a.npz"
    archive(path, npy(DEPTH))
    intact = path.read_bytes()
    flipped = bytearray(intact)
    flipped[intact.index(DEPTH.tobytes()) + 40] ^= 1  # the checksum detects it
    for content in (b"", b"PK\3\4", intact[:-30], intact[:100], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(BrokenFrame, match=r"a\.npz can't be read as npz"):
            files.read_depth(path)
    for content in DAMAGED.values():
        archive(path, content)
        with pytest.raises(BrokenFrame, match=r"a\.npz can't be read as npz"):
            files.read_depth(path)


def test_npz_bombs_are_not_decompressed(tmp_path):
    path = tmp_path / "a.npz"
    side = 1 << 14
    zeros = header(described(f"({side}, {side})"))[: -DEPTH.nbytes] + bytes(1 << 26)
    archive(path, zeros, compression=zipfile.ZIP_DEFLATED)
    archive(tmp_path / "b.npz", npy(DEPTH), compression=zipfile.ZIP_LZMA)
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as opened:
        for k in range(999):
            opened.writestr(f"{k}.npy", npy(DEPTH))
    content = path.read_bytes()
    size = len(zeros).to_bytes(4, "little")
    claimed = (128 + side * side * 4).to_bytes(4, "little")  # as the header claims
    assert content.count(size) == 2
    (tmp_path / "d.npz").write_bytes(content.replace(size, claimed))
    del zeros
    tracemalloc.start()
    for name in "abcd":
        with pytest.raises(BrokenFrame, match=r"needs|method|999|large"):
            files.read_depth(tmp_path / f"{name}.npz")
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_colours_in_npy_files_become_rgb(tmp_path, dtype):
    # As in MTAN's NYUv2: image/0.npy, floating-point from 0 to 1.
    stored = COLOURS if dtype == np.uint8 else (COLOURS / 255).astype(dtype)
    np.save(tmp_path / "0.npy", stored)
    rgb = files.read_rgb(tmp_path / "0.npy")
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, COLOURS)


def test_folders_of_array_files_are_read(tmp_path):
    # MTAN's NYUv2, and depth in the other encodings.
    (tmp_path / "image").mkdir()
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "image" / "0.npy", COLOURS / 255)
    np.save(tmp_path / "depth" / "0.npy", DEPTH[..., None])
    np.save(tmp_path / "image" / "1.npy", COLOURS)
    pfm = b"Pf\n8 6\n-1\n" + DEPTH[::-1].tobytes()
    (tmp_path / "depth" / "1.pfm").write_bytes(pfm)
    made.image(tmp_path, "image/2.png", 9)
    np.savez(tmp_path / "depth" / "2.npz", depth=DEPTH)
    made.image(tmp_path, "image/3.png", 9)
    millimetres = b"P5\n8 6\n65535\n" + (DEPTH * 1000).astype(">u2").tobytes()
    (tmp_path / "depth" / "3.pgm").write_bytes(millimetres)
    source = open_source(tmp_path)
    assert source.format == "folder" and len(source.infos) == 4
    for row in range(4):
        frame = source.frame(row)
        if row < 2:
            np.testing.assert_array_equal(frame.rgb, COLOURS)
        assert frame.filled is not None
        np.testing.assert_allclose(frame.filled, DEPTH, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (COLOURS.transpose(2, 0, 1), r"\(3, 6, 8\): expected an image"),
        (COLOURS[..., 0], r"\(6, 8\): expected an image"),
        (COLOURS[:0], "expected an image"),
        (COLOURS.astype(np.float32), "from 0 to 143: expected colours"),
        (COLOURS.astype(np.uint16), "uint16 from 0 to 143: expected colours"),
        (COLOURS / 255 - 0.5, "expected colours"),
        (np.full((6, 8, 3), np.nan), "from nan to nan: expected colours"),
    ],
)
def test_other_arrays_are_no_colours(tmp_path, array, match):
    np.save(tmp_path / "0.npy", array)
    with pytest.raises(UserError, match=rf"0\.npy .*{match}"):
        files.read_rgb(tmp_path / "0.npy")


@pytest.mark.parametrize("dtype", [">u2", "u1"])
@pytest.mark.parametrize(
    "head", [b"P5\n8 6\n%d\n", b"P5 8 6 %d ", b"P5\n# Kinect\n8 # wide\n6\n#\n%d\n"]
)
def test_pgm_files_are_read_unchanged(tmp_path, dtype, head):
    codes = (np.arange(48).reshape(6, 8) * (4 if dtype == "u1" else 200)).astype(dtype)
    largest = 250 if dtype == "u1" else 9999
    path = tmp_path / "a.pgm"
    path.write_bytes(head % largest + codes.tobytes())
    values = files.read_depth(path)
    np.testing.assert_array_equal(values, codes)
    assert values.dtype == np.dtype(dtype).newbyteorder("=")
    # In the other byte order, values exceed the maximum.
    path.write_bytes(head % largest + codes.byteswap().tobytes() * (dtype != "u1"))
    with pytest.raises(BrokenFrame, match=r"bytes are swapped|the file has 0"):
        files.read_depth(path)


def test_a_saturated_pgm_is_missing(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + np.array([65535, 1000], ">u2").tobytes())
    np.testing.assert_array_equal(
        files.to_metres(files.read_depth(path), 1000), [[0, 1]]
    )


@pytest.mark.parametrize(("dtype", "scale"), [("<f4", b"-1.0"), (">f4", b"0.003922")])
def test_pfm_files_have_the_bottom_row_first(tmp_path, dtype, scale):
    depth = DEPTH.copy()
    depth[2, 3] = np.inf  # Middlebury's unknown
    path = tmp_path / "a.pfm"
    path.write_bytes(b"Pf\n8 6\n" + scale + b"\n" + depth[::-1].astype(dtype).tobytes())
    values = files.read_depth(path)
    np.testing.assert_array_equal(values, depth)
    assert values.dtype == np.float32 and files.to_metres(values)[2, 3] == 0
    path.write_bytes(b"PF\n8 2\n" + scale + b"\n" + DEPTH.tobytes())
    with pytest.raises(UserError, match="three channels"):
        files.read_depth(path)


RASTERS = {
    "empty.pfm": b"",
    "magic.pfm": b"Pf",
    "other.pfm": b"P5 8 6 -1\n" + DEPTH.tobytes(),
    "scale.pfm": b"Pf 8 6 0\n" + DEPTH.tobytes(),
    "nan.pfm": b"Pf 8 6 nan\n" + DEPTH.tobytes(),
    "word.pfm": b"Pf 8 6 x\n" + DEPTH.tobytes(),
    "cut.pfm": b"Pf 8 6 -1\n" + DEPTH.tobytes()[:-1],
    "longer.pfm": b"Pf 8 6 -1\n" + DEPTH.tobytes() + b"0",
    "zero.pfm": b"Pf 0 6 -1\n",
    "negative.pfm": b"Pf -8 -6 -1\n" + DEPTH.tobytes(),
    "huge.pfm": b"Pf 99999999 99999999 -1\n" + DEPTH.tobytes(),
    "digits.pfm": b"Pf " + b"9" * 999 + b" 6 -1\n" + DEPTH.tobytes(),
    "comment.pfm": b"Pf #" + b"#\n" * 5000 + DEPTH.tobytes(),
    "largest.pgm": b"P5 8 6 65536\n" + bytes(96),
    "none.pgm": b"P5 8 6 0\n" + bytes(48),
    "text.pgm": b"P2 8 6 255\n" + b"1 " * 48,
    "colour.pgm": b"P6 8 6 255\n" + bytes(144),
    "cut.pgm": b"P5 8 6 255\n" + bytes(47),
    "huge.pgm": b"P5 99999999 99999999 255\n" + bytes(48),
}


@pytest.mark.parametrize("name", RASTERS)
def test_damaged_pgm_and_pfm_files_are_broken_frames(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(RASTERS[name])
    suffix = path.suffix[1:]
    with pytest.raises(BrokenFrame, match=f"can't be read as {suffix}") as error:
        files.read_depth(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_tiff_files_of_both_byte_orders_are_read(tmp_path, order, dtype):
    # Written by hand, since Pillow writes one byte order.
    depth = (DEPTH * 100).astype(dtype)
    bits, kind = 8 * depth.itemsize, 3 if dtype == np.float32 else 1
    tags = {256: 8, 257: 6, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 6,
            279: depth.nbytes, 339: kind}  # fmt: skip
    entries = b"".join(
        struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items()
    )
    head = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42,
                       8 + depth.nbytes)  # fmt: skip
    data = depth.astype(depth.dtype.newbyteorder(order)).tobytes()
    path = tmp_path / "a.tif"
    path.write_bytes(head + data + struct.pack(order + "H", 10) + entries + bytes(4))
    values = files.read_depth(path)
    np.testing.assert_array_equal(values, depth)
    assert values.dtype == dtype


@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw"])
def test_compressed_tiff_files_are_read(tmp_path, compression):
    for dtype in (np.uint16, np.float32):
        depth = (DEPTH * 100).astype(dtype)
        Image.fromarray(depth).save(tmp_path / "a.tiff", compression=compression)
        values = files.read_depth(tmp_path / "a.tiff")
        np.testing.assert_array_equal(values, depth)
        assert values.dtype == dtype


def exr(path, channels):
    openexr = pytest.importorskip("OpenEXR", reason="the extra exr is not installed")
    with openexr.File({}, channels) as opened:
        opened.write(str(path))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_exr_files_are_read(tmp_path, dtype):
    path, depth, other = tmp_path / "a.exr", DEPTH.astype(dtype), 2 * DEPTH
    for channels in (
        {"V": depth}, {"Z": depth, "A": other}, {"left.Depth": depth, "B": other},
        {"R": depth, "G": depth, "B": depth},
    ):  # fmt: skip
        exr(path, channels)
        np.testing.assert_array_equal(files.read_depth(path), depth)
    for channels in ({"R": depth, "G": depth, "B": other}, {"U": depth, "V": depth}):
        exr(path, channels)
        with pytest.raises(UserError, match=r"a\.exr has the channels .*expected one"):
            files.read_depth(path)


def test_damaged_exr_files_are_broken_frames(tmp_path):
    path = tmp_path / "a.exr"
    exr(path, {"Z": DEPTH})
    intact = path.read_bytes()
    window = np.array([0, 0, 7, 5], "<i4").tobytes()
    huge = np.array([0, 0, 99_999, 99_999], "<i4").tobytes()
    for content in (b"", intact[:200], b"text", intact.replace(window, huge)):
        path.write_bytes(content)
        with pytest.raises(BrokenFrame, match=r"a\.exr can't be read as exr"):
            files.read_depth(path)


def test_exr_files_need_a_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    (tmp_path / "a.exr").write_bytes(b"v/1\1")
    with pytest.raises(UserError, match=r"a\.exr: .*pip install 'jaxdepth\[exr\]'"):
        files.read_depth(tmp_path / "a.exr")
