"""This project's training step and forward pass as workloads to time."""

import contextlib
import dataclasses
import itertools
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
from jaxdepth.commands.benchmark import machine, noise
from jaxdepth.commands.benchmark.settings import NetworkSettings, Size, TrainSettings
from jaxdepth.commands.benchmark.timing import Workload
from jaxdepth.commands.compile import lower
from jaxdepth.config import Config
from jaxdepth.data import pipeline
from jaxdepth.ops import platform
from jaxdepth.training import step as step_lib
from jaxdepth.training.sharding import AXIS, Placement

NAME = "jaxdepth"
POOL = 4  # batches of images that inference cycles through


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler reports about a program; None if it does not.

    Attributes:
      seconds: tracing and compiling.
      flops, bytes: per call and device, from XLA's cost analysis.
      temporary, arguments: bytes per device of temporaries and of arguments.
      text: returns the optimised HLO.
    """

    seconds: float
    flops: float | None = None
    bytes: float | None = None
    temporary: int | None = None
    arguments: int | None = None
    text: Callable[[], str] | None = None


class Subject(NamedTuple):
    """Our workload, and what is known about it without running it."""

    workload: Workload
    compiled: Compiled
    model: nn.Module
    parameters: int


@contextlib.contextmanager
def subject(
    settings: NetworkSettings, batch_size: int, image_size: Size, devices: list[Any]
) -> Iterator[Subject]:
    """The training step or forward pass of the settings, on the given devices.

    Raises: MemoryError if a training step needs more memory than there is.
    """
    if not isinstance(settings, TrainSettings):
        yield predictor(settings, batch_size, image_size, devices)
        return
    with trainer(settings, batch_size, image_size, devices) as made:
        yield made


def describe(compiled: jax.stages.Compiled, seconds: float) -> Compiled:
    """The costs of a program, as far as this platform's compiler reports them."""
    cost, memory = {}, None
    with contextlib.suppress(Exception):  # backends raise different errors
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
    donate: tuple[int, ...] = (),
    options: dict[str, Any] | None = None,
) -> tuple[Callable, Compiled]:
    """Compile a function for these arguments."""
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*args)
    program = lowered.compile(options)
    return program, describe(program, time.perf_counter() - start)


def check_memory(compiled: Compiled) -> None:
    """Raise MemoryError if a program needs more memory than there is.

    Checked before the program runs, because on CPU the system would kill the process.
    """
    if compiled.temporary is None or compiled.arguments is None:
        return
    if compiled.temporary + compiled.arguments > machine.memory_limit():
        raise MemoryError("out of memory, from the compiler's estimate")


@contextlib.contextmanager
def trainer(
    settings: TrainSettings, batch_size: int, image_size: Size, devices: list[Any]
) -> Iterator[Subject]:
    """The training step of a run with these flags, on random frames."""
    config = settings.config(batch_size, image_size)
    placement = Placement.over(config.train.parallel, devices)
    placement.check_batch(batch_size, config.train.accumulate)
    parts = lower.step_parts(config, settings.widths)
    state = parts.init()
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    # Not a local variable: the state is to be freed when the subject is closed.
    holder = {"state": placement.place_state(state)}
    del state
    with _input(settings, config, placement) as (table, next_batch):
        step, compiled = _compiled_step(
            config, placement, parts, table, holder["state"], next_batch()
        )
        check_memory(compiled)

        def call():
            holder["state"], logs = step(holder["state"], next_batch())
            return logs

        images = batch_size * config.train.steps_per_call
        workload = Workload(NAME, call, jax.block_until_ready, images)
        try:
            yield Subject(workload, compiled, parts.model, parameters)
        finally:
            holder.clear()


def _compiled_step(
    config: Config,
    placement: Placement,
    parts: lower.StepParts,
    table: Any,
    state: Any,
    batch: Any,
) -> tuple[Callable, Compiled]:
    """Compile (placed state, placed batch) -> (state, logs)."""
    stacked = config.train.steps_per_call > 1
    bound = parts.step(config)
    if config.train.parallel == "pmap":
        # pmap compiles at the first call, which gets a copy because it donates.
        step = placement.compile(*bound, table=table, stacked=stacked)
        start = time.perf_counter()
        copy = placement.place_state(placement.one(state))
        jax.block_until_ready(step(copy, batch))
        return step, Compiled(time.perf_counter() - start)
    tables = () if table is None else (table,)
    program, compiled = _compile(
        placement.mapped(*bound, table=table is not None, stacked=stacked),
        state,
        batch,
        *tables,
        donate=(0,),
        options=placement.compiler_options(),
    )
    return lambda state, batch: program(state, batch, *tables), compiled


@contextlib.contextmanager
def _input(settings: TrainSettings, config: Config, placement: Placement):
    """Yield the device cache (None if frames come from the host) and `next_batch`."""
    steps = config.train.steps_per_call

    def place(source: Iterator[dict[str, np.ndarray]]):
        if steps == 1:
            return placement.place_batch(next(source))
        batches = [next(source) for _ in range(steps)]
        joined = {k: np.stack([b[k] for b in batches]) for k in batches[0]}
        return placement.place_batch(joined, stacked=True)

    batch_size, frame = int(config.train.batch_size), config.frame_size
    if config.data.cache == "device":
        part = noise.table_part(settings.frames, frame, len(placement.devices))
        table = jax.block_until_ready(placement.place_table(part))
        source = noise.rows(settings.frames, batch_size)
        yield table, lambda: place(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = noise.store_of(settings.frames, frame, Path(folder) / "noise")
        with pipeline.batches(
            store,
            np.arange(len(store)),
            depth=store.depths[0],
            seed=0,
            batch_size=batch_size,
            start_step=0,
            stop_step=10**9,
            cache=config.data.cache,
        ) as source:
            yield None, lambda: place(source)


def predictor(
    settings: NetworkSettings, batch_size: int, image_size: Size, devices: list[Any]
) -> Subject:
    """The forward pass from uint8 images to metres, both on the devices."""
    forward, variables, model = _forward(settings, batch_size, image_size)
    mesh = Mesh(np.array(devices), (AXIS,))
    variables = jax.device_put(variables, NamedSharding(mesh, P()))
    Placement.over("jit", devices).check_batch(batch_size, 1)
    shape = (POOL, batch_size, *image_size, 3)
    pool = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    batches = [jax.device_put(x, NamedSharding(mesh, P(AXIS))) for x in pool]
    program, compiled = _compile(
        forward, variables, batches[0], options=platform.compiler_options(devices[0])
    )
    images = itertools.cycle(batches)
    workload = Workload(
        NAME,
        lambda: program(variables, next(images)),
        jax.block_until_ready,
        batch_size,
    )
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    return Subject(workload, compiled, model, parameters)


def single_frames(settings: NetworkSettings, image_size: Size) -> list[Workload]:
    """The forward pass of one frame, waited for: on the device, and from the host."""
    forward, variables, _ = _forward(settings, 1, image_size)
    variables = jax.device_put(variables)
    pool = np.random.default_rng(1).integers(0, 256, (8, 1, *image_size, 3), np.uint8)
    images = [jax.device_put(x) for x in pool]
    options = platform.compiler_options()
    program, _ = _compile(forward, variables, images[0], options=options)
    device_images, host_images = itertools.cycle(images), itertools.cycle(pool)

    def on_device():
        return jax.block_until_ready(program(variables, next(device_images)))

    def with_transfers():
        image = jax.device_put(next(host_images))
        return np.asarray(program(variables, image))

    return [
        Workload(f"{NAME}, image and depth on the device", on_device, lambda _: None),
        Workload(f"{NAME}, from and to the host", with_transfers, lambda _: None),
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
