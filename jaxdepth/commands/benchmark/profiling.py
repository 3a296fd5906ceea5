"""Profiler traces: the most expensive operations, without TensorBoard."""

import re
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax

from jaxdepth.commands.benchmark.report import Report
from jaxdepth.commands.benchmark.timing import Workload
from jaxdepth.commands.benchmark.workloads import Compiled
from jaxdepth.commands.compile import hlo
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import MachineError

CALLS = 3
TOP, KEPT = 10, 40  # number of operations in the table and in the JSON file
# Scopes of JAX around the module names in a program without gradients.
_WRAPPERS = re.compile(
    r"^(jit|pjit|vmap|while|body|closed_call|shard_map)\b|[.(]|^[A-Z]"
)
# Lines of a trace that hold operations: TPUs have one, GPUs one per stream.
_TPU_LINE, _GPU_LINE = "XLA Ops", "Stream"


def show(folder: Path, workload: Workload, compiled: Compiled, report: Report) -> None:
    """Trace some calls into `folder` and print the ten most expensive operations."""
    try:
        file = trace(folder, workload)
        times = operations(file)
    except Exception as error:  # driver or permission errors; the times are valid
        report.note(f"no profile: {' '.join(str(error).split())[:160]}")
        return
    total = sum(times.values())
    if not total:
        report.note(f"no profile: {file} contains no operations")
        return
    names = modules(compiled.text()) if compiled.text else {}
    costliest = sorted(times.items(), key=lambda item: -item[1])[:KEPT]
    rows = [
        {
            "operation": name,
            "part": names.get(name, "-"),
            "ms": 1e3 * seconds / CALLS,
            "share": seconds / total,
        }
        for name, seconds in costliest
    ]
    report.facts["profile"] = {
        "trace": str(file),
        "ms in all": 1e3 * total / CALLS,
        "costliest": rows,
    }
    terminal.print_table(
        f"the ten most expensive of {len(times)} operations, ms a call; "
        f"{1e3 * total / CALLS:.1f} ms in all, over all threads or streams",
        ("operation", "part of the network", "ms", "share"),
        [tuple(row.values()) for row in rows[:TOP]],
    )
    report.note(f"trace: {file}")


def trace(folder: Path, workload: Workload) -> Path:
    """Profile some calls; returns the trace file.

    Raises: MachineError if the profiler wrote no file.
    """
    old = set(folder.rglob("*.xplane.pb"))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # no Python calls in the trace
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(CALLS):
            last = workload.call()
        workload.wait(last)
    new = set(folder.rglob("*.xplane.pb")) - old
    if not new:
        raise MachineError(f"the profiler left no trace in {folder}")
    return new.pop()


def operations(file: Path) -> dict[str, float]:
    """Seconds of each operation, summed over calls and threads or streams."""
    with warnings.catch_warnings():
        # jaxlib creates its types on first use, and Python 3.13 warns about them.
        # Where warnings are errors, that would abort the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _operations(jax.profiler.ProfileData.from_file(str(file)))


def _operations(data: Any) -> dict[str, float]:
    planes = [p for p in data.planes if p.name.startswith("/device:")]
    seconds: dict[str, float] = defaultdict(float)
    for plane in planes:
        lines = list(plane.lines)
        named = [line for line in lines if line.name == _TPU_LINE]
        for line in named or [x for x in lines if x.name.startswith(_GPU_LINE)]:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op", event.name)
                seconds[str(operation)] += event.duration_ns / 1e9
    return dict(seconds) if seconds else _on_host(data)


def _on_host(data: Any) -> dict[str, float]:
    """Seconds of each operation on CPU, where events of host threads name them."""
    seconds: dict[str, float] = defaultdict(float)
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is not None:
                    seconds[str(operation)] += event.duration_ns / 1e9
    return dict(seconds)


def modules(text: str) -> dict[str, str]:
    """Operation -> its part of the network, from the text of a compiled program."""
    module = hlo.parse(text)
    return {
        instruction.name: _part(module, instruction)
        for instructions in module.computations.values()
        for instruction in instructions
    }


def _part(module: hlo.Module, instruction: hlo.Instruction) -> str:
    """A module path as in "decoder/up4/conv (gradient)"; "-" if unknown."""
    place = module.place(instruction)
    path = place.module or _path(instruction.op_name)
    return path + " (gradient)" if path and place.gradient else path or "-"


def _path(op_name: str) -> str:
    """Module path: jit(forward)/UpProj/decoder/up4/conv/dot -> decoder/up4/conv."""
    words = op_name.split("/")[:-1]
    return "/".join(word for word in words if not _WRAPPERS.search(word))
