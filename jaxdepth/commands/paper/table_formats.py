"""What `jaxdepth tables` leaves: tables.json, tables.md, and tables on the terminal.

`tables.json` (numbers that are undefined are null):

    scale: "paper" | "small" | "smoke"
    command: str
    seeds: [int]              of all tables
    notes: [str]              what a reader must know of all tables
    tables: [
      table: "1" | "2" | "3" | "4"
      title: str
      measured_by: str | null           null where no row is done
      rows: [
        label: str                      as the paper has it
        run: str                        key of paper.RUNS, and its folder's name
        ours: bool                      the paper has no such row
        also_in: [str]                  "Table 2, scale-invariant": the same run
        paper: {delta1, abs_rel, rmse} | null
        status: "done" | "absent" | "failed" | "waiting"
        reason: str | null              why it is absent, failed or unfinished
        recipe: str
        flags: {flag: value}            settled: train_images, steps, batch_size, ...
        seeds: [
          seed: int
          workdir: str                  relative to this file's folder
          status, reason                as above
          evaluation: {...} | null      last entry of its results.json: the final model
          curve: [{step, metrics, loss}]  that protocol and averaging; ascending steps;
                                        loss: the training loss on those images, or null
          baselines: {constant, constant_delta, mean_map} | null
          images_per_s, command, versions, devices
        ]
        mean: {metric: float | null} | null      over the seeds that are done
        spread: {metric: float | null} | null    standard deviation; null for one seed
      ]
      baselines: [{name, train_images, mean, spread}]
      curve: [{step, rmse: {run: float | null}}]   means over the seeds; [] but in 4
    ]

A row is "done" where all its seeds are; its mean is over those that are, in any case.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from jaxdepth import plots
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands.paper import published
from jaxdepth.evaluation import metrics
from jaxdepth.runtime import terminal
from jaxdepth.workdir import CONFIG, RESULTS, WorkDir, plain

DONE, ABSENT, FAILED, WAITING = "done", "absent", "failed", "waiting"
MARKDOWN = "tables.md"
# Flags of a run that a table of runs should show.
_SHOWN = (
    "arch", "loss", "unpool", "init", "layout", "train_images", "size", "steps",
    "batch_size", "lr", "schedule", "warmup_steps", "optimizer", "weight_decay",
    "augment", "precision",
)  # fmt: skip


@dataclasses.dataclass
class Job:
    """One run of one seed.

    Attributes:
      run: key of `paper.RUNS`.
      folder: its work directory, below the tables' own.
      workdir: the same as a name that opens from here.
      flags: of jaxdepth run.
      status: "done", "absent", "failed" or "waiting".
      reason: why it is not done.
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
    """What tables.json holds, of these tables, read from the work directories."""
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


def with_earlier(found: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """What tables.json holds, and what an earlier call of that scale left beside it."""
    if earlier.get("scale") != found["scale"]:
        return found
    tables = {table["table"]: table for table in earlier["tables"]}
    tables |= {table["table"]: table for table in found["tables"]}
    both = [tables[name] for name in sorted(tables)]
    return found | {"seeds": _seeds(both), "tables": both}


def _seeds(tables: Sequence[dict[str, Any]]) -> list[int]:
    rows = (row for table in tables for row in table["rows"])
    return sorted({seed["seed"] for row in rows for seed in row["seeds"]})


def _table(name: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    table = published.TABLES[name]
    rows = [_row(name, row, runs[row.run]) for row in table.rows]
    done = [s["evaluation"] for row in rows for s in row["seeds"] if s["evaluation"]]
    said = sorted({summary_lib.measured_on(entry) for entry in done})
    return {
        "table": name,
        "title": table.title,
        "measured_by": "; ".join(said) or None,
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
    found = [s["evaluation"]["metrics"] for s in seeds if s["evaluation"]]
    mean, spread = over_seeds(found)
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
    """One run as far as it got."""
    here = WorkDir.open(job.workdir)
    saved = here.read_json(CONFIG) if here.used() else {}
    there = (here.local / RESULTS).exists()
    results = here.read_json(RESULTS) if there else {}
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
    found: Sequence[Metrics],
) -> tuple[Metrics | None, Metrics | None]:
    """Mean and standard deviation (n - 1) of each metric.

    A metric that one seed left undefined is None. Without seeds both are None; of one
    alone there is no deviation.
    """
    if not found:
        return None, None
    columns = {
        name: [x for m in found if (x := m.get(name)) is not None]
        for name in metrics.METRICS
    }
    whole = {k: x if len(x) == len(found) else [] for k, x in columns.items()}
    mean = {k: statistics.fmean(x) if x else None for k, x in whole.items()}
    if len(found) == 1:
        return mean, None
    return mean, {k: statistics.stdev(x) if x else None for k, x in whole.items()}


def _baselines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The baselines of each number of training images, over the seeds.

    Runs that train on the same images have the same ones: the first run tells.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        known = [s["baselines"] for s in row["seeds"] if s["baselines"]]
        if known:
            found.setdefault(row["flags"]["train_images"], known)
    groups = []
    for images, known in sorted(found.items()):
        for name in known[0]:
            mean, spread = over_seeds([b[name] for b in known])
            group = {"name": name, "train_images": images}
            groups.append(group | {"mean": mean, "spread": spread})
    return groups


def _curve(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """RMSE over steps, where a row has it, as means over its seeds."""
    points: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        for point in (p for s in row["seeds"] for p in s["curve"]):
            at = points.setdefault(point["step"], {})
            if point["metrics"]["rmse"] is not None:
                at.setdefault(row["run"], []).append(point["metrics"]["rmse"])
    shown = [row["run"] for row in rows if any(s["curve"] for s in row["seeds"])]
    return [
        {
            "step": step,
            "rmse": {
                run: statistics.fmean(at[run]) if run in at else None for run in shown
            },
        }
        for step, at in sorted(points.items())
    ]


@dataclasses.dataclass(frozen=True)
class Text:
    """A table as text: what stands above it, its columns, cells, and lines below."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


COLUMNS = (
    "row", "delta1", "paper", "rmse", "paper", "abs_rel", "train images", "steps",
    "batch", "lr", "seeds",
)  # fmt: skip


def texts(found: dict[str, Any], table: dict[str, Any]) -> list[Text]:
    """One of the tables of tables.json, and the course of its rows where it has one."""
    name = f"Table {table['table']}, {table['title']}"
    of = _seeds([table])
    seeds = f"seed {of[0]}"
    if len(of) > 1:
        numbers = ", ".join(map(str, of))
        seeds = f"seeds {numbers}: mean ± standard deviation"
    title = (
        f"{name} (scale {found['scale']}): "
        f"{table['measured_by'] or 'nothing is measured yet'}; rmse in metres; {seeds}"
    )
    rows = [_cells(row) for row in table["rows"]]
    for base in table["baselines"]:
        values = [_number(base, k) for k in ("delta1", "rmse", "abs_rel")]
        cells = (base["name"], values[0], "", values[1], "", values[2])
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
    label = row["label"]
    if row["also_in"]:
        label += f" (= {'; '.join(row['also_in'])})"
    if row["status"] != DONE:
        label += f" [{row['status']}]"
    known = row["paper"] or {}
    flags = row["flags"]
    done = sum(seed["status"] == DONE for seed in row["seeds"])
    return (
        label,
        _number(row, "delta1"),
        _plain(known.get("delta1")),
        _number(row, "rmse"),
        _plain(known.get("rmse")),
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


def show(found: dict[str, Any], names: Sequence[str]) -> None:
    """These tables on the terminal, with what must be known beside them."""
    for table in (t for t in found["tables"] if t["table"] in names):
        for text in texts(found, table):
            terminal.print_table(text.title, text.columns, text.rows)
            _say(*text.notes, "")
    _say(*found["notes"])


def _say(*lines: str) -> None:
    for line in lines:
        terminal.console().print(line, markup=False, soft_wrap=True)


def markdown(found: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [f"`{found['command']}`", *found["notes"]]
    for table in found["tables"]:
        for text in texts(found, table):
            parts += [f"**{text.title}**", _markdown(text), *text.notes]
    return "\n\n".join(parts) + "\n"


def _markdown(text: Text) -> str:
    lines = [text.columns, ["---"] * len(text.columns), *text.rows]
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
