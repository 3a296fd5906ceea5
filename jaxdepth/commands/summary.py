"""The summary at the end of a run or an evaluation: a line, tables and pictures."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdepth import plots
from jaxdepth.config import Config
from jaxdepth.data.dataset import Data
from jaxdepth.evaluation.describe import averaging, conditions
from jaxdepth.evaluation.metrics import METRICS
from jaxdepth.predictor import Predictor
from jaxdepth.runtime import terminal
from jaxdepth.training import metrics_writer
from jaxdepth.training.state import TrainState
from jaxdepth.workdir import WorkDir

logger = logging.getLogger(__name__)
PANEL_ROWS = 4


def conditions_and_images(entry: dict[str, Any]) -> str:
    """`conditions`, and the number of images."""
    return f"{conditions(entry)}, {entry.get('images', '?')} images"


def comparison_key(entry: dict[str, Any]) -> str:
    """A text that is equal for evaluations with comparable metrics."""
    text = conditions_and_images(entry)
    pixels = entry.get("counts", {}).get("pixels")
    if pixels is not None:
        text += f", {pixels:,.0f} pixels"
    if entry.get("abs_rel_over", "truth") != "truth":
        text += f", abs_rel over {entry['abs_rel_over']}"
    return text


def columns() -> tuple[str, ...]:
    """Names of the metrics that the tables on the terminal show."""
    return tuple(name for name, metric in METRICS.items() if metric.in_summary)


def cells(metrics: dict[str, float | None]) -> tuple[float | None, ...]:
    """The values of `columns`; None for a metric that an earlier run did not have."""
    return tuple(metrics.get(name) for name in columns())


def show_table(
    entries: Sequence[dict[str, Any]],
    baselines: dict[str, dict[str, float | None]] | None = None,
) -> None:
    """Print the metrics of evaluations and baselines, with their conditions."""
    shown = entries[-1]
    rows = [(averaging(e), *cells(e["metrics"])) for e in reversed(entries)]
    for name, metrics in (baselines or {}).items():
        rows.append((f"{name} ({averaging(shown)})", *cells(metrics)))
    truth = ", ".join(sorted({e["truth"] for e in entries}))
    title = (
        f"{shown['data']}, split {shown['split']}, {shown['images']} images, truth "
        f"{truth}, trained at {shown['size']}; rmse in metres"
    )
    terminal.print_table(title, ("protocol, averaging", *columns()), rows)


def show_parts(entry: dict[str, Any]) -> None:
    """Print the error breakdown by distance and by depth edges."""
    total = max(entry["counts"]["pixels"], 1)
    rows = [
        (name, part["pixels"] / total, *cells(part["metrics"]))
        for name, part in entry["parts"].items()
    ]
    title = f"by distance and near edges: {conditions(entry)}; rmse in metres"
    terminal.print_table(title, ("part", "share of pixels", *columns()), rows)


def show_interval(entry: dict[str, Any]) -> None:
    """Print the bootstrap intervals of the metrics."""
    bootstrap = entry["interval"]
    bounds = [bootstrap["metrics"][name] or (None, None) for name in columns()]
    low, high = zip(*bounds, strict=True)
    rows = [("from", *low), ("value", *cells(entry["metrics"])), ("to", *high)]
    title = (
        f"{bootstrap['level']:.0%} interval, bootstrap over {bootstrap['units']} "
        f"{bootstrap['unit']}s, {bootstrap['resamples']} resamples: {conditions(entry)}"
    )
    terminal.print_table(title, ("", *columns()), rows)


def show(
    config: Config,
    workdir: WorkDir,
    data: Data,
    results: dict[str, Any],
    state: TrainState,
) -> None:
    """Draw predictions and curves of a finished run, and print its tables."""
    last = results["evaluations"][-1]
    panel = _draw_panel(config, workdir, data, state)
    curves = workdir.local / "curves.png"
    records = metrics_writer.read_metrics(workdir.local)
    plots.curves(curves, records, results["evaluations"])
    entries = [e for e in results["evaluations"] if e["step"] == last["step"]]
    show_table(entries, results["baselines"])
    if "parts" in last:  # missing in results of earlier versions
        show_parts(last)
    better = min(
        (m["rmse"] for m in results["baselines"].values() if m["rmse"]), default=None
    )
    rmse = last["metrics"]["rmse"]
    if better and rmse:
        logger.info(
            "RMSE %.3f m is %.2f of the better baseline's %.3f m (%s)",
            rmse,
            rmse / better,
            better,
            conditions(last),
        )
    logger.info("pictures: %s, %s", panel, curves)
    logger.info("to predict: jaxdepth predict --checkpoint=%s PHOTO", workdir.name)


def _draw_panel(config: Config, workdir: WorkDir, data: Data, state: TrainState) -> Any:
    """Draw evaluation frames with ground truth and prediction. Returns the path."""
    camera = data.camera(config.frame_size)
    predictor = Predictor(config, state.variables, camera=camera)
    rows = data.eval_rows[spread(len(data.eval_rows), PANEL_ROWS)]
    frames = list(data.evaluation.full_frames(rows))
    kinds = (config.data.depth, "raw" if config.data.depth == "filled" else "filled")
    target = [
        next(f["depth"][k] for k in kinds if f["depth"].get(k) is not None)
        for f in frames
    ]
    step = int(state.step)
    path = workdir.local / "panels" / f"step-{step:07d}.png"
    plots.panel(
        path,
        rgb=[f["rgb"] for f in frames],
        target=target,
        pred=[predictor.predict_frame(frame) for frame in frames],
        names=[f["name"] for f in frames],
        title=f"{config.model.arch}, {config.loss.name}, step {step} - {data.name}, "
        f"{data.eval_split}",
    )
    return path


def spread(count: int, wanted: int) -> np.ndarray:
    """Up to `wanted` evenly spaced indices below `count`."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(int))
