"""The loop: take a batch, take a step; log, evaluate and save when it is time."""

import contextlib
import dataclasses
import logging
import math
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
      state: the last state, one copy.
      reason: "done", "preempted" (SIGTERM), "interrupted" (Ctrl-C) or "non_finite".
      images_per_s: over all devices, without the first, compiling step; None where
        there was no other.
      skipped: steps left out because something was not finite.
    """

    state: TrainState
    reason: str
    images_per_s: float | None
    skipped: int = 0


class StopSignals:
    """Turns SIGTERM and the first Ctrl-C into a wish that the loop grants.

    A second Ctrl-C interrupts at once. Off the main thread signals are left alone.
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
    """Train from `state.step` to `config.steps`.

    Args:
      config: settled; `steps`, `log_every`, `eval_every`, `save_every` are numbers.
      state: one copy, on the host or one device.
      batches: this host's part of the batches from `state.step` on.
      step_fn: of `Placement.compile`, stacked where `config.steps_per_call` is above 1.
      checkpoints, writer: where the run is written down.
      learning_rate: step -> rate, for the log.
      evaluate: (step, state) -> RMSE of the first protocol, or None.
      after_log: called after every log line.
      stopping: signals that are listened to already, None to listen from here on. A
        signal to one of several hosts stops all after the same step.

    Raises MachineError where a checkpoint can't be written.
    """
    start, stop, at_once = int(state.step), int(config.steps), config.steps_per_call
    placed = placement.place_state(state)
    clock, total = _Clock(), _Clock()
    skipped = 0.0
    consensus, reason = hosts.StopConsensus(), None
    measured: float | None = None
    logs_waiting: list[dict] = []
    with contextlib.ExitStack() as stack:
        if stopping is None:
            stopping = stack.enter_context(StopSignals())
        bar = stack.enter_context(progress(stop, start=start))
        for step in range(start + at_once, stop + 1, at_once):
            asked = time.perf_counter()
            batch = _place(placement, batches, at_once)
            waited = time.perf_counter() - asked
            clock.waited += waited
            placed, logs = step_fn(placed, batch)
            logs_waiting.append(logs)
            clock.images += at_once * int(config.batch_size)
            total.images += at_once * int(config.batch_size)
            first = step == start + at_once
            if first:
                jax.block_until_ready(logs)
                what = f"first {at_once} steps" if at_once > 1 else "first step"
                logger.info("%s done after %.1f s", what, total.seconds)
                clock.restart()
                total.restart()
            reason = consensus.after_step(stopping.reason)
            ending = step == stop or reason is not None
            evaluating = not ending and _is_time(config.eval_every, step)
            saving = not ending and _is_time(config.save_every, step)
            logging_now = ending or first or _is_time(config.log_every, step)
            # A state after a step that was not finite is neither scored nor saved.
            looking = evaluating or saving
            if logging_now or (looking and _not_finite(logs_waiting, placement)):
                record, bad = _record(
                    step, logs_waiting, clock, learning_rate, placement
                )
                skipped += record.pop("skipped")
                logs_waiting = []
                writer.write(step, record)
                bar.update(
                    step, loss=record["loss"], images_per_s=record.get("images_per_s")
                )
                after_log()
                clock.restart()
                if bad and config.on_nan == "stop":
                    return Outcome(placement.one(placed), "non_finite", measured)
            if total.images:
                measured = total.images / max(total.seconds, 1e-9)
            rmse = None
            if evaluating:
                paused = time.perf_counter()
                rmse = evaluate(step, placement.one(placed))
                _leave_out(total, clock, paused)
            if saving:
                paused = time.perf_counter()
                checkpoints.save(step, placement.one(placed), rmse=rmse)
                _leave_out(total, clock, paused)
            if ending:
                break
    state = placement.one(placed)
    if int(state.step) >= stop or reason is None:
        reason = "done"
    return Outcome(state, reason, measured, int(skipped))


def _is_time(every: int | str, step: int) -> bool:
    return bool(every) and step % int(every) == 0


def _not_finite(waiting: list[dict], placement: Placement) -> bool:
    """Whether one of the steps since the last log line was not finite."""
    return any(np.any(placement.one(logs)["skipped"]) for logs in waiting)


def _place(placement: Placement, batches: Iterator[dict], at_once: int) -> dict:
    """The next batch on the devices, or the next few of one call."""
    if at_once == 1:
        return placement.place_batch(next(batches))
    several = [next(batches) for _ in range(at_once)]
    stacked = {k: np.stack([batch[k] for batch in several]) for k in several[0]}
    return placement.place_batch(stacked, stacked=True)


def _leave_out(total: _Clock, clock: _Clock, since: float) -> None:
    """Time spent on evaluation and saving is not training time."""
    lost = time.perf_counter() - since
    total.since += lost
    clock.since += lost


def _record(
    step: int, waiting: list[dict], clock: _Clock, learning_rate: Callable, placement
) -> tuple[dict[str, Any], bool]:
    """What is logged of the steps since the last line; whether one was not finite."""
    fetched = []
    for logs in waiting:
        columns = {k: np.ravel(v).tolist() for k, v in placement.one(logs).items()}
        steps = zip(*columns.values(), strict=True)
        fetched += [dict(zip(columns, values, strict=True)) for values in steps]
    losses = [row["loss"] for row in fetched]
    finite = [x for x in losses if math.isfinite(x)]
    bad = any(row["skipped"] for row in fetched)
    record: dict[str, Any] = {
        "loss": float(np.mean(finite)) if finite else float("nan"),
        "learning_rate": float(learning_rate(step - 1)),
        "grad_norm": fetched[-1]["grad_norm"],
        "images": sum(row["images"] for row in fetched),
        "skipped": sum(row["skipped"] for row in fetched),
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
    """The newest saved state, or `fresh`. UserError where the run is past its end."""
    state = checkpoints.restore_state(fresh)
    if state is None:
        return fresh
    if int(state.step) > steps:
        raise UserError(
            f"{where} was trained for {int(state.step)} steps already, "
            f"more than --steps={steps}"
        )
    return state
