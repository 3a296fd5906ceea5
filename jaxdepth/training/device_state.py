"""The arrangement of parameters, moments and EMA in which a GPU updates them.

The step computes gradients with parameters by name, and updates the arranged arrays in
place. Arranged for cuDNN, a kernel is used without a transpose and its gradient needs
none; joined into one array, the hundreds of vectors of a network are updated by one
kernel of the GPU and not by one each.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxdepth.training.state import PyTree, TrainState

# The path of a parameter in its module, and its shape.
Names = tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]

# Modules with kernels of up-convolutions: `upconv` computes with the transpose of a
# convolution, whose kernel is reversed and has the input channels last.
_UPCONVOLUTIONS = frozenset({"up_main", "up_side"})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Arranged:
    """Parameters of a module, or arrays of their shapes, as a GPU holds them.

    Attributes:
      kernels: nested dict of the kernels; those of convolutions as (cout, h, w, cin),
        those of up-convolutions as (cin, h, w, cout), reversed in h and w.
      vectors: (n,), all other parameters one after another.
      names: what `vectors` consists of.
    """

    kernels: PyTree
    vectors: Any
    names: Names = dataclasses.field(metadata={"static": True})


def arrange(state: TrainState) -> TrainState:
    """Arrange parameters, moments and the EMA of the parameters for a GPU."""
    names = {k: _names(module) for k, module in state.params.items()}
    return _convert(state, lambda k, module: _arranged(module, names[k]))


def restore(state: TrainState) -> TrainState:
    """The inverse of `arrange`."""
    return _convert(state, lambda _, module: _by_name(module))


def by_name(params: PyTree) -> PyTree:
    """Parameters by name, from arranged ones; others stay as they are."""
    return {
        k: _by_name(module) if isinstance(module, Arranged) else module
        for k, module in params.items()
    }


def arranged_like(params: PyTree, tree: PyTree) -> PyTree:
    """A tree of parameters by name, arranged if `params` are."""
    return {
        k: _arranged(tree[k], like.names) if isinstance(like, Arranged) else tree[k]
        for k, like in params.items()
    }


def is_arranged(params: PyTree) -> bool:
    """Whether a tree of parameters is arranged for a GPU."""
    return isinstance(params, dict) and any(
        isinstance(module, Arranged) for module in params.values()
    )


def _convert(state: TrainState, convert: Callable[[str, PyTree], PyTree]) -> TrainState:
    """Convert all modules of the parameters and of trees like them."""

    def has_modules(tree: Any) -> bool:
        return isinstance(tree, dict) and tree.keys() == state.params.keys()

    def of_tree(tree: Any) -> Any:
        if not has_modules(tree):
            return tree
        return {k: convert(k, module) for k, module in tree.items()}

    average = state.average
    if average is not None:
        average = average | {"params": of_tree(average["params"])}
    return dataclasses.replace(
        state,
        params=of_tree(state.params),
        opt_state=jax.tree.map(of_tree, state.opt_state, is_leaf=has_modules),
        average=average,
    )


def _names(module: PyTree) -> Names:
    leaves: dict[Any, Any] = dict(traverse_util.flatten_dict(module))
    return tuple(
        (path, np.shape(leaves[path]))
        for path in sorted(leaves)
        if not _is_kernel(path)
    )


def _arranged(module: PyTree, names: Names) -> Arranged:
    leaves = traverse_util.flatten_dict(module)
    kernels = {
        path: _move(path, x, to_gpu=True)
        for path, x in leaves.items()
        if _is_kernel(path)
    }
    parts: list[Any] = [leaves[path] for path, _ in names]
    if all(_is_array(x) for x in parts):
        xp = _namespace(parts)
        vectors = xp.concatenate([xp.reshape(x, -1) for x in parts]) if parts else None
    else:  # a module that the optimizer leaves out has optax.MaskedNode() everywhere
        vectors = parts[0]
    return Arranged(traverse_util.unflatten_dict(kernels), vectors, names)


def _by_name(module: Arranged) -> PyTree:
    leaves = {
        path: _move(path, x, to_gpu=False)
        for path, x in traverse_util.flatten_dict(module.kernels).items()
    }
    start = 0
    for path, shape in module.names:
        if _is_array(module.vectors):
            end = start + math.prod(shape)
            leaves[path] = module.vectors[start:end].reshape(shape)
            start = end
        else:
            leaves[path] = module.vectors
    return traverse_util.unflatten_dict(leaves)


def _is_kernel(path: tuple[str, ...]) -> bool:
    return path[-1] == "kernel"


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray | jax.Array)


def _namespace(arrays: list[Any]) -> Any:
    return np if all(isinstance(x, np.ndarray) for x in arrays) else jnp


def _move(path: tuple[str, ...], kernel: Any, *, to_gpu: bool) -> Any:
    """Between (h, w, cin, cout) and the arrangement of a GPU."""
    if not _is_array(kernel) or kernel.ndim != 4:
        return kernel
    xp = _namespace([kernel])
    if _UPCONVOLUTIONS.isdisjoint(path):
        return xp.moveaxis(kernel, *((-1, 0) if to_gpu else (0, -1)))
    # On the device, the first axis has the input channels.
    moved = xp.moveaxis(kernel, *((2, 0) if to_gpu else (0, 2)))
    return xp.flip(moved, (1, 2) if to_gpu else (0, 1))
