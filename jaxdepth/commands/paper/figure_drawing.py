"""Figures that compare runs: losses, pictures beside each other, spectra."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdepth import plots
from jaxdepth.commands.finished_runs import Run
from jaxdepth.commands.paper import gridding
from jaxdepth.commands.paper.gridding import PERIODS, Gridding

SPECTRA = 16  # images whose spectra are averaged
RINGS = (("red", "#ff3b30"), ("white", "white"))  # around the frequencies of a period
ZOOM = 3  # a part this many times smaller each way is shown enlarged


def compare(runs: Sequence[Run]) -> Any:
    """Runs on common axes: training loss, RMSE and delta1 over steps.

    Of the evaluations those under each run's last protocol and averaging are drawn.
    """
    figure = plots.canvas(11, 3.8)
    loss, rmse, delta = figure.subplots(1, 3)
    for k, run in enumerate(runs):
        step, values = plots.series(run.records, "loss")
        label = plots.plain_text(run.name)
        loss.plot(step, plots.smooth(values), color=f"C{k}", label=label)
        like = plots.last_kind(run.evaluations)
        for axis, metric in ((rmse, "rmse"), (delta, "delta1")):
            values = [(e["step"], e["metrics"][metric]) for e in like]
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
    truth: Sequence[np.ndarray],
    predictions: Sequence[Sequence[np.ndarray] | None],
) -> Any:
    """Loss of training and validation of each run, over rows of pictures.

    Args:
      frames, truth: evaluation frames and their depth in metres; none: curves alone.
      predictions: per run and frame, metres; None where there are none.
    """
    shown = [k for k, found in enumerate(predictions) if found is not None]
    height = 1.75 * len(frames) + 0.8 if shown else 0
    figure = plots.canvas(max(8.0, 2.4 * (2 + len(shown))), 3.4 + height)
    upper = figure
    if shown:
        upper, lower = figure.subfigures(2, 1, height_ratios=(3.4, height))
        heads = [plots.plain_text(runs[k].name) for k in shown]
        _rows(lower, frames, truth, heads, [predictions[k] for k in shown])
    axes = upper.subplots(1, len(runs), squeeze=False)[0]
    for axis, run in zip(axes, runs, strict=True):
        _losses(axis, run)
    return figure


def _losses(axis: Any, run: Run) -> None:
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
    truth: Sequence[np.ndarray],
    heads: Sequence[str],
    predictions: Sequence[Any],
) -> None:
    """Image, truth and each run's prediction, one scale in metres for all."""
    every = [depth for found in predictions for depth in found]
    low, high = plots.depth_range(*truth, *every)
    axes = figure.subplots(len(frames), 2 + len(predictions), squeeze=False)
    for k, (row, frame) in enumerate(zip(axes, frames, strict=True)):
        depths = [truth[k], *(found[k] for found in predictions)]
        cells = [frame["rgb"], *(plots.colorize(d, low, high) for d in depths)]
        for axis, cell in zip(row, cells, strict=True):
            axis.imshow(cell, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(plots.plain_text(plots.end(frame["name"], 24)), fontsize=7)
        for axis, pred in zip(row[2:], depths[1:], strict=True):
            axis.set_xlabel(plots.caption(pred, truth[k]), fontsize=8)
    for axis, head in zip(axes[0], ("image", "truth", *heads), strict=True):
        axis.set_title(plots.end(head, 34), fontsize=10)
    plots.colour_bar(figure, axes[:, 1:], plots.COLOURS, low, high, "depth [m]")


def unpooling(
    names: Sequence[str],
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    shown: Sequence[Sequence[np.ndarray]],
    maps: Sequence[Sequence[np.ndarray]],
    grids: Sequence[Sequence[Gridding]],
) -> Any:
    """Predictions of runs, whole and enlarged, over their mean spectra.

    Args:
      images, truth: of the frames that are shown, colours and metres.
      shown: per run and frame, metres at the network's output size.
      maps: likewise of all frames that the spectra are of.
      grids: per run, of each of `PERIODS`.
    """
    height = 1.9 * len(images)
    figure = plots.canvas(5.2 + 4.6 * len(names), height + 3.9)
    upper, lower = figure.subfigures(2, 1, height_ratios=(height + 0.8, 3.1))
    _enlarged(upper, names, images, truth, shown)
    spectra = [np.mean([gridding.spectrum(m) for m in found], 0) for found in maps]
    axes = lower.subplots(1, len(names), squeeze=False)[0]
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
    bar = lower.colorbar(picture, ax=axes, fraction=0.03)
    bar.set_label("log10 of power", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _enlarged(figure, names, images, truth, shown) -> None:
    every = [depth for found in shown for depth in found]
    low, high = plots.depth_range(*truth, *every)
    axes = figure.subplots(len(images), 2 + 2 * len(names), squeeze=False)
    for k, row in enumerate(axes):
        cells = [images[k], plots.colorize(truth[k], low, high)]
        boxes: list[tuple[int, int, int, int] | None] = [None, None]
        for found in shown:
            top, bottom, left, right = _most_detailed(shown[0][k])
            part = found[k][top:bottom, left:right]
            cells += [
                plots.colorize(found[k], low, high),
                plots.colorize(part, *plots.depth_range(part)),
            ]
            boxes += [(top, bottom, left, right), None]
        for axis, cell, box in zip(row, cells, boxes, strict=True):
            axis.imshow(cell, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if box is not None:
                _outline(axis, box)
    heads = ["image", "truth"]
    for name in names:
        heads += [name, "enlarged, own scale"]
    for axis, head in zip(axes[0], heads, strict=True):
        axis.set_title(plots.plain_text(plots.end(head, 26)), fontsize=9)
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
    """Top, bottom, left, right of the part whose depth varies most around its mean."""
    height, width = (min(n, max(12, n // ZOOM)) for n in depth.shape)
    best, box = -1.0, (0, height, 0, width)
    for top in range(0, depth.shape[0] - height + 1, max(1, height // 2)):
        for left in range(0, depth.shape[1] - width + 1, max(1, width // 2)):
            part = depth[top : top + height, left : left + width]
            if (spread := float(part.std() / part.mean())) > best:
                best, box = spread, (top, top + height, left, left + width)
    return box


def _mark(axis: Any) -> None:
    """Rings around the frequencies of each period."""
    for period, (_, colour) in zip(PERIODS, RINGS, strict=True):
        places = {(_centred(i), _centred(j)) for i, j in gridding.quarters(period)}
        axis.plot(
            [x for _, x in places], [y for y, _ in places], "o", markersize=9,
            markerfacecolor="none", markeredgecolor=colour, clip_on=False,
        )  # fmt: skip


def _centred(quarters: int) -> float:
    """Quarters of a cycle as a frequency of -1/2 to 1/4."""
    return ((quarters + 2) % 4 - 2) / 4


def mean_gridding(maps: Sequence[np.ndarray]) -> list[Gridding]:
    """Means over depth maps, for each of `PERIODS`; prominence as a geometric one."""
    found = []
    for period in PERIODS:
        each = [gridding.gridding(depth, period) for depth in maps]
        ratio = np.exp(np.mean([np.log(max(g.prominence, 1e-12)) for g in each]))
        found.append(Gridding(float(np.mean([g.share for g in each])), float(ratio)))
    return found


def _points(values: Sequence[tuple[int, float | None]]) -> tuple[list, list]:
    """Steps and numbers, NaN where one is undefined."""
    return (
        [step for step, _ in values],
        [np.nan if value is None else value for _, value in values],
    )
