"""The published NYU network: read from its own formats, compared, and back."""

import pickle

import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxdepth.errors import UserError
from jaxdepth.models import create_model
from jaxdepth.weights import fcrn
from tools import convert_fcrn

from . import fcrn_files


@pytest.fixture(scope="module")
def dictionary():
    return fcrn_files.random_dictionary(0)


def flat(dictionary):
    return {f"{a}/{b}": x for a, d in dictionary.items() for b, x in d.items()}


@pytest.fixture(scope="module")
def npy(dictionary, tmp_path_factory):
    return fcrn_files.save(tmp_path_factory.mktemp("fcrn") / "net.npy", dictionary)


def test_counts_are_the_published_ones(dictionary):
    assert len(dictionary) == 157
    assert sum(map(len, dictionary.values())) == 394
    assert sum(x.nbytes for x in flat(dictionary).values()) == 254_534_660
    converted = fcrn.convert(flat(dictionary))
    assert not converted.mismatch
    params = [x.size for k, x in converted.arrays.items() if k.startswith("params/")]
    assert sum(params) == 63_572_737


def test_the_python_2_file_is_read_value_for_value(npy, dictionary):
    # NumPy itself reads what the test wrote, and finds the same.
    theirs = np.load(npy, allow_pickle=True, encoding="latin1").item()
    got, wanted = fcrn.read(npy), flat(dictionary)
    assert set(got) == set(wanted) == set(flat(theirs))
    for name, x in wanted.items():
        np.testing.assert_array_equal(got[name], x)
        assert got[name].dtype == np.float32


def test_there_and_back_value_for_value(dictionary):
    back = fcrn.to_dictionary(fcrn.convert(flat(dictionary)).arrays)
    assert set(back) == set(dictionary)
    for name, x in flat(dictionary).items():
        np.testing.assert_array_equal(flat(back)[name], x)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["top_left", "bottom_right"])
@pytest.mark.parametrize("size", [(64, 96), (37, 75)])
def test_equals_a_plain_implementation(dictionary, side, size):
    pytest.importorskip("torch", reason="the plain implementation uses PyTorch's ops")
    layout = "fcrn" if side == "top_left" else "fcrn_make3d"
    model = create_model("upproj", layout=layout)
    arrays = fcrn.convert(flat(dictionary)).arrays
    variables = traverse_util.unflatten_dict(
        {tuple(k.split("/")): v for k, v in arrays.items()}
    )
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (1, *size, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        got = np.asarray(jax.jit(model.apply)(variables, rgb))
    wanted = fcrn_files.forward(dictionary, rgb, side=side)
    assert got.shape == wanted.shape and (wanted > 0).mean() > 0.2
    assert np.abs(got - wanted).max() <= 1e-4 * wanted.max()


@pytest.mark.slow
def test_tensorflow_checkpoints(tmp_path, dictionary):
    tf = pytest.importorskip("tensorflow", reason="writes a TensorFlow checkpoint")
    arrays = flat(dictionary)
    extra = {"global_step": np.int64(3), "conv1/weights/Momentum": np.zeros(2, "f4")}
    names = [*arrays, *extra]
    prefix = str(tmp_path / "NYU_FCRN.ckpt")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(x) for x in (*arrays.values(), *extra.values())],
    )
    for path in (prefix, prefix + ".index"):
        got = fcrn.read(path)
        assert set(got) == set(arrays)
        for name, x in arrays.items():
            np.testing.assert_array_equal(got[name], x)
    with open(prefix + ".index", "r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="damaged"):
        fcrn.read(prefix)


@pytest.mark.slow
def test_the_command_there_and_back(npy, dictionary, tmp_path):
    ours, back = tmp_path / "nyu.safetensors", tmp_path / "back.npy"
    assert convert_fcrn.command([str(npy), str(ours)]) == 0
    assert convert_fcrn.command(["--reverse", str(ours), str(back)]) == 0
    theirs = np.load(back, allow_pickle=True, encoding="latin1").item()
    for name, x in flat(dictionary).items():
        np.testing.assert_array_equal(flat(theirs)[name], x)
    # Ours reads what Python 3 wrote, too.
    assert set(fcrn.read(back)) == set(flat(dictionary))
    with pytest.raises(UserError, match="not overwritten"):
        convert_fcrn.command([str(npy), str(ours)])


def test_all_that_is_wrong_is_listed(dictionary, tmp_path):
    arrays = flat(dictionary)
    del arrays["layer8x_br1_ConvB/weights"]
    arrays["layer4x_br2_ConvC/biases"] = np.zeros(3, np.float32)
    arrays["layer4x_br2_ConvE/biases"] = np.zeros(3, np.float32)
    mismatch = fcrn.convert(arrays).mismatch
    assert mismatch.missing == ("layer8x_br1_ConvB/weights",)
    assert mismatch.unexpected == ("layer4x_br2_ConvE/biases",)
    assert mismatch.misshapen == ("layer4x_br2_ConvC/biases (3,), expected (256,)",)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


def test_a_malicious_file_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = fcrn_files.write_npy(
        tmp_path / "x.npy", pickle.dumps(Payload(marker), protocol=2)
    )
    with pytest.raises(UserError, match="system, which is not data"):
        fcrn.read(path)
    assert not marker.exists()


def test_other_files_are_refused(tmp_path, npy):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match="not the dictionary"):
        fcrn.read(tmp_path / "a.npy")
    boxed = np.empty((), object)
    boxed[()] = {"a": "b"}
    fcrn_files.write_npy(tmp_path / "b.npy", fcrn_files.python2_pickle(boxed))
    with pytest.raises(UserError, match="no dictionary of layers"):
        fcrn.read(tmp_path / "b.npy")
    content = npy.read_bytes()
    (tmp_path / "c.npy").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"):
        fcrn.read(tmp_path / "c.npy")
    (tmp_path / "d.npy").write_text("hello")
    with pytest.raises(UserError, match="neither a"):
        fcrn.read(tmp_path / "d.npy")
    with pytest.raises(UserError, match="no such file"):
        fcrn.read(tmp_path / "none.ckpt")
