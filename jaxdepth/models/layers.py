"""Fields, convolution and normalisation layers that all networks have in common.

A network binds the fields that all of its layers share, such as the dtype, and passes
the results to its blocks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from jaxdepth.models.layouts import LAYOUTS, Layout
from jaxdepth.ops import batch_norm as ops
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
      bn_groups: indices on that axis of the devices that share them; None for all.
      freeze: "none"; "encoder" or "bn_stats": in training, the batch normalisations
        of the encoder or of the network use and keep their running statistics.
    """

    layout: Layout = LAYOUTS["torchvision"]
    dropout: float = 0.0
    init_depth: float = 2.7
    dtype: Any = jnp.float32
    bn_axis: str | None = None
    bn_groups: ops.Groups | None = None
    freeze: str = "none"


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm`, followed by an optional residual sum and ReLU.

    Training on GPU computes them as one operation, `jaxdepth.ops.batch_norm`. On TPU,
    the compiler fuses the sums of the gradient into the convolutions around them, which
    one operation prevents: stage 1 takes 8 % more cycles by its estimate (v5e).
    """

    @nn.compact
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Float[Array | np.ndarray, "b h w c"],
        *,
        residual: Float[Array, "b h w c"] | None = None,
        relu: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Normalise x, add the residual, apply the ReLU."""
        is_one = not self.use_running_average and platform.current() == "gpu"
        if not is_one or self.is_initializing():
            y = super().__call__(x)
            y = y if residual is None else y + residual
            return nn.relu(y) if relu else y
        y, mean, variance = ops.batch_norm(
            jnp.asarray(x, self.dtype),
            *self.scale_and_offset(x.shape[-1]),
            residual,
            relu=relu,
            epsilon=self.epsilon,
            **self.over_devices(),
        )
        self.update_running(mean, variance)
        return y

    def scale_and_offset(
        self, channels: int
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """The parameters, float32."""
        return (
            self.param("scale", self.scale_init, (channels,), jnp.float32),
            self.param("bias", self.bias_init, (channels,), jnp.float32),
        )

    def over_devices(self) -> dict[str, Any]:
        """The devices that share statistics, as arguments of operations."""
        axis = None if self.is_initializing() else self.axis_name
        return {"axis_name": axis, "axis_index_groups": self.axis_index_groups}

    def update_running(self, mean: Array, variance: Array) -> None:
        """Move the running statistics, (c,) float32, towards those of the batch."""
        batch = {"mean": (mean, jnp.zeros), "var": (variance, jnp.ones)}
        for name, (value, initial) in batch.items():
            shape = value.shape
            running = self.variable("batch_stats", name, initial, shape, jnp.float32)
            if not self.is_initializing():
                old, kept = running.value, self.momentum
                running.value = kept * old + (1 - kept) * value

    def affine(self) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """(scale, offset) per channel of the normalisation by running statistics."""

        def value(collection: str, name: str) -> Array:
            return jnp.asarray(self.get_variable(collection, name))

        inverse = lax.rsqrt(value("batch_stats", "var") + self.epsilon)
        scale = value("params", "scale") * inverse
        return scale, value("params", "bias") - value("batch_stats", "mean") * scale


def conv_norm(
    conv: nn.Module,
    norm: BatchNorm,
    x: Float[Array, "b h w c"],
    *,
    residual: Float[Array, "b i j d"] | None = None,
    relu: bool = False,
) -> Float[Array, "b i j d"]:
    """norm(conv(x)) for a convolution layer, whose `__call__` takes (x, affine).

    In inference on CPU, the normalisation is applied to kernels that are smaller than
    the map, which saves a pass over the map.

    Args:
      residual, relu: as in `BatchNorm`.
    """
    folds = norm.use_running_average and platform.current() == "cpu"
    if folds and not norm.is_initializing():
        kernel = jnp.asarray(conv.get_variable("params", "kernel"))
        if kernel.size < x.size:
            y = conv(x, norm.affine())
            y = y if residual is None else y + residual
            return nn.relu(y) if relu else y
    return norm(conv(x), residual=residual, relu=relu)


def batch_norm(
    *,
    epsilon: float = 1e-5,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    axis_index_groups: ops.Groups | None = None,
) -> functools.partial:
    """The batch normalisation layer of all networks.

    Running statistics decay by 0.9 per step (our choice; PyTorch's default momentum of
    0.1), are float32 and hold the biased variance. Scale starts at one, offset at zero.

    Args:
      epsilon: added to the variance.
      dtype: of the result; statistics are computed in float32.
      axis_name: the device axis over which batch statistics are shared; None for
        statistics per device.
      axis_index_groups: indices on that axis of the devices that share them; None for
        all.

    Returns: the module class with these fields bound, all but `use_running_average` and
      `name`.
    """
    return functools.partial(
        BatchNorm,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )


def bind_layers(
    layout: Layout, dtype: Any, bn_axis: str | None, bn_groups: ops.Groups | None = None
) -> tuple[functools.partial, functools.partial]:
    """The convolution and normalisation layers of a network: `Conv`, `batch_norm`.

    Args:
      layout: gives the epsilon of the batch normalisation.
      dtype: of the computation.
      bn_axis, bn_groups: `axis_name` and `axis_index_groups` of `batch_norm`.
    """
    conv = functools.partial(Conv, dtype=dtype)
    return conv, batch_norm(
        epsilon=layout.bn_epsilon,
        dtype=dtype,
        axis_name=bn_axis,
        axis_index_groups=bn_groups,
    )
