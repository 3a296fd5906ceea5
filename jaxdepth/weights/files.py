"""Converted weights on disk: safetensors with what they are in their metadata.

Arrays are named by their paths with us. The metadata say which network and layout they
belong to, how its input is normalised, where they come from and under what licence.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from jaxdepth import writers
from jaxdepth.errors import UserError
from jaxdepth.models.layouts import layout_named

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


def sha256(path: str | Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_existing(path: Path) -> None:
    """UserError where something of that name is there."""
    if path.exists():
        raise UserError(f"{path} exists already and is not overwritten: name another")


def write(path: str | Path, weights: Weights) -> None:
    """Write converted weights; UserError where the file exists already."""
    path = Path(path)
    refuse_existing(path)
    fields = dataclasses.asdict(dataclasses.replace(weights, arrays={}))
    fields.pop("arrays")
    metadata = {key: json.dumps(value) for key, value in fields.items()}
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(x) for name, x in weights.arrays.items()},
        metadata | {"format": FORMAT},
    )
    with writers.replacing(path) as file:
        file.write(content)


def read(path: str | Path) -> Weights:
    """Read what `write` wrote. UserError for anything else, saying what to do."""
    path = Path(path)
    arrays, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} holds no converted weights: convert it with "
            "tools/convert_resnet.py or tools/convert_fcrn.py first"
        )
    try:
        fields = {k: json.loads(v) for k, v in metadata.items() if k != "format"}
        fields["rgb_mean"] = tuple(fields["rgb_mean"])
        fields["rgb_std"] = tuple(fields["rgb_std"])
        return Weights(arrays=arrays, **fields)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: its metadata are damaged ({error})") from None


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file; bfloat16 becomes float32."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, metadata
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({str(error)[:80]}): if it is "
            "PyTorch's, convert it with tools/convert_resnet.py"
        ) from None
