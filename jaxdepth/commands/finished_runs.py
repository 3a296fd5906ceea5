"""Finished runs, and tables of runs, as figures and reports read them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxdepth import config as config_lib
from jaxdepth.config import Config
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import metrics_writer
from jaxdepth.workdir import CONFIG, RESULTS, TABLES, WorkDir

# What every evaluation has: without it a number says nothing.
_NEEDED = {
    "step", "protocol", "averaging", "truth", "data", "split", "size", "metrics",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """What a work directory holds.

    Attributes:
      name: what the run is called beside others.
      workdir: where it lies.
      saved: config.json; empty where there is none.
      results: results.json; empty where there is none.
      records: of metrics.jsonl.
    """

    name: str
    workdir: WorkDir
    saved: dict[str, Any]
    results: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def config(self) -> Config:
        """What it was trained with. UserError where that is not known."""
        if "config" not in self.saved:
            raise UserError(f"{self.workdir.name} has no {CONFIG}")
        return config_lib.from_json(self.saved["config"])

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return self.results.get("evaluations", [])

    def flag(self, name: str) -> Any:
        """A flag of its configuration, None where that is not known."""
        return self.saved.get("config", {}).get(name)


@dataclasses.dataclass(frozen=True)
class Found:
    """Work directories, and the tables that some of them are rows of.

    Attributes:
      runs: each once, in the order given; of a table's row its first finished seed.
      tables: name of the folder -> what its tables.json holds.
    """

    runs: list[Run]
    tables: dict[str, dict[str, Any]]


def find(names: Sequence[str]) -> Found:
    """Runs by work directories, and by directories of tables.

    UserError where a folder is neither, or one of its files is damaged.
    """
    runs: list[Run] = []
    tables: dict[str, dict[str, Any]] = {}
    for name in names:
        here = WorkDir.open(name)
        path = here.local / TABLES
        if path.exists():
            tables[name] = here.read_json(TABLES)
            runs += _rows(name, tables[name])
        else:
            runs.append(read(name))
    return Found(list({run.workdir.name: run for run in runs}.values()), tables)


def read(name: str, *, called: str | None = None) -> Run:
    """One run. UserError where the folder is not of one, or a file is damaged."""
    here = WorkDir.open(name)
    there = {file for file in (CONFIG, RESULTS) if (here.local / file).exists()}
    if not there:
        raise UserError(
            f"{name} is not the work directory of a run, nor of tables: it has no "
            f"{CONFIG}, {RESULTS} or {TABLES}"
        )
    parts = {f: here.read_json(f) if f in there else {} for f in (CONFIG, RESULTS)}
    for entry in parts[RESULTS].get("evaluations", ()):
        lacks = _NEEDED - {k for k, v in entry.items() if v is not None}
        if lacks or not isinstance(entry["metrics"], dict):
            raise UserError(
                f"{name}/{RESULTS} holds an evaluation without "
                f"{', '.join(sorted(lacks or {'metrics'}))}: it was written by another "
                "version, or is damaged"
            )
    return Run(
        called or name,
        here,
        parts[CONFIG],
        parts[RESULTS],
        metrics_writer.read_metrics(here.local),
    )


def _rows(name: str, tables: dict[str, Any]) -> list[Run]:
    """The first finished seed of each run that these tables show."""
    labels: dict[str, str] = {}
    try:
        for table in tables.get("tables", ()):
            for row in table["rows"]:
                done = [s for s in row["seeds"] if s.get("evaluation")]
                if done:
                    folder = f"{name.rstrip('/')}/{done[0]['workdir']}"
                    label = f"{row['label']}, table {table['table']}"
                    labels.setdefault(folder, label)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}/{TABLES} is damaged: {error!r}") from None
    return [read(folder, called=label) for folder, label in labels.items()]
