"""The two kinds of expected failure; entry points turn them into exit codes."""


class UserError(Exception):
    """The user's mistake. One line: what is wrong, where, what to do. Exit code 2."""


class MachineError(Exception):
    """The machine stopped us: storage or a lost peer. One line. Exit code 1."""
