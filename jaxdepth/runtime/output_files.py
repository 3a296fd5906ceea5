"""Files that a command writes for the user: checked before the work, written whole."""

from pathlib import Path

from jaxdepth.runtime import atomic
from jaxdepth.runtime.errors import MachineError, UserError


def check_new_file(path: str | Path, *, flag: str) -> None:
    """UserError where a file that a flag asks for could not be made at its end."""
    path = Path(path).expanduser()
    if path.exists():
        raise UserError(f"--{flag}={path} exists: name another file")
    if not path.parent.is_dir():
        raise UserError(f"--{flag}={path}: there is no folder {path.parent}")


def check_apart(**paths: str | Path) -> None:
    """UserError where two flags name one file, which the second would replace."""
    seen: dict[Path, str] = {}
    for flag, path in paths.items():
        other = seen.setdefault(Path(path).expanduser().resolve(), flag)
        if other != flag:
            raise UserError(f"--{other} and --{flag} both name {path}: name two files")


def check_ours(path: Path, *marks: str, flag: str) -> None:
    """Raise UserError if a file exists that this command did not write.

    A file is ours if its first 4096 bytes hold one of `marks`.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
            ours = any(mark.encode() in start for mark in marks)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--{flag}: {path}: {error.strerror}") from None
    if not ours:
        raise UserError(
            f"{path} is there and was not written by this command: name another "
            f"--{flag}"
        )


def write_text(path: str | Path, text: str) -> None:
    """A text file, whole or not at all; MachineError where it can't be.

    Names of files that are not UTF-8 are written with escapes.
    """
    path = Path(path).expanduser()
    try:
        with atomic.replacing(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise MachineError(f"{path} can't be written: {error.strerror}") from error
