"""The input that a ResNet takes: recognition and conversion."""

import lzma
import re

import numpy as np
import pytest
import safetensors.numpy

from jaxdepth.commands import convert_resnet
from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import files, input_format

from . import torch_files, torch_resnet
from .test_resnet import assert_close, evaluated, variables

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def real_weights(shared_data, tmp_path_factory):
    """ImageNet weights that take torchvision's input."""
    folder = shared_data / "resnet50_imagenet"
    packed = folder / "resnet50_imagenet_pqf.safetensors.xz"
    if not packed.exists():
        pytest.skip(f"real ResNet-50 weights needed: {packed}")
    arrays = safetensors.numpy.load(lzma.decompress(packed.read_bytes()))
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def with_input(state_dict, *, std, mean=MEAN, bgr=False):
    """The same network, for (colours - mean) / std instead of torchvision's input.

    torchvision's input is a * x + b for the new input x.
    """
    a, b = np.divide(std, STD), (mean - MEAN) / STD
    kernel = state_dict["conv1.weight"].astype(np.float64)
    shift = kernel.sum((2, 3)) @ b
    kernel = kernel * a[:, None, None]
    return state_dict | {
        "conv1.weight": (kernel[:, ::-1] if bgr else kernel).astype(np.float32),
        "bn1.running_mean": state_dict["bn1.running_mean"] - shift.astype(np.float32),
    }


def recognised(state_dict):
    names = ("conv1.weight", "bn1.running_mean", "bn1.running_var")
    return input_format.recognise(*(state_dict[name] for name in names))


FORMATS = {
    "torchvision": ({"std": STD}, "ImageNet's deviation minus"),
    "0 to 255": ({"std": np.full(3, 1 / 255)}, "of 0 to 255 minus ImageNet's"),
    "0 to 1, centred": ({"std": np.ones(3)}, "of 0 to 1 minus ImageNet's"),
    "0 to 1": (
        {"std": np.ones(3), "mean": np.zeros(3)},
        "of 0 to 1, whose mean is 0.49 0.46 0.41",
    ),
    "-1 to 1": (
        {"std": np.full(3, 0.5), "mean": np.full(3, 0.5)},
        "of -1 to 1, whose mean is -0.01 -0.04 -0.09",
    ),
    "raw": (
        {"std": np.full(3, 1 / 255), "mean": np.zeros(3)},
        "of 0 to 255, whose mean is 0.49 0.46 0.41",
    ),
}


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_real_weights_for_every_input_are_recognised(real_weights, name, bgr):
    values, words = FORMATS[name]
    taken = recognised(with_input(real_weights, **values, bgr=bgr))
    assert taken is not None and taken.bgr is bgr and words in str(taken)
    assert taken.is_centred == (values.get("mean") is None)
    assert taken.is_torchvision == (name == "torchvision" and not bgr)


def test_the_covariance_is_that_of_a_stationary_image():
    """Entries that the table's columns and rows must give, by hand."""
    covariance = input_format._covariance().reshape(3, 7, 7, 3, 7, 7) * 1e5
    np.testing.assert_allclose(covariance, covariance.transpose(3, 4, 5, 0, 1, 2))
    assert covariance[0, 3, 3, 0, 3, 3] == pytest.approx(6411)
    assert covariance[2, 3, 3, 1, 3, 4] == pytest.approx(5715)  # GB, (0, 1)
    assert covariance[0, 6, 0, 2, 0, 6] == pytest.approx(3862)  # RB, (6, 6)
    assert covariance[1, 5, 2, 1, 2, 1] == pytest.approx(5375)  # GG, (1, 3)


def test_recognition_of_synthetic_statistics():
    """Gaussian images with known covariance; the variance is computed by hand."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(64, 3, 7, 7)).cumsum(2).cumsum(3)
    flat = (kernel[:, ::-1] / 255).reshape(64, 147)
    expected = np.einsum("ki,ij,kj->k", flat, input_format._covariance(), flat)
    variance = expected * 255**4 * np.exp(rng.normal(0, 0.02, 64))
    taken = input_format.recognise(kernel, np.zeros(64), variance)
    assert taken is not None
    assert taken == input_format.InputFormat(
        True, "of 0 to 255", (0.0, 0.0, 0.0), taken.log_odds
    )
    assert taken.log_odds > 4
    # Grey filters tell nothing of the order.
    grey = np.repeat(kernel[:, :1], 3, axis=1)
    flat = grey.reshape(64, 147) * 255
    variance = np.einsum("ki,ij,kj->k", flat, input_format._covariance(), flat)
    taken = input_format.recognise(grey, np.zeros(64), variance)
    assert taken is not None and taken.bgr is None


def test_random_weights_are_not_recognised():
    assert recognised(torch_resnet.random_state_dict(0)) is None
    zeros = np.zeros((64, 3, 7, 7))
    assert input_format.recognise(zeros, np.zeros(64), np.zeros(64)) is None


def convert(state_dict, tmp_path, *flags):
    path = tmp_path / "x.safetensors"
    arrays = {name: np.ascontiguousarray(x) for name, x in state_dict.items()}
    safetensors.numpy.save_file(arrays, path)
    out = tmp_path / "out.safetensors"
    assert convert_resnet.command([str(path), str(out), *flags]) == 0
    return files.read(out)


def test_torchvision_weights_are_converted_unchanged(real_weights, tmp_path):
    weights = convert(real_weights, tmp_path)
    assert weights.origin == "x.safetensors"
    np.testing.assert_array_equal(
        weights.arrays["params/encoder/conv_init/kernel"],
        real_weights["conv1.weight"].transpose(2, 3, 1, 0),
    )


@pytest.mark.parametrize("flags", [[], ["--input=caffe"]])
def test_weights_of_caffe_are_converted_to_equal_ones(
    real_weights, tmp_path, caplog, flags
):
    caffe = with_input(real_weights, std=np.full(3, 1 / 255), bgr=True)
    with caplog.at_level("INFO", logger="jaxdepth"):
        weights = convert(caffe, tmp_path, *flags)
    assert "takes BGR colours of 0 to 255 minus ImageNet's mean" in weights.origin
    if not flags:
        assert "takes BGR colours of 0 to 255" in caplog.text
        assert "ResNet v1" in caplog.text
    np.testing.assert_allclose(
        weights.arrays["params/encoder/conv_init/kernel"],
        real_weights["conv1.weight"].transpose(2, 3, 1, 0),
        rtol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision", "0 to 255", "0 to 1, centred"])
def test_the_network_s_output_on_a_photo_is_unchanged(real_weights, shared_data, name):
    """Original with BGR and its own scale, converted with torchvision's input."""
    stored = np.load(shared_data / "resnet50_imagenet" / "reference_logits.npz")
    photo = stored["images_uint8_nhwc"][-1:, 40:137, 30:161] / 255.0
    std = FORMATS[name][0]["std"]
    original = with_input(real_weights, std=std, bgr=True)
    taken = recognised(original)
    assert taken is not None
    converted = input_format.to_torchvision(original, taken, where="x")
    outputs = []
    # The original takes (colours - mean) / std with reversed channels.
    for state_dict, image in (
        (original, ((photo - MEAN) / std)[..., ::-1]),
        (converted, (photo - MEAN) / STD),
    ):
        network, _ = variables(state_dict)
        outputs.append(np.asarray(evaluated(network, image.astype(np.float32))[0]))
    assert outputs[0].std() > 0.01
    assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize("name", ["0 to 1", "-1 to 1", "raw"])
def test_another_mean_is_rejected_with_what_was_recognised(
    real_weights, tmp_path, name
):
    values, words = FORMATS[name]
    changed = with_input(real_weights, **values, bgr=True)
    expected = f"takes BGR colours {re.escape(words)}.*for another colour"
    with pytest.raises(UserError, match=expected):
        convert(changed, tmp_path)
    weights = convert(changed, tmp_path, "--input=torchvision")
    np.testing.assert_array_equal(
        weights.arrays["params/encoder/conv_init/kernel"],
        changed["conv1.weight"].transpose(2, 3, 1, 0),
    )


def test_an_unknown_input_is_reported(tmp_path, caplog):
    path = torch_files.save(tmp_path / "x.pth", torch_resnet.random_state_dict(1))
    assert convert_resnet.command([str(path), str(tmp_path / "o.safetensors")]) == 0
    assert "match no known input: converted for torchvision's input" in caplog.text


@pytest.mark.parametrize(
    ("scale", "words"),
    [(input_format.TORCHVISION, "--input=bgr"), ("of 0 to 255", "--input=rgb255 or")],
)
def test_an_uncertain_order_is_reported_or_rejected(monkeypatch, caplog, scale, words):
    taken = input_format.InputFormat(None, scale, (0.0, 0.0, 0.0))
    monkeypatch.setattr(input_format, "recognise", lambda *_: taken)
    arrays = torch_resnet.random_state_dict(0)
    if scale == input_format.TORCHVISION:
        assert convert_resnet._input_of(arrays, "x", "auto") == taken
        assert words in caplog.text
        return
    with pytest.raises(UserError, match=words):
        convert_resnet._input_of(arrays, "x", "auto")


def test_only_the_first_convolution_is_changed():
    arrays = {"conv1.weight": np.arange(147.0).reshape(1, 3, 7, 7), "other": "kept"}
    named = input_format.NAMED
    same = input_format.to_torchvision(arrays, named["torchvision"], where="x")
    assert same["conv1.weight"] is arrays["conv1.weight"] and same["other"] == "kept"
    bgr = input_format.to_torchvision(arrays, named["bgr"], where="x")
    np.testing.assert_array_equal(
        bgr["conv1.weight"], arrays["conv1.weight"][:, [2, 1, 0]]
    )
