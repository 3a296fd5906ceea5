"""What a training step changes."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxdepth.runtime.trees import PyTree as PyTree
from jaxdepth.runtime.trees import flatten as flatten


@flax.struct.dataclass
class TrainState:
    """Everything that training changes; a pytree, replicated on every device.

    Attributes:
      step: () int32, how many steps were taken.
      params: parameters, float32.
      batch_stats: running means and (biased) variances, float32.
      opt_state: the optimizer's own state.
      average: running averages of the two, as `network` has them; None where none are
        kept.
    """

    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree | None = None

    @property
    def network(self) -> dict[str, PyTree]:
        """What the next step starts from."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `model.apply` takes: the average where one is kept."""
        return self.network if self.average is None else self.average

    def start_average(self) -> "TrainState":
        """The state with an average that begins here."""
        # Copies: a step is given the memory of its state, once.
        average = jax.tree.map(jnp.array, self.network)
        return dataclasses.replace(self, average=average)


def follow(
    average: PyTree, network: PyTree, *, decay: float, step: jax.Array | int
) -> PyTree:
    """The running average one step later.

        average + (1 - d) (network - average),   d = min(decay, (1 + step)/(10 + step))

    so that the start is soon forgotten. Batch statistics are averaged as parameters
    are, not measured anew.

    Args:
      average, network: trees alike, float32; arrays that never move stay bit for bit.
      decay: 0 to below 1; 0.99 looks back about 100 steps.
      step: steps taken before this one.

    Source: Polyak and Juditsky 1992; d as `num_updates` of TensorFlow's
    ExponentialMovingAverage.
    """
    share = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, x: a + share * (x - a), average, network)
