"""Figures that compare runs: what `experiments.figures` draws."""

import dataclasses
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxdepth import presenting, viz, writers
from jaxdepth.errors import MachineError, UserError
from jaxdepth.workdir import RESULTS, WorkDir

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FiguresConfig:
    """Draw a figure of the paper from the work directories of finished runs."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Work directories, in the order of the legend."""
    figure: Literal["5"] = "5"
    """5: loss and metrics of runs with different initialisations."""
    out: str = "figures"
    """Folder for figure5.png and figure5.svg, which are replaced."""


def run(config: FiguresConfig) -> int:
    """Draw, and print the numbers that are drawn; returns the exit code.

    Raises UserError where a run has no results, or runs were scored differently.
    """
    if not config.runs:
        raise UserError("give the work directories of the runs to compare")
    found = {name: _read(name) for name in config.runs}
    scored = {presenting.measured_by(entries[-1]) for _, entries in found.values()}
    if len(scored) > 1:
        raise UserError(
            f"the runs were scored differently ({'; '.join(sorted(scored))}): score "
            "them alike with experiments.evaluate"
        )
    rows = [
        (name, e["step"], *(e["metrics"][c] for c in presenting.COLUMNS))
        for name, (_, entries) in found.items()
        for e in viz.last_kind(entries)
    ]
    writers.print_table(scored.pop(), ("run", "step", *presenting.COLUMNS), rows)
    out = Path(config.out).expanduser()
    paths = [out / f"figure{config.figure}.{suffix}" for suffix in ("png", "svg")]
    try:
        out.mkdir(parents=True, exist_ok=True)
        viz.compare(paths, found)
    except OSError as error:
        raise MachineError(f"{out} can't be written: {error.strerror}") from error
    logger.info("pictures: %s, %s", *paths)
    return 0


def _read(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records and evaluations of one run."""
    here = WorkDir.open(name)
    entries = here.read_json(RESULTS)["evaluations"]
    if not entries:
        raise UserError(f"{name} holds no evaluation")
    return writers.read_metrics(here.local), entries
