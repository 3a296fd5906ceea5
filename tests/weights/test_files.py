"""Files of converted weights, and training states that start from them."""

import dataclasses
import errno
import functools
import hashlib
import json
import struct

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.trees import flatten
from jaxdepth.training import initialize
from jaxdepth.weights import files
from tests import tiny


@functools.cache
def initial_state():
    return tiny.state(tiny.spec("upproj"))


def filled_weights(state, **fields) -> files.Weights:
    """Weights for every array of a state, filled with 2."""
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


def test_written_weights_are_read_back(tmp_path):
    path = tmp_path / "w.safetensors"
    weights = filled_weights(initial_state())
    files.write(path, weights)
    read = files.read(path)
    assert set(read.arrays) == set(weights.arrays)
    for name, x in weights.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], x)
    assert dataclasses.replace(read, arrays={}) == dataclasses.replace(
        weights, arrays={}
    )
    assert read.rgb_mean == (123.675, 116.28, 103.53)
    with pytest.raises(UserError, match="not overwritten"):
        files.write(path, weights)


def test_other_files_are_rejected(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match="no such file"):
        files.read(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="not a complete safetensors file"):
        files.read(path)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="convert it with"):
        files.read(path)
    safetensors.numpy.save_file(
        {"a": np.zeros(3, np.float32)}, path, {"format": files.FORMAT, "init": "{"}
    )
    with pytest.raises(UserError, match="metadata are damaged"):
        files.read(path)


@pytest.mark.parametrize("value", ["3", "[1, 2]", '"ab"', "{", "[[1], 2, 3]"])
@pytest.mark.parametrize("name", ["rgb_mean", "layout", "init"])
def test_damaged_metadata_are_rejected(tmp_path, name, value):
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
            initialize.start_from(
                initial_state(),
                weights,
                init="imagenet",
                layout="torchvision",
                where="w",
            )


def write_raw(path, dtype: str, data: bytes, count: int):
    """Write a safetensors file of one array, of a type that NumPy may lack."""
    header = {"a": {"dtype": dtype, "shape": [count], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


NAME = "batch_stats/encoder/bn_init/var"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dtype": np.int64}, "holds int64, not weights"),
        ({"value": np.nan}, "holds values that are not finite"),
        ({"value": -1}, "holds variances below zero"),
    ],
)
def test_invalid_values_are_rejected(tmp_path, changed, words):
    weights = filled_weights(initial_state())
    assert NAME in weights.arrays
    array = np.full(weights.arrays[NAME].shape, changed.get("value", 1))
    array = array.astype(changed.get("dtype", np.float32))
    arrays = {**weights.arrays, NAME: array}
    path = tmp_path / "w.safetensors"
    files.write(path, dataclasses.replace(weights, arrays=arrays))
    with pytest.raises(UserError, match=f"safetensors: {NAME} {words}"):
        files.read(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(tmp_path, dtype):
    weights = filled_weights(initial_state())
    arrays = {name: x.astype(dtype) for name, x in weights.arrays.items()}
    path = tmp_path / "w.safetensors"
    files.write(path, dataclasses.replace(weights, arrays=arrays))
    for name, x in files.read(path).arrays.items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, weights.arrays[name])


def test_bfloat16_becomes_float32_and_float8_is_rejected(tmp_path):
    path = write_raw(tmp_path / "w", "BF16", b"\x80\x3f\x20\xc0", 2)
    arrays, _ = files.read_safetensors(path)
    assert arrays["a"].dtype == np.float32
    np.testing.assert_array_equal(arrays["a"], [1, -2.5])
    write_raw(path, "F8_E4M3", b"\x00\x01", 2)
    with pytest.raises(UserError, match="a is of type F8_E4M3"):
        files.read_safetensors(path)


def test_a_wrong_header_length_is_rejected(tmp_path):
    path = write_raw(tmp_path / "w", "F32", bytes(8), 2)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    for wrong in (0, length - 1, length + 1, length + 100, 1 << 40):
        path.write_bytes(struct.pack("<Q", wrong) + content[8:])
        with pytest.raises(UserError, match="not a complete safetensors file"):
            files.read_safetensors(path)


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    files.write(tmp_path / "w.safetensors", filled_weights(initial_state()))
    assert files.read("~/w.safetensors").init == "imagenet"
    assert files.output("~/out.npy", ".npy") == tmp_path / "out.npy"
    with pytest.raises(UserError, match="is a folder"):
        files.read("~/")


def test_unwritable_outputs_are_reported(tmp_path, monkeypatch):
    (tmp_path / "a.pth").touch()
    with pytest.raises(UserError, match="not overwritten"):
        files.output(str(tmp_path / "a.pth"), ".pth")
    with pytest.raises(UserError, match=r"no folder .*none"):
        files.output(str(tmp_path / "none" / "b.pth"), ".pth")
    with pytest.raises(UserError, match=r"ends in \.pth or \.pt"):
        files.output(str(tmp_path / "b.npy"), ".pth", ".pt")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(MachineError, match="could not be written: No space"):
        files.write(tmp_path / "w.safetensors", filled_weights(initial_state()))


def test_the_checksum_of_several_files_covers_all_of_them(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    expected = hashlib.sha256(b"onetwo").hexdigest()
    assert files.sha256(tmp_path / "a", tmp_path / "b") == expected


@pytest.mark.parametrize(
    ("init", "parts"),
    [("imagenet", {"encoder"}), ("nyu", {"encoder", "decoder", "head"})],
)
def test_init_selects_the_parts_that_start_from_weights(init, parts):
    state = initial_state()
    weights = filled_weights(state, init=init)
    started = initialize.start_from(
        state, weights, init=init, layout="torchvision", where="w"
    )
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
    initialize.start_from(
        state, weights, init="imagenet", layout="torchvision", where="w"
    )


def test_arrays_of_no_part_of_the_network_are_ignored():
    state = initial_state()
    weights = filled_weights(state)
    weights = dataclasses.replace(
        weights, arrays={**weights.arrays, "bare": np.zeros(1, np.float32)}
    )
    initialize.start_from(
        state, weights, init="imagenet", layout="torchvision", where="w"
    )


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
        initialize.start_from(
            state, weights, init="imagenet", layout="torchvision", where="w"
        )


def test_mismatches_are_summarized():
    state = initial_state()
    arrays = dict(filled_weights(state).arrays)
    name = next(k for k in arrays if k.startswith("params/encoder"))
    arrays[name] = np.zeros((1, 2), np.float32)
    arrays["params/encoder/more"] = np.zeros(1, np.float32)
    weights = dataclasses.replace(filled_weights(state), arrays=arrays)
    with pytest.raises(UserError, match=r"1 unexpected.*1 misshapen.*\(1, 2\)"):
        initialize.start_from(
            state, weights, init="imagenet", layout="torchvision", where="w"
        )
