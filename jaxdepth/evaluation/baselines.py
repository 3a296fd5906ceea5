"""Baselines: predictions that do not depend on the image."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt16

from jaxdepth.data import units


@dataclasses.dataclass(frozen=True)
class Baselines:
    """Baselines from the training depth.

    Attributes:
      constant: mean of all valid training pixels, metres.
      constant_delta: the constant with the largest delta1 on the training pixels.
      mean_map: (H, W) float32 mean depth of each pixel of the training frame.
    """

    constant: float
    constant_delta: float
    mean_map: Float[np.ndarray, "h w"]


def fit(
    depth_codes: Iterable[UInt16[np.ndarray, "b h w"]],
    *,
    max_depth: float,
    depth_unit: int = 1000,
) -> Baselines:
    """Compute the baselines, in float64 and whole codes.

    Args:
      depth_codes: batches of codes, of one size; 0 and depth beyond `max_depth` are
        ignored.
      max_depth: metres.
      depth_unit: codes per metre; 1000: millimetres.

    Raises: ValueError without a valid pixel.
    """
    limit = units.last_code(max_depth, depth_unit)
    counts = np.zeros(limit + 1, np.int64)
    total = measured = np.zeros(())
    for depth in depth_codes:
        valid = (depth > 0) & (depth <= limit)
        counts += np.bincount(depth[valid], minlength=limit + 1)
        total = total + np.where(valid, depth, 0).sum(0, dtype=np.float64)
        measured = measured + valid.sum(0)
    if not counts.sum():
        raise ValueError("no valid training pixel")
    metres = np.arange(limit + 1) / depth_unit
    constant = float((counts * metres).sum() / counts.sum())
    # A pixel without any measurement gets the constant.
    means = total / np.maximum(measured, 1) / depth_unit
    mean_map = np.where(measured > 0, means, constant).astype(np.float32)
    return Baselines(constant, _best_for_delta1(counts) / depth_unit, mean_map)


def _best_for_delta1(counts: Float[np.ndarray, "n"] | np.ndarray) -> float:
    """The code c with the most ground truth t in c/1.25 < t < 1.25 c."""
    below = np.concatenate([[0], np.cumsum(counts)])  # below[k]: pixels below code k
    candidates = np.arange(1, len(counts))
    # Strictly inside: from floor(c / 1.25) + 1 to ceil(1.25 c) - 1, in whole codes.
    low = candidates * 4 // 5 + 1
    high = np.minimum(-(-candidates * 5 // 4), len(counts))
    inside = below[high] - below[low]
    best = np.flatnonzero(inside == inside.max())
    return float(candidates[best[len(best) // 2]])
