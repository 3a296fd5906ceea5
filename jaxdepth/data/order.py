"""Which frames step k of seed s takes: pure functions, no state to save."""

import functools

import numpy as np
from jaxtyping import Int


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, "n"]:
    """The order of epoch `epoch`: each of 0..n-1 once."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.random.Generator(bits).permutation(n)
    order.setflags(write=False)  # it is shared
    return order


def rows_of_step(seed: int, step: int, batch_size: int, n: int) -> Int[np.ndarray, "b"]:
    """Rows of the batch that follows `step` steps.

    Epochs follow each other without a gap: place p of the stream, counted from 0, is
    entry p mod n of epoch p // n, so a batch may end one epoch and begin the next.
    """
    places = step * batch_size + np.arange(batch_size)
    epochs, within = np.divmod(places, n)
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = permutation(seed, int(epoch), n)[within[here]]
    return rows


def first_in_seed_order(seed: int, n: int, count: int) -> Int[np.ndarray, "c"]:
    """The first `count` of n rows in the order of the seed's first epoch."""
    return permutation(seed, 0, n)[:count]


def host_slice(batch_size: int, host: int, hosts: int) -> slice:
    """The places of the global batch that a host brings."""
    each, rest = divmod(batch_size, hosts)
    if rest:
        raise ValueError(f"a batch of {batch_size} does not divide over {hosts} hosts")
    return slice(host * each, (host + 1) * each)
