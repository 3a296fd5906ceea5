"""Reads arrays from npy and npz files of any origin.

Sizes are checked against the file, and against `LARGEST`, before memory is allocated:
headers can be damaged, or made to exhaust the memory. Errors of damaged files are of
many types; see `files.read_depth`.
"""

import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from jaxdepth.runtime.errors import UserError

LARGEST = 1 << 25  # pixels of a frame
_BYTES = 3 * 8 * LARGEST  # of an array: three channels of float64
_HEAD = 1 << 14  # bytes; longer than any npy header of numbers
_MEMBERS = 64  # of an npz archive


def check_pixels(height: int, width: int) -> None:
    """Raise ValueError for more than `LARGEST` pixels."""
    if height * width > LARGEST:
        raise ValueError(
            f"{height}x{width} are {height * width / 1e6:.0f} megapixels, more than "
            f"the limit of {LARGEST / 1e6:.0f}: make it smaller"
        )


def read_npy(file: Path) -> np.ndarray:
    """Read an array of numbers from an `.npy` file.

    Raises: UserError for an array of anything else.
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
            raise ValueError(f"{len(members)} arrays in one archive")
        maps = [member for member in members if _is_map(archive, member, file)]
        if len(maps) != 1:
            names = ", ".join(repr(member.filename[:40]) for member in members[:5])
            raise UserError(
                f"{file} holds {len(maps)} arrays (H, W) among {names}: save one depth "
                "map alone"
            )
        with archive.open(maps[0]) as stream:
            # The checksum is compared when the end is reached.
            return _npy(stream, maps[0].file_size, file)


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    ".npy": read_npy,
    ".npz": read_npz,
}
"""Readers by suffix, in lower case. Other suffixes are read by Pillow."""


def _npy_header(
    head: bytes, file: Path
) -> tuple[int, tuple[int, ...], bool, np.dtype[Any]]:
    """Length of an npy header, shape, whether it is in Fortran order, and type.

    Args:
      head: the first `_HEAD` bytes. NumPy would allocate the length that is claimed.

    Raises: UserError for an array of anything but real numbers.
    """
    versions = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    if version not in versions:
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = versions[version](stream)
    if dtype.hasobject or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"shape {shape} of {dtype}: expected an array of numbers")
    if dtype.kind not in "uifb":
        raise UserError(
            f"{file} has shape {shape} of {dtype}: expected one depth map (H, W)"
        )
    return stream.tell(), shape, fortran, dtype


def _npy(stream: IO[bytes], size: int, file: Path) -> np.ndarray:
    """Read an array from a stream of `size` bytes."""
    head = stream.read(_HEAD)
    offset, shape, fortran, dtype = _npy_header(head, file)
    claimed, stored = math.prod(shape) * dtype.itemsize, size - offset
    if claimed != stored:
        raise ValueError(
            f"its header claims {claimed} bytes, shape {shape} of {dtype}, and "
            f"{stored} are stored"
        )
    if math.prod(shape) > 3 * LARGEST or claimed > _BYTES:
        raise ValueError(f"shape {shape} is too large for a frame")
    # Not by seeking, after which zipfile compares no checksum.
    content = head[offset:] + _rest(stream, max(0, size - len(head)))
    values = np.frombuffer(content, dtype)
    values = values.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(values, dtype.newbyteorder("="))


def _is_map(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path) -> bool:
    """Whether a member of an npz archive is a two-dimensional array."""
    # Other methods can need gigabytes to decompress.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"compression method {member.compress_type}")
    with archive.open(member) as stream:
        _, shape, _, dtype = _npy_header(stream.read(_HEAD), file)
        return len(shape) == 2 and dtype.kind != "b"


def _rest(stream: IO[bytes], count: int) -> bytes:
    """Read the last `count` bytes of a stream; ValueError for fewer or more."""
    content = stream.read(count)
    if len(content) != count or stream.read(1):
        raise ValueError(f"not the {count} bytes that its header claims")
    return content
