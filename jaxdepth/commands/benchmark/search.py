"""Search for the batch size with the most images per second."""

import dataclasses
import gc
import time
from collections.abc import Callable

from jaxdepth.commands.benchmark.machine import is_out_of_memory
from jaxdepth.runtime.errors import UserError

GAIN = 1.01  # smaller gains in the rate count as none


@dataclasses.dataclass
class Search:
    """Result of a search.

    Attributes:
      rates: batch size -> images per second, of the sizes that ran.
      full: the smallest size that did not fit into memory, None if all did.
      late: whether the time limit ended the search.
    """

    rates: dict[int, float] = dataclasses.field(default_factory=dict)
    full: int | None = None
    late: bool = False

    @property
    def best(self) -> int:
        """The smallest batch size within 1 % of the best rate."""
        top = max(self.rates.values())
        return min(b for b, rate in self.rates.items() if rate * GAIN >= top)

    def reason(self) -> str:
        """Why the search tried no larger size."""
        if self.full is not None:
            return f"{self.full} does not fit"
        return "time limit reached" if self.late else "no larger one was faster"


def best_batch(
    measure: Callable[[int], float],
    *,
    start: int,
    multiple: int,
    limit: int,
    seconds: float,
) -> Search:
    """Double the batch size while it fits and the rate grows, then try one between.

    If the first size does not fit, it is halved until one does. The last size tried is
    half way between the largest that fits and the smallest that does not.

    Args:
      measure: batch size -> images per second; raises an error for which
        `is_out_of_memory` holds if memory does not suffice.
      start: the first size.
      multiple: divisor of all sizes.
      limit: the largest size.
      seconds: time limit for starting another size.

    Raises: UserError if no size fits.
    """
    result, began = Search(), time.monotonic()

    def attempt(batch: int) -> bool:
        try:
            result.rates[batch] = measure(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            result.full = batch
        # The traceback of a failed attempt refers to its arrays.
        gc.collect()
        return batch in result.rates

    def in_time() -> bool:
        result.late = time.monotonic() - began >= seconds
        return not result.late

    batch = start
    while not attempt(batch):
        smaller = batch // 2 // multiple * multiple
        if not smaller:
            raise UserError(f"--batch_size=best: a batch of {batch} does not fit")
        batch = smaller
    limit = min(limit, (result.full or limit + 1) - 1)
    while 2 * batch <= limit and in_time() and _grows(result.rates):
        if not attempt(2 * batch):
            break
        batch *= 2
    if result.full is not None:
        between = (batch + result.full) // 2 // multiple * multiple
        if batch < between < result.full and in_time():
            attempt(between)
    return result


def _grows(rates: dict[int, float]) -> bool:
    """Whether one of the last two doublings increased the rate."""
    values = list(rates.values())
    return len(values) < 3 or max(values[-2:]) > GAIN * values[-3]
