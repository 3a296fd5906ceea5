"""Draw the paper's figures: see `python -m experiments.figures --help`."""

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main("figures")
