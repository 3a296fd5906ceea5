"""Pauses of Python's garbage collector."""

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_pauses = 0  # that are in progress, in all threads
_was_enabled = False


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Run a block without cyclic garbage collection.

    Imports and traces create millions of objects that stay, and each full collection
    visits all of them: a tenth of their time. Pauses may overlap, in several threads;
    the collector is enabled again at the end of the last one, if it was before.
    """
    global _pauses, _was_enabled
    with _lock:
        if _pauses == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _lock:
            _pauses -= 1
            if _pauses == 0 and _was_enabled:
                gc.enable()
