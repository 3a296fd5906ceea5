"""The paper's figures from networks and finished runs: what `jaxdepth figures` does.

Each figure picks its runs, so that a folder of tables can be given for all of them.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxdepth import plots
from jaxdepth.commands import finished_runs as runs_lib
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands.finished_runs import Run
from jaxdepth.commands.paper import diagram, figure_drawing, gridding
from jaxdepth.commands.run_predictions import Trained
from jaxdepth.config import parse_size
from jaxdepth.models import ARCHS
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files, terminal
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.flags import flag

logger = logging.getLogger(__name__)
FORMS = ("png", "svg")


@dataclasses.dataclass(frozen=True)
class FiguresConfig:
    """Draw the figures of the paper, from work directories of runs or of tables."""

    runs: tuple[str, ...] = flag((), positional=True)
    """Work directories of runs, in the order of the legend, or folders of tables;
    figure 1 needs none."""
    figure: Literal["1", "2", "3", "4", "5", "all"] = "5"
    """1: the four networks; 2: cnn_fc, its losses and some predictions; 3: the same of
    cnn and cnn_trans; 4: zero against average unpooling; 5: loss and metrics of runs
    with different initialisations; all: every one that there are runs for."""
    size: str = "228x304"
    """Input of the networks of figure 1, HEIGHTxWIDTH."""
    rows: int = 4
    """Evaluation images in figures 2 to 4."""
    step: str = "best"
    """Checkpoint that predicts: best, last or the number of a step."""
    cache_dir: str | None = None
    """Where prepared data are kept; default: where each run had them."""
    out: str = "figures"
    """Folder for figure1.png, figure1.svg, ...: those of earlier calls are replaced."""

    def __post_init__(self):
        parse_size(self.size)
        if self.rows < 1:
            raise UserError(f"--rows={self.rows}: must be at least 1")


def run(config: FiguresConfig) -> int:
    """Draw, and print the numbers that are drawn; returns the exit code.

    Of `--figure=all` a figure without its runs is left out and named. Raises UserError
    where a figure that is asked for has no runs, or runs were scored differently, and
    where a file is in the way that no earlier call left.
    """
    names = list(FIGURES) if config.figure == "all" else [config.figure]
    out = Path(config.out).expanduser()
    paths = {n: [out / f"figure{n}.{form}" for form in FORMS] for n in names}
    for path in (path for both in paths.values() for path in both):
        output_files.check_ours(path, plots.MAKER, flag="out")
    found = runs_lib.find(config.runs)
    for name in names:
        pick, draw = FIGURES[name]
        many = config.figure == "all" or bool(found.tables)
        try:
            figure = draw(
                config, _picked(pick, found.runs, name) if many else found.runs
            )
        except UserError as error:
            if config.figure != "all":
                raise
            logger.warning("figure %s is left out: %s", name, error)
            continue
        _write(figure, paths[name])
    return 0


def _picked(
    pick: Callable[[Sequence[Run]], list[Run]], runs: Sequence[Run], name: str
) -> list[Run]:
    picked = pick(runs)
    if not picked and name != "1":
        raise UserError(f"none of the runs given is one of figure {name}'s")
    return picked


def _write(figure: Any, paths: Sequence[Path]) -> None:
    out = paths[0].parent
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            plots.save(figure, path)
    except OSError as error:
        raise MachineError(f"{out} can't be written: {error.strerror}") from error
    logger.info("pictures: %s", ", ".join(map(str, paths)))


def _networks(config: FiguresConfig, _: Sequence[Run]) -> Any:
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
    """Loss curves of runs, and what each says of the same images."""
    _check(runs)
    _show_last(runs)
    columns, frames, truth = _predictions(config, runs)
    return figure_drawing.training(runs, frames, truth, columns)


def _unpooling(config: FiguresConfig, runs: Sequence[Run]) -> Any:
    """Zero against average unpooling, with the grid that each leaves."""
    _check(runs)
    kinds = {(run.flag("arch"), run.flag("unpool")) for run in runs}
    if kinds != {("upproj", "zero"), ("upproj", "average")}:
        raise UserError("two runs of upproj are compared: --unpool=zero and average")
    trained = [_trained(config, run) for run in runs]
    places = summary_lib.spread(len(trained[0]), figure_drawing.SPECTRA)
    frames = trained[0].frames(places)
    maps = [[one.output(frame["rgb"]) for frame in frames] for one in trained]
    least = min(min(one.shape) for of_run in maps for one in of_run)
    if least < gridding.SMALLEST:
        raise UserError(
            f"the networks put out {least} pixels across, too few to look for a grid "
            f"in (at least {gridding.SMALLEST}): train at a larger --size"
        )
    grids = [figure_drawing.mean_gridding(of_run) for of_run in maps]
    terminal.print_table(
        f"gridding of predictions of {len(frames)} images, at the network's output: "
        "share of the spectrum's energy, and prominence over its surroundings",
        ("run", "share, period 2", "prominence", "share, period 4", "prominence"),
        [
            (run.name, *(f"{v:.3g}" for g in grid for v in (g.share, g.prominence)))
            for run, grid in zip(runs, grids, strict=True)
        ],
    )
    shown = summary_lib.spread(len(frames), config.rows)
    return figure_drawing.unpooling(
        [run.name for run in runs],
        [frames[k]["rgb"] for k in shown],
        [trained[0].truth(frames[k]) for k in shown],
        [[of_run[k] for k in shown] for of_run in maps],
        maps,
        grids,
    )


def _initialisation(_: FiguresConfig, runs: Sequence[Run]) -> Any:
    """Training loss, RMSE and delta1 of runs on common axes."""
    _check(runs)
    if len(runs) < 2:
        raise UserError("two runs and more are compared: --init=random and imagenet")
    rows = [
        (run.name, e["step"], *(e["metrics"][c] for c in summary_lib.COLUMNS))
        for run in runs
        for e in plots.last_kind(run.evaluations)
    ]
    title = summary_lib.measured_by(runs[0].evaluations[-1])
    terminal.print_table(title, ("run", "step", *summary_lib.COLUMNS), rows)
    return figure_drawing.compare(runs)


def _check(runs: Sequence[Run]) -> None:
    """UserError unless these are runs that were scored alike."""
    if not runs:
        raise UserError("give the work directories of the runs to compare")
    for run in runs:
        if not run.evaluations:
            raise UserError(f"{run.name} holds no evaluation")
    scored = {summary_lib.counted_by(run.evaluations[-1]) for run in runs}
    if len(scored) > 1:
        raise UserError(
            f"the runs were scored differently ({'; '.join(sorted(scored))}): score "
            "them alike with jaxdepth evaluate"
        )


def _show_last(runs: Sequence[Run]) -> None:
    last = [(run.name, run.evaluations[-1]) for run in runs]
    rows = [
        (
            name,
            e["step"],
            e.get("loss"),
            *(e["metrics"][c] for c in summary_lib.COLUMNS),
        )
        for name, e in last
    ]
    title = summary_lib.measured_by(last[0][1])
    columns = ("run", "step", "validation loss", *summary_lib.COLUMNS)
    terminal.print_table(title, columns, rows)


def _trained(config: FiguresConfig, run: Run) -> Trained:
    return Trained(
        run, step=config.step, cache_dir=config.cache_dir, progress=terminal.Counter()
    )


def _predictions(
    config: FiguresConfig, runs: Sequence[Run]
) -> tuple[list[Any], list[dict[str, Any]], list[Any]]:
    """Per run its predictions, None where there is no checkpoint or no data; frames
    and their truth.
    """
    columns: list[Any] = []
    frames: list[dict[str, Any]] = []
    truth: list[Any] = []
    for run in runs:
        try:
            trained = _trained(config, run)
        except UserError as error:
            logger.warning("%s: no predictions: %s", run.name, error)
            columns.append(None)
            continue
        if not frames:
            frames = trained.frames(summary_lib.spread(len(trained), config.rows))
            truth = [trained.truth(frame) for frame in frames]
        columns.append([trained.predictor.predict(f["rgb"]) for f in frames])
    return columns, frames, truth


def _differing(by: str, **among: tuple[str, ...]) -> Callable[[Sequence[Run]], list]:
    """Picks runs that differ in one flag: of those alike in all else, the most.

    Args:
      by: the flag; one run of each of its values is taken, the first.
      among: flag -> the values to take.
    """
    alike = [flag for flag in _TELLING if flag != by]

    def pick(runs: Sequence[Run]) -> list[Run]:
        groups: dict[Any, dict[str, Run]] = {}
        for run in runs:
            if all(run.flag(flag) in values for flag, values in among.items()):
                group = groups.setdefault(tuple(run.flag(f) for f in alike), {})
                group.setdefault(run.flag(by), run)
        return list(max(groups.values(), key=len, default={}).values())

    return pick


# What tells the rows of the paper's tables apart.
_TELLING = ("arch", "loss", "unpool", "init", "train_images", "steps")
# --figure -> which of many runs it takes, and what draws them.
FIGURES: dict[str, tuple[Callable[[Sequence[Run]], list[Run]], Callable[..., Any]]] = {
    "1": (list, _networks),
    "2": (_differing("arch", arch=("cnn_fc",)), _training),
    "3": (_differing("arch", arch=("cnn", "cnn_trans")), _training),
    "4": (_differing("unpool", arch=("upproj",)), _unpooling),
    "5": (_differing("init", arch=("upproj",)), _initialisation),
}


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags; returns the exit code."""
    return run(flags_lib.parse(FiguresConfig, argv, prog="jaxdepth figures"))
