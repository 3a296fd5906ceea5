"""Colour maps, depth PNGs, point clouds, panels and curves."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from jaxdepth.camera import Camera, unproject
from jaxdepth.runtime import atomic

COLOURS = "magma_r"  # near is bright, far is dark; perceptually uniform
ERRORS = "viridis"
MISSING = (128, 128, 128)
DRAWN = 800  # largest side, pixels, of depth in `depth_png`
MAKER = "jaxdepth"  # in the metadata of written figures


def depth_range(*depths: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """Return the 1st and 99th percentile of finite depth above 0, metres."""
    values = np.concatenate([d[np.isfinite(d) & (d > 0)].ravel() for d in depths])
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values, (1, 99))
    return float(low), float(max(high, low + 0.1))


def colorize(
    depth: Float[np.ndarray, "h w"],
    vmin: float,
    vmax: float,
    *,
    valid: Bool[np.ndarray, "h w"] | None = None,
    colours: str = COLOURS,
) -> UInt8[np.ndarray, "h w 3"]:
    """Map depth between `vmin` and `vmax`, metres, to colours; missing depth is grey.

    Args:
      valid: pixels to colour; default: finite depth above 0.
    """
    import matplotlib

    valid = has_depth(depth) if valid is None else valid
    scaled = (np.where(valid, depth, vmin) - vmin) / (vmax - vmin)
    rgb = matplotlib.colormaps[colours](np.clip(scaled, 0, 1), bytes=True)[..., :3]
    return np.where(valid[..., None], rgb, np.array(MISSING, np.uint8))


def save_depth_png16(
    path: Path, depth: Float[np.ndarray, "h w"], *, unit: int = 1000
) -> None:
    """Write a 16-bit PNG of depth: 0 = missing, 65535 = 65.535 m or more.

    Args:
      unit: values per metre; 1000: millimetres.
    """
    scaled = np.round(np.asarray(depth, np.float64) * unit)
    values = np.where(has_depth(scaled), np.clip(scaled, 0, 65535), 0)
    _save_png(path, values.astype(np.uint16))


def save_color_png(path: Path, depth: Float[np.ndarray, "h w"]) -> None:
    """Write depth as colours between its 1st and 99th percentile."""
    _save_png(path, colorize(depth, *depth_range(depth)))


def _save_png(path: Path, values: np.ndarray) -> None:
    with atomic.atomic_write(path) as file:
        Image.fromarray(values).save(file, format="PNG")


def write_ply(
    path: Path,
    depth: Float[np.ndarray, "h w"],
    rgb: UInt8[np.ndarray, "h w 3"],
    *,
    fx: float,
    fy: float,
    cx: float,
    cy: float,
) -> None:
    """Write the pixels with depth as a coloured point cloud in binary PLY.

    Coordinates are those of `camera.unproject`, in metres.
    """
    valid = has_depth(depth)
    xyz = unproject(depth, Camera(fx, fy, cx, cy))[valid]
    points = np.empty(len(xyz), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    points["xyz"], points["rgb"] = xyz, rgb[valid]
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; x right, y down, z forward",
        f"element vertex {len(points)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        "end_header\n",
    ]
    with atomic.atomic_write(path) as file:
        file.write("\n".join(lines).encode() + points.tobytes())


def canvas(width: float, height: float) -> Any:
    """Create a figure without pyplot, which needs no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure atomically, in the format of the suffix: .png or .svg."""
    with atomic.atomic_write(path) as file:
        file.write(rendered(figure, path.suffix[1:]))


def rendered(figure: Any, form: str) -> bytes:
    """Render a figure as "png" or "svg", without a date: equal figures, equal bytes.

    The metadata name this package, so that its commands may replace the file.
    """
    import matplotlib

    metadata = {"png": {"Software": MAKER}, "svg": {"Creator": MAKER, "Date": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": MAKER}):
        figure.savefig(buffer, format=form, dpi=110, metadata=metadata[form])
    return buffer.getvalue()


def panel(
    path: Path,
    *,
    rgb: Sequence[UInt8[np.ndarray, "h w 3"]],
    target: Sequence[Float[np.ndarray, "h w"]],
    pred: Sequence[Float[np.ndarray, "h w"]],
    names: Sequence[str],
    title: str,
) -> None:
    """Write a PNG with one row per image: image, ground truth, prediction, error.

    Ground truth and predictions share one scale in metres over all rows. Errors have
    their own, from 0 to their 99th percentile. Missing ground truth, predictions that
    are not positive and finite, and errors without ground truth are grey. The caption
    of a row gives RMSE and delta1 over the pixels with ground truth.

    Args:
      rgb, target, pred: one entry per row, of equal size within a row; depth in
        metres, ground truth 0 = missing.
      names: captions of the images.
    """
    low, high = depth_range(*target, *pred)
    errors = [_error(p, t) for p, t in zip(pred, target, strict=True)]
    worst = max(depth_range(*errors)[1], 0.1)
    count = len(rgb)
    figure = canvas(11, 2.3 * count + 1.2)
    axes = figure.subplots(count, 4, squeeze=False)
    titles = ("image", "ground truth", "prediction", "absolute error")
    for k in range(count):
        cells = (
            rgb[k],
            colorize(target[k], low, high),
            colorize(pred[k], low, high),
            colorize(errors[k], 0, worst, valid=np.isfinite(errors[k]), colours=ERRORS),
        )
        for axis, cell, text in zip(axes[k], cells, titles, strict=True):
            axis.imshow(cell, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if k == 0:
                axis.set_title(text, fontsize=10)
        axes[k][0].set_xlabel(plain_text(names[k]), fontsize=8)
        axes[k][2].set_xlabel(caption(pred[k], target[k]), fontsize=8)
    colour_bar(figure, axes[:, 1:3], COLOURS, low, high, "depth [m]")
    colour_bar(figure, axes[:, 3:], ERRORS, 0, worst, "error [m]")
    figure.suptitle(plain_text(title), fontsize=12)
    figure.get_layout_engine().set(h_pad=0.06)
    save(figure, path)


def depth_png(depth: Float[np.ndarray, "h w"]) -> bytes:
    """Render depth in colours as a PNG, with a bar in metres.

    Colours range from the 1st to the 99th percentile of depth. Large maps are drawn at
    reduced size.
    """
    low, high = depth_range(depth)
    step = -(-max(depth.shape) // DRAWN)
    small = depth[::step, ::step]
    height, width = small.shape
    figure = canvas(6, min(max(6 * height / width, 1.5), 8) + 0.75)
    axis = figure.add_subplot()
    axis.imshow(colorize(small, low, high), interpolation="nearest")
    axis.set_axis_off()
    colour_bar(figure, axis, COLOURS, low, high, "depth [m]")
    return rendered(figure, "png")


def plain_text(text: str) -> str:
    """Escape text for matplotlib: dollar signs, and a leading underscore in legends.

    Characters that are not UTF-8, as in file names, become question marks.
    """
    text = text.encode("utf-8", "replace").decode()
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def has_depth(depth: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where depth is finite and above 0."""
    return np.isfinite(depth) & (depth > 0)


def _error(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """|pred - target| in metres; NaN without ground truth or a finite prediction."""
    valid = has_depth(target) & np.isfinite(pred)
    return np.abs(np.where(valid, pred, np.nan) - np.where(valid, target, np.nan))


def caption(pred: np.ndarray, target: np.ndarray) -> str:
    """Return "rmse R m, delta1 D" of an image, over the pixels with ground truth."""
    valid = has_depth(target)
    if not valid.any():
        return "no ground truth"
    p, t = pred[valid].astype(np.float64), target[valid].astype(np.float64)
    if not np.isfinite(p).all():
        return "prediction not finite"
    # Ratios without a division: predictions of 0 or below are outside the threshold.
    within = (p < 1.25 * t) & (t < 1.25 * p)
    return f"rmse {np.sqrt(np.mean((p - t) ** 2)):.2f} m, delta1 {within.mean():.2f}"


def colour_bar(figure, axes, colours: str, low: float, high: float, label: str) -> None:
    """Draw a colour bar from `low` to `high` under the axes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(low, high), cmap=colours)
    # The same thickness for any number of rows.
    share = 0.12 / (figure.bbox.height / figure.dpi - 1)
    bar = figure.colorbar(
        scale, ax=axes, location="bottom", fraction=share, aspect=40, pad=share
    )
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def curves(
    path: Path, records: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]
) -> None:
    """Write a PNG of training loss, learning rate, and RMSE and delta1 over the steps.

    Args:
      records: the lines of metrics.jsonl.
      entries: the evaluations of results.json; those with the last one's protocol,
        averaging and data are drawn.
    """
    figure = canvas(10, 4)
    grid = figure.add_gridspec(2, 2, height_ratios=(4, 1))
    loss = figure.add_subplot(grid[0, 0])
    rate = figure.add_subplot(grid[1, 0], sharex=loss)
    scores = figure.add_subplot(grid[:, 1])
    draw_loss(loss, *series(records, "loss"))
    rate.plot(*series(records, "learning_rate"), color="0.4", linewidth=1)
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", scilimits=(-3, 3))
    rate.set_xlabel("step")
    rate.set_ylabel("learning\nrate", fontsize=9)
    rate.tick_params(axis="y", labelsize=8)
    loss.tick_params(labelbottom=False)
    _draw_evaluations(scores, entries)
    for axis in (loss, rate, scores):
        axis.grid(alpha=0.3)
    save(figure, path)


def last_kind(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the evaluations with the last one's protocol, averaging and data."""
    kind = ("protocol", "averaging", "data", "split")
    return [e for e in entries if all(e.get(k) == entries[-1].get(k) for k in kind)]


def series(
    records: Sequence[dict[str, Any]], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of the records that have a value `name`."""
    points = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    step, value = np.array(points, np.float64).reshape(-1, 2).T
    return step, value


def draw_loss(axis: Any, step: np.ndarray, loss: np.ndarray) -> None:
    """Plot the loss as logged and smoothed; logarithmic if it varies over tenfold."""
    axis.set_ylabel("training loss")
    if len(loss) < 10:
        axis.plot(step, loss, "o-", color="C0")
    else:
        axis.plot(step, loss, color="0.75", linewidth=1, label="as logged")
        axis.plot(step, smooth(loss), color="C0", label="smoothed")
        axis.legend(fontsize=8)
    if len(loss) and loss.min() > 0 and loss.max() / loss.min() > 10:
        axis.set_yscale("log")


def _draw_evaluations(axis: Any, entries: Sequence[dict[str, Any]]) -> None:
    """Plot RMSE on the left scale and delta1 on the right scale, over steps."""
    axis.set_xlabel("step")
    axis.margins(x=0.06)
    if not entries:
        axis.set_title("no evaluation", fontsize=9)
        return
    last, drawn = entries[-1], last_kind(entries)
    steps = [e["step"] for e in drawn]
    for scale, name, colour, mark in (
        (axis, "rmse", "C3", "o-"),
        (axis.twinx(), "delta1", "C2", "s--"),
    ):
        values = [e["metrics"][name] for e in drawn]
        numbers = [np.nan if v is None else v for v in values]
        scale.plot(steps, numbers, mark, color=colour, markersize=5)
        scale.set_ylabel(f"{name} [m]" if name == "rmse" else name, color=colour)
        scale.tick_params(axis="y", labelcolor=colour)
    axis.set_title(
        plain_text(
            f"{last['data']}, {last['split']}: {last['protocol']}, {last['averaging']}"
        ),
        fontsize=9,
    )


def smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Smooth by a Gaussian with a standard deviation of `share` times the length."""
    if not len(values):
        return values
    indices = np.arange(len(values))
    width = max(1.0, share * len(values))
    radius = int(np.ceil(3 * width))
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2)

    def convolve(x: np.ndarray) -> np.ndarray:
        return np.convolve(x, window)[indices + radius]

    return convolve(values) / convolve(np.ones(len(values)))


def contact_sheet(
    path: Path,
    *,
    rgb: Sequence[UInt8[np.ndarray, "h w 3"]],
    depth: Sequence[Float[np.ndarray, "h w"]],
    names: Sequence[str],
    title: str,
) -> None:
    """Write a PNG of images with their depth beside them, three pairs per row.

    All depth maps, in metres, share one scale; 0 = missing is grey.
    """
    low, high = depth_range(*depth)
    rows = max(1, -(-len(rgb) // 3))
    figure = canvas(13, 1.85 * rows + 1.2)
    axes = figure.subplots(rows, 6, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for k, (image, target, name) in enumerate(zip(rgb, depth, names, strict=True)):
        left, right = axes[k // 3][2 * (k % 3) :][:2]
        left.imshow(image, interpolation="nearest")
        right.imshow(colorize(target, low, high), interpolation="nearest")
        left.set_title(plain_text(end(name, 60)), fontsize=7, loc="left", pad=2)
    colour_bar(figure, axes, COLOURS, low, high, "depth [m]")
    figure.suptitle(plain_text(title), fontsize=12)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    save(figure, path)


def end(text: str, most: int) -> str:
    """Return the last `most` characters; a longer text begins with an ellipsis."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def statistics(
    path: Path,
    *,
    depth: Float[np.ndarray, "n"],
    missing: Mapping[str, Sequence[float]],
    surface: Float[np.ndarray, "k k"] | None,
    reach: int,
    title: str,
) -> None:
    """Write a PNG of histograms of depth and missing pixels, and the alignment map.

    Args:
      depth: a sample of depth, metres, all > 0.
      missing: kind of depth -> the share of missing pixels of each frame.
      surface: the fit of depth to the image for shifts of up to `reach` pixels, from
        up to down and from left to right; None if it was not measured.
    """
    figure = canvas(12, 3.8)
    depths, holes, shifts = figure.subplots(1, 3, width_ratios=(2, 1.3, 1))
    if len(depth):
        top, median = float(np.percentile(depth, 99.9)), float(np.median(depth))
        weights = np.full(len(depth), 100 / len(depth))
        depths.hist(depth, bins=100, range=(0, top), weights=weights, color="C0")
        depths.axvline(median, color="C3", label=f"median {median:.3g} m")
        depths.legend(fontsize=8)
    depths.set(xlabel="depth [m]", ylabel="pixels [%]")
    shares = {kind: 100 * np.asarray(s) for kind, s in missing.items()}
    if any(map(len, shares.values())):
        holes.hist(list(shares.values()), bins=20, range=(0, 100), label=list(shares))
        holes.legend(fontsize=8)
    holes.set(xlabel="missing pixels [%]", ylabel="frames")
    if surface is None:
        shifts.set_axis_off()
    else:
        edge = reach * len(surface) / (len(surface) - 1)  # outer edge of the cells
        extent = (-edge, edge, edge, -edge)
        shifts.imshow(surface, extent=extent, cmap=ERRORS, vmin=min(0, surface.min()))
        shifts.plot(0, 0, "+", color="white", markersize=12)
        shifts.set(xlabel="depth shifted right [pixels]", ylabel="down [pixels]")
        shifts.set_title(f"edges in common, at best {surface.max():.2f}", fontsize=9)
    figure.suptitle(plain_text(title), fontsize=12)
    save(figure, path)
