"""Regular files, as opposed to FIFOs, sockets and devices; their checksums."""

import errno
import hashlib
import os
import stat
from pathlib import Path


def check(path: str | Path) -> None:
    """Raise OSError for a FIFO, a socket or a device, without opening it.

    Opening a FIFO waits for a writer, and reading a device may never end. Folders are
    accepted, because opening them fails at once. Links are followed.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        reason = "a FIFO or a device, not a regular file"
        raise OSError(errno.EINVAL, reason, str(path))


def sha256(*paths: str | Path) -> str:
    """Hex digest of the content of one or several files, concatenated."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
