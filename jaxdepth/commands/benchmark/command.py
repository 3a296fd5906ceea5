"""Measure the speed of training, inference, data and operators on this machine.

    jaxdepth benchmark train --arch=upproj --batch_size=best
    jaxdepth benchmark infer --peer=torch --json=infer.json
    jaxdepth benchmark upconv --unpool=zero --peer=torch
    jaxdepth benchmark data --data=STORE
    jaxdepth benchmark cpu --out=FOLDER
    jaxdepth benchmark gpu --out=FOLDER

Prints medians and spreads. Candidates are timed in alternating turns.
"""

import dataclasses
import os
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

from jaxdepth import workdir
from jaxdepth.commands import cli
from jaxdepth.commands.benchmark import nvidia
from jaxdepth.commands.benchmark import report as report_lib
from jaxdepth.commands.benchmark.report import Report
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import jax_setup, output_files
from jaxdepth.runtime.errors import UserError, nearest

PROG = "jaxdepth benchmark"


# Classes of the settings and functions, imported on use.
COMMANDS = {
    "train": ("settings:TrainSettings", "networks:run"),
    "infer": ("settings:InferSettings", "networks:run"),
    "upconv": ("upconv:UpconvSettings", "upconv:run"),
    "data": ("data:DataSettings", "data:run"),
    "cpu": ("plan:CpuSettings", "plan:run"),
    "gpu": ("plan:GpuSettings", "plan:run"),
}


def load(name: str) -> tuple[type, Callable[[Any, Report], None]]:
    """The class of a benchmark's settings, and the function that runs it."""
    package = "jaxdepth.commands.benchmark"
    cls, run = (pkgutil.resolve_name(f"{package}.{x}") for x in COMMANDS[name])
    return cls, run


def command(argv: Sequence[str]) -> int:
    """Run the benchmark that the first argument names; returns the exit code."""
    if flags_lib.asks_help(argv[:1]):
        print(f"{__doc__}\n{PROG} {'|'.join(COMMANDS)} --help lists the flags.")
        return cli.OK
    if not argv or argv[0] not in COMMANDS:
        hint = nearest(argv[0], COMMANDS) if argv else ""
        raise UserError(f"name a benchmark: {PROG} {'|'.join(COMMANDS)}{hint}")
    # Allocate GPU memory on demand, up to 92 %, because PyTorch needs some too. JAX
    # reads these variables when it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", ".92")
    jax_setup.retain_host_memory()  # as training does
    cls, run = load(argv[0])
    measure(flags_lib.parse(cls, argv[1:], prog=f"{PROG} {argv[0]}"), run)
    return cli.OK


def measure(settings: Any, run: Callable[[Any, Report], None]) -> None:
    """Run a benchmark and write its report to the file of --json.

    The report is written after each table. It names the error if there is one.
    """
    path = getattr(settings, "json", None)
    if path is not None:
        output_files.check_new_file(path, flag="json")
    report = Report()

    def write(stopped: str | None = "not complete") -> None:
        if path is not None and (report.tables or not stopped):
            document = report.document(dataclasses.asdict(settings), stopped)
            workdir.write_json(path, document)

    state = nvidia.state()
    for warning in (report_lib.load_warning(), nvidia.warning(state)):
        if warning is not None:
            report.note(warning)
    if state:
        report.facts["nvidia-smi before"] = state
    # The process may be killed, or abort in the driver or in the compiler.
    report.on_change = write
    try:
        run(settings, report)
        if state:
            report.facts["nvidia-smi after"] = nvidia.state()
        write(None)
    except BaseException as error:
        write(f"{type(error).__name__}: {error}")
        raise
