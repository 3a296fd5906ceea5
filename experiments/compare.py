"""Is run A better than run B: `python -m experiments.compare RUN_A RUN_B`."""

from collections.abc import Sequence

from jaxdepth.commands import cli

PROG = "python -m experiments.compare"


def command(argv: Sequence[str]) -> int:
    """Compare as the flags say; returns the exit code."""
    from jaxdepth.commands import compare as compare_command

    return compare_command.run(cli.parse(compare_command.CompareConfig, argv, prog=PROG))


if __name__ == "__main__":
    cli.main(command)
