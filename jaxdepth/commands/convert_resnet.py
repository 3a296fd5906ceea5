"""`jaxdepth convert-resnet`: torchvision's ResNet-50 to weights, upproj to PyTorch.

    jaxdepth convert-resnet resnet50.pth resnet50.safetensors
    jaxdepth convert-resnet --download=IMAGENET1K_V1 resnet50.safetensors
    jaxdepth convert-resnet --reverse runs/upproj-berhu-001 upproj.pth

Reads `.pth` files of old and new PyTorch versions, without PyTorch and without running
code that they contain. The weights are for `--init=imagenet`. A network that takes BGR,
or colours of 0 to 255 minus the mean, is recognised by the statistics of its first
batch normalisation, and its first convolution is changed to take torchvision's input.

--reverse reads a run's work directory, or converted weights, of any layout of upproj,
and writes a PyTorch state dict, as `.pth` (which `torch.load` reads with
weights_only=True) or `.safetensors`. The encoder has torchvision's names, so that
`resnet50().load_state_dict(state_dict, strict=False)` accepts it; decoder and head have
the names in `jaxdepth/weights/name_tables.py`, which also lists their operations.
"""

import dataclasses
import json
import logging
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxdepth.commands import cli, trained_network
from jaxdepth.models.layouts import layout_named
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.flags import flag
from jaxdepth.weights import files, input_format, resnet, torchwriter

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth convert-resnet"
SITE = "https://download.pytorch.org/models/"
# torchvision's file names end in the first eight hex digits of the file's sha256.
DOWNLOADS = {
    "IMAGENET1K_V1": "resnet50-0676ba61.pth",
    "IMAGENET1K_V2": "resnet50-11ad3fa6.pth",
}


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Convert torchvision's ResNet-50 for --init=imagenet.

    --reverse converts upproj to PyTorch.
    """

    files: tuple[str, ...] = flag(positional=True)
    """CHECKPOINT OUT; with --download only OUT; with --reverse a run's work directory
    or converted weights, and OUT. OUT ends in .safetensors, or with --reverse in
    .pth."""
    download: Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] | None = None
    """Download torchvision's file, and verify its checksum, instead of CHECKPOINT."""
    reverse: bool = False
    """Convert a run or converted weights to a PyTorch state dict."""
    input: Literal["auto", "torchvision", "bgr", "rgb255", "caffe"] = "auto"
    """Input that CHECKPOINT takes: torchvision's (RGB), torchvision's in BGR order, or
    colours of 0 to 255 minus the mean in RGB or BGR (caffe) order. auto recognises it
    by the statistics of the first batch normalisation."""
    prefix: str | None = None
    """Prefix of the names of the encoder, if CHECKPOINT holds several, as in
    --prefix=module.encoder_q."""
    step: str = "best"
    """Step of the run's checkpoint: best, last or a number."""


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags. Returns the exit code."""
    config = flags_lib.parse(ConvertConfig, argv, prog=PROG)
    names = "OUT" if config.download else "CHECKPOINT OUT"
    if len(config.files) != len(names.split()):
        raise UserError(f"give {names}: {len(config.files)} names were given")
    if config.reverse and config.download:
        raise UserError("--reverse and --download exclude each other: give one")
    suffixes = (".safetensors", ".pth", ".pt") if config.reverse else (".safetensors",)
    out = files.output(config.files[-1], *suffixes)
    if config.reverse:
        return _convert_back(config.files[0], out, step=config.step)
    if config.download is None:
        path = files.expanded(config.files[0])
        return _convert(
            path, out, origin=path.name, source=config.input, prefix=config.prefix
        )
    with tempfile.TemporaryDirectory() as folder:
        name = DOWNLOADS[config.download]
        fetched = fetch(SITE + name, Path(folder) / name)
        origin = f"torchvision {config.download}, {name}"
        return _convert(fetched, out, origin=origin, source="torchvision")


def _convert(
    path: Path, out: Path, *, origin: str, source: str, prefix: str | None = None
) -> int:
    """Convert a checkpoint of torchvision to weights for --init=imagenet.

    Args:
      path: the checkpoint.
      out: safetensors file to write.
      origin: human-readable source of the weights.
      source: value of --input.
      prefix: value of --prefix.
    """
    state_dict = resnet.read_state_dict(path, prefix=prefix)
    resnet.convert(state_dict).checked(str(path), "torchvision's ResNet-50")
    taken = _input_of(state_dict, str(path), source)
    if not taken.is_torchvision:
        origin += f", which takes {taken}"
    converted = resnet.convert(
        input_format.to_torchvision(state_dict, taken, where=str(path))
    )
    arrays = converted.checked(str(path), "torchvision's ResNet-50")
    weights = files.Weights.of_layout(
        arrays,
        "torchvision",
        init="imagenet",
        origin=origin,
        sha256=regular.sha256(path),
        licence=resnet.LICENCE,
    )
    files.write(out, weights)
    count = sum(a.size for p, a in arrays.items() if "/encoder/" in p)
    logger.info(
        "%s: %d arrays, %d values in the encoder; sha256 of the source %s",
        out,
        len(arrays),
        count,
        weights.sha256,
    )
    logger.info("use it: --init=imagenet --weights=%s", out)
    return cli.OK


def _input_of(
    state_dict: Mapping[str, np.ndarray], where: str, source: str
) -> input_format.InputFormat:
    """The input that a ResNet takes, by --input or recognised, with a line about it.

    Raises: UserError if it is certain that the input is not torchvision's, but not
      which one it is.
    """
    if source != "auto":
        return input_format.NAMED[source]
    statistics = (state_dict[f"bn1.running_{name}"] for name in ("mean", "var"))
    taken = input_format.recognise(state_dict["conv1.weight"], *statistics)
    if taken is None:
        logger.warning(
            "%s: the statistics of bn1 match no known input: converted for "
            "torchvision's input; if the network takes another one, give --input",
            where,
        )
        return input_format.NAMED["torchvision"]
    if taken.bgr is None and taken.scale == input_format.TORCHVISION:
        logger.warning(
            "%s takes %s: converted as RGB; for BGR, give --input=bgr", where, taken
        )
    elif taken.bgr is None and taken.is_centred:
        raise UserError(f"{where} takes {taken}: give --input=rgb255 or --input=caffe")
    else:
        what = (
            ""
            if taken.is_torchvision
            else ": conv1 is converted to torchvision's input"
        )
        logger.info("%s takes %s%s", where, taken, what if taken.is_centred else "")
    if taken.scale == input_format.NAMED["caffe"].scale and taken.is_centred:
        logger.warning(
            "%s: Caffe networks often have the stride in the first 1x1 convolution of "
            "a block (ResNet v1); layout torchvision has it in the 3x3 convolution. "
            "Checkpoints do not contain this: check the definition of the network",
            where,
        )
    return taken


def _convert_back(source: str, out: Path, *, step: str) -> int:
    """Convert a run or converted weights to a PyTorch state dict."""
    network = trained_network.read(source, step=step)
    state_dict = resnet.to_state_dict(network.arrays, where=source)
    variant = {**vars(layout_named(network.layout)), "unpool": network.unpool}
    if out.suffix == ".safetensors":
        metadata = {key: json.dumps(value) for key, value in variant.items()}
        names = {"origin": network.origin, "layout": network.layout}
        files.write_safetensors(out, state_dict, {"format": "pt", **names, **metadata})
    else:
        with files.writing(out) as file:
            torchwriter.write(file, state_dict)
    has_decoder = any(name.startswith("decoder.") for name in state_dict)
    logger.info(
        "%s: %d arrays of %s, of %s",
        out,
        len(state_dict),
        "the complete network" if has_decoder else "the encoder",
        network.origin,
    )
    details = ", ".join(f"{key} {value}" for key, value in variant.items())
    logger.info("layout %s: %s", network.layout, details)
    return cli.OK


def fetch(url: str, path: Path) -> Path:
    """Download a file and verify the checksum that its name ends in.

    Raises: UserError for another checksum, MachineError if the download fails.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as reply, open(path, "wb") as file:
            shutil.copyfileobj(reply, file)
    except OSError as error:
        raise MachineError(f"{url} could not be downloaded ({error})") from None
    expected = path.stem.rpartition("-")[2]
    digest = regular.sha256(path)
    if not digest.startswith(expected):
        raise UserError(
            f"{url}: its sha256 is {digest}, which should begin with {expected}; "
            "download it again"
        )
    return path
