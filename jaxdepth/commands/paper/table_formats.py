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
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from jaxdepth import plots
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands.paper import published
from jaxdepth.evaluation.metrics import METRICS
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.workdir import CONFIG, RESULTS, WorkDir, plain

DONE, ABSENT, FAILED, WAITING = "done", "absent", "failed", "waiting"
MARKDOWN = "tables.md"
# Keys of `flags` of a row.
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
    folder: str
    workdir: str
    flags: list[str]
    status: str = WAITING
    reason: str | None = None


def collect(
    names: Sequence[str],
    jobs: Sequence[Job],
    earlier: dict[str, Any],
    *,
    scale: str,
    command: str,
) -> dict[str, Any]:
    """The contents of tables.json, from the work directories of the runs.

    Args:
      names: names of the tables.
      jobs: all runs of these tables.
      earlier: tables.json of an earlier call, {} without one. Its other tables are
        kept if they have the same scale.
      scale, command: recorded as they are.
    """
    runs = {job.run: [_seed(j) for j in jobs if j.run == job.run] for job in jobs}
    earlier_tables = earlier["tables"] if earlier.get("scale") == scale else ()
    by_name = {table["table"]: table for table in earlier_tables}
    by_name |= {name: _table(name, runs) for name in names}
    tables = [by_name[name] for name in sorted(by_name)]
    return plain(
        {
            "scale": scale,
            "command": command,
            "seeds": _seeds(tables),
            "notes": list(published.NOTES),
            "tables": tables,
        }
    )


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
    metrics_of = [s["evaluation"]["metrics"] for s in seeds if s["evaluation"]]
    mean, spread = over_seeds(metrics_of)
    flags = next((s["flags"] for s in reversed(seeds) if s["flags"]), {})
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
        "seeds": [{k: v for k, v in s.items() if k != "flags"} for s in seeds],
        "mean": mean,
        "spread": spread,
    }


def _seed(job: Job) -> dict[str, Any]:
    """The entry of `seeds` for a run, finished or not, and the flags of its row."""
    workdir = WorkDir.open(job.workdir)
    saved = workdir.read_json(CONFIG) if workdir.used() else {}
    has_results = (workdir.local / RESULTS).exists()
    results = workdir.read_json(RESULTS) if has_results else {}
    entries = results.get("evaluations", [])
    config = saved.get("config", {})
    images = {"train_images": saved["data"]["train_images"]} if saved else {}
    return {
        "seed": job.seed,
        "workdir": job.folder,
        "status": job.status,
        "reason": job.reason,
        "flags": {k: config[k] for k in _SHOWN if k in config} | images,
        "evaluation": entries[-1] if entries and job.status == DONE else None,
        "curve": [
            {"step": e["step"], "metrics": e["metrics"], "loss": e.get("loss")}
            for e in plots.last_kind(entries)
        ],
        "baselines": results.get("baselines"),
        **{k: results.get(k) for k in ("images_per_s", "command")},
        **{k: saved.get(k) for k in ("versions", "devices")},
    }


Metrics = dict[str, float | None]


def over_seeds(seeds: Sequence[Metrics]) -> tuple[Metrics | None, Metrics | None]:
    """Mean and standard deviation (n - 1) of each metric over the seeds.

    A metric that is undefined for a seed is None. Without seeds both results are None;
    for a single seed the standard deviation is None.
    """
    values: dict[str, list[Any]] = {k: [m.get(k) for m in seeds] for k in METRICS}

    def over(statistic: Callable[[list[float]], float]) -> Metrics:
        return {k: None if None in x else statistic(x) for k, x in values.items()}

    mean = over(statistics.fmean) if seeds else None
    return mean, over(statistics.stdev) if len(seeds) > 1 else None


def _baselines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The baselines for each number of training images, over the seeds.

    Runs that train on the same images have equal baselines: the first run's are used.
    """
    by_images: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        per_seed = [s["baselines"] for s in row["seeds"] if s["baselines"]]
        if per_seed:
            by_images.setdefault(row["flags"]["train_images"], per_seed)
    baselines = []
    for images, per_seed in sorted(by_images.items()):
        for name in per_seed[0]:
            mean, spread = over_seeds([b[name] for b in per_seed])
            numbers = {"train_images": images, "mean": mean, "spread": spread}
            baselines.append({"name": name} | numbers)
    return baselines


def _curve(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The RMSE of each run over the steps, as means over its seeds."""
    curves: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for point in (p for s in row["seeds"] for p in s["curve"]):
            by_step = curves.setdefault(row["run"], {})
            values = by_step.setdefault(point["step"], [])
            if (rmse := point["metrics"]["rmse"]) is not None:
                values.append(rmse)
    means = {
        run: {step: statistics.fmean(x) for step, x in by_step.items() if x}
        for run, by_step in curves.items()
    }
    return [
        {"step": step, "rmse": {run: means[run].get(step) for run in means}}
        for step in sorted(set().union(*curves.values()))
    ]


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A table as text: caption, column headings, cells, and notes below it."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


COLUMNS = (
    "row", "delta1", "paper", "rmse", "paper", "abs_rel", "train images", "steps",
    "batch", "lr", "seeds",
)  # fmt: skip


def text_tables(contents: dict[str, Any]) -> dict[str, list[TextTable]]:
    """Each table of tables.json as text, followed by its curve if it has one."""
    return {
        table["table"]: [
            _text_table(table, contents["scale"]),
            *([_text_curve(table)] if table["curve"] else []),
        ]
        for table in contents["tables"]
    }


def check(contents: dict[str, Any], *, where: str) -> None:
    """Raise UserError if the contents of a tables.json are incomplete.

    Args:
      where: name of the file.
    """
    try:
        text_tables(contents)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where} is damaged ({error!r}): delete it; jaxdepth tables writes it "
            "again from the runs"
        ) from None


def _text_table(table: dict[str, Any], scale: str) -> TextTable:
    seeds = ", ".join(map(str, _seeds([table])))
    seeds = (
        f"seeds {seeds}: mean ± standard deviation" if "," in seeds else f"seed {seeds}"
    )
    caption = (
        f"{_name(table)} (scale {scale}): "
        f"{table['measured_by'] or 'nothing is measured yet'}; rmse in metres; {seeds}"
    )
    rows = [_cells(row) for row in table["rows"]]
    for base in table["baselines"]:
        delta1, rmse, abs_rel = (
            _number(base, k) for k in ("delta1", "rmse", "abs_rel")
        )
        cells = (base["name"], delta1, "", rmse, "", abs_rel)
        rows.append((*cells, str(base["train_images"]), *[""] * 4))
    notes = tuple(
        f"{row['label']}: {row['status']}, {row['reason']}"
        for row in table["rows"]
        if row["status"] != DONE
    )
    return TextTable(caption, COLUMNS, rows, notes)


def _text_curve(table: dict[str, Any]) -> TextTable:
    labels = {row["run"]: row["label"] for row in table["rows"]}
    rows = [
        (str(point["step"]), *map(_plain, point["rmse"].values()))
        for point in table["curve"]
    ]
    columns = ("step", *(labels[run] for run in table["curve"][0]["rmse"]))
    return TextTable(f"{_name(table)}: rmse in metres over the steps", columns, rows)


def _name(table: dict[str, Any]) -> str:
    return f"Table {table['table']}, {table['title']}"


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
        f"{done} of {len(row['seeds'])}",
    )


def _number(row: dict[str, Any], metric: str) -> str:
    mean = (row["mean"] or {}).get(metric)
    spread = (row["spread"] or {}).get(metric)
    return _plain(mean) + (f" ± {spread:.3f}" if spread is not None else "")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show(contents: dict[str, Any], names: Sequence[str]) -> None:
    """Print tables with their notes."""
    for name, tables in text_tables(contents).items():
        for table in tables if name in names else ():
            terminal.print_table(table.caption, table.columns, table.rows)
            _print(*table.notes, "")
    _print(*contents["notes"])


def _print(*lines: str) -> None:
    for line in lines:
        terminal.console().print(line, markup=False, soft_wrap=True)


def markdown(contents: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [f"`{contents['command']}`", *contents["notes"]]
    for table in itertools.chain(*text_tables(contents).values()):
        parts += [f"**{table.caption}**", _markdown(table), *table.notes]
    return "\n\n".join(parts) + "\n"


def _markdown(table: TextTable) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
