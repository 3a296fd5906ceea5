"""FLOPs of the products of a compiled module, counted from shapes.

XLA's cost analysis does this for TPU; for a GPU it returns nothing, because the
products are calls of cuDNN and cuBLAS. Counted are convolutions and matrix products,
two for each multiplication and addition; multiplications by padding are not counted.
"""

import math
import re
from collections.abc import Mapping, Sequence

from jaxdepth.commands.compile.hlo import Array, Instruction, Module

_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_LABELS = re.compile(r"\bdim_labels=(\w+)_(\w+)->(\w+)")
_CONTRACTING = re.compile(
    r'\blhs_contracting_dim(?:s=\{|ension(?:s|_numbers)":\[)(["\d,]*)'
)
_HIGHEST = re.compile(r"operand_precision=\{high|\"HIGH", re.I)

Shapes = Mapping[str, Sequence[Array]]


def flops(module: Module, instruction: Instruction, shapes: Shapes) -> dict[str, float]:
    """FLOPs of an instruction and of what it fuses, by the precision of the product.

    Precisions are "bf16" (and f16), "tf32" (float32 as JAX multiplies it on a GPU) and
    "f32".

    Args:
      shapes: arrays of every instruction, see `Module.shapes`.
    """
    if instruction.base == "fusion":
        total: dict[str, float] = {}
        for inner in module.called(instruction):
            for precision, count in flops(module, inner, shapes).items():
                total[precision] = total.get(precision, 0.0) + count
        return total
    operands = [a for name in instruction.operands for a in shapes.get(name, ())]
    if len(operands) < 2 or not instruction.arrays:
        return {}
    count = _product(instruction, operands)
    return {_precision(instruction, operands): count} if count else {}


def _product(instruction: Instruction, operands: Sequence[Array]) -> float:
    opcode, target = instruction.opcode, instruction.target
    if opcode == "convolution" or target.startswith("__cudnn$conv"):
        return _convolution(instruction, operands)
    if opcode == "dot" or target.startswith("__cublas$"):
        contracting = _CONTRACTING.search(instruction.attributes)
        axes = re.findall(r"\d+", contracting[1]) if contracting else ()
        depth = math.prod(operands[0].shape[int(axis)] for axis in axes)
        return 2.0 * depth * math.prod(instruction.arrays[0].shape)
    return 0.0


def _convolution(instruction: Instruction, operands: Sequence[Array]) -> float:
    """FLOPs of a convolution, or of one of its gradients by cuDNN.

    cuDNN's gradients are written with the window and the axes of the convolution that
    they belong to, and have as many FLOPs.
    """
    labels = _LABELS.search(instruction.attributes)
    if labels is None:
        return 0.0
    result, (first, second) = instruction.arrays[0], operands[:2]
    x, kernel, y = {
        "__cudnn$convBackwardInput": (result, second, first),
        "__cudnn$convBackwardFilter": (first, result, second),
    }.get(instruction.target, (first, second, result))
    count = 2.0 * _size(kernel, labels[2], "i")
    count *= _size(y, labels[3], "b") * _size(y, labels[3], "f")
    for axis, window in zip("0123", windows(instruction), strict=False):
        sizes = (_size(x, labels[1], axis), _size(y, labels[3], axis))
        count *= taps(*sizes, **window)
    return count


def _size(array: Array, labels: str, label: str) -> int:
    return array.shape[labels.index(label)]


def windows(instruction: Instruction) -> list[dict[str, int]]:
    """The window of a convolution: for each axis size, stride, padding and dilations.

    Keys: size, stride, before, after, lhs_dilate, rhs_dilate.
    """
    match = _WINDOW.search(instruction.attributes)
    fields = dict(f.split("=") for f in match[1].split()) if match else {}
    sizes = fields.get("size", "").split("x") if fields else []
    axes = []
    for k, size in enumerate(sizes):
        axis = {"size": int(size)}
        for key in ("stride", "lhs_dilate", "rhs_dilate"):
            axis[key] = int(fields[key].split("x")[k]) if key in fields else 1
        pad = fields["pad"].split("x")[k] if "pad" in fields else "0_0"
        axis["before"], axis["after"] = (int(n) for n in pad.split("_"))
        axes.append(axis)
    return axes


def taps(
    inputs: int,
    outputs: int,
    *,
    size: int,
    stride: int = 1,
    before: int = 0,
    after: int = 0,
    lhs_dilate: int = 1,
    rhs_dilate: int = 1,
) -> int:
    """Products along one axis: pairs of output and tap that meet an input."""
    count = 0
    for tap in range(size):
        for k in range(outputs):
            at = k * stride - before + tap * rhs_dilate
            count += at % lhs_dilate == 0 and 0 <= at // lhs_dilate < inputs
    return count


def _precision(instruction: Instruction, operands: Sequence[Array]) -> str:
    if operands[0].dtype in ("bf16", "f16"):
        return "bf16"
    highest = _HIGHEST.search(instruction.attributes)
    return "f32" if highest or operands[0].dtype != "f32" else "tf32"
