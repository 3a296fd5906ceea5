"""Measure the speed of training, inference, data and operators on this machine.

    jaxdepth benchmark train --arch=upproj --batch_size=best
    jaxdepth benchmark infer --peer=torch --json=infer.json
    jaxdepth benchmark upconv --unpool=zero --peer=torch
    jaxdepth benchmark data --data=STORE
    jaxdepth benchmark cpu --out=FOLDER
    jaxdepth benchmark gpu --out=FOLDER

Prints medians and spreads. What is compared is timed in alternating turns.
"""

import dataclasses
import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxdepth.commands import cli
from jaxdepth.commands.benchmark import report as report_lib
from jaxdepth.commands.benchmark.report import Report
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import jax_setup, output_files
from jaxdepth.runtime.errors import UserError, nearest

PROG = "jaxdepth benchmark"


class Command(NamedTuple):
    """(module, name) of the settings and of the function, imported on use."""

    settings: tuple[str, str]
    run: tuple[str, str]


COMMANDS = {
    "train": Command(("settings", "TrainSettings"), ("networks", "run")),
    "infer": Command(("settings", "InferSettings"), ("networks", "run")),
    "upconv": Command(("upconv", "UpconvSettings"), ("upconv", "run")),
    "data": Command(("data", "DataSettings"), ("data", "run")),
    "cpu": Command(("plan", "CpuSettings"), ("plan", "run")),
    "gpu": Command(("plan", "GpuSettings"), ("plan", "run")),
}


def load(entry: tuple[str, str]) -> Any:
    """Import an entry of a `Command`."""
    module = importlib.import_module(f"jaxdepth.commands.benchmark.{entry[0]}")
    return getattr(module, entry[1])


def command(argv: Sequence[str]) -> int:
    """Run the benchmark that the first argument names; returns the exit code."""
    if flags_lib.asks_help(argv[:1]):
        print(f"{__doc__}\n{PROG} {'|'.join(COMMANDS)} --help lists the flags.")
        return cli.OK
    if not argv or argv[0] not in COMMANDS:
        hint = nearest(argv[0], COMMANDS) if argv else ""
        raise UserError(f"name a benchmark: {PROG} {'|'.join(COMMANDS)}{hint}")
    # Before JAX starts: allocate GPU memory on demand, because PyTorch needs some too,
    # up to 92 %.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".92")
    jax_setup.retain_host_memory()  # as training does
    entry = COMMANDS[argv[0]]
    settings = flags_lib.parse(load(entry.settings), argv[1:], prog=f"{PROG} {argv[0]}")
    measure(settings, load(entry.run))
    return cli.OK


def measure(settings: Any, run: Callable[[Any, Report], None]) -> Report:
    """Run a benchmark and write its report to the files of the settings.

    An incomplete report is written as well if the benchmark raises an error.
    """
    paths = {name: getattr(settings, name, None) for name in ("json", "csv")}
    for flag, path in paths.items():
        if path is not None:
            output_files.check_new_file(path, flag=flag)
    report, stopped = Report(), None
    if (warning := report_lib.load_warning()) is not None:
        report.say(warning)
    try:
        run(settings, report)
    except BaseException as error:
        stopped = f"{type(error).__name__}: {error}"
        raise
    finally:
        if report.tables or not stopped:
            if (path := paths["json"]) is not None:
                document = report.document(dataclasses.asdict(settings), stopped)
                output_files.write_text(path, report_lib.dumps(document))
            if (path := paths["csv"]) is not None:
                output_files.write_text(path, report.csv())
    return report
