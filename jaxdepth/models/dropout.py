"""Dropout whose masks belong to images, not to batches."""

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
    """Zero each entry with probability `rate`; divide the others by 1 - rate.

    Each image's mask is drawn from its own key, so that it does not depend on the
    batch around it or on the device it lands on.

    Args:
      x: features, batch first.
      keys: one typed PRNG key per image; needed only if anything is dropped.
      rate: 0 <= rate < 1.
      train: nothing is dropped otherwise.

    Raises: UserError where keys are needed and missing.
    Source: Srivastava et al. 2014 (in its scaled form).
    """
    if not train or rate == 0:
        return x
    if keys is None:
        raise UserError("dropout while training: pass keys=, one per image")
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
