"""A page about finished runs: `python -m experiments.report RUN... --out=report.html`.

The page is one file, opens from disk and loads nothing.
"""

from collections.abc import Sequence

from jaxdepth.commands import cli

PROG = "python -m experiments.report"


def command(argv: Sequence[str]) -> int:
    """Write the page as the flags say; returns the exit code."""
    from jaxdepth.commands.report import command as report

    return report.run(cli.parse(report.ReportConfig, argv, prog=PROG))


if __name__ == "__main__":
    cli.main(command)
