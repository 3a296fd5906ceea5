"""Products of few rows with a large matrix: the fully connected layers of `cnn_fc`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdepth.ops import platform

# What `flax.linen.Dense` asks for: the last axis of x with the first of the kernel.
_DENSE = (((1,), (0,)), ((), ()))


def dense_product(
    x: Float[Array, "*b cin"],
    kernel: Float[Array, "cin cout"],
    dimension_numbers: Any = _DENSE,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "*b cout"]:
    """`x @ kernel`, for `flax.linen.Dense(dot_general=...)`.

    On CPU the gradient of x is a sum over products, which XLA gives to YNNPACK: as a
    product of matrices, Eigen first transposes the whole kernel, which for 4 rows and
    13824x4096 takes 40 times as long as the rest (205 ms and 5; 1024 rows: 508 and
    362). One row is a product of matrix and vector and stays one (3.5 ms and 125).
    """
    if platform.current() != "cpu" or dimension_numbers != _DENSE or x.shape[0] < 2:
        return lax.dot_general(x, kernel, dimension_numbers, precision=precision)
    return _product(x, kernel, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, kernel, precision):
    return lax.dot_general(x, kernel, _DENSE, precision=precision)


def _forward(x, kernel, precision):
    return _product(x, kernel, precision), (x, kernel)


def _backward(precision, saved, gradient):
    x, kernel = saved
    over_rows = (((0,), (0,)), ((), ()))
    to_x = _sum_of_products(gradient, kernel)
    return to_x, lax.dot_general(x, gradient, over_rows, precision=precision)


@jax.jit  # so that the products are never an array, whoever calls this
def _sum_of_products(gradient, kernel):
    return jnp.sum(kernel[None] * gradient[:, None], -1)


_product.defvjp(_forward, _backward)
