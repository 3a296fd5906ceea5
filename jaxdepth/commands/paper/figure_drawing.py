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
# Name and colour of the rings around the frequencies of each period.
RINGS = (("red", "#ff3b30"), ("white", "white"))
TICKS = (-0.5, -0.25, 0, 0.25, 0.5)  # cycles per pixel
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
            values = np.array([e["metrics"][metric] for e in entries], float)
            steps = [e["step"] for e in entries]
            axis.plot(steps, values, "o-", color=f"C{k}", markersize=4)
    labels = {loss: "training loss, smoothed", rmse: "rmse [m]", delta: "delta1"}
    for axis, label in labels.items():
        axis.set(xlabel="step", ylabel=label)
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
    shown = [k for k, depths in enumerate(predictions) if depths is not None]
    height = 1.75 * len(frames) + 0.8 if shown else 0
    figure = plots.canvas(max(8.0, 2.4 * (2 + len(shown))), 3.4 + height)
    upper = figure
    if shown:
        upper, lower = figure.subfigures(2, 1, height_ratios=(3.4, height))
        names = [runs[k].name for k in shown]
        _predictions(lower, frames, targets, names, [predictions[k] for k in shown])
    axes = upper.subplots(1, len(runs), squeeze=False)[0]
    for axis, run in zip(axes, runs, strict=True):
        _losses(axis, run)
    return figure


def _losses(axis: Any, run: Run) -> None:
    """Plot training and validation loss of a run."""
    plots.draw_loss(axis, *plots.series(run.records, "loss"))
    steps, losses = plots.series(plots.last_kind(run.evaluations), "loss")
    note = "" if len(steps) else "\nno validation loss was recorded"
    if len(steps):
        axis.plot(steps, losses, "o--", color="C3", markersize=4, label="validation")
        if axis.get_yscale() == "linear":
            axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    axis.set(xlabel="step", ylabel=f"loss ({run.flag('loss') or 'unknown'})")
    axis.set_title(plots.plain_text(run.name) + note, fontsize=10)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _predictions(
    figure: Any,
    frames: Sequence[dict[str, Any]],
    targets: Sequence[np.ndarray],
    names: Sequence[str],
    predictions: Sequence[Any],
) -> None:
    """Draw image, ground truth and predictions of each frame, in one colour scale."""
    scale = plots.depth_range(*targets, *itertools.chain(*predictions))
    depths = list(zip(targets, *predictions, strict=True))
    pictures = [
        [frame["rgb"], *(plots.colorize(depth, *scale) for depth in row)]
        for frame, row in zip(frames, depths, strict=True)
    ]
    axes = _grid(figure, ("image", "ground truth", *names), pictures, scale)
    for row, frame, (target, *preds) in zip(axes, frames, depths, strict=True):
        row[0].set_ylabel(plots.plain_text(plots.end(frame["name"], 24)), fontsize=7)
        for axis, pred in zip(row[2:], preds, strict=True):
            axis.set_xlabel(plots.caption(pred, target), fontsize=8)


def _grid(
    figure: Any,
    titles: Sequence[str],
    pictures: Sequence[Sequence[np.ndarray]],
    scale: tuple[float, float],
) -> Any:
    """Draw rows of pictures below their titles, with a colour bar. Returns the axes."""
    axes = figure.subplots(len(pictures), len(titles), squeeze=False)
    for axis, picture in zip(axes.flat, itertools.chain(*pictures), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(plots.plain_text(plots.end(title, 34)), fontsize=9)
    plots.colour_bar(figure, axes[:, 1:], plots.COLOURS, *scale, "depth [m]")
    return axes


def unpooling(
    names: Sequence[str],
    images: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    maps: Sequence[Sequence[np.ndarray]],
    grids: Sequence[Sequence[Gridding]],
    indices: np.ndarray,
) -> Any:
    """Draw predictions of runs with an enlarged detail, above their mean spectra.

    Args:
      names: names of the runs.
      images, targets: colours and ground truth in metres of the shown frames.
      maps: predictions per run and frame, metres, at the network's output size; their
        spectra are averaged.
      grids: per run and period of `PERIODS`.
      indices: indices of the shown frames in `maps`.
    """
    from matplotlib.patches import Rectangle

    height = 1.9 * len(images)
    figure = plots.canvas(5.2 + 4.6 * len(names), height + 3.9)
    upper, lower = figure.subfigures(2, 1, height_ratios=(height + 0.8, 3.1))
    shown = [[depths[k] for depths in maps] for k in indices]
    scale = plots.depth_range(*targets, *itertools.chain(*shown))
    boxes = [_most_detailed(depths[0]) for depths in shown]
    pictures = []
    for image, target, depths, box in zip(images, targets, shown, boxes, strict=True):
        pictures.append([image, plots.colorize(target, *scale)])
        for depth in depths:
            detail = plots.colorize(depth[box], *plots.depth_range(depth[box]))
            pictures[-1] += [plots.colorize(depth, *scale), detail]
    titles = [title for name in names for title in (name, "enlarged, own scale")]
    axes = _grid(upper, ["image", "ground truth", *titles], pictures, scale)
    for row, (y, x) in zip(axes, boxes, strict=True):
        corner = x.start - 0.5, y.start - 0.5
        size = x.stop - x.start, y.stop - y.start
        for axis in row[2::2]:
            axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor="white"))
    _spectra(lower, names, maps, grids)
    return figure


def _spectra(
    figure: Any,
    names: Sequence[str],
    maps: Sequence[Sequence[np.ndarray]],
    grids: Sequence[Sequence[Gridding]],
) -> None:
    """Draw the mean spectrum of each run's predictions."""
    spectra = [np.mean([gridding.spectrum(d) for d in depths], 0) for depths in maps]
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    levels = [np.log10(np.maximum(np.fft.fftshift(s), 1e-12)) for s in spectra]
    low = min(np.percentile(level, 1) for level in levels)
    high = max(level.max() for level in levels)
    for axis, name, level, grid in zip(axes, names, levels, grids, strict=True):
        extent = (-0.5, 0.5, 0.5, -0.5)
        axis.imshow(level, extent=extent, cmap=plots.ERRORS, vmin=low, vmax=high)
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
        axis.set(xticks=TICKS, yticks=TICKS)
        axis.tick_params(labelsize=7)
    bar = figure.colorbar(axes[0].images[0], ax=axes, fraction=0.03)
    bar.set_label("log10 of power", fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _most_detailed(depth: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the part with the largest relative deviation."""
    height, width = (min(n, max(12, n // ZOOM)) for n in depth.shape)
    boxes = [
        (slice(top, top + height), slice(left, left + width))
        for top in range(0, depth.shape[0] - height + 1, max(1, height // 2))
        for left in range(0, depth.shape[1] - width + 1, max(1, width // 2))
    ]
    return max(boxes, key=lambda box: depth[box].std() / max(depth[box].mean(), 1e-6))


def _mark(axis: Any) -> None:
    """Draw rings around the frequencies of each period."""
    for period, (_, colour) in zip(PERIODS, RINGS, strict=True):
        y, x = np.fft.fftfreq(4)[np.transpose(gridding.quarters(period))]
        axis.plot(
            x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor=colour,
            clip_on=False,
        )  # fmt: skip


def mean_gridding(maps: Sequence[np.ndarray]) -> list[Gridding]:
    """Mean over depth maps for each of `PERIODS`; geometric mean of the prominence."""
    means = []
    for period in PERIODS:
        each = [gridding.gridding(depth, period) for depth in maps]
        ratio = np.exp(np.mean([np.log(max(g.prominence, 1e-12)) for g in each]))
        means.append(Gridding(float(np.mean([g.share for g in each])), float(ratio)))
    return means
