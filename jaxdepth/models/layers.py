"""Fields, convolution and normalisation layers that all networks have in common.

A network binds the fields that all of its layers share, such as the dtype, and passes
the results to its blocks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxdepth.models.layouts import LAYOUTS, Layout
from jaxdepth.ops import platform
from jaxdepth.ops.conv import Conv

# A module class, or one with some of its fields bound by functools.partial.
Layer = Callable[..., Any]


class DepthNetwork(nn.Module):
    """Base class of the networks, with the fields that all of them have.

    Attributes:
      layout: see `jaxdepth.models.layouts`.
      dropout: probability of dropping an input of the last layer in training.
      init_depth: depth that an untrained network predicts, in metres.
      dtype: of the computation; parameters, statistics and result are float32.
      bn_axis: the device axis over which batch statistics are shared; None for
        statistics per device.
      freeze: "none"; "encoder" or "bn_stats": in training, the batch normalisations
        of the encoder or of the network use and keep their running statistics.
    """

    layout: Layout = LAYOUTS["torchvision"]
    dropout: float = 0.0
    init_depth: float = 2.7
    dtype: Any = jnp.float32
    bn_axis: str | None = None
    freeze: str = "none"


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` that a convolution can apply: see `conv_norm`."""

    def affine(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """(scale, offset) per channel of the normalisation by running statistics."""

        def value(collection: str, name: str) -> Array:
            return jnp.asarray(self.get_variable(collection, name))

        inverse = lax.rsqrt(value("batch_stats", "var") + self.epsilon)
        scale = value("params", "scale") * inverse
        return scale, value("params", "bias") - value("batch_stats", "mean") * scale


def conv_norm(
    conv: nn.Module, norm: BatchNorm, x: Float[Array, "b h w c"]
) -> Float[Array, "b i j d"]:
    """norm(conv(x)) for a convolution layer, whose `__call__` takes (x, affine).

    In inference on CPU, the normalisation is applied to the kernel where it is smaller
    than the map. oneDNN then adds the offset and computes a ReLU and a sum that follow,
    all in one pass.
    """
    folds = norm.use_running_average and platform.current() == "cpu"
    if norm.is_initializing() or not folds:
        return norm(conv(x))
    kernel = jnp.asarray(conv.get_variable("params", "kernel"))
    return conv(x, norm.affine()) if kernel.size < x.size else norm(conv(x))


def batch_norm(
    *, epsilon: float = 1e-5, dtype: Any = jnp.float32, axis_name: str | None = None
) -> functools.partial:
    """The batch normalisation layer of all networks.

    Running statistics decay by 0.9 per step (our choice; PyTorch's default momentum of
    0.1), are float32 and hold the biased variance. Scale starts at one, offset at zero.

    Args:
      epsilon: added to the variance.
      dtype: of the result; statistics are computed in float32.
      axis_name: the device axis over which batch statistics are shared; None for
        statistics per device.

    Returns: the module class with these fields bound, all but `use_running_average` and
      `name`.
    """
    return functools.partial(
        BatchNorm, momentum=0.9, epsilon=epsilon, dtype=dtype, axis_name=axis_name
    )


def bind_layers(
    layout: Layout, dtype: Any, bn_axis: str | None
) -> tuple[functools.partial, functools.partial]:
    """The convolution and normalisation layers of a network: `Conv`, `batch_norm`.

    Args:
      layout: gives the epsilon of the batch normalisation.
      dtype: of the computation.
      bn_axis: as `axis_name` of `batch_norm`.
    """
    conv = functools.partial(Conv, dtype=dtype)
    return conv, batch_norm(epsilon=layout.bn_epsilon, dtype=dtype, axis_name=bn_axis)
