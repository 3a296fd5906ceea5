"""One-line errors of file systems, local or at a URL (gs://, memory://, ...)."""

import contextlib
from collections.abc import Iterator

from jaxdepth.runtime.errors import MachineError, UserError, one_line


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert any exception of fsspec and its backends to an error of one line.

    Raises:
      UserError: `url` is wrong: no such bucket, no access, no library for it.
      MachineError: any other failure.
    """
    try:
        yield
    except (UserError, MachineError):
        raise
    except Exception as error:  # each backend has exceptions of its own
        reason = one_line(error)[:300]
        if isinstance(error, FileNotFoundError):
            line = f"{url}: there is no such file, folder or bucket ({reason})"
        elif isinstance(error, PermissionError):
            line = f"{url}: access denied ({reason})"
        elif isinstance(error, ImportError | ValueError):
            # gcsfs is not installed for gs://, or the protocol is unknown.
            line = f"{url} can't be opened: {reason}"
        else:
            kind = type(error).__name__
            line = f"{url}: the transfer failed ({kind}: {reason})"
            raise MachineError(line) from error
        raise UserError(line) from error


@contextlib.contextmanager
def write_errors(path: object) -> Iterator[None]:
    """Convert an OSError of the body to a MachineError: `path` could not be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise MachineError(f"{path} could not be written: {reason}") from error
