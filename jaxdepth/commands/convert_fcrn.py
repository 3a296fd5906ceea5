"""`jaxdepth convert-fcrn`: the published NYU network (FCRN) to weights, and back.

    jaxdepth convert-fcrn NYU_ResNet-UpProj.npy nyu.safetensors
    jaxdepth convert-fcrn NYU_FCRN.ckpt nyu.safetensors
    jaxdepth convert-fcrn --reverse nyu.safetensors NYU_ResNet-UpProj.npy

Reads the Python 2 pickle without running code that it contains. The weights are for
`--init=nyu`. --reverse also accepts the work directory of a run with --layout=fcrn.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxdepth.commands import cli, trained_network
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag
from jaxdepth.weights import fcrn, files

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth convert-fcrn"


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Convert the published NYU network for --init=nyu.

    --reverse converts weights back to the published file format.
    """

    files: tuple[str, ...] = flag(positional=True)
    """CHECKPOINT OUT: a .npy file or a TensorFlow checkpoint (its prefix or folder),
    and OUT.safetensors; with --reverse converted weights or a run's work directory, and
    OUT.npy."""
    reverse: bool = False
    """Convert weights, or a run's work directory, to the published .npy file."""
    padding_side: Literal["top_left", "bottom_right"] = "top_left"
    """Padding side of the up-convolutions: top_left for NYU, bottom_right for
    Make3D."""
    step: str = "best"
    """Step of the run's checkpoint: best, last or a number."""


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags. Returns the exit code."""
    config = flags_lib.parse(ConvertConfig, argv, prog=PROG)
    if len(config.files) != 2:
        raise UserError(f"give CHECKPOINT OUT: {len(config.files)} names were given")
    source = config.files[0]
    out = files.output(config.files[1], ".npy" if config.reverse else ".safetensors")
    if config.reverse:
        return _convert_back(source, out, step=config.step)
    return _convert(source, out, padding_side=config.padding_side)


def _convert(source: str, out: Path, *, padding_side: str) -> int:
    """Convert the published network to weights for --init=nyu."""
    sources = fcrn.source_files(source)
    converted = fcrn.convert(fcrn.read(source))
    arrays = converted.checked(source, "the published network")
    weights = files.Weights.of_layout(
        arrays,
        "fcrn" if padding_side == "top_left" else "fcrn_make3d",
        init="nyu",
        # The checksum covers these files in this order.
        origin=" + ".join(path.name for path in sources),
        sha256=regular.sha256(*sources),
        licence=fcrn.LICENCE,
    )
    files.write(out, weights)
    parameters = sum(x.size for name, x in arrays.items() if name.startswith("params/"))
    logger.info(
        "%s: %d arrays, %d parameters; sha256 of %s %s",
        out,
        len(arrays),
        parameters,
        weights.origin,
        weights.sha256,
    )
    logger.info("use it: --init=nyu --layout=%s --weights=%s", weights.layout, out)
    return cli.OK


def _convert_back(source: str, out: Path, *, step: str) -> int:
    """Convert a run or converted weights to the published .npy file."""
    network = trained_network.read(source, step=step)
    shapes = {path: x.shape for path, x in network.arrays.items()}
    complete = fcrn.shapes().items() <= shapes.items()
    if not network.layout.startswith("fcrn") or not complete:
        raise UserError(
            f"{source} is of layout {network.layout}, not a complete fcrn network"
        )
    if network.unpool != "zero":
        raise UserError(
            f"{source} is of --unpool={network.unpool}, which the published format "
            "can't express: its networks have --unpool=zero"
        )
    content = np.array(fcrn.to_dictionary(network.arrays), dtype=object)
    with files.writing(out) as file:
        np.lib.format.write_array(file, content, version=(1, 0), allow_pickle=True)
    logger.info("%s: published format, %d layers", out, len(content.item()))
    return cli.OK
