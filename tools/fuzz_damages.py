"""Random damage to files, for `tools/fuzz.py`."""

import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

NUMBERS = (0, 1, -1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**63 - 1, 2**64 - 1, 10**30)
VALUES = (*NUMBERS, 0.5, 1e300, float("nan"), True, None, "", "x", "../x", [], {}, [0])
Damage = Callable[[bytes, np.random.Generator], bytes]


def _block(data: bytes, rng: np.random.Generator) -> slice:
    """Choose a random block; half of the blocks are in the headers, the first KiB."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 1024)
    start = int(rng.integers(end + 1))
    return slice(start, start + int(rng.choice([1, 4, 16, 64, 512])))


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    end = len(data) if rng.random() < 0.5 else min(len(data), 1024)
    for offset in rng.integers(end, size=int(rng.choice([1, 1, 4, 32]))) if end else ():
        changed[offset] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def extend(data: bytes, rng: np.random.Generator) -> bytes:
    more = rng.bytes(int(rng.choice([1, 8, 4096])))
    return data + (more if rng.random() < 0.5 else data[: len(more)])


def zero(data: bytes, rng: np.random.Generator) -> bytes:
    block = _block(data, rng)
    return data[: block.start] + bytes(len(data[block])) + data[block.stop :]


def remove(data: bytes, rng: np.random.Generator) -> bytes:
    block = _block(data, rng)
    return data[: block.start] + data[block.stop :]


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    block = _block(data, rng)
    return data[: block.start] + rng.bytes(len(data[block])) + data[block.start :]


def swap(data: bytes, rng: np.random.Generator) -> bytes:
    """Swap two blocks of equal length."""
    size = int(rng.choice([1, 4, 16, 64, 512]))
    a, b = sorted(rng.integers(max(1, len(data) - size), size=2).tolist())
    b = max(b, a + size)
    parts = data[:a], data[b : b + size], data[a + size : b], data[a : a + size]
    return b"".join(parts) + data[b + size :]


def integer(data: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite a binary integer, such as a length, an offset or a type."""
    size, start = int(rng.choice([1, 2, 4, 8])), _block(data, rng).start
    number = int(rng.choice(np.array([*NUMBERS[:-1], len(data)], object)))
    order = "little" if rng.random() < 0.7 else "big"
    raw = (number % 256**size).to_bytes(size, order)
    return data[:start] + raw + data[start + size :]


def number(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace a decimal number in a text or a header."""
    matches = list(re.finditer(rb"-?\d+(\.\d+)?", data[:65536]))
    if not matches:
        return flip(data, rng)
    match = matches[int(rng.integers(len(matches)))]
    value = str(VALUES[int(rng.integers(len(VALUES)))]).encode()
    return data[: match.start()] + value + data[match.end() :]


def json_value(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace or remove a value of a JSON document."""
    try:
        tree = json.loads(data)
    except ValueError:  # JSON lines
        return number(data, rng)
    places = list(_places(tree))
    if not places:
        return number(data, rng)
    container, key = places[int(rng.integers(len(places)))]
    if rng.random() < 0.2:
        del container[key]
    elif rng.random() < 0.05:
        container[key] = "DEEP"
    else:
        container[key] = VALUES[int(rng.integers(len(VALUES)))]
    text = json.dumps(tree).replace('"DEEP"', "[" * 9999 + "]" * 9999)
    return text.encode()


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value in nested dicts and lists."""
    if not isinstance(tree, dict | list):
        return
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        yield from _places(tree[key])


def npy_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Edit a number or the type in the header of a .npy file."""
    if rng.random() < 0.6:
        return number(data[:128], rng) + data[128:]
    kind = rng.choice(["|O", "<f8", ">u2", "|b1", "<c16", "|S9", "<M8[s]", "x", "|V0"])
    return re.sub(rb"'descr': '[^']*'", f"'descr': '{kind}'".encode(), data, count=1)


def png_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Edit size, depth or kind of a PNG, with a correct checksum."""
    header = integer(data[16:29], rng)[:13].ljust(13, b"\0")
    return data[:16] + header + zlib.crc32(b"IHDR" + header).to_bytes(4) + data[33:]


DAMAGES = (flip, truncate, extend, zero, remove, insert, swap, integer, number)
OF_SUFFIX: Mapping[str, Damage] = {
    ".json": json_value, ".npy": npy_header, ".png": png_header,
}  # fmt: skip


def damaged(file: Path, rng: np.random.Generator) -> str:
    """Damage a file in place; return the name of the damage."""
    data, special = file.read_bytes(), OF_SUFFIX.get(file.suffix)
    damage = DAMAGES[int(rng.integers(len(DAMAGES)))]
    if special is not None and rng.random() < 0.4:
        damage = special
    file.write_bytes(damage(data, rng))
    return damage.__name__
