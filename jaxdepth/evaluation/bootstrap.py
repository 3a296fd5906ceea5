"""Bootstrap intervals over images or scenes, of one run or of a pair of runs.

A resample draws n of the n units with replacement. Units are images, or whole scenes,
because the frames of a scene are similar. An interval lies between two percentiles of
the metric over the resamples (Efron and Tibshirani, "An Introduction to the Bootstrap",
1993, chapter 13). Two runs are compared on the same resamples, so that images that are
hard for both cancel out.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxdepth.evaluation import metrics
from jaxdepth.evaluation.metrics import METRICS, Averaging, Sums

LEVEL = 0.95
RESAMPLES = 10_000
CHUNK = 4_000_000  # units drawn at a time: 100 MB


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Random resamples of images or scenes.

    Attributes:
      unit: "image" or "scene".
      units: number of units.
      of_image: (images,) unit of each image, -1 for images without ground truth.
      seed: seed of the draws.
      count: number of resamples.
    """

    unit: str
    units: int
    of_image: np.ndarray
    seed: int = 0
    count: int = RESAMPLES

    def weights(self) -> Iterator[Float[np.ndarray, "r u"]]:
        """Yield how often each resample drew each unit, some resamples at a time."""
        rng = np.random.default_rng(self.seed)
        most = max(1, CHUNK // max(1, self.units))
        for first in range(0, self.count, most):
            count = min(most, self.count - first)
            drawn = rng.integers(0, self.units, (count, self.units))
            rows = np.arange(count)[:, None] * self.units
            flat = np.bincount((rows + drawn).ravel(), minlength=count * self.units)
            yield flat.reshape(count, self.units).astype(np.float64)


def over_images(sums: Sums, **options: int) -> Resamples:
    """Resamples of the images with ground truth."""
    scored = sums.table["count"] > 0
    of_image = np.where(scored, np.cumsum(scored) - 1, -1)
    return Resamples("image", int(scored.sum()), of_image, **options)


def over_scenes(
    sums: Sums, scenes: Sequence[str | None], **options: int
) -> Resamples | None:
    """Resamples of scenes; None if a scene is unknown or there is only one."""
    scored = sums.table["count"] > 0
    scored_scenes = [scenes[int(k)] for k in np.flatnonzero(scored)]
    if None in scored_scenes or len(set(scored_scenes)) < 2:
        return None
    names, units = np.unique(np.array(scored_scenes, str), return_inverse=True)
    of_image = np.full(len(scenes), -1)
    of_image[scored] = units
    return Resamples("scene", len(names), of_image, **options)


def resampled(
    sums: Sums, averaging: Averaging, resamples: Resamples
) -> dict[str, Float[np.ndarray, "r"]]:
    """The metrics of every resample; NaN if one is undefined."""
    inside = resamples.of_image >= 0
    table = {k: x[inside] for k, x in sums.table.items()}
    units = resamples.of_image[inside]

    def by_unit(x: np.ndarray) -> np.ndarray:
        return np.bincount(units, x, resamples.units)

    if averaging == "pooled":
        total = _drawn(resamples, {k: by_unit(x) for k, x in table.items()})
        return metrics.values(total)
    each = metrics.values(table)
    bad = {name: ~np.isfinite(x) for name, x in each.items()}
    parts = {"images": by_unit(np.ones(len(units)))}
    for name, x in each.items():
        parts[name] = by_unit(np.where(bad[name], 0.0, x))
        parts[f"bad {name}"] = by_unit(bad[name].astype(float))
    total = _drawn(resamples, parts)
    # NaN if the metric is undefined for an image that was drawn.
    return {
        name: np.where(total[f"bad {name}"] > 0, np.nan, total[name] / total["images"])
        for name in each
    }


def _drawn(
    resamples: Resamples, sums: dict[str, np.ndarray]
) -> dict[str, Float[np.ndarray, "r"]]:
    """Sums over the units that each resample drew."""
    columns = np.stack(list(sums.values()), axis=1)
    rows = np.concatenate([weights @ columns for weights in resamples.weights()])
    return dict(zip(sums, rows.T, strict=True))


def interval(values: Float[np.ndarray, "r"]) -> list[float] | None:
    """[low, high] of the central 95 % of the resamples; None if one is undefined."""
    if not np.isfinite(values).all():
        return None
    tail = (1 - LEVEL) / 2
    return [float(x) for x in np.quantile(values, (tail, 1 - tail))]


def of_one(sums: Sums, averaging: Averaging, resamples: Resamples) -> dict[str, Any]:
    """The intervals of one run: `metrics` {name: [low, high] | None} and the method."""
    if resamples.units < 2:
        return _method(resamples) | {"metrics": dict.fromkeys(METRICS)}
    values = resampled(sums, averaging, resamples)
    return _method(resamples) | {"metrics": {k: interval(x) for k, x in values.items()}}


def of_pair(
    a: Sums, b: Sums, averaging: Averaging, resamples: Resamples
) -> dict[str, Any]:
    """Run `a` against run `b` on the same images, in the same order.

    Returns: the method, and per metric `a`, `b`, `difference` (a - b), `interval` of
      the difference, `a_better`, the share of resamples in which a is better; ties
      count half. All of them are None if one is undefined, or if there are fewer than
      two units.
    """
    if resamples.units < 2:
        left = right = dict.fromkeys(METRICS, np.array([np.nan]))
    else:
        left, right = (resampled(x, averaging, resamples) for x in (a, b))
    values_a, values_b = a.compute(averaging), b.compute(averaging)
    comparison: dict[str, Any] = {}
    for name, metric in METRICS.items():
        difference = left[name] - right[name]
        value_a, value_b = values_a[name], values_b[name]
        entry: dict[str, Any] = dict.fromkeys(("difference", "interval", "a_better"))
        finite = np.isfinite(difference).all()
        if value_a is not None and value_b is not None and finite:
            better = difference > 0 if metric.larger_is_better else difference < 0
            entry = {
                "difference": value_a - value_b,
                "interval": interval(difference),
                "a_better": float(np.mean(better) + np.mean(difference == 0) / 2),
            }
        comparison[name] = {"a": value_a, "b": value_b, **entry}
    return _method(resamples) | {"metrics": comparison}


def _method(resamples: Resamples) -> dict[str, Any]:
    """The method of an interval."""
    return {
        "unit": resamples.unit,
        "units": resamples.units,
        "resamples": resamples.count,
        "seed": resamples.seed,
        "level": LEVEL,
    }
