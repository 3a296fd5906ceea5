"""The loop: when it logs, evaluates, saves and stops, and that resuming is exact."""

import dataclasses
import json
import os
import signal
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxdepth.config import Config
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import loop as loop_lib
from jaxdepth.training.checkpoint import Checkpoints
from jaxdepth.training.loop import Outcome, StopSignals, resumed
from jaxdepth.training.metrics_writer import MetricsWriter
from jaxdepth.training.sharding import AXIS, Placement
from jaxdepth.training.step import train_step
from tests import tiny

BATCH = 8


@dataclasses.dataclass
class Run:
    outcome: Outcome
    records: list[dict]
    evaluated: list[int]
    saved: list[int]


def batches(start: int):
    step = start
    while True:
        yield tiny.batch(BATCH, seed=step)
        step += 1


def go(
    folder, stop: int, *, state=None, lr=0.01, feed=None, kind="jit", **flags
) -> Run:
    """Train the tiny network to `stop`; every step is logged."""
    options: dict[str, Any] = {"log_every": 1, "eval_every": 0, "save_every": 0}
    config = Config.of(steps=stop, batch_size=BATCH, **(options | flags))
    spec = tiny.spec(
        optimizer=optax.sgd(lr),
        axis_name=AXIS,
        on_nan=config.train.on_nan,
        ema=config.train.ema,
    )
    if state is None:
        fresh = tiny.state(spec)
        state = fresh.start_ema() if config.train.ema else fresh
    placement = Placement.over(kind)
    checkpoints = Checkpoints(str(folder / "checkpoints"))
    evaluated: list[int] = []

    def evaluate(step: int, _) -> float:
        evaluated.append(step)
        return 1.0 / step

    (folder / "events").mkdir(parents=True, exist_ok=True)
    resume_from = int(state.step)
    with (
        MetricsWriter(folder, resume_from=resume_from) as writer,
        StopSignals() as stopping,
    ):
        outcome = loop_lib.loop(
            config,
            state,
            feed if feed is not None else batches(int(state.step)),
            step_fn=placement.compile(
                train_step, spec, stacked=config.train.steps_per_call > 1
            ),
            placement=placement,
            checkpoints=checkpoints,
            writer=writer,
            learning_rate=lambda step: lr,
            evaluate=evaluate,
            stopping=stopping,
        )
    checkpoints.close()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return Run(outcome, [json.loads(x) for x in lines], evaluated, checkpoints.steps())


def test_logs_evaluates_and_saves_when_it_is_time(tmp_path):
    run = go(tmp_path, 7, log_every=3, eval_every=2, save_every=3)
    assert [r["step"] for r in run.records] == [1, 3, 6, 7]
    # The last step is evaluated and saved by who started the loop.
    assert run.evaluated == [2, 4, 6] and run.saved == [3, 6]
    assert run.outcome.reason == "done" and int(run.outcome.state.step) == 7
    assert run.outcome.images_per_s and run.outcome.images_per_s > 0
    assert run.records[-1]["images"] == BATCH
    assert run.records[1]["images"] == 2 * BATCH


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_stopping_and_going_on_changes_nothing(tmp_path, kind):
    whole = go(tmp_path / "whole", 4, kind=kind)
    first = go(tmp_path / "parts", 2, kind=kind)
    second = go(tmp_path / "parts", 4, state=first.outcome.state, kind=kind)
    jax.tree.map(
        np.testing.assert_array_equal, second.outcome.state, whole.outcome.state
    )
    losses = [r["loss"] for r in whole.records]
    assert [r["loss"] for r in second.records] == losses and len(losses) == 4


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_an_average_goes_on_from_its_checkpoint(tmp_path, kind):
    whole = go(tmp_path / "whole", 4, kind=kind, ema=0.9)
    first = go(tmp_path / "parts", 3, kind=kind, ema=0.9, save_every=2)
    assert first.saved == [2]
    checkpoints = Checkpoints(str(tmp_path / "parts" / "checkpoints"), read_only=True)
    saved = checkpoints.restore_state(first.outcome.state)
    second = go(tmp_path / "parts", 4, state=saved, kind=kind, ema=0.9)
    actual, expected = second.outcome.state, whole.outcome.state
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert not np.array_equal(
        actual.variables["params"]["head"]["bias"], actual.params["head"]["bias"]
    )


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_steps_of_one_call_are_the_same_steps(tmp_path, kind):
    single = go(tmp_path / "single", 6, kind=kind, log_every=3)
    several = go(
        tmp_path / "several", 6, kind=kind, log_every=3, save_every=3, steps_per_call=3
    )
    assert [r["step"] for r in several.records] == [3, 6]
    for actual, expected in zip(several.records[1:], single.records[2:], strict=True):
        assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert actual["images"] == expected["images"] == 3 * BATCH
    assert int(several.outcome.state.step) == 6 and several.saved == [3]


def test_a_loss_that_is_not_finite_stops(tmp_path):
    run = go(tmp_path, 50, lr=1e30)
    assert run.outcome.reason == "non_finite"
    assert int(run.outcome.state.step) < 10
    assert run.records[-1]["loss"] is None or not np.isfinite(run.records[-1]["loss"])


def test_or_is_skipped_and_counted(tmp_path):
    spec = tiny.spec(axis_name=AXIS)
    state = tiny.state(spec)
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), state.params)
    state = dataclasses.replace(state, params=broken, opt_state=optax.sgd(0.1).init({}))
    run = go(tmp_path, 3, state=state, on_nan="skip")
    assert run.outcome.reason == "done" and run.outcome.skipped == 3
    assert int(run.outcome.state.step) == 3


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGTERM, "preempted"), (signal.SIGINT, "interrupted")],
)
def test_signals_end_the_loop_after_a_step(tmp_path, number, reason):
    def feed():
        for step, batch in enumerate(batches(0)):
            if step == 2:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    run = go(tmp_path, 100, feed=feed(), log_every=50)
    assert run.outcome.reason == reason
    assert int(run.outcome.state.step) == 3
    assert run.records[-1]["step"] == 3
    assert signal.getsignal(number) is before


def test_a_second_interrupt_is_not_waited_for():
    with pytest.raises(KeyboardInterrupt), StopSignals() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.reason == "interrupted"
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_past_its_end_is_refused(tmp_path):
    run = go(tmp_path, 3, save_every=2)
    opened = Checkpoints(str(tmp_path / "checkpoints"))
    actual = resumed(opened, run.outcome.state, steps=5, where="here")
    assert int(actual.step) == 2
    with pytest.raises(UserError, match="2 steps already, more than --steps=1"):
        resumed(opened, run.outcome.state, steps=1, where="here")
