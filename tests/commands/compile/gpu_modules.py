"""Steps and blocks compiled for an H100, by `jaxdepth compile-for --hlo`.

Without tables of source lines, shardings and most of the backend's notes:

- `up4-four`, `up4-dilated`: `--block=up4 --batch_size=64 --upconv=four` or `dilated`
- `block2`, `block2-f32`: `--arch=cnn --block=block2 --batch_size=64`, bf16 or f32
- `loops`: `--arch=cnn --size=24x32 --batch_size=64 --accumulate=4 --steps_per_call=3`
"""

import gzip
from pathlib import Path

from jaxdepth.commands.compile import hlo

FOLDER = Path(__file__).parent
VERSIONS = ("0.10", "0.12")  # of JAX
IMAGES = 64


def gpu_module(name: str, version: str = "0.12") -> hlo.Module:
    """A stored module."""
    path = FOLDER / f"h100-{name}-jax{version}.hlo.gz"
    return hlo.parse(gzip.decompress(path.read_bytes()).decode())


def module_of(body: str, others: str = "") -> hlo.Module:
    """A module with these lines in its entry computation."""
    lines = "\n".join(f"  {line.strip()}" for line in body.strip().splitlines())
    return hlo.parse(f"{others}\n\nENTRY %main () -> f32[] {{\n{lines}\n}}\n")
