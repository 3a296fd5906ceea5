"""The training state, and its exponential moving average."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxdepth.runtime.trees import PyTree as PyTree
from jaxdepth.runtime.trees import flatten as flatten


@flax.struct.dataclass
class TrainState:
    """Everything that training changes: a pytree, replicated on every device.

    Attributes:
      step: () int32, number of steps taken.
      params: parameters, float32.
      batch_stats: running means and (biased) variances, float32.
      opt_state: state of the optimizer.
      average: exponential moving averages (EMA) of `network`; None without `--ema`.
    """

    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree | None = None

    @property
    def network(self) -> dict[str, PyTree]:
        """Parameters and batch statistics that the next step starts from."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, PyTree]:
        """Variables for `model.apply`: the EMA if there is one."""
        return self.network if self.average is None else self.average

    def start_ema(self) -> "TrainState":
        """The state with an EMA that starts from its present values."""
        # Copied because the step donates its buffers.
        average = jax.tree.map(jnp.array, self.network)
        return dataclasses.replace(self, average=average)


def update_ema(
    average: PyTree, network: PyTree, *, decay: float, step: jax.Array | int
) -> PyTree:
    """The exponential moving average after one more step.

        average + (1 - d) (network - average),   d = min(decay, (1 + step)/(10 + step))

    so that the initial values lose their weight quickly. Batch statistics are averaged
    like parameters, not recomputed.

    Args:
      average, network: trees of the same structure, float32. Constant arrays stay
        bit for bit.
      decay: 0 to below 1; 0.99 averages about 100 steps.
      step: number of steps taken before this one.

    Source: Polyak and Juditsky 1992; d as `num_updates` of TensorFlow's
    ExponentialMovingAverage.
    """
    share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, x: a + share * (x - a), average, network)
