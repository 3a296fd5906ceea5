"""One self-contained page about runs: what `jaxdepth report` does."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxdepth.commands import finished_runs as runs_lib
from jaxdepth.commands.report import page as page_lib
from jaxdepth.commands.report import sections as sections_lib
from jaxdepth.commands.run_predictions import Trained
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files, terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag

logger = logging.getLogger(__name__)
Metric = Literal[
    "delta1", "delta2", "delta3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10",
    "silog",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about runs that opens from disk and loads nothing.

    Numbers with their protocols, curves, pictures with a slider between truth and
    prediction, the worst and the best images, a point cloud that can be turned,
    configuration, command, hardware and versions. What is not there (a checkpoint, the
    data) is named on the page.
    """

    runs: tuple[str, ...] = flag(positional=True)
    """Work directories of runs, or folders of tables, of which the first finished seed
    of each row is shown."""
    out: str = "report.html"
    """The page; one of an earlier call is replaced, no other file."""
    title: str = "Depth from single images"
    """Heading of the page."""
    pictures: int = 6
    """Evaluation images of each run, half of them its worst and half its best, at
    about 0.1 MB each; 0: none, and no network is run."""
    metric: Metric = "rmse"
    """What makes an image a bad or a good one, under the run's own protocol."""
    width: int = 400
    """Pixels across a picture."""
    step: str = "best"
    """Checkpoint that predicts: best, last or the number of a step."""
    cache_dir: str | None = None
    """Where prepared data are kept; default: where each run had them."""

    def __post_init__(self):
        for name, least in (("pictures", 0), ("width", 64)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}={getattr(self, name)}: at least {least}")


def run(config: ReportConfig) -> int:
    """Gather, write, and say how large the page is; returns the exit code.

    Raises UserError where there is no run, a folder is neither of a run nor of tables,
    or --out is a file that no report left.
    """
    if not config.runs:
        raise UserError("give the work directories of the runs to report on")
    path = Path(config.out).expanduser()
    if not path.parent.is_dir():
        raise UserError(f"--out={path}: there is no folder {path.parent}")
    output_files.check_ours(path, *page_lib.GENERATORS, flag="out")
    found = runs_lib.find(config.runs)
    runs = sections_lib.short_names(found.runs)
    sections = [
        sections_lib.section(run, pictures=_pictures(config, run)) for run in runs
    ]
    page = page_lib.render(
        title=config.title,
        runs=runs,
        sections=sections,
        tables=found.tables,
        metric=config.metric,
    )
    output_files.write_text(path, page)
    size = path.stat().st_size / 2**20
    logger.info("%s: %d runs, %.2f MiB, opens from disk", path, len(runs), size)
    return 0


def _pictures(config: ReportConfig, run: runs_lib.Run) -> sections_lib.Pictures:
    """Pictures of a run, or why there are none."""
    if not config.pictures:
        return sections_lib.Pictures(missing="none were asked for (--pictures=0)")
    logger.info("%s: scoring its evaluation images", run.name)
    try:
        trained = Trained(
            run,
            step=config.step,
            cache_dir=config.cache_dir,
            progress=terminal.Counter(),
        )
        return sections_lib.pictures(
            trained, count=config.pictures, metric=config.metric, width=config.width
        )
    except UserError as error:
        logger.warning("%s: no pictures: %s", run.name, error)
        return sections_lib.Pictures(missing=str(error))


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags; returns the exit code."""
    return run(flags_lib.parse(ReportConfig, argv, prog="jaxdepth report"))
