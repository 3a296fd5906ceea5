"""`jaxdepth benchmark upconv`: forms of operators, forward and both gradients."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdepth.commands.benchmark import networks, timing
from jaxdepth.commands.benchmark.report import Report, device_name, number
from jaxdepth.commands.benchmark.settings import check_names
from jaxdepth.commands.benchmark.timing import Workload
from jaxdepth.config import parse_size
from jaxdepth.models import ARCHS, output_size
from jaxdepth.ops import conv, platform
from jaxdepth.ops.upconv import FORMS, default_form, upconv
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import terminal
from jaxdepth.runtime.flags import flag

DIRECTIONS = ("forward", "input gradient", "kernel gradient")


@dataclasses.dataclass(frozen=True)
class UpconvSettings:
    """Measure forms of operators: forward pass, input and kernel gradient.

    Operators: the up-convolutions of upproj, the 1x1 convolutions of ResNet-50, and the
    transposed convolution of cnn_trans.
    """

    size: str = "228x304"
    """Input size of the network, HEIGHTxWIDTH."""
    batch_size: int = flag(4, at_least=1)
    """Images per batch."""
    precision: Literal["f32", "bf16"] = "f32"
    """Arithmetic."""
    unpool: Literal["zero", "average", "both"] = "both"
    """Unpooling of an up-projection, as for training."""
    forms: str = "all"
    """Forms of the up-convolution, comma-separated, as in four,transposed."""
    blocks: str = "1,2,3,4"
    """Up-projections, comma-separated."""
    parts: str = "upconv,pointwise,transposed"
    """Operators, comma-separated."""
    thin: int = flag(1, at_least=1)
    """Divide all channel counts by this, for trials."""
    peer: Literal["none", "torch"] = "none"
    """torch: time PyTorch operators in the same turns."""
    repeats: int = flag(5, at_least=1)
    """Number of turns after the discarded first one."""
    seconds: float = 0.2
    """Minimum length of a turn, seconds."""
    skip_s: float = 2.0
    """Skip forms whose call takes longer than this, seconds."""
    json: str | None = None
    """New file for all results as JSON."""

    def __post_init__(self) -> None:
        flags_lib.validate(self)
        parse_size(self.size)
        check_names("forms", self.forms, ("all", "auto", *FORMS))
        check_names("blocks", self.blocks, ("1", "2", "3", "4"))
        check_names("parts", self.parts, tuple(OPERATORS))

    @property
    def dtype(self) -> Any:
        return jnp.bfloat16 if self.precision == "bf16" else jnp.float32


Form = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
      name: title of its table.
      x, kernel: shapes, NHWC and HWIO.
      forms: name -> function of input and kernel.
      torch: names in `peer_ops.FORMS`.
    """

    name: str
    x: tuple[int, ...]
    kernel: tuple[int, ...]
    forms: dict[str, Form]
    torch: tuple[str, ...] = ()


def run(settings: UpconvSettings, report: Report) -> None:
    """Print a table of milliseconds by form and direction for each operator."""
    auto = default_form(jax.default_backend())
    report.note(
        f"operators in {settings.precision}, batch {settings.batch_size}, on "
        f"{device_name()}; --upconv=auto is {auto}"
    )
    if settings.peer == "torch":
        networks.check_torch()
        from jaxdepth.commands.benchmark import peer_runs

        peer_runs.check_device()
    for part in settings.parts.split(","):
        for case in OPERATORS[part](settings):
            _measure(case, settings, report)


def up_cases(settings: UpconvSettings) -> list[Case]:
    """The up-convolutions of the selected blocks."""
    model: Any = ARCHS["upproj"].module()
    height, width = output_size("upproj", parse_size(settings.size))
    features = (model.decoder_in, *model.decoder_features)
    names = ["auto", *FORMS] if settings.forms == "all" else settings.forms.split(",")
    kinds = ("zero", "average") if settings.unpool == "both" else (settings.unpool,)
    cases = []
    for kind in kinds:
        for block in (int(word) for word in settings.blocks.split(",")):
            shrink = 2 ** (len(features) - block)
            cin, cout = (max(1, c // settings.thin) for c in features[block - 1 :][:2])
            x = (settings.batch_size, height // shrink, width // shrink, cin)
            forms: dict[str, Form] = {
                form: functools.partial(upconv, unpool=kind, form=form)
                for form in names
            }
            name = (
                f"5x5 up-convolution {block}, {kind} unpooling, {_shape(x)} -> {cout}"
            )
            torch = ("unpool", "transposed", "phases") if kind == "zero" else ()
            cases.append(Case(name, x, (5, 5, cin, cout), forms, torch))
    return cases


def pointwise_cases(settings: UpconvSettings) -> list[Case]:
    """The 1x1 convolutions of ResNet-50: `conv2d`, a dot product, a convolution."""
    height, width = parse_size(settings.size)
    forms: dict[str, Form] = {"jaxdepth": conv.conv2d, "dot": _dot, "conv": _conv}
    cases = []
    for stage in range(4):
        shrink = 4 * 2**stage
        inner = max(1, 64 * 2**stage // settings.thin)
        for cin, cout in ((inner, 4 * inner), (4 * inner, inner)):
            x = (settings.batch_size, -(-height // shrink), -(-width // shrink), cin)
            name = f"1x1 convolution, {_shape(x)} -> {cout}"
            cases.append(Case(name, x, (1, 1, cin, cout), forms, ("conv",)))
    return cases


def _dot(x, kernel):
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


def _conv(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=layout
    )


def transposed_cases(settings: UpconvSettings) -> list[Case]:
    """The last layer of `cnn_trans`: `transposed_conv2x` and `lax.conv_transpose`."""
    height, width = output_size("cnn_trans", parse_size(settings.size))
    model: Any = ARCHS["cnn_trans"].module()
    cin = max(1, model.features[-1] // settings.thin)
    x = (settings.batch_size, -(-height // 2), -(-width // 2), cin)
    transpose = functools.partial(
        lax.conv_transpose, strides=(2, 2), padding=((1, 2), (1, 2))
    )
    forms: dict[str, Form] = {
        "jaxdepth": conv.transposed_conv2x,
        "lax.conv_transpose": transpose,
    }
    name = f"transposed 3x3 convolution, {_shape(x)} -> 1"
    return [Case(name, x, (3, 3, cin, 1), forms, ("transposed",))]


OPERATORS: dict[str, Callable[[UpconvSettings], list[Case]]] = {
    "upconv": up_cases,
    "pointwise": pointwise_cases,
    "transposed": transposed_cases,
}


def _shape(x: tuple[int, ...]) -> str:
    return f"{x[1]}x{x[2]}x{x[3]}"


def _measure(case: Case, settings: UpconvSettings, report: Report) -> None:
    """Time all forms of a case, one direction after another, and print a table."""
    names: list[str] = []
    medians: list[dict[str, float]] = []
    for direction in DIRECTIONS:
        workloads = _workloads(case, direction, settings)
        slow = [w for w in workloads if first_call(w) > settings.skip_s]
        for workload in slow:
            report.note(f"{case.name}, {direction}: {workload.name} is slow, skipped")
        times = timing.time_alternating(
            [w for w in workloads if w not in slow],
            repeats=settings.repeats,
            seconds=settings.seconds,
        )
        samples = {name: [1e3 * t for t in seconds] for name, seconds in times.items()}
        report.keep(f"{case.name}, {direction}", samples, "ms")
        names = [workload.name for workload in workloads]
        medians.append({name: float(np.median(ms)) for name, ms in samples.items()})
    rows = [[name, *(_cell(column, name) for column in medians)] for name in names]
    columns = ("form", *DIRECTIONS)
    terminal.print_table(f"{case.name} [ms, times the fastest]", columns, rows)


def _cell(medians: dict[str, float], name: str) -> str | None:
    """A time and its ratio to the shortest one; None if the form was skipped."""
    if name not in medians:
        return None
    return f"{number(medians[name])} ({medians[name] / min(medians.values()):.2f})"


def _workloads(case: Case, direction: str, settings: UpconvSettings) -> list[Workload]:
    """All forms of a case in one direction, of JAX and of PyTorch."""
    workloads = [
        form_workload(name, form, case, direction, settings.dtype)
        for name, form in case.forms.items()
    ]
    if settings.peer == "torch":
        from jaxdepth.commands.benchmark import peer_ops

        workloads += peer_ops.workloads(case, direction, settings.dtype)
    return workloads


def first_call(workload: Workload) -> float:
    """Seconds of the first call; of the second if the first took over 0.5 s."""
    first = timing.seconds_per_call(workload, 1)
    return first if first < 0.5 else timing.seconds_per_call(workload, 1)


def form_workload(
    name: str, form: Form, case: Case, direction: str, dtype: Any
) -> Workload:
    """A form in one direction, alternating between two random inputs."""
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in (case.x, case.kernel)]
    out = jax.eval_shape(form, *shapes).shape
    keys = jax.random.split(jax.random.key(0), 2)
    arguments = [
        [jax.random.normal(key, shape, dtype) for shape in (case.x, case.kernel, out)]
        for key in keys
    ]

    def gradient(number: int):
        # The operator is linear in both, so the forward pass is not computed.
        return jax.jit(lambda x, kernel, y: jax.vjp(form, x, kernel)[1](y)[number])

    functions = {
        "forward": jax.jit(lambda x, kernel, y: form(x, kernel)),
        "input gradient": gradient(0),
        "kernel gradient": gradient(1),
    }
    lowered = functions[direction].lower(*arguments[0])
    function = lowered.compile(platform.compiler_options())
    inputs = itertools.cycle(arguments)
    return Workload(name, lambda: function(*next(inputs)), jax.block_until_ready)
