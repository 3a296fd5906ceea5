"""`benchmark.py upconv`: operators in their forms, forward and both gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdepth.commands.benchmark import networks, timing
from jaxdepth.commands.benchmark.report import Report, device_name, number
from jaxdepth.commands.benchmark.timing import Contestant
from jaxdepth.config import parse_size
from jaxdepth.models import ARCHS, output_size
from jaxdepth.ops import conv, platform
from jaxdepth.ops.upconv import FORMS, upconv
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import UserError

LETTERS = {"plain": "a", "dilated": "b", "four": "c"}
DIRECTIONS = ("forward", "input gradient", "kernel gradient")
PARTS = ("upconv", "pointwise", "transposed")


@dataclasses.dataclass(frozen=True)
class UpconvSettings:
    """Operators of the networks in their forms: forward, input and kernel gradient.

    The up-convolutions at the four blocks of upproj, 1x1 convolutions at the stages of
    ResNet-50, and the transposed convolution of cnn_trans.
    """

    size: str = "228x304"
    """Input of the network that the blocks belong to, HEIGHTxWIDTH."""
    batch_size: int = 4
    """Images."""
    precision: Literal["f32", "bf16"] = "f32"
    """Arithmetic."""
    unpool: Literal["zero", "average", "both"] = "both"
    """What an up-projection puts between two entries."""
    forms: str = "all"
    """Forms by commas, as in four,dilated."""
    blocks: str = "1,2,3,4"
    """Which up-projections, by commas."""
    parts: str = "upconv,pointwise,transposed"
    """Which operators, by commas."""
    thin: int = 1
    """Divide all channels by this: for trials."""
    peer: Literal["none", "torch"] = "none"
    """PyTorch's operators in the same turns."""
    repeats: int = 5
    """Turns, after one that doesn't count."""
    seconds: float = 0.2
    """Each turn repeats its operator until so many have passed."""
    skip_s: float = 2.0
    """Forms whose first call takes so many seconds are given up."""
    json: str | None = None
    """A file for everything that was measured; an existing one is not overwritten."""
    csv: str | None = None
    """A file for the tables; likewise."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "thin", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least 1")
        parse_size(self.size)
        _words("forms", self.forms, ("all", "auto", *FORMS))
        _words("blocks", self.blocks, ("1", "2", "3", "4"))
        _words("parts", self.parts, PARTS)

    @property
    def dtype(self) -> Any:
        return jnp.bfloat16 if self.precision == "bf16" else jnp.float32


def _words(flag: str, text: str, known: tuple[str, ...]) -> list[str]:
    words = text.split(",")
    for word in words:
        if word not in known:
            raise UserError(f"--{flag}={text}: of {', '.join(known)}")
    return words


Form = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
      name: shape in words.
      x, kernel: shapes, NHWC and HWIO.
      forms: name -> function of both.
      torch: names in `peer_ops.FORMS`.
    """

    name: str
    x: tuple[int, ...]
    kernel: tuple[int, ...]
    forms: dict[str, Form]
    torch: tuple[str, ...] = ()


def run(settings: UpconvSettings, report: Report) -> None:
    """Tables of milliseconds by form and direction."""
    report.say(
        f"operators in {settings.precision}, batch {settings.batch_size}, on "
        f"{device_name()}; auto is {_auto()}"
    )
    if settings.peer == "torch":
        networks.check_torch()
        from jaxdepth.commands.benchmark import peer_runs

        peer_runs.check_device()
    for part in settings.parts.split(","):
        makers = {"upconv": up_cases, "pointwise": pointwise_cases}
        for case in makers.get(part, transposed_cases)(settings):
            _measure(case, settings, report)


def _auto() -> str:
    from jaxdepth.ops.upconv import default_form

    return f"{default_form(jax.default_backend())} here"


def up_cases(settings: UpconvSettings) -> list[Case]:
    """The up-convolutions of the chosen blocks."""
    model: Any = ARCHS["upproj"]()
    height, width = output_size("upproj", parse_size(settings.size))
    features = (model.decoder_in, *model.decoder_features)
    wanted = ["auto", *FORMS]
    if settings.forms != "all":
        wanted = settings.forms.split(",")
    kinds = ("zero", "average") if settings.unpool == "both" else (settings.unpool,)
    cases = []
    for kind in kinds:
        for block in (int(word) for word in settings.blocks.split(",")):
            shrink = 2 ** (len(features) - block)
            cin, cout = (max(1, c // settings.thin) for c in features[block - 1 :][:2])
            x = (settings.batch_size, height // shrink, width // shrink, cin)
            forms = {_named(form): _up_form(form, kind) for form in wanted}
            name = (
                f"5x5 up-convolution {block}, {kind} unpooling, {_shape(x)} -> {cout}"
            )
            torch = ("unpool", "transposed", "phases") if kind == "zero" else ()
            cases.append(Case(name, x, (5, 5, cin, cout), forms, torch))
    return cases


def _named(form: str) -> str:
    return f"{LETTERS[form]} {form}" if form in LETTERS else form


def _up_form(form: str, kind: str) -> Form:
    return lambda x, kernel: upconv(x, kernel, unpool=kind, form=form)


def pointwise_cases(settings: UpconvSettings) -> list[Case]:
    """1x1 convolutions at ResNet-50's stages: as ours, as dot and as convolution."""
    height, width = parse_size(settings.size)
    cases = []
    for stage in range(4):
        shrink = 4 * 2**stage
        inner = max(1, 64 * 2**stage // settings.thin)
        for cin, cout in ((inner, 4 * inner), (4 * inner, inner)):
            x = (settings.batch_size, -(-height // shrink), -(-width // shrink), cin)
            forms: dict[str, Form] = {"ours": conv.conv2d, "dot": _dot, "conv": _conv}
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
    """The last layer of `cnn_trans`: as ours, by lax.conv_transpose, and by phases."""
    height, width = output_size("cnn_trans", parse_size(settings.size))
    model: Any = ARCHS["cnn_trans"]()
    cin = max(1, model.features[-1] // settings.thin)
    x = (settings.batch_size, -(-height // 2), -(-width // 2), cin)
    forms: dict[str, Form] = {
        "ours": conv.transposed_conv2x,
        "lax.conv_transpose": _lax_transposed,
    }
    name = f"transposed 3x3 convolution, {_shape(x)} -> 1"
    return [Case(name, x, (3, 3, cin, 1), forms, ("transposed",))]


def _lax_transposed(x, kernel):
    return lax.conv_transpose(x, kernel, (2, 2), ((1, 2), (1, 2)))


def _shape(x: tuple[int, ...]) -> str:
    return f"{x[1]}x{x[2]}x{x[3]}"


def _measure(case: Case, settings: UpconvSettings, report: Report) -> None:
    """All forms of a case in turns, one direction after the other."""
    names: list[str] = []
    medians: list[dict[str, float]] = []
    for direction in DIRECTIONS:
        contestants = _contestants(case, direction, settings)
        slow = [one for one in contestants if _seconds(one) > settings.skip_s]
        for one in slow:
            report.say(f"{case.name}, {direction}: {one.name} is too slow, given up")
        rest = [one for one in contestants if one not in slow]
        times = timing.race(rest, repeats=settings.repeats, seconds=settings.seconds)
        found = {name: [1e3 * t for t in seconds] for name, seconds in times.items()}
        report.keep(f"{case.name}, {direction}", found, "ms")
        names = [one.name for one in contestants]
        medians.append({name: float(np.median(ms)) for name, ms in found.items()})
    rows = [[name, *(_beside(found, name) for found in medians)] for name in names]
    columns = ("form", *DIRECTIONS)
    terminal.print_table(f"{case.name} [ms, times the fastest]", columns, rows)


def _beside(medians: dict[str, float], name: str) -> str | None:
    """A time and how many times the shortest it is; None where it was given up."""
    if name not in medians:
        return None
    return f"{number(medians[name])} ({medians[name] / min(medians.values()):.2f})"


def _contestants(
    case: Case, direction: str, settings: UpconvSettings
) -> list[Contestant]:
    """All forms of a case in one direction, ours and the peers'."""
    found = [
        _contestant(name, form, case, direction, settings.dtype)
        for name, form in case.forms.items()
    ]
    if settings.peer == "torch":
        from jaxdepth.commands.benchmark import peer_ops

        found += peer_ops.contestants(case, direction, settings.dtype)
    return found


def _seconds(one: Contestant) -> float:
    """Of the first call, or the second where the first was slow, which may warm up."""
    first = timing.seconds_per_call(one, 1)
    return first if first < 0.5 else timing.seconds_per_call(one, 1)


def _contestant(
    name: str, form: Form, case: Case, direction: str, dtype: Any
) -> Contestant:
    """A form in one direction, on random inputs of which there are several."""
    out = jax.eval_shape(
        form,
        jax.ShapeDtypeStruct(case.x, dtype),
        jax.ShapeDtypeStruct(case.kernel, dtype),
    ).shape
    keys = iter(jax.random.split(jax.random.key(0), 6))
    xs, kernels, ys = (
        [jax.random.normal(next(keys), shape, dtype) for _ in range(2)]
        for shape in (case.x, case.kernel, out)
    )

    def gradient(number: int):
        # The operator is linear in both: the forward pass itself is left out.
        return jax.jit(lambda x, kernel, y: jax.vjp(form, x, kernel)[1](y)[number])

    functions = {
        "forward": jax.jit(lambda x, kernel, y: form(x, kernel)),
        "input gradient": gradient(0),
        "kernel gradient": gradient(1),
    }
    lowered = functions[direction].lower(xs[0], kernels[0], ys[0])
    function = lowered.compile(platform.compiler_options())
    calls = iter(range(10**9))

    def call():
        k = next(calls) % 2
        return function(xs[k], kernels[k], ys[k])

    return Contestant(name, call, jax.block_until_ready)
