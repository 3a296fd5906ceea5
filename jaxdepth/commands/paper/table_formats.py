"""The output of `jaxdepth tables`: tables.json, tables.md and tables on the terminal.

`tables.json` (undefined numbers are null):

    scale: "paper" | "small" | "smoke"
    command: str
    seeds: [int]              of all tables
    notes: [str]              notes on all tables
    tables: [
      table: "1" | "2" | "3" | "4"
      title: str
      measured_by: str | null           conditions; null if no row is done
      rows: [
        label: str                      as in the paper
        run: str                        key of published.RUNS, and name of its folder
        ours: bool                      true for a row that the paper does not have
        also_in: [str]                  "Table 2, scale-invariant": the same run
        paper: {delta1, abs_rel, rmse} | null
        status: "done" | "absent" | "failed" | "waiting"
        reason: str | null              reason why it is not done
        recipe: str
        flags: {flag: value}            resolved: train_images, steps, batch_size, ...
        seeds: [
          seed: int
          workdir: str                  relative to this file's folder
          status, reason                as in the row
          evaluation: {...} | null      last entry of its results.json: the final model
          curve: [{step, metrics, loss}]  same protocol and averaging, ascending steps;
                                        loss: validation loss or null
          baselines: {constant, constant_delta, mean_map} | null
          images_per_s, command, versions, devices
        ]
        mean: {metric: float | null} | null      over the seeds that are done
        spread: {metric: float | null} | null    standard deviation; null for one seed
      ]
      baselines: [{name, train_images, mean, spread}]
      curve: [{step, rmse: {run: float | null}}]   means over the seeds; only in table 4
    ]

A row is "done" if all its seeds are. Its mean is over the finished seeds in any case.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from jaxdepth import plots
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands.paper import published
from jaxdepth.evaluation.metrics import METRICS
from jaxdepth.runtime import terminal
from jaxdepth.workdir import CONFIG, RESULTS, WorkDir, plain

DONE, ABSENT, FAILED, WAITING = "done", "absent", "failed", "waiting"
MARKDOWN = "tables.md"
# Flags that `flags` of a row holds.
_SHOWN = (
    "arch", "loss", "unpool", "init", "layout", "train_images", "size", "steps",
    "batch_size", "lr", "schedule", "warmup_steps", "optimizer", "weight_decay",
    "augment", "precision",
)  # fmt: skip


@dataclasses.dataclass
class Job:
    """A training run with one seed.

    Attributes:
      run: key of `published.RUNS`.
      seed: seed of the run.
      folder: its work directory, relative to the folder of the tables.
      workdir: its work directory, as a path or URL that can be opened.
      flags: flags of `jaxdepth run`.
      status: "done", "absent", "failed" or "waiting".
      reason: reason why it is not done.
    """

    run: str
    seed: int
    folder: PurePosixPath
    workdir: str
    flags: list[str]
    status: str = WAITING
    reason: str | None = None


def collect(
    names: Sequence[str], jobs: Sequence[Job], *, scale: str, command: str
) -> dict[str, Any]:
    """The contents of tables.json, from the work directories of the runs.

    Args:
      names: names of the tables.
      jobs: all runs of these tables.
      scale, command: recorded as they are.
    """
    runs = {job.run: [_seed(j) for j in jobs if j.run == job.run] for job in jobs}
    return plain(
        {
            "scale": scale,
            "command": command,
            "seeds": sorted({job.seed for job in jobs}),
            "notes": list(published.NOTES),
            "tables": [_table(name, runs) for name in names],
        }
    )


def merge(contents: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """The contents of tables.json with the other tables of an earlier call.

    Tables of another scale are dropped.
    """
    if earlier.get("scale") != contents["scale"]:
        return contents
    by_name = {table["table"]: table for table in earlier["tables"]}
    by_name |= {table["table"]: table for table in contents["tables"]}
    tables = [by_name[name] for name in sorted(by_name)]
    return contents | {"seeds": _seeds(tables), "tables": tables}


def _seeds(tables: Sequence[dict[str, Any]]) -> list[int]:
    rows = (row for table in tables for row in table["rows"])
    return sorted({seed["seed"] for row in rows for seed in row["seeds"]})


def _table(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    table = published.TABLES[name]
    rows = [_row(name, row, runs[row.run]) for row in table.rows]
    done = [s["evaluation"] for row in rows for s in row["seeds"] if s["evaluation"]]
    conditions = {summary_lib.conditions_and_images(entry) for entry in done}
    return {
        "table": name,
        "title": table.title,
        "measured_by": "; ".join(sorted(conditions)) or None,
        "rows": rows,
        "baselines": _baselines(rows),
        "curve": _curve(rows) if name == "4" else [],
    }


def _row(
    table: str, row: published.Row, seeds: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    seeds = [dict(seed) for seed in seeds]
    flags: dict[str, Any] = {}
    for seed in seeds:
        flags = seed.pop("flags") or flags
    metrics_of = [s["evaluation"]["metrics"] for s in seeds if s["evaluation"]]
    mean, spread = over_seeds(metrics_of)
    first = next((s for s in seeds if s["status"] != DONE), seeds[0])
    return {
        "label": row.label,
        "run": row.run,
        "ours": row.paper is None,
        "also_in": published.also_in(row.run, table),
        "paper": row.paper,
        "status": first["status"],
        "reason": first["reason"],
        "recipe": published.RUNS[row.run].recipe,
        "flags": flags,
        "seeds": seeds,
        "mean": mean,
        "spread": spread,
    }


def _seed(job: Job) -> dict[str, Any]:
    """The entry of `seeds` for a run, finished or not."""
    workdir = WorkDir.open(job.workdir)
    saved = workdir.read_json(CONFIG) if workdir.used() else {}
    has_results = (workdir.local / RESULTS).exists()
    results = workdir.read_json(RESULTS) if has_results else {}
    entries = results.get("evaluations", [])
    config = saved.get("config", {})
    images = {"train_images": saved["data"]["train_images"]} if saved else {}
    return {
        "seed": job.seed,
        "workdir": str(job.folder),
        "status": job.status,
        "reason": job.reason,
        "flags": {k: config[k] for k in _SHOWN if k in config} | images,
        "evaluation": entries[-1] if entries and job.status == DONE else None,
        "curve": [
            {"step": e["step"], "metrics": e["metrics"], "loss": e.get("loss")}
            for e in (plots.last_kind(entries) if entries else ())
        ],
        "baselines": results.get("baselines"),
        **{k: results.get(k) for k in ("images_per_s", "command")},
        **{k: saved.get(k) for k in ("versions", "devices")},
    }


Metrics = dict[str, float | None]


def over_seeds(
    seeds: Sequence[Metrics],
) -> tuple[Metrics | None, Metrics | None]:
    """Mean and standard deviation (n - 1) of each metric over the seeds.

    A metric that is undefined for a seed is None. Without seeds both results are None;
    for a single seed the standard deviation is None.
    """
    if not seeds:
        return None, None
    values = {
        name: [x for m in seeds if (x := m.get(name)) is not None] for name in METRICS
    }
    defined = {k: x if len(x) == len(seeds) else [] for k, x in values.items()}
    mean = {k: statistics.fmean(x) if x else None for k, x in defined.items()}
    if len(seeds) == 1:
        return mean, None
    return mean, {k: statistics.stdev(x) if x else None for k, x in defined.items()}


def _baselines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The baselines for each number of training images, over the seeds.

    Runs that train on the same images have equal baselines: the first run's are used.
    """
    by_images: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        of_seeds = [s["baselines"] for s in row["seeds"] if s["baselines"]]
        if of_seeds:
            by_images.setdefault(row["flags"]["train_images"], of_seeds)
    groups = []
    for images, of_seeds in sorted(by_images.items()):
        for name in of_seeds[0]:
            mean, spread = over_seeds([b[name] for b in of_seeds])
            group = {"name": name, "train_images": images}
            groups.append(group | {"mean": mean, "spread": spread})
    return groups


def _curve(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The RMSE of each run over the steps, as means over its seeds."""
    by_step: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        for point in (p for s in row["seeds"] for p in s["curve"]):
            runs = by_step.setdefault(point["step"], {})
            if point["metrics"]["rmse"] is not None:
                runs.setdefault(row["run"], []).append(point["metrics"]["rmse"])
    shown = [row["run"] for row in rows if any(s["curve"] for s in row["seeds"])]
    return [
        {
            "step": step,
            "rmse": {
                k: statistics.fmean(runs[k]) if k in runs else None for k in shown
            },
        }
        for step, runs in sorted(by_step.items())
    ]


@dataclasses.dataclass(frozen=True)
class Text:
    """A table as text: title, columns, cells, and notes below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


COLUMNS = (
    "row", "delta1", "paper", "rmse", "paper", "abs_rel", "train images", "steps",
    "batch", "lr", "seeds",
)  # fmt: skip


def texts(contents: dict[str, Any], table: dict[str, Any]) -> list[Text]:
    """A table of tables.json as text, followed by its curve if it has one."""
    name = f"Table {table['table']}, {table['title']}"
    numbers = _seeds([table])
    seeds = f"seed {numbers[0]}"
    if len(numbers) > 1:
        seeds = f"seeds {', '.join(map(str, numbers))}: mean ± standard deviation"
    title = (
        f"{name} (scale {contents['scale']}): "
        f"{table['measured_by'] or 'nothing is measured yet'}; rmse in metres; {seeds}"
    )
    rows = [_cells(row) for row in table["rows"]]
    for base in table["baselines"]:
        delta1, rmse, abs_rel = (
            _number(base, k) for k in ("delta1", "rmse", "abs_rel")
        )
        cells = (base["name"], delta1, "", rmse, "", abs_rel)
        rows.append((*cells, str(base["train_images"]), *[""] * 4))
    notes = [
        f"{row['label']}: {row['status']}, {row['reason']}"
        for row in table["rows"]
        if row["status"] != DONE
    ]
    shown = [Text(title, COLUMNS, rows, tuple(notes))]
    if table["curve"]:
        labels = {row["run"]: row["label"] for row in table["rows"]}
        runs = list(table["curve"][0]["rmse"])
        lines = [
            (str(point["step"]), *(_plain(point["rmse"][run]) for run in runs))
            for point in table["curve"]
        ]
        columns = ("step", *(labels[run] for run in runs))
        shown.append(Text(f"{name}: rmse in metres over the steps", columns, lines))
    return shown


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a row of tables.json."""
    label = row["label"]
    if row["also_in"]:
        label += f" (= {'; '.join(row['also_in'])})"
    if row["status"] != DONE:
        label += f" [{row['status']}]"
    paper = row["paper"] or {}
    flags = row["flags"]
    done = sum(seed["status"] == DONE for seed in row["seeds"])
    return (
        label,
        _number(row, "delta1"),
        _plain(paper.get("delta1")),
        _number(row, "rmse"),
        _plain(paper.get("rmse")),
        _number(row, "abs_rel"),
        *(str(flags.get(k, "-")) for k in ("train_images", "steps", "batch_size")),
        f"{flags['lr']:g}" if "lr" in flags else "-",
        str(done),
    )


def _number(row: dict[str, Any], metric: str) -> str:
    mean = (row["mean"] or {}).get(metric)
    spread = (row["spread"] or {}).get(metric)
    return _plain(mean) + (f" ± {spread:.3f}" if spread is not None else "")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show(contents: dict[str, Any], names: Sequence[str]) -> None:
    """Print tables with their notes."""
    for table in (t for t in contents["tables"] if t["table"] in names):
        for text in texts(contents, table):
            terminal.print_table(text.title, text.columns, text.rows)
            _print(*text.notes, "")
    _print(*contents["notes"])


def _print(*lines: str) -> None:
    for line in lines:
        terminal.console().print(line, markup=False, soft_wrap=True)


def markdown(contents: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [f"`{contents['command']}`", *contents["notes"]]
    for table in contents["tables"]:
        for text in texts(contents, table):
            parts += [f"**{text.title}**", _markdown(text), *text.notes]
    return "\n\n".join(parts) + "\n"


def _markdown(text: Text) -> str:
    lines = [text.columns, ["---"] * len(text.columns), *text.rows]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
