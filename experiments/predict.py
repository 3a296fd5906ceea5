"""Predict depth for photos: see `python -m experiments.predict --help`."""

from jaxdepth.commands.main import main

if __name__ == "__main__":
    main("predict")
