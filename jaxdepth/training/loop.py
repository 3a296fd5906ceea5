"""The training loop: takes the steps; logs, evaluates and saves at intervals."""

import contextlib
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxdepth.config import Config
from jaxdepth.runtime import hosts
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.terminal import progress
from jaxdepth.training.checkpoint import Checkpoints
from jaxdepth.training.metrics_writer import MetricsWriter
from jaxdepth.training.sharding import Placement
from jaxdepth.training.state import TrainState

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the loop ended.

    Attributes:
      state: state after the last step, one copy.
      reason: "done", "preempted" (SIGTERM), "interrupted" (Ctrl-C) or "non_finite".
      images_per_s: training speed over all devices, without the first step, which
        compiles; None if only the first step was taken.
      skipped: number of steps with a loss or gradient that was not finite; skipped
        with --on_nan=skip.
    """

    state: TrainState
    reason: str
    images_per_s: float | None
    skipped: int = 0


class StopSignals:
    """Records SIGTERM and the first Ctrl-C; the loop stops after the current step.

    A second Ctrl-C raises KeyboardInterrupt. Outside the main thread, where Python
    can't handle signals, it does nothing.
    """

    def __init__(self):
        self.reason: str | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.reason is not None:
            raise KeyboardInterrupt
        self.reason = "preempted" if number == signal.SIGTERM else "interrupted"
        logger.info("stopping and saving after this step ... (Ctrl-C again: stop now)")


@dataclasses.dataclass
class _Clock:
    """Counts images and the seconds since `since`, some of them waiting for input."""

    images: int = 0
    since: float = dataclasses.field(default_factory=time.perf_counter)
    waited: float = 0.0

    @property
    def seconds(self) -> float:
        return max(time.perf_counter() - self.since, 1e-9)


class _Meter:
    """Times the steps, and collects their logs until the next log line.

    Attributes:
      interval: clock since the last log line.
      total: clock since the first step, without evaluation and saving.
      skipped: number of steps that were not finite, up to the last log line.
    """

    def __init__(self, config: Config, placement: Placement):
        self._placement = placement
        self._images = config.train.steps_per_call * int(config.train.batch_size)
        self._logs: list[dict] = []
        self.interval, self.total = _Clock(), _Clock()
        self.skipped = 0

    def add(self, logs: dict, waited: float) -> None:
        """Count a call of the step that waited so many seconds for input."""
        self.interval.waited += waited
        self._logs.append(logs)
        for clock in (self.interval, self.total):
            clock.images += self._images

    def restart(self) -> None:
        """Discard the times measured so far: the first step compiles."""
        self.interval, self.total = _Clock(), _Clock()

    @property
    def images_per_s(self) -> float | None:
        return self.total.images / self.total.seconds if self.total.images else None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside from the training time."""
        began = time.perf_counter()
        yield
        lost = time.perf_counter() - began
        self.total.since += lost
        self.interval.since += lost

    def any_non_finite(self) -> bool:
        """Whether a step since the last log line was not finite."""
        return any(np.any(self._placement.one(x)["skipped"]) for x in self._logs)

    def record(self, step: int, learning_rate: Callable) -> dict[str, Any]:
        """Return the record of the steps since the last log line.

        It has `non_finite_steps` only if a step was not finite.
        """
        calls = [self._placement.one(x) for x in self._logs]
        values = {
            k: np.concatenate([np.ravel(x[k]) for x in calls], dtype=np.float64)
            for k in calls[0]
        }
        finite = np.isfinite(values["loss"]).all()
        record: dict[str, Any] = {
            "loss": float(np.mean(values["loss"])) if finite else float("nan"),
            "learning_rate": float(learning_rate(step - 1)),
            "grad_norm": float(values["grad_norm"][-1]),
            "images": float(np.sum(values["images"])),
        }
        if skipped := int(np.sum(values["skipped"])):
            record["non_finite_steps"] = skipped
            self.skipped += skipped
        if self.interval.images:
            seconds = self.interval.seconds
            record["images_per_s"] = self.interval.images / seconds
            record["input_wait"] = min(1.0, self.interval.waited / seconds)
        self._logs = []
        return record


def loop(
    config: Config,
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    *,
    step_fn: Callable,
    placement: Placement,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    learning_rate: Callable[[int], Any],
    evaluate: Callable[[int, TrainState], float | None],
    stopping: StopSignals,
    after_log: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train from `state.step` to `config.train.steps`.

    Args:
      config: resolved configuration.
      state: one copy, on the host or one device.
      batches: this host's part of the batches, starting at `state.step`.
      step_fn: result of `Placement.compile`, stacked if `steps_per_call` is above 1.
      placement: devices.
      checkpoints: writes the checkpoints.
      writer: writes the logged scalars.
      learning_rate: step -> learning rate, for the log.
      evaluate: (step, state) -> RMSE of the first protocol, or None.
      stopping: recorded signals. A signal to one of several hosts stops all of them
        after the same step.
      after_log: called after every log line.

    Raises: MachineError if a checkpoint can't be written.
    """
    start, stop = int(state.step), int(config.train.steps)
    steps_per_call = config.train.steps_per_call
    placed = placement.place_state(state)
    meter = _Meter(config, placement)
    consensus, reason = hosts.StopConsensus(), None

    with progress(stop, start=start) as bar:
        for step in range(start + steps_per_call, stop + 1, steps_per_call):
            began = time.perf_counter()
            batch = _place(placement, batches, steps_per_call)
            waited = time.perf_counter() - began
            placed, logs = step_fn(placed, batch)
            meter.add(logs, waited)
            first = step == start + steps_per_call
            if first:
                _log_first(logs, meter, steps_per_call)
            reason = consensus.after_step(stopping.reason)
            ending = step == stop or reason is not None
            logging_now = ending or first or _is_due(config.output.log_every, step)
            evaluating = not ending and _is_due(config.eval.eval_every, step)
            saving = not ending and _is_due(config.output.save_every, step)
            # Never score or save a state after a step that was not finite.
            if logging_now or ((evaluating or saving) and meter.any_non_finite()):
                record = _log(step, meter, writer, bar, learning_rate)
                after_log()
                if "non_finite_steps" in record and config.train.on_nan == "stop":
                    reason = "non_finite"
                    break
            if evaluating or saving:
                with meter.paused():
                    current = placement.one(placed)
                    rmse = evaluate(step, current) if evaluating else None
                    if saving:
                        checkpoints.save(step, current, rmse=rmse)
            if ending:
                break
    state = placement.one(placed)
    if reason is None or (reason != "non_finite" and int(state.step) >= stop):
        reason = "done"
    return Outcome(state, reason, meter.images_per_s, meter.skipped)


def _is_due(every: int | str, step: int) -> bool:
    return bool(every) and step % int(every) == 0


def _log(
    step: int, meter: _Meter, writer: MetricsWriter, bar: Any, learning_rate: Callable
) -> dict[str, Any]:
    """Write and show the record of the steps since the last log line."""
    record = meter.record(step, learning_rate)
    writer.write(step, record)
    bar.update(step, loss=record["loss"], images_per_s=record.get("images_per_s"))
    meter.interval = _Clock()
    return record


def _log_first(logs: dict, meter: _Meter, steps_per_call: int) -> None:
    """Wait for the first call, which compiles, and exclude it from the timing."""
    jax.block_until_ready(logs)
    steps = f"first {steps_per_call} steps" if steps_per_call > 1 else "first step"
    logger.info("%s done after %.1f s", steps, meter.total.seconds)
    meter.restart()


def _place(placement: Placement, batches: Iterator[dict], steps_per_call: int) -> dict:
    """Place the next batch on the devices, or the batches of one call, stacked."""
    if steps_per_call == 1:
        return placement.place_batch(next(batches))
    several = [next(batches) for _ in range(steps_per_call)]
    stacked = {k: np.stack([batch[k] for batch in several]) for k in several[0]}
    return placement.place_batch(stacked, stacked=True)


def resumed(
    checkpoints: Checkpoints, fresh: TrainState, *, steps: int, where: str
) -> TrainState:
    """The newest saved state, or `fresh` if there is none.

    Logs a line if training continues from it without its optimizer state.

    Raises: UserError if it was trained for more than `steps` steps.
    """
    state = checkpoints.restore_state(fresh)
    if state is None:
        return fresh
    if checkpoints.starts_anew and int(state.step) < steps:
        log_new_optimizer(f"the checkpoint of step {int(state.step)} of {where}")
    if int(state.step) > steps:
        raise UserError(
            f"{where} was trained for {int(state.step)} steps already, "
            f"more than --steps={steps}"
        )
    return state


def log_new_optimizer(source: str) -> None:
    """Log that a network without optimizer state is trained."""
    logger.info("%s has no optimizer state: the optimizer starts anew", source)
