"""Damaged files of every format are read, or rejected with an error of one line."""

import collections

import numpy as np
import pytest
import safetensors.numpy

from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import fcrn, files, resnet, torchfile

from . import damage, example, fcrn_files, torch_files

ARRAYS = {
    "conv1.weight": np.arange(2 * 3 * 49, dtype=np.float32).reshape(2, 3, 7, 7),
    "bn1.weight": np.ones(2, np.float16),
    "bn1.num_batches_tracked": np.array(7, np.int64),
}


def checkpoint(path, *, legacy):
    def wrap(d):
        extra = {"best": np.float64(1.5), "classes": {1, 2}, "mean": np.zeros(3)}
        return {"epoch": 3, **extra, "state_dict": collections.OrderedDict(d)}

    return torch_files.save(path, ARRAYS, legacy=legacy, wrap=wrap)


def converted(path):
    files.write(path, example.weights(ARRAYS))
    return path


def plain_safetensors(path):
    safetensors.numpy.save_file(ARRAYS, path)
    return path


def dictionary(path):
    arrays = {"weights": np.zeros((1, 2, 3, 4), "f4"), "biases": np.ones(4, "f4")}
    return fcrn_files.save(path, {"conv1": arrays, "layer1": dict(arrays)})


FORMATS = {
    "zip": (lambda path: checkpoint(path, legacy=False), torchfile.read),
    "legacy": (lambda path: checkpoint(path, legacy=True), torchfile.read),
    "state dict": (
        lambda path: checkpoint(path, legacy=False),
        resnet.read_state_dict,
    ),
    "safetensors": (plain_safetensors, resnet.read_state_dict),
    "weights": (converted, files.read),
    "npy": (dictionary, fcrn.read),
}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_raise_one_line_errors_at_most(name, tmp_path):
    write, read = FORMATS[name]
    content = write(tmp_path / "intact").read_bytes()
    path = tmp_path / "damaged"
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(500):
        path.write_bytes(damage.damaged(content, rng))
        try:
            read(path)
        except UserError as error:
            rejected += 1
            assert "\n" not in str(error) and len(str(error)) < 400
    assert rejected > 100
