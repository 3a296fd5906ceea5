"""Pictures: depth as colour, panels, curves; depth as PNG, point clouds as PLY."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from jaxdepth import writers

COLOURS = "magma_r"  # near is bright, far is dark; uniform to the eye
ERRORS = "viridis"
MISSING = (128, 128, 128)


def depth_range(*depths: Float[np.ndarray, "..."]) -> tuple[float, float]:
    """The 1st and 99th percentile of what is finite and above 0, metres."""
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
    """Depth of `vmin` to `vmax` metres as colours; what is missing is grey."""
    import matplotlib

    there = np.isfinite(depth) & (depth > 0) if valid is None else valid
    scaled = (np.where(there, depth, vmin) - vmin) / (vmax - vmin)
    rgb = matplotlib.colormaps[colours](np.clip(scaled, 0, 1), bytes=True)[..., :3]
    return np.where(there[..., None], rgb, np.array(MISSING, np.uint8))


def save_depth_png16(path: Path, depth: Float[np.ndarray, "h w"]) -> None:
    """Whole millimetres as 16-bit PNG; 0 = missing, 65535 = that far or farther."""
    scaled = np.round(np.asarray(depth, np.float64) * 1000)
    there = np.isfinite(scaled) & (scaled > 0)
    values = np.where(there, np.clip(scaled, 0, 65535), 0).astype(np.uint16)
    _save_png(path, values)


def save_color_png(path: Path, depth: Float[np.ndarray, "h w"]) -> None:
    """Depth as colours between its own 1st and 99th percentile."""
    _save_png(path, colorize(depth, *depth_range(depth)))


def _save_png(path: Path, values: np.ndarray) -> None:
    with writers.replacing(path) as file:
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
    """A coloured point cloud, binary PLY, of the pixels that have depth.

    Camera coordinates in metres: x right, y down, z along the optical axis;
    x = (column - cx) z / fx, y = (row - cy) z / fy, with 0-based pixel centres.
    """
    there = np.isfinite(depth) & (depth > 0)
    row, column = np.nonzero(there)
    z = depth[there].astype(np.float32)
    points = np.empty(
        len(z),
        [
            *((axis, "<f4") for axis in "xyz"),
            *((c, "u1") for c in ("red", "green", "blue")),
        ],
    )
    points["x"] = (column - cx) * z / fx
    points["y"] = (row - cy) * z / fy
    points["z"] = z
    for k, name in enumerate(("red", "green", "blue")):
        points[name] = rgb[there][:, k]
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        "comment metres; x right, y down, z forward",
        f"element vertex {len(z)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        "end_header\n",
    ]
    with writers.replacing(path) as file:
        file.write("\n".join(lines).encode() + points.tobytes())


def _figure(width: float, height: float) -> Any:
    """A figure without pyplot, hence without a display or global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    with writers.replacing(path) as file:
        file.write(held.getvalue())


def panel(
    path: Path,
    *,
    rgb: Sequence[UInt8[np.ndarray, "h w 3"]],
    target: Sequence[Float[np.ndarray, "h w"]],
    pred: Sequence[Float[np.ndarray, "h w"]],
    names: Sequence[str],
    title: str,
) -> None:
    """Rows of image, truth, prediction and error.

    Truth and predictions share one scale in metres; errors have their own. Missing
    truth is grey. Under each row: its RMSE and delta1 over the pixels with truth.
    """
    low, high = depth_range(*target, *pred)
    errors = [
        np.where(t > 0, np.abs(p - t), np.nan)
        for p, t in zip(pred, target, strict=True)
    ]
    worst = max(
        float(np.nanpercentile(np.concatenate([*map(np.ravel, errors)]), 99)), 0.1
    )
    count = len(rgb)
    figure = _figure(11, 2.35 * count + 0.8)
    axes = figure.subplots(count, 4, squeeze=False)
    heads = ("image", "truth", "prediction", "absolute error")
    for k in range(count):
        there = np.isfinite(errors[k])
        cells = (
            rgb[k],
            colorize(target[k], low, high),
            colorize(pred[k], low, high),
            colorize(errors[k], 0, worst, valid=there, colours=ERRORS),
        )
        for axis, cell, head in zip(axes[k], cells, heads, strict=True):
            axis.imshow(cell, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            if k == 0:
                axis.set_title(head, fontsize=10)
        axes[k][0].set_xlabel(names[k], fontsize=8)
        axes[k][2].set_xlabel(_caption(pred[k], target[k]), fontsize=8)
    _bar(figure, axes[:, :3], COLOURS, low, high, "depth [m]")
    _bar(figure, axes[:, 3:], ERRORS, 0, worst, "error [m]")
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _caption(pred: np.ndarray, target: np.ndarray) -> str:
    there = (target > 0) & (pred > 0)
    if not there.any():
        return "no truth"
    p, t = pred[there].astype(np.float64), target[there].astype(np.float64)
    delta1 = np.mean(np.maximum(p / t, t / p) < 1.25)
    return f"rmse {np.sqrt(np.mean((p - t) ** 2)):.2f} m, delta1 {delta1:.2f}"


def _bar(figure, axes, colours: str, low: float, high: float, label: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(low, high), cmap=colours)
    bar = figure.colorbar(
        scale, ax=axes, location="bottom", aspect=40, fraction=0.04, pad=0.02
    )
    bar.set_label(label, fontsize=9)


def curves(
    path: Path, records: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]
) -> None:
    """Training loss over steps, and RMSE and delta1 of the evaluations.

    Args:
      records: of metrics.jsonl.
      entries: the evaluations of results.json; those like the last one are drawn.
    """
    figure = _figure(10, 4)
    left, right = figure.subplots(1, 2)
    points = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
    if points:
        step, loss = (np.array(x, np.float64) for x in zip(*points, strict=True))
        left.plot(step, loss, color="0.75", linewidth=1, label="as logged")
        left.plot(step, _smooth(loss), color="C0", label="smoothed")
        if loss.min() > 0 and loss.max() / loss.min() > 10:
            left.set_yscale("log")
        left.legend(fontsize=8)
    left.set(xlabel="step", ylabel="training loss")
    like = [
        e
        for e in entries
        if (e["protocol"], e["averaging"])
        == (entries[-1]["protocol"], entries[-1]["averaging"])
    ]
    _evaluations(right, like)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    _save(figure, path)


def _evaluations(axis: Any, entries: Sequence[dict[str, Any]]) -> None:
    steps = [e["step"] for e in entries]
    other = axis.twinx()
    for where, name, colour in ((axis, "rmse", "C3"), (other, "delta1", "C2")):
        values = [e["metrics"][name] for e in entries]
        numbers = [np.nan if v is None else v for v in values]
        where.plot(steps, numbers, "o-", color=colour)
        where.set_ylabel(f"{name} [m]" if name == "rmse" else name, color=colour)
    axis.set_xlabel("step")
    if entries:
        last = entries[-1]
        axis.set_title(
            f"{last['data']}, {last['split']}: {last['protocol']}, {last['averaging']}",
            fontsize=9,
        )


def _smooth(values: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Running mean with forgetting, without a bias towards the start."""
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = share * total + value, share * weight + 1
        smoothed.append(total / weight)
    return np.array(smoothed)
