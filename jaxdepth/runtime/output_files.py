"""Output files of a command: checks before the computation, atomic writes."""

from pathlib import Path

from jaxdepth.runtime import atomic, storage
from jaxdepth.runtime.errors import UserError


def check_new_file(path: str | Path, *, flag: str) -> None:
    """Raise UserError if an output file exists or its folder does not."""
    path = Path(path).expanduser()
    if path.exists():
        raise UserError(f"--{flag}={path} exists: name another file")
    if not path.parent.is_dir():
        raise UserError(f"--{flag}={path}: there is no folder {path.parent}")


def check_apart(**paths: str | Path) -> None:
    """Raise UserError if two flags name the same file."""
    seen: dict[Path, str] = {}
    for flag, path in paths.items():
        other = seen.setdefault(Path(path).expanduser().resolve(), flag)
        if other != flag:
            raise UserError(f"--{other} and --{flag} both name {path}: name two files")


def check_ours(path: Path, *marks: str, flag: str) -> None:
    """Raise UserError if a file exists that this command did not write.

    The command's own files contain one of `marks` in their first 4096 bytes.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
            written = any(mark.encode() in start for mark in marks)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--{flag}: {path}: {error.strerror}") from None
    if not written:
        raise UserError(
            f"{path} exists and was not written by this command: name another --{flag}"
        )


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically. Raises MachineError if it can't be written.

    File names in the text that are not UTF-8 are written with escapes.
    """
    path = Path(path).expanduser()
    with storage.write_errors(path), atomic.atomic_write(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
