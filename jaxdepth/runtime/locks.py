"""Locks between processes."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def file_lock(path: Path, *, if_held: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`, and delete it at the end.

    If the lock cannot be taken at all, because the file system has no locks or the
    folder is read-only, the body runs without it.

    Args:
      if_held: called once if another process holds the lock. If it returns, this
        process waits for the lock.
    """
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if_held()
            lock.acquire()
    except OSError as error:
        logger.debug("%s can't be locked: %s", path, error)
        yield
        return
    try:
        yield
    finally:
        # Deleted while the lock is held: a process that has opened the file already
        # detects the deletion, and opens a new one.
        with contextlib.suppress(OSError):  # Windows deletes it on release
            path.unlink()
        lock.release()
