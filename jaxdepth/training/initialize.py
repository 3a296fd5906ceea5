"""Initialisation from converted weights: `--init` and `--weights`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxdepth.models.layouts import LAYOUTS, layout_named
from jaxdepth.runtime.errors import UserError
from jaxdepth.training.state import PyTree, TrainState, flatten
from jaxdepth.weights.files import Weights
from jaxdepth.weights.name_tables import Entry, compare

_PARTS = {"imagenet": ("encoder",), "nyu": ("encoder", "decoder", "head")}


def start_from(
    state: TrainState, weights: Weights, *, init: str, layout: str, where: str
) -> TrainState:
    """Replace arrays of the state by those of `weights`.

    Args:
      state: fresh state; its optimizer state does not depend on the parameters.
      weights: result of `files.read`.
      init: "imagenet" (the encoder, with its statistics) or "nyu" (everything).
      layout: layout of the network to train.
      where: path of the weights, for messages.

    Raises: UserError for weights of another network, layout or normalisation.
    """
    if weights.init != init:
        raise UserError(
            f"--init={init}: {where} holds weights for --init={weights.init}"
        )
    _check_layout(weights, layout, where)
    parts = _PARTS[init]
    shapes = {
        path: tuple(x.shape)
        for path, x in flatten(state.variables).items()
        if _part(path) in parts
    }
    arrays = {path: x for path, x in weights.arrays.items() if _part(path) in parts}
    same = [Entry(path, path) for path in sorted(shapes)]
    mismatch = compare(same, arrays, shapes)
    if mismatch:
        raise UserError(
            f"{where} holds weights of another network: {mismatch.summary()}"
        )

    def replaced(collection: str, tree: PyTree) -> PyTree:
        flat = flatten(tree)
        new = {k: arrays.get(f"{collection}/{k}", x) for k, x in flat.items()}
        return unflatten_dict(new, sep="/")

    return dataclasses.replace(
        state,
        params=replaced("params", state.params),
        batch_stats=replaced("batch_stats", state.batch_stats),
    )


def _part(path: str) -> str:
    """The part of the network in a path: "encoder" of `params/encoder/...`."""
    return path.split("/")[1] if "/" in path else ""


def _check_layout(weights: Weights, layout: str, where: str) -> None:
    wanted = dataclasses.asdict(layout_named(layout))
    if weights.layout not in LAYOUTS:
        raise UserError(f"{where} has layout {weights.layout}, which is unknown")
    if weights.layout != layout:
        stored = dataclasses.asdict(LAYOUTS[weights.layout])
        raise UserError(
            f"{where} has layout {weights.layout}, which differs from "
            f"--layout={layout} ({_differences(stored, wanted)}): "
            f"give --layout={weights.layout}"
        )
    for name in ("rgb_mean", "rgb_std"):
        stored, expected = getattr(weights, name), wanted[name]
        same = len(stored) == len(expected)
        if not same or not np.allclose(stored, expected, rtol=1e-6):
            raise UserError(
                f"{where} needs input normalised by {name} {stored}, layout {layout} "
                f"uses {expected}"
            )


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The fields in which two layouts differ, with both values."""
    return ", ".join(
        f"{name} {stored[name]} and not {wanted[name]}"
        for name in wanted
        if stored[name] != wanted[name]
    )
