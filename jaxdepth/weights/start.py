"""Weights into a fresh state: what `--init` and `--weights` do."""

import dataclasses

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxdepth.errors import UserError
from jaxdepth.models.layouts import layout_named
from jaxdepth.train_state import PyTree, TrainState, flatten
from jaxdepth.weights.files import Weights
from jaxdepth.weights.tables import Entry, compare

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
        if path.split("/")[1] in parts
    }
    theirs = {
        path: x for path, x in weights.arrays.items() if path.split("/")[1] in parts
    }
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


def _check_layout(weights: Weights, layout: str, where: str) -> None:
    if weights.layout != layout:
        raise UserError(
            f"{where} is of layout {weights.layout}, and --layout={layout} was asked "
            f"for: give --layout={weights.layout}"
        )
    settings = layout_named(layout)
    for name in ("rgb_mean", "rgb_std"):
        theirs, ours = getattr(weights, name), getattr(settings, name)
        if not np.allclose(theirs, ours, rtol=1e-6):
            raise UserError(
                f"{where} wants its input normalised by {name} {theirs}, layout "
                f"{layout} by {ours}"
            )
