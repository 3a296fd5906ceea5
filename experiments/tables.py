"""Reproduce the paper's tables: see `python -m experiments.tables --help`."""

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main("tables")
