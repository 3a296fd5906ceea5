"""The options that a store was prepared with, compared with the flags of a command."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxdepth.data.store.reader import Store
from jaxdepth.runtime.errors import UserError


def check_flags(store: Store, flags: Mapping[str, Any], *, where: str) -> None:
    """Check flags for reading data against the options that a store was prepared with.

    A store holds converted depth and fixed splits, so another value would be ignored.

    Args:
      flags: name of a flag, such as "depth_scale" -> value.
      where: path or URL of the store, for the message.

    Raises: UserError for the first flag whose value is not the recorded one.
    """
    options = store.manifest.get("options", {})
    recorded = {**options.get("packing", {}), **options.get("read", {})}
    recorded["data_format"] = store.manifest.get("format")
    if recorded.get("depth_scale") is None:  # the format's default applied
        recorded["depth_scale"] = store.manifest.get("depth_scale")
    for name, value in flags.items():
        if value == recorded.get(name):
            continue
        known = "" if recorded.get(name) is None else f" (--{name}={recorded[name]})"
        raise UserError(
            f"--{name}={value}: {where} is a store, whose depth is converted and whose "
            f"split is fixed already{known}: leave the flag out, or prepare the store "
            "again"
        )


def given(options: Any) -> dict[str, Any]:
    """The fields of a dataclass of options that differ from their defaults.

    `allow_outside` is not among them: it does not change what a store holds.
    """
    values = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    }
    values.pop("allow_outside", None)
    return values
