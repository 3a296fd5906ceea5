"""The choice of a checkpoint, kinds, sizes and batches of photos, threads."""

import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxdepth import camera as camera_lib
from jaxdepth import images, models
from jaxdepth.config import Config
from jaxdepth.depth import Depth
from jaxdepth.evaluation import protocols
from jaxdepth.ops import resize
from jaxdepth.predictor import Predictor, choose_step
from jaxdepth.runtime.errors import UserError
from jaxdepth.training.checkpoint import Checkpoints
from jaxdepth.weights import packed


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
        self.camera: camera_lib.Camera | None = None
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
    maps = network.predict(photos(*sizes))
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


@given(size=st.tuples(st.integers(5, 90), st.integers(5, 90)), seed=st.integers(0, 9))
def test_one_picture_has_one_depth_whatever_its_kind(size, seed):
    rgb = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    image, content = Image.fromarray(rgb), io.BytesIO()
    image.save(content, "PNG")
    first = np.moveaxis(rgb, -1, 0)
    network = Red()
    expected = network.predict(rgb)
    assert isinstance(expected, Depth) and expected.shape == size
    kinds = [
        image, content, content.getvalue(), first, jnp.asarray(first), rgb / 255,
        (first / 255).astype(np.float32), rgb.astype(np.uint16) * 257,
    ]  # fmt: skip
    for kind in kinds:
        np.testing.assert_array_equal(network.predict(kind), expected)
    several = network.predict(kinds)
    assert len(several) == len(kinds)
    for batch in (several, network.predict(np.stack([first, first]))):
        for depth in batch:
            np.testing.assert_array_equal(depth, expected)
            np.testing.assert_array_equal(depth.rgb, rgb)


def test_lists_have_lists(tmp_path):
    network, (a, b) = Red(), photos((60, 80), (31, 47))
    Image.fromarray(b).save(tmp_path / "b.png")
    depths = network.predict([a, tmp_path / "b.png"])
    assert [depth.shape for depth in depths] == [(60, 80), (31, 47)]
    assert network.predict([]) == []
    assert [d.shape for d in network.predict((a,))] == [(60, 80)]
    assert isinstance(network.predict(images.Photo(a)), Depth)
    with pytest.raises(UserError, match=r"image 1 of 2: .*none\.png: there is no such"):
        network.predict([a, tmp_path / "none.png"])


def test_metres_can_be_changed_and_photos_are_copies():
    network, (rgb,) = Red(), photos((70, 91))
    depth = network.predict(rgb)
    assert depth.metres.dtype == np.float32
    assert depth.metres.flags.c_contiguous and depth.metres.flags.writeable
    before = rgb.copy()
    rgb[:] = 0  # such as the next frame of a camera
    np.testing.assert_array_equal(depth.rgb, before)
    (bare,) = network.predict_many([rgb], keep_photos=False)
    assert bare.rgb is None


@pytest.mark.parametrize("images", ["photo.jpg", b"content"])
def test_a_stream_is_no_single_photo(images):
    with pytest.raises(UserError, match="use predict for one photo"):
        Red().predict_many(images)


def test_wrong_arguments_are_refused_before_photos_are_read():
    for fx in (0, -3.0, float("nan")):
        with pytest.raises(UserError, match="a focal length above 0"):
            Red().predict_many(iter([]), fx=fx)
    with pytest.raises(UserError, match="batch_size=0: expected at least 1"):
        Red().predict_many([], batch_size=0)


def test_the_camera_of_a_depth():
    """Of the photo; else the one that the metres assume."""
    rgb = photos((120, 160))[0]  # twice the training frame
    photo = images.Photo(rgb, reduced=2, fx=300.0)
    unknown = images.Photo(rgb)
    network = Red()
    assert network.predict(unknown).camera is None
    known = network.predict(photo)
    assert (known.fx, known.fx_source, known.reduced) == (150.0, "exif", 2)
    network.camera = camera_lib.centred(50.0, 50.0, (60, 80))
    expected = network.predict(unknown)
    assert (expected.fx, expected.fx_source) == (pytest.approx(100), "training")
    assert expected.camera is not None and expected.camera.cx == 79.5
    for depth, factor, fx, source in (
        (network.predict(photo), 1.5, 150, "exif"),
        (network.predict(unknown, fx=200), 2, 200, "given"),
        (network.predict(photo, 200.0), 1, 100, "given"),
        (network.predict(photo, fx=None), 1, 100, "training"),
    ):
        np.testing.assert_allclose(depth, factor * expected.metres, rtol=1e-6)
        assert (depth.fx, depth.fx_source) == (pytest.approx(fx), source)


def small_network():
    config = Config.of(
        size="19x38", width=2, stage_sizes="1,1", dropout=0.0, precision="f32"
    )
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.1, 1, x.shape).astype(np.float32),
        packed.expected_shapes(config),
    )
    data = {"train_name": "rooms", "split": "own", "train_images": 12}
    return Predictor(config, variables, step=3, data=data)


def test_threads_share_a_predictor_and_its_programs(monkeypatch):
    sizes = [(20, 40), (20, 47), (31, 22), (40, 94)]
    inputs = photos(*sizes)
    network, traced = small_network(), []
    predict = models.predict

    def count(model, variables, rgb, **more):
        traced.append(rgb.shape)
        return predict(model, variables, rgb, **more)

    monkeypatch.setattr(models, "predict", count)
    start = threading.Barrier(6)

    def work(worker):
        start.wait(60)
        order = np.random.default_rng(worker).permutation(len(inputs))
        depths = network.predict([inputs[k] for k in order])
        return dict(zip(order, depths, strict=True))

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(work, range(6)))
    expected = network.predict(inputs)
    assert len({depth.metres.mean() for depth in expected}) == len(sizes)
    for depths in found:
        for k, depth in depths.items():
            np.testing.assert_allclose(depth, expected[k], rtol=1e-5)
    # One for each size of an input: of the second and the fourth photo, it is equal.
    assert len(traced) == len(set(traced)) == 3


def test_repr_states_network_data_and_score():
    network = small_network()
    lines = repr(network).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == [
        "Predictor", "network", "size", "camera", "training data", "score",
    ]  # fmt: skip
    assert "upproj" in lines[1] and "step 3" in lines[1]
    assert lines[2:] == [
        "  size: 19x38; photos are scaled to cover 20x40",
        "  camera: unknown; metres are not corrected for the focal length",
        "  training data: rooms, split own, 12 images",
        "  score: unknown",
    ]
