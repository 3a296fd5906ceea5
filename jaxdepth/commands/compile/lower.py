"""What `tpu_compile` compiles: the training step, or one of its blocks, lowered.

Shapes stand for arrays, described chips for devices; everything else is training's own.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdepth.config import Config
from jaxdepth.models import normalize
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import augment, builders, sharding
from jaxdepth.training.step import init_state, train_step, train_step_on_table


def lower_step(
    config: Config, placement: sharding.Placement, *, frames: int
) -> jax.stages.Lowered:
    """The training step as training compiles it, lowered for the placement's devices.

    `frames`: of the table on the devices, under --cache=device.
    """
    model = _model(config)
    state = jax.eval_shape(
        lambda: init_state(
            model,
            lambda params: builders.build_optimizer(config, params),
            image_size=config.image_size,
            seed=config.seed,
        )
    )
    optimizer = builders.build_optimizer(config, state.params)
    spec = builders.build_spec(config, model, optimizer, axis_name=sharding.AXIS)
    stacked = config.steps_per_call > 1

    on_table = config.cache == "device"
    step, settled = train_step, (spec,)
    if on_table:
        step, settled = train_step_on_table, (spec, config.frame_size)
    run = placement.mapped(step, *settled, table=on_table, stacked=stacked)

    state = _laid(state, placement, P())
    batches = P(None, sharding.AXIS) if stacked else P(sharding.AXIS)
    arguments = [_laid(_batch(config), placement, batches)]
    if on_table:
        table = _table(config, frames, len(placement.devices))
        arguments.append(_laid(table, placement, P(sharding.AXIS)))

    def call(*arguments):  # under pmap, jit would see the mapped function's own flags
        return run(*arguments)

    return jax.jit(call, donate_argnums=0).lower(state, *arguments)


def _model(config: Config) -> nn.Module:
    bn_axis = sharding.AXIS if config.bn == "global" else None
    return builders.build_model(config, bn_axis=bn_axis)


def _laid(tree: Any, placement: sharding.Placement, spec: P) -> Any:
    """Shapes as the placement lays such arrays over its devices."""
    devices = len(placement.devices)

    def laid(x) -> jax.ShapeDtypeStruct:
        shape, place = list(x.shape), spec
        if placement.kind == "pmap":  # axis 0 counts devices
            if spec:
                shape[len(spec) - 1] //= devices
            shape, place = [devices, *shape], P(sharding.AXIS)
        sharded = NamedSharding(placement.mesh, place)
        return jax.ShapeDtypeStruct(tuple(shape), x.dtype, sharding=sharded)

    return jax.tree.map(laid, tree)


def _batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    lead = (int(config.batch_size),)
    if config.steps_per_call > 1:
        lead = (config.steps_per_call, *lead)
    batch = {"position": jax.ShapeDtypeStruct(lead, jnp.int32)}
    if config.cache == "device":
        return batch | {"rows": jax.ShapeDtypeStruct(lead, jnp.int32)}
    frame = config.frame_size
    return batch | {
        "rgb": jax.ShapeDtypeStruct((*lead, *frame, 3), jnp.uint8),
        "depth_mm": jax.ShapeDtypeStruct((*lead, *frame), jnp.uint16),
    }


def _table(
    config: Config, frames: int, devices: int
) -> dict[str, jax.ShapeDtypeStruct]:
    rows = -(-frames // devices) * devices
    height, width = config.frame_size
    return {
        "rgb": jax.ShapeDtypeStruct((rows, height * width * 3), jnp.uint8),
        "depth_mm": jax.ShapeDtypeStruct((rows, height * width), jnp.uint16),
    }


@dataclasses.dataclass(frozen=True)
class Part:
    """A module of the network, alone.

    Attributes:
      path: in the network.
      module: without a parent.
      x: its input.
      options: other arguments of its call.
    """

    path: tuple[str, ...]
    module: nn.Module
    x: Any
    options: dict[str, Any]


def parts_of(config: Config) -> list[Part]:
    """All modules of the network in the order of their calls, with their inputs."""
    found: list[Part] = []

    def record(call, args, kwargs, context):
        module = context.module
        # What takes a kernel besides its input is no part that stands alone.
        if context.method_name == "__call__" and len(args) == 1:
            shape = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
            found.append(Part(module.path, module.clone(), shape, kwargs))
        return call(*args, **kwargs)

    model = builders.build_model(config, bn_axis=None)
    image = jax.ShapeDtypeStruct(
        (int(config.batch_size), *config.image_size, 3), jnp.float32
    )

    def forward(image):
        variables = model.init(jax.random.key(0), image)
        with nn.intercept_methods(record):
            model.apply(variables, image, train=True, mutable=["batch_stats"])

    jax.eval_shape(forward, image)
    return found


def chosen(parts: Sequence[Part], name: str) -> list[Part]:
    """The modules that --block names, one after another; UserError if none."""
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
    found = exact or named or stage
    if not found:
        words = [re.sub(r"_block\d+$", "", part.path[-1]) for part in near]
        known = ", ".join(dict.fromkeys(["augment", "stem", *words]))
        raise UserError(f"--block={name}: one of {known}, or the path of a module")
    return found


def lower_block(
    config: Config, placement: sharding.Placement, *, block: str
) -> jax.stages.Lowered:
    """Part of the network, forward and gradients, lowered for the same devices.

    Its input and the gradient of its output are arguments; the gradient of the input
    is computed unless the input is the image.
    """
    placement = dataclasses.replace(placement, kind="jit")
    if block == "augment":
        return _lower_augment(config, placement)
    parts = chosen(parts_of(config), block)
    variables = [
        jax.eval_shape(
            lambda x, part=part: part.module.init(jax.random.key(0), x, **part.options),
            part.x,
        )
        for part in parts
    ]
    axis = sharding.AXIS if config.bn == "global" else None
    placed = [dataclasses.replace(p, module=_on_axis(p.module, axis)) for p in parts]
    of_image = parts[0].x.shape[-1] == 3
    run = jax.shard_map(
        functools.partial(_forward_and_gradients, placed, of_image),
        mesh=placement.mesh,
        in_specs=(P(), P(sharding.AXIS), P(sharding.AXIS)),
        out_specs=(P(), P(sharding.AXIS)),
        check_vma=False,
    )
    y = jax.eval_shape(lambda v, x: _forward(parts, v, x)[0], variables, parts[0].x)
    split = P(sharding.AXIS)
    arguments = (
        _laid(variables, placement, P()),
        _laid(parts[0].x, placement, split),
        _laid(y, placement, split),
    )
    return jax.jit(run).lower(*arguments)


def _lower_augment(config: Config, placement: sharding.Placement) -> jax.stages.Lowered:
    """From stored frames to the network's input and the truth."""

    def run(batch):
        keys = augment.example_keys(config.seed, 0, batch["position"])
        image, depth = augment.augment(
            batch["rgb"],
            batch["depth_mm"],
            keys,
            size=config.image_size,
            policy=config.augment,
        )
        return normalize(image, config.layout), depth

    split = P(sharding.AXIS)
    run = jax.shard_map(run, mesh=placement.mesh, in_specs=split, out_specs=split)
    plain = dataclasses.replace(config, steps_per_call=1, cache="none")
    return jax.jit(run).lower(_laid(_batch(plain), placement, split))


def _on_axis(module: nn.Module, axis: str | None) -> nn.Module:
    changes: dict[str, Any] = {
        field: axis for field in ("bn_axis", "axis_name") if hasattr(module, field)
    }
    if hasattr(module, "norm"):  # a block, with its normalisation layer
        changes["norm"] = functools.partial(module.norm, axis_name=axis)
    return module.clone(**changes)


def _forward(parts: Sequence[Part], variables: Sequence[Any], x: Any):
    """Output of the last part; all new batch statistics."""
    kept = []
    for part, values in zip(parts, variables, strict=True):
        with contextlib.ExitStack() as scopes:
            # As in the whole network, whose own name stands first; a module adds its.
            for word in ("part", *part.path[:-1]):
                scopes.enter_context(jax.named_scope(word))
            x, changed = part.module.apply(
                values, x, mutable=["batch_stats"], **part.options
            )
        kept.append(changed)
    return x, kept


def _forward_and_gradients(parts, of_image: bool, variables, x, gradient):
    def forward(params, x):
        full = [v | {"params": p} for v, p in zip(variables, params, strict=True)]
        return _forward(parts, full, x)

    params = [v["params"] for v in variables]
    if of_image:
        _, pull, kept = jax.vjp(lambda p: forward(p, x), params, has_aux=True)
        (grads,), of_input = pull(gradient), ()
    else:
        _, pull, kept = jax.vjp(forward, params, x, has_aux=True)
        grads, of_input = pull(gradient)
    return (jax.lax.psum(grads, sharding.AXIS), kept), of_input
