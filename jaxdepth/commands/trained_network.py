"""Parameters of a network to export, from a run or from converted weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdepth import predictor as predictor_lib
from jaxdepth.runtime.errors import UserError
from jaxdepth.training.state import flatten
from jaxdepth.weights import files, packed


@dataclasses.dataclass(frozen=True)
class Network:
    """Parameters and batch statistics of `upproj`.

    Attributes:
      arrays: arrays by path; at least those of the encoder.
      layout: layout of the network.
      unpool: unpooling of the up-convolutions.
      origin: source of the arrays, as text.
    """

    arrays: Mapping[str, np.ndarray]
    layout: str
    unpool: str
    origin: str


def read(source: str, *, step: str = "best") -> Network:
    """Read a network from a run's work directory, or from converted weights.

    Args:
      source: work directory, or file of converted weights.
      step: step of the run's checkpoint, as in `jaxdepth.load`.

    Raises: UserError if there is no network, or if its --arch is not upproj.
    """
    file = packed.find(source)
    if file is not None and not packed.is_packed(file):
        weights = files.read(source)
        return Network(weights.arrays, weights.layout, "zero", weights.origin)
    network = predictor_lib.load(source, step=step)
    config = network.config
    if config.model.arch != "upproj":
        raise UserError(
            f"{source} is of --arch={config.model.arch}: only upproj can be exported"
        )
    if config.model.skips or config.model.output_stride != 32:
        raise UserError(
            f"{source} was trained with --skips or --output_stride: files of PyTorch "
            "and FCRN can't describe it"
        )
    arrays = {path: np.asarray(x) for path, x in flatten(network.variables).items()}
    origin = f"jaxdepth, {Path(source).name}, step {network.step}"
    return Network(arrays, config.model.layout, config.model.unpool, origin)
