"""Is run A better than run B: `python -m experiments.compare RUN_A RUN_B`."""

from collections.abc import Sequence

from jaxdepth import cli

PROG = "python -m experiments.compare"


def command(argv: Sequence[str]) -> int:
    """Compare as the flags say; returns the exit code."""
    from jaxdepth import compare

    return compare.run(cli.parse(compare.CompareConfig, argv, prog=PROG))


if __name__ == "__main__":
    cli.main(command)
