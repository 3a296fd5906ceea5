"""Blocks of code whose warnings are not shown."""

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator

_lock = threading.Lock()
_blocks = 0  # that are running, in all threads
_outer = contextlib.ExitStack()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Run a block that shows no warnings. Blocks may overlap, in several threads.

    `warnings.catch_warnings` alone changes and restores a list of the whole process: of
    two blocks that overlap, the second one would restore the first one's "ignore", for
    good. Here, the filters are restored at the end of the last block.
    """
    if getattr(sys.flags, "context_aware_warnings", False):  # each thread has its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        return
    global _blocks
    with _lock:
        if _blocks == 0:
            _outer.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0:
                _outer.close()
