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
import optax
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
      arrays: nested dict of the kernels, and of parameters that are not float32.
        Kernels of 2-D convolutions are (cout, h, w, cin), those of up-convolutions
        (cin, h, w, cout), reversed in h and w.
      vectors: (n,), all other parameters one after another; None if there is none.
      names: what `vectors` consists of.
    """

    arrays: PyTree
    vectors: Any
    names: Names = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByName:
    """State of an optimizer that `arrange` leaves as it is: see `updating_by_name`."""

    state: PyTree


def updating_by_name(
    rule: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """The same optimizer, which receives parameters and gradients by name.

    For optimizers that do not update each entry by itself: a norm of each parameter, as
    in LAMB, or sums over rows of a kernel, as in Adafactor, would have another meaning
    for joined vectors.
    """

    def init(params: PyTree) -> Any:
        return ByName(rule.init(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> Any:
        new, inner = rule.update(by_name(updates), state.state, by_name(params))
        return arranged_like(updates, new), ByName(inner)

    return optax.GradientTransformation(init, update)


def arrange(state: TrainState) -> TrainState:
    """Arrange parameters, moments and the EMA of the parameters for a GPU.

    Parameters that belong to no module stay as they are.
    """
    params = state.params
    names = {k: _names(x) for k, x in params.items() if isinstance(x, dict)}
    paths = _flatten(params).keys()

    def is_like_params(tree: Any) -> bool:
        return isinstance(tree, dict) and _flatten(tree).keys() == paths

    def arranged(tree: Any) -> Any:
        if not is_like_params(tree):
            return tree
        return {k: _arranged(x, names[k]) if k in names else x for k, x in tree.items()}

    average = state.average
    if average is not None:
        average = average | {"params": arranged(average["params"])}
    opt_state = jax.tree.map(
        arranged,
        state.opt_state,
        is_leaf=lambda x: isinstance(x, ByName) or is_like_params(x),
    )
    return dataclasses.replace(
        state, params=arranged(params), opt_state=opt_state, average=average
    )


def by_name(tree: PyTree) -> PyTree:
    """A tree, such as a training state, with arranged parameters by name."""
    return jax.tree.map(
        lambda x: _by_name(x) if isinstance(x, Arranged) else x,
        tree,
        is_leaf=lambda x: isinstance(x, Arranged),
    )


def arranged_like(params: PyTree, tree: PyTree) -> PyTree:
    """A tree of parameters by name, arranged if `params` are."""
    return {
        k: _arranged(tree[k], like.names) if isinstance(like, Arranged) else tree[k]
        for k, like in params.items()
    }


def children(module: PyTree) -> set[str]:
    """Names of the parts of a module, whose parameters are by name or arranged."""
    if isinstance(module, Arranged):
        return {*module.arrays, *(path[0] for path, _ in module.names)}
    return set(module) if isinstance(module, dict) else set()


def scale_by_path(
    tree: PyTree, factor: Callable[[tuple[str, ...]], float], path: tuple[str, ...] = ()
) -> PyTree:
    """Multiply each array of a tree by a factor that depends on its parameter.

    Args:
      tree: arrays of the shapes of parameters, by name or arranged. Anything else in
        it, such as `optax.MaskedNode`, stays.
      factor: of a parameter's path, such as ("encoder", "conv_init", "kernel").
      path: path of `tree` itself.
    """

    def scaled(path: tuple[str, ...], x: Any) -> Any:
        if isinstance(x, Arranged):
            arrays = scale_by_path(x.arrays, factor, path)
            return Arranged(arrays, scaled_vectors(path, x), x.names)
        by = factor(path) if _is_array(x) else 1.0
        return x if by == 1.0 else x * by

    def scaled_vectors(path: tuple[str, ...], x: Arranged) -> Any:
        factors = [factor((*path, *name)) for name, _ in x.names]
        if not _is_array(x.vectors) or set(factors) == {1.0}:
            return x.vectors
        sizes = [math.prod(shape) for _, shape in x.names]
        return x.vectors * np.repeat(np.array(factors, np.float32), sizes)

    leaves = _flatten(tree).items()
    return traverse_util.unflatten_dict(
        {name: scaled((*path, *name), x) for name, x in leaves}
    )


def is_arranged(params: PyTree) -> bool:
    """Whether a tree of parameters is arranged for a GPU."""
    return isinstance(params, dict) and any(
        isinstance(module, Arranged) for module in params.values()
    )


def _flatten(tree: PyTree) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(tree, keep_empty_nodes=True)  # pyright: ignore


def _names(module: PyTree) -> Names:
    return tuple(
        (path, x.shape)
        for path, x in sorted(_flatten(module).items())
        if not _is_kernel(path) and getattr(x, "dtype", None) == np.float32
    )


def _arranged(module: PyTree, names: Names) -> Arranged:
    leaves = _flatten(module)
    parts: list[Any] = [leaves.pop(path) for path, _ in names]
    arrays = {path: _move(path, x, to_gpu=True) for path, x in leaves.items()}
    if all(_is_array(x) for x in parts):
        xp = _namespace(parts)
        vectors = xp.concatenate([xp.reshape(x, -1) for x in parts]) if parts else None
    else:  # a module that the optimizer leaves out has optax.MaskedNode() everywhere
        vectors = parts[0]
    return Arranged(traverse_util.unflatten_dict(arrays), vectors, names)


def _by_name(module: Arranged) -> PyTree:
    leaves = {
        path: _move(path, x, to_gpu=False)
        for path, x in _flatten(module.arrays).items()
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
    """Between (h, w, cin, cout) and the arrangement of a GPU; other arrays stay."""
    if not _is_kernel(path) or not _is_array(kernel) or kernel.ndim != 4:
        return kernel
    xp = _namespace([kernel])
    if _UPCONVOLUTIONS.isdisjoint(path):
        return xp.moveaxis(kernel, *((-1, 0) if to_gpu else (0, -1)))
    # On the device, the first axis has the input channels.
    moved = xp.moveaxis(kernel, *((2, 0) if to_gpu else (0, 2)))
    return xp.flip(moved, (1, 2) if to_gpu else (0, 1))
