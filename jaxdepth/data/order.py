"""The order of training frames: pure functions of seed and step, without state."""

import functools

import numpy as np
from jaxtyping import Int


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> Int[np.ndarray, "n"]:
    """Return the order of an epoch: a permutation of 0..n-1, read-only."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    order = np.random.Generator(bits).permutation(n)
    order.setflags(write=False)  # callers share the cached array
    return order


def rows_of_step(seed: int, step: int, batch_size: int, n: int) -> Int[np.ndarray, "b"]:
    """Return the rows of the batch of step `step`, counted from 0.

    Epochs follow each other without a gap: index i of the stream of all epochs is
    entry i mod n of epoch i // n, so a batch may contain frames of two epochs.
    """
    indices = step * batch_size + np.arange(batch_size)
    epochs, within = np.divmod(indices, n)
    rows = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        rows[in_epoch] = permutation(seed, int(epoch), n)[within[in_epoch]]
    return rows


def first_in_seed_order(seed: int, n: int, count: int) -> Int[np.ndarray, "c"]:
    """Return the first `count` of n rows in the order of the seed's first epoch."""
    return permutation(seed, 0, n)[:count]


def host_slice(batch_size: int, host: int, hosts: int) -> slice:
    """Return the slice of the global batch that belongs to a host.

    Raises ValueError if the batch can't be divided equally.
    """
    per_host, remainder = divmod(batch_size, hosts)
    if remainder:
        raise ValueError(f"a batch of {batch_size} is not divisible by {hosts} hosts")
    return slice(host * per_host, (host + 1) * per_host)
