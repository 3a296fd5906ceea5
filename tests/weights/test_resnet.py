"""torchvision's ResNet-50: conversion both ways and parity with PyTorch."""

import lzma

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util
from PIL import Image

from jaxdepth.models import LAYOUTS, create_model
from jaxdepth.models.resnet import Bottleneck, ResNet
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.trees import flatten
from jaxdepth.weights import name_tables, resnet

from . import torch_files, torch_resnet

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


@pytest.fixture(scope="module")
def random_weights():
    return torch_resnet.random_state_dict(0)


@pytest.fixture(scope="module")
def real_weights(shared_data, tmp_path_factory):
    compressed = (
        shared_data / "resnet50_imagenet" / "resnet50_imagenet_pqf.safetensors.xz"
    )
    if not compressed.exists():
        pytest.skip(f"real ResNet-50 weights needed: {compressed}")
    path = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    path.write_bytes(lzma.decompress(compressed.read_bytes()))
    arrays = resnet.read_state_dict(path)
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def variables(state_dict):
    converted = resnet.convert(state_dict)
    assert not converted.mismatch
    tree = traverse_util.unflatten_dict(
        {tuple(path.split("/")): x for path, x in converted.arrays.items()}
    )
    network = {
        "params": tree["params"]["encoder"],
        "batch_stats": tree["batch_stats"]["encoder"],
    }
    return network, tree["params"].get("fc")


@jax.jit
def evaluated(network, image):
    return apply(network, image, train=False)


@jax.jit
def trained(network, image):
    return apply(network, image, train=True)


def apply(network, image, *, train):
    with jax.default_matmul_precision("highest"):
        y, changed = ResNet().apply(
            network,
            image,
            train=train,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Bottleneck),
        )
    last = [f"stage{s}_block{b}" for s, b in enumerate(torch_resnet.STAGES, start=1)]
    stages = [changed["intermediates"][name]["__call__"][0] for name in last]
    return y, stages, changed["batch_stats"]


def assert_close(got, expected, tolerance=1e-4):
    scale = np.abs(expected).max()
    assert np.abs(np.asarray(got) - expected).max() <= tolerance * scale


def assert_parity(state_dict, size, *, train):
    network, _ = variables(state_dict)
    image = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    got, stages, stats = (trained if train else evaluated)(network, image)
    outputs, _, expected_stats = torch_resnet.forward(
        state_dict, image.transpose(0, 3, 1, 2), train=train
    )
    for stage, expected in zip(stages, outputs, strict=True):
        assert_close(stage, expected)
    assert_close(got, outputs[-1])
    if train:
        stats = jax.tree.map(np.asarray, stats)
        tree = {
            "batch_stats": {"encoder": stats},
            "params": {"encoder": network["params"]},
        }
        flat = flatten(tree)
        back = resnet.to_state_dict(flat)
        for name, expected in expected_stats.items():
            assert_close(back[name], expected)


SIZES = [(224, 224), (228, 304), (97, 131)]


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", ["random_weights", "real_weights"])
def test_every_stage_equals_pytorch(request, which, size, train):
    pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    assert_parity(request.getfixturevalue(which), size, train=train)


def logits_of(state_dict, rgb):
    network, fc = variables(state_dict)
    assert fc is not None
    image = (rgb.astype(np.float32) / 255 - MEAN) / STD
    features = np.asarray(evaluated(network, jnp.asarray(image))[0])
    return features.mean((1, 2)) @ fc["kernel"] + fc["bias"], image


@pytest.mark.slow
def test_logits_of_the_real_weights_equal_the_stored_ones(real_weights, shared_data):
    stored = np.load(shared_data / "resnet50_imagenet" / "reference_logits.npz")
    got, _ = logits_of(real_weights, stored["images_uint8_nhwc"])
    assert_close(got, stored["logits_float32"])
    labels = stored["labels"]
    assert (got.argmax(1) == labels)[labels >= 0].mean() > 0.5


@pytest.mark.slow
def test_logits_on_real_frames_equal_pytorch(real_weights, shared_data):
    pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    frames = sorted((shared_data / "nyu_train" / "rgb").glob("*.jpg"))[:32]
    rgb = []
    for path in frames:
        with Image.open(path) as picture:
            rgb.append(np.asarray(picture.resize((304, 228))))
    for k in range(0, 32, 8):
        got, image = logits_of(real_weights, np.stack(rgb[k : k + 8]))
        _, expected, _ = torch_resnet.forward(real_weights, image.transpose(0, 3, 1, 2))
        assert_close(got, expected)


def test_conversion_and_back_is_exact(random_weights):
    converted = resnet.convert(random_weights)
    assert not converted.mismatch
    # 320 arrays without the 53 counters.
    assert len(converted.arrays) == 267
    back = resnet.to_state_dict(converted.arrays)
    assert set(back) == set(random_weights)
    for name, x in random_weights.items():
        expected = np.zeros_like(x) if name.endswith("num_batches_tracked") else x
        assert back[name].dtype == x.dtype and back[name].shape == x.shape
        np.testing.assert_array_equal(back[name], expected)


def without(arrays, *endings):
    return {k: v for k, v in arrays.items() if not k.endswith(endings)}


def test_fc_and_counters_may_be_absent(random_weights):
    assert not resnet.convert(without(random_weights, "num_batches_tracked")).mismatch
    converted = resnet.convert(without(random_weights, "fc.weight", "fc.bias"))
    assert not converted.mismatch and len(converted.arrays) == 265
    other = random_weights | {
        "fc.weight": np.zeros((10, 2048), np.float32),
        "fc.bias": np.zeros(10, np.float32),
    }
    assert not resnet.convert(other).mismatch


def test_all_mismatches_are_listed(random_weights):
    wrong = without(random_weights, "layer2.0.bn1.bias", "fc.bias")
    wrong |= {
        "layer3.0.conv2.weight": np.zeros((256, 256, 1, 1), np.float32),
        "bn1.weight": np.zeros((64, 1), np.float32),
        "extra.weight": np.zeros(3, np.float32),
    }
    mismatch = resnet.convert(wrong).mismatch
    assert mismatch.missing == ("layer2.0.bn1.bias", "fc.bias")
    assert mismatch.unexpected == ("extra.weight",)
    assert len(mismatch.misshapen) == 2
    assert "expected (256, 256, 3, 3)" in "\n".join(mismatch.lines())
    assert "2 missing" in mismatch.summary()


def test_invalid_values_are_rejected(random_weights):
    bad = dict(random_weights)
    for value, words in ((np.nan, "values that are not finite"), (-1, "variances")):
        bad["bn1.running_var"] = np.full(64, value, np.float32)
        with pytest.raises(UserError, match=rf"x\.pth: bn1\.running_var holds {words}"):
            resnet.convert(bad).checked("x.pth", "a network")


SMALL = {
    "conv1.weight": np.ones((64, 3, 7, 7), np.float32),
    "bn1.weight": np.ones(64, np.float32),
}
DENSE, ROW = np.ones((10, 2048), np.float32), np.ones(10, np.float32)
CONVOLUTION = np.ones((8, 2048, 3, 3), np.float32)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_wrapped_and_prefixed_state_dicts_are_read(tmp_path, legacy, wrapper, prefix):
    arrays = {prefix + name: x for name, x in SMALL.items()}
    path = torch_files.save(
        tmp_path / "x.pth",
        arrays,
        legacy=legacy,
        wrap=lambda d: d if wrapper is None else {"epoch": 3, wrapper: d},
    )
    got = resnet.read_state_dict(path)
    assert set(got) == set(SMALL)
    np.testing.assert_array_equal(got["conv1.weight"], SMALL["conv1.weight"])


def test_safetensors_in_half_precision_are_read(tmp_path):
    path = tmp_path / "x.safetensors"
    halves = {f"module.{k}": v.astype(np.float16) for k, v in SMALL.items()}
    safetensors.numpy.save_file(halves, path)
    assert set(resnet.read_state_dict(path)) == set(SMALL)


def test_safetensors_that_begin_like_a_pickle_are_read(tmp_path):
    """The first byte of the header size can be 128, as in a pickle."""
    path = tmp_path / "x.safetensors"
    for length in (128, 640):
        text = (
            b'{"conv1.weight":{"dtype":"F32","shape":[1,3,1,1],"data_offsets":[0,12]}}'
        )
        header = text.ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + header + bytes(12))
        assert path.read_bytes()[:1] == b"\x80"
        assert list(resnet.read_state_dict(path)) == ["conv1.weight"]


def test_arrays_beside_the_state_dict_are_ignored(tmp_path):
    path = torch_files.save(
        tmp_path / "x.pth",
        SMALL | {"batch": np.zeros((1, 3, 4, 4), np.float32)},
        wrap=lambda d: {"batch": d.pop("batch"), "state_dict": d},
    )
    assert set(resnet.read_state_dict(path)) == set(SMALL)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_modules_are_rejected_by_name(tmp_path, legacy):
    path = tmp_path / "x.pth"
    network = torch_files.Call(torch_files.Named("their.models", "ResNet"))
    for wrap in (lambda _: network, lambda _: {"model": network, "epoch": 1}):
        torch_files.save(path, {}, legacy=legacy, wrap=wrap)
        with pytest.raises(
            UserError, match=r"class their\.models\.ResNet, .*state_dict"
        ):
            resnet.read_state_dict(path)


def save_as(path, random_weights, prefix="", head=()):
    """Save the encoder under a prefix, and other arrays."""
    encoder = {k: v for k, v in random_weights.items() if not k.startswith("fc.")}
    arrays = {prefix + name: x for name, x in encoder.items()} | dict(head)
    return torch_files.save(path, arrays, wrap=lambda d: {"state_dict": d})


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("backbone.", {"head.fc.weight": DENSE, "head.fc.bias": ROW}),
        ("backbone.", {"decoder.0.weight": CONVOLUTION}),
        ("", {"fc.0.weight": DENSE, "fc.0.bias": ROW}),
        ("", {"last_linear.weight": DENSE, "last_linear.bias": ROW}),
        ("module.", {"module.fc.weight": DENSE}),
    ],
)
def test_other_heads_are_skipped_and_logged(
    tmp_path, random_weights, caplog, prefix, head
):
    caplog.set_level("INFO")
    path = save_as(tmp_path / "x.pth", random_weights, prefix, head)
    arrays = resnet.convert(resnet.read_state_dict(path)).checked("x", "a ResNet-50")
    assert arrays.keys() == resnet.shapes().keys() - {
        "params/fc/kernel",
        "params/fc/bias",
    }
    assert "skipped, not" in caplog.text
    assert min(head).removeprefix("module.") in caplog.text


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("layer1.0.se.weight", DENSE),
        ("conv1.0.weight", CONVOLUTION),
        ("stem.weight", CONVOLUTION),
    ],
)
def test_other_networks_are_rejected(tmp_path, random_weights, name, array):
    path = save_as(tmp_path / "x.pth", random_weights, head={name: array})
    with pytest.raises(UserError, match=f"1 unexpected .{name}"):
        resnet.convert(resnet.read_state_dict(path)).checked("x", "a ResNet-50")


def test_four_input_channels_behind_a_prefix_are_rejected(tmp_path, random_weights):
    four = np.ones((64, 4, 7, 7), np.float32)
    path = save_as(
        tmp_path / "x.pth", random_weights | {"conv1.weight": four}, "module."
    )
    with pytest.raises(UserError, match=r"not a ResNet-50: 1 misshapen \(conv1"):
        resnet.convert(resnet.read_state_dict(path)).checked("x", "a ResNet-50")


def test_a_single_state_dict_is_found_under_any_name(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "x.pth"
    torch_files.save(path, dict(SMALL), wrap=lambda d: {"epoch": 3, "student": d})
    assert set(resnet.read_state_dict(path)) == set(SMALL)
    assert "using the state dict student" in caplog.text
    torch_files.save(
        path, dict(SMALL), wrap=lambda d: {"student": d, "teacher": type(d)(d)}
    )
    words = r"2 encoders: give one of --prefix=student\., --prefix=teacher\.$"
    with pytest.raises(UserError, match=words):
        resnet.read_state_dict(path)
    assert set(resnet.read_state_dict(path, prefix="teacher")) == set(SMALL)


def moco(path):
    """A checkpoint of MoCo: two encoders of different values, and its queue."""
    arrays = {f"module.encoder_q.{name}": x for name, x in SMALL.items()}
    arrays |= {f"module.encoder_k.{name}": 2 * x for name, x in SMALL.items()}
    arrays |= {"module.encoder_q.fc.0.weight": DENSE, "module.queue": DENSE}
    return torch_files.save(path, arrays, wrap=lambda d: {"state_dict": d})


def test_one_of_several_encoders_is_read_by_its_prefix(tmp_path):
    path = moco(tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"2 encoders: .*encoder_k\., .*encoder_q\.$"):
        resnet.read_state_dict(path)
    for name, factor in (("q", 1), ("k.", 2)):
        got = resnet.read_state_dict(path, prefix=f"module.encoder_{name}")
        assert set(got) == set(SMALL)
        np.testing.assert_array_equal(
            got["conv1.weight"], factor * SMALL["conv1.weight"]
        )
    words = r"--prefix=model\.: no array .* begins like that; encoders: --prefix=module"
    with pytest.raises(UserError, match=words):
        resnet.read_state_dict(path, prefix="model")


def test_reports_are_short_and_of_printable_names(tmp_path, caplog):
    """The file has thousands of arrays with long names and control characters."""
    arrays = {f"\x1b[2J\n{n}" + "x" * 300: CONVOLUTION[:1, :1] for n in range(2000)}
    arrays |= {f"a{n}.conv1.weight": SMALL["conv1.weight"] for n in range(50)}
    path = torch_files.save(tmp_path / "x.pth", arrays)
    with pytest.raises(UserError, match="50 encoders") as caught:
        resnet.read_state_dict(path)
    assert len(str(caught.value)) < 400
    with caplog.at_level("INFO"), pytest.raises(UserError) as caught:
        got = {**resnet.read_state_dict(path, prefix="a1"), **arrays}
        resnet.convert(got).checked("x", "a ResNet-50")
    report = f"{caplog.text}\n{caught.value}"
    assert "more" in report and "\x1b" not in report
    assert len(report.splitlines()) <= 20 and len(report) < 4000


def test_integers_and_overflows_are_rejected(random_weights):
    bad = random_weights | {"bn1.bias": np.ones(64, np.int8)}
    with pytest.raises(UserError, match=r"bn1\.bias holds int8: expected"):
        resnet.convert(bad).checked("x.pth", "a network")
    large = random_weights | {"bn1.bias": np.full(64, 1e300)}
    with pytest.raises(UserError, match=r"bn1\.bias holds values that are not finite"):
        resnet.convert(large).checked("x.pth", "a network")


def test_files_without_a_state_dict_are_rejected(tmp_path):
    path = torch_files.save(tmp_path / "x.pth", {}, wrap=lambda d: {"epoch": 1})
    with pytest.raises(UserError, match="holds no state dict"):
        resnet.read_state_dict(path)
    with pytest.raises(UserError, match="no such file"):
        resnet.read_state_dict(tmp_path / "none.pth")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="text is neither a checkpoint of PyTorch nor"):
        resnet.read_state_dict(tmp_path / "text")


def small_network(layout):
    """A small `upproj`, its sizes, and random weights without zeros and ones."""
    sizes = {
        "stage_sizes": (1, 2),
        "width": 4,
        "decoder_in": 6,
        "decoder_features": (5, 3),
    }
    model = create_model("upproj", layout=layout, **sizes)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = flatten(jax.eval_shape(model.init, jax.random.key(0), image))
    rng = np.random.default_rng(5)
    arrays = {
        path: rng.uniform(0.5, 1.5, x.shape).astype("f4")
        if path.endswith(("scale", "var"))
        else (rng.normal(size=x.shape) * (2 / np.prod(x.shape[:-1])) ** 0.5).astype(
            "f4"
        )
        for path, x in shapes.items()
    }
    arrays["params/head/bias"] += 1
    return model, sizes, arrays


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(32, 48), (37, 55)])
def test_a_pytorch_network_loads_the_exported_state_dict(layout, size):
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    from . import torch_upproj

    model, sizes, arrays = small_network(layout)
    torch_model = torch_upproj.UpProj(LAYOUTS[layout], **sizes).eval()
    state_dict = resnet.to_state_dict(arrays)
    torch_model.load_state_dict({k: torch.tensor(x) for k, x in state_dict.items()})
    image = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = torch_model(torch.tensor(image.transpose(0, 3, 1, 2))).numpy()
    variables = traverse_util.unflatten_dict(arrays, sep="/")
    with jax.default_matmul_precision("highest"):
        got = np.asarray(jax.jit(model.apply)(variables, image))
    assert got.shape == expected.shape and got.std() > 0.01
    assert_close(got, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_array_is_exported_and_imported_exactly(layout):
    _, _, arrays = small_network(layout)
    bias = layout != "torchvision"
    entries = name_tables.resnet((1, 2), bias=bias) + name_tables.decoder(2, bias=bias)
    shapes = {path: x.shape for path, x in arrays.items()}
    state_dict = resnet.to_state_dict(arrays)
    imported = name_tables.convert(
        entries, state_dict, shapes, ignored=lambda n: n.endswith("num_batches_tracked")
    )
    assert not imported.mismatch and set(imported.arrays) == set(arrays)
    for path, x in arrays.items():
        np.testing.assert_array_equal(imported.arrays[path], x)


def test_arrays_of_another_network_are_not_exported():
    _, _, arrays = small_network("torchvision")
    del arrays["params/decoder/bn_in/scale"]
    arrays["params/more/kernel"] = np.zeros(3, np.float32)
    with pytest.raises(
        UserError, match=r"1 missing .*bn_in/scale.*1 unexpected .*more"
    ):
        resnet.to_state_dict(arrays)
