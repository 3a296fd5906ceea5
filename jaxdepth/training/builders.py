"""From a resolved configuration to the network, the optimizer and the step."""

import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxdepth.config import Config
from jaxdepth.models import create_model
from jaxdepth.training.optimizer import learning_rate, make_optimizer
from jaxdepth.training.state import PyTree
from jaxdepth.training.step import StepSpec


def build_model(
    config: Config, *, init_depth: float = 2.7, bn_axis: str | None = None
) -> nn.Module:
    """The network that a resolved configuration describes.

    Args:
      init_depth: metres that it predicts before training.
      bn_axis: the device axis that batch statistics run over, None for one's own.
    """
    assert config.dropout != "auto"
    return create_model(
        config.arch,
        layout=config.layout,
        unpool=config.unpool,
        upconv=config.upconv,
        dropout=config.dropout,
        dtype=jnp.bfloat16 if config.precision == "bf16" else jnp.float32,
        image_size=config.image_size,
        init_depth=init_depth,
        bn_axis=bn_axis,
        freeze=config.freeze,
    )


def schedule(config: Config):
    """Step -> learning rate."""
    return learning_rate(
        lr=config.peak_lr,
        schedule=config.schedule,
        steps=int(config.steps),
        warmup_steps=config.warmup_steps,
    )


def build_optimizer(config: Config, params: PyTree) -> optax.GradientTransformation:
    """The optimizer that a settled configuration describes."""
    return make_optimizer(
        optimizer=config.optimizer,
        lr=config.peak_lr,
        schedule=config.schedule,
        steps=int(config.steps),
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        decay=config.decay,
        clip_norm=config.clip_norm,
        freeze=config.freeze,
        encoder_lr_factor=config.encoder_lr_factor,
        params=params,
    )


def build_spec(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None,
) -> StepSpec:
    """What a training step does, from a settled configuration."""
    return StepSpec(
        model=model,
        optimizer=optimizer,
        loss=config.loss,
        layout=config.layout,
        image_size=config.image_size,
        augment=config.augment,
        max_depth=config.max_depth,
        si_lambda=config.si_lambda,
        berhu_scope=config.berhu_scope,
        seed=config.seed,
        accumulate=config.accumulate,
        average=config.average,
        skip_non_finite=config.on_nan == "skip",
        axis_name=axis_name,
    )
