"""Scores of a set of images under one protocol."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxdepth.evaluation import breakdown, metrics
from jaxdepth.evaluation.protocols import Size


@dataclasses.dataclass
class Scores:
    """Scores under one protocol: sums per image.

    Attributes:
      sums: one row per image.
      parts: the same for each of `breakdown.PARTS`, by name.
      names: names of the images, in the order of `sums`.
      scenes: scene of each image, None if unknown.
      truths: kinds of ground truth used, "filled" or "raw".
      sizes: frame sizes.
      factors: of each image, the factor of `camera.depth_factor` by which predictions
        were multiplied; None if its focal length or that of the training is unknown.
    """

    sums: metrics.Sums = dataclasses.field(default_factory=metrics.Sums)
    parts: dict[str, metrics.Sums] = dataclasses.field(
        default_factory=lambda: {name: metrics.Sums() for name in breakdown.PARTS}
    )
    names: list[str] = dataclasses.field(default_factory=list)
    scenes: list[str | None] = dataclasses.field(default_factory=list)
    truths: set[str] = dataclasses.field(default_factory=set)
    sizes: set[Size] = dataclasses.field(default_factory=set)
    factors: list[float | None] = dataclasses.field(default_factory=list)

    def merge(self, other: "Scores") -> None:
        """Append the scores of another part of the set, such as another host's."""
        if len(other.sums):
            self.sums.merge(other.sums)
            for name, sums in self.parts.items():
                sums.merge(other.parts[name])
        self.names += other.names
        self.scenes += other.scenes
        self.truths |= other.truths
        self.sizes |= other.sizes
        self.factors += other.factors

    def to_json(self) -> dict[str, Any]:
        """A JSON value that holds the scores exactly."""
        return {
            "sums": self.sums.to_json(),
            "parts": {name: sums.to_json() for name, sums in self.parts.items()},
            "names": self.names,
            "scenes": self.scenes,
            "truths": sorted(self.truths),
            "sizes": sorted(self.sizes),
            "factors": self.factors,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Scores":
        """The inverse of `to_json`."""
        return cls(
            sums=metrics.Sums.from_json(values["sums"]),
            parts={k: metrics.Sums.from_json(x) for k, x in values["parts"].items()},
            names=list(values["names"]),
            scenes=list(values["scenes"]),
            truths=set(values["truths"]),
            sizes={(height, width) for height, width in values["sizes"]},
            factors=list(values["factors"]),
        )

    def select(self, order: Sequence[int] | np.ndarray) -> "Scores":
        """The scores of the images at these indices, in this order."""
        return dataclasses.replace(
            self,
            sums=self.sums.select(order),
            parts={name: sums.select(order) for name, sums in self.parts.items()},
            names=[self.names[i] for i in order],
            scenes=[self.scenes[i] for i in order],
            factors=[self.factors[i] for i in order],
        )

    @property
    def camera_factor(self) -> dict[str, Any]:
        """Smallest and largest of the known factors, and the number of unknown ones."""
        known = [factor for factor in self.factors if factor is not None]
        return {
            "min": min(known, default=None),
            "max": max(known, default=None),
            "unknown": len(self.factors) - len(known),
        }

    def by_part(self, averaging: metrics.Averaging) -> dict[str, Any]:
        """Pixels, images and metrics of each of `breakdown.PARTS`."""
        return {
            name: {
                "pixels": sums.counts["pixels"],
                "images": sums.images,
                "metrics": sums.compute(averaging),
            }
            for name, sums in self.parts.items()
        }

    def table(self) -> list[dict[str, Any]]:
        """One dict per image: `name`, `scene`, `pixels`, metrics, counted pixels."""
        rows = zip(self.names, self.scenes, self.sums.per_image(), strict=True)
        return [{"name": name, "scene": scene} | row for name, scene, row in rows]


def merged(shares: Sequence[Mapping[str, Any]]) -> Scores:
    """The scores of the whole set from shares; share k of n has every n-th image."""
    merged = Scores()
    for share in shares:
        merged.merge(Scores.from_json(share))
    indices = [
        k + i * len(shares)
        for k, share in enumerate(shares)
        for i in range(len(share["names"]))
    ]
    return merged.select(np.argsort(indices))
