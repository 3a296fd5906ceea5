"""Known problems of a training step on a GPU, found in the compiled module."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxdepth.commands.compile import costs, flops
from jaxdepth.commands.compile.hlo import Array, Instruction, Module

LARGE = 1 << 20  # bytes; smaller maps are not worth a warning
TINY = 64 << 10  # bytes of traffic of a tiny copy
MANY = 32  # tiny copies of one call
MIN_CHANNELS = 8  # a map of fewer is an image or a depth map
MIN_SIDE = 8  # pixels; arrays with fewer along their second and third axis are kernels
MIN_WINDOW = 12  # taps; no network has such a kernel
MOVES = ("copies", "transposes", "pads", "concatenations", "memory set")

_PADDING = re.compile(r"\bpadding=([\d\-_x]+)")
_DIMENSIONS = re.compile(r"\bdimensions=\{([\d,]*)\}")
_LABELS = re.compile(r"\bdim_labels=(\w+)_")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of the module.

    Attributes:
      instruction: the instruction.
      times: how often it runs in one call.
      kind: see `costs.kind_of`.
      traffic: bytes in all its executions.
    """

    instruction: Instruction
    times: int
    kind: str
    traffic: int


def problems(
    module: Module, *, images: int, bf16: bool, launch: int
) -> list[dict[str, Any]]:
    """The problems of a module, each with its kernels and the bytes that they move.

    Args:
      images: that a device computes at a time; the first axis of a map.
      bf16: whether the step computes in bf16.
      launch: bytes that the device moves in the time of a launch.

    Returns: entries with "problem", "kernels" (executions in a call), "traffic" (bytes
      in a call) and "where" (the modules with most bytes, at most four).
    """
    kernels = [
        Kernel(i, times, kind, times * costs.traffic_of(module, i))
        for i, times in module.executed()
        if (kind := costs.kind_of(module, i)) is not None
    ]
    found: dict[str, Iterable[Kernel]] = {
        "zeros written between the pixels of a convolution's input": _padded(
            module, kernels, images, between=True
        ),
        "edges padded by a kernel before a convolution": _padded(
            module, kernels, images, between=False
        ),
        "a convolution window as large as the map": _wide(module, kernels),
        "a transposition between channels and pixels": _transposed(
            module, kernels, images
        ),
        "a convolution with channels before pixels (NCHW)": _channels_first(kernels),
        "a result copied as a whole": _copied_results(module, kernels),
        "a copy, pad or transposition of less than 64 KiB": _tiny(kernels),
        "a kernel that takes less time than its launch": _short(kernels, launch),
    }
    if bf16:
        name = "a float32 map in a bf16 step"
        found[name] = (k for k in kernels if _writes_float32_map(module, k, images))
    entries = [_entry(module, name, list(part)) for name, part in found.items()]
    return [entry for entry in entries if entry["kernels"]]


def _entry(module: Module, name: str, kernels: Sequence[Kernel]) -> dict[str, Any]:
    sizes: dict[str, int] = {}
    for kernel in kernels:
        place = costs.place_of(module, kernel.instruction)
        where = place.module or place.group
        where += " (gradient)" if place.gradient else ""
        sizes[where] = sizes.get(where, 0) + kernel.traffic
    return {
        "problem": name,
        "kernels": sum(kernel.times for kernel in kernels),
        "traffic": sum(kernel.traffic for kernel in kernels),
        "where": sorted(sizes, key=lambda where: -sizes[where])[:4],
    }


def _padded(
    module: Module, kernels: Sequence[Kernel], images: int, *, between: bool
) -> Iterator[Kernel]:
    """Kernels that write zeros into a map that a convolution reads.

    Args:
      between: zeros between pixels instead of zeros at the edges.
    """
    pads = {
        kernel.instruction.name: kernel
        for kernel in kernels
        if any(
            _pads(i, between) and any(_is_map(a, images) for a in i.arrays)
            for i in _operations(module, kernel.instruction)
        )
    }
    for kernel in kernels:
        if kernel.kind.startswith("cuDNN") or kernel.kind == "products":
            for name in kernel.instruction.operands:
                producer = pads.pop(module.source(name), None)
                if producer is not None:
                    yield producer


def _pads(instruction: Instruction, between: bool) -> bool:
    """Whether an instruction is a pad between pixels, or only at the edges."""
    match = _PADDING.search(instruction.attributes)
    if instruction.opcode != "pad" or match is None:
        return False
    # Each axis: before, after and, if not 0, between.
    axes = [axis.split("_") for axis in match[1].split("x")]
    return between == any(len(axis) == 3 and axis[2] != "0" for axis in axes)


def _operations(module: Module, instruction: Instruction) -> Iterator[Instruction]:
    yield instruction
    if instruction.base == "fusion":
        yield from module.called(instruction)


def _wide(module: Module, kernels: Sequence[Kernel]) -> Iterator[Kernel]:
    """Convolutions whose window is wider than half of their input."""
    for kernel in kernels:
        if any(_is_wide(module, i) for i in _operations(module, kernel.instruction)):
            yield kernel


def _is_wide(module: Module, instruction: Instruction) -> bool:
    labels = _LABELS.search(instruction.attributes)
    if labels is None or not instruction.operands:
        return False
    (x, *_) = module.shapes[instruction.operands[0]]
    windows = zip("0123", flops.windows(instruction), strict=False)
    return any(
        window["size"] >= max(MIN_WINDOW, x.shape[labels[1].index(axis)] / 2)
        for axis, window in windows
    )


def _is_map(array: Array, images: int) -> bool:
    """Whether an array is a large map, (images, height, width, ..., channels)."""
    shape = array.shape
    return (
        len(shape) >= 4
        and shape[0] == images
        and min(shape[1:3]) >= MIN_SIDE
        and array.bytes >= LARGE
    )


def _transposed(
    module: Module, kernels: Sequence[Kernel], images: int
) -> Iterator[Kernel]:
    """Kernels that move the innermost axis of a map."""
    for kernel in kernels:
        instruction = kernel.instruction
        copied = instruction.opcode == "copy" and kernel.kind == "transposes"
        if (copied and any(_is_map(a, images) for a in instruction.arrays)) or any(
            _moves_innermost(i) and any(_is_map(a, images) for a in i.arrays)
            for i in _operations(module, instruction)
        ):
            yield kernel


def _moves_innermost(instruction: Instruction) -> bool:
    if instruction.opcode != "transpose":
        return False
    match = _DIMENSIONS.search(instruction.attributes)
    axes = [int(n) for n in match[1].split(",") if n] if match else []
    return bool(axes) and axes[-1] != len(axes) - 1


def _channels_first(kernels: Sequence[Kernel]) -> Iterator[Kernel]:
    for kernel in kernels:
        labels = _LABELS.search(kernel.instruction.attributes)
        if kernel.kind.startswith("cuDNN") and labels and labels[1][1] == "f":
            yield kernel


def _copied_results(module: Module, kernels: Sequence[Kernel]) -> Iterator[Kernel]:
    """Copies into the results of the call: the compiler could not update in place."""
    results = {
        name for i in module.computations[module.entry][-1:] for name in i.operands
    }
    for kernel in kernels:
        instruction = kernel.instruction
        copied = instruction.opcode == "copy" and instruction.name in results
        if copied and kernel.traffic >= LARGE:
            yield kernel


def _tiny(kernels: Sequence[Kernel]) -> list[Kernel]:
    tiny = [
        kernel
        for kernel in kernels
        if kernel.kind in MOVES and kernel.traffic < TINY * kernel.times
    ]
    return tiny if sum(kernel.times for kernel in tiny) >= MANY else []


def _short(kernels: Sequence[Kernel], launch: int) -> list[Kernel]:
    """Kernels that take less time than a launch, if they are more than half."""
    short = [kernel for kernel in kernels if kernel.traffic < launch * kernel.times]
    count = sum(kernel.times for kernel in short)
    every = sum(kernel.times for kernel in kernels)
    return short if count >= MANY and 2 * count > every else []


def _writes_float32_map(module: Module, kernel: Kernel, images: int) -> bool:
    return any(
        a.dtype == "f32" and _is_map(a, images) and a.shape[-1] >= MIN_CHANNELS
        for a in module.shapes[kernel.instruction.name]
    )
