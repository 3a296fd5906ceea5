"""Weights into a fresh state: what `--init` and `--weights` do."""

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
    """The state with the arrays of `weights` in place of its own.

    Args:
      state: fresh; its optimizer holds no memory of parameters.
      weights: of `files.read`.
      init: "imagenet" (the encoder, with its statistics) or "nyu" (everything).
      layout: of the network that is trained.
      where: the file, for messages.

    Raises UserError where they are of another network, layout or normalisation.
    """
    if weights.init != init:
        raise UserError(
            f"{where} holds weights for --init={weights.init}, not for --init={init}"
        )
    _check_layout(weights, layout, where)
    parts = _PARTS[init]
    mine = {
        path: tuple(x.shape)
        for path, x in flatten(state.variables).items()
        if _part(path) in parts
    }
    theirs = {path: x for path, x in weights.arrays.items() if _part(path) in parts}
    same = [Entry(path, path) for path in sorted(mine)]
    mismatch = compare(same, theirs, mine)
    if mismatch:
        raise UserError(f"{where} is of another network: {mismatch.summary()}")

    def replaced(collection: str, tree: PyTree) -> PyTree:
        flat = flatten(tree)
        new = {k: theirs.get(f"{collection}/{k}", x) for k, x in flat.items()}
        return unflatten_dict(new, sep="/")

    return dataclasses.replace(
        state,
        params=replaced("params", state.params),
        batch_stats=replaced("batch_stats", state.batch_stats),
    )


def _part(path: str) -> str:
    """Which part of a network `params/encoder/...` is of."""
    return path.split("/")[1] if "/" in path else ""


def _check_layout(weights: Weights, layout: str, where: str) -> None:
    wanted = dataclasses.asdict(layout_named(layout))
    if weights.layout not in LAYOUTS:
        raise UserError(f"{where} is of layout {weights.layout}, which is not known")
    if weights.layout != layout:
        theirs = dataclasses.asdict(LAYOUTS[weights.layout])
        raise UserError(
            f"{where} is of layout {weights.layout}, which differs from "
            f"--layout={layout} ({_differences(theirs, wanted)}): "
            f"give --layout={weights.layout}"
        )
    for name in ("rgb_mean", "rgb_std"):
        theirs, ours = getattr(weights, name), wanted[name]
        if len(theirs) != len(ours) or not np.allclose(theirs, ours, rtol=1e-6):
            raise UserError(
                f"{where} wants its input normalised by {name} {theirs}, layout "
                f"{layout} by {ours}"
            )


def _differences(theirs: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What of two layouts differs, field by field."""
    return ", ".join(
        f"{name} {theirs[name]} and not {wanted[name]}"
        for name in wanted
        if theirs[name] != wanted[name]
    )
