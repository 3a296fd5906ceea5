"""Pytrees: nested containers of arrays."""

from typing import Any

from flax import traverse_util

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
    """Flatten nested dicts into one, keyed by paths such as `a/b/c`."""
    return dict(traverse_util.flatten_dict(tree, sep="/"))
