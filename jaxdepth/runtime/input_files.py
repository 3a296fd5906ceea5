"""Checks of files that the user names, before they are opened."""

import stat
from pathlib import Path

from jaxdepth.runtime.errors import UserError, printable

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path) -> None:
    """Check, without opening it, that the path is a file.

    Opening a FIFO waits forever, and a device has no end.

    Raises: UserError if there is no such file, or it is a folder, FIFO, socket or
      device.
    """
    name = printable(path, None)
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file") from None
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: {problem}") from None
    if kind != stat.S_IFREG:
        raise UserError(f"{name} is {KINDS.get(kind, 'of another kind')}, not a file")


def check_no_fifo(path: Path) -> None:
    """Raise UserError for a FIFO, socket or device, but not for a folder."""
    if path.exists() and not path.is_dir():
        check_regular(path)
