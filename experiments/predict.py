"""Metres for photos: `python -m experiments.predict --checkpoint=WORKDIR IMAGE...`."""

from collections.abc import Sequence

from jaxdepth.commands import cli

PROG = "python -m experiments.predict"


def command(argv: Sequence[str]) -> int:
    """Predict as the flags say; returns the exit code."""
    from jaxdepth.commands import predict as predict_command

    return predict_command.run(cli.parse(predict_command.PredictConfig, argv, prog=PROG))


if __name__ == "__main__":
    cli.main(command)
