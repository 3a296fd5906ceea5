"""This project's training step and forward pass as workloads to time."""

import contextlib
import dataclasses
import functools
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
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdepth import models
from jaxdepth.commands.benchmark import machine, noise
from jaxdepth.commands.benchmark.settings import (
    LEVEL,
    NetworkSettings,
    RejectedOption,
    Size,
    TrainSettings,
)
from jaxdepth.commands.benchmark.timing import Workload
from jaxdepth.commands.compile import costs, hlo, lower
from jaxdepth.config import Config
from jaxdepth.runtime.errors import one_line
from jaxdepth.training.sharding import AXIS, Placement

NAME = "jaxdepth"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's report on a program; values that it does not report are None.

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

    def hlo(self) -> str:
        """The optimised HLO; "" if the backend does not give it."""
        with contextlib.suppress(Exception):  # backends raise different errors
            return (self.text and self.text()) or ""
        return ""

    def kernel_bytes(self) -> int:
        """Bytes that the kernels of a call read and write; 0 if unknown.

        These are operands and results of the HLO's instructions, without the memory
        that convolutions of cuDNN use as workspace.
        """
        return costs.work(hlo.parse(self.hlo())).traffic


class Subject(NamedTuple):
    """A workload with its compiler report, network and number of parameters."""

    workload: Workload
    compiled: Compiled
    model: nn.Module
    parameters: int


def subject(
    settings: NetworkSettings, batch_size: int, image_size: Size, devices: list[Any]
) -> contextlib.AbstractContextManager[Subject]:
    """The training step or forward pass of the settings, on the given devices.

    Raises: MemoryError if a training step needs more memory than is available.
    """
    if isinstance(settings, TrainSettings):
        return trainer(settings, batch_size, image_size, devices)
    return contextlib.nullcontext(predictor(settings, batch_size, image_size, devices))


@contextlib.contextmanager
def _jax_options(settings: NetworkSettings) -> Iterator[None]:
    """Trace and compile with the arithmetic of --tf32 and the level of --options.

    Raises: RejectedOption if the compiler or JAX rejects an option of --options.
    """
    level = settings.compiler_options().get(LEVEL)
    before = jax.config.jax_optimization_level  # pyright: ignore[reportAttributeAccessIssue]
    precision = None
    if jax.default_backend() == "gpu" and settings.precision == "f32":
        precision = "tensorfloat32" if settings.tf32 == "on" else "highest"
    try:
        if level is not None:
            jax.config.update("jax_optimization_level", level)
        with jax.default_matmul_precision(precision):
            yield
    except (jax.errors.JaxRuntimeError, TypeError, ValueError) as error:
        if not _is_rejection(error):
            raise
        message = f"--options={settings.options}: {one_line(error)}"
        raise RejectedOption(message) from None
    finally:
        if level is not None:
            jax.config.update("jax_optimization_level", before)


def _is_rejection(error: Exception) -> bool:
    """Whether the compiler rejects an option, or JAX an optimization level."""
    words = ("No such compile option", "While setting option", "new enum value must be")
    return any(word in str(error) for word in words)


def _compile(
    jitted: Any, *args: Any, settings: NetworkSettings, options: dict[str, Any]
) -> tuple[Callable, Compiled]:
    """Compile a function of `jax.jit` or `jax.pmap` for these arguments."""
    own = settings.compiler_options()
    options = options | {k: v for k, v in own.items() if k != LEVEL}
    start = time.perf_counter()
    with _jax_options(settings):
        program = jitted.lower(*args).compile(options)
    seconds = time.perf_counter() - start
    cost: dict[str, Any] = {}
    memory = None
    with contextlib.suppress(Exception):  # backends raise different errors
        found: Any = program.cost_analysis() or {}
        cost = found[0] if isinstance(found, list) else found
    with contextlib.suppress(Exception):
        memory = program.memory_analysis()
    return program, Compiled(
        seconds,
        flops=cost.get("flops"),
        bytes=cost.get("bytes accessed"),
        temporary=memory.temp_size_in_bytes if memory else None,
        arguments=memory.argument_size_in_bytes if memory else None,
        text=program.as_text,  # pyright: ignore[reportArgumentType]
    )


def check_memory(compiled: Compiled) -> None:
    """Raise MemoryError if a program needs more memory than is available.

    Checked before the program runs, because on CPU the system would kill the process.
    """
    needed = (compiled.temporary or 0) + (compiled.arguments or 0)
    if needed > machine.memory_limit():
        raise MemoryError("out of memory, from the compiler's estimate")


@contextlib.contextmanager
def trainer(
    settings: TrainSettings, batch_size: int, image_size: Size, devices: list[Any]
) -> Iterator[Subject]:
    """The training step of a run with these flags, on random frames."""
    config = settings.config(batch_size, image_size)
    placement = Placement.over(config.train.parallel, devices)
    placement.check_batch(batch_size, config.train.accumulate)
    parts = lower.step_parts(config, placement, settings.widths)
    state = parts.init()
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    # In a dict, so that the state is freed when the subject is closed.
    holder = {"state": placement.place_state(state)}
    del state
    with _input(settings, config, placement) as (tables, next_batch):
        stacked = config.train.steps_per_call > 1
        step = placement.mapped(
            *parts.step(config), table=bool(tables), stacked=stacked
        )
        if placement.kind == "jit":
            step = jax.jit(step, donate_argnums=0)
        arguments = (holder["state"], next_batch(), *tables)
        options = placement.compiler_options()
        program, compiled = _compile(
            step, *arguments, settings=settings, options=options
        )
        del arguments
        check_memory(compiled)

        def call():
            holder["state"], logs = program(holder["state"], next_batch(), *tables)
            return logs

        images = batch_size * config.train.steps_per_call
        workload = Workload(NAME, call, jax.block_until_ready, images)
        try:
            yield Subject(workload, compiled, parts.model, parameters)
        finally:
            holder.clear()


@contextlib.contextmanager
def _input(settings: TrainSettings, config: Config, placement: Placement):
    """Yield the device cache, () if frames come from the host, and `next_batch`."""
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
        yield (table,), lambda: place(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = noise.store_of(settings.frames, frame, Path(folder) / "noise")
        with noise.batches_of(store, batch_size, cache=config.data.cache) as source:
            yield (), lambda: place(source)


def _forward(
    settings: NetworkSettings, batch_size: int, image_size: Size, devices: list[Any]
) -> tuple[Callable[[jax.Array], jax.Array], NamedSharding, dict[str, Any]]:
    """Compile the forward pass from uint8 images to metres, both on the devices.

    Returns: the function, the sharding of its images, and fields of a `Subject`.
    """
    config = settings.config(batch_size, image_size)
    model = models.create(config.model).clone(**settings.widths)
    image = jnp.zeros((1, *image_size, 3), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), image)
    placement = Placement.over("jit", devices)
    placement.check_batch(batch_size, 1)
    variables = jax.device_put(variables, NamedSharding(placement.mesh, P()))
    sharding = NamedSharding(placement.mesh, P(AXIS))
    shape = (batch_size, *image_size, 3)
    rgb = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)

    def forward(variables, rgb):
        image = rgb.astype(jnp.float32)
        return models.predict(model, variables, image, layout=config.model.layout)

    options = placement.compiler_options()
    program, compiled = _compile(
        jax.jit(forward), variables, rgb, settings=settings, options=options
    )
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    run = functools.partial(program, variables)
    fields = {"compiled": compiled, "model": model, "parameters": parameters}
    return run, sharding, fields


def predictor(
    settings: NetworkSettings, batch_size: int, image_size: Size, devices: list[Any]
) -> Subject:
    """The forward pass from uint8 images to metres, both on the devices."""
    forward, sharding, fields = _forward(settings, batch_size, image_size, devices)
    pool = noise.images(batch_size, image_size)
    images = itertools.cycle([jax.device_put(x, sharding) for x in pool])
    workload = Workload(
        NAME, lambda: forward(next(images)), jax.block_until_ready, batch_size
    )
    return Subject(workload, **fields)


def single_frames(settings: NetworkSettings, image_size: Size) -> list[Workload]:
    """The forward pass of one frame, waited for: on the device, and from the host."""
    forward, sharding, _ = _forward(settings, 1, image_size, jax.devices()[:1])
    pool = noise.images(1, image_size, count=8)
    host_images = itertools.cycle(pool)
    images = itertools.cycle([jax.device_put(x, sharding) for x in pool])

    def on_device():
        return jax.block_until_ready(forward(next(images)))

    def with_transfers():
        image = jax.device_put(next(host_images), sharding)
        return np.asarray(forward(image))

    return [
        Workload(f"{NAME}, image and depth on the device", on_device, lambda _: None),
        Workload(f"{NAME}, from and to the host", with_transfers, lambda _: None),
    ]
