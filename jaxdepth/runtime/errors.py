"""The two kinds of expected errors, which set the exit code; helpers for messages.

`everywhere` is True if every host raises the error itself.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user: one line that names the flag or file, the problem and
    the fix. Exit code 2."""

    everywhere = False


class MachineError(Exception):
    """A failure of the machine (storage, a lost peer): one line. Exit code 1."""

    everywhere = False


def one_line(error: object) -> str:
    """Return the text of an error without line breaks."""
    return " ".join(str(error).split())


def unknown_choice(flag: str, value: object, choices: Iterable[str]) -> UserError:
    """Create the error for a value that is not among a flag's choices."""
    names = list(choices)
    hint = nearest(str(value), names)
    return UserError(f"--{flag}={value}: expected one of {', '.join(names)}{hint}")


def nearest(word: str, among: Iterable[str]) -> str:
    """Return `"; did you mean X?"` for the closest match, "" if nothing is close."""
    close = difflib.get_close_matches(word, list(among), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def printable(text: object, length: int | None = 120) -> str:
    """Escape an untrusted text, such as a file name, so that it is safe to print.

    Control characters and bytes that are not UTF-8 are escaped; the result has at most
    `length` characters.
    """
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    if length is None or len(escaped) <= length:
        return escaped
    return escaped[: length - 3] + "..."
