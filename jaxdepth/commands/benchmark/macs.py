"""Multiply-accumulates (MACs) of a network, counted from the shapes of its layers.

The count does not depend on the form of the up-convolution: products with zeros of the
unpooling are not counted, products with zeros of the padding are.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxdepth.models.cnn import TransposedHead
from jaxdepth.models.upproj import UpConv
from jaxdepth.training.state import flatten

HOW = "from the layers' shapes, without multiplications by unpooling's zeros"
# Kernel taps per input entry of an up-convolution, summed over the four phases.
UP_TAPS = {"zero": 25, "average": 49}
TRAINING = 3  # forward, input gradient, kernel gradient


def per_image(model: nn.Module, image_size: tuple[int, int]) -> int:
    """MACs of the forward pass of one image."""
    counted: dict[str, int] = {}

    def count(call, args, kwargs, context):
        result = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and _has_kernel(module):
            path = "/".join([*module.path, "kernel"])
            kernel = module.get_variable("params", "kernel")
            counted[path] = _layer(module, kernel.shape, args[0].shape, result.shape)
        return result

    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    with nn.intercept_methods(count):
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    kernels = {p for p in flatten(shapes["params"]) if p.endswith("kernel")}
    if kernels != counted.keys():
        raise AssertionError(f"not counted: {sorted(kernels ^ counted.keys())}")
    return sum(counted.values())


def _has_kernel(module: nn.Module) -> bool:
    return module.has_variable("params", "kernel")


def _layer(module: nn.Module, kernel: Any, x: Any, y: Any) -> int:
    """MACs of a layer, from the shapes of kernel (..., cin, cout), input and output."""
    if isinstance(module, UpConv):
        taps, positions = UP_TAPS[module.unpool], math.prod(x[1:3])
    elif isinstance(module, TransposedHead):
        taps, positions = math.prod(kernel[:-2]), math.prod(x[1:3])
    else:
        taps, positions = math.prod(kernel[:-2]), math.prod(y[1:-1])
    return taps * positions * math.prod(kernel[-2:])
