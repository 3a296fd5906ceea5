"""The training step and the forward pass: pure functions, no I/O, no devices.

The step refers to other devices only by the name of the axis that it sums over;
`sharding.py` places it on devices.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt16

from jaxdepth import losses
from jaxdepth.config import Config
from jaxdepth.data import units
from jaxdepth.models import normalize, predict
from jaxdepth.ops import resize
from jaxdepth.training import augment, device_cache, device_state
from jaxdepth.training.state import PyTree, TrainState, update_ema

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """Static arguments of a step.

    Attributes:
      model: a network from `models.create`.
      optimizer: an optimizer from `optimizer.create`.
      config: resolved configuration.
      axis_name: name of the device axis; None on a single device.
      depth_unit: codes per metre of the store that the batches come from.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    config: Config
    axis_name: str | None = None
    depth_unit: int = 1000


def batch_shapes(
    config: Config, frame: tuple[int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of `train_step`; with --steps_per_call, axis 0 counts steps.

    Args:
      frame: (height, width) of the stored frames.
    """
    leading = (int(config.train.batch_size),)
    if config.train.steps_per_call > 1:
        leading = (config.train.steps_per_call, *leading)
    return {
        "rgb": jax.ShapeDtypeStruct((*leading, *frame, 3), jnp.uint8),
        "depth_codes": jax.ShapeDtypeStruct((*leading, *frame), jnp.uint16),
        "position": jax.ShapeDtypeStruct(leading, jnp.int32),
    }


def valid_depth(
    depth: Float[Array, "b h w"], *, max_depth: float
) -> Bool[Array, "b h w"]:
    """Mask of valid ground truth: finite, above 0, at most `max_depth` metres."""
    return jnp.isfinite(depth) & (depth > 0) & (depth <= max_depth)


def to_training_frame(
    rgb: UInt8[Any, "b h w 3"],
    depth_codes: UInt16[Any, "b h w"],
    size: tuple[int, int],
    *,
    max_depth: float = math.inf,
    depth_unit: int = 1000,
) -> tuple[jax.Array, jax.Array]:
    """Shrink stored frames to the training frame: area means, over valid depth.

    Depth beyond `max_depth` metres is removed first, since it would be averaged into
    its neighbours. Frames of that size pass through. The dtypes stay.

    Args:
      rgb, depth_codes: stored frames; depth in codes, 0 = missing.
      size: (height, width) of the training frame.
      max_depth: metres.
      depth_unit: codes per metre; 1000: millimetres.
    """
    if rgb.shape[1:3] == size:
        return rgb, depth_codes
    small = resize.resize_area(rgb.astype(jnp.float32), size)
    farthest = min(units.FARTHEST_CODE / depth_unit, max_depth)
    last_code = units.last_code(farthest, depth_unit)
    known = (depth_codes > 0) & (depth_codes <= last_code)
    depth, valid = resize.masked_area(depth_codes.astype(jnp.float32), known, size)
    depth = jnp.where(valid, jnp.round(depth), 0)
    return jnp.round(small).astype(rgb.dtype), depth.astype(depth_codes.dtype)


def _loss_sums(spec: StepSpec, params, batch_stats, image, depth, keys):
    """Sum of per-image losses; number of images that count, new batch statistics."""
    pred, changed = spec.model.apply(
        {"params": params, "batch_stats": batch_stats},
        normalize(image, spec.config.model.layout),
        train=True,
        keys=keys,
        mutable=["batch_stats"],
    )
    total, images = _loss_against(spec, pred, depth)
    return total, (images, changed.get("batch_stats", batch_stats))


def _loss_against(spec: StepSpec, pred, depth):
    """Sum of per-image losses against depth of any size, and the image count."""
    valid = valid_depth(depth, max_depth=spec.config.data.max_depth)
    height, width = pred.shape[1:3]
    target, valid = resize.masked_area(depth, valid, (height, width))
    loss = spec.config.loss
    return losses.loss_sums(
        loss.name,
        pred,
        target,
        valid=valid,
        options=losses.LossOptions(loss.si_lambda, loss.berhu_scope, spec.axis_name),
    )


def _views(spec: StepSpec, batch: Batch, keys: jax.Array, policy: str):
    """Images, 0 to 255, and depth in metres at the network's input size."""
    rgb, depth_codes = to_training_frame(
        batch["rgb"],
        batch["depth_codes"],
        spec.config.frame_size,
        max_depth=spec.config.data.max_depth,
        depth_unit=spec.depth_unit,
    )
    return augment.augment(
        rgb,
        depth_codes,
        keys,
        size=spec.config.image_size,
        policy=policy,
        depth_unit=spec.depth_unit,
    )


def _microbatch(spec: StepSpec, params, step, batch_stats, batch: Batch):
    """Gradient sum, loss sum, image count and statistics of one microbatch."""
    keys = augment.example_keys(spec.config.train.seed, step, batch["position"])
    augment_keys, dropout_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    image, depth = _views(spec, batch, augment_keys, spec.config.data.augment)
    value_and_grad = jax.value_and_grad(_loss_sums, argnums=1, has_aux=True)
    (total, (images, batch_stats)), grads = value_and_grad(
        spec, params, batch_stats, image, depth, dropout_keys
    )
    return grads, total, images, batch_stats


def gradients(
    spec: StepSpec, state: TrainState, batch: Batch
) -> tuple[PyTree, Float[Array, ""], Int[Array, ""] | Float[Array, ""], PyTree]:
    """Loss and its gradient over the global batch, and the new batch statistics.

    Losses, image counts and gradients are summed over microbatches and devices and
    divided once, so that uneven numbers of images with ground truth do not matter.

    Returns: (gradient, loss, images that count, batch_stats); the gradient is arranged
      as the parameters are.
    """
    named = dataclasses.replace(state, params=device_state.by_name(state.params))
    if spec.config.train.accumulate == 1:
        sums = _microbatch(spec, named.params, state.step, state.batch_stats, batch)
    else:
        sums = _accumulated(spec, named, batch)
    grads, total, images, batch_stats = sums
    # First, so that sums and products below have few arrays.
    grads = device_state.arranged_like(state.params, grads)
    if spec.axis_name is not None:
        grads, total, images = jax.lax.psum((grads, total, images), spec.axis_name)
        # Global statistics are equal on all devices already; per-device running
        # statistics are averaged.
        batch_stats = jax.lax.pmean(batch_stats, spec.axis_name)
    share = 1.0 / jnp.maximum(images, 1.0)
    return jax.tree.map(lambda g: g * share, grads), total * share, images, batch_stats


def _accumulated(spec: StepSpec, state: TrainState, batch: Batch):
    """`_microbatch` summed over `accumulate` microbatches."""
    parts = jax.tree.map(
        lambda x: x.reshape(spec.config.train.accumulate, -1, *x.shape[1:]), batch
    )

    def add(carry, part):
        grads, total, images, batch_stats = carry
        g, t, n, batch_stats = _microbatch(
            spec, state.params, state.step, batch_stats, part
        )
        return (jax.tree.map(jnp.add, grads, g), total + t, images + n, batch_stats), ()

    zero = jnp.zeros((), jnp.float32)
    start = (jax.tree.map(jnp.zeros_like, state.params), zero, zero, state.batch_stats)
    return jax.lax.scan(add, start, parts)[0]


def validation_sums(
    spec: StepSpec, variables: PyTree, batch: Batch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The training loss with running statistics, without augmentation and dropout.

    Args:
      variables: parameters and batch statistics.
      batch: `rgb` (b,h,w,3) uint8 and `depth_codes` (b,h,w) uint16 at the size of the
        store; metres = `depth_codes` / `spec.depth_unit`, 0 = missing.

    Returns: the sum of per-image losses, and the number of images with ground truth.
    """
    keys = jax.random.split(jax.random.key(0), len(batch["rgb"]))
    image, depth = _views(spec, batch, keys, "none")
    pred = predict(spec.model, variables, image, layout=spec.config.model.layout)
    return _loss_against(spec, pred, depth)


def global_norm(tree: PyTree) -> Float[Array, ""]:
    """The Euclidean norm of all entries, float32.

    Partial sums are joined before the last reduction. On GPU, a reduction of each leaf
    by itself takes two kernels, and `upproj` has 60 kernels of convolutions.
    """

    def partial_sums(x: Any) -> jax.Array:
        square = jnp.square(x.astype(jnp.float32))
        # Partial sums keep one axis: on GPU the first, so that summed entries are
        # contiguous and one kernel sums them; elsewhere the last, the fastest on CPU.
        axes = range(1, x.ndim) if device_state.is_arranged(tree) else range(x.ndim - 1)
        return jnp.sum(square, axes) if x.ndim > 1 else square.reshape(-1)

    parts = [partial_sums(x) for x in jax.tree.leaves(tree)]
    # Without the barrier, XLA would split the sum again.
    return jnp.sqrt(jnp.sum(jax.lax.optimization_barrier(jnp.concatenate(parts))))


def train_step(
    spec: StepSpec, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of training.

    Args:
      spec: static arguments.
      state: state before the step, by name or arranged for a GPU (`device_state`).
      batch: `rgb` (b,h,w,3) uint8 and `depth_codes` (b,h,w) uint16 at the size of the
        store, metres = `depth_codes` / `spec.depth_unit`, 0 = missing; `position` (b,)
        int32, each image's index in the global batch, which determines its augmentation
        together with seed and step.

    Returns: the new state, and `loss`, `grad_norm`, `images` (with ground truth) and
    `skipped` (1 if loss or gradient was not finite).
    """
    grads, loss, images, batch_stats = gradients(spec, state, batch)
    updates, opt_state = spec.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    grad_norm = global_norm(grads)
    new = TrainState(state.step + 1, params, batch_stats, opt_state)
    if spec.config.train.ema:
        average = update_ema(
            state.average, new.network, decay=spec.config.train.ema, step=state.step
        )
        new = dataclasses.replace(new, average=average)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    if spec.config.train.on_nan == "skip":
        opt_state = _on_schedule(state.opt_state, opt_state)
        unchanged = dataclasses.replace(state, step=new.step, opt_state=opt_state)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, unchanged)
    skipped = 1.0 - finite.astype(jnp.float32)
    logs = {"loss": loss, "grad_norm": grad_norm, "images": images, "skipped": skipped}
    return new, logs


def _on_schedule(before: Any, new: Any) -> Any:
    """The optimizer state before the step, with the schedule's count after it."""

    def is_rate(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    return jax.tree.map(
        lambda a, b: b if is_rate(b) else a, before, new, is_leaf=is_rate
    )


def train_step_on_table(
    spec: StepSpec,
    frame: tuple[int, int],
    state: TrainState,
    batch: Batch,
    frames: device_cache.Table,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`train_step` on frames of the device cache.

    Args:
      spec, state: as in `train_step`.
      frame: (height, width) of the frames.
      batch: `rows` (b,) int32, indices into the cache, and `position` (b,) int32.
      frames: this device's part of the cache, see `device_cache`.
    """
    gathered = device_cache.gather(
        frames, batch["rows"], frame=frame, axis_name=spec.axis_name
    )
    return train_step(spec, state, {**gathered, "position": batch["position"]})


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    image_size: tuple[int, int],
    seed: int,
) -> TrainState:
    """Initialize the training state.

    Args:
      model: the network.
      optimizer: its optimizer.
      image_size: (height, width) of the network's input.
      seed: seed of the parameters.
    """
    image = jnp.zeros((1, *image_size, 3), jnp.float32)
    # The hardware generator compiles twice as fast as the default one.
    rng = jax.random.key(seed, impl="rbg")

    # One program: outside of it, the optimizer's state compiles one per shape.
    @jax.jit
    def init(rng: jax.Array) -> tuple[PyTree, PyTree]:
        variables = model.init(rng, image)
        params = variables["params"]
        return variables, optimizer.init(params)

    variables, opt_state = init(rng)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=opt_state,
    )
