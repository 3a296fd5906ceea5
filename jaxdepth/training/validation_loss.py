"""Validation loss: the training loss on the evaluation frames."""

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
    """The loss over the evaluation frames, computed as in a training step.

    Uses the training size, the centre crop, running statistics, no dropout, and the
    kind of ground truth used for training, or the other kind if that is missing. On
    multi-host runs each host evaluates its share of the frames; all get the result.

    Args:
      config: resolved configuration.
      model: network.
      data: data set; its evaluation frames are used.
      devices: devices of this host, over which batches are sharded.
      batch_size: images per call, rounded up to a multiple of the devices.

    Attributes:
      available: whether the frames are at least as large as the training frame.
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
        self.available = all(a >= b for a, b in zip(stored, frame, strict=True))
        self._batch_size = -(-batch_size // len(devices)) * len(devices)
        mesh = Mesh(np.array(devices), ("batch",))
        self._sharded = NamedSharding(mesh, PartitionSpec("batch"))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        unit = data.evaluation.depth_unit
        spec = StepSpec(model, optax.identity(), config, depth_unit=unit)
        self._sums = jax.jit(
            functools.partial(validation_sums, spec),
            compiler_options=platform.compiler_options(),
        )

    def __call__(self, variables: PyTree) -> float | None:
        """The mean over images with ground truth; None without any."""
        if not self.available:
            return None
        variables = jax.device_put(variables, self._replicated)
        store = self._data.evaluation
        rows = self._data.eval_rows[hosts.index() :: hosts.count()]
        depth = self._data.depth
        kind = depth if depth in store.depths else store.depths[0]
        batch_totals, batch_images = [], []
        for k in range(0, len(rows), self._batch_size):
            rgb, depth_codes = store.gather(rows[k : k + self._batch_size], depth=kind)
            batch = {"rgb": self._padded(rgb), "depth_codes": self._padded(depth_codes)}
            total, images = self._sums(variables, jax.device_put(batch, self._sharded))
            batch_totals.append(float(total))
            batch_images.append(float(images))
        shares = hosts.gather([batch_totals, batch_images])
        total = math.fsum(x for totals, _ in shares for x in totals)
        images = sum(n for _, counts in shares for n in counts)
        return total / images if images else None

    def _padded(self, frames: np.ndarray) -> np.ndarray:
        """A full batch; padding frames have no ground truth, so they do not count."""
        short = self._batch_size - len(frames)
        return np.pad(frames, [(0, short)] + [(0, 0)] * (frames.ndim - 1))
