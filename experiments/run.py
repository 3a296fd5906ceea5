"""Train a network: see `python -m experiments.run --help`."""

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main("run")
