"""Write an HTML report of runs: see `python -m experiments.report --help`."""

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main("report")
