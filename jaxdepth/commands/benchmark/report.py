"""Results of a benchmark: tables on the terminal and JSON."""

import datetime
import functools
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdepth.commands.benchmark.timing import Samples
from jaxdepth.runtime import terminal
from jaxdepth.runtime.versions import installed

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "triton", "libtpu")
PACKAGES += ("jax-cuda12-plugin", "jax-cuda13-plugin")
PACKAGES += ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
# Variables that change what is measured, by their first letters.
VARIABLES = ("XLA_", "JAX_", "CUDA_", "NVIDIA_", "TORCH", "PYTORCH_", "OMP_")


class Report:
    """Results, collected while they are measured.

    Attributes:
      tables: in order, {title, unit, rows: [{what, median, min, max, values}]}.
      facts: name -> a value or a dict of values.
      on_change: called after each table and note, to save what was measured so far.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self.tables: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self.on_change = on_change

    def show(self, title: str, samples: Samples, unit: str) -> None:
        """Add a table and print it."""
        columns = ("what", "median", "min", "max")
        rows = self.keep(title, samples, unit)
        lines = [[row["what"], *(number(row[c]) for c in columns[1:])] for row in rows]
        terminal.print_table(f"{title} [{unit}]", columns, lines)

    def show_times(self, title: str, times: Samples, items: int, unit: str) -> None:
        """Add and print two tables: milliseconds per call, and `items` per second."""
        milliseconds = {name: [1e3 * t for t in v] for name, v in times.items()}
        self.show(title, milliseconds, "ms")
        self.show(title, {k: [items / t for t in v] for k, v in times.items()}, unit)

    def keep(self, title: str, samples: Samples, unit: str) -> list[dict[str, Any]]:
        """Add a table without printing it; returns its rows."""
        rows = [
            {
                "what": name,
                "median": float(np.median(values)),
                "min": float(min(values)),
                "max": float(max(values)),
                "values": [float(v) for v in values],
            }
            for name, values in samples.items()
        ]
        self.tables.append({"title": title, "unit": unit, "rows": rows})
        self.on_change()
        return rows

    def note(self, line: str) -> None:
        """Print a line and add it to the notes."""
        self.facts.setdefault("notes", []).append(line)
        print(line, flush=True)
        self.on_change()

    def add(self, title: str, values: dict[str, Any]) -> None:
        """Add single values under a title and print them."""
        self.facts[title] = values
        self.on_change()
        lines = [[name, number(value)] for name, value in values.items()]
        terminal.print_table(title, ("what", "value"), lines)

    def document(self, settings: dict[str, Any], stopped: str | None) -> dict[str, Any]:
        """All results, with command, date, hardware and versions, for JSON.

        Args:
          stopped: why the measurement is incomplete; None if it is complete.
        """
        document = {
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.datetime.now().astimezone().isoformat("T", "seconds"),
            **environment(),
            "settings": settings,
            "facts": self.facts,
            "tables": self.tables,
        }
        return document | ({"stopped": stopped} if stopped else {})


def number(value: Any) -> Any:
    """Format a float with four significant digits; return other values unchanged."""
    if not isinstance(value, float):
        return value
    # The format .4g would write 1234.5 as 1.234e+03.
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@functools.cache
def environment() -> dict[str, Any]:
    """Hardware, versions, and environment variables that change what is measured."""
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
        "versions": {"python": platform.python_version()}
        | installed(PACKAGES)
        | {"runtime": devices[0].client.platform_version.replace("\n", " ")},
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLES)
        },
    }


def device_name() -> str:
    """Name of the first device; for a CPU, its model."""
    device = jax.devices()[0]
    return cpu_name() if device.platform == "cpu" else device.device_kind


def cpu_name() -> str:
    """Model of the processor, or its architecture if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


def memory_bytes() -> int:
    """Physical memory of the host."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load_warning(seconds: float = 0.3) -> str | None:
    """A warning if other processes use more than a fifth of the CPU, else None."""
    start = _ticks()
    time.sleep(seconds)
    total, idle = (end - begin for begin, end in zip(start, _ticks(), strict=True))
    if not total or idle / total > 0.8:
        return None
    share = 1 - idle / total
    return f"note: other processes use {share:.0%} of the CPU: times are unreliable"


def _ticks() -> tuple[int, int]:
    """Total and idle ticks of all cores; zeros without /proc/stat."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0, 0
    ticks = [int(word) for word in words]
    return sum(ticks), ticks[3] + ticks[4]  # idle and iowait
