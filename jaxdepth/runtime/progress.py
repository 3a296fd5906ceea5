"""Progress callbacks of long tasks."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""(task, done, total): called after each item; `terminal.Counter` logs it."""
