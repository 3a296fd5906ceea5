"""The published NYU network (FCRN) to weights for `--init=nyu`, and back.

    python tools/convert_fcrn.py NYU_ResNet-UpProj.npy nyu.safetensors
    python tools/convert_fcrn.py NYU_FCRN.ckpt nyu.safetensors
    python tools/convert_fcrn.py --reverse nyu.safetensors NYU_ResNet-UpProj.npy

Reads the Python 2 pickle without running code in it. --reverse also takes the work
directory of a run of --layout=fcrn.
"""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

if __package__ in (None, ""):  # run as a file: python tools/convert_fcrn.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxdepth
from jaxdepth import cli, writers
from jaxdepth.errors import UserError
from jaxdepth.train_state import flatten
from jaxdepth.weights import fcrn, files

logger = logging.getLogger("jaxdepth.tools")
PROG = "python tools/convert_fcrn.py"


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Convert the published NYU network for --init=nyu, or back with --reverse."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """CHECKPOINT OUT: a .npy file or a TensorFlow checkpoint's prefix, and a name."""
    reverse: bool = False
    """From converted weights, or a run's work directory, to the published .npy."""
    padding_side: Literal["top_left", "bottom_right"] = "top_left"
    """Where its up-convolutions pad: top_left for NYU, bottom_right for Make3D."""


def command(argv: Sequence[str]) -> int:
    """Convert as the flags say; returns the exit code."""
    config = cli.parse(ConvertConfig, argv, prog=PROG)
    if len(config.files) != 2:
        raise UserError(f"give CHECKPOINT OUT: {len(config.files)} names were given")
    source, out = config.files[0], Path(config.files[1])
    files.refuse_existing(out)
    return _back(source, out) if config.reverse else _convert(source, out, config)


def _convert(source: str, out: Path, config: ConvertConfig) -> int:
    converted = fcrn.convert(fcrn.read(source))
    arrays = converted.checked(source, "the published network")
    path = Path(source)
    weights = files.Weights.of_layout(
        arrays,
        "fcrn" if config.padding_side == "top_left" else "fcrn_make3d",
        init="nyu",
        origin=path.name,
        sha256=files.sha256(path) if path.is_file() else "of several files, not taken",
        licence=fcrn.LICENCE,
    )
    files.write(out, weights)
    parameters = sum(
        x.size for name, x in weights.arrays.items() if name.startswith("params/")
    )
    logger.info("%s: %d arrays, %d parameters", out, len(weights.arrays), parameters)
    logger.info("use it: --init=nyu --layout=%s --weights=%s", weights.layout, out)
    return cli.OK


def _back(source: str, out: Path) -> int:
    if Path(source).is_dir():
        network = jaxdepth.load(source)
        layout = network.config.layout
        arrays = {k: np.asarray(x) for k, x in flatten(network.variables).items()}
    else:
        weights = files.read(source)
        layout, arrays = weights.layout, dict(weights.arrays)
    missing = sorted(set(fcrn.shapes()) - set(arrays))
    if not layout.startswith("fcrn") or missing:
        raise UserError(f"{source} is of layout {layout}, not of a whole fcrn network")
    content = np.array(fcrn.to_dictionary(arrays), dtype=object)
    with writers.replacing(out) as file:
        np.lib.format.write_array(file, content, version=(1, 0), allow_pickle=True)
    logger.info("%s: the published form, %d layers", out, len(content.item()))
    return cli.OK


if __name__ == "__main__":
    cli.main(command)
