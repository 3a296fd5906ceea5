"""The training loss on frames that don't train: what its curve is compared with."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdepth.config import Config
from jaxdepth.data.dataset import Data
from jaxdepth.ops import platform
from jaxdepth.runtime import hosts
from jaxdepth.training.state import PyTree
from jaxdepth.training.step import StepSpec, validation_sums


class ValidationLoss:
    """The loss over the evaluation frames, taken as a training step takes it.

    At the training size, centre crop, running statistics, no dropout, truth of the
    kind that trains (the other where that isn't there). Compiled once. `batch_size`
    images per call, rounded up to a multiple of the devices. Of several hosts each
    takes its share of the frames, and all have the result.

    Args:
      config: settled.
      model: the run's network.
      data: whose evaluation frames count.
      devices: this host's devices to spread a batch over.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        data: Data,
        *,
        devices: Sequence[Any],
        batch_size: int = 8,
    ):
        self._data = data
        stored, frame = data.evaluation.size, config.frame_size
        # Frames of other data that would have to grow are none the network trained on.
        self.there = all(a >= b for a, b in zip(stored, frame, strict=True))
        self._batch_size = -(-batch_size // len(devices)) * len(devices)
        mesh = Mesh(np.array(devices), ("batch",))
        self._along = NamedSharding(mesh, PartitionSpec("batch"))
        self._whole = NamedSharding(mesh, PartitionSpec())
        spec = StepSpec(model, optax.identity(), config, None)
        self._sums = jax.jit(
            functools.partial(validation_sums, spec),
            compiler_options=platform.compiler_options(),
        )

    def __call__(self, variables: PyTree) -> float | None:
        """Mean over the images with truth; None where it can't be taken."""
        if not self.there:
            return None
        variables = jax.device_put(variables, self._whole)
        store = self._data.evaluation
        rows = self._data.eval_rows[hosts.index() :: hosts.count()]
        depth = self._data.depth
        kind = depth if depth in store.depths else store.depths[0]
        totals, counts = [], []
        for k in range(0, len(rows), self._batch_size):
            here = rows[k : k + self._batch_size]
            rgb, depth_mm = store.gather(here, depth=kind)
            batch = {"rgb": self._filled(rgb), "depth_mm": self._filled(depth_mm)}
            total, images = self._sums(variables, jax.device_put(batch, self._along))
            totals.append(float(total))
            counts.append(float(images))
        parts = hosts.gather([totals, counts])
        total = math.fsum(x for part, _ in parts for x in part)
        images = sum(n for _, part in parts for n in part)
        return total / images if images else None

    def _filled(self, part: np.ndarray) -> np.ndarray:
        """A whole batch: frames of zeros have no truth and do not count."""
        short = self._batch_size - len(part)
        return np.pad(part, [(0, short)] + [(0, 0)] * (part.ndim - 1))
