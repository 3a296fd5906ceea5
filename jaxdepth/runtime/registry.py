"""Registries: the named choices of one kind, such as losses."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from jaxdepth.runtime.errors import unknown_choice

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to entries of one kind, in the order they were added.

        LOSSES: Registry[Loss] = Registry("loss")

        LOSSES.register("l1", l1)
        LOSSES["l1"]

    Flags take their choices from registries, so a registered name works in `Config` and
    in every command.

    Args:
      kind: name of the flag, for messages: "loss".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add an entry and return it.

        Raises: ValueError for a name that exists, or that can't be a flag's value.
        """
        if not name or name != name.strip() or set(name) & set(" =,|"):
            raise ValueError(
                f"{self.kind} {name!r}: expected a name without spaces, =, comma and |"
            )
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self._entries[name] = entry
        return entry

    def unregister(self, name: str) -> None:
        """Remove an entry. Raises KeyError for an unknown name."""
        del self._entries[name]

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise KeyError(
                f"{self.kind} {name!r}: expected one of {', '.join(self)}"
            ) from None

    def named(self, name: str, *, flag: str | None = None) -> T:
        """Return an entry. Raises UserError for an unknown name.

        Args:
          flag: the flag with the name; default: the kind.
        """
        if name not in self._entries:
            raise unknown_choice(flag or self.kind, name, self)
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


Choices = tuple[str, ...] | str
"""The values of a flag: a tuple, or "module:NAME" of a mapping that has them as keys.

The second form is resolved on use, so that defining flags does not import JAX. Other
values precede it: "auto|jaxdepth.evaluation.protocols:PROTOCOLS".
"""


def resolve_choices(choices: Choices) -> tuple[str, ...]:
    """Return the values that `choices` allows, including names from plugins."""
    if not isinstance(choices, str):
        return choices
    *words, registry = choices.split("|")
    module, name = registry.split(":")
    return (*words, *getattr(importlib.import_module(module), name))
