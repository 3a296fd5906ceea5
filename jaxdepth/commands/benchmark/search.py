"""The batch of most images per second: doubled while there is memory and a gain."""

import dataclasses
import gc
import time
from collections.abc import Callable

from jaxdepth.commands.benchmark.machine import is_out_of_memory
from jaxdepth.runtime.errors import UserError

GAIN = 1.01  # a batch must be so much better to count as better


@dataclasses.dataclass
class Search:
    """What was found.

    Attributes:
      rates: batch -> images per second, of those that ran.
      full: the smallest batch that did not fit, None where all did.
      late: time ended it.
    """

    rates: dict[int, float] = dataclasses.field(default_factory=dict)
    full: int | None = None
    late: bool = False

    @property
    def best(self) -> int:
        """The smallest batch within a hundredth of the best rate."""
        top = max(self.rates.values())
        return min(b for b, rate in self.rates.items() if rate * GAIN >= top)

    def why(self) -> str:
        """Why there was no larger batch."""
        if self.full is not None:
            return f"{self.full} does not fit"
        return "time was up" if self.late else "no larger one was faster"


def best_batch(
    measure: Callable[[int], float],
    *,
    start: int,
    multiple: int,
    limit: int,
    seconds: float,
) -> Search:
    """Double from `start` while it fits and pays, then try half way to what didn't fit.

    Args:
      measure: batch -> images per second. Where memory does not suffice it raises what
        `is_out_of_memory` knows.
      multiple: that batches must be of.
      limit: the largest to try.
      seconds: after which no other batch is begun.

    Raises: UserError where not even `start` fits.
    """
    found, began = Search(), time.monotonic()

    def attempt(batch: int) -> bool:
        try:
            found.rates[batch] = measure(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found.full = batch
        # The arrays of a failed attempt hang on its traceback.
        gc.collect()
        return batch in found.rates

    def in_time() -> bool:
        found.late = time.monotonic() - began >= seconds
        return not found.late

    batch = start
    if not attempt(batch):
        raise UserError(f"not even a batch of {start} fits into memory")
    while (
        2 * batch <= limit and in_time() and _pays(found.rates) and attempt(2 * batch)
    ):
        batch *= 2
    if found.full is not None:
        between = (batch + found.full) // 2 // multiple * multiple
        if batch < between < found.full and in_time():
            attempt(between)
    return found


def _pays(rates: dict[int, float]) -> bool:
    """Whether one of the last two doublings brought anything."""
    values = list(rates.values())
    return len(values) < 3 or max(values[-2:]) > GAIN * values[-3]
