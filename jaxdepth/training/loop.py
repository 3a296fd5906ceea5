"""The training loop: batches, steps, and logs, evaluations and checkpoints between."""

import contextlib
import dataclasses
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
      state: last state, one copy.
      reason: "done", "preempted" (SIGTERM), "interrupted" (Ctrl-C) or "non_finite".
      images_per_s: over all devices, without the first step, which compiles; None if
        there was only that one.
      skipped: number of steps skipped because loss or gradient was not finite.
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
        logger.info("stopping after this step, saving ... (Ctrl-C again: at once)")


@dataclasses.dataclass
class _Clock:
    """Images per second and the share of time spent waiting for input."""

    images: int = 0
    since: float = dataclasses.field(default_factory=time.perf_counter)
    waited: float = 0.0

    def restart(self) -> None:
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.since


class _Meter:
    """Timing of the steps, and their logs since the last log line.

    Attributes:
      interval: clock since the last log line.
      total: clock since the first step, without evaluation and saving.
    """

    def __init__(self, config: Config, placement: Placement):
        self._placement = placement
        self._images = config.train.steps_per_call * int(config.train.batch_size)
        self.interval, self.total = _Clock(), _Clock()
        self.waiting: list[dict] = []
        self.images_per_s: float | None = None
        self.skipped = 0.0

    def add(self, logs: dict, waited: float) -> None:
        """Count a call of the step that waited so many seconds for input."""
        self.interval.waited += waited
        self.waiting.append(logs)
        for clock in (self.interval, self.total):
            clock.images += self._images

    def restart(self) -> None:
        """Leave out what was measured so far: the first step compiles."""
        self.interval.restart()
        self.total.restart()

    def update_rate(self) -> None:
        if self.total.images:
            self.images_per_s = self.total.images / max(self.total.seconds, 1e-9)

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
        return any(np.any(self._placement.one(x)["skipped"]) for x in self.waiting)

    def record(self, step: int, learning_rate: Callable) -> tuple[dict[str, Any], bool]:
        """The record of a log line, and whether a step was not finite."""
        logs = [row for x in self.waiting for row in _rows(self._placement.one(x))]
        record, bad = _record(step, logs, self.interval, learning_rate)
        self.skipped += record.pop("skipped")
        self.waiting = []
        return record, bad


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
    after_log: Callable[[], None] = lambda: None,
    stopping: StopSignals | None = None,
) -> Outcome:
    """Train from `state.step` to `config.train.steps`.

    Args:
      config: resolved configuration.
      state: one copy, on the host or one device.
      batches: this host's part of the batches from `state.step` on.
      step_fn: of `Placement.compile`, stacked if `steps_per_call` is above 1.
      placement: devices.
      checkpoints: writes the checkpoints.
      writer: writes the logged scalars.
      learning_rate: step -> learning rate, for the log.
      evaluate: (step, state) -> RMSE of the first protocol, or None.
      after_log: called after every log line.
      stopping: signals that are recorded already; None: record them from here on. A
        signal to one of several hosts stops all after the same step.

    Raises: MachineError if a checkpoint can't be written.
    """
    start, stop = int(state.step), int(config.train.steps)
    at_once = config.train.steps_per_call
    placed = placement.place_state(state)
    meter = _Meter(config, placement)
    consensus, reason = hosts.StopConsensus(), None
    with contextlib.ExitStack() as stack:
        if stopping is None:
            stopping = stack.enter_context(StopSignals())
        bar = stack.enter_context(progress(stop, start=start))
        for step in range(start + at_once, stop + 1, at_once):
            began = time.perf_counter()
            batch = _place(placement, batches, at_once)
            waited = time.perf_counter() - began
            placed, logs = step_fn(placed, batch)
            meter.add(logs, waited)
            first = step == start + at_once
            if first:
                jax.block_until_ready(logs)
                steps = f"first {at_once} steps" if at_once > 1 else "first step"
                logger.info("%s done after %.1f s", steps, meter.total.seconds)
                meter.restart()
            reason = consensus.after_step(stopping.reason)
            ending = step == stop or reason is not None
            evaluating = not ending and _is_due(config.eval.eval_every, step)
            saving = not ending and _is_due(config.output.save_every, step)
            logging_now = ending or first or _is_due(config.output.log_every, step)
            # Never score or save a state after a step that was not finite.
            using_state = evaluating or saving
            if logging_now or (using_state and meter.any_non_finite()):
                record, bad = meter.record(step, learning_rate)
                writer.write(step, record)
                bar.update(
                    step, loss=record["loss"], images_per_s=record.get("images_per_s")
                )
                after_log()
                meter.interval.restart()
                if bad and config.train.on_nan == "stop":
                    last = placement.one(placed)
                    return Outcome(last, "non_finite", meter.images_per_s)
            meter.update_rate()
            if using_state:
                with meter.paused():
                    last = placement.one(placed)
                    rmse = evaluate(step, last) if evaluating else None
                    if saving:
                        checkpoints.save(step, last, rmse=rmse)
            if ending:
                break
    state = placement.one(placed)
    if int(state.step) >= stop or reason is None:
        reason = "done"
    return Outcome(state, reason, meter.images_per_s, int(meter.skipped))


def _is_due(every: int | str, step: int) -> bool:
    return bool(every) and step % int(every) == 0


def _place(placement: Placement, batches: Iterator[dict], at_once: int) -> dict:
    """The next batch on the devices, or those of one call, stacked."""
    if at_once == 1:
        return placement.place_batch(next(batches))
    several = [next(batches) for _ in range(at_once)]
    stacked = {k: np.stack([batch[k] for batch in several]) for k in several[0]}
    return placement.place_batch(stacked, stacked=True)


def _rows(logs: dict) -> list[dict[str, float]]:
    """The logs of one call as one dict per step."""
    columns = {k: np.ravel(v).tolist() for k, v in logs.items()}
    steps = zip(*columns.values(), strict=True)
    return [dict(zip(columns, values, strict=True)) for values in steps]


def _record(
    step: int, rows: Sequence[dict[str, float]], clock: _Clock, learning_rate: Callable
) -> tuple[dict[str, Any], bool]:
    """The record of the steps since the last log line; whether one was not finite."""
    losses = [row["loss"] for row in rows]
    finite = [x for x in losses if math.isfinite(x)]
    bad = any(row["skipped"] for row in rows)
    record: dict[str, Any] = {
        "loss": float(np.mean(finite)) if finite else float("nan"),
        "learning_rate": float(learning_rate(step - 1)),
        "grad_norm": rows[-1]["grad_norm"],
        "images": sum(row["images"] for row in rows),
        "skipped": sum(row["skipped"] for row in rows),
    }
    if bad:
        record["non_finite_steps"] = int(record["skipped"])
        record["loss"] = float("nan") if len(finite) < len(losses) else record["loss"]
    if clock.images:
        seconds = max(clock.seconds, 1e-9)
        record["images_per_s"] = clock.images / seconds
        record["input_wait"] = min(1.0, clock.waited / seconds)
    return record, bad


def resumed(
    checkpoints: Checkpoints, fresh: TrainState, *, steps: int, where: str
) -> TrainState:
    """The newest saved state, or `fresh` if there is none.

    Raises: UserError if it was trained for more than `steps` steps.
    """
    state = checkpoints.restore_state(fresh)
    if state is None:
        return fresh
    if int(state.step) > steps:
        raise UserError(
            f"{where} was trained for {int(state.step)} steps already, "
            f"more than --steps={steps}"
        )
    return state
