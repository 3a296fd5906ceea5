"""What a benchmark found: tables on the terminal, and the same as JSON and CSV."""

import csv
import datetime
import io
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdepth.commands.benchmark.timing import Found
from jaxdepth.runtime import atomic, terminal
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.versions import installed
from jaxdepth.workdir import plain

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "libtpu")
COLUMNS = ("table", "what", "unit", "median", "min", "max", "repeats")


class Report:
    """Grows while things are measured.

    Attributes:
      tables: {title, unit, rows: [{what, median, min, max, values}]} in their order.
      facts: single values by name, for JSON and the terminal.
    """

    def __init__(self) -> None:
        self.tables: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}

    def show(self, title: str, found: Found, unit: str) -> None:
        """Print medians and spreads, and keep them."""
        columns = ("what", "median", "min", "max")
        rows = self.keep(title, found, unit)
        lines = [[row["what"], *(number(row[c]) for c in columns[1:])] for row in rows]
        terminal.print_table(f"{title} [{unit}]", columns, lines)

    def keep(self, title: str, found: Found, unit: str) -> list[dict[str, Any]]:
        """Add a table without printing it; returns its rows."""
        rows = [
            {
                "what": name,
                "median": float(np.median(values)),
                "min": float(min(values)),
                "max": float(max(values)),
                "values": [float(v) for v in values],
            }
            for name, values in found.items()
        ]
        self.tables.append({"title": title, "unit": unit, "rows": rows})
        return rows

    def say(self, line: str) -> None:
        """Print a line, and keep it among the notes."""
        self.facts.setdefault("notes", []).append(line)
        print(line, flush=True)

    def add(self, title: str, values: dict[str, Any]) -> None:
        """Print single values, and keep them under the title."""
        self.facts[title] = values
        lines = [
            [name, number(v) if v is not None else v] for name, v in values.items()
        ]
        terminal.print_table(title, ("what", "value"), lines)

    def document(self, settings: dict[str, Any], stopped: str | None) -> dict[str, Any]:
        """Everything, with what it was measured on, when, and by which command.

        `stopped`: why the measurement did not come to its end.
        """
        return plain(
            {
                "command": shlex.join(["python", *sys.argv]),
                "date": datetime.datetime.now().astimezone().isoformat("T", "seconds"),
                **environment(),
                "settings": settings,
                "facts": self.facts,
                "tables": self.tables,
            }
            | ({"stopped": stopped} if stopped else {})
        )

    def csv(self) -> str:
        """One line for each row of each table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for table in self.tables:
            for row in table["rows"]:
                numbers = [f"{row[k]:.6g}" for k in ("median", "min", "max")]
                line = (table["title"], row["what"], table["unit"], *numbers)
                writer.writerow((*line, len(row["values"])))
        return text.getvalue()


def number(value: Any) -> Any:
    """Four significant digits; whole numbers, words and None as they are."""
    if not isinstance(value, float):
        return value
    # By format alone, 1234.5 would become 1.234e+03.
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def environment() -> dict[str, Any]:
    """Hardware and versions."""
    devices = jax.devices()
    return {
        "hardware": {
            "platform": devices[0].platform,
            "device": device_name(),
            "devices": len(devices),
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": memory_bytes() / 2**30,
        },
        "versions": {"python": platform.python_version()} | installed(PACKAGES),
    }


def device_name() -> str:
    """What the first device is called; a CPU by its model."""
    device = jax.devices()[0]
    return cpu_name() if device.platform == "cpu" else device.device_kind


def cpu_name() -> str:
    """The processor's model, where the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def busy(seconds: float = 0.3) -> str | None:
    """What to say where others use this machine: what they take falls on our times."""
    before = _ticks()
    time.sleep(seconds)
    total, idle = (after - b for after, b in zip(_ticks(), before, strict=True))
    if not total or idle / total > 0.8:
        return None
    share = 1 - idle / total
    return f"note: others use {share:.0%} of this machine's processor: times are off"


def _ticks() -> tuple[int, int]:
    """All ticks of all cores, and the idle ones; zeros where the system doesn't say."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0, 0
    ticks = [int(word) for word in words]
    return sum(ticks), ticks[3] + ticks[4]  # idle, and waiting for disks


def check_free(*paths: str | None) -> None:
    """UserError where a file is there already, or its folder is not.

    Asked before anything is measured, and again by `write` when it is.
    """
    for path in paths:
        if path is None:
            continue
        if Path(path).exists():
            raise UserError(f"{path} exists: name another file")
        if not Path(path).resolve().parent.is_dir():
            raise UserError(f"{path}: its folder does not exist")


def write(path: str, text: str) -> None:
    """A new file, whole or not at all."""
    check_free(path)
    try:
        with atomic.atomic_write(Path(path)) as file:
            file.write(text.encode())
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error.strerror}") from None


def dumps(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1) + "\n"
