"""The validation loss: batches, padding and frames without ground truth."""

import functools

import jax
import numpy as np
import pytest
import tiny

from jaxdepth.config import Config
from jaxdepth.data.dataset import Data
from jaxdepth.data.store.reader import Store
from jaxdepth.training.step import validation_sums
from jaxdepth.training.validation_loss import ValidationLoss

CONFIG = Config.of(arch="cnn", loss="si", size="19x38", steps=1, dropout=0.0)


class Frames(Store):
    """A store of frames in memory, with raw depth only."""

    def __init__(self, batch):
        self.batch, self.size, self.depths = batch, batch["rgb"].shape[1:3], ("raw",)

    def gather(self, rows, *, depth):
        assert depth == "raw"
        return self.batch["rgb"][rows], self.batch["depth_codes"][rows]


def validation(batch, rows, **options):
    frames = Frames(batch)
    data = Data("some", frames, rows, frames, rows, "own", "own", False, "filled")
    return ValidationLoss(CONFIG, tiny.model(), data, **options)


@pytest.mark.parametrize("devices", [1, 8])
def test_validation_loss_is_the_mean_over_images_with_ground_truth(devices):
    spec = tiny.spec(loss="si")
    state = tiny.state(spec)
    batch = tiny.batch(11, empty=(3,))
    rows = np.array([0, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    loss = validation(batch, rows, devices=jax.devices()[:devices], batch_size=4)
    one = jax.jit(functools.partial(validation_sums, spec))
    losses = [
        float(one(state.variables, {k: v[[row]] for k, v in batch.items()})[0])
        for row in rows
    ]
    assert losses[2] == 0  # without ground truth
    assert loss(state.variables) == pytest.approx(sum(losses) / 9, rel=1e-5)


def test_the_unit_is_that_of_the_evaluation_store(monkeypatch):
    spec = tiny.spec(loss="si")
    state, batch = tiny.state(spec), tiny.batch(4)
    eighths = batch["depth_codes"] // 125
    losses = []
    for unit in (1000, 256):
        monkeypatch.setattr(Frames, "depth_unit", unit)
        codes = (eighths * (unit // 8)).astype(np.uint16)
        loss = validation(
            batch | {"depth_codes": codes}, np.arange(4), devices=jax.devices()[:1]
        )
        losses.append(loss(state.variables))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_frames_smaller_than_the_training_frame_have_no_loss():
    batch = tiny.batch(2, frame=(19, 40))
    loss = validation(batch, np.arange(2), devices=jax.devices()[:1])
    assert loss({}) is None


def test_no_loss_without_any_ground_truth():
    spec = tiny.spec(loss="si")
    loss = validation(
        tiny.batch(2, empty=(0, 1)), np.arange(2), devices=jax.devices()[:1]
    )
    assert loss(tiny.state(spec).variables) is None
