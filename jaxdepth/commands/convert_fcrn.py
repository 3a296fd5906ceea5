"""The published NYU network (FCRN) to weights for `--init=nyu`, and back.

    jaxdepth convert-fcrn NYU_ResNet-UpProj.npy nyu.safetensors
    jaxdepth convert-fcrn NYU_FCRN.ckpt nyu.safetensors
    jaxdepth convert-fcrn --reverse nyu.safetensors NYU_ResNet-UpProj.npy

Reads the Python 2 pickle without running code in it. --reverse also takes the work
directory of a run of --layout=fcrn.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxdepth.commands import cli, trained_network
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag
from jaxdepth.weights import fcrn, files

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth convert-fcrn"


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Convert the published NYU network for --init=nyu, or back with --reverse."""

    files: tuple[str, ...] = flag(positional=True)
    """CHECKPOINT OUT: a .npy file or a TensorFlow checkpoint (its prefix, or its
    folder), and OUT.safetensors; with --reverse converted weights or a run's work
    directory, and OUT.npy."""
    reverse: bool = False
    """From converted weights, or a run's work directory, to the published .npy."""
    padding_side: Literal["top_left", "bottom_right"] = "top_left"
    """Where its up-convolutions pad: top_left for NYU, bottom_right for Make3D."""
    step: str = "best"
    """Of a work directory: best, last or a number."""


def command(argv: Sequence[str]) -> int:
    """Convert as the flags say; returns the exit code."""
    config = flags_lib.parse(ConvertConfig, argv, prog=PROG)
    if len(config.files) != 2:
        raise UserError(f"give CHECKPOINT OUT: {len(config.files)} names were given")
    source = config.files[0]
    out = files.output(config.files[1], ".npy" if config.reverse else ".safetensors")
    if config.reverse:
        return _back(source, out, step=config.step)
    return _convert(source, out, padding_side=config.padding_side)


def _convert(source: str, out: Path, *, padding_side: str) -> int:
    parts = fcrn.parts(source)
    converted = fcrn.convert(fcrn.read(source))
    arrays = converted.checked(source, "the published network")
    weights = files.Weights.of_layout(
        arrays,
        "fcrn" if padding_side == "top_left" else "fcrn_make3d",
        init="nyu",
        # The checksum is of these files, one after the other.
        origin=" + ".join(part.name for part in parts),
        sha256=files.sha256(*parts),
        licence=fcrn.LICENCE,
    )
    files.write(out, weights)
    parameters = sum(
        x.size for name, x in weights.arrays.items() if name.startswith("params/")
    )
    logger.info(
        "%s: %d arrays, %d parameters; sha256 of %s %s",
        out,
        len(weights.arrays),
        parameters,
        weights.origin,
        weights.sha256,
    )
    logger.info("use it: --init=nyu --layout=%s --weights=%s", weights.layout, out)
    return cli.OK


def _back(source: str, out: Path, *, step: str) -> int:
    network = trained_network.read(source, step=step)
    found = {path: x.shape for path, x in network.arrays.items()}
    whole = fcrn.shapes().items() <= found.items()
    if not network.layout.startswith("fcrn") or not whole:
        raise UserError(
            f"{source} is of layout {network.layout}, not of a whole fcrn network"
        )
    if network.unpool != "zero":
        raise UserError(
            f"{source} is of --unpool={network.unpool}, which the published form can't "
            "say: it unpools by zeros"
        )
    content = np.array(fcrn.to_dictionary(network.arrays), dtype=object)
    with files.writing(out) as file:
        np.lib.format.write_array(file, content, version=(1, 0), allow_pickle=True)
    logger.info("%s: the published form, %d layers", out, len(content.item()))
    return cli.OK
