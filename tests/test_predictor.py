"""The choice of a checkpoint, and the modules that an import loads."""

import subprocess
import sys

import pytest

from jaxdepth.predictor import choose_step
from jaxdepth.runtime.errors import UserError
from jaxdepth.training.checkpoint import Checkpoints


class Saved(Checkpoints):
    """Checkpoints of three steps; the second is the best one."""

    def __init__(self, steps=(10, 20, 30), best: int | None = 20):
        self.folder, self._steps, self._best = "here", list(steps), best

    def steps(self):
        return self._steps

    def best_step(self):
        return self._best


@pytest.mark.parametrize(
    ("split", "step", "chosen"),
    [
        ("own", "best", 20),
        ("tune", "best", 20),
        ("official", "best", 30),  # a test set must not select a checkpoint
        ("report", "best", 30),
        ("official", "last", 30),
        ("tune", "last", 30),
        ("report", "10", 10),
        ("own", 20, 20),
    ],
)
def test_best_is_the_last_step_after_evaluation_on_a_test_set(split, step, chosen):
    assert choose_step(Saved(), split, step) == chosen


def test_missing_steps_are_an_error():
    for step, words in ((25, "steps 10, 20, 30"), ("first", "best, last or a number")):
        with pytest.raises(UserError, match=words):
            choose_step(Saved(), "own", step)
    with pytest.raises(UserError, match="no checkpoint"):
        choose_step(Saved(steps=(), best=None), "own", "best")
    assert choose_step(Saved(best=None), "own", "best") == 30


def test_import_loads_no_tensorflow_matplotlib_or_torch():
    code = (
        "import sys; import jaxdepth as j; j.load, j.Predictor, j.create_model;"
        "j.losses, j.metrics;"
        "heavy = ('tensorflow', 'matplotlib', 'torch');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
