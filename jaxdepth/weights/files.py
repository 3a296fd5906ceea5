"""Converted weights on disk: safetensors files with metadata.

Arrays are named by their paths in our networks. The metadata record the network and
layout, the normalisation of the input, the origin and the licence.
"""

import contextlib
import dataclasses
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from jaxdepth.models.layouts import layout_named
from jaxdepth.runtime import atomic, storage
from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import name_tables

FORMAT = "jaxdepth weights 1"
# Bytes. A ResNet-50 with the state of its optimizer has 0.3 GB, the FCRN 0.25 GB.
MAX_FILE = 1 << 30
# Bytes of a safetensors header; 10,000 tensors.
_MAX_HEADER = 2 << 20


@dataclasses.dataclass(frozen=True)
class Weights:
    """Converted weights.

    Attributes:
      arrays: path -> float32 array.
      init: value of --init that uses them: "imagenet" (an encoder) or "nyu" (all parts
        of a network).
      layout: name of the network's layout.
      rgb_mean, rgb_std: normalisation of the input, for colours of 0 to 255.
      origin: human-readable source of the weights.
      sha256: of the file that was converted.
      licence: note on the terms of use.
    """

    arrays: Mapping[str, np.ndarray]
    init: str
    layout: str
    rgb_mean: tuple[float, ...]
    rgb_std: tuple[float, ...]
    origin: str
    sha256: str
    licence: str

    @classmethod
    def of_layout(
        cls, arrays: Mapping[str, np.ndarray], layout: str, **fields: str
    ) -> "Weights":
        """Weights with the input normalisation of a layout; `fields` are the others."""
        settings = layout_named(layout)
        return cls(
            arrays=arrays,
            layout=layout,
            rgb_mean=settings.rgb_mean,
            rgb_std=settings.rgb_std,
            **fields,
        )


def check_regular(path: Path) -> None:
    """Check that a path is a file that can be read whole.

    Raises: UserError if it is absent, a folder, a FIFO, a device or a socket (reading
      could wait forever or never end), or too large.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be read: {reason}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} can't be read: Is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is a FIFO, device or socket: give a regular file")
    if status.st_size > MAX_FILE:
        raise UserError(
            f"{path} has {status.st_size / 1e9:.1f} GB, and at most "
            f"{MAX_FILE / 1e9:.1f} GB are read: save its state_dict only"
        )


def refuse_existing(path: Path) -> None:
    """Raise UserError if the path exists."""
    if path.exists():
        raise UserError(
            f"{path} exists already and is not overwritten: give another file name"
        )


def expanded(name: str | Path) -> Path:
    """The path with `~` expanded, which shells do not do in `--weights=~/x`."""
    return Path(os.path.expanduser(name))


def output(name: str, *suffixes: str) -> Path:
    """Return the path of an output file after checking that it can be created.

    Raises: UserError if it exists, its folder does not, or it has none of `suffixes`.
    """
    path = expanded(name)
    refuse_existing(path)
    if path.suffix not in suffixes:
        raise UserError(
            f"{path}: expected a file name that ends in {' or '.join(suffixes)}"
        )
    if not path.parent.is_dir():
        raise UserError(f"{path} can't be written: no folder {path.parent}")
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically: `path` exists only once it is complete.

    Raises: MachineError if storage fails.
    """
    with storage.write_errors(path), atomic.atomic_write(path) as file:
        yield file


def write(path: Path, weights: Weights) -> None:
    """Write converted weights. Raises UserError if the file exists."""
    refuse_existing(path)
    metadata = {k: json.dumps(v) for k, v in vars(weights).items() if k != "arrays"}
    write_safetensors(path, weights.arrays, metadata | {"format": FORMAT})


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Write arrays and metadata. Raises MachineError if storage fails."""
    content = safetensors.numpy.save(
        {name: np.asarray(x, order="C") for name, x in arrays.items()}, metadata
    )
    with writing(path) as file:
        file.write(content)


def read(path: str | Path) -> Weights:
    """Read a file that `write` wrote.

    Raises: UserError if it is any other file or damaged.
    """
    path = expanded(path)
    arrays, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} holds no converted weights: convert it with "
            "jaxdepth convert-resnet or jaxdepth convert-fcrn first"
        )
    return from_arrays(arrays, metadata, path)


def from_arrays(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], path: Path
) -> Weights:
    """`Weights` from the contents of the file `path`, which has the format `FORMAT`.

    Raises: UserError if they are damaged.
    """
    try:
        arrays = {k: name_tables.as_weights(x, k, name=k) for k, x in arrays.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}: convert it again") from None
    return _weights(arrays, metadata, path)


def _weights(
    arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], path: Path
) -> Weights:
    """`Weights` from the arrays and metadata of a file."""
    try:
        fields = {k: json.loads(v) for k, v in metadata.items() if k != "format"}
        for name in ("rgb_mean", "rgb_std"):
            fields[name] = tuple(map(float, fields[name]))
        weights = Weights(arrays=arrays, **fields)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its metadata are damaged ({error})") from None
    texts = (weights.init, weights.layout, weights.origin, weights.sha256)
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path}: its metadata are damaged (expected strings)")
    return weights


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: the size of a JSON object, then `{`."""
    with open(path, "rb") as file:
        head = file.read(9)
    # The format allows headers of up to 100 MB.
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read arrays and metadata of a safetensors file; bfloat16 becomes float32.

    Raises: UserError if the file is absent, damaged, not safetensors, or holds a type
      that NumPy lacks.
    """
    from jaxdepth.weights import foreign  # on use: it imports this module

    foreign.refuse(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file of weights")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    check_regular(path)
    with open(path, "rb") as file:  # safetensors reports unreadable files as missing
        header = int.from_bytes(file.read(8), "little")
    if _MAX_HEADER < header <= path.stat().st_size:
        raise UserError(
            f"{path}: its header has {header >> 20} MiB, and at most 2 are read"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: _tensor(file, name) for name in file.keys()}, metadata  # noqa: SIM118
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # errors of safetensors, NumPy and the machine
        raise UserError(
            f"{path} is not a complete safetensors file ({str(error)[:80]})"
        ) from None


def _tensor(file: Any, name: str) -> np.ndarray:
    try:
        array = file.get_tensor(name)
    except AttributeError:  # raised by safetensors for a type that NumPy lacks
        kind = file.get_slice(name).get_dtype()
        raise UserError(f"{name} is of type {kind}, which is not supported") from None
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
