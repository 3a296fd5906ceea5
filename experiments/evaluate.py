"""Score a trained network: see `python -m experiments.evaluate --help`."""

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main("evaluate")
