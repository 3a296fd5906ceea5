"""What a run and an evaluation show at their end: one line, table, pictures."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdepth import plots
from jaxdepth.config import Config
from jaxdepth.data.dataset import Data
from jaxdepth.predictor import Predictor
from jaxdepth.runtime import terminal
from jaxdepth.training import metrics_writer
from jaxdepth.training.state import TrainState
from jaxdepth.workdir import WorkDir

logger = logging.getLogger(__name__)
PANEL_ROWS = 4


def summary(entry: dict[str, Any]) -> str:
    """One line: the metrics people look at, with the protocol that they belong to."""
    m = entry["metrics"]
    values = ", ".join(
        f"{name} {m[name]:.3f}" if m[name] is not None else f"{name} undefined"
        for name in ("delta1", "abs_rel", "rmse")
    )
    return f"{values} ({measured_by(entry)})"


def measured_by(entry: dict[str, Any]) -> str:
    """What a number of results.json was measured by, without which it says little."""
    return f"{scored_by(entry)}, trained at {entry['size']}"


def scored_by(entry: dict[str, Any]) -> str:
    """The same without the size that the network was trained at."""
    return (
        f"{_averaged_as(entry)}, {entry['truth']} truth, {entry['data']}, split "
        f"{entry['split']}"
    )


def measured_on(entry: dict[str, Any]) -> str:
    """`measured_by`, and on how many images."""
    return f"{measured_by(entry)}, {entry.get('images', '?')} images"


def counted_by(entry: dict[str, Any]) -> str:
    """Everything that has to be the same of numbers that are held against each other:
    `measured_on`, and how many pixels counted."""
    said = measured_on(entry)
    pixels = entry.get("counts", {}).get("pixels")
    if pixels is not None:
        said += f", {pixels:,.0f} pixels"
    if entry.get("abs_rel_over", "truth") != "truth":
        said += f", abs_rel over {entry['abs_rel_over']}"
    return said


def _averaged_as(entry: dict[str, Any]) -> str:
    mirrored = ", mirror-averaged" if entry.get("flip_average") else ""
    return f"{entry['protocol']}, {entry['averaging']}{mirrored}"


COLUMNS = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10")


def show_table(
    entries: Sequence[dict[str, Any]],
    baselines: dict[str, dict[str, float | None]] | None = None,
) -> None:
    """The numbers on the terminal, with what they were measured by."""
    shown = entries[-1]
    rows = [
        (_averaged_as(e), *(e["metrics"][c] for c in COLUMNS))
        for e in reversed(entries)
    ]
    for name, m in (baselines or {}).items():
        label = f"{name} ({_averaged_as(shown)})"
        rows.append((label, *(m[c] for c in COLUMNS)))
    truth = ", ".join(sorted({e["truth"] for e in entries}))
    title = (
        f"{shown['data']}, split {shown['split']}, {shown['images']} images, truth "
        f"{truth}, trained at {shown['size']}; rmse in metres"
    )
    terminal.print_table(title, ("protocol, averaging", *COLUMNS), rows)


def show_parts(entry: dict[str, Any]) -> None:
    """Errors by distance and near edges of depth, on the terminal."""
    total = max(entry["counts"]["pixels"], 1)
    rows = [
        (name, part["pixels"] / total, *(part["metrics"][c] for c in COLUMNS))
        for name, part in entry["parts"].items()
    ]
    title = f"by distance and near edges: {measured_by(entry)}; rmse in metres"
    terminal.print_table(title, ("part", "share of pixels", *COLUMNS), rows)


def show_interval(entry: dict[str, Any]) -> None:
    """How sure the numbers are, on the terminal."""
    found = entry["interval"]
    bounds = {c: found["metrics"][c] or (None, None) for c in COLUMNS}
    rows = [
        (name, *(bounds[c][k] for c in COLUMNS))
        for k, name in enumerate(("from", "to"))
    ]
    rows.insert(1, ("value", *(entry["metrics"][c] for c in COLUMNS)))
    title = (
        f"{found['level']:.0%} interval, bootstrap over {found['units']} "
        f"{found['unit']}s, {found['resamples']} resamples: {measured_by(entry)}"
    )
    terminal.print_table(title, ("", *COLUMNS), rows)


def show(
    config: Config,
    workdir: WorkDir,
    data: Data,
    results: dict[str, Any],
    state: TrainState,
) -> None:
    """Panel picture, curves, and the table on the terminal, of a run that is done."""
    last = results["evaluations"][-1]
    entries = [e for e in results["evaluations"] if e["step"] == last["step"]]
    predictor = Predictor(config, state.variables)
    rows = data.eval_rows[spread(len(data.eval_rows), PANEL_ROWS)]
    frames = list(data.evaluation.full_frames(rows))
    kinds = (config.data.depth, "raw" if config.data.depth == "filled" else "filled")
    truth = [
        next(f["depth"][k] for k in kinds if f["depth"].get(k) is not None)
        for f in frames
    ]
    step = int(state.step)
    panel = workdir.local / "panels" / f"step-{step:07d}.png"
    plots.panel(
        panel,
        rgb=[f["rgb"] for f in frames],
        target=truth,
        pred=[predictor.predict(f["rgb"]) for f in frames],
        names=[f["name"] for f in frames],
        title=f"{config.model.arch}, {config.loss.name}, step {step} - {data.name}, "
        f"{data.eval_split}",
    )
    records = metrics_writer.read_metrics(workdir.local)
    plots.curves(workdir.local / "curves.png", records, results["evaluations"])
    show_table(entries, results["baselines"])
    if "parts" in last:  # not in results of versions before
        show_parts(last)
    better = min(
        (m["rmse"] for m in results["baselines"].values() if m["rmse"]),
        default=None,
    )
    rmse = last["metrics"]["rmse"]
    if better and rmse:
        logger.info(
            "RMSE %.3f m is %.2f of the better baseline's %.3f m (%s)",
            rmse,
            rmse / better,
            better,
            measured_by(last),
        )
    logger.info("pictures: %s, %s", panel, workdir.local / "curves.png")
    logger.info("use it: jaxdepth predict --checkpoint=%s PHOTO", workdir.name)


def spread(count: int, wanted: int) -> np.ndarray:
    """Up to `wanted` places of `count`, evenly apart."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(int))
