"""Atomic file writes."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` once it is written completely.

    The data go to a hidden file with a unique name in the same folder, which is
    renamed at the end. If the body raises, `path` keeps its old content.

    Args:
      durable: flush the data to the disk before the file is renamed, so that a crash
        of the machine leaves either the old or the new content.
    """
    # The name of the hidden file is cut, because file systems limit its length.
    start = os.fsdecode(os.fsencode(path.name)[:200])
    part = path.with_name(f".{start}.{uuid.uuid4().hex[:12]}")
    try:
        with open(part, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
