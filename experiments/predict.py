"""Metres for photos: `python -m experiments.predict --checkpoint=WORKDIR IMAGE...`."""

from collections.abc import Sequence

from jaxdepth import cli

PROG = "python -m experiments.predict"


def command(argv: Sequence[str]) -> int:
    """Predict as the flags say; returns the exit code."""
    from jaxdepth import predict_files

    return predict_files.run(cli.parse(predict_files.PredictConfig, argv, prog=PROG))


if __name__ == "__main__":
    cli.main(command)
