"""This project's training step and forward pass, ready to be timed."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdepth import models
from jaxdepth.commands.benchmark import noise
from jaxdepth.commands.benchmark.settings import (
    InferSettings,
    NetworkSettings,
    Size,
    TrainSettings,
)
from jaxdepth.commands.benchmark.timing import Contestant
from jaxdepth.config import Config
from jaxdepth.data import pipeline
from jaxdepth.ops import platform
from jaxdepth.training import optimizer as optimizer_lib
from jaxdepth.training import step as step_lib
from jaxdepth.training.sharding import AXIS, Placement
from jaxdepth.training.step import StepSpec, init_state, train_step, train_step_on_table

NAME = "jaxdepth"
POOL = 4  # batches of images that inference goes round


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler said of a program.

    Attributes:
      seconds: tracing and compiling.
      flops, bytes: of a call on one device, as XLA's cost analysis counts them.
      temporary, arguments: bytes on one device beside and as the program's arguments.
      text: the optimised program; None where it can't be had.
    """

    seconds: float
    flops: float | None = None
    bytes: float | None = None
    temporary: int | None = None
    arguments: int | None = None
    text: Callable[[], str] | None = None


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a step without running it."""

    compiled: Compiled
    model: nn.Module
    parameters: int


class Subject(NamedTuple):
    """Our side of a measurement."""

    contestant: Contestant
    facts: Facts


def describe(compiled: jax.stages.Compiled, seconds: float) -> Compiled:
    """A program's costs, as far as this platform's compiler tells them."""
    cost, memory = {}, None
    with contextlib.suppress(Exception):  # each backend has its own way to decline
        cost = compiled.cost_analysis() or {}
    with contextlib.suppress(Exception):
        memory = compiled.memory_analysis()
    return Compiled(
        seconds,
        flops=cost.get("flops"),
        bytes=cost.get("bytes accessed"),
        temporary=memory.temp_size_in_bytes if memory else None,
        arguments=memory.argument_size_in_bytes if memory else None,
        text=compiled.as_text,  # pyright: ignore[reportArgumentType]
    )


def _compile(
    function: Callable,
    *args: Any,
    donate: int | None = None,
    options: dict[str, Any] | None = None,
):
    """A function compiled for these arguments, and what the compiler said."""
    began = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=() if donate is None else donate)
    compiled = jitted.lower(*args).compile(options)
    return compiled, describe(compiled, time.perf_counter() - began)


@contextlib.contextmanager
def trainer(
    settings: TrainSettings,
    batch_size: int,
    image_size: Size,
    devices: list[Any],
    check: Callable[[Compiled], None] = lambda compiled: None,
) -> Iterator[Subject]:
    """The training step of a run with these flags, on random frames.

    `check` is called before the first step; what it raises ends the attempt.
    """
    config = settings.config(batch_size, image_size)
    placement = Placement.over(config.train.parallel, devices)
    placement.check_batch(batch_size, config.train.accumulate)
    model, spec, state = training(config, settings.widths)
    placed = placement.place_state(state)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    with _feed(settings, config, placement) as (table, next_batch):
        step, compiled = _step(config, placement, spec, table, placed, next_batch())
        check(compiled)
        holder = {"state": placed}
        del state, placed

        def call():
            holder["state"], logs = step(holder["state"], next_batch())
            return logs

        images = batch_size * config.train.steps_per_call
        contestant = Contestant(NAME, call, jax.block_until_ready, images)
        try:
            yield Subject(contestant, Facts(compiled, model, parameters))
        finally:
            holder.clear()


def training(config: Config, widths: dict[str, Any]):
    """Network, step and fresh state of a configuration."""
    model = models.create(config.model, bn_axis=AXIS).clone(**widths)
    state = init_state(
        model,
        lambda params: optimizer_lib.create(config, params),
        image_size=config.image_size,
        seed=config.train.seed,
    )
    optimizer = optimizer_lib.create(config, state.params)
    spec = StepSpec(model, optimizer, config, AXIS)
    return model, spec, state


def _step(config, placement, spec, table, placed, batch):
    """(state, batch) -> (state, logs), compiled; and what the compiler said."""
    stacked = config.steps_per_call > 1
    settled: tuple[Any, ...] = (train_step, spec)
    if table is not None:
        settled = (train_step_on_table, spec, config.frame_size)
    if config.parallel == "pmap":
        # It compiles at its first call, which changes nothing that matters here.
        step = placement.compile(*settled, table=table, stacked=stacked)
        began = time.perf_counter()
        copy = placement.place_state(placement.one(placed))
        jax.block_until_ready(step(copy, batch))
        return step, Compiled(time.perf_counter() - began)

    more = () if table is None else (table,)
    program, compiled = _compile(
        placement.mapped(*settled, table=table is not None, stacked=stacked),
        placed,
        batch,
        *more,
        donate=0,
        options=placement.compiler_options(),
    )
    return lambda state, batch: program(state, batch, *more), compiled


@contextlib.contextmanager
def _feed(settings: TrainSettings, config: Config, placement: Placement):
    """The table of frames, None where they come from the host, and batches for ever."""
    stacked = config.train.steps_per_call > 1
    several = config.train.steps_per_call

    def placed(source: Iterator[dict[str, np.ndarray]]):
        batches = [next(source) for _ in range(several)]
        if not stacked:
            return placement.place_batch(batches[0])
        joined = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
        return placement.place_batch(joined, stacked=True)

    if config.data.cache == "device":
        part = noise.table_part(
            settings.frames, config.frame_size, len(placement.devices)
        )
        table = jax.block_until_ready(placement.place_table(part))
        source = noise.rows(settings.frames, int(config.train.batch_size))
        yield table, lambda: placed(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = noise.store_of(
            settings.frames, config.frame_size, Path(folder) / "noise"
        )
        with pipeline.batches(
            store,
            np.arange(len(store)),
            depth=store.depths[0],
            seed=0,
            batch_size=int(config.train.batch_size),
            start_step=0,
            stop_step=10**9,
            cache=config.data.cache,
        ) as source:
            yield None, lambda: placed(source)


def predictor(
    settings: InferSettings,
    batch_size: int,
    image_size: Size,
    devices: list[Any],
) -> Subject:
    """The forward pass, from colours on the devices to metres there."""
    forward, variables, model = _forward(settings, batch_size, image_size)
    mesh = Mesh(np.array(devices), (AXIS,))
    variables = jax.device_put(variables, NamedSharding(mesh, P()))
    Placement.over("jit", devices).check_batch(batch_size, 1)
    shape = (POOL, batch_size, *image_size, 3)
    pool = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    images = [jax.device_put(one, NamedSharding(mesh, P(AXIS))) for one in pool]
    program, compiled = _compile(
        forward, variables, images[0], options=platform.compiler_options(devices[0])
    )
    turn = _round(images)
    contestant = Contestant(
        NAME,
        lambda: program(variables, next(turn)),
        jax.block_until_ready,
        batch_size,
    )
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return Subject(contestant, Facts(compiled, model, parameters))


def one_by_one(settings: InferSettings, image_size: Size) -> list[Contestant]:
    """Frame by frame, each waited for: on the device, and with both ways to it."""
    forward, variables, _ = _forward(settings, 1, image_size)
    variables = jax.device_put(variables)
    pool = np.random.default_rng(1).integers(0, 256, (8, 1, *image_size, 3), np.uint8)
    images = [jax.device_put(one) for one in pool]
    options = platform.compiler_options()
    program, _ = _compile(forward, variables, images[0], options=options)
    on_device, on_host = _round(images), _round(list(pool))

    def here():
        return jax.block_until_ready(program(variables, next(on_device)))

    def there_and_back():
        image = jax.device_put(next(on_host))
        return np.asarray(program(variables, image))

    return [
        Contestant(f"{NAME}, image and depth on the device", here, lambda _: None),
        Contestant(f"{NAME}, from and to the host", there_and_back, lambda _: None),
    ]


def _forward(settings: NetworkSettings, batch_size: int, image_size: Size):
    config = settings.config(batch_size, image_size)
    model = models.create(config.model).clone(**settings.widths)
    image = jnp.zeros((1, *image_size, 3), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), image)

    def forward(variables, rgb):
        image = rgb.astype(jnp.float32)
        return step_lib.predict(model, variables, image, layout=config.model.layout)

    return forward, variables, model


def _round(items: list[Any]) -> Iterator[Any]:
    while True:
        yield from items
