"""The converter as a user runs it."""

import io
import json

import numpy as np
import pytest
import safetensors.numpy

from experiments import run
from jaxdepth import cli
from jaxdepth.errors import MachineError, UserError
from jaxdepth.weights import files
from tests.weights import torch_files, torch_resnet
from tools import convert_resnet


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "resnet50.pth"
    return torch_files.save(path, torch_resnet.random_state_dict(1, classes=7))


@pytest.fixture(scope="module")
def converted(checkpoint):
    out = checkpoint.with_name("ours.safetensors")
    assert convert_resnet.command([str(checkpoint), str(out)]) == cli.OK
    return out


def test_metadata_say_what_it_is(checkpoint, converted):
    weights = files.read(converted)
    assert (weights.init, weights.layout) == ("imagenet", "torchvision")
    assert weights.origin == "resnet50.pth" and "BSD-3" in weights.licence
    assert weights.sha256 == files.sha256(checkpoint)


def test_there_and_back(converted, tmp_path):
    out = tmp_path / "torch.safetensors"
    assert convert_resnet.command([str(converted), str(out), "--reverse"]) == cli.OK
    back = safetensors.numpy.load_file(out)
    wanted = torch_resnet.random_state_dict(1, classes=7)
    assert set(back) == set(wanted)
    for name, x in wanted.items():
        counter = name.endswith("num_batches_tracked")
        np.testing.assert_array_equal(back[name], np.zeros_like(x) if counter else x)


def test_mistakes(checkpoint, converted, tmp_path):
    with pytest.raises(UserError, match="not overwritten"):
        convert_resnet.command([str(checkpoint), str(converted)])
    with pytest.raises(UserError, match="give CHECKPOINT OUT"):
        convert_resnet.command([str(checkpoint)])
    with pytest.raises(UserError, match="give OUT: 2 names"):
        convert_resnet.command(["a", "b", "--download=IMAGENET1K_V1"])
    part = {
        k: v for k, v in torch_resnet.random_state_dict(1).items() if "layer4" not in k
    }
    path = torch_files.save(tmp_path / "part.pth", part)
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError, match=r"not torchvision's ResNet-50: 50 missing"):
        convert_resnet.command([str(path), str(out)])
    assert not out.exists()


def test_downloads_are_checked(tmp_path, monkeypatch):
    content = {"answer": b"weights"}
    monkeypatch.setattr(
        "urllib.request.urlopen", lambda url, timeout: io.BytesIO(content["answer"])
    )
    digest = files.hashlib.sha256(b"weights").hexdigest()[:8]
    good = tmp_path / f"resnet50-{digest}.pth"
    assert convert_resnet.fetch("https://x/y", good).read_bytes() == b"weights"
    with pytest.raises(UserError, match="should begin with 0676ba61"):
        convert_resnet.fetch("https://x/y", tmp_path / "resnet50-0676ba61.pth")

    def unreachable(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(MachineError, match="could not be fetched"):
        convert_resnet.fetch("https://x/y", good)


@pytest.mark.slow
def test_training_starts_from_converted_weights(converted, tmp_path):
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
    import jaxdepth

    network = jaxdepth.load(str(tmp_path / "run"))
    weights = files.read(converted)
    encoder = network.variables["params"]["encoder"]
    np.testing.assert_array_equal(
        encoder["conv_init"]["kernel"],
        weights.arrays["params/encoder/conv_init/kernel"],
    )
    with pytest.raises(UserError, match="no such file"):
        run.command([*flags, "--weights=none.safetensors"])
