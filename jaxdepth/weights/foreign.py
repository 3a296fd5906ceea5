"""Files of other libraries, given where a network of this package is expected."""

import shlex
from pathlib import Path

from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import fcrn, files, torchfile


def refuse(name: str | Path) -> None:
    """Raise UserError if a name stands for weights that have to be converted first.

    These are PyTorch files and, in both of its formats, the published FCRN. They are
    recognised by their first and last bytes. The error names the command.
    """
    if "://" in str(name):
        return
    path = files.expanded(name)
    if path.is_file() and files.is_safetensors(path):
        return
    source = shlex.quote(str(name))
    if fcrn.is_source(path):
        raise UserError(
            f"{name} is a .npy file or a TensorFlow checkpoint, not a network of "
            f"jaxdepth: convert the published FCRN with jaxdepth convert-fcrn {source} "
            "OUT.safetensors"
        )
    if path.is_file() and torchfile.is_torch_file(path):
        raise UserError(
            f"{name} is a PyTorch file, not a network of jaxdepth: convert a ResNet-50 "
            f"with jaxdepth convert-resnet {source} OUT.safetensors, and train from it "
            "with jaxdepth run --init=imagenet"
        )
