"""Files of converted weights."""

import dataclasses
import errno
import json
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.weights import files

from . import example

NAME = "batch_stats/encoder/bn_init/var"


def filled_weights() -> files.Weights:
    """Weights of two arrays, filled with 2."""
    shapes = {NAME: (4,), "params/encoder/conv_init/kernel": (7, 7, 3, 4)}
    return example.weights({k: np.full(n, 2, np.float32) for k, n in shapes.items()})


def test_written_weights_are_read_back(tmp_path):
    path = tmp_path / "w.safetensors"
    weights = filled_weights()
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
    with pytest.raises(UserError, match="is a PyTorch file"):
        files.read(path)
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="convert it with"):
        files.read(path)
    safetensors.numpy.save_file(
        {"a": np.zeros(3, np.float32)}, path, {"format": files.FORMAT, "init": "{"}
    )
    with pytest.raises(UserError, match="metadata are damaged"):
        files.read(path)


def write_raw(path, dtype: str, data: bytes, count: int):
    """Write a safetensors file of one array, of a type that NumPy may lack."""
    header = {"a": {"dtype": dtype, "shape": [count], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dtype": np.int64}, "holds int64: expected floating-point"),
        ({"value": np.nan}, "holds values that are not finite"),
        ({"value": -1}, "holds variances below zero"),
    ],
)
def test_invalid_values_are_rejected(tmp_path, changed, words):
    weights = filled_weights()
    array = np.full(weights.arrays[NAME].shape, changed.get("value", 1))
    array = array.astype(changed.get("dtype", np.float32))
    arrays = {**weights.arrays, NAME: array}
    path = tmp_path / "w.safetensors"
    files.write(path, dataclasses.replace(weights, arrays=arrays))
    with pytest.raises(UserError, match=f"safetensors: {NAME} {words}"):
        files.read(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_become_float32(tmp_path, dtype):
    weights = filled_weights()
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
    files.write(tmp_path / "w.safetensors", filled_weights())
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
        files.write(tmp_path / "w.safetensors", filled_weights())
