"""How fast things are here: medians and spreads of runs that alternate.

    jaxdepth benchmark train --arch=upproj --batch_size=best
    jaxdepth benchmark infer --peer=torch --json=infer.json
    jaxdepth benchmark upconv --unpool=zero --peer=torch
    jaxdepth benchmark data --data=STORE
    jaxdepth benchmark cpu --out=FOLDER
    jaxdepth benchmark gpu --out=FOLDER

Nothing is compared with a figure from another machine or another minute.
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
from jaxdepth.runtime import jax_setup
from jaxdepth.runtime.errors import UserError, nearest

PROG = "jaxdepth benchmark"


class Command(NamedTuple):
    """Names in modules of this package, imported when they are asked for."""

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


def found(place: tuple[str, str]) -> Any:
    module, name = place
    return getattr(
        importlib.import_module(f"jaxdepth.commands.benchmark.{module}"), name
    )


def command(argv: Sequence[str]) -> int:
    """Measure what the first word names; returns the exit code."""
    if flags_lib.asks_help(argv[:1]):
        print(f"{__doc__}\n{PROG} {'|'.join(COMMANDS)} --help tells the flags of each.")
        return cli.OK
    if not argv or argv[0] not in COMMANDS:
        hint = nearest(argv[0], COMMANDS) if argv else ""
        raise UserError(f"say what to measure: {PROG} {'|'.join(COMMANDS)}{hint}")
    # Before JAX begins: take a GPU's memory as it is needed, for peers need some, too,
    # and then as much as there is.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".92")
    jax_setup.retain_host_memory()  # as training does
    chosen = COMMANDS[argv[0]]
    settings = flags_lib.parse(
        found(chosen.settings), argv[1:], prog=f"{PROG} {argv[0]}"
    )
    measure(settings, found(chosen.run))
    return cli.OK


def measure(settings: Any, run: Callable[[Any, Report], None]) -> Report:
    """Run, and write what was found to the files of the settings."""
    json, csv = (getattr(settings, name, None) for name in ("json", "csv"))
    report_lib.check_free(json, csv)
    report, stopped = Report(), None
    if (line := report_lib.busy()) is not None:
        report.say(line)
    try:
        run(settings, report)
    except BaseException as error:
        # What was found until then is kept: it may have taken an hour.
        stopped = f"{type(error).__name__}: {error}"
        raise
    finally:
        if json is not None and (report.tables or not stopped):
            document = report.document(dataclasses.asdict(settings), stopped)
            report_lib.write(json, report_lib.dumps(document))
        if csv is not None and (report.tables or not stopped):
            report_lib.write(csv, report.csv())
    return report
