"""The choice of a checkpoint, sizes and batches of photos, and loaded modules."""

import subprocess
import sys

import numpy as np
import pytest

from jaxdepth import models
from jaxdepth.config import Config
from jaxdepth.evaluation import protocols
from jaxdepth.ops import resize
from jaxdepth.predictor import Predictor, choose_step
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
        "print([name for name in ('optax', 'h5py') if name in sys.modules]);"
        "j.losses, j.metrics;"
        "heavy = ('tensorflow', 'matplotlib', 'torch');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "[]"]  # prediction needs no optimizer either


class Red(Predictor):
    """A network that returns the red channel, trained on 57x76 crops of 60x80."""

    def __init__(self, arch="cnn", size="57x76"):
        self.config = Config.of(arch=arch, size=size)
        self.camera = None
        self._output_size = lambda size: size
        self._full_batches = set()
        self.shapes = []

    def network(self, rgb):
        self.shapes.append(rgb.shape[:3])
        return rgb[..., 0]


def photos(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.mark.parametrize(
    ("arch", "size", "extended"),
    [
        ("upproj", (240, 320), (240, 320)),  # the training frame, as in evaluation
        ("upproj", (427, 320), (448, 320)),
        ("upproj", (240, 321), (256, 352)),
        ("cnn_fc", (228, 304), (228, 304)),
    ],
)
def test_inputs_are_extended_to_multiples_of_32(arch, size, extended):
    assert Red(arch, "228x304").extended_size(size) == extended


@pytest.mark.parametrize("arch", ["cnn", "cnn_trans", "upproj"])
def test_an_extended_input_has_the_output_of_the_input_in_its_corner(arch):
    for side in range(19, 200):
        longer = -(-side // 32) * 32
        sizes = [models.output_size(arch, (x, x))[0] for x in (side, longer)]
        assert sizes[0] <= sizes[1]


def test_photos_of_many_sizes_need_few_programs():
    sizes = [(60 + 3 * k % 40, 75 + 11 * k % 150) for k in range(40)]
    network = Red()
    inputs = {network.input_size(size) for size in sizes}
    maps = list(network.predict_many(photos(*sizes)))
    assert [depth.shape for depth in maps] == sizes
    programs = set(network.shapes)
    assert len(inputs) > 25 and len(programs) <= 8
    assert {count for count, _, _ in programs} <= {1, 8}


def test_a_frame_is_predicted_as_in_evaluation():
    network = Red()
    network.predict_frame({"rgb": photos((70, 81))[0], "camera": None})
    assert network.shapes == [(1, 69, 80)]  # not extended


def test_the_extension_is_cut_off():
    for photo in photos((61, 150), (90, 60), (200, 213), (60, 80)):
        network = Red()
        size = network.input_size(photo.shape[:2])
        small = protocols.resize_input(photo[None].astype(np.float32), size)
        expected = resize.resize_bilinear(small[..., 0], photo.shape[:2])[0]
        np.testing.assert_array_equal(network.predict(photo), expected)


def test_the_extension_repeats_the_edge():
    network, seen = Red(), []
    network.network = lambda rgb: seen.append(rgb) or rgb[..., 0]
    (photo,) = photos((60, 81))
    network.predict(photo)
    (((rows),),) = seen
    assert rows.shape == (64, 96, 3)
    np.testing.assert_array_equal(rows[:60, 81:], rows[:60, 80:81].repeat(15, 1))
    np.testing.assert_array_equal(rows[60:], rows[59:60].repeat(4, 0))


def test_small_batches_need_no_program_of_their_own():
    network = Red()
    list(network.predict_many(photos(*[(60, 80)] * 3)))
    assert network.shapes == [(1, 60, 80)] * 3  # less work than a full batch
    network.shapes.clear()
    list(network.predict_many(photos(*[(60, 80)] * 11)))
    assert network.shapes == [(8, 60, 80)] * 2  # a full batch is compiled anyway
    network.shapes.clear()
    maps = list(network.predict_many(photos(*[(60, 80)] * 5, (60, 100))))
    assert network.shapes == [(8, 60, 80), (1, 64, 128)]
    alone = [Red().predict(photo) for photo in photos(*[(60, 80)] * 5, (60, 100))]
    for depth, expected in zip(maps, alone, strict=True):
        np.testing.assert_array_equal(depth, expected)
