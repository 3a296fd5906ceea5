"""Converted weights on disk, and into a state."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxdepth.errors import UserError
from jaxdepth.train_state import flatten
from jaxdepth.weights import files, start
from tests import tiny


def fresh():
    return tiny.state(tiny.spec("upproj"))


def some(state, **fields) -> files.Weights:
    """Weights whose every number is 2, of the state's whole network."""
    arrays = {
        k: np.full(x.shape, 2, np.float32) for k, x in flatten(state.variables).items()
    }
    defaults = {
        "init": "imagenet",
        "origin": "a test",
        "sha256": "0",
        "licence": "none",
    }
    return files.Weights.of_layout(arrays, "torchvision", **(defaults | fields))


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "w.safetensors"
    weights = some(fresh())
    files.write(path, weights)
    again = files.read(path)
    assert set(again.arrays) == set(weights.arrays)
    for name, x in weights.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], x)
    assert dataclasses.replace(again, arrays={}) == dataclasses.replace(
        weights, arrays={}
    )
    assert again.rgb_mean == (123.675, 116.28, 103.53)
    with pytest.raises(UserError, match="not overwritten"):
        files.write(path, weights)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="no such file"):
        files.read(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="not a whole safetensors file"):
        files.read(path)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="convert it with"):
        files.read(path)
    safetensors.numpy.save_file(
        {"a": np.zeros(3, np.float32)}, path, {"format": files.FORMAT, "init": "{"}
    )
    with pytest.raises(UserError, match="metadata are damaged"):
        files.read(path)


@pytest.mark.parametrize(
    ("init", "parts"),
    [("imagenet", {"encoder"}), ("nyu", {"encoder", "decoder", "head"})],
)
def test_what_starts_from_weights(init, parts):
    state = fresh()
    weights = some(state, init=init)
    started = start.start_from(
        state, weights, init=init, layout="torchvision", where="w"
    )
    before = flatten(state.variables)
    for path, x in flatten(started.variables).items():
        expected = 2 if path.split("/")[1] in parts else before[path]
        np.testing.assert_array_equal(x, np.broadcast_to(expected, x.shape))
    assert jax.tree.structure(started) == jax.tree.structure(state)


def test_a_kept_classifier_is_left_out():
    state = fresh()
    weights = some(state)
    extra = {"params/fc/kernel": np.zeros((8, 3), np.float32)}
    weights = dataclasses.replace(weights, arrays={**weights.arrays, **extra})
    start.start_from(state, weights, init="imagenet", layout="torchvision", where="w")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"init": "nyu"}, "weights for --init=nyu, not for --init=imagenet"),
        ({"layout": "fcrn"}, "give --layout=fcrn"),
        ({"rgb_mean": (0.0, 0.0, 0.0)}, "normalised by rgb_mean"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, words):
    state = fresh()
    weights = dataclasses.replace(some(state), **change)
    with pytest.raises(UserError, match=words):
        start.start_from(
            state, weights, init="imagenet", layout="torchvision", where="w"
        )


def test_what_differs_is_named():
    state = fresh()
    arrays = dict(some(state).arrays)
    name = next(k for k in arrays if k.startswith("params/encoder"))
    arrays[name] = np.zeros((1, 2), np.float32)
    arrays["params/encoder/more"] = np.zeros(1, np.float32)
    weights = dataclasses.replace(some(state), arrays=arrays)
    with pytest.raises(UserError, match=r"1 unexpected.*1 misshapen.*\(1, 2\)"):
        start.start_from(
            state, weights, init="imagenet", layout="torchvision", where="w"
        )
