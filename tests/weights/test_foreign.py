"""Files of other libraries: each command names the one that converts them."""

import numpy as np
import pytest

from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import (
    compare,
    convert_fcrn,
    convert_resnet,
    evaluate,
    pack,
    predict,
    run,
)
from jaxdepth.commands.paper import figures
from jaxdepth.commands.report import command as report
from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import files, foreign

FILES = {
    "zip.pth": b"PK\x03\x04" + bytes(600),
    "pickle.pth": b"\x80\x02}q\x00." + bytes(600),
    "tar.pth": bytes(257) + b"ustar" + bytes(300),
    "NYU_ResNet-UpProj.npy": b"\x93NUMPY\x01\x00" + bytes(600),
    "version 1.ckpt": bytes(600) + bytes.fromhex("57fb808b247547db"),
}
COMMANDS = {
    "predict": lambda name, out: predict.command([f"--checkpoint={name}", str(PHOTO)]),
    "evaluate": lambda name, out: evaluate.command([f"--checkpoint={name}"]),
    "compare": lambda name, out: compare.command([name, name, "--data=rooms"]),
    "pack": lambda name, out: pack.command([name, f"{out}.safetensors"]),
    "pack --trim": lambda name, out: pack.command([name, "--trim"]),
    "report": lambda name, out: report.command([name, f"--out={out}.html"]),
    "figures": lambda name, out: figures.command([name, f"--out={out}"]),
    "convert-resnet": lambda name, out: convert_resnet.command(
        ["--reverse", name, f"{out}.pth"]
    ),
    "convert-fcrn": lambda name, out: convert_fcrn.command(
        ["--reverse", name, f"{out}.npy"]
    ),
    "resume": lambda name, out: run.command([f"--resume={name}", f"--workdir={out}"]),
    "weights": lambda name, out: run.command(
        ["--arch=upproj", "--init=nyu", f"--weights={name}", f"--workdir={out}"]
    ),
}
PHOTO = "photo.png"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # relative outputs
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "tensorflow").mkdir()
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        (tmp_path / "tensorflow" / name).write_bytes(b"x")
    names = [*FILES, "tensorflow", "tensorflow/model.ckpt"]
    return [str(tmp_path / name) for name in names]


def expected(name: str) -> str:
    if name.endswith(".pth"):
        return f"PyTorch file, .* jaxdepth convert-resnet {name} OUT.safetensors"
    quoted = f"'{name}'" if " " in name else name
    return f"jaxdepth convert-fcrn {quoted} OUT.safetensors"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_the_one_that_converts(sources, tmp_path, command):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / PHOTO)
    before = {path.name for path in tmp_path.iterdir()}
    for name in sources:
        with pytest.raises(UserError, match=expected(name)) as caught:
            COMMANDS[command](name, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_load_names_the_command(sources):
    for name in sources:
        with pytest.raises(UserError, match=expected(name)):
            predictor_lib.load(name, cache_dir=None)


def test_other_files_and_folders_pass(tmp_path):
    for name in ("absent", "absent.index", "folder", "empty", "text", "gs://a/b"):
        path = tmp_path / name
        if name == "folder":
            path.mkdir()
        elif name in ("empty", "text"):
            path.write_text(name.removeprefix("empty"))
        foreign.refuse(name if "://" in name else path)
    # A header of 640 bytes begins like a pickle of protocol 2.
    path = tmp_path / "header.safetensors"
    arrays = {"a": np.zeros(1, np.float32)}
    for filling in range(500, 640):
        path.unlink(missing_ok=True)
        files.write_safetensors(path, arrays, {"format": "x" * filling})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header of that length")
    foreign.refuse(path)


def test_weights_of_an_encoder_are_for_training(tmp_path):
    path = tmp_path / "encoder.safetensors"
    weights = files.Weights.of_layout(
        {"params/encoder/a": np.zeros(1, np.float32)},
        "torchvision",
        init="imagenet", origin="", sha256="", licence="",
    )  # fmt: skip
    files.write(path, weights)
    with pytest.raises(UserError, match=r"encoder, .* --init=imagenet --weights="):
        predictor_lib.load(path, cache_dir=None)
