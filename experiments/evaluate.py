"""Score a trained network: `python -m experiments.evaluate --checkpoint=WORKDIR`."""

from collections.abc import Sequence

from jaxdepth import cli
from jaxdepth.config import EvaluateConfig

PROG = "python -m experiments.evaluate"


def command(argv: Sequence[str]) -> int:
    """Evaluate as the flags say; returns the exit code."""
    config = cli.parse(EvaluateConfig, argv, prog=PROG)
    from jaxdepth import evaluate_run, host_memory

    host_memory.keep()
    return evaluate_run.run(config)


if __name__ == "__main__":
    cli.main(command)
