"""`jaxdepth convert-resnet` as a user runs it."""

import hashlib
import io
import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors

import jaxdepth
from jaxdepth.commands import cli, convert_resnet, run, trained_network
from jaxdepth.models import LAYOUTS
from jaxdepth.runtime import hosts, regular
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.weights import files, resnet
from tests.weights import torch_files, torch_resnet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "resnet50.pth"
    return torch_files.save(path, torch_resnet.random_state_dict(1, classes=7))


@pytest.fixture(scope="module")
def converted(checkpoint):
    out = checkpoint.with_name("ours.safetensors")
    assert convert_resnet.command([str(checkpoint), str(out)]) == cli.OK
    return out


def test_metadata_of_converted_weights(checkpoint, converted):
    weights = files.read(converted)
    assert (weights.init, weights.layout) == ("imagenet", "torchvision")
    assert weights.origin == "resnet50.pth" and "BSD-3" in weights.licence
    assert weights.sha256 == regular.sha256(checkpoint)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_reverse_restores_the_checkpoint(converted, tmp_path, suffix):
    out = tmp_path / f"torch{suffix}"
    assert convert_resnet.command([str(converted), str(out), "--reverse"]) == cli.OK
    restored = resnet.read_state_dict(out)
    expected = torch_resnet.random_state_dict(1, classes=7)
    assert set(restored) == set(expected)
    for name, x in expected.items():
        counter = name.endswith("num_batches_tracked")
        assert restored[name].dtype == x.dtype and restored[name].shape == x.shape
        np.testing.assert_array_equal(
            restored[name], np.zeros_like(x) if counter else x
        )
    # The suffix decides the file format.
    assert files.is_safetensors(out) == (suffix == ".safetensors")


def test_pytorch_loads_the_reversed_file(converted, tmp_path):
    torch = pytest.importorskip("torch", reason="loads with PyTorch")
    out = tmp_path / "torch.pth"
    convert_resnet.command(["--reverse", str(converted), str(out)])
    state_dict = torch.load(out, weights_only=True)
    for name, x in torch_resnet.random_state_dict(1, classes=7).items():
        assert state_dict[name].dtype == torch.tensor(x).dtype
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(state_dict[name].numpy(), x)


def test_metadata_of_the_reversed_file(converted, tmp_path):
    out = tmp_path / "torch.safetensors"
    convert_resnet.command(["--reverse", str(converted), str(out)])
    with safetensors.safe_open(out, framework="numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["origin"] == "resnet50.pth"
    assert json.loads(metadata["rgb_mean"]) == [123.675, 116.28, 103.53]
    assert json.loads(metadata["stride_in"]) == "3x3"


def test_wrong_files_and_flags_are_refused(checkpoint, converted, tmp_path):
    with pytest.raises(UserError, match="not overwritten"):
        convert_resnet.command([str(checkpoint), str(converted)])
    with pytest.raises(UserError, match="give CHECKPOINT OUT"):
        convert_resnet.command([str(checkpoint)])
    with pytest.raises(UserError, match="give OUT: 2 names"):
        convert_resnet.command(["a", "b", "--download=IMAGENET1K_V1"])
    with pytest.raises(UserError, match=r"ends in \.safetensors$"):
        convert_resnet.command([str(checkpoint), str(tmp_path / "x.pth")])
    with pytest.raises(UserError, match=r"ends in \.safetensors or \.pth or \.pt$"):
        convert_resnet.command(["--reverse", str(converted), str(tmp_path / "x.npy")])
    with pytest.raises(UserError, match="is converted already"):
        convert_resnet.command([str(converted), str(tmp_path / "x.safetensors")])
    with pytest.raises(UserError, match="no folder"):
        convert_resnet.command(["--download=IMAGENET1K_V1", "none/x.safetensors"])
    with pytest.raises(UserError, match="not the work directory of a run"):
        convert_resnet.command(["--reverse", str(tmp_path), str(tmp_path / "x.pth")])
    part = {
        k: v for k, v in torch_resnet.random_state_dict(1).items() if "layer4" not in k
    }
    path = torch_files.save(tmp_path / "part.pth", part)
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match=r"not torchvision's ResNet-50: 50 missing"):
        convert_resnet.command([str(path), str(out)])
    assert not out.exists()


def test_prefix_chooses_one_of_several_encoders(tmp_path):
    arrays = torch_resnet.random_state_dict(1)
    encoders = {f"module.encoder_q.{name}": x for name, x in arrays.items()}
    encoders["module.encoder_k.conv1.weight"] = 2 * arrays["conv1.weight"]
    path = torch_files.save(tmp_path / "moco.pth", encoders)
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match="give one of --prefix=module"):
        convert_resnet.command([str(path), str(out)])
    flags = ["--prefix=module.encoder_q", "--input=torchvision"]
    assert convert_resnet.command([str(path), str(out), *flags]) == cli.OK
    np.testing.assert_array_equal(
        files.read(out).arrays["params/encoder/conv_init/kernel"],
        arrays["conv1.weight"].transpose(2, 3, 1, 0),
    )


def test_checksum_of_downloads_is_verified(tmp_path, monkeypatch):
    content = {"answer": b"weights"}
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda url, timeout: io.BytesIO(content["answer"])
    )
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    good = tmp_path / f"resnet50-{digest}.pth"
    assert convert_resnet.fetch("https://x/y", good).read_bytes() == b"weights"
    with pytest.raises(UserError, match="should begin with 0676ba61"):
        convert_resnet.fetch("https://x/y", tmp_path / "resnet50-0676ba61.pth")

    def unreachable(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(MachineError, match="could not be downloaded"):
        convert_resnet.fetch("https://x/y", good)


def test_errors_are_one_line_with_exit_code_2(tmp_path):
    """There is no traceback."""
    script = Path(__file__).parents[2] / "tools" / "convert_resnet.py"
    command = [sys.executable, script, "a.pth", "none/x.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == cli.USER
    assert done.stderr.splitlines()[-1].startswith("error: none/x.safetensors can't")
    assert "Traceback" not in done.stderr


def test_only_upproj_can_be_exported(tmp_path, monkeypatch):
    config = types.SimpleNamespace(model=types.SimpleNamespace(arch="cnn"))
    network = types.SimpleNamespace(config=config)
    monkeypatch.setattr(
        trained_network.predictor_lib, "load", lambda source, step: network
    )
    with pytest.raises(UserError, match="of --arch=cnn: only upproj can be exported"):
        trained_network.read(str(tmp_path))


def assert_pytorch_predicts_the_same(workdir, tmp_path):
    """PyTorch predicts the same depth with the exported parameters."""
    torch = pytest.importorskip("torch", reason="a network in PyTorch")
    from tests.weights import torch_upproj

    out = tmp_path / "trained.pth"
    assert convert_resnet.command(["--reverse", str(workdir), str(out)]) == cli.OK
    layout = LAYOUTS["torchvision"]
    network = torch_upproj.UpProj(layout).eval()
    network.load_state_dict(torch.load(out, weights_only=True))
    rgb = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    image = (rgb - np.array(layout.rgb_mean, "f4")) / np.array(layout.rgb_std, "f4")
    with torch.no_grad():
        expected = network(torch.tensor(image.transpose(0, 3, 1, 2))).numpy()
    with jax.default_matmul_precision("highest"):
        actual = np.asarray(jaxdepth.load(str(workdir)).network(rgb))
    assert actual.shape == expected.shape
    # Relative to the variation, because most of the output is the bias of the head.
    assert np.abs(actual - expected).max() <= 1e-2 * expected.std()


@pytest.mark.slow
def test_training_starts_from_converted_weights(converted, tmp_path, monkeypatch):
    # On one device: eight copies of the state of 64 M parameters take a minute.
    monkeypatch.setattr(hosts, "ordered_devices", lambda: jax.devices()[:1])
    flags = [
        "--arch=upproj",
        "--size=32x32",
        "--rooms=8",
        "--batch_size=8",
        "--steps=1",
        "--augment=none",
        f"--cache_dir={tmp_path / 'cache'}",
        f"--workdir={tmp_path / 'run'}",
        "--freeze=encoder",
        "--init=imagenet",
    ]
    assert run.command([*flags, f"--weights={converted}"]) == cli.OK
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["config"]["init"] == "imagenet"
    network = jaxdepth.load(str(tmp_path / "run"))
    weights = files.read(converted)
    encoder = network.variables["params"]["encoder"]
    np.testing.assert_array_equal(
        encoder["conv_init"]["kernel"],
        weights.arrays["params/encoder/conv_init/kernel"],
    )
    assert_pytorch_predicts_the_same(tmp_path / "run", tmp_path)
    with pytest.raises(UserError, match="no such file"):
        run.command([*flags, "--weights=none.safetensors"])
