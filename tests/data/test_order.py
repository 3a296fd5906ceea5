"""The order of frames as a pure function of seed and step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth.data import order

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def stream(seed: int, n: int, count: int) -> np.ndarray:
    """The first `count` rows of a seed, with a batch size of 1."""
    return np.array([order.rows_of_step(seed, k, 1, n)[0] for k in range(count)])


@given(seeds, sizes)
def test_every_epoch_contains_each_row_once(seed, n):
    rows = stream(seed, n, 3 * n).reshape(3, n)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(n), (3, 1)))


@given(seeds, sizes, st.integers(1, 50), st.integers(0, 9))
def test_batches_are_consecutive_parts_of_the_stream(seed, n, batch_size, step):
    expected = stream(seed, n, (step + 1) * batch_size)
    rows = order.rows_of_step(seed, step, batch_size, n)
    np.testing.assert_array_equal(rows, expected[step * batch_size :])


def test_epochs_and_seeds_differ():
    first = order.permutation(0, 0, 100)
    for other in (order.permutation(0, 1, 100), order.permutation(1, 0, 100)):
        assert (first != other).mean() > 0.9


def test_permutations_are_uniform():
    # Mean index of each row over 400 epochs: 9.5 with standard error 0.29.
    orders = np.array([order.permutation(3, epoch, 20) for epoch in range(400)])
    assert np.abs(np.argsort(orders, axis=1).mean(0) - 9.5).max() < 1.3


def test_the_cached_permutation_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        order.permutation(0, 0, 5)[0] = 3


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 6, 12])
def test_host_slices_partition_a_batch(hosts):
    batch = np.arange(12)
    parts = [batch[order.host_slice(12, host, hosts)] for host in range(hosts)]
    np.testing.assert_array_equal(np.concatenate(parts), batch)
    assert {len(part) for part in parts} == {12 // hosts}


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="batch of 10 is not divisible by 4 hosts"):
        order.host_slice(10, 0, 4)


def test_smaller_training_sets_are_prefixes_of_larger_ones():
    rows = order.first_in_seed_order(5, 50, 50)
    np.testing.assert_array_equal(order.first_in_seed_order(5, 50, 7), rows[:7])
    assert len(set(rows.tolist())) == 50
