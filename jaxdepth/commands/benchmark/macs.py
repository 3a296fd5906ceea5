"""Multiplications of a network, counted from its layers' shapes.

Independent of the form in which a layer is computed: multiplications by the zeros of
unpooling are never counted, those by the zeros around a map always are.
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
# Taps per entry of an up-convolution's input, all four phases together.
UP_TAPS = {"zero": 25, "average": 49}
# Forward, and the gradients by input and by kernel.
TRAINING = 3


def per_image(model: nn.Module, image_size: tuple[int, int]) -> int:
    """Multiply-accumulates of the forward pass of one image."""
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
    """Of kernel shape (..., cin, cout), from input and output shapes."""
    if isinstance(module, UpConv):
        taps, places = UP_TAPS[module.unpool], math.prod(x[1:3])
    elif isinstance(module, TransposedHead):
        taps, places = math.prod(kernel[:-2]), math.prod(x[1:3])
    else:
        taps, places = math.prod(kernel[:-2]), math.prod(y[1:-1])
    return taps * places * math.prod(kernel[-2:])
