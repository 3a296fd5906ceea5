"""torchvision's ResNet-50 to weights for `--init=imagenet`, and back.

    python tools/convert_resnet.py resnet50.pth resnet50.safetensors
    python tools/convert_resnet.py --download=IMAGENET1K_V1 resnet50.safetensors
    python tools/convert_resnet.py --reverse resnet50.safetensors torch.safetensors

Reads `.pth` of old and new PyTorch without PyTorch and without running code in it.
"""

import dataclasses
import hashlib
import logging
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import safetensors.numpy
import tyro

if __package__ in (None, ""):  # run as a file: python tools/convert_resnet.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jaxdepth import cli, writers
from jaxdepth.errors import MachineError, UserError
from jaxdepth.weights import files, resnet

logger = logging.getLogger("jaxdepth.tools")
PROG = "python tools/convert_resnet.py"
SITE = "https://download.pytorch.org/models/"
# torchvision puts the first eight hex digits of a file's sha256 into its name.
DOWNLOADS = {
    "IMAGENET1K_V1": "resnet50-0676ba61.pth",
    "IMAGENET1K_V2": "resnet50-11ad3fa6.pth",
}


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """Convert torchvision's ResNet-50 for --init=imagenet, or back with --reverse."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """CHECKPOINT OUT, or OUT alone with --download."""
    download: Literal["IMAGENET1K_V1", "IMAGENET1K_V2"] | None = None
    """Fetch torchvision's file, and check its checksum, in place of CHECKPOINT."""
    reverse: bool = False
    """From converted weights to a state dict with torchvision's names."""


def command(argv: Sequence[str]) -> int:
    """Convert as the flags say; returns the exit code."""
    config = cli.parse(ConvertConfig, argv, prog=PROG)
    wanted = 1 if config.download else 2
    if len(config.files) != wanted:
        names = "OUT" if config.download else "CHECKPOINT OUT"
        raise UserError(f"give {names}: {len(config.files)} names were given")
    if config.reverse and config.download:
        raise UserError("--reverse and --download: give one of the two")
    out = Path(config.files[-1])
    files.refuse_existing(out)
    if config.reverse:
        return _back(Path(config.files[0]), out)
    if config.download is None:
        return _convert(Path(config.files[0]), out, origin=Path(config.files[0]).name)
    with tempfile.TemporaryDirectory() as folder:
        name = DOWNLOADS[config.download]
        fetched = fetch(SITE + name, Path(folder) / name)
        return _convert(fetched, out, origin=f"torchvision {config.download}, {name}")


def _convert(path: Path, out: Path, *, origin: str) -> int:
    converted = resnet.convert(resnet.read_state_dict(path))
    arrays = converted.checked(str(path), "torchvision's ResNet-50")
    weights = files.Weights.of_layout(
        arrays,
        "torchvision",
        init="imagenet",
        origin=origin,
        sha256=files.sha256(path),
        licence=resnet.LICENCE,
    )
    files.write(out, weights)
    count = sum(a.size for p, a in arrays.items() if "/encoder/" in p)
    logger.info(
        "%s: %d arrays, %d numbers in the encoder; sha256 of the source %s",
        out,
        len(arrays),
        count,
        weights.sha256,
    )
    logger.info("use it: --init=imagenet --weights=%s", out)
    return cli.OK


def _back(path: Path, out: Path) -> int:
    weights = files.read(path)
    if weights.layout != "torchvision":
        raise UserError(f"{path} is of layout {weights.layout}, not of torchvision's")
    state_dict = resnet.to_state_dict(weights.arrays)
    with writers.replacing(out) as file:
        file.write(safetensors.numpy.save(state_dict, {"format": "pt"}))
    logger.info("%s: %d arrays with torchvision's names", out, len(state_dict))
    return cli.OK


def fetch(url: str, path: Path) -> Path:
    """Download to `path` and check the checksum in the name; UserError otherwise."""
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as reply, open(path, "wb") as file:
            while block := reply.read(1 << 20):
                digest.update(block)
                file.write(block)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise MachineError(f"{url} could not be fetched ({error})") from None
    wanted = path.stem.rpartition("-")[2]
    if not digest.hexdigest().startswith(wanted):
        raise UserError(
            f"{url}: its sha256 is {digest.hexdigest()}, "
            f"which should begin with {wanted}"
        )
    return path


if __name__ == "__main__":
    cli.main(command)
