"""Dropout with one mask per image, independent of the batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Shaped

from jaxdepth.runtime.errors import UserError


def drop(
    x: Shaped[Array, "b ..."],
    keys: Key[Array, " b"] | None,
    *,
    rate: float,
    train: bool,
) -> Shaped[Array, "b ..."]:
    """Zero each entry with probability `rate` and divide the others by 1 - rate.

    The mask of an image depends on its key only, not on the other images of the batch
    or on the device.

    Args:
      x: features, batch first.
      keys: one typed PRNG key per image; may be None if nothing is dropped.
      rate: 0 <= rate < 1.
      train: if False, x is returned unchanged.

    Raises: UserError if keys are needed and None.
    Source: Srivastava et al. 2014 (in its scaled form).
    """
    if not train or rate == 0:
        return x
    if keys is None:
        raise UserError("keys=None: dropout in training needs one key per image")
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
