"""The two kinds of expected failure; entry points turn them into exit codes.

`everywhere`: whether all hosts that train together end by it, each by itself.
"""


class UserError(Exception):
    """The user's mistake. One line: what is wrong, where, what to do. Exit code 2."""

    everywhere = False


class MachineError(Exception):
    """The machine stopped us: storage or a lost peer. One line. Exit code 1."""

    everywhere = False
