"""The training step, or one block of the network, lowered for `compile-for`.

Arguments are shapes and devices are descriptions; the functions are those of training.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from jaxdepth import models
from jaxdepth.config import Config
from jaxdepth.models import normalize
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import augment, sharding
from jaxdepth.training import optimizer as optimizer_lib
from jaxdepth.training.step import (
    StepSpec,
    batch_shapes,
    init_state,
    train_step,
    train_step_on_table,
)


class StepParts(NamedTuple):
    """The parts of a training step.

    Attributes:
      model: the network.
      spec: static argument of the step.
      init: returns a new training state.
    """

    model: nn.Module
    spec: Any
    init: Callable[[], Any]

    def step(self, config: Config) -> tuple[Any, ...]:
        """The step function and its static arguments, for `Placement.mapped`."""
        if config.data.cache == "device":
            return train_step_on_table, self.spec, config.frame_size
        return train_step, self.spec


def step_parts(
    config: Config,
    placement: sharding.Placement,
    fields: dict[str, Any] | None = None,
) -> StepParts:
    """The parts of the training step of a resolved configuration.

    Args:
      placement: its devices may share batch statistics.
      fields: fields of the network to replace.
    """
    axis, groups = placement.statistics(config.model.bn)
    model = models.create(config.model, bn_axis=axis, bn_groups=groups)
    model = model.clone(**(fields or {}))

    optimizer = optimizer_lib.create(config)

    def init():
        return init_state(
            model, optimizer, image_size=config.image_size, seed=config.train.seed
        )

    spec = StepSpec(model, optimizer, config, sharding.AXIS)
    return StepParts(model, spec, init)


def lower_step(
    config: Config, placement: sharding.Placement, *, frames: int
) -> jax.stages.Lowered:
    """The training step as training compiles it, lowered for the placement's devices.

    Args:
      frames: number of frames on the devices under --cache=device.
    """
    parts = step_parts(config, placement)
    stacked, cached = config.train.steps_per_call > 1, config.data.cache == "device"
    run = placement.mapped(*parts.step(config), table=cached, stacked=stacked)
    state = placement.state_shapes(jax.eval_shape(parts.init))
    batch = batch_shapes(config, config.frame_size)
    if cached:
        batch = {"position": batch["position"], "rows": batch["position"]}
    arguments = [placement.shapes(batch, sharding.batch_spec(stacked))]
    if cached:
        table = _device_cache(config, frames, len(placement.devices))
        arguments.append(placement.shapes(table, P(sharding.AXIS)))

    def call(*arguments):  # jit would use the options that pmap stored on `run`
        return run(*arguments)

    return jax.jit(call, donate_argnums=0).lower(state, *arguments)


def _device_cache(
    config: Config, frames: int, devices: int
) -> dict[str, jax.ShapeDtypeStruct]:
    rows = -(-frames // devices) * devices
    height, width = config.frame_size
    return {
        "rgb": jax.ShapeDtypeStruct((rows, height * width * 3), jnp.uint8),
        "depth_codes": jax.ShapeDtypeStruct((rows, height * width), jnp.uint16),
    }


@dataclasses.dataclass(frozen=True)
class Part:
    """A module of the network with its input.

    Attributes:
      path: names from the network to the module.
      module: the module without its parent.
      x: shape and dtype of its input.
      options: keyword arguments of its call.
    """

    path: tuple[str, ...]
    module: nn.Module
    x: Any
    options: dict[str, Any]


def parts_of(config: Config) -> list[Part]:
    """All modules of the network with their inputs, in the order of their calls."""
    parts: list[Part] = []

    def record(call, args, kwargs, context):
        module = context.module
        # A module that takes a kernel besides its input cannot be called alone.
        if context.method_name == "__call__" and len(args) == 1:
            shape = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
            parts.append(Part(module.path, module.clone(), shape, kwargs))
        return call(*args, **kwargs)

    model = models.create(config.model, bn_axis=None)
    image = jax.ShapeDtypeStruct(
        (int(config.train.batch_size), *config.image_size, 3), jnp.float32
    )

    def forward(image):
        variables = model.init(jax.random.key(0), image)
        with nn.intercept_methods(record):
            model.apply(variables, image, train=True, mutable=["batch_stats"])

    jax.eval_shape(forward, image)
    return parts


def select(parts: Sequence[Part], name: str) -> list[Part]:
    """The modules that --block names, in order. Raises UserError for unknown names."""
    if name == "stem":
        first = next(part for part in parts if part.path == ("encoder",))
        if hasattr(first.module, "stage_sizes"):
            stem = first.module.clone(stage_sizes=())
            return [dataclasses.replace(first, module=stem)]
    path = tuple(name.split("/"))
    exact = [part for part in parts if part.path == path]
    near = [part for part in parts if len(part.path) in (1, 2)]
    named = [part for part in near if part.path[-1] == name]
    stage = [part for part in near if part.path[-1].startswith(f"{name}_block")]
    selected = exact or named or stage
    if not selected:
        words = [re.sub(r"_block\d+$", "", part.path[-1]) for part in near]
        names = ", ".join(dict.fromkeys(["augment", "stem", *words]))
        raise UserError(
            f"--block={name}: expected one of {names}, or the path of a module"
        )
    return selected


def lower_block(
    config: Config, placement: sharding.Placement, *, block: str
) -> jax.stages.Lowered:
    """A block of the network, forward and backward, lowered for the same devices.

    The arguments are its variables, its input and the gradient of its output. The
    gradient of the input is computed unless the input is the image.
    """
    placement = dataclasses.replace(placement, kind="jit")
    if block == "augment":
        return _lower_augment(config, placement)
    parts = select(parts_of(config), block)
    variables = [
        jax.eval_shape(
            lambda x, part=part: part.module.init(jax.random.key(0), x, **part.options),
            part.x,
        )
        for part in parts
    ]
    shared = placement.statistics(config.model.bn)
    sharded = [dataclasses.replace(p, module=_on_axis(p.module, shared)) for p in parts]
    of_image = parts[0].x.shape[-1] == 3
    run = jax.shard_map(
        functools.partial(_forward_and_gradients, sharded, of_image),
        mesh=placement.mesh,
        in_specs=(P(), P(sharding.AXIS), P(sharding.AXIS)),
        out_specs=(P(), P(sharding.AXIS)),
        check_vma=False,
    )
    y = jax.eval_shape(lambda v, x: _forward(parts, v, x)[0], variables, parts[0].x)
    split = P(sharding.AXIS)
    arguments = (
        placement.shapes(variables, P()),
        placement.shapes(parts[0].x, split),
        placement.shapes(y, split),
    )
    return jax.jit(run).lower(*arguments)


def _lower_augment(config: Config, placement: sharding.Placement) -> jax.stages.Lowered:
    """The augmentation: from stored frames to the network's input and target."""

    def run(batch):
        keys = augment.example_keys(config.train.seed, 0, batch["position"])
        image, depth = augment.augment(
            batch["rgb"],
            batch["depth_codes"],
            keys,
            size=config.image_size,
            policy=config.data.augment,
        )
        return normalize(image, config.model.layout), depth

    split = P(sharding.AXIS)
    run = jax.shard_map(run, mesh=placement.mesh, in_specs=split, out_specs=split)
    batch = batch_shapes(config.replace(steps_per_call=1), config.frame_size)
    return jax.jit(run).lower(placement.shapes(batch, split))


def _on_axis(module: nn.Module, shared: tuple[str | None, Any]) -> nn.Module:
    """The module with batch statistics over an axis and its groups."""
    fields = (("bn_axis", "bn_groups"), ("axis_name", "axis_index_groups"))
    changes: dict[str, Any] = {
        name: value
        for names in fields
        for name, value in zip(names, shared, strict=True)
        if hasattr(module, name)
    }
    if hasattr(module, "norm"):  # a block, with its normalisation layer
        of_norm = dict(zip(fields[1], shared, strict=True))
        changes["norm"] = functools.partial(module.norm, **of_norm)
    return module.clone(**changes)


def _forward(parts: Sequence[Part], variables: Sequence[Any], x: Any):
    """Output of the last part, and the new batch statistics of all parts."""
    batch_stats = []
    for part, values in zip(parts, variables, strict=True):
        with contextlib.ExitStack() as scopes:
            # The scopes of the network, after the network's own name; the module adds
            # its name.
            for word in ("part", *part.path[:-1]):
                scopes.enter_context(jax.named_scope(word))
            x, updated = part.module.apply(
                values, x, mutable=["batch_stats"], **part.options
            )
        batch_stats.append(updated)
    return x, batch_stats


def _forward_and_gradients(parts, of_image: bool, variables, x, gradient):
    def forward(params, x):
        full = [v | {"params": p} for v, p in zip(variables, params, strict=True)]
        return _forward(parts, full, x)

    params = [v["params"] for v in variables]
    if of_image:
        _, pull, batch_stats = jax.vjp(lambda p: forward(p, x), params, has_aux=True)
        (grads,), of_input = pull(gradient), ()
    else:
        _, pull, batch_stats = jax.vjp(forward, params, x, has_aux=True)
        grads, of_input = pull(gradient)
    return (jax.lax.psum(grads, sharding.AXIS), batch_stats), of_input
