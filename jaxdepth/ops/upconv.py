"""The up-convolution of up-projection blocks: unpool to twice the size, then 5x5.

One linear operator in five forms that are equal in value and gradient and differ in
cost alone. Normalisation, biases and the second branch are the caller's.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxdepth.ops import platform
from jaxdepth.ops.conv import TINY_MAP, conv2d
from jaxdepth.runtime.errors import UserError

FORMS = ("plain", "dilated", "four", "packed", "rows")
UNPOOLS = ("zero", "average")
PADDING_SIDES = ("bottom_right", "top_left")

Pads = tuple[tuple[int, int], tuple[int, int]]


def default_form(platform: str) -> str:
    """The cheapest form on a platform ("tpu", "cpu" or "gpu").

    `dilated` on TPU, where the compiler skips the zeros and interleaving costs more
    than it saves (from compiler estimates, v5e). `four` on CPU, where the kernel
    gradient of `dilated` is 28 to 90 times slower than that of `four` (measured,
    float32, AVX-512). `four` on GPU and elsewhere: nothing was measured there.
    """
    return "dilated" if platform == "tpu" else "four"


def unpool(x: Float[Array, "b h w c"], kind: str) -> Float[Array, "b h2 w2 c"]:
    """Unpool to twice the size: each entry goes to the upper left of a 2x2 cell.

    The other three are zero (`"zero"`), or (`"average"`) between two entries their
    mean and on the diagonal the mean of four; the map goes on as zeros past its end.

    Args:
      x: feature map.
      kind: "zero" or "average".

    Returns: the map of (2h, 2w), in the dtype of x.
    Source: Laina et al. 2016, section 3.2, after Dosovitskiy et al. 2015 (zero); the
      average was proposed without naming the diagonal, which is our choice.
    """
    _check("unpool", kind, UNPOOLS)
    if kind == "zero":
        zero = jnp.zeros((), x.dtype)
        return lax.pad(x, zero, ((0, 0, 0), (0, 1, 1), (0, 1, 1), (0, 0, 0)))
    for axis in (1, 2):
        following = lax.slice_in_dim(_pad_cells(x, axis, 0, 1), 1, None, axis=axis)
        x = _interleave(x, 0.5 * (x + following), axis)
    return x


def upconv(
    x: Float[Array, "b h w cin"],
    kernel: Float[Array, "5 5 cin cout"],
    *,
    unpool: str = "zero",
    padding_side: str = "bottom_right",
    form: str = "auto",
    precision: lax.PrecisionLike = None,
) -> Float[Array, "b h2 w2 cout"]:
    """Unpool to twice the size and convolve by 5x5, without computing the zeros.

        u = unpool(x);   y[p, q] = sum_{a,b=0..4} kernel[a, b] u[p + a - 2, q + b - 2]

    Beyond its edges the feature map x, not u, is extended by zeros. The two say the
    same for zero unpooling. For average unpooling ours puts x[0]/2 into row and
    column -1 of u, and makes unpooling and 5x5 exactly one 7x7 over the zero-unpooled
    map.

    `padding_side="top_left"` takes every odd row from two rows above, and every odd
    column from two columns to the left: `y[2i+1]` becomes what `y[2i-1]` is
    otherwise. For zero unpooling that is what the published FCRN network computes,
    whose odd phases read the entries i-1 and i instead of i and i+1. For average
    unpooling, which was never published with it, the same shift is applied.

    Forms, and multiplications per entry and pair of channels (zero / average
    unpooling): `plain` unpools and convolves (100 / 100); `dilated` is one
    convolution with `lhs_dilation=2` (25 / 49); `four` convolves each output phase
    by its own taps (25 / 49) and interleaves; `packed` is one convolution to 4 cout
    channels and depth to space (36 / 64); `rows` one for even and one for odd rows
    to 2 cout channels each (30 / 56). `auto`: `default_form` of the platform; on CPU
    with the gradients of whichever form has the cheapest, which are taken in reverse
    mode alone, and with averages taken of the outputs (25 on a map one larger).

    Args:
      x: feature map, any height and width.
      kernel: 5x5 whatever the form.
      unpool: "zero" or "average".
      padding_side: "bottom_right" or "top_left".
      form: "auto" or one of `FORMS`.
      precision: of the products, as in `jax.lax.conv_general_dilated`.

    Returns: (b, 2h, 2w, cout), in the dtype of x.
    Raises: UserError on a name that is none of the above.
    Source: Laina et al. 2016, section 3.2; the four phases: their figure 3.
    """
    chosen = form == "auto"
    if chosen:
        form = default_form(platform.current())
    _check("upconv", form, FORMS)
    _check("unpool", unpool, UNPOOLS)
    _check("padding_side", padding_side, PADDING_SIDES)
    if form == "plain":
        return _plain(x, kernel, unpool, padding_side, precision)
    if chosen and platform.current() == "cpu":
        if unpool == "average":
            return _averaged(x, kernel, padding_side, precision)
        return _mixed(x, kernel, _phases(unpool, padding_side), precision)
    if unpool == "average":
        kernel = _fold_average(kernel)
    return _COMPACT[form](x, kernel, _phases(unpool, padding_side), precision)


def add_phase_bias(
    y: Float[Array, "b h2 w2 c"], bias: Float[Array, "2 2 c"]
) -> Float[Array, "b h2 w2 c"]:
    """Add a bias of its own to each of the four output phases.

        out[p, q] = y[p, q] + bias[p mod 2, q mod 2]

    The published FCRN network computes the phases by four convolutions that have a
    bias each.
    """
    _, height, width, _ = y.shape
    # A tiled bias is added in place in any memory layout; reshaping y to expose its
    # phases would force one.
    return y + jnp.tile(bias.astype(y.dtype), (height // 2, width // 2, 1))[None]


@dataclasses.dataclass(frozen=True)
class _Phase:
    """One axis of an output phase: kernel taps that meet entries i - low .. i + high.

    These are also the zeros to pad with, so that as many come out as go in.
    """

    taps: tuple[int, ...]
    low: int
    high: int


def _phases(kind: str, padding_side: str) -> tuple[_Phase, _Phase]:
    """The even and the odd phase, of the 5 taps (zero) or the folded 7 (average)."""
    if kind == "zero":
        even, odd = _Phase((0, 2, 4), 1, 1), _Phase((1, 3), 0, 1)
    else:
        even, odd = _Phase((1, 3, 5), 1, 1), _Phase((0, 2, 4, 6), 1, 2)
    if padding_side == "top_left":
        odd = dataclasses.replace(odd, low=odd.low + 1, high=odd.high - 1)
    return even, odd


def _fold_average(kernel):
    """5x5 over the averaged map as 7x7 over the zero-unpooled one: kernel * t,

    t the outer product of (1/2, 1, 1/2) with itself.
    """
    for axis in (0, 1):
        first, middle, last = (_pad_cells(kernel, axis, k, 2 - k) for k in range(3))
        kernel = middle + 0.5 * (first + last)
    return kernel


def _plain(x, kernel, kind, padding_side, precision):
    # One more row and column of zeros at the top and left: their average with x[0]
    # belongs to the unpooled map, which then starts at -2.
    x = _pad_cells(_pad_cells(x, 1, 1, 0), 2, 1, 0)
    unpooled = unpool(x, kind)
    if padding_side == "bottom_right":
        return _conv(unpooled, kernel, ((0, 2), (0, 2)), precision)
    y = _conv(unpooled, kernel, ((2, 2), (2, 2)), precision)
    for axis in (1, 2):
        end = y.shape[axis]
        even = lax.slice_in_dim(y, 2, end, 2, axis)
        odd = lax.slice_in_dim(y, 1, end - 2, 2, axis)
        y = _interleave(even, odd, axis)
    return y


def _dilated(x, kernel, phases, precision):
    pads = []
    for axis in (0, 1):
        kernel, low, high = _common_taps(kernel, phases, axis)
        pads.append((low, high + 1))
    return _conv(x, kernel, tuple(pads), precision, lhs_dilation=(2, 2))


def _common_taps(kernel, phases, axis):
    """One kernel over the zero-unpooled map for both phases.

    Phase r's tap j meets the unpooled map at the offset 2 (j - low) - r. Returns the
    kernel, and how far it reaches back and ahead.
    """
    at = {
        2 * (j - phase.low) - r: tap
        for r, phase in enumerate(phases)
        for j, tap in enumerate(phase.taps)
    }
    low, high = -min(at), max(at)
    # Past the end stands a zero, for offsets that meet no tap.
    nothing = kernel.shape[axis]
    order = [at.get(offset, nothing) for offset in range(-low, high + 1)]
    return _take(_pad_cells(kernel, axis, 0, 1), order, axis), low, high


def _four(x, kernel, phases, precision):
    def row_phase(row: _Phase):
        taps = _take(kernel, row.taps, 0)
        even, odd = (
            _conv(x, _take(taps, column.taps, 1), _pads(row, column), precision)
            for column in phases
        )
        return _interleave(even, odd, 2)

    even, odd = phases
    return _interleave(row_phase(even), row_phase(odd), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mixed(x, kernel, phases, precision):
    """`_four`, with the gradients of the forms whose gradients are cheapest on CPU."""
    return _four(x, kernel, phases, precision)


def _mixed_forward(x, kernel, phases, precision):
    return _four(x, kernel, phases, precision), (x, kernel)


def _mixed_backward(phases, precision, saved, gradient):
    x, kernel = saved
    # Of `dilated` it is one convolution of stride 2, without a phase to pick apart. But
    # tiny maps are to be convolved as products, which `four` alone does.
    form = _four if x.shape[1] * x.shape[2] <= TINY_MAP else _dilated
    _, to_input = jax.vjp(lambda x: form(x, kernel, phases, precision), x)
    if x.size // x.shape[-1] <= x.shape[-1]:
        to_kernel = _kernel_gradient_by_taps(x, kernel, phases, precision, gradient)
    else:
        _, pull = jax.vjp(lambda kernel: _four(x, kernel, phases, precision), kernel)
        (to_kernel,) = pull(gradient)
    return *to_input(gradient), to_kernel


_mixed.defvjp(_mixed_forward, _mixed_backward)


def _averaged(x, kernel, padding_side, precision):
    """Average unpooling as means of what zero unpooling gives, past its edges, too.

    Both are convolutions and change places: what is averaged is not a kernel larger
    than the map, and 25 products an entry remain of 49.
    """
    behind = padding_side == "top_left"
    if behind:
        # From output -2 on: odd ones are to come from two before.
        phases = _phases("zero", "bottom_right")
    else:
        # From -1 on, which is odd, to 2h.
        phases = _Phase((1, 3), 1, 0), _Phase((0, 2, 4), 1, 1)
    for axis in (1, 2):
        x = _pad_cells(x, axis, int(behind), int(not behind))
    y: Any = _mixed(x, kernel, phases, precision)
    for axis in (1, 2):
        first, middle, last = (
            lax.slice_in_dim(y, k, y.shape[axis] - 2 + k, axis=axis) for k in range(3)
        )
        y = middle + 0.5 * (first + last)
        if behind:
            odd, even = (lax.slice_in_dim(y, k, None, 2, axis=axis) for k in range(2))
            y = _interleave(even, odd, axis)
    return y


def _kernel_gradient_by_taps(x, kernel, phases, precision, gradient):
    """One matrix product a tap: of the map, and of the outputs that the tap reaches.

    The kernel's gradient is written once. From four phases it has to be put together,
    which for a kernel larger than the map takes longer than the products.
    """
    _, h, w, channels = x.shape
    offsets = _tap_offsets(phases)
    reach = max(abs(offset) for offset in offsets)
    padded = jnp.pad(gradient, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    entries = x.reshape(-1, channels)

    def product(row, column):
        # A tap brings entry i to output 2i - offset.
        top, left = reach - row, reach - column
        outputs = padded[:, top : top + 2 * h : 2, left : left + 2 * w : 2]
        outputs = outputs.reshape(-1, gradient.shape[-1])
        contract = (((0,), (0,)), ((), ()))
        return lax.dot_general(entries, outputs, contract, precision=precision)

    taps = [product(row, column) for row in offsets for column in offsets]
    return jnp.stack(taps).reshape(kernel.shape)


def _tap_offsets(phases):
    """Of each tap, in order: where it meets the unpooled map, from an output on."""
    at = {
        tap: 2 * (j - phase.low) - r
        for r, phase in enumerate(phases)
        for j, tap in enumerate(phase.taps)
    }
    return [at[tap] for tap in sorted(at)]


def _packed(x, kernel, phases, precision):
    kernel, row = _pack(kernel, phases, 0)
    kernel, column = _pack(kernel, phases, 1)
    y = _conv(x, kernel, _pads(row, column), precision)
    b, h, w, _ = y.shape
    # Channels are (column phase, row phase, cout), in the order of packing.
    y = y.reshape(b, h, w, 2, 2, -1).transpose(0, 1, 4, 2, 3, 5)
    return y.reshape(b, 2 * h, 2 * w, -1)


def _rows(x, kernel, phases, precision):
    kernel, column = _pack(kernel, phases, 1)
    b, h, w, _ = x.shape
    even, odd = (
        _conv(x, _take(kernel, row.taps, 0), _pads(row, column), precision).reshape(
            b, h, 2 * w, -1
        )
        for row in phases
    )
    return _interleave(even, odd, 1)


def _pack(kernel, phases, axis):
    """Both phases of an axis side by side in the output channels.

    Each phase's taps are put into the window that covers both, zero elsewhere.
    Returns the kernel with 2 cout outputs, (phase, cout), and the window.
    """
    low = max(phase.low for phase in phases)
    high = max(phase.high for phase in phases)
    windows = [
        _pad_cells(
            _take(kernel, phase.taps, axis), axis, low - phase.low, high - phase.high
        )
        for phase in phases
    ]
    return jnp.concatenate(windows, axis=-1), _Phase((), low, high)


_COMPACT = {"dilated": _dilated, "four": _four, "packed": _packed, "rows": _rows}


def _conv(x, kernel, pads, precision, lhs_dilation=None):
    if lhs_dilation is None:
        return conv2d(x, kernel, padding=pads, precision=precision)
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        pads,
        lhs_dilation=lhs_dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _interleave(even, odd, axis):
    """even[0], odd[0], even[1], odd[1], ... along an axis."""
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


def _pad_cells(x, axis, low, high):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (low, high)
    return jnp.pad(x, widths)


def _take(kernel, taps, axis):
    """Slices of the kernel, joined: cheaper than a gather, and so is the gradient."""
    return jnp.concatenate(
        [lax.slice_in_dim(kernel, tap, tap + 1, axis=axis) for tap in taps], axis
    )


def _pads(row: _Phase, column: _Phase) -> Pads:
    return (row.low, row.high), (column.low, column.high)


def _check(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UserError(f"{what}={name}: one of {', '.join(known)}")
