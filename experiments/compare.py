"""Compare two trained networks: see `python -m experiments.compare --help`."""

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main("compare")
