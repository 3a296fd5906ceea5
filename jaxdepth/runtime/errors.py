"""The two kinds of expected errors, which commands turn into exit codes.

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


def nearest(word: str, among: Iterable[str]) -> str:
    """Return `"; did you mean X?"` for the closest match, "" if nothing is close."""
    close = difflib.get_close_matches(word, list(among), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
