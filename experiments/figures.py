"""Figures of finished runs: `python -m experiments.figures --figure=5 RUN RUN`."""

from collections.abc import Sequence

from jaxdepth.commands import cli

PROG = "python -m experiments.figures"


def command(argv: Sequence[str]) -> int:
    """Draw as the flags say; returns the exit code."""
    from jaxdepth.commands.paper import figures

    return figures.run(cli.parse(figures.FiguresConfig, argv, prog=PROG))


if __name__ == "__main__":
    cli.main(command)
