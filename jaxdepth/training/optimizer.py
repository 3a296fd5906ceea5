"""Learning rate schedules and optimizers, by name, and the parameters they update."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdepth.config import Config
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.registry import Registry
from jaxdepth.training.device_state import children, scale_by_path, updating_by_name

PyTree = Any

Schedule = Callable[[float, int], optax.Schedule]
"""(lr, steps) -> schedule over `steps` steps after warm-up, starting at `lr`."""

SCHEDULES: Registry[Schedule] = Registry("schedule")
SCHEDULES.register("constant", lambda lr, steps: optax.schedules.constant_schedule(lr))


def _piecewise(factors: dict[float, float]) -> Schedule:
    """Multiply the learning rate by each factor after that share of the steps."""

    def schedule(lr: float, steps: int) -> optax.Schedule:
        edges = {math.ceil(share * steps): by for share, by in factors.items()}
        return optax.schedules.piecewise_constant_schedule(lr, edges)

    return schedule


SCHEDULES.register("step", _piecewise({1 / 2: 0.1, 3 / 4: 0.1}))
# After Laina et al. 2016: 1/2 of `lr` after a third, 1/10 after two thirds.
SCHEDULES.register("thirds", _piecewise({1 / 3: 0.5, 2 / 3: 0.2}))
SCHEDULES.register("cosine", optax.schedules.cosine_decay_schedule)
# Chen et al. 2017 (DeepLab), section 4.1: the "poly" policy, power 0.9.
SCHEDULES.register(
    "poly",
    lambda lr, steps: optax.schedules.polynomial_schedule(lr, 0.0, 0.9, steps),
)

Rule = Callable[
    [optax.GradientTransformation, optax.GradientTransformation],
    optax.GradientTransformation,
]
"""(l2, descend) -> optimizer: `l2` adds weight decay, `descend` the learning rate."""

OPTIMIZERS: Registry[Rule] = Registry("optimizer")
OPTIMIZERS.register(
    "adam", lambda l2, descend: optax.chain(l2, optax.scale_by_adam(), descend)
)
OPTIMIZERS.register(
    "adamw", lambda l2, descend: optax.chain(optax.scale_by_adam(), l2, descend)
)
OPTIMIZERS.register(
    "sgd", lambda l2, descend: optax.chain(l2, optax.trace(decay=0.9), descend)
)
# Optimizers that update each entry independently of the others. On GPU, they receive
# the parameters joined into fewer arrays (`device_state`).
PER_ENTRY = {"adam", "adamw", "sgd"}

# Names of the residual blocks in an encoder: `models.resnet.ResNet`.
_STAGE = re.compile(r"stage(\d+)_")


def learning_rate(
    *, lr: float, schedule: str, steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0.

    Args:
      lr: highest learning rate.
      schedule: name in `SCHEDULES`. constant: `lr`; step: a tenth of it after half of
        the steps, a hundredth after three quarters; thirds: half of it after a third,
        a tenth after two thirds (Laina et al. 2016); cosine: from `lr` to 0; poly:
        `lr` * (1 - step / steps)^0.9 (Chen et al. 2017, DeepLab).
      steps: steps of training, warm-up included.
      warmup_steps: steps of linear warm-up: step k has (k + 1) / warmup_steps of `lr`.

    Raises: KeyError for an unknown schedule.
    """
    main = SCHEDULES[schedule](lr, max(1, steps - warmup_steps))
    if not warmup_steps:
        return main

    def warmed(step):
        rising = lr * (step + 1) / warmup_steps
        return jnp.where(step < warmup_steps, rising, main(step - warmup_steps))

    return warmed


def schedule_of(config: Config) -> optax.Schedule:
    """The learning rate schedule of a resolved configuration."""
    return learning_rate(
        lr=config.peak_lr,
        schedule=config.optimizer.schedule,
        steps=int(config.train.steps),
        warmup_steps=config.optimizer.warmup_steps,
    )


def at_step(opt_state: PyTree, step: int) -> PyTree:
    """A fresh optimizer state whose learning rate schedules have reached `step`.

    The other counts stay 0, such as that of Adam, which corrects the bias of its
    moments by the number of gradients in them.
    """

    def moved(state: Any) -> Any:
        if not isinstance(state, optax.ScaleByScheduleState):
            return state
        return state._replace(count=jnp.full_like(state.count, step))

    return jax.tree.map(
        moved, opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState)
    )


def create(config: Config) -> optax.GradientTransformation:
    """The optimizer of a resolved configuration."""
    options = config.optimizer
    return make_optimizer(
        optimizer=options.name,
        rate=schedule_of(config),
        weight_decay=options.weight_decay,
        decay=options.decay,
        clip_norm=options.clip_norm,
        freeze=config.model.freeze,
        encoder_lr_factor=options.encoder_lr_factor,
        stage_lr_decay=options.stage_lr_decay,
    )


def make_optimizer(
    *,
    optimizer: str = "adam",
    rate: optax.Schedule | float = 1e-3,
    weight_decay: float = 0.0,
    decay: str = "kernels",
    clip_norm: float | None = None,
    freeze: str = "none",
    encoder_lr_factor: float = 1.0,
    stage_lr_decay: float = 1.0,
) -> optax.GradientTransformation:
    """The optimizer, in PyTorch's order: clip the gradient, add L2, step.

    adam: Adam with L2 added to the gradient; adamw: decoupled weight decay, scaled by
    the learning rate; sgd: momentum 0.9, L2 added to the gradient.

    The encoder is the module `encoder` of the parameters.

    Args:
      optimizer: name in `OPTIMIZERS`.
      rate: learning rate, or its schedule.
      decay: parameters with weight decay: "all", as in PyTorch, or "kernels".
      clip_norm: largest global norm of the gradient of the trained parameters.
      freeze: "encoder" keeps the encoder's parameters fixed, without moments; other
        values, such as "bn_stats", have no effect on the parameters.
      encoder_lr_factor: factor of the encoder's learning rate.
      stage_lr_decay: further factor of each stage's learning rate for each stage that
        follows it: of N stages, the last has 1, the one before it `stage_lr_decay`, and
        the stem `stage_lr_decay`^N.

    Raises: UserError from `init`, with a decay, for an encoder without stages.
    Source of the decay: Howard and Ruder 2018 (ULMFiT), section 3.1, and Bao et al.
      2022 (BEiT), whose factors are per layer.
    """
    schedule = rate if callable(rate) else optax.schedules.constant_schedule(rate)

    l2 = optax.add_decayed_weights(
        weight_decay, mask=_kernels if decay == "kernels" else None
    )

    def rule_for(factor: float) -> optax.GradientTransformation:
        descend = optax.scale_by_learning_rate(lambda step: factor * schedule(step))
        if stage_lr_decay != 1.0:
            descend = _by_stage(descend, stage_lr_decay)
        rule = OPTIMIZERS[optimizer](l2, descend)
        return rule if optimizer in PER_ENTRY else updating_by_name(rule)

    frozen, rule = freeze == "encoder", rule_for(1.0)
    if frozen or encoder_lr_factor != 1.0:
        encoder = optax.set_to_zero() if frozen else rule_for(encoder_lr_factor)
        rule = optax.partition({"encoder": encoder, "rest": rule}, _labels)
    if clip_norm is None:
        return rule
    clip = optax.clip_by_global_norm(clip_norm)
    if frozen:
        # Frozen parameters are excluded from the norm.
        clip = optax.masked(clip, _trained)
    return optax.chain(clip, rule)


def _by_stage(
    descend: optax.GradientTransformation, decay: float
) -> optax.GradientTransformation:
    """Multiply the updates of each encoder stage by its factor; the state is equal."""

    def init(params: PyTree) -> Any:
        _last_stage(params)  # raises for an encoder without stages
        return descend.init(params)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> Any:
        updates, state = descend.update(updates, state, params)
        last = _last_stage(updates)

        def factor(path: tuple[str, ...]) -> float:
            if path[0] != "encoder":
                return 1.0
            stage = _STAGE.match(path[1])
            return decay ** (last - int(stage[1]) if stage else last)

        return scale_by_path(updates, factor), state

    return optax.GradientTransformation(init, update)


def _last_stage(params: PyTree) -> int:
    matches = map(_STAGE.match, children(params.get("encoder", {})))
    stages = [int(match[1]) for match in matches if match]
    if not stages:
        raise UserError(
            "--stage_lr_decay: the network has no encoder with stages, parameters "
            "named stage1_..., stage2_...; leave the flag out"
        )
    return max(stages)


def _labels(params: PyTree) -> PyTree:
    return {
        name: jax.tree.map(lambda _, n=name: n if n == "encoder" else "rest", x)
        for name, x in params.items()
    }


def _trained(params: PyTree) -> PyTree:
    return jax.tree.map(lambda label: label == "rest", _labels(params))


def _kernels(params: PyTree) -> PyTree:
    # By name: the bias of an up-convolution has three axes.
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) == "kernel", params
    )
