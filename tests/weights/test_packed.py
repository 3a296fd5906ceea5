"""Packed networks: round trip, damage, names; and `jaxdepth pack`."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import trained_network
from jaxdepth.config import Config
from jaxdepth.models import create
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.trees import flatten
from jaxdepth.weights import files, packed

CONFIG = Config.of(
    size="19x38", width=2, stage_sizes="1,1", dropout=0.0, precision="f32",
    data="/home/someone/data/rooms.store", workdir="/home/someone/runs/1",
    cache_dir="/home/someone/.cache", resume="/home/someone/rooms", seed=3,
)  # fmt: skip
CAMERA = {"size": [20, 40], "fx": 30.0, "fy": 31.0, "cx": 19.5, "cy": 9.5}
ENTRY = {
    "step": 7, "protocol": "plain", "averaging": "pooled", "truth": "filled",
    "data": "rooms", "split": "own", "size": "20x40", "metrics": {"rmse": 0.5},
}  # fmt: skip


@pytest.fixture(scope="module")
def network():
    """A small network with values that differ in every array."""
    shapes = packed.expected_shapes(CONFIG)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.1, 1, x.shape).astype(np.float32), shapes
    )
    return packed.PackedNetwork(
        variables=variables,
        config=CONFIG,
        step=7,
        data={"name": "rooms", "split": "own", "camera": CAMERA},
        evaluations=[ENTRY],
        command="jaxdepth run",
        versions={"jax": "1"},
        licence="Free.",
    )


@pytest.fixture
def file(network, tmp_path):
    path = tmp_path / "network.safetensors"
    packed.write(path, network)
    return path


def test_round_trip_rounds_kernels_only(network, file):
    read = packed.read(file)
    before, after = flatten(network.variables), flatten(read.variables)
    assert before.keys() == after.keys()
    kernels = [name for name in before if name.endswith("/kernel")]
    assert kernels and len(kernels) < len(before)
    for name, array in before.items():
        kind = ml_dtypes.bfloat16 if name in kernels else np.float32
        expected = array.astype(kind).astype(np.float32)
        assert after[name].dtype == np.float32
        np.testing.assert_array_equal(after[name], expected, err_msg=name)
    assert any((before[name] != after[name]).any() for name in kernels)
    for field in ("step", "data", "evaluations", "command", "versions", "licence"):
        assert getattr(read, field) == getattr(network, field)
    assert (read.config.model, read.config.train) == (CONFIG.model, CONFIG.train)


def test_a_file_names_no_folder_of_the_machine(network, file):
    with safetensors.safe_open(file, framework="numpy") as opened:
        text = json.dumps(opened.metadata())
    assert "someone" not in text
    assert packed.read(file).config.output.resume == "rooms"
    assert packed.read(file).config.data.path == "rooms.store"


def test_predictions_of_a_packed_network(network, tmp_path):
    path = tmp_path / "exact.safetensors"
    packed.write(path, network, dtype="float32")
    predictor = predictor_lib.load(path, cache_dir=None)
    assert predictor.step == 7
    assert predictor.camera is not None and predictor.camera.fx == 30
    image = np.random.default_rng(1).integers(0, 256, (20, 40, 3), np.uint8)
    source = predictor_lib.Predictor(CONFIG, network.variables, camera=predictor.camera)
    np.testing.assert_array_equal(predictor.predict(image), source.predict(image))
    assert create(predictor.config.model) == create(CONFIG.model)


def test_a_file_holds_one_step(file):
    for step in ("best", "last", "7", 7):
        assert predictor_lib.load(file, step=step, cache_dir=None).step == 7
    with pytest.raises(UserError, match=r"--step=8: .* holds step 7 only"):
        predictor_lib.load(file, step=8, cache_dir=None)


def test_names_of_packed_files(file, tmp_path, monkeypatch):
    assert packed.find(file) == file
    renamed = file.rename(tmp_path / "other")
    assert packed.find(renamed) == renamed
    assert packed.find("absent.safetensors") is not None  # its error names the file
    assert packed.find(tmp_path) is None
    assert packed.find("gs://bucket/run.safetensors") is None
    monkeypatch.setattr(packed, "SHIPPED", ("small",))
    found = packed.find("small")
    assert found is not None and found.name == "small.safetensors"
    with pytest.raises(UserError, match=r"smal: there is no such .* \(there is small"):
        predictor_lib.load("smal", cache_dir=None)


def test_an_existing_file_is_not_overwritten(network, file):
    content = file.read_bytes()
    with pytest.raises(UserError, match="is not overwritten"):
        packed.write(file, network)
    assert file.read_bytes() == content


def test_values_that_are_not_finite_are_not_packed(network, tmp_path):
    broken = jax.tree.map(np.copy, network.variables)
    broken["params"]["head"]["bias"][:] = np.nan
    path = tmp_path / "n.safetensors"
    with pytest.raises(UserError, match="params/head/bias has values that are not fin"):
        packed.write(path, dataclasses.replace(network, variables=broken))
    assert not path.exists()


def _changed(file, *, metadata=None, arrays=None, drop=()):
    """Write the file again with other metadata or arrays."""
    with safetensors.safe_open(file, framework="numpy") as opened:
        texts = {**opened.metadata(), **(metadata or {})}
        kept = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    kept |= arrays or {}
    kept = {name: x for name, x in kept.items() if name not in drop}
    texts = {name: x for name, x in texts.items() if name not in drop}
    safetensors.numpy.save_file(kept, file, texts)


BIAS = "params/head/bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata": {"format": "another"}}, "is not a packed network"),
        ({"metadata": {"format": files.FORMAT}}, "its metadata are damaged"),
        ({"metadata": {"config": "{"}}, "config is missing or not JSON"),
        ({"metadata": {"config": "[]"}}, "metadata are damaged: config"),
        (
            {"metadata": {"config": '{"arch": "unknown"}'}},
            r"safetensors: its configuration is damaged: --arch=unknown",
        ),
        ({"metadata": {"config": "{}"}}, "damaged: it is not resolved"),
        ({"metadata": {"step": '"seven"'}}, "metadata are damaged: step"),
        ({"metadata": {"rgb_mean": "[0, 0, 0]"}}, "input normalisation is not that"),
        ({"drop": ("licence",)}, "licence is missing"),
        ({"drop": (BIAS,)}, f"lacks {BIAS}"),
        ({"arrays": {"params/more": np.ones(1, np.float32)}}, "unknown array params/m"),
        ({"arrays": {BIAS: np.ones(2, np.float32)}}, r"shape \(2,\), expected \(1,\)"),
        ({"arrays": {BIAS: np.full(1, np.inf, np.float32)}}, "not finite"),
        ({"arrays": {BIAS: np.ones(1, np.int32)}}, "holds int32"),
    ],
)
def test_damaged_files(file, change, words):
    _changed(file, **change)
    with pytest.raises(UserError, match=words) as caught:
        packed.read(file)
    assert "\n" not in str(caught.value)


def test_truncated_and_absent_files(file):
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        packed.read(file)
    file.unlink()
    with pytest.raises(UserError, match="no such file"):
        predictor_lib.load(file, cache_dir=None)


@pytest.mark.parametrize("flags", [{"skips": True}, {"output_stride": 16}])
def test_only_plain_networks_are_converted(network, file, tmp_path, flags):
    assert (
        trained_network.read(str(file)).arrays.keys()
        == flatten(network.variables).keys()
    )
    config = CONFIG.replace(stage_sizes="1,1,1,1", **flags)
    variables = jax.tree.map(
        lambda x: np.ones(x.shape, np.float32), packed.expected_shapes(config)
    )
    other = dataclasses.replace(network, config=config, variables=variables)
    path = tmp_path / "other.safetensors"
    packed.write(path, other)
    with pytest.raises(UserError, match="was trained with --skips or --output_stride"):
        trained_network.read(str(path))
