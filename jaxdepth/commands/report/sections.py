"""Contents of a report: tables and pictures of runs as values, without markup."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxdepth import plots
from jaxdepth.camera import Camera, centred
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands.finished_runs import Example, Run, TrainedRun, worst_first
from jaxdepth.commands.paper.table_formats import TextTable
from jaxdepth.data import units
from jaxdepth.evaluation import describe
from jaxdepth.evaluation.metrics import METRICS

CLOUD_WIDTH = 144  # points per row: 15,552 for a 4:3 frame, 41 KiB as text
FIELD_OF_VIEW = 60.0  # horizontal, degrees; assumed if the store has no intrinsics


@dataclasses.dataclass(frozen=True)
class Picture:
    """One evaluation image with its layers.

    Attributes:
      name: name of the frame.
      rank: rank of the image, such as "worst 1 of 81".
      numbers: metrics of the image, as text.
      layers: data URLs of "image", "truth", "prediction" and "error".
      low, high: range of the depth colours, metres.
      error: upper end of the error colours, metres.
      size: (width, height) of the layers.
      cloud: data of the point cloud, see `cloud`.
    """

    name: str
    rank: str
    numbers: str
    layers: dict[str, str]
    low: float
    high: float
    error: float
    size: tuple[int, int]
    cloud: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures of a run.

    Attributes:
      pictures: pictures from the worst to the best.
      about: checkpoint and protocol that rank them, as text.
      camera: source of the camera, as text.
      missing: reason why there are none, or "".
    """

    pictures: Sequence[Picture] = ()
    about: str = ""
    camera: str = ""
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """The section of one run.

    Attributes:
      name, folder: name and work directory of the run.
      summary: metrics in one line.
      tables: tables by protocol, of baselines, by distance and edges, of intervals.
      notes: notes on the metrics.
      about: values by heading and name: data, hardware, versions, flags.
      command: command that trained the run.
      pictures: pictures of the run.
    """

    name: str
    folder: str
    summary: str
    tables: list[TextTable]
    notes: list[str]
    about: dict[str, dict[str, Any]]
    command: str
    pictures: Pictures


def short_names(runs: Sequence[Run]) -> list[Run]:
    """Name runs by the last part of their folder, unless two runs share it.

    Rows of tables keep their names.
    """
    ends = [run.name.rstrip("/").rsplit("/", 1)[-1] for run in runs]
    return [
        dataclasses.replace(run, name=end)
        if run.name == run.workdir.name and ends.count(end) == 1
        else run
        for run, end in zip(runs, ends, strict=True)
    ]


def number(value: float | None) -> str:
    """Format a number for a table; a dash if it is undefined."""
    return "–" if value is None else f"{value:.3f}"


def with_unit(metric: str) -> str:
    """The name of a metric with its unit: "rmse [m]"."""
    unit = METRICS[metric].unit
    return f"{metric} [{unit}]" if unit else metric


def _metrics_table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[tuple[tuple[str, ...], dict[str, float | None]]],
) -> TextTable:
    """A table of all metrics.

    Args:
      columns: headings of the columns before the metrics.
      rows: the cells of these columns, and the metrics.
    """
    cells = [
        (*text, *(number(values.get(m)) for m in METRICS)) for text, values in rows
    ]
    return TextTable(caption, (*columns, *map(with_unit, METRICS)), cells)


def section(run: Run, *, pictures: Pictures) -> Section:
    """The section of a run; parts are empty if the folder lacks their files."""
    entries = run.evaluations
    summary = "No evaluation yet."
    if entries:
        last = entries[-1]
        summary = f"After step {last['step']}: {describe.summary(last)}."
    recorded = run.saved | run.results
    hardware = dict(recorded.get("devices", {}))
    if (speed := run.results.get("images_per_s")) is not None:
        hardware["training speed"] = f"{speed:.1f} images/s"
    config = run.saved.get("config", {})
    data = run.saved.get("data", {})
    about = {
        "Data": {k.replace("_", " "): v for k, v in data.items()},
        "Hardware": hardware,
        "Versions": recorded.get("versions", {}),
        "Configuration": {
            f"--{k}": "none" if v is None else v for k, v in config.items()
        },
    }
    return Section(
        run.name,
        run.workdir.name,
        summary,
        run_tables(run),
        sorted({note for e in entries for note in e.get("notes", ())}),
        {heading: values for heading, values in about.items() if values},
        recorded.get("command", ""),
        pictures,
    )


def run_tables(run: Run) -> list[TextTable]:
    """Tables of the last step: protocols, baselines, error breakdown, intervals."""
    if not run.evaluations:
        return []
    last = run.evaluations[-1]
    data = f"{last['data']}, split {last['split']}, {last.get('images', '?')} images"
    step = f"Step {last['step']} under every protocol"
    caption = f"{step}: {data}, trained at {last['size']}"
    rows = [
        ((f"{e['protocol']}, {e['averaging']}, {e['truth']} truth",), e["metrics"])
        for e in reversed(run.evaluations)
        if e["step"] == last["step"]
    ]
    tables = [_metrics_table(caption, ["protocol, averaging, truth"], rows)]
    if baselines := run.results.get("baselines"):
        conditions = summary_lib.conditions_and_images(last)
        caption = f"Baselines, which do not depend on the image: {conditions}"
        rows = [(("the network",), last["metrics"])]
        rows += [
            ((k.replace("_", " "),), values)
            for k, values in baselines.items()
            if values
        ]
        tables.append(_metrics_table(caption, [""], rows))
    if parts := last.get("parts"):
        tables.append(_parts(last, parts))
    if interval := last.get("interval"):
        tables.append(_interval(last, interval))
    return tables


def _parts(entry: dict[str, Any], parts: dict[str, Any]) -> TextTable:
    """The error breakdown by distance and by depth edges."""
    total = max(entry.get("counts", {}).get("pixels", 0), 1)
    rows = [
        (
            (name, f"{100 * part['pixels'] / total:.1f} %", str(part["images"])),
            part["metrics"],
        )
        for name, part in parts.items()
    ]
    conditions = summary_lib.conditions_and_images(entry)
    caption = f"By distance, and near depth edges: {conditions}"
    return _metrics_table(caption, ("part", "share of pixels", "images"), rows)


def _interval(entry: dict[str, Any], interval: dict[str, Any]) -> TextTable:
    """The bootstrap intervals."""
    low, high = (
        {name: bounds and bounds[k] for name, bounds in interval["metrics"].items()}
        for k in (0, 1)
    )
    rows = [(("from",), low), (("value",), entry["metrics"]), (("to",), high)]
    caption = (
        f"{interval['level']:.0%} interval, bootstrap over {interval['units']} "
        f"{interval['unit']}s, {interval['resamples']} resamples: "
        f"{summary_lib.conditions_and_images(entry)}"
    )
    return _metrics_table(caption, [""], rows)


def comparable(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs with an evaluation, grouped by the conditions of the last one."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.evaluations:
            key = summary_lib.comparison_key(run.evaluations[-1])
            groups.setdefault(key, []).append(run)
    return groups


def comparison(runs: Sequence[Run]) -> list[TextTable]:
    """A table for each group of comparable runs, with their baselines."""
    tables = []
    for caption, group in comparable(runs).items():
        rows = []
        for run in group:
            flags = (str(run.flag(name) or "?") for name in ("arch", "loss"))
            last = run.evaluations[-1]
            rows.append(((run.name, *flags, str(last["step"])), last["metrics"]))
        for name, values in shared_baselines(group).items():
            rows.append(((name.replace("_", " "), "", "", ""), values))
        columns = ("run", "network", "loss", "step")
        tables.append(_metrics_table(caption, columns, rows))
    return tables


def shared_baselines(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The baselines of the runs if they are equal, else {}."""
    first, *others = [run.results.get("baselines") for run in runs]
    return first if first and all(other == first for other in others) else {}


def pictures(trained: TrainedRun, *, count: int, metric: str, width: int) -> Pictures:
    """Pictures of the worst and the best evaluation images of a run, half of each.

    Raises: UserError if the images can't be scored.
    """
    scores = trained.score()
    order = worst_first(scores.images, metric)
    if not order:
        return Pictures(missing=f"{metric} is undefined for every image")
    shown = min(count, len(order))
    worst, best = order[: shown - shown // 2], order[len(order) - shown // 2 :]
    indices = worst + best
    ranks = [f"worst {k + 1} of {len(order)}" for k in range(len(worst))]
    ranks += [f"best {len(best) - k} of {len(order)}" for k in range(len(best))]
    examples = trained.examples(indices)
    drawn = [
        picture(example, rank, scores.images[index], metric, width=width)
        for example, rank, index in zip(examples, ranks, indices, strict=True)
    ]
    camera = "intrinsics of the data"
    if any(example.camera is None for example in examples):
        camera = (
            "some of these images have no intrinsics; for them, a horizontal field of "
            f"view of {FIELD_OF_VIEW:.0f} degrees is assumed"
        )
    about = (
        f"Checkpoint of step {scores.entry['step']}: "
        f"{describe.summary(scores.entry)}. Images are ranked by their {metric} "
        "under that protocol. Predictions are for whole frames."
    )
    if undefined := len(scores.images) - len(order):
        about += f" {metric} is undefined for {undefined} more images."
    return Pictures(drawn, about, camera)


def picture(
    example: Example, rank: str, image: dict[str, Any], metric: str, *, width: int
) -> Picture:
    """Draw the layers of an image.

    Args:
      rank: rank of the image, as text.
      image: metrics of the image.
      metric: metric to name first.
      width: largest width of the layers, pixels.
    """
    rows, columns = example.target.shape
    size = min(width, columns), round(rows * min(width, columns) / columns)
    low, high = plots.depth_range(example.target, example.pred)
    valid = (example.target > 0) & np.isfinite(example.pred)
    error = np.where(valid, np.abs(example.pred - example.target), np.nan)
    error_high = max(plots.depth_range(error)[1], 0.1)
    layers = {
        "image": example.rgb,
        "truth": plots.colorize(example.target, low, high),
        "prediction": plots.colorize(example.pred, low, high),
        "error": plots.colorize(
            error, 0, error_high, valid=valid, colours=plots.ERRORS
        ),
    }
    shown = dict.fromkeys((metric, "rmse", "delta1", "abs_rel"))
    numbers = ", ".join(
        f"{m} {number(image[m])} {METRICS[m].unit}".rstrip() for m in shown
    )
    urls = {name: data_url(layer, size) for name, layer in layers.items()}
    return Picture(
        example.name, rank, numbers, urls, low, high, error_high, size, cloud(example)
    )


def data_url(rgb: np.ndarray, size: tuple[int, int]) -> str:
    """A data URL of an image as WebP, resized to (width, height)."""
    image = Image.fromarray(rgb)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=82, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def cloud(example: Example) -> dict[str, Any]:
    """Data of an image's point cloud: intrinsics and depth at a small size.

    Depth is little-endian uint16 as base64, `unit` values per metre, 0 = missing. Every
    n-th pixel is taken: averaging would make points between near and far surfaces.
    """
    rows, columns = example.target.shape
    stride = max(1, round(columns / CLOUD_WIDTH))
    first = stride // 2
    fx, fy, cx, cy = example.camera or _assumed_camera((rows, columns))
    data: dict[str, Any] = {
        "fx": fx / stride,
        "fy": fy / stride,
        "cx": (cx - first) / stride,
        "cy": (cy - first) / stride,
    }
    maps = {}
    for name, depth in (("prediction", example.pred), ("truth", example.target)):
        metres = depth[first::stride, first::stride].astype(np.float64)
        maps[name] = np.where(np.isfinite(metres) & (metres > 0), metres, 0)
    data["unit"] = units.depth_unit(max(metres.max() for metres in maps.values()))
    for name, metres in maps.items():
        codes = np.clip(np.round(metres * data["unit"]), 0, units.FARTHEST_CODE)
        data["height"], data["width"] = codes.shape
        data[name] = base64.b64encode(codes.astype("<u2").tobytes()).decode()
    return data


def _assumed_camera(size: tuple[int, int]) -> Camera:
    """The camera of frames of (height, width) for the assumed field of view."""
    focal = float(size[1] / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2)))
    return centred(focal, focal, size)
