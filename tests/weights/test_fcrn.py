"""The published NYU network: reading, comparing and converting both ways."""

import dataclasses
import hashlib
import pickle

import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import convert_fcrn, evaluate, trained_network
from jaxdepth.models import create_model
from jaxdepth.runtime import trees
from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import fcrn, files

from . import damage, fcrn_files


@pytest.fixture(scope="module")
def dictionary():
    return fcrn_files.random_dictionary(0)


def flat(dictionary):
    return {f"{a}/{b}": x for a, d in dictionary.items() for b, x in d.items()}


@pytest.fixture(scope="module")
def npy(dictionary, tmp_path_factory):
    return fcrn_files.save(tmp_path_factory.mktemp("fcrn") / "net.npy", dictionary)


def test_counts_equal_the_published_ones(dictionary):
    assert len(dictionary) == 157
    assert sum(map(len, dictionary.values())) == 394
    assert sum(x.nbytes for x in flat(dictionary).values()) == 254_534_660
    converted = fcrn.convert(flat(dictionary))
    assert not converted.mismatch
    params = [x.size for k, x in converted.arrays.items() if k.startswith("params/")]
    assert sum(params) == 63_572_737


def test_python_2_pickles_are_read_exactly(npy, dictionary):
    # NumPy reads the test file, too, with the same content.
    by_numpy = np.load(npy, allow_pickle=True, encoding="latin1").item()
    got, expected = fcrn.read(npy), flat(dictionary)
    assert set(got) == set(expected) == set(flat(by_numpy))
    for name, x in expected.items():
        np.testing.assert_array_equal(got[name], x)
        assert got[name].dtype == np.float32


def test_conversion_and_back_is_exact(dictionary):
    back = fcrn.to_dictionary(fcrn.convert(flat(dictionary)).arrays)
    assert set(back) == set(dictionary)
    for name, x in flat(dictionary).items():
        np.testing.assert_array_equal(flat(back)[name], x)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["top_left", "bottom_right"])
@pytest.mark.parametrize("size", [(64, 96), (37, 75)])
def test_equals_a_reference_implementation(dictionary, side, size):
    pytest.importorskip("torch", reason="the reference implementation needs torch")
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
    expected = fcrn_files.forward(dictionary, rgb, side=side)
    assert got.shape == expected.shape and (expected > 0).mean() > 0.2
    assert np.abs(got - expected).max() <= 1e-4 * expected.max()


@pytest.mark.slow
def test_tensorflow_checkpoints_are_read_exactly(tmp_path, dictionary):
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


SMALL = {
    "conv1/weights": np.arange(4, dtype=np.float32),
    "extra/biases": np.ones(2, np.float32),
    "global_step": np.int64(3),
    "conv1/weights/Adam": np.zeros(2, np.float32),
}


def write_checkpoint(prefix, *, version=2):
    tf = pytest.importorskip("tensorflow", reason="writes a TensorFlow checkpoint")
    names, tensors = list(SMALL), [tf.constant(x) for x in SMALL.values()]
    if version == 1:
        tf.raw_ops.Save(filename=str(prefix), tensor_names=names, data=tensors)
    else:
        tf.raw_ops.SaveV2(
            prefix=str(prefix),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=tensors,
        )
    return prefix


def state_file(prefix):
    """Write a `checkpoint` file with the path of another folder, as TensorFlow does."""
    text = f'model_checkpoint_path: "/gone/{prefix.name}"\n'
    prefix.with_name("checkpoint").write_text(
        text + 'all_model_checkpoint_paths: "/gone/other"\n'
    )


@pytest.mark.slow
def test_variables_other_than_weights_are_skipped_and_logged(tmp_path, caplog):
    for version in (1, 2):
        prefix = write_checkpoint(tmp_path / f"v{version}.ckpt", version=version)
        caplog.clear()
        with caplog.at_level("INFO", logger="jaxdepth"):
            got = fcrn.read(prefix)
        # Weights of other layers are read, and reported as unexpected.
        assert set(got) == {"conv1/weights", "extra/biases"}
        np.testing.assert_array_equal(got["conv1/weights"], SMALL["conv1/weights"])
        assert "skipped, not weights: conv1/weights/Adam, global_step" in caplog.text
    assert "extra/biases" in fcrn.convert(got).mismatch.unexpected


@pytest.mark.slow
def test_checkpoints_are_found_in_folders(tmp_path):
    with pytest.raises(UserError, match="holds no TensorFlow checkpoint"):
        fcrn.read(tmp_path)
    first = write_checkpoint(tmp_path / "a.ckpt")
    assert set(fcrn.read(tmp_path)) == {"conv1/weights", "extra/biases"}
    write_checkpoint(tmp_path / "b.ckpt")
    with pytest.raises(UserError, match=r"several checkpoints \(a\.ckpt, b\.ckpt\)"):
        fcrn.read(tmp_path)
    state_file(first)
    index, data = fcrn.source_files(tmp_path)
    assert index.name == "a.ckpt.index" and data.name == "a.ckpt.data-00000-of-00001"
    assert fcrn.source_files(first) == fcrn.source_files(data) == [index, data]
    data.unlink()
    with pytest.raises(UserError, match="is damaged"):
        fcrn.read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["v2.index", "v2.data-00000-of-00001", "v1"])
def test_damaged_checkpoints_raise_one_line_errors(tmp_path, which):
    for version in (1, 2):
        write_checkpoint(tmp_path / f"v{version}", version=version)
    content, rng = (tmp_path / which).read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        (tmp_path / which).write_bytes(damage.damaged(content, rng))
        try:
            fcrn.read(tmp_path / which)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


@pytest.mark.slow
def test_the_command_takes_a_checkpoint_and_its_checksum(tmp_path, dictionary):
    tf = pytest.importorskip("tensorflow", reason="writes a TensorFlow checkpoint")
    arrays = flat(dictionary)
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "net.ckpt"),
        tensor_names=list(arrays),
        shape_and_slices=[""] * len(arrays),
        tensors=[tf.constant(x) for x in arrays.values()],
    )
    out = tmp_path / "nyu.safetensors"
    assert convert_fcrn.command([str(tmp_path), str(out)]) == 0
    weights = files.read(out)
    names = ("net.ckpt.index", "net.ckpt.data-00000-of-00001")
    assert weights.origin == " + ".join(names)
    content = b"".join((tmp_path / name).read_bytes() for name in names)
    assert weights.sha256 == hashlib.sha256(content).hexdigest()


def test_other_entries_of_the_dictionary_are_skipped_and_logged(tmp_path, caplog):
    arrays = {"weights": np.zeros((7, 7, 3, 64), "f4"), "comment": "text"}
    content = {"conv1": arrays, "extra": {"weights": np.zeros(3, "f4")}}
    content |= {"bare": np.zeros(2, "f4"), "epoch": "3"}
    with caplog.at_level("INFO", logger="jaxdepth"):
        got = fcrn.read(fcrn_files.save(tmp_path / "x.npy", content))
    assert fcrn.convert(got).mismatch.unexpected == ("bare", "extra/weights")
    assert "skipped, not weights: conv1/comment, epoch" in caplog.text


@pytest.mark.parametrize("header", [b"{'descr': 'O", b"{'shape': (", b"(" * 90, b"\\"])
def test_damaged_headers_are_rejected(tmp_path, header):
    path = fcrn_files.write_npy(tmp_path / "x.npy", b"")
    content = path.read_bytes()
    path.write_bytes(content[:10] + header.ljust(len(content) - 11) + b"\n")
    with pytest.raises(UserError, match="damaged"):
        fcrn.read(path)


@pytest.mark.parametrize("layout", ["fcrn", "fcrn_make3d"])
def test_converted_weights_are_a_network_to_predict_with(dictionary, tmp_path, layout):
    arrays = fcrn.convert(flat(dictionary)).checked("here", "the published network")
    texts = {"init": "nyu", "origin": "net.npy", "sha256": "0", "licence": "Free."}
    weights = files.Weights.of_layout(arrays, layout, **texts)
    path = tmp_path / "nyu.safetensors"
    files.write(path, weights)
    predictor = predictor_lib.load(path, cache_dir=None)
    loaded = trees.flatten(predictor.variables)
    assert loaded.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(loaded[name], x, err_msg=name)
    assert predictor.config.model.layout == layout and predictor.step is None
    assert predictor.config.frame_size == (240, 320)
    # The colour camera of NYU has 518.86 pixels at 480x640; Make3D's is unknown.
    fx = None if predictor.camera is None else predictor.camera.fx
    assert fx == (pytest.approx(518.86 / 2, abs=0.01) if layout == "fcrn" else None)
    with pytest.raises(UserError, match="without data: give --data=PATH"):
        evaluate.command([f"--checkpoint={path}"])

    path.unlink()
    files.write(path, dataclasses.replace(weights, rgb_std=(2.0, 2.0, 2.0)))
    with pytest.raises(UserError, match="normalisation is not that of --layout=fcrn"):
        predictor_lib.load(path, cache_dir=None)


@pytest.mark.slow
def test_the_command_converts_both_ways(npy, dictionary, tmp_path):
    weights, back = tmp_path / "nyu.safetensors", tmp_path / "back.npy"
    assert convert_fcrn.command([str(npy), str(weights)]) == 0
    assert convert_fcrn.command(["--reverse", str(weights), str(back)]) == 0
    by_numpy = np.load(back, allow_pickle=True, encoding="latin1").item()
    for name, x in flat(dictionary).items():
        np.testing.assert_array_equal(flat(by_numpy)[name], x)
    # `read` accepts pickles of Python 3, too.
    assert set(fcrn.read(back)) == set(flat(dictionary))
    with pytest.raises(UserError, match="not overwritten"):
        convert_fcrn.command([str(npy), str(weights)])


def test_wrong_arguments_are_reported_before_reading(tmp_path, npy, monkeypatch):
    def fail(*_):
        raise AssertionError("the file was read")

    monkeypatch.setattr(fcrn, "read", fail)
    with pytest.raises(UserError, match="no folder"):
        convert_fcrn.command([str(npy), str(tmp_path / "none" / "x.safetensors")])
    with pytest.raises(UserError, match=r"ends in \.safetensors"):
        convert_fcrn.command([str(npy), str(tmp_path / "x.pth")])
    with pytest.raises(UserError, match=r"ends in \.npy"):
        convert_fcrn.command(["--reverse", "x", str(tmp_path / "x.pth")])


def test_average_unpooling_is_not_exported(tmp_path, monkeypatch):
    one = np.zeros((), np.float32)
    arrays = {path: np.broadcast_to(one, n) for path, n in fcrn.shapes().items()}
    network = trained_network.Network(arrays, "fcrn", "average", "a run")
    monkeypatch.setattr(trained_network, "read", lambda source, step: network)
    with pytest.raises(UserError, match="--unpool=average, which the published form"):
        convert_fcrn.command(["--reverse", "x", str(tmp_path / "x.npy")])


def test_all_mismatches_are_listed(dictionary, tmp_path):
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


def test_malicious_pickles_are_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = fcrn_files.write_npy(
        tmp_path / "x.npy", pickle.dumps(Payload(marker), protocol=2)
    )
    with pytest.raises(UserError, match="system, which is not data"):
        fcrn.read(path)
    assert not marker.exists()


def test_other_files_are_rejected(tmp_path, npy):
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
