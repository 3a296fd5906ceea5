"""The two kinds of expected failure; entry points turn them into exit codes.

`everywhere`: whether all hosts that train together end by it, each by itself.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's mistake. One line: what is wrong, where, what to do. Exit code 2."""

    everywhere = False


class MachineError(Exception):
    """The machine stopped us: storage or a lost peer. One line. Exit code 1."""

    everywhere = False


def nearest(word: str, among: Iterable[str]) -> str:
    """`"; did you mean X?"`, or nothing where no word is near."""
    close = difflib.get_close_matches(word, list(among), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
