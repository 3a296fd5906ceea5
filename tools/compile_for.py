"""Compile a training step for a GPU or TPU: see `jaxdepth compile-for --help`."""

import sys
from pathlib import Path

# Also runs in a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main("compile-for")
