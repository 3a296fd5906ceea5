"""Metrics of depth maps, computed from sums that merge exactly.

The device sums each row of each image in float32: a few hundred terms, few enough to
keep the digits. The host adds the rows up to one float64 entry per image, from which
both averagings follow: over all pixels of the set, or the mean of the images' values.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxdepth.runtime.registry import Registry

Means = Mapping[str, np.ndarray]
"""Means of the per-pixel quantities over valid pixels, by name; per image or pooled."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """An entry of `METRICS`.

    Attributes:
      compute: means -> values, arrays of the same shape.
      undefined: predictions that make it undefined: "none", "nonfinite", "nonpositive"
        (which includes those that are not finite) or "rel" (those that make its
        denominator unusable).
      larger_is_better: direction.
      unit: "m" for metres, "" for none.
      in_summary: False keeps it out of the tables on the terminal, which have no room
        for all of them.
      pixel: (pred, target) -> per-pixel quantity whose mean `compute` takes under the
        metric's own name; None if it only uses the built-in ones.
    """

    compute: Callable[[Means], np.ndarray]
    undefined: Literal["none", "nonfinite", "nonpositive", "rel"] = "nonfinite"
    larger_is_better: bool = False
    unit: str = ""
    in_summary: bool = True
    pixel: Callable[[Array, Array], Array] | None = None


METRICS: Registry[Metric] = Registry("metric")
for _k in (1, 2, 3):
    METRICS.register(
        f"delta{_k}",
        Metric(lambda m, k=_k: m[f"delta{k}"], "none", larger_is_better=True),
    )
METRICS.register("abs_rel", Metric(lambda m: m["abs_rel"], "rel"))
METRICS.register("sq_rel", Metric(lambda m: m["sq_rel"], unit="m", in_summary=False))
METRICS.register("rmse", Metric(lambda m: np.sqrt(m["sq"]), unit="m"))
METRICS.register(
    "rmse_log",
    Metric(lambda m: np.sqrt(m["log_sq"]), "nonpositive", in_summary=False),
)
METRICS.register("log10", Metric(lambda m: m["log_abs"] / math.log(10), "nonpositive"))
METRICS.register(
    "silog",
    Metric(lambda m: 100 * np.sqrt(_log_spread(m)), "nonpositive", in_summary=False),
)


def _log_spread(means: Means) -> np.ndarray:
    return np.maximum(means["log_sq"] - means["log_sum"] ** 2, 0.0)


def register_metric(
    name: str,
    pixel: Callable[[Array, Array], Array],
    *,
    finish: Callable[[np.ndarray], np.ndarray] = lambda mean: mean,
    larger_is_better: bool = False,
    unit: str = "",
    undefined: Literal["nonfinite", "nonpositive"] = "nonfinite",
) -> None:
    """Register a metric that is a mean over pixels; every evaluation then has it.

    Register it before the first evaluation: compiled evaluations stay as they are.

        jaxdepth.register_metric("mae", lambda pred, target: jnp.abs(pred - target))

    Args:
      name: name of the metric.
      pixel: (pred, target) in metres, float32 arrays of one shape -> the quantity to
        average over valid pixels. It must be finite wherever the metric is defined.
      finish: applied to the mean, such as `np.sqrt`.
      larger_is_better: direction.
      unit: "m" for metres, "" for none.
      undefined: "nonpositive" for quantities such as logarithms: the metric is then
        None if any prediction is <= 0, and `pixel` receives positive values only.

    Raises: ValueError for a name that is registered already.
    """
    METRICS.register(
        name,
        Metric(
            lambda means: finish(means[name]),
            undefined,
            larger_is_better=larger_is_better,
            unit=unit,
            pixel=pixel,
        ),
    )


def larger_is_better() -> tuple[str, ...]:
    """Names of the metrics whose larger values are better."""
    return tuple(name for name, metric in METRICS.items() if metric.larger_is_better)


Averaging = Literal["pooled", "per_image"]
AVERAGINGS: tuple[Averaging, Averaging] = ("pooled", "per_image")
Rel = Literal["truth", "pred"]

# Counts of the pixels that make metrics undefined.
_COUNTS = ("nonpositive", "nonfinite")
# Metres; beyond this the sum of a row's squared errors overflows float32.
_HUGE = 1e12
_TINY = float(np.finfo(np.float32).tiny)


def row_sums(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
    rel: Rel = "truth",
) -> dict[str, Float[Array, "b h"]]:
    """Sums over the valid pixels of each image row, for `Sums.update`.

    A pure function, to be jitted. A prediction that is not finite (or beyond 1e12 m) is
    counted as `nonfinite` and excluded from all sums but the deltas, where it counts as
    wrong. A prediction <= 0 is counted as `nonpositive`, excluded from the logarithms,
    and wrong in the deltas.

    Args:
      pred: predicted depth, metres.
      target: measured depth, metres, > 0 where `valid`; any value elsewhere.
      valid: True where `target` counts.
      rel: denominator of `abs_rel`.

    Returns: float32 sums by name. `log_m2` sums squared deviations of log pred - log
      target from the row's mean, so that a common factor does not hide their spread in
      rounding errors.
    """
    return part_sums(pred, target, valid=valid, parts={"all": valid}, rel=rel)["all"]


def part_sums(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
    parts: Mapping[str, Bool[Array, "b h w"]],
    rel: Rel = "truth",
) -> dict[str, dict[str, Float[Array, "b h"]]]:
    """`row_sums` of several subsets of the valid pixels, which may overlap.

    Args:
      pred, target, valid, rel: as in `row_sums`.
      parts: name -> mask; pixels that are not `valid` count in none.
    """
    errors = _errors(pred, target, valid=valid, rel=rel)
    return {name: _totals(errors, valid & mask) for name, mask in parts.items()}


def _errors(
    pred: Array, target: Array, *, valid: Array, rel: Rel
) -> dict[str, Float[Array, "b h w"]]:
    """The per-pixel quantities to sum; finite for pixels that are not `valid`."""
    pred, target = pred.astype(jnp.float32), target.astype(jnp.float32)
    finite = jnp.abs(pred) <= _HUGE  # False for NaN
    positive = finite & (pred >= _TINY)
    t = jnp.where(valid, target, 1.0)
    p = jnp.where(valid & finite, pred, t)
    p_log = jnp.where(valid & positive, pred, t)
    error, log_diff = p - t, jnp.log(p_log) - jnp.log(t)
    ratio = jnp.maximum(p_log / t, t / p_log)
    quantities: dict[str, Array] = {
        f"delta{k}": positive & (ratio < 1.25**k) for k in (1, 2, 3)
    }
    quantities |= {
        "count": jnp.ones_like(t),
        "abs_rel": jnp.abs(error) / (t if rel == "truth" else p_log),
        "sq_rel": jnp.square(error) / t,
        "sq": jnp.square(error),
        "log_abs": jnp.abs(log_diff),
        "log_sum": log_diff,
        "nonpositive": finite & ~positive,
        "nonfinite": ~finite,
        # abs_rel is undefined as well if the prediction is its denominator.
        "rel_undefined": finite & ~positive & (rel == "pred"),
    }
    for name, metric in METRICS.items():
        if metric.pixel is not None:
            safe_pred = p_log if metric.undefined == "nonpositive" else p
            quantities[name] = metric.pixel(safe_pred, t)
    return {name: x.astype(jnp.float32) for name, x in quantities.items()}


def _totals(
    errors: Mapping[str, Float[Array, "b h w"]], mask: Bool[Array, "b h w"]
) -> dict[str, Float[Array, "b h"]]:
    def total(x: Array) -> Array:
        return jnp.sum(jnp.where(mask, x, 0.0), axis=2, dtype=jnp.float32)

    sums = {name: total(x) for name, x in errors.items()}
    mean = (sums["log_sum"] / jnp.maximum(sums["count"], 1.0))[:, :, None]
    return sums | {"log_m2": total(jnp.square(errors["log_sum"] - mean))}


class Sums:
    """A float64 table with one row per image; merging is exact for any batches."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, np.ndarray]] = []

    def update(
        self,
        rows: Mapping[str, Any],
        *,
        counted: Sequence[bool] | np.ndarray | None = None,
    ) -> None:
        """Add a batch.

        Args:
          rows: sums (b, h) of `row_sums`; further (b, h) sums appear in `counts`.
          counted: (b,) False for padding entries, which are excluded from all counts;
            default: no padding. (An image without a valid pixel is not padding; it is
            counted in `images_without_truth`.)
        """
        table = {name: np.asarray(x, np.float64) for name, x in rows.items()}
        # Convert the rows' second moments from their means to zero.
        n = np.maximum(table["count"], 1.0)
        table["log_sq"] = table.pop("log_m2") + table["log_sum"] ** 2 / n
        keep = slice(None) if counted is None else np.asarray(counted, bool)
        self._blocks.append({k: x.sum(axis=1)[keep] for k, x in table.items()})

    def to_json(self) -> dict[str, list[float]]:
        """A JSON value that holds the table exactly."""
        return {name: column.tolist() for name, column in self.table.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[float]]) -> "Sums":
        """The inverse of `to_json`."""
        sums = cls()
        sums._blocks = [{k: np.asarray(x, np.float64) for k, x in values.items()}]
        return sums

    def merge(self, other: "Sums") -> None:
        """Append the images of another table."""
        self._blocks.extend(other._blocks)

    def select(self, order: Sequence[int] | np.ndarray) -> "Sums":
        """The images at these indices, in this order."""
        selected = Sums()
        indices = np.asarray(order, int)
        selected._blocks = [{k: x[indices] for k, x in self.table.items()}]
        return selected

    @property
    def table(self) -> dict[str, np.ndarray]:
        """float64 sums per image, (images,) each; empty before the first update."""
        if len(self._blocks) > 1:
            names = self._blocks[0]
            joined = {k: np.concatenate([b[k] for b in self._blocks]) for k in names}
            self._blocks = [joined]
        return dict(self._blocks[0]) if self._blocks else {"count": np.zeros(0)}

    def __len__(self) -> int:
        """Number of images, with or without ground truth."""
        return len(self.table["count"])

    @property
    def images(self) -> int:
        """Number of images with a valid pixel, which averages are taken over."""
        return int(np.count_nonzero(self.table["count"]))

    @property
    def counts(self) -> dict[str, int]:
        """Counts that explain the metrics.

        `pixels` scored, `nonpositive` and `nonfinite` predictions among them,
        `images_without_truth`, and any further sums that `update` was given.
        """
        table = self.table
        built_in = {"count", *_summed(table), *_COUNTS, "rel_undefined"}
        names = [*_COUNTS, *(k for k in table if k not in built_in)]
        return {
            "pixels": round(math.fsum(table["count"])),
            **{k: round(math.fsum(table.get(k, ()))) for k in names},
            "images_without_truth": len(self) - self.images,
        }

    def compute(self, averaging: Averaging) -> dict[str, float | None]:
        """The metrics; None where one is undefined.

        delta_k: share of pixels with max(p/t, t/p) < 1.25^k (strictly);
        abs_rel: mean(|p - t| / t); sq_rel: mean((p - t)^2 / t) in metres;
        rmse: sqrt(mean((p - t)^2)) in metres; with e = ln p - ln t,
        rmse_log: sqrt(mean(e^2)); log10: mean(|e|) / ln 10;
        silog: 100 sqrt(mean(e^2) - mean(e)^2).

        rmse_log, log10 and silog are None if any prediction was <= 0, and all but the
        deltas if any was not finite. Everything is None without a valid pixel.

        Args:
          averaging: "pooled" takes the means over the valid pixels of all images;
            "per_image" takes them over each image's, then averages the images that
            have a valid pixel. If all images have the same number of valid pixels, the
            pooled rmse is at least the per-image rmse (Jensen's inequality).
        """
        table = self.table
        if averaging == "pooled":
            table = {k: np.array([math.fsum(x)]) for k, x in table.items()}
        scored = np.flatnonzero(table["count"])
        if not len(scored):
            return dict.fromkeys(METRICS)
        per_row = values({k: x[scored] for k, x in table.items()})
        return {k: _finite(_mean(x)) for k, x in per_row.items()}

    def per_image(self) -> list[dict[str, float | None]]:
        """For each image in order: `pixels`, the metrics, and the counted pixels."""
        if not len(self):
            return []
        table = self.table
        columns = {"pixels": table["count"], **values(table)}
        columns |= {k: table[k] for k in _COUNTS}
        return [
            {k: _finite(x[i]) for k, x in columns.items()} for i in range(len(self))
        ]


# Sums in a table that the built-in metrics are computed from.
_SUMMED = (
    "delta1", "delta2", "delta3", "abs_rel", "sq_rel", "sq", "log_abs", "log_sum",
    "log_sq",
)  # fmt: skip


def _summed(table: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the per-pixel quantities in a table."""
    registered = [name for name, metric in METRICS.items() if metric.pixel is not None]
    return [*_SUMMED, *(name for name in registered if name in table)]


def values(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The metrics of each row of a table of sums; NaN where undefined."""
    count = np.where(table["count"] > 0, table["count"], np.nan)
    means = {k: table[k] / count for k in _summed(table)}
    finite = np.where(table["nonfinite"] > 0, np.nan, 1.0)
    factors = {
        "none": np.ones_like(finite),
        "nonfinite": finite,
        "nonpositive": np.where(table["nonpositive"] > 0, np.nan, finite),
        "rel": np.where(table["rel_undefined"] > 0, np.nan, finite),
    }
    return {
        name: metric.compute(means) * factors[metric.undefined]
        for name, metric in METRICS.items()
        if metric.pixel is None or name in means
    }


def compute(
    pred: Float[np.ndarray | Array, "*b h w"],
    target: Float[np.ndarray | Array, "*b h w"],
    valid: Bool[np.ndarray | Array, "*b h w"] | None = None,
    *,
    averaging: Averaging = "pooled",
) -> dict[str, float | None]:
    """The metrics of predicted depth maps.

        jaxdepth.metrics.compute(pred, target)["rmse"]

    delta1, delta2, delta3, abs_rel, sq_rel [m], rmse [m], rmse_log, log10 and silog,
    then registered metrics; `Sums.compute` has the formulas. Nothing is clamped,
    cropped, resized or aligned: published numbers are those of a protocol, see
    `jaxdepth.protocols`.

    Args:
      pred: predicted depth, metres, (h, w) or (b, h, w).
      target: measured depth, metres, of the same shape; 0, negative or not finite
        where it is missing.
      valid: True for the measured pixels to use, of the same shape; default: all.
      averaging: "pooled" over the pixels of all images, or "per_image", the mean of
        the images' values.

    Returns: values by metric name; None for a metric that is undefined: all of them
      without a valid pixel, those with logarithms if a prediction is <= 0, and all but
      the deltas if one is not finite.
    Raises: ValueError if the shapes differ.
    Source: Eigen et al. 2014; silog as in the KITTI depth benchmark.
    """
    target = np.asarray(target)
    measured = np.isfinite(target) & (target > 0)
    valid = measured if valid is None else measured & np.asarray(valid, bool)
    if not np.shape(pred) == target.shape == valid.shape:
        raise ValueError(
            f"pred, target and valid differ in shape: {np.shape(pred)}, "
            f"{target.shape}, {valid.shape}"
        )
    batch = [
        jnp.asarray(x).reshape(-1, *target.shape[-2:]) for x in (pred, target, valid)
    ]
    sums = Sums()
    sums.update(row_sums(batch[0], batch[1], valid=batch[2]))
    return sums.compute(averaging)


def _mean(x: np.ndarray) -> float:
    """Exactly rounded, so that the order of the images does not matter."""
    return math.fsum(x) / len(x) if np.isfinite(x).all() else math.nan


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None
