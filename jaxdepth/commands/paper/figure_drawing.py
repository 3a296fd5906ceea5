"""Drawing of figures that compare runs: losses, predictions and spectra."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdepth import plots
from jaxdepth.commands.finished_runs import Run
from jaxdepth.commands.paper import gridding
from jaxdepth.commands.paper.gridding import PERIODS, Gridding

SPECTRA = 16  # number of images whose spectra are averaged
RINGS = (("red", "#ff3b30"), ("white", "white"))  # name and colour for each period
ZOOM = 3  # factor of the enlarged detail


def compare(runs: Sequence[Run]) -> Any:
    """Plot training loss, RMSE and delta1 of runs over the steps.

    The evaluations are those with each run's last protocol and averaging.
    """
    figure = plots.canvas(11, 3.8)
    loss, rmse, delta = figure.subplots(1, 3)
    for k, run in enumerate(runs):
        step, values = plots.series(run.records, "loss")
        label = plots.plain_text(run.name)
        loss.plot(step, plots.smooth(values), color=f"C{k}", label=label)
        entries = plots.last_kind(run.evaluations)
        for axis, metric in ((rmse, "rmse"), (delta, "delta1")):
            values = [(e["step"], e["metrics"][metric]) for e in entries]
            axis.plot(*_points(values), "o-", color=f"C{k}", markersize=4)
    loss.set_ylabel("training loss, smoothed")
    rmse.set_ylabel("rmse [m]")
    delta.set_ylabel("delta1")
    for axis in (loss, rmse, delta):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    columns = 1 if max(len(run.name) for run in runs) > 40 else 3
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return figure


def training(
    runs: Sequence[Run],
    frames: Sequence[dict[str, Any]],
    targets: Sequence[np.ndarray],
    predictions: Sequence[Sequence[np.ndarray] | None],
) -> Any:
    """Plot training and validation loss of each run, above rows of predictions.

    Args:
      frames, targets: evaluation frames and their ground truth in metres.
      predictions: per run and frame, metres; None for a run without predictions. If no
        run has any, only the losses are plotted.
    """
    shown = [k for k, of_run in enumerate(predictions) if of_run is not None]
    height = 1.75 * len(frames) + 0.8 if shown else 0
    figure = plots.canvas(max(8.0, 2.4 * (2 + len(shown))), 3.4 + height)
    upper = figure
    if shown:
        upper, lower = figure.subfigures(2, 1, height_ratios=(3.4, height))
        titles = [plots.plain_text(runs[k].name) for k in shown]
        _rows(lower, frames, targets, titles, [predictions[k] for k in shown])
    axes = upper.subplots(1, len(runs), squeeze=False)[0]
    for axis, run in zip(axes, runs, strict=True):
        _losses(axis, run)
    return figure


def _losses(axis: Any, run: Run) -> None:
    """Plot training and validation loss of a run."""
    plots.draw_loss(axis, *plots.series(run.records, "loss"))
    entries = plots.last_kind(run.evaluations)
    points = [(e["step"], e["loss"]) for e in entries if e.get("loss") is not None]
    note = ""
    if points:
        axis.plot(*_points(points), "o--", color="C3", markersize=4, label="validation")
        low, high = axis.get_ylim()
        if axis.get_yscale() == "linear":
            axis.set_ylim(min(0, low), high)
    else:
        note = "\nno validation loss was recorded"
    axis.set(xlabel="step", ylabel=f"loss ({run.flag('loss') or 'unknown'})")
    axis.set_title(plots.plain_text(run.name) + note, fontsize=10)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _rows(
    figure: Any,
    frames: Sequence[dict[str, Any]],
    targets: Sequence[np.ndarray],
    titles: Sequence[str],
    predictions: Sequence[Any],
) -> None:
    """Draw image, ground truth and predictions of each frame, in one colour scale."""
    low, high = plots.depth_range(*targets, *itertools.chain(*predictions))
    axes = figure.subplots(len(frames), 2 + len(predictions), squeeze=False)
    for k, (row, frame) in enumerate(zip(axes, frames, strict=True)):
        depths = [targets[k], *(of_run[k] for of_run in predictions)]
        cells = [frame["rgb"], *(plots.colorize(d, low, high) for d in depths)]
        for axis, cell in zip(row, cells, strict=True):
            axis.imshow(cell, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(plots.plain_text(plots.end(frame["name"], 24)), fontsize=7)
        for axis, pred in zip(row[2:], depths[1:], strict=True):
            axis.set_xlabel(plots.caption(pred, targets[k]), fontsize=8)
    for axis, title in zip(axes[0], ("image", "ground truth", *titles), strict=True):
        axis.set_title(plots.end(title, 34), fontsize=10)
    plots.colour_bar(figure, axes[:, 1:], plots.COLOURS, low, high, "depth [m]")


def unpooling(
    names: Sequence[str],
    images: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    shown: Sequence[Sequence[np.ndarray]],
    maps: Sequence[Sequence[np.ndarray]],
    grids: Sequence[Sequence[Gridding]],
) -> Any:
    """Draw predictions of runs with an enlarged detail, above their mean spectra.

    Args:
      names: names of the runs.
      images, targets: colours and ground truth in metres of the frames to show.
      shown: predictions per run and frame, metres, at the network's output size.
      maps: predictions of the frames whose spectra are averaged.
      grids: per run and period of `PERIODS`.
    """
    height = 1.9 * len(images)
    figure = plots.canvas(5.2 + 4.6 * len(names), height + 3.9)
    upper, lower = figure.subfigures(2, 1, height_ratios=(height + 0.8, 3.1))
    _details(upper, names, images, targets, shown)
    _spectra(lower, names, maps, grids)
    return figure


def _spectra(
    figure: Any,
    names: Sequence[str],
    maps: Sequence[Sequence[np.ndarray]],
    grids: Sequence[Sequence[Gridding]],
) -> None:
    """Draw the mean spectrum of each run's predictions."""
    spectra = [np.mean([gridding.spectrum(m) for m in of_run], 0) for of_run in maps]
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    levels = [np.log10(np.maximum(np.fft.fftshift(s), 1e-12)) for s in spectra]
    low = min(np.percentile(level, 1) for level in levels)
    high = max(level.max() for level in levels)
    picture = None
    for axis, name, level, grid in zip(axes, names, levels, grids, strict=True):
        picture = axis.imshow(
            level, extent=(-0.5, 0.5, 0.5, -0.5), cmap=plots.ERRORS, vmin=low, vmax=high
        )
        _mark(axis)
        title = f"{name}: mean spectrum of {len(maps[0])} predictions"
        axis.set_title(plots.plain_text(title), fontsize=9)
        axis.set_xlabel(
            "\n".join(
                f"period {p} ({word}): {100 * g.share:.2g} % of the energy, "
                f"{g.prominence:.3g} times its surroundings"
                for p, g, (word, _) in zip(PERIODS, grid, RINGS, strict=True)
            ),
            fontsize=9,
        )
        axis.set(xticks=(-0.5, -0.25, 0, 0.25, 0.5), yticks=(-0.5, -0.25, 0, 0.25, 0.5))
        axis.tick_params(labelsize=7)
    bar = figure.colorbar(picture, ax=axes, fraction=0.03)
    bar.set_label("log10 of power", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _details(figure, names, images, targets, shown) -> None:
    """Draw image, ground truth, predictions and enlarged details of each frame."""
    low, high = plots.depth_range(*targets, *itertools.chain(*shown))
    axes = figure.subplots(len(images), 2 + 2 * len(names), squeeze=False)
    for k, row in enumerate(axes):
        cells = [images[k], plots.colorize(targets[k], low, high)]
        boxes: list[tuple[int, int, int, int] | None] = [None, None]
        for of_run in shown:
            top, bottom, left, right = _most_detailed(shown[0][k])
            detail = of_run[k][top:bottom, left:right]
            cells += [
                plots.colorize(of_run[k], low, high),
                plots.colorize(detail, *plots.depth_range(detail)),
            ]
            boxes += [(top, bottom, left, right), None]
        for axis, cell, box in zip(row, cells, boxes, strict=True):
            axis.imshow(cell, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if box is not None:
                _outline(axis, box)
    titles = ["image", "ground truth"]
    for name in names:
        titles += [name, "enlarged, own scale"]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(plots.plain_text(plots.end(title, 26)), fontsize=9)
    plots.colour_bar(figure, axes[:, 1:], plots.COLOURS, low, high, "depth [m]")


def _outline(axis: Any, box: tuple[int, int, int, int]) -> None:
    from matplotlib.patches import Rectangle

    top, bottom, left, right = box
    axis.add_patch(
        Rectangle(
            (left - 0.5, top - 0.5), right - left, bottom - top, fill=False,
            edgecolor="white", linewidth=1,
        )
    )  # fmt: skip


def _most_detailed(depth: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the part with the largest relative deviation."""
    height, width = (min(n, max(12, n // ZOOM)) for n in depth.shape)
    best, box = -1.0, (0, height, 0, width)
    for top in range(0, depth.shape[0] - height + 1, max(1, height // 2)):
        for left in range(0, depth.shape[1] - width + 1, max(1, width // 2)):
            part = depth[top : top + height, left : left + width]
            if (spread := float(part.std() / part.mean())) > best:
                best, box = spread, (top, top + height, left, left + width)
    return box


def _mark(axis: Any) -> None:
    """Draw rings around the frequencies of each period."""
    for period, (_, colour) in zip(PERIODS, RINGS, strict=True):
        points = {(_centred(i), _centred(j)) for i, j in gridding.quarters(period)}
        axis.plot(
            [x for _, x in points], [y for y, _ in points], "o", markersize=9,
            markerfacecolor="none", markeredgecolor=colour, clip_on=False,
        )  # fmt: skip


def _centred(quarters: int) -> float:
    """Frequency between -1/2 and 1/4 from quarters of a cycle."""
    return ((quarters + 2) % 4 - 2) / 4


def mean_gridding(maps: Sequence[np.ndarray]) -> list[Gridding]:
    """Mean over depth maps for each of `PERIODS`; geometric mean of the prominence."""
    means = []
    for period in PERIODS:
        each = [gridding.gridding(depth, period) for depth in maps]
        ratio = np.exp(np.mean([np.log(max(g.prominence, 1e-12)) for g in each]))
        means.append(Gridding(float(np.mean([g.share for g in each])), float(ratio)))
    return means


def _points(values: Sequence[tuple[int, float | None]]) -> tuple[list, list]:
    """Steps and values; NaN for undefined values."""
    return (
        [step for step, _ in values],
        [np.nan if value is None else value for _, value in values],
    )
