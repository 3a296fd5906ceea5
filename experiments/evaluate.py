"""Score a trained network: `python -m experiments.evaluate --checkpoint=WORKDIR`."""

from collections.abc import Sequence

from jaxdepth.commands import cli
from jaxdepth.config import EvaluateConfig

PROG = "python -m experiments.evaluate"


def command(argv: Sequence[str]) -> int:
    """Evaluate as the flags say; returns the exit code."""
    config = cli.parse(EvaluateConfig, argv, prog=PROG)
    from jaxdepth.commands import evaluate as evaluate_command
    from jaxdepth.runtime import malloc

    malloc.keep()
    return evaluate_command.run(config)


if __name__ == "__main__":
    cli.main(command)
