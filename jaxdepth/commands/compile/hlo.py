"""Parser of optimised HLO modules: instructions, modules, collectives.

The TPU compiler annotates each instruction with an estimate of its cycles, JAX with the
scopes and source lines that it came from. This module reads text and does not need JAX.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_ARRAY = re.compile(
    r"\b(pred|bf16|[su]\d+|f\d+\w*|c\d+)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?"
)
_TILE = re.compile(r"T\(([\d,]+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply|branch_computations|called_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%[\w.\-]+)"
)
_OP_NAME = re.compile(r'\bop_name="((?:[^"\\]|\\.)*)"')
_TARGET = re.compile(r'\bcustom_call_target="([^"]*)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_FRAME = re.compile(r"\bstack_frame_id=(\d+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_INDEX = re.compile(r"\bindex=(\d+)")
_FIELD = re.compile(r"(\w+)=(\d+)")

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
COLLECTIVES += ("collective-permute",)
VIEWS = ("get-tuple-element", "bitcast")
# Group of an instruction outside all modules, by a part of its source path or by the
# name of its function. The innermost stack frame that matches counts.
SOURCES = {
    "to_training_frame": "input",
    "normalize": "input",
    "/training/device_cache.py": "input",
    "/training/augment.py": "augment",
    "/losses.py": "loss",
    "/ops/resize.py": "loss",
    "/optax/": "optimizer",
    "/training/optimizer.py": "optimizer",
    "gradients": "gradient sums",
    "train_step": "optimizer",
}


@dataclasses.dataclass(frozen=True)
class Array:
    """An array with its layout, such as `bf16[128,160,64]{0,2,1:T(8,128)(2,1)}`.

    Attributes:
      dtype, shape: as written.
      order: axes, the innermost first; empty if not written.
      tile: sizes that the innermost axes are padded to, the outermost of them first.
      on_chip: whether it is in the core's vector memory.
    """

    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    on_chip: bool = False

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return math.prod(self.shape) * _bits(self.dtype) // 8

    @property
    def traffic(self) -> int:
        """Bytes of memory traffic of reading or writing the array, with padding."""
        if self.on_chip:
            return 0
        sizes = [self.shape[axis] for axis in self.order] or list(self.shape)
        for k, multiple in enumerate(reversed(self.tile)):
            if k < len(sizes):
                sizes[k] = -(-sizes[k] // multiple) * multiple
        return math.prod(sizes) * _bits(self.dtype) // 8


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else max(8, int(re.sub(r"^\D+(\d+).*$", r"\1", dtype)))


def arrays_of(shape: str) -> list[Array]:
    """The arrays of a shape or of a tuple of shapes."""
    arrays = []
    for dtype, dims, order, rest in _ARRAY.findall(shape):
        tile = _TILE.search(rest)
        sizes = _integers(tile[1]) if tile else ()
        on_chip = bool(re.search(r"S\([1-9]", rest))
        arrays.append(Array(dtype, _integers(dims), _integers(order), sizes, on_chip))
    return arrays


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An HLO instruction.

    Attributes:
      name: name in the text.
      opcode: "fusion", "copy", "all-reduce", ...
      shape: of the result, with its memory layout.
      operands: names of instructions.
      calls: names of computations, such as the body of a fusion or of a loop.
      op_name: scopes and primitive of JAX, "" if not written.
      frame: number of the stack frame, 0 if not written.
      cycles: the compiler's estimate, 0 if there is none.
      index: element of a tuple that it returns, else -1.
      value: value of an integer constant or number of a parameter, else -1.
      target: of a custom call, else "".
      attributes: text after the operands.
    """

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    calls: tuple[str, ...]
    op_name: str
    frame: int
    cycles: int
    index: int
    value: int
    target: str
    attributes: str

    @property
    def base(self) -> str:
        """The opcode, without the ending of an asynchronous start."""
        return self.opcode.removesuffix("-start")

    @property
    def arrays(self) -> list[Array]:
        """The arrays of the result."""
        return arrays_of(self.shape)


@dataclasses.dataclass(frozen=True)
class Place:
    """The part of the training step that an instruction belongs to.

    Attributes:
      module: path of Flax modules, such as "encoder/stage1_block1/conv1"; outside all
        modules a value of `SOURCES`, or "".
      gradient: whether it is part of the backward pass.
    """

    module: str
    gradient: bool

    @property
    def group(self) -> str:
        """Block of the network (stem, pool, stage1, up4, head), or `module`."""
        first, _, rest = self.module.partition("/")
        if first not in ("encoder", "decoder"):
            return first or "other"
        part = rest.partition("/")[0]
        if part in ("conv_init", "bn_init"):
            return "stem"
        if self.module == "encoder":
            return "pool"
        if part in ("conv_in", "bn_in"):
            return "decoder in"
        return re.sub(r"(?<=\w)_block\d+$", "", part) or first


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled module.

    Attributes:
      entry: name of the computation that runs.
      computations: name -> scheduled instructions.
      frames: stack frame -> (source path, function), the innermost first.
    """

    entry: str
    computations: Mapping[str, Sequence[Instruction]]
    frames: Mapping[int, Sequence[tuple[str, str]]]

    @functools.cached_property
    def shapes(self) -> dict[str, list[Array]]:
        """The arrays of the result of each instruction."""
        return {name: i.arrays for name, i in self.by_name.items()}

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """All instructions; their names are unique in a module."""
        return {i.name: i for part in self.computations.values() for i in part}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that have a given one as an operand."""
        users: dict[str, list[Instruction]] = collections.defaultdict(list)
        for instruction in self.by_name.values():
            for name in instruction.operands:
                users[name].append(instruction)
        return dict(users)

    def results(self, instruction: Instruction) -> list[Array]:
        """The arrays that an instruction writes, without operands and workspaces."""
        arrays, opcode = list(self.shapes[instruction.name]), instruction.opcode
        if opcode == "copy-start":  # (destination, source, context)
            return arrays[:1]
        if opcode.endswith("-start"):
            # ((operands), results, context), or (operands, results) of these
            pairs = ("all-gather-start", "collective-permute-start")
            if instruction.shape.startswith("((") or opcode in pairs:
                read = (a for n in instruction.operands for a in self.shapes[n])
                arrays = arrays[len(list(read)) :]
            if len(arrays) > 1 and arrays[-1] == Array("u32", ()):
                arrays = arrays[:-1]
        if opcode == "custom-call" and len(arrays) > 1:
            arrays = [a for a in arrays if a.dtype not in ("u8", "s8")]  # workspace
        return arrays

    def source(self, name: str) -> str:
        """The instruction that computes a value: through tuples and bitcasts."""
        at = self.by_name.get(name)
        while at is not None and at.opcode in VIEWS and at.operands:
            inner = self.by_name.get(at.operands[0])
            if at.opcode == "get-tuple-element" and inner and inner.opcode == "tuple":
                inner = self.by_name.get(inner.operands[at.index])
            name, at = (inner.name if inner else at.operands[0]), inner
        return name

    def consumers(self, name: str) -> Iterator[tuple[Instruction, str]]:
        """Instructions that use a value, through bitcasts, and the name they use."""
        for user in self.users.get(name, ()):
            if user.opcode in VIEWS:
                yield from self.consumers(user.name)
            else:
                yield user, name

    def called(self, instruction: Instruction) -> Iterator[Instruction]:
        """The instructions of the computations that an instruction calls."""
        for name in instruction.calls:
            yield from self.computations.get(name, ())

    def executed(self) -> Iterator[tuple[Instruction, int]]:
        """Each scheduled instruction, and how often it runs in one call.

        Bodies of loops run once per iteration; all branches of a conditional count.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int) -> Iterator[tuple[Instruction, int]]:
        for instruction in self.computations.get(name, ()):
            yield instruction, times
            if instruction.base in ("while", "call", "conditional", "async"):
                iterations = self._iterations(instruction)
                for called in instruction.calls:
                    yield from self._executed(called, times * iterations)

    def _iterations(self, instruction: Instruction) -> int:
        """Iterations of a loop: as written, or the bound in its condition from 0."""
        if instruction.opcode != "while":
            return 1
        if written := _TRIP_COUNT.search(instruction.attributes):
            return int(written[1])
        constants = [
            inner.value
            for called in instruction.calls
            if (body := self.computations.get(called, ()))
            and body[-1].shape.startswith("pred[]")  # the condition returns a bool
            for inner in body
            if inner.opcode == "constant" and inner.value >= 0
        ]
        return constants[0] if len(constants) == 1 else 1

    def place(self, instruction: Instruction) -> Place:
        """The place of an instruction, from its scopes or those of what it fuses."""
        op_name, frame = instruction.op_name, instruction.frame
        if not op_name:
            op_name, frame = self._inner(instruction)
        place = place_of(op_name)
        if place.module:
            return place
        for path, function in self.frames.get(frame, ()):
            for key, module in SOURCES.items():
                if key == function or ("/" in key and key in path):
                    return Place(module, place.gradient)
        return place

    def _inner(self, instruction: Instruction) -> tuple[str, int]:
        """The most common scopes in the computations that an instruction calls."""
        names = collections.Counter(
            (inner.op_name, inner.frame)
            for inner in self.called(instruction)
            if inner.op_name
        )
        return names.most_common(1)[0][0] if names else ("", 0)


def parse(text: str) -> Module:
    """Parse the text of a compiled module, `compiled.as_text()`."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _LINE.match(line)):
            current.append(_instruction(match[1], match[2]))
    return Module(entry, computations, _frames(text))


def _instruction(name: str, text: str) -> Instruction:
    shape, rest = _until(text, " ")
    opcode, _, rest = rest.partition("(")
    operands, attributes = _until(rest, ")")
    calls = [n for part in _CALLED.findall(attributes) for n in _NAME.findall(part)]
    op_name = _OP_NAME.search(attributes)
    return Instruction(
        name=name,
        opcode=opcode,
        shape=shape,
        operands=tuple(_NAME.findall(operands)),
        calls=tuple(calls),
        op_name=op_name[1] if op_name else "",
        frame=_number(_FRAME, attributes, default=0),
        cycles=_number(_CYCLES, attributes, default=0),
        index=_number(_INDEX, attributes, default=-1),
        value=int(operands) if operands.isdigit() else -1,
        target=target[1] if (target := _TARGET.search(attributes)) else "",
        attributes=attributes,
    )


def _number(pattern: re.Pattern[str], text: str, *, default: int) -> int:
    match = pattern.search(text)
    return int(match[1]) if match else default


def _until(text: str, end: str) -> tuple[str, str]:
    """Split at the first `end` outside brackets."""
    depth = 0
    for k, character in enumerate(text):
        if character == end and depth == 0:
            return text[:k], text[k + 1 :]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
    return text, ""


def _frames(text: str) -> dict[int, list[tuple[str, str]]]:
    """Stack frames, from the four tables at the start of the text."""
    files, functions = (
        dict(re.findall(r'^(\d+) "(.*)"$', _table(text, name), re.M))
        for name in ("FileNames", "FunctionNames")
    )
    places = {
        number: (
            files.get(fields["file_name_id"], ""),
            functions.get(fields["function_name_id"], ""),
        )
        for number, fields in _rows(_table(text, "FileLocations"))
    }
    rows = dict(_rows(_table(text, "StackFrames")))
    frames: dict[int, list[tuple[str, str]]] = {}
    for number in rows:
        stack, frame = [], number
        while frame in rows:
            stack.append(places.get(rows[frame]["file_location_id"], ("", "")))
            # Parents are written plus one; the outermost frame has 0 after subtraction.
            frame = str(int(rows[frame]["parent_frame_id"]) - 1)
        frames[int(number)] = stack
    return frames


def _table(text: str, name: str) -> str:
    match = re.search(rf"^{name}\n(.*?)\n\n", text, re.M | re.S)
    return match[1] + "\n" if match else ""


def _rows(table: str) -> Iterator[tuple[str, dict[str, str]]]:
    for number, fields in re.findall(r"^(\d+) \{(.*)\}$", table, re.M):
        yield number, dict(_FIELD.findall(fields))


def place_of(op_name: str) -> Place:
    """The module path and the pass of an `op_name`, such as

    `jit(step)/shard_map/transpose(jvp(UpProj))/decoder/up4/conv/conv_general_dilated`.

    The module path follows the differentiated network; the last word is the primitive.
    """
    words = _words(op_name)
    at = [k for k, word in enumerate(words) if "jvp(" in word]
    if not at:
        return Place("", False)
    modules = [word for word in words[at[0] + 1 : -1] if not _is_scope_of_jax(word)]
    return Place("/".join(modules), any("transpose(" in word for word in words))


def _words(op_name: str) -> list[str]:
    """Split at slashes outside brackets."""
    words, rest = [], op_name
    while rest:
        word, rest = _until(rest, "/")
        words.append(word)
    return words


def _is_scope_of_jax(word: str) -> bool:
    """Whether a word is not a module: `jit(relu)`, `checkpoint`, `encoder._stem`."""
    scopes = ("checkpoint", "rematted_computation", "closed_call", "while", "body")
    return "(" in word or "." in word or word in scopes or word[:1].isupper()


def collectives(module: Module) -> list[dict[str, Any]]:
    """The collectives of one call: kind, purpose, count, and bytes per chip.

    The compiler combines collectives of several purposes into one instruction. Its
    count goes to the purpose with most of its bytes; the bytes go to each purpose.
    """
    parts = {
        (i.operands[0], i.index): i
        for instructions in module.computations.values()
        for i in instructions
        if i.opcode == "get-tuple-element" and i.operands
    }
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    sizes: collections.Counter[tuple[str, str]] = collections.Counter()
    for instruction, times in module.executed():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        by_purpose: collections.Counter[str] = collections.Counter()
        for k, array in enumerate(module.results(instruction)):
            part = parts.get((instruction.name, k), instruction)
            by_purpose[_purpose(module.place(part), array.shape)] += array.bytes
        for purpose, size in by_purpose.items():
            sizes[kind, purpose] += size * times
        if by_purpose:
            counts[kind, by_purpose.most_common(1)[0][0]] += times
    return [
        {
            "kind": kind,
            "purpose": purpose,
            "count": counts[kind, purpose],
            "bytes": size,
        }
        for (kind, purpose), size in sizes.most_common()
    ]


def _purpose(place: Place, shape: tuple[int, ...]) -> str:
    if place.group == "input":
        return "frames of the batch"
    if not shape:
        return "loss and counts"
    if place.module in SOURCES.values() or not place.module:
        return "gradients, running statistics"
    return "statistics' gradients" if place.gradient else "batch statistics"
