"""`jaxdepth figures`: the paper's figures, from networks and finished runs.

Each figure selects its runs, so that one folder of tables serves all figures.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxdepth import plots
from jaxdepth.commands import finished_runs as runs_lib
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands.finished_runs import Run, TrainedRun
from jaxdepth.commands.paper import diagram, figure_drawing, gridding
from jaxdepth.config import parse_size
from jaxdepth.evaluation import describe
from jaxdepth.models import ARCHS
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files, storage, terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag

logger = logging.getLogger(__name__)
SUFFIXES = ("png", "svg")
Select = Callable[[Sequence[Run]], list[Run]]


@dataclasses.dataclass(frozen=True)
class FiguresConfig:
    """Draw the figures of the paper, from work directories of runs or of tables."""

    runs: tuple[str, ...] = flag((), positional=True)
    """Work directories of runs in the order of the legend, or folders of tables; figure
    1 needs none."""
    figure: Literal["1", "2", "3", "4", "5", "all"] = "5"
    """1: the networks; 2: losses and predictions of cnn_fc; 3: losses and predictions
    of cnn and cnn_trans; 4: zero and average unpooling; 5: loss and metrics of runs
    with different initialisations; all: every figure with runs."""
    size: str = "228x304"
    """Input size of the networks in figure 1, HEIGHTxWIDTH."""
    rows: int = flag(4, at_least=1)
    """Number of evaluation images in figures 2 to 4."""
    step: str = "best"
    """Step of the checkpoint that predicts: best, last or a number."""
    cache_dir: str | None = None
    """Folder for prepared data; default: the run's."""
    out: str = "figures"
    """Folder for figure1.png, figure1.svg, ...; figures of earlier calls are
    replaced."""

    def __post_init__(self):
        parse_size(self.size)
        flags_lib.validate(self)


def run(config: FiguresConfig) -> int:
    """Draw figures and print their numbers. Returns the exit code.

    With --figure=all, a figure without runs is skipped with a warning.

    Raises: UserError if a requested figure has no runs, if its runs were scored
      differently, or if a file in --out was not written by this command.
    """
    names = list(FIGURES) if config.figure == "all" else [config.figure]
    out = Path(config.out).expanduser()
    paths = {n: [out / f"figure{n}.{suffix}" for suffix in SUFFIXES] for n in names}
    for path in (path for both in paths.values() for path in both):
        output_files.check_ours(path, plots.MAKER, flag="out")
    selection = runs_lib.find(config.runs)
    for name in names:
        select, draw = FIGURES[name]
        runs = selection.runs
        try:
            if config.figure == "all" or selection.tables:
                runs = select(runs)
                if not runs and name != "1":
                    raise UserError(f"--figure={name}: it shows none of the given runs")
            figure = draw(config, runs)
        except UserError as error:
            if config.figure != "all":
                raise
            logger.warning("figure %s is skipped: %s", name, error)
            continue
        _write(figure, paths[name])
    return 0


def _write(figure: Any, paths: Sequence[Path]) -> None:
    out = paths[0].parent
    with storage.write_errors(f"--out={out}"):
        out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            plots.save(figure, path)
    logger.info("pictures: %s", ", ".join(map(str, paths)))


def _networks(config: FiguresConfig, _: Sequence[Run]) -> Any:
    """Draw the networks, and print their output sizes and parameter counts."""
    networks = [diagram.trace(arch, parse_size(config.size)) for arch in ARCHS]
    terminal.print_table(
        f"networks at {config.size}",
        ("network", "parts", "depth", "parameters"),
        [
            (n.arch, len(n.parts), "x".join(map(str, n.shape_out)), n.parameters)
            for n in networks
        ],
    )
    return diagram.draw(networks)


def _training(config: FiguresConfig, runs: Sequence[Run]) -> Any:
    """Draw losses of runs, and their predictions for the same images."""
    _check(runs)
    _show([(run.name, run.evaluations[-1]) for run in runs])
    frames, targets, predictions = _predictions(config, runs)
    return figure_drawing.training(runs, frames, targets, predictions)


def _unpooling(config: FiguresConfig, runs: Sequence[Run]) -> Any:
    """Draw predictions with zero and average unpooling, and print their gridding."""
    _check(runs)
    kinds = {(run.flag("arch"), run.flag("unpool")) for run in runs}
    if kinds != {("upproj", "zero"), ("upproj", "average")}:
        raise UserError(
            "--figure=4 compares two runs of upproj: --unpool=zero and --unpool=average"
        )
    trained = [_trained(config, run) for run in runs]
    frames = trained[0].frames(
        summary_lib.spread(len(trained[0]), figure_drawing.SPECTRA)
    )
    maps = [[run.output(frame["rgb"]) for frame in frames] for run in trained]
    least = min(min(depth.shape) for depths in maps for depth in depths)
    if least < gridding.SMALLEST:
        raise UserError(
            f"--figure=4: the networks' output is {least} pixels across, too few for a "
            f"spectrum (at least {gridding.SMALLEST}): train at a larger --size"
        )
    grids = [figure_drawing.mean_gridding(depths) for depths in maps]
    terminal.print_table(
        f"gridding of predictions of {len(frames)} images, at the network's output: "
        "share of the spectrum's energy, and prominence over its surroundings",
        ("run", "share, period 2", "prominence", "share, period 4", "prominence"),
        [
            (run.name, *(f"{v:.3g}" for g in grid for v in (g.share, g.prominence)))
            for run, grid in zip(runs, grids, strict=True)
        ],
    )
    indices = summary_lib.spread(len(frames), config.rows)
    return figure_drawing.unpooling(
        [run.name for run in runs],
        [frames[k]["rgb"] for k in indices],
        [trained[0].target(frames[k]) for k in indices],
        maps,
        grids,
        indices,
    )


def _initialisation(_: FiguresConfig, runs: Sequence[Run]) -> Any:
    """Draw training loss, RMSE and delta1 of runs, and print their metrics."""
    _check(runs)
    if len(runs) < 2:
        raise UserError(
            "--figure=5 compares at least two runs: --init=random and --init=imagenet"
        )
    _show([(r.name, e) for r in runs for e in plots.last_kind(r.evaluations)])
    return figure_drawing.compare(runs)


def _check(runs: Sequence[Run]) -> None:
    """Raise UserError unless these are runs that were scored in the same way."""
    if not runs:
        raise UserError("no runs: give the work directories of the runs to compare")
    for run in runs:
        if not run.evaluations:
            raise UserError(f"{run.name} holds no evaluation")
    keys = {summary_lib.comparison_key(run.evaluations[-1]) for run in runs}
    if len(keys) > 1:
        raise UserError(
            f"the runs were scored differently ({'; '.join(sorted(keys))}): train them "
            "with the same --protocol, --split and data"
        )


def _show(evaluations: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Print evaluations, each with the name of its run."""
    rows = [
        (name, e["step"], e.get("loss"), *summary_lib.cells(e["metrics"]))
        for name, e in evaluations
    ]
    title = describe.conditions(evaluations[0][1])
    columns = ("run", "step", "validation loss", *summary_lib.columns())
    terminal.print_table(title, columns, rows)


def _trained(config: FiguresConfig, run: Run) -> TrainedRun:
    return TrainedRun(
        run, step=config.step, cache_dir=config.cache_dir, progress=terminal.Counter()
    )


def _predictions(
    config: FiguresConfig, runs: Sequence[Run]
) -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
    """Frames, their ground truth, and the predictions of each run for them.

    The predictions of a run without checkpoint or data are None.
    """
    frames: list[dict[str, Any]] = []
    targets: list[Any] = []
    predictions: list[Any] = []
    for run in runs:
        try:
            trained = _trained(config, run)
        except UserError as error:
            logger.warning("%s: no predictions: %s", run.name, error)
            predictions.append(None)
            continue
        if not frames:
            frames = trained.frames(summary_lib.spread(len(trained), config.rows))
            targets = [trained.target(frame) for frame in frames]
        predictions.append(
            [np.asarray(trained.predictor.predict(f["rgb"])) for f in frames]
        )
    return frames, targets, predictions


# Flags in which the rows of the paper's tables differ.
_ROW_FLAGS = ("arch", "loss", "unpool", "init", "train_images", "steps")


def _differing(flag_name: str, *archs: str) -> Select:
    """A selection of runs of `archs` that differ only in one flag.

    Of several such groups the largest is selected; of each group the first run for
    each value of the flag.
    """

    def select(runs: Sequence[Run]) -> list[Run]:
        groups: dict[Any, dict[str, Run]] = {}
        for run in runs:
            if run.flag("arch") in archs:
                key = tuple(run.flag(name) for name in _ROW_FLAGS if name != flag_name)
                groups.setdefault(key, {}).setdefault(run.flag(flag_name), run)
        return list(max(groups.values(), key=len, default={}).values())

    return select


# Value of --figure -> selection of runs, drawing function.
FIGURES: dict[str, tuple[Select, Callable[..., Any]]] = {
    "1": (list, _networks),
    "2": (_differing("arch", "cnn_fc"), _training),
    "3": (_differing("arch", "cnn", "cnn_trans"), _training),
    "4": (_differing("unpool", "upproj"), _unpooling),
    "5": (_differing("init", "upproj"), _initialisation),
}


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags. Returns the exit code."""
    return run(flags_lib.parse(FiguresConfig, argv, prog="jaxdepth figures"))
