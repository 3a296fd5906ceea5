"""A profiler's trace, and the operations that cost the most, without TensorBoard."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax

from jaxdepth.commands.benchmark.ours import Compiled
from jaxdepth.commands.benchmark.report import Report
from jaxdepth.commands.benchmark.timing import Contestant
from jaxdepth.commands.compile import hlo
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import MachineError

CALLS = 3
TOP, KEPT = 10, 40  # operations that are printed, and kept for JSON
# What JAX puts around the names of modules in a program without gradients.
_WRAPPERS = re.compile(
    r"^(jit|pjit|vmap|while|body|closed_call|shard_map)\b|[.(]|^[A-Z]"
)
# Kernels of a GPU are on its streams, operations of a TPU on a line of their own.
_TPU_LINE, _GPU_LINE = "XLA Ops", "Stream"


def show(
    folder: Path, contestant: Contestant, compiled: Compiled, report: Report
) -> None:
    """Trace some calls into `folder` and print the ten costliest operations."""
    try:
        file = trace(folder, contestant)
        times = operations(file)
    except (
        Exception
    ) as error:  # drivers, permissions: times already measured count more
        report.say(f"no profile: {' '.join(str(error).split())[:160]}")
        return
    total = sum(times.values())
    if not total:
        report.say(f"no profile: {file} holds no operation of the device")
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
        f"the ten costliest of {len(times)} operations, ms a call; "
        f"{1e3 * total / CALLS:.1f} ms in all, over all threads or streams",
        ("operation", "part of the network", "ms", "share"),
        [tuple(row.values()) for row in rows[:TOP]],
    )
    report.say(f"trace: {file}")


def trace(folder: Path, contestant: Contestant) -> Path:
    """Profile some calls; returns the file of the trace."""
    before = set(folder.rglob("*.xplane.pb"))
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # calls of Python are not what is asked for
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(CALLS):
            last = contestant.call()
        contestant.wait(last)
    new = set(folder.rglob("*.xplane.pb")) - before
    if not new:
        raise MachineError(f"the profiler left no trace in {folder}")
    return new.pop()


def operations(file: Path) -> dict[str, float]:
    """Seconds of each operation, over all threads or streams and calls."""
    data = jax.profiler.ProfileData.from_file(str(file))
    planes = [p for p in data.planes if p.name.startswith("/device:")]
    found: dict[str, float] = defaultdict(float)
    for plane in planes:
        lines = list(plane.lines)
        named = [line for line in lines if line.name == _TPU_LINE]
        for line in named or [x for x in lines if x.name.startswith(_GPU_LINE)]:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op", event.name)
                found[str(operation)] += event.duration_ns / 1e9
    return dict(found) if found else _on_host(data)


def _on_host(data: Any) -> dict[str, float]:
    """On CPU operations are events of the host's threads, which name themselves."""
    found: dict[str, float] = defaultdict(float)
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is not None:
                    found[str(operation)] += event.duration_ns / 1e9
    return dict(found)


def modules(text: str) -> dict[str, str]:
    """Operation -> the part of the network it belongs to, from a compiled program."""
    module = hlo.parse(text)
    return {
        instruction.name: _part(module, instruction)
        for instructions in module.computations.values()
        for instruction in instructions
    }


def _part(module: hlo.Module, instruction: hlo.Instruction) -> str:
    """As decoder/up4/conv (gradient); "-" where nothing says."""
    place = module.place(instruction)
    path = place.module or _path(instruction.op_name)
    return path + " (gradient)" if path and place.gradient else path or "-"


def _path(op_name: str) -> str:
    """jit(forward)/UpProj/decoder/up4/conv/dot_general -> decoder/up4/conv."""
    words = op_name.split("/")[:-1]
    return "/".join(word for word in words if not _WRAPPERS.search(word))
