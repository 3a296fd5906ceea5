"""Costs of a compiled module: kernels by kind, memory traffic, cycles, by module.

A kernel is an instruction that runs on the device: on TPU a fusion or another scheduled
operation, on a GPU at least one launch. A call of cuDNN counts as one.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxdepth.commands.compile.flops import flops
from jaxdepth.commands.compile.hlo import COLLECTIVES, Instruction, Module, Place

MIN_UNESTIMATED = 1_000_000  # bytes; smaller instructions without estimate are left out

# Opcodes that run nothing, or whose work other instructions account for.
NO_KERNEL = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while")
NO_KERNEL += ("conditional", "call", "async", "after-all")
NO_KERNEL += ("partition-id", "replica-id", "opt-barrier", "add-dependency", "domain")
# Calls of libraries and hand-written kernels, by the start of their target. Other
# custom calls of a TPU module only reserve memory.
CALLS = {
    "__cudnn$convBackwardInput": "cuDNN input gradient",
    "__cudnn$convBackwardFilter": "cuDNN filter gradient",
    "__cudnn$conv": "cuDNN forward",
    "__cudnn$": "cuDNN, other",
    "__cublas$": "cuBLAS",
    "__gpu$xla.gpu.triton": "Triton",
    "triton": "Triton",
    "mosaic_gpu": "Pallas",
    "tpu_custom_call": "Pallas",
    "cu": "other",
    "__cu": "other",
    "__gpu$": "other",
    "xla.gpu": "other",
}
# Fusions that only move data, by the operation that they contain; the first counts.
MOVES = {
    "transpose": "transposes",
    "concatenate": "concatenations",
    "pad": "pads",
    "slice": "copies",
    "dynamic-slice": "copies",
    "dynamic-update-slice": "copies",
    "reverse": "copies",
    "copy": "copies",
    "broadcast": "memory set",
    "iota": "memory set",
}
_NO_ARITHMETIC = {*MOVES, "parameter", "constant", "bitcast", "reshape", "tuple"}
_NO_ARITHMETIC |= {"get-tuple-element", "convert", "bitcast-convert"}
# Fusions named after an operation with a kernel of its own; the first counts.
HEROES = {
    "convolution": "products",
    "dot": "products",
    "select-and-scatter": "scatter",
    "scatter": "scatter",
    "sort": "sort",
    "reduce": "reductions",
    "reduce-window": "reductions",
    "gather": "other",
    "rng-bit-generator": "other",
}
PARTIAL_READS = ("slice", "dynamic-slice", "gather")


def kind_of(module: Module, instruction: Instruction) -> str | None:
    """The kind of a kernel, such as "cuBLAS" or "reductions"; None if it runs nothing.

    A fusion is a reduction if it contains one, a copy, transpose, pad or concatenation
    if it only moves data, and "element-wise" otherwise.
    """
    opcode = instruction.base
    if opcode in NO_KERNEL or opcode.endswith(("-done", "-update")):
        return None
    if opcode == "custom-call":
        target = instruction.target
        return next((kind for k, kind in CALLS.items() if target.startswith(k)), None)
    if opcode in COLLECTIVES:
        return "collectives"
    if opcode == "fusion":
        return _kind_of_fusion(module, instruction)
    if opcode == "copy":
        return "transposes" if _changes_order(module, instruction) else "copies"
    return {**MOVES, **HEROES}.get(opcode, "element-wise")


def _kind_of_fusion(module: Module, instruction: Instruction) -> str:
    if '"__cudnn$fusion"' in instruction.attributes:
        return "cuDNN forward"
    if '"__triton' in instruction.attributes:
        return "Triton"
    inner = list(module.called(instruction))
    opcodes = {i.opcode for i in inner}
    for opcode, kind in HEROES.items():
        if opcode in opcodes:
            return kind
    # Scalars compute indices.
    if any(i.opcode not in _NO_ARITHMETIC and _has_elements(i) for i in inner):
        return "element-wise"
    moves = (kind for opcode, kind in MOVES.items() if opcode in opcodes)
    return next(moves, "element-wise")


def _has_elements(instruction: Instruction) -> bool:
    return any(array.shape for array in instruction.arrays)


def _changes_order(module: Module, instruction: Instruction) -> bool:
    """Whether a copy's operand has another order of axes."""
    operands = [a for n in instruction.operands for a in module.shapes.get(n, ())]
    orders = {a.order for a in (*operands[:1], *instruction.arrays) if a.order}
    return len(orders) > 1


def traffic(module: Module) -> dict[str, int]:
    """Memory traffic of each kernel, bytes per execution.

    Operands and results count with padding, except those in a TPU core's vector memory
    and the workspaces of libraries. Reads that hit a GPU's cache count. Where a fusion
    reads a slice of an operand, or writes a slice into one, the slice counts. For one
    block on TPU this gave 0.99 of the compiler's own figure.
    """
    moved = {}
    for instruction, _ in module.executed():
        if kind_of(module, instruction) is not None:
            moved[instruction.name] = traffic_of(module, instruction)
    return moved


def traffic_of(module: Module, instruction: Instruction) -> int:
    """Memory traffic of one execution of a kernel, see `traffic`."""
    shapes = module.shapes
    if instruction.opcode == "slice-start":  # on TPU: ((source), destination, ...)
        return 2 * shapes[instruction.name][1].traffic
    results = module.results(instruction)
    read, written = _slices(module, instruction)
    for k, name in enumerate(instruction.operands):
        written += read.get(k, sum(a.traffic for a in shapes.get(name, ())))
    return written + sum(a.traffic for a in results)


def _slices(module: Module, instruction: Instruction) -> tuple[dict[int, int], int]:
    """Parts of operands that a fusion reads or updates in place.

    Returns: operand -> bytes that it reads, and a correction of the bytes that it
    writes.
    """
    inner = module.called(instruction) if instruction.base == "fusion" else ()
    shapes, written = module.shapes, 0
    read: dict[int, int] = {}
    for parameter in inner:
        uses = list(module.consumers(parameter.name))
        if parameter.opcode != "parameter" or not uses:
            continue
        if any(user.operands[0] != name for user, name in uses):
            continue
        if all(user.opcode in PARTIAL_READS for user, _ in uses):
            sliced = sum(a.traffic for user, _ in uses for a in shapes[user.name])
            whole = sum(a.traffic for a in shapes[parameter.name])
            read[parameter.value] = min(sliced, whole)
        elif all(user.opcode == "dynamic-update-slice" for user, _ in uses):
            read[parameter.value] = 0
            for update, _ in uses:
                written += sum(a.traffic for a in shapes[update.operands[1]])
                written -= sum(a.traffic for a in shapes[update.name])
    return read, written


def place_of(module: Module, instruction: Instruction) -> Place:
    """The place of a kernel; without scopes, that of its consumer or its producer."""
    place = module.place(instruction)
    if place.module or "/" in instruction.op_name:
        return place
    near = [user for user, _ in module.consumers(instruction.name)]
    near += [
        source
        for name in instruction.operands
        if (source := module.by_name.get(module.source(name)))
    ]
    places = (module.place(i) for i in near if kind_of(module, i) is not None)
    return next((p for p in places if p.module), place)


@dataclasses.dataclass(frozen=True)
class Work:
    """Costs of one call, by group, by kind and by kernel.

    Attributes:
      cost: sum over all kernels.
      traffic: bytes from and to memory, see `traffic`.
      flops: of products, by precision, see `flops`.
      kernels: number of them.
      groups: block -> costs "forward" and "gradient", bytes "traffic", "kernels"; in
        descending order of costs.
      kinds: kind -> "kernels" and bytes "traffic"; in descending order of bytes.
      costliest: kernels in descending order of costs.
      unestimated: kernels without cost that move many bytes, in descending order of
        bytes; without collectives and copies.
    """

    cost: float
    traffic: int
    flops: dict[str, float]
    kernels: int
    groups: dict[str, dict[str, float]]
    kinds: dict[str, dict[str, int]]
    costliest: list[dict[str, Any]]
    unestimated: list[dict[str, Any]]


def work(
    module: Module,
    *,
    cost: Callable[[int, Mapping[str, float]], float] | None = None,
    count: int = 20,
) -> Work:
    """Sum the costs of a module.

    Args:
      cost: of a kernel, from its bytes and FLOPs by precision; None for the cycles that
        a TPU compiler wrote.
      count: length of the lists of kernels.
    """
    rows = [row for row in _rows(module, cost) if row["cost"] or row["traffic"]]
    groups: dict[str, dict[str, float]] = {}
    kinds: dict[str, dict[str, int]] = {}
    total: collections.Counter[str] = collections.Counter()
    for row in rows:
        nothing: dict[str, float] = dict.fromkeys(("forward", "gradient"), 0.0)
        nothing |= {"traffic": 0, "kernels": 0}
        group = groups.setdefault(row.pop("group"), nothing)
        group[row["pass"]] += row["cost"]
        for sums in (
            group,
            kinds.setdefault(row["kind"], {"kernels": 0, "traffic": 0}),
        ):
            sums["traffic"] += row["traffic"]
            sums["kernels"] += row["times"]
        total.update(row["flops"])
    estimated = [row for row in rows if row["cost"]]
    unestimated = [row for row in rows if _lacks_estimate(row)]
    by_cost = sorted(groups.items(), key=lambda g: -g[1]["forward"] - g[1]["gradient"])
    return Work(
        cost=sum(row["cost"] for row in estimated),
        traffic=sum(row["traffic"] for row in rows),
        flops=dict(total),
        kernels=sum(row["times"] for row in rows),
        groups=dict(by_cost),
        kinds=dict(sorted(kinds.items(), key=lambda kind: -kind[1]["traffic"])),
        costliest=sorted(estimated, key=lambda row: -row["cost"])[:count],
        unestimated=sorted(unestimated, key=lambda row: -row["traffic"])[:count],
    )


def _rows(module: Module, cost: Callable | None) -> Iterator[dict[str, Any]]:
    """One row for each kernel, with its costs in all its executions."""
    for instruction, times in module.executed():
        kind = kind_of(module, instruction)
        if kind is None:
            continue
        place, size = place_of(module, instruction), traffic_of(module, instruction)
        products = flops(module, instruction, module.shapes)
        op_name = instruction.op_name
        yield {
            "cost": times * (cost(size, products) if cost else instruction.cycles),
            "traffic": times * size,
            "flops": {key: times * value for key, value in products.items()},
            "times": times,
            "kind": kind,
            "module": place.module or place.group,
            "group": place.group,
            "pass": "gradient" if place.gradient else "forward",
            "primitive": op_name.rpartition("/")[2],
            "name": instruction.name,
            "opcode": instruction.opcode,
            "shape": instruction.shape,
        }


def _lacks_estimate(row: Mapping[str, Any]) -> bool:
    transfer = row["opcode"].startswith((*COLLECTIVES, "copy-start", "slice-start"))
    return not row["cost"] and row["traffic"] >= MIN_UNESTIMATED and not transfer
