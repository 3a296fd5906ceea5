"""Readers of untrusted npy, npz, PGM, PFM and EXR files.

Sizes are checked against the file, and against `LARGEST`, before memory is allocated:
headers can be damaged or malicious. Damaged files raise exceptions of many types, which
`files.read_depth` converts to BrokenFrame.
"""

import io
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jaxdepth.runtime.errors import UserError

# A binary file or an archive member. These are not IO[bytes] in Python 3.11.
Stream: TypeAlias = Any
LARGEST = 1 << 25  # pixels of a frame
_BYTES = 3 * 8 * LARGEST  # of an array: three channels of float64
_HEAD = 1 << 14  # bytes; longer than the npy header of any numeric array
_MEMBERS = 64  # of an npz archive
_PNM_FIELD = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*([^\s#]{1,32})")


def check_pixels(height: int, width: int) -> None:
    """Raise ValueError for more than `LARGEST` pixels."""
    if height * width > LARGEST:
        raise ValueError(
            f"{height}x{width} are {height * width / 1e6:.0f} megapixels, and the "
            f"limit is {LARGEST / 1e6:.0f}: make it smaller"
        )


def read_npy(file: Path) -> np.ndarray:
    """Read an array of numbers from an `.npy` file.

    Raises: UserError for an npz archive, and for a dtype other than integer,
      floating-point or bool.
    """
    with open(file, "rb") as stream:
        if stream.read(2) == b"PK":
            raise UserError(f"{file} is an npz archive: rename it to .npz")
        stream.seek(0)
        return _npy(stream, file.stat().st_size, file)


def read_npz(file: Path) -> np.ndarray:
    """Read the only two-dimensional array of an `.npz` archive.

    Raises: UserError unless there is exactly one.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > _MEMBERS:
            raise ValueError(
                f"it holds {len(members)} arrays; at most {_MEMBERS} are read"
            )
        maps = [member for member in members if _is_map(archive, member, file)]
        if len(maps) != 1:
            names = ", ".join(repr(member.filename[:40]) for member in members[:5])
            raise UserError(
                f"{file} holds {len(maps)} arrays of shape (H, W) among {names}: save "
                "one depth map per file"
            )
        with archive.open(maps[0]) as stream:
            # zipfile verifies the checksum at the end of the member.
            return _npy(stream, maps[0].file_size, file)


def read_pgm(file: Path) -> np.ndarray:
    """Read a binary PGM file (P5), uint8 or uint16, with its values unchanged.

    16-bit values are big-endian, as in the standard. (Pillow scales values to 65535 if
    the header has another maximum.)
    """
    with open(file, "rb") as stream:
        (magic, width, height, largest), offset = _pnm_header(stream)
        if magic != b"P5" or not 0 < int(largest) < 65536:
            raise ValueError(
                f"its header begins with {magic} and has the maximum {largest}: "
                "expected P5 and 1 to 65535"
            )
        dtype = np.dtype(np.uint8 if int(largest) < 256 else ">u2")
        values = _raster(stream, offset, int(height), int(width), dtype)
    if values.max(initial=0) > int(largest):
        raise ValueError(
            f"it holds {values.max()}, above its maximum {int(largest)}: it is "
            "damaged, or its bytes are swapped"
        )
    return values


def read_pfm(file: Path) -> np.ndarray:
    """Read a single-channel PFM file (Pf) as float32, top row first.

    The file stores the bottom row first. The sign of its scale gives the byte order;
    the magnitude is ignored, as in Middlebury's code.

    Raises: UserError for three channels.
    """
    with open(file, "rb") as stream:
        (magic, width, height, scale), offset = _pnm_header(stream)
        if magic == b"PF":
            raise UserError(f"{file} has three channels (PF): expected one (Pf)")
        if magic != b"Pf" or not math.isfinite(float(scale)) or float(scale) == 0:
            raise ValueError(
                f"its header begins with {magic} and has the scale {scale}: expected "
                "Pf and a number other than 0"
            )
        dtype = np.dtype("<f4" if float(scale) < 0 else ">f4")
        return _raster(stream, offset, int(height), int(width), dtype)[::-1]


def read_exr(file: Path) -> np.ndarray:
    """Read the depth channel of an OpenEXR file.

    The depth channel is the only channel, or the one named Z or depth, or R if R, G and
    B are equal.

    Raises: UserError if the package OpenEXR is not installed, or the file has no depth
      channel.
    """
    try:
        import OpenEXR  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{file}: OpenEXR files need a package: pip install 'jaxdepth[exr]'"
        ) from None
    with OpenEXR.File(str(file), header_only=True) as headers:
        if len(headers.parts) != 1:
            raise UserError(f"{file} has {len(headers.parts)} parts: expected one")
        header = headers.header()
        (left, top), (right, bottom) = header["dataWindow"]
        height, width = int(bottom) - int(top) + 1, int(right) - int(left) + 1
        check_pixels(height * len(header["channels"]), width)  # all channels are read
    with OpenEXR.File(str(file), separate_channels=True) as opened:
        channels = {name: np.array(c.pixels) for name, c in opened.channels().items()}
    name = _depth_channel(channels)
    if name is None:
        names = ", ".join(repr(name[:40]) for name in list(channels)[:5])
        raise UserError(
            f"{file} has the channels {names}: expected one channel, or one named Z"
        )
    return channels[name]


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".pgm": read_pgm,
    ".pfm": read_pfm,
    ".exr": read_exr,
}
"""Readers by suffix, in lower case. Other suffixes are read by Pillow."""


def _npy_header(
    head: bytes, file: Path
) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """Parse an npy header: its length, the shape, the Fortran order and the dtype.

    Args:
      head: the first `_HEAD` bytes. If NumPy read the file itself, it would allocate
        the header length that the file claims.

    Raises: UserError for a dtype other than integer, floating-point or bool.
    """
    versions = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version not in versions:
        raise ValueError(f"its npy version {version} is not supported")
    shape, fortran, dtype = versions[version](stream)
    if dtype.hasobject or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(
            f"it has shape {shape} of {dtype}: expected an array of numbers"
        )
    if dtype.kind not in "uifb":
        raise UserError(
            f"{file} has shape {shape} of {dtype}: expected one depth map (H, W)"
        )
    return stream.tell(), shape, fortran, dtype


def _npy(stream: Stream, size: int, file: Path) -> np.ndarray:
    """Read an array from a stream of `size` bytes."""
    head = stream.read(_HEAD)
    offset, shape, fortran, dtype = _npy_header(head, file)
    claimed, stored = math.prod(shape) * dtype.itemsize, size - offset
    if claimed != stored:
        raise ValueError(
            f"shape {shape} of {dtype} needs {claimed} bytes, but the file has {stored}"
        )
    if math.prod(shape) > 3 * LARGEST or claimed > _BYTES:
        raise ValueError(f"shape {shape} is too large for a frame")
    # No seeking: after a seek, zipfile does not verify the checksum.
    content = head[offset:] + _rest(stream, max(0, size - len(head)))
    values = np.frombuffer(content, dtype)
    values = values.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(values, dtype.newbyteorder("="))


def _is_map(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> bool:
    """Whether a member of an npz archive is a two-dimensional array."""
    # Other compression methods can need gigabytes of memory.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"its compression method {member.compress_type} is not supported"
        )
    with archive.open(member) as stream:
        _, shape, _, dtype = _npy_header(stream.read(_HEAD), file)
        return len(shape) == 2 and dtype.kind != "b"


def _depth_channel(channels: dict[str, np.ndarray]) -> str | None:
    """Name of the depth channel, None if there is none; see `read_exr`."""
    named = [n for n in channels if n.split(".")[-1].lower() in ("z", "depth")]
    if len(channels) == 1 or len(named) == 1:
        return (named or list(channels))[0]
    grey = set(channels) >= {"R", "G", "B"} and all(
        np.array_equal(channels["R"], channels[name], equal_nan=True) for name in "GB"
    )
    return "R" if grey else None


def _pnm_header(stream: Stream) -> tuple[list[bytes], int]:
    """The four fields of a PGM or PFM header, and its length."""
    head, fields, offset = stream.read(1024), [], 0
    for _ in range(4):
        field = _PNM_FIELD.match(head, offset)
        if field is None:
            raise ValueError("damaged header")
        fields.append(field[1])
        offset = field.end()
    return fields, offset + 1  # one whitespace character ends the header


def _raster(
    stream: Stream, offset: int, height: int, width: int, dtype: np.dtype[Any]
) -> np.ndarray:
    """Read (height, width) values, which must fill the file after the header."""
    if height < 1 or width < 1:
        raise ValueError(f"its size is {height}x{width}")
    check_pixels(height, width)
    claimed, stored = height * width * dtype.itemsize, stream.seek(0, 2) - offset
    if claimed != stored:
        raise ValueError(
            f"{height}x{width} pixels need {claimed} bytes, but the file has {stored}"
        )
    stream.seek(offset)
    values = np.frombuffer(_rest(stream, claimed), dtype).reshape(height, width)
    return values.astype(dtype.newbyteorder("="))


def _rest(stream: Stream, count: int) -> bytes:
    """Read the rest of a stream. Raises ValueError unless it is `count` bytes."""
    content = stream.read(count)
    if len(content) != count or stream.read(1):
        raise ValueError(
            f"its data do not have the {count} bytes that its header states"
        )
    return content
