"""Profiler traces: the most expensive operations, without TensorBoard."""

import dataclasses
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdepth.commands.benchmark.report import Report
from jaxdepth.commands.benchmark.timing import Workload
from jaxdepth.commands.benchmark.workloads import Compiled
from jaxdepth.commands.compile import hlo
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import MachineError, one_line

CALLS = 3
TOP, KEPT = 20, 60  # number of operations in the table and in the JSON file
# Scopes of JAX around the module names in a program without gradients.
_WRAPPERS = re.compile(
    r"^(jit|pjit|vmap|while|body|closed_call|shard_map)\b|[.(]|^[A-Z]"
)
# Lines of a trace that hold operations: TPUs have one, GPUs one per stream.
_TPU_LINE, _GPU_LINE = "XLA Ops", "Stream"
# Kinds of operations on a GPU, by the first pattern in the operation's name.
KINDS = {
    r"conv[-_]bw[-_]filter|convBackwardFilter": "convolution, kernel gradient",
    r"conv[-_]bw[-_]input|convBackwardInput": "convolution, input gradient",
    r"conv(?!ert)": "convolution, forward",
    r"gemm|dot|cublas": "matrix product",
    r"reduce|reduction": "reduction",
    r"transpose": "transpose",
    r"memcpy|memset|copy": "copy",
    r"pad|concatenate|slice|gather|scatter": "pad, slice, gather",
    r"fusion|wrapped": "element-wise",
}


@dataclasses.dataclass
class Operation:
    """What a trace holds of an operation, summed over calls and threads or streams.

    Attributes:
      seconds: of all its kernels.
      kernels: kernel -> number of launches.
    """

    seconds: float = 0.0
    kernels: Counter[str] = dataclasses.field(default_factory=Counter)


@dataclasses.dataclass
class Trace:
    """Operations by name, and seconds in which the device was busy and in all.

    `busy` and `span` are 0 for a CPU.
    """

    operations: dict[str, Operation]
    busy: float = 0.0
    span: float = 0.0

    @property
    def seconds(self) -> float:
        """Sum over all operations."""
        return sum(operation.seconds for operation in self.operations.values())


def show(folder: Path, workload: Workload, compiled: Compiled, report: Report) -> None:
    """Trace some calls into `folder` and print the most expensive operations."""
    try:
        file = trace(folder, workload)
        traced = read(file)
    except Exception as error:  # driver or permission errors; the times are valid
        report.note(f"no profile: {one_line(error)[:160]}")
        return
    if not traced.seconds:
        report.note(f"no profile: {file} contains no operations")
        return
    profile = summary(traced, hlo.parse(compiled.hlo()))
    report.facts["profile"] = {"trace": str(file)} | profile
    terminal.print_table(
        f"the {TOP} most expensive of {len(traced.operations)} operations, ms a call; "
        f"{profile['ms in all']:.1f} ms in all, over all threads or streams",
        ("operation", "part of the network", "ms", "share", "kernels"),
        [
            [row[k] for k in ("operation", "part", "ms", "share", "launches")]
            for row in profile["costliest"][:TOP]
        ],
    )
    report.note(f"trace: {file}")


def summary(traced: Trace, module: hlo.Module) -> dict[str, Any]:
    """The profile of a call, with the parts of the network from its HLO module."""
    instructions = _instructions(module)
    rows = []
    kinds, blocks = defaultdict[str, float](float), defaultdict[str, float](float)
    for name, operation in traced.operations.items():
        instruction = instructions.get(name) or instructions.get(_symbol(name))
        part, block = "-", "other"
        if instruction is not None:
            part, block = _part(module, instruction), module.place(instruction).group
        ms = 1e3 * operation.seconds / CALLS
        kinds[kind_of(name)] += ms
        blocks[block] += ms
        row = {"operation": name, "part": part, "ms": ms}
        row |= {"share": operation.seconds / traced.seconds}
        row |= {"launches": sum(operation.kernels.values()) / CALLS}
        rows.append(row | {"kernel": operation.kernels.most_common(1)[0][0][:120]})
    rows.sort(key=lambda row: -row["ms"])
    launches = sum(row["launches"] for row in rows)
    profile = {"ms in all": 1e3 * traced.seconds / CALLS, "kernels": launches}
    if traced.span:
        profile["share of the time with a kernel running"] = traced.busy / traced.span
    return profile | {
        "ms by kind": _descending(kinds),
        "ms by block": _descending(blocks),
        "costliest": rows[:KEPT],
    }


def _descending(values: dict[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda item: -item[1]))


def trace(folder: Path, workload: Workload) -> Path:
    """Profile some calls; returns the trace file.

    On a GPU, XLA launches the kernels one by one instead of as CUDA graphs while the
    profiler runs, so there are more gaps between kernels than without it.

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


def read(file: Path) -> Trace:
    """The operations in a trace file."""
    with warnings.catch_warnings():
        # jaxlib creates its types on first use, and Python 3.13 warns about them.
        # Where warnings are errors, that would abort the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        return operations(jax.profiler.ProfileData.from_file(str(file)))


def operations(data: Any) -> Trace:
    """The operations in a `jax.profiler.ProfileData`.

    Events name their operation, except kernels in a CUDA graph and copies between host
    and device, which count under their own names. On a GPU whose driver gave no events
    there are no operations.
    """
    devices = [p for p in data.planes if re.match("/device:[GT]PU", p.name)]
    if jax.default_backend() == "cpu" and not devices:
        return Trace(_collect(_host_events(data)))
    spans: list[tuple[float, float]] = []
    found: dict[str, Operation] = {}
    for plane in devices:
        for line in _device_lines(plane):
            events = list(line.events)
            _collect(events, found)
            spans += [(e.start_ns, e.start_ns + e.duration_ns) for e in events]
    return Trace(found, *_busy(spans))


def _device_lines(plane: Any) -> list[Any]:
    lines = list(plane.lines)
    streams = [line for line in lines if line.name.startswith(_GPU_LINE)]
    return streams or [line for line in lines if line.name == _TPU_LINE]


def _collect(
    events: Iterable[Any], found: dict[str, Operation] | None = None
) -> dict[str, Operation]:
    found = {} if found is None else found
    for event in events:
        operation = dict(event.stats).get("hlo_op")
        name = str(operation) if operation else event.name
        entry = found.setdefault(name, Operation())
        entry.seconds += event.duration_ns / 1e9
        entry.kernels[event.name] += 1
    return found


def _host_events(data: Any) -> Iterator[Any]:
    """Events of host threads that name an operation: those of the CPU."""
    for plane in data.planes:
        for line in plane.lines:
            for event in line.events:
                if dict(event.stats).get("hlo_op") is not None:
                    yield event


def _busy(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds covered by any of the spans (ns), and from the first to the last."""
    if not spans:
        return 0.0, 0.0
    spans = sorted(spans)
    covered, end = 0.0, spans[0][0]
    for start, stop in spans:
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered / 1e9, (end - spans[0][0]) / 1e9


def kind_of(name: str) -> str:
    """The kind of an operation of a GPU, by its name, a value of `KINDS`."""
    for pattern, kind in KINDS.items():
        if re.search(pattern, name, re.I):
            return kind
    return "other"


def _instructions(module: hlo.Module) -> dict[str, hlo.Instruction]:
    """Instructions by name, and by the symbol that XLA gives to their kernels."""
    by_name = {
        instruction.name: instruction
        for instructions in module.computations.values()
        for instruction in instructions
    }
    return {_symbol(name): i for name, i in by_name.items()} | by_name


def _symbol(name: str) -> str:
    """XLA's kernel of `loop_add_fusion.3` is `loop_add_fusion_3`."""
    return re.sub(r"[.\-]", "_", name)


def _part(module: hlo.Module, instruction: hlo.Instruction) -> str:
    """A module path as in "decoder/up4/conv (gradient)"; "-" if unknown."""
    place = module.place(instruction)
    path = place.module or _path(instruction.op_name)
    return path + " (gradient)" if path and place.gradient else path or "-"


def _path(op_name: str) -> str:
    """Module path: jit(forward)/UpProj/decoder/up4/conv/dot -> decoder/up4/conv."""
    words = op_name.split("/")[:-1]
    return "/".join(word for word in words if not _WRAPPERS.search(word))
