"""Training states that start from converted weights."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.trees import flatten
from jaxdepth.training import initialize
from jaxdepth.weights import files
from tests import tiny
from tests.weights import example


@functools.cache
def initial_state():
    return tiny.state(tiny.spec("upproj"))


def filled_weights(state, **fields) -> files.Weights:
    """Weights for every array of a state, filled with 2."""
    arrays = flatten(state.variables)
    return example.weights(
        {k: np.full(x.shape, 2, np.float32) for k, x in arrays.items()}, **fields
    )


def start(weights, *, init="imagenet"):
    """The initial state after `start_from` with these weights."""
    return initialize.start_from(
        initial_state(), weights, init=init, layout="torchvision", where="w"
    )


@pytest.mark.parametrize("value", ["3", "[1, 2]", '"ab"', "{", "[[1], 2, 3]"])
@pytest.mark.parametrize("name", ["rgb_mean", "layout", "init"])
def test_damaged_metadata_are_rejected_on_reading_or_use(tmp_path, name, value):
    path = tmp_path / "w.safetensors"
    files.write(path, filled_weights(initial_state()))
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    safetensors.numpy.save_file(
        {"a": np.zeros(3, np.float32)}, path, metadata | {name: value}
    )
    try:
        weights = files.read(path)
    except UserError as error:
        assert "metadata are damaged" in str(error)
    else:  # of the right type: rejected on use
        with pytest.raises(UserError):
            start(weights)


@pytest.mark.parametrize(
    ("init", "parts"),
    [("imagenet", {"encoder"}), ("nyu", {"encoder", "decoder", "head"})],
)
def test_init_selects_the_parts_that_start_from_weights(init, parts):
    state = initial_state()
    weights = filled_weights(state, init=init)
    started = start(weights, init=init)
    before = flatten(state.variables)
    for path, x in flatten(started.variables).items():
        expected = 2 if path.split("/")[1] in parts else before[path]
        np.testing.assert_array_equal(x, np.broadcast_to(expected, x.shape))
    assert jax.tree.structure(started) == jax.tree.structure(state)


def test_a_classifier_is_ignored():
    state = initial_state()
    weights = filled_weights(state)
    extra = {"params/fc/kernel": np.zeros((8, 3), np.float32)}
    weights = dataclasses.replace(weights, arrays={**weights.arrays, **extra})
    start(weights)


def test_arrays_of_no_part_of_the_network_are_ignored():
    state = initial_state()
    weights = filled_weights(state)
    weights = dataclasses.replace(
        weights, arrays={**weights.arrays, "bare": np.zeros(1, np.float32)}
    )
    start(weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"init": "nyu"}, "--init=imagenet: .* holds weights for --init=nyu"),
        ({"layout": "fcrn"}, "give --layout=fcrn"),
        ({"layout": "fcrn"}, "stride_in 1x1 and not 3x3, stem_bias True and not False"),
        ({"layout": "fcrn"}, "bn_epsilon 0.0001 and not 1e-05"),
        (
            {"layout": "fcrn"},
            r"padding_side top_left and .* rgb_mean \(0.0, 0.0, 0.0\)",
        ),
        ({"layout": "other"}, "layout other, which is unknown"),
        ({"rgb_std": (1.0, 1.0)}, "normalised by rgb_std"),
        ({"rgb_mean": (0.0, 0.0, 0.0)}, "normalised by rgb_mean"),
    ],
)
def test_weights_of_another_kind_are_rejected(change, words):
    state = initial_state()
    weights = dataclasses.replace(filled_weights(state), **change)
    with pytest.raises(UserError, match=words):
        start(weights)


def test_mismatches_are_summarized():
    state = initial_state()
    arrays = dict(filled_weights(state).arrays)
    name = next(k for k in arrays if k.startswith("params/encoder"))
    arrays[name] = np.zeros((1, 2), np.float32)
    arrays["params/encoder/more"] = np.zeros(1, np.float32)
    weights = dataclasses.replace(filled_weights(state), arrays=arrays)
    with pytest.raises(UserError, match=r"1 unexpected.*1 misshapen.*\(1, 2\)"):
        start(weights)
