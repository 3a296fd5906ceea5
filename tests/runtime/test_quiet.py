"""Blocks without warnings, in one thread and in several."""

import threading
import warnings

import pytest

from jaxdepth.runtime import quiet


def test_a_block_shows_no_warnings():
    with quiet.without_warnings():
        warnings.warn("odd", stacklevel=1)
    with pytest.warns(UserWarning, match="plain"):
        warnings.warn("plain", stacklevel=1)


def test_blocks_that_overlap_restore_the_filters():
    before = list(warnings.filters)
    first_open, second_open = threading.Event(), threading.Event()

    def first():
        with quiet.without_warnings():
            first_open.set()
            second_open.wait(20)

    thread = threading.Thread(target=first)
    thread.start()
    first_open.wait(20)
    # `catch_warnings` of this thread would restore the filters of the other one.
    with quiet.without_warnings():
        second_open.set()
        thread.join()
        warnings.warn("odd", stacklevel=1)
    assert list(warnings.filters) == before


def test_an_error_ends_a_block():
    before = list(warnings.filters)
    with pytest.raises(KeyError), quiet.without_warnings():
        raise KeyError
    assert list(warnings.filters) == before
