"""A network that is to be written in somebody else's form: of a run, or converted."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxdepth import predictor as predictor_lib
from jaxdepth.runtime.errors import UserError
from jaxdepth.training.state import flatten
from jaxdepth.weights import files


@dataclasses.dataclass(frozen=True)
class Network:
    """Arrays of `upproj` and what they mean something in.

    Attributes:
      arrays: by path; the encoder at least.
      layout: its layout.
      unpool: how its up-convolutions unpool.
      origin: where it comes from, for people.
    """

    arrays: Mapping[str, np.ndarray]
    layout: str
    unpool: str
    origin: str


def read(source: str, *, step: str = "best") -> Network:
    """The network of a run's work directory, or of converted weights.

    Args:
      step: of a run, as in `jaxdepth.load`.

    Raises UserError where there is none, or it is of another --arch.
    """
    if "://" not in source and not files.expanded(source).is_dir():
        weights = files.read(source)
        return Network(weights.arrays, weights.layout, "zero", weights.origin)
    network = predictor_lib.load(source, step=step)
    config = network.config
    if config.model.arch != "upproj":
        raise UserError(
            f"{source} is of --arch={config.model.arch}: only upproj is known elsewhere"
        )
    arrays = {path: np.asarray(x) for path, x in flatten(network.variables).items()}
    origin = f"jaxdepth, {Path(source).name}, step {network.step}"
    return Network(arrays, config.model.layout, config.model.unpool, origin)
