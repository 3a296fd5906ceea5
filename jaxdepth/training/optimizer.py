"""Schedules, the optimizer, and which parameters it moves."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any

# After what share of the steps the rate falls, and by what factor.
_FALLS = {
    "step": {1 / 2: 0.1, 3 / 4: 0.1},
    "thirds": {1 / 3: 0.5, 2 / 3: 0.2},
}


def learning_rate(
    *, lr: float, schedule: str, steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Step (from 0) -> learning rate.

    constant: `lr`; step: `lr`, a tenth of it after half of the steps, a hundredth
    after three quarters; thirds: half of it after a third of the steps, a tenth after
    two thirds (after Laina et al. 2016); cosine: from `lr` to 0 at `steps`. Before
    that it rises in equal parts over `warmup_steps`, the first step taking the first
    part.
    """
    after = max(1, steps - warmup_steps)
    if schedule == "constant":
        main = optax.schedules.constant_schedule(lr)
    elif schedule == "cosine":
        main = optax.schedules.cosine_decay_schedule(lr, after)
    elif schedule in _FALLS:
        edges = {math.ceil(share * after): by for share, by in _FALLS[schedule].items()}
        main = optax.schedules.piecewise_constant_schedule(lr, edges)
    else:
        raise ValueError(f"schedule {schedule!r}: constant, step, thirds or cosine")
    if not warmup_steps:
        return main

    def warmed(step):
        rising = lr * (step + 1) / warmup_steps
        return jnp.where(step < warmup_steps, rising, main(step - warmup_steps))

    return warmed


def make_optimizer(
    *,
    params: PyTree,
    optimizer: str = "adam",
    lr: float = 1e-3,
    schedule: str = "constant",
    steps: int = 1,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    decay: str = "kernels",
    clip_norm: float | None = None,
    freeze: str = "none",
    encoder_lr_factor: float = 1.0,
) -> optax.GradientTransformation:
    """The optimizer, in PyTorch's order: clip the gradient, add L2, step.

    adam: Adam with L2 added to the gradient; adamw: L2 apart from it, scaled by the
    rate; sgd: momentum 0.9, L2 added to the gradient.

    Args:
      params: what it will move; `params["encoder"]` is the encoder.
      decay: "all" parameters, as PyTorch does, or "kernels" alone.
      clip_norm: largest global norm of the gradient of what moves.
      freeze: "encoder" moves nothing in it and keeps no moments for it; "bn_stats" is
        not a matter of parameters.
      encoder_lr_factor: on the rate of the encoder.
    """
    rate = learning_rate(
        lr=lr, schedule=schedule, steps=steps, warmup_steps=warmup_steps
    )

    def one(factor: float) -> optax.GradientTransformation:
        return _rule(optimizer, rate, factor, weight_decay, decay)

    if freeze == "encoder" or encoder_lr_factor != 1.0:
        frozen = freeze == "encoder"
        encoder = optax.set_to_zero() if frozen else one(encoder_lr_factor)
        rule = optax.partition({"encoder": encoder, "rest": one(1.0)}, _labels)
    else:
        frozen, rule = False, one(1.0)
    if clip_norm is None:
        return rule
    clip = optax.clip_by_global_norm(clip_norm)
    if frozen:
        # What does not move does not count in the norm either.
        moving = jax.tree.map(lambda label: label == "rest", _labels(params))
        clip = optax.masked(clip, moving)
    return optax.chain(clip, rule)


def _labels(params: PyTree) -> PyTree:
    return {
        name: jax.tree.map(lambda _, n=name: "encoder" if n == "encoder" else "rest", x)
        for name, x in params.items()
    }


def _kernels(params: PyTree) -> PyTree:
    # By name: the bias of an up-convolution has three axes.
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )


def _rule(
    name: str,
    rate: optax.Schedule,
    factor: float,
    weight_decay: float,
    decay: str,
) -> optax.GradientTransformation:
    l2 = optax.add_decayed_weights(
        weight_decay, mask=_kernels if decay == "kernels" else None
    )
    descend = optax.scale_by_learning_rate(lambda step: factor * rate(step))
    if name == "adam":
        return optax.chain(l2, optax.scale_by_adam(), descend)
    if name == "adamw":
        return optax.chain(optax.scale_by_adam(), l2, descend)
    if name == "sgd":
        return optax.chain(l2, optax.trace(decay=0.9), descend)
    raise ValueError(f"optimizer {name!r}: adam, adamw or sgd")
