"""`jaxdepth report`: one self-contained HTML page about runs."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from jaxdepth.commands import finished_runs as runs_lib
from jaxdepth.commands.finished_runs import TrainedRun
from jaxdepth.commands.paper import table_formats
from jaxdepth.commands.report import page as page_lib
from jaxdepth.commands.report import sections as sections_lib
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files, terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag
from jaxdepth.workdir import TABLES

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about runs, which needs no server and loads no other file.

    Contents: metrics with their protocols, curves, the worst and the best images with a
    slider between ground truth and prediction, a rotatable point cloud, configuration,
    command, hardware and versions. The page says if a checkpoint or the data are
    missing.
    """

    runs: tuple[str, ...] = flag(positional=True)
    """Work directories of runs, or folders of tables; each row of a table is shown
    by its first finished seed."""
    out: str = "report.html"
    """HTML file; only a page of an earlier call is replaced."""
    title: str = "Depth from single images"
    """Heading of the page."""
    pictures: int = flag(6, at_least=0)
    """Evaluation images per run, half of them its worst and half its best, at about 0.1
    MB each; 0: none, and no network is evaluated."""
    metric: str = flag("rmse", choices="jaxdepth.evaluation.metrics:METRICS")
    """Metric that ranks the images, under the run's protocol."""
    width: int = flag(400, at_least=64)
    """Width of the pictures, pixels."""
    step: str = "best"
    """Step of the checkpoint that predicts: best, last or a number."""
    cache_dir: str | None = None
    """Folder for prepared data; default: the run's."""

    def __post_init__(self):
        flags_lib.validate(self)


def run(config: ReportConfig) -> int:
    """Write the page. Returns the exit code.

    Raises: UserError for a folder that is neither a work directory nor one of tables,
      or if --out is a file that this command did not write.
    """
    path = Path(config.out).expanduser()
    if not path.parent.is_dir():
        raise UserError(f"--out={path}: there is no folder {path.parent}")
    output_files.check_ours(path, *page_lib.GENERATORS, flag="out")
    selection = runs_lib.find(config.runs)
    for folder, contents in selection.tables.items():
        table_formats.check(contents, where=f"{folder}/{TABLES}")
    runs = sections_lib.short_names(selection.runs)
    sections = [
        sections_lib.section(run, pictures=_pictures(config, run)) for run in runs
    ]
    page = page_lib.render(
        title=config.title,
        runs=runs,
        sections=sections,
        tables=selection.tables,
        metric=config.metric,
    )
    output_files.write_text(path, page)
    size = path.stat().st_size / 2**20
    logger.info("%s: %d runs, %.2f MiB", path, len(runs), size)
    return 0


def _pictures(config: ReportConfig, run: runs_lib.Run) -> sections_lib.Pictures:
    """Pictures of a run, or the reason why there are none."""
    if not config.pictures:
        return sections_lib.Pictures(missing="none were requested (--pictures=0)")
    logger.info("%s: scoring the evaluation images", run.name)
    try:
        trained = TrainedRun(
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
    """Run the command with these flags. Returns the exit code."""
    return run(flags_lib.parse(ReportConfig, argv, prog="jaxdepth report"))
