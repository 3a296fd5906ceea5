"""Files that are there whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` once all of it is written.

    Its name until then is hidden and nobody else's, even where nothing is locked.

    Args:
      durable: it is on the disk before it takes that place: a crash of the machine
        leaves one of the two.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        with open(part, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
