"""Count the collectives of a training step: see `jaxdepth collectives --help`."""

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: python tools/exchanges.py
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main("collectives")
