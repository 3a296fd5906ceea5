import gc
import threading

import pytest

from jaxdepth.runtime import garbage


def test_the_collector_is_paused_and_enabled_again():
    assert gc.isenabled()
    with garbage.paused():
        assert not gc.isenabled()
        with garbage.paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_ends_the_pause():
    with pytest.raises(ValueError), garbage.paused():
        raise ValueError
    assert gc.isenabled()


def test_a_collector_that_is_disabled_stays_so():
    gc.disable()
    try:
        with garbage.paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_pauses_of_threads_may_overlap_in_any_order():
    first_ends, second_runs = threading.Event(), threading.Event()

    def first():
        with garbage.paused():
            second_runs.wait()

    def second():
        with garbage.paused():
            second_runs.set()
            first_ends.wait()
            assert not gc.isenabled()

    threads = [threading.Thread(target=function) for function in (first, second)]
    for thread in threads:
        thread.start()
    threads[0].join()
    first_ends.set()
    threads[1].join()
    assert gc.isenabled()
