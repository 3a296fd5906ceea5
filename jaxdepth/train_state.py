"""What a training step changes."""

from typing import Any

import flax.struct
from flax import traverse_util

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Everything that training changes; a pytree, replicated on every device.

    Attributes:
      step: () int32, how many steps were taken.
      params: parameters, float32.
      batch_stats: running means and (biased) variances, float32.
      opt_state: the optimizer's own state.
    """

    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def flatten(tree: PyTree) -> dict[str, Any]:
    """Nested dicts as one, by paths `a/b/c`."""
    return dict(traverse_util.flatten_dict(tree, sep="/"))
