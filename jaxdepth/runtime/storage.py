"""Errors of file systems at a URL (gs://, memory://, and others that fsspec knows)."""

import contextlib
from collections.abc import Iterator

from jaxdepth.runtime.errors import MachineError, UserError


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn any exception of fsspec and its backends into a message of one line.

    Raises:
      UserError: `url` is wrong: no such bucket, no access, no library for it.
      MachineError: any other failure.
    """
    try:
        yield
    except (UserError, MachineError):
        raise
    except Exception as error:  # each backend has exceptions of its own
        reason = " ".join(str(error).split())[:300]
        if isinstance(error, FileNotFoundError):
            line = f"{url}: there is no such file, folder or bucket ({reason})"
        elif isinstance(error, PermissionError):
            line = f"{url}: access is refused ({reason})"
        elif isinstance(error, ImportError | ValueError):
            # gcsfs is not installed for gs://, or the protocol is unknown.
            line = f"{url} can't be opened: {reason}"
        else:
            kind = type(error).__name__
            line = f"{url}: the transfer failed ({kind}: {reason})"
            raise MachineError(line) from error
        raise UserError(line) from error
