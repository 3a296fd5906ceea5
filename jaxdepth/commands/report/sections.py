"""What a report shows of runs: tables and pictures as plain values, without markup."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxdepth import plots
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands.finished_runs import Run
from jaxdepth.commands.run_predictions import Example, Trained, ranked
from jaxdepth.evaluation.metrics import METRICS

UNITS = {"rmse": "m", "sq_rel": "m"}
CLOUD_WIDTH = 144  # points across: 15,552 of a 4:3 frame, 41 KiB as text
FIELD_OF_VIEW = 60.0  # degrees across, where a store does not know its camera


@dataclasses.dataclass(frozen=True)
class Table:
    """Numbers, and what they were measured by.

    Attributes:
      caption: protocol, averaging, truth, data, split, size, images.
      columns: heads; the first one is of the rows' names.
      rows: a name, then a cell for each other head.
    """

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One evaluation image with its layers.

    Attributes:
      name: of the frame.
      rank: "worst 1 of 81", as pictures are ordered.
      numbers: its own metrics, in words.
      layers: "image", "truth", "prediction", "error" -> data URL.
      low, high: metres of the colours' ends; `error`: of the error's end.
      size: (width, height) of the layers.
      cloud: what the point cloud is made of, for JSON.
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
    """Pictures of a run.

    Attributes:
      found: from the worst to the best.
      about: which network and which protocol ordered them.
      camera: what is known of the camera.
      missing: why there are none.
    """

    found: Sequence[Picture] = ()
    about: str = ""
    camera: str = ""
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """What the page says of one run.

    Attributes:
      name, folder: what it is called, where it lies.
      summary: one line.
      tables: its numbers: protocols, baselines, parts of the frames, intervals.
      notes: what a reader must know of the numbers.
      about: heading -> rows of name and value: data, hardware, versions, flags.
      command: that trained it.
      pictures: of it.
    """

    name: str
    folder: str
    summary: str
    tables: list[Table]
    notes: list[str]
    about: dict[str, list[tuple[str, str]]]
    command: str
    pictures: Pictures


def short_names(runs: Sequence[Run]) -> list[Run]:
    """Runs called by the last part of their folder where that tells them apart."""
    ends = [run.name.rstrip("/").rsplit("/", 1)[-1] for run in runs]
    named = [run.name == run.workdir.name for run in runs]
    return [
        dataclasses.replace(run, name=end) if own and ends.count(end) == 1 else run
        for run, end, own in zip(runs, ends, named, strict=True)
    ]


def number(value: float | None, places: int = 3) -> str:
    """As tables show it; a dash for what is undefined."""
    return "–" if value is None else f"{value:.{places}f}"


def heads() -> tuple[str, ...]:
    """Metrics with their units, as heads of columns."""
    return tuple(f"{m} [{UNITS[m]}]" if m in UNITS else m for m in METRICS)


def cells(values: dict[str, float | None]) -> tuple[str, ...]:
    return tuple(number(values.get(m)) for m in METRICS)


def section(run: Run, *, pictures: Pictures) -> Section:
    """Everything about one run; what its folder lacks is said in `summary`."""
    data = run.saved.get("data", {})
    flags = run.saved.get("config", {})
    entries = run.evaluations
    summary = "It holds no evaluation yet."
    if entries:
        last = entries[-1]
        summary = f"After step {last['step']}: {summary_lib.summary(last)}."
    versions = run.results.get("versions", run.saved.get("versions", {}))
    devices = run.results.get("devices", run.saved.get("devices", {}))
    speed = run.results.get("images_per_s")
    hardware = [(k, str(v)) for k, v in devices.items()]
    if speed is not None:
        hardware.append(("training speed", f"{speed:.1f} images/s"))
    about = {
        "Data": [(k.replace("_", " "), str(v)) for k, v in data.items()],
        "Hardware": hardware,
        "Versions": [(k, str(v)) for k, v in versions.items()],
        "Configuration": [(f"--{k}", _flag(v)) for k, v in flags.items()],
    }
    return Section(
        run.name,
        run.workdir.name,
        summary,
        run_tables(run),
        sorted({note for e in entries for note in e.get("notes", ())}),
        {k: v for k, v in about.items() if v},
        run.results.get("command", run.saved.get("command", "")),
        pictures,
    )


def _flag(value: Any) -> str:
    return "none" if value is None else str(value)


def run_tables(run: Run) -> list[Table]:
    """Protocols, baselines, parts of the frames and intervals of the last step."""
    if not run.evaluations:
        return []
    last = run.evaluations[-1]
    now = [e for e in run.evaluations if e["step"] == last["step"]]
    rows = [
        (
            f"{e['protocol']}, {e['averaging']}, {e['truth']} truth",
            *cells(e["metrics"]),
        )
        for e in reversed(now)
    ]
    alike = f"{last['data']}, split {last['split']}, {last.get('images', '?')} images"
    found = [
        Table(
            f"Step {last['step']} under every protocol: {alike}, trained at "
            f"{last['size']}",
            ("protocol, averaging, truth", *heads()),
            rows,
        )
    ]
    if baselines := run.results.get("baselines"):
        rows = [("the network", *cells(last["metrics"]))]
        rows += [(n.replace("_", " "), *cells(m)) for n, m in baselines.items() if m]
        measured = summary_lib.measured_on(last)
        caption = f"Beside depth that does not look at the image: {measured}"
        found.append(Table(caption, ("", *heads()), rows))
    if parts := last.get("parts"):
        found.append(_parts(last, parts))
    if interval := last.get("interval"):
        found.append(_interval(last, interval))
    return found


def _parts(entry: dict[str, Any], parts: dict[str, Any]) -> Table:
    """Errors by distance and near edges of depth."""
    total = max(entry.get("counts", {}).get("pixels", 0), 1)
    rows = [
        (
            name,
            f"{100 * part['pixels'] / total:.1f} %",
            str(part["images"]),
            *cells(part["metrics"]),
        )
        for name, part in parts.items()
    ]
    caption = f"By distance, and near edges of depth: {summary_lib.measured_on(entry)}"
    return Table(caption, ("part", "share of pixels", "images", *heads()), rows)


def _interval(entry: dict[str, Any], interval: dict[str, Any]) -> Table:
    bounds = {m: interval["metrics"].get(m) or (None, None) for m in METRICS}
    rows = [
        (name, *(number(bounds[m][k]) for m in METRICS))
        for k, name in enumerate(("from", "to"))
    ]
    rows.insert(1, ("value", *cells(entry["metrics"])))
    caption = (
        f"{interval['level']:.0%} interval, bootstrap over {interval['units']} "
        f"{interval['unit']}s, {interval['resamples']} resamples: "
        f"{summary_lib.measured_on(entry)}"
    )
    return Table(caption, ("", *heads()), rows)


def alike(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs with an evaluation, by what their last one was measured by."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.evaluations:
            key = summary_lib.counted_by(run.evaluations[-1])
            groups.setdefault(key, []).append(run)
    return groups


def comparison(runs: Sequence[Run]) -> list[Table]:
    """A table of each group of runs that were measured alike, with their baselines."""
    found = []
    for caption, group in alike(runs).items():
        rows = [
            (
                run.name,
                str(run.flag("arch") or "?"),
                str(run.flag("loss") or "?"),
                str(run.evaluations[-1]["step"]),
                *cells(run.evaluations[-1]["metrics"]),
            )
            for run in group
        ]
        rows += [
            (name.replace("_", " "), "", "", "", *cells(values))
            for name, values in shared_baselines(group).items()
        ]
        columns = ("run", "network", "loss", "step", *heads())
        found.append(Table(caption, columns, rows))
    return found


def shared_baselines(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The baselines of runs that trained on the same frames; else none."""
    each = [run.results.get("baselines") for run in runs]
    return each[0] if each[0] and all(one == each[0] for one in each) else {}


def paper_tables(tables: dict[str, Any]) -> list[Table]:
    """The rows of tables.json beside the paper's numbers."""
    found = []
    for table in tables.get("tables", ()):
        rows = [_paper_row(row) for row in table["rows"]]
        rows += [
            (
                f"{b['name']}".replace("_", " "),
                "baseline",
                "",
                *_spread_cells(b),
                "",
                "",
            )
            for b in table.get("baselines", ())
        ]
        measured = table.get("measured_by") or "no row is done"
        caption = f"Table {table['table']}, {table.get('title', '')}: {measured}"
        columns = (
            "row", "status", "seeds", "delta1", "abs_rel", "rmse [m]",
            "paper: delta1", "paper: rmse [m]",
        )  # fmt: skip
        found.append(Table(caption, columns, rows))
    return found


def _paper_row(row: dict[str, Any]) -> tuple[str, ...]:
    paper = row.get("paper") or {}
    done = sum(bool(seed.get("evaluation")) for seed in row["seeds"])
    status = row.get("status") or ""
    if row.get("reason"):
        status += f": {row['reason']}"
    return (
        row["label"],
        status,
        f"{done} of {len(row['seeds'])}",
        *_spread_cells(row),
        number(paper.get("delta1")),
        number(paper.get("rmse")),
    )


def _spread_cells(row: dict[str, Any]) -> tuple[str, ...]:
    mean, spread = row.get("mean") or {}, row.get("spread") or {}
    found = []
    for metric in ("delta1", "abs_rel", "rmse"):
        text = number(mean.get(metric))
        if spread.get(metric) is not None:
            text += f" ± {number(spread[metric])}"
        found.append(text)
    return tuple(found)


def pictures(trained: Trained, *, count: int, metric: str, width: int) -> Pictures:
    """The worst and the best evaluation images of a run, half of each.

    Raises UserError where nothing can be scored.
    """
    scored = trained.score()
    order = ranked(scored.images, metric)
    if not order:
        return Pictures(missing=f"{metric} is undefined for every image")
    shown = min(count, len(order))
    worst, best = order[: shown - shown // 2], order[len(order) - shown // 2 :]
    places = [*worst, *best]
    ranks = [f"worst {k + 1} of {len(order)}" for k in range(len(worst))]
    ranks += [f"best {len(best) - k} of {len(order)}" for k in range(len(best))]
    found = [
        picture(example, rank, scored.images[place], metric, width=width)
        for example, rank, place in zip(
            trained.examples(places), ranks, places, strict=True
        )
    ]
    known = trained.data.evaluation.manifest.get("intrinsics") is not None
    camera = (
        "the camera of the data"
        if known
        else f"the data name no camera: {FIELD_OF_VIEW:.0f} degrees across are assumed"
    )
    about = (
        f"Checkpoint of step {scored.entry['step']}: "
        f"{summary_lib.summary(scored.entry)}. Images are ordered by their "
        f"own {metric} under that protocol; shown are predictions of whole frames."
    )
    if without := len(scored.images) - len(order):
        about += f" Of {without} more images {metric} is undefined."
    return Pictures(found, about, camera)


def picture(
    example: Example, rank: str, image: dict[str, Any], metric: str, *, width: int
) -> Picture:
    """One image as the page holds it, `width` pixels across."""
    rows, columns = example.target.shape
    size = min(width, columns), round(rows * min(width, columns) / columns)
    low, high = plots.depth_range(example.target, example.pred)
    there = (example.target > 0) & np.isfinite(example.pred)
    error = np.where(there, np.abs(example.pred - example.target), np.nan)
    worst = max(plots.depth_range(error)[1], 0.1)
    layers = {
        "image": example.rgb,
        "truth": plots.colorize(example.target, low, high),
        "prediction": plots.colorize(example.pred, low, high),
        "error": plots.colorize(error, 0, worst, valid=there, colours=plots.ERRORS),
    }
    shown = dict.fromkeys((metric, "rmse", "delta1", "abs_rel"))
    numbers = ", ".join(
        f"{m} {number(image[m])}{' ' + UNITS[m] if m in UNITS else ''}" for m in shown
    )
    urls = {name: data_url(layer, size) for name, layer in layers.items()}
    return Picture(
        example.name, rank, numbers, urls, low, high, worst, size, cloud(example)
    )


def data_url(rgb: np.ndarray, size: tuple[int, int]) -> str:
    """A picture of (width, height) as WebP in a URL."""
    image = Image.fromarray(rgb)
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    held = io.BytesIO()
    image.save(held, format="WEBP", quality=82, method=6)
    return f"data:image/webp;base64,{base64.b64encode(held.getvalue()).decode()}"


def cloud(example: Example) -> dict[str, Any]:
    """Points of an image: intrinsics and depth in millimetres at a small size.

    Depth is little-endian uint16, 0 = missing, as base64; every n-th pixel is taken,
    for between near and far there is nothing.
    """
    rows, columns = example.target.shape
    every = max(1, round(columns / CLOUD_WIDTH))
    fx, fy, cx, cy = example.camera or _assumed_camera(rows, columns)
    first = every // 2
    found: dict[str, Any] = {
        "name": example.name,
        "fx": fx / every,
        "fy": fy / every,
        "cx": (cx - first) / every,
        "cy": (cy - first) / every,
    }
    for name, depth in (("prediction", example.pred), ("truth", example.target)):
        part = depth[first::every, first::every].astype(np.float64)
        there = np.isfinite(part) & (part > 0)
        mm = np.where(there, np.clip(np.round(part * 1000), 0, 65535), 0).astype("<u2")
        found["height"], found["width"] = mm.shape
        found[name] = base64.b64encode(mm.tobytes()).decode()
    return found


def _assumed_camera(rows: int, columns: int) -> tuple[float, float, float, float]:
    focal = columns / 2 / np.tan(np.radians(FIELD_OF_VIEW / 2))
    return float(focal), float(focal), (columns - 1) / 2, (rows - 1) / 2
