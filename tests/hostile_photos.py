"""Photos that are damaged, or made to exhaust the memory or to do harm.

`python tests/hostile_photos.py WORKDIR` predicts the depth of each with the trained
network of a run, and prints a table: file, message, exit code, time and memory.
"""

import contextlib
import io
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body).to_bytes(4, "big")
    return len(body).to_bytes(4, "big") + kind + body + checksum


def png_of_zeros(path: Path, side: int, bits: int = 1) -> None:
    """A grey PNG of zeros; it needs little memory."""
    packer, row = zlib.compressobj(9), bytes(1 + side * bits // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*one) for one in chunks))


def jpeg_of_size(path: Path, side: int, progressive: bool = False) -> None:
    """A grey JPEG with this size in its header, and the pixels of 16x16."""
    content = io.BytesIO()
    Image.new("L", (16, 16), 128).save(content, "JPEG", progressive=progressive)
    data = bytearray(content.getvalue())
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    path.write_bytes(data)


def grey_jpeg(path: Path, side: int) -> None:
    """A JPEG of grey pixels; it needs little memory."""
    jpeg_of_size(path, side)
    data = path.read_bytes()
    pixels = data.rindex(b"\xff\xda") + 10
    # A block of no change is 00 1010 in the standard code; four of them are 3 bytes.
    blocks = b"\x28\xa2\x8a" * (-((-side // 8) ** 2) // 4 + 1)
    path.write_bytes(data[:pixels] + blocks + data[-2:])


def jpeg_of_scans(path: Path, side: int, scans: int) -> None:
    """A progressive JPEG that sends the same refinement again and again."""
    jpeg_of_size(path, side, progressive=True)
    data = path.read_bytes()
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data[:last] + data[last:-2] * scans + data[-2:])


def _eps(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "EPS")


def _webp(path: Path) -> None:
    header = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xfe\x3f\0" * 2
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(header)) + b"WEBP" + header)


def _gif(path: Path) -> None:
    Image.new("L", (8, 8)).save(path, "GIF")
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 65535, 65535)
    path.write_bytes(data)


def _tiles(path: Path) -> None:
    """A TIFF of 16x16 pixels whose only tile has 60,000 x 60,000."""
    tags = [(256, 16), (257, 16), (258, 8), (259, 5), (262, 1), (277, 1)]
    tags += [(322, 60000), (323, 60000), (324, 8), (325, 16)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 24) + bytes(16) + directory)


def _rle(path: Path) -> None:
    """A BMP of 13,000 empty lines: the decoder writes the zeros one at a time."""
    side, data = 13000, b"\1\0\0\0" * 13000 + b"\0\1"
    header = struct.pack(
        "<IiiHHIIIIII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0
    )
    start = 14 + len(header) + 1024
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    path.write_bytes(head + header + bytes(1024) + data)


def _flipped(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path, "PNG", compress_level=0)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 500] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


def _sparse(path: Path) -> None:
    """A PNG with a chunk of 2 GB, which takes no place on the disk."""
    with open(path, "wb") as file:
        file.write(
            b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", b"\0\0\0\1\0\0\0\1\x08" + bytes(4))
        )
        file.write(b"\x7f\xff\xff\xffIDAT")
        file.truncate(1 << 31)


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../outside.txt", "x")


def _heic(path: Path) -> None:
    path.write_bytes(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(64))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(path.parent):
        made.bind(path.name)  # the length of a whole path is limited


def _good(path: Path) -> None:
    Image.effect_noise((64, 48), 50).convert("RGB").save(path, "PNG")


# Name -> the function that makes the file, and a part of the message; "" if the photo
# is read without one.
PHOTOS: dict[str, tuple[Callable[[Path], object], str]] = {
    "eps.jpg": (_eps, "none of the formats JPEG, PNG"),
    "zip.png": (_archive, "none of the formats JPEG, PNG"),
    "heic.jpg": (_heic, "can't be read as an image"),
    "13000.png": (
        lambda path: png_of_zeros(path, 13000),
        "13000x13000, which is too large: its depth is predicted at 4334x4334",
    ),
    "13000_16.png": (
        lambda path: png_of_zeros(path, 13000, bits=16),
        "13000x13000, which is too large: its depth is predicted at 4334x4334",
    ),
    "20000.png": (
        lambda path: png_of_zeros(path, 20000),
        "20000x20000 pixels, more than the limit of 179 million",
    ),
    "20000.jpg": (
        lambda path: grey_jpeg(path, 20000),
        "20000x20000, which is too large: its depth is predicted at 5000x5000",
    ),
    "65000.jpg": (
        lambda path: jpeg_of_size(path, 65000),
        "65000x65000 pixels, more than the limit of 2147 million",
    ),
    "progressive.jpg": (
        lambda path: jpeg_of_size(path, 20000, progressive=True),
        "20000x20000 pixels, more than the limit of 179 million",
    ),
    "scans.jpg": (
        lambda path: jpeg_of_scans(path, 13000, 1000),
        "13000x13000 pixels, more than the limit of 4 million",
    ),
    "16383.webp": (_webp, "pixels"),
    "65535.gif": (_gif, "65535x65535 pixels, more than the limit of 179"),
    "tiles.tif": (_tiles, "60000x60000 pixels, more than the limit of 179"),
    "lines.bmp": (_rle, "13000x13000 pixels, more than the limit of 17 million"),
    "flipped.png": (_flipped, "bad header checksum"),
    "cut.jpg": (_cut, "truncated"),
    "sparse.png": (_sparse, "the file has 2048 MiB, more than 512 MiB"),
    "fifo.jpg": (
        lambda path: os.mkfifo(path),
        "a FIFO or a device, not a regular file",
    ),
    "socket.jpg": (_socket, "a FIFO or a device, not a regular file"),
    "device.jpg": (
        lambda path: path.symlink_to("/dev/zero"),
        "a FIFO or a device, not a regular file",
    ),
    "n" * 240 + ".png": (_good, ""),
    "line\nand \x1b[2Jescape.png": (_good, ""),
    "-dash.png": (_good, ""),
    "\udce9.png": (_good, ""),  # the bytes of a name in Latin-1
}


def _run(command: list[str], **options) -> tuple[int, str, str, float]:
    """Run a command. Returns exit code, output, times and peak memory in GB."""
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        times = f"{seconds:.1f} | {usage.ru_utime + usage.ru_stime:.1f}"
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="backslashreplace")
    return process.returncode, text, times, usage.ru_maxrss / (1 << 20)


def main(workdir: str) -> None:
    """Print the table."""
    print("| file | message | exit | seconds | CPU seconds | GB |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, _) in {"good.png": (_good, ""), **PHOTOS}.items():
            make(Path(folder) / name)
            argv = [sys.executable, "-m", "jaxdepth", "predict"]
            argv += [f"--checkpoint={workdir}", f"--out={folder}/out", "--", name]
            code, text, times, memory = _run(argv, cwd=folder)
            shown = ascii(name)[1:-1] if len(name) < 40 else f"{name[:3]}... (244)"
            lines = [line for line in text.splitlines() if " photos in " not in line]
            message = " / ".join(lines).replace(name, shown)
            row = f"| {shown} | {message[:200]} | {code} | {times} | {memory:.2f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).absolute()))
