"""Converted weights on disk: safetensors with what they are in their metadata.

Arrays are named by their paths with us. The metadata say which network and layout they
belong to, how its input is normalised, where they come from and under what licence.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from jaxdepth.models.layouts import layout_named
from jaxdepth.runtime import atomic
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.weights import name_tables

FORMAT = "jaxdepth weights 1"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Converted weights.

    Attributes:
      arrays: path -> float32 array.
      init: the --init they serve, "imagenet" (an encoder) or "nyu" (a whole network).
      layout: the layout of their network.
      rgb_mean, rgb_std: what its input is normalised by, of colours of 0 to 255.
      origin: where they come from, for people.
      sha256: of the file that was converted.
      licence: note on their terms.
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
        """With the input normalisation of a layout."""
        settings = layout_named(layout)
        return cls(
            arrays=arrays,
            layout=layout,
            rgb_mean=settings.rgb_mean,
            rgb_std=settings.rgb_std,
            **fields,
        )


def sha256(*paths: str | Path) -> str:
    """Hex digest of a file, or of several as if they were one."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def refuse_existing(path: Path) -> None:
    """UserError where something of that name is there."""
    if path.exists():
        raise UserError(f"{path} exists already and is not overwritten: name another")


def expanded(name: str | Path) -> Path:
    """The path with `~` as the home: shells leave it in `--weights=~/x`."""
    return Path(os.path.expanduser(name))


def output(name: str, *suffixes: str) -> Path:
    """The path of a file to be written, checked before any work.

    Raises UserError where it exists, has no folder, or ends in none of `suffixes`.
    """
    path = expanded(name)
    refuse_existing(path)
    if path.suffix not in suffixes:
        raise UserError(f"{path}: what is written here ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise UserError(f"{path} can't be written: there is no folder {path.parent}")
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that is at `path` once it is whole. MachineError where storage fails."""
    try:
        with atomic.atomic_write(path) as file:
            yield file
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error.strerror}") from error


def write(path: Path, weights: Weights) -> None:
    """Write converted weights; UserError where the file exists already."""
    refuse_existing(path)
    fields = dataclasses.asdict(dataclasses.replace(weights, arrays={}))
    fields.pop("arrays")
    metadata = {key: json.dumps(value) for key, value in fields.items()}
    write_safetensors(path, weights.arrays, metadata | {"format": FORMAT})


def write_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]
) -> None:
    """Write arrays and metadata. MachineError where storage fails."""
    content = safetensors.numpy.save(
        {name: np.asarray(x, order="C") for name, x in arrays.items()}, metadata
    )
    with writing(path) as file:
        file.write(content)


def read(path: str | Path) -> Weights:
    """Read what `write` wrote. UserError for anything else, saying what to do."""
    path = expanded(path)
    arrays, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} holds no converted weights: convert it with "
            "jaxdepth convert-resnet or jaxdepth convert-fcrn first"
        )
    try:
        arrays = {
            name: name_tables.as_weights(
                name, x, variance=name_tables.is_variance(name)
            )
            for name, x in arrays.items()
        }
    except UserError as error:
        raise UserError(f"{path}: {error}: convert it again") from None
    try:
        fields = {k: json.loads(v) for k, v in metadata.items() if k != "format"}
        for name in ("rgb_mean", "rgb_std"):
            fields[name] = tuple(map(float, fields[name]))
        weights = Weights(arrays=arrays, **fields)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its metadata are damaged ({error})") from None
    words = (weights.init, weights.layout, weights.origin, weights.sha256)
    if not all(isinstance(word, str) for word in words):
        raise UserError(f"{path}: its metadata are damaged (words were expected)")
    return weights


def is_safetensors(path: Path) -> bool:
    """Whether it begins as one: the length of a JSON object, and the object."""
    with open(path, "rb") as file:
        head = file.read(9)
    # The format allows headers of up to 100 MB.
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= 100_000_000


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file; bfloat16 becomes float32.

    Raises UserError where it is none, is damaged, or holds what NumPy has not.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file of weights")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    with open(path, "rb"):
        pass  # of one that can't be opened safetensors tells that it is not there
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: _tensor(file, name) for name in file.keys()}, metadata  # noqa: SIM118
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # of its own, of NumPy, of the machine
        raise UserError(
            f"{path} is not a whole safetensors file ({str(error)[:80]}): if it is "
            "PyTorch's, convert it with jaxdepth convert-resnet"
        ) from None


def _tensor(file: Any, name: str) -> np.ndarray:
    try:
        array = file.get_tensor(name)
    except AttributeError:  # how safetensors meets a type that NumPy has not
        kind = file.get_slice(name).get_dtype()
        raise UserError(f"{name} is of type {kind}, which is not read here") from None
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
