"""The up-convolution of up-projection blocks: 2x unpooling, then a 5x5 convolution.

One linear operator in three forms with equal values and gradients and different costs.
Normalisation, biases and the second branch belong to the block in
`jaxdepth.models.upproj`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from jaxdepth.ops import platform
from jaxdepth.ops.conv import (
    TINY_MAP,
    Padding,
    conv2d,
    flipped,
    has_large_kernel,
)
from jaxdepth.runtime.errors import UserError

FORMS = ("plain", "four", "transposed")
UNPOOLS = ("zero", "average")

# On TPU, kernel gradients whose output channels fill the lanes of its tiles are
# computed in the order of the stored kernel. In the other order, the compiler copies
# parameters and moments to it for the update and back: 9.0 instead of 5.1 MB an image
# and 75 instead of 59 kcycles for the first up-convolution with Adam (v5e, 128 images).
# The last one, with 64 output channels, would take 32 instead of 22 kcycles.
LANES = 128
PADDING_SIDES = ("bottom_right", "top_left")


def default_form(platform: str) -> str:
    """The cheapest form on a platform ("tpu", "cpu" or "gpu").

    `transposed` on GPU: compiled for an H100, the gradients of the last up-convolution
    move 7.9 MB an image in 4 kernels, instead of 35.8 MB in 22 (`four`), because
    nothing is interleaved. `transposed` on TPU too, where the compiler skips the zeros
    and interleaving costs more than it saves (estimates of the compiler, v5e). `four`
    on CPU, whose convolutions do not skip the zeros, and on other platforms.
    """
    return "transposed" if platform in ("tpu", "gpu") else "four"


def unpool(x: Float[Array, "b h w c"], kind: str) -> Float[Array, "b h2 w2 c"]:
    """Unpool to twice the size: each entry becomes the upper left one of a 2x2 cell.

    `"zero"` sets the other three entries of the cell to 0. `"average"` sets an entry
    between two neighbours to their mean and the diagonal one to the mean of four; the
    map is extended by zeros at the bottom and right.

    Args:
      x: feature map.
      kind: "zero" or "average".

    Returns: (b, 2h, 2w, c), in the dtype of x.
    Raises: UserError if `kind` is unknown.
    Source: Laina et al. 2016, section 3.2, after Dosovitskiy et al. 2015 (zero). The
      average was proposed without a rule for the diagonal; the mean of four is our
      choice.
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

    The feature map x, not u, is extended by zeros beyond its edges. For zero unpooling
    the two are equal. For average unpooling, extending x puts x[0]/2 into row and
    column -1 of u, which makes the operator exactly one 7x7 convolution of the
    zero-unpooled map.

    With `padding_side="top_left"`, y[2i+1] equals the y[2i-1] of "bottom_right", in
    rows and in columns. For zero unpooling this is the published FCRN network, whose
    odd phases read the entries i-1 and i instead of i and i+1. The same shift is
    applied for average unpooling, which the published networks do not use.

    Forms, with multiplications per entry and pair of channels (zero / average):

    - `plain` unpools, then convolves (100 / 100); the reference.
    - `four` convolves once per output phase with its taps and interleaves (25 / 49).
    - `transposed` is the transpose of one convolution of stride 2, in both gradients
      too, in reverse mode only (25 / 49 where the compiler skips the zeros).
    - `auto` is `default_form` of the platform. On CPU it also computes each gradient in
      the form that is cheapest for it, in reverse mode only, and averages outputs
      instead of inputs (25, on a map larger by one row and column).

    Args:
      x: feature map of any height and width.
      kernel: 5x5 in every form.
      unpool: "zero" or "average".
      padding_side: "bottom_right" or "top_left".
      form: "auto" or one of `FORMS`.
      precision: of the products, as in `jax.lax.conv_general_dilated`.

    Returns: (b, 2h, 2w, cout), in the dtype of x.
    Raises: UserError if `unpool`, `padding_side` or `form` is unknown.
    Source: Laina et al. 2016, section 3.2; the four phases: their figure 3.
    """
    is_auto = form == "auto"
    if is_auto:
        form = default_form(platform.current())
    _check("upconv", form, FORMS)
    _check("unpool", unpool, UNPOOLS)
    _check("padding_side", padding_side, PADDING_SIDES)
    if form == "plain":
        return _plain(x, kernel, unpool, padding_side, precision)
    if is_auto and platform.current() == "cpu":
        if unpool == "average":
            return _average_outputs(x, kernel, padding_side, precision)
        phases = _phases(unpool, padding_side)
        return _four_cheap_gradients(x, kernel, phases, precision)
    if unpool == "average":
        kernel = _fold_average(kernel)
    convolve = _transposed if form == "transposed" else _four
    return convolve(x, kernel, _phases(unpool, padding_side), precision)


def add_phase_bias(
    y: Float[Array, "b h2 w2 c"], bias: Float[Array, "2 2 c"]
) -> Float[Array, "b h2 w2 c"]:
    """Add a separate bias to each of the four output phases.

        out[p, q] = y[p, q] + bias[p mod 2, q mod 2]

    The published FCRN network computes the phases by four convolutions, each with a
    bias.
    """
    _, height, width, _ = y.shape
    # A tiled bias can be added in any memory layout; reshaping y to separate its
    # phases would force one layout.
    return y + jnp.tile(bias.astype(y.dtype), (height // 2, width // 2, 1))[None]


@dataclasses.dataclass(frozen=True)
class _Phase:
    """One axis of an output phase: the taps that read the entries i - low .. i + high.

    Padding by `low` and `high` zeros keeps the size of the axis.
    """

    taps: tuple[int, ...]
    low: int
    high: int


def _phases(kind: str, padding_side: str) -> tuple[_Phase, _Phase]:
    """The even and the odd phase of the 5 taps (zero) or of the folded 7 (average)."""
    if kind == "zero":
        even, odd = _Phase((0, 2, 4), 1, 1), _Phase((1, 3), 0, 1)
    else:
        even, odd = _Phase((1, 3, 5), 1, 1), _Phase((0, 2, 4, 6), 1, 2)
    if padding_side == "top_left":
        odd = dataclasses.replace(odd, low=odd.low + 1, high=odd.high - 1)
    return even, odd


def _fold_average(kernel):
    """The 7x7 kernel on the zero-unpooled map that equals 5x5 on the averaged map.

    It is the kernel convolved with the outer product of (1/2, 1, 1/2) with itself.
    """
    for axis in (0, 1):
        first, middle, last = (_pad_cells(kernel, axis, k, 2 - k) for k in range(3))
        kernel = middle + 0.5 * (first + last)
    return kernel


def _plain(x, kernel, kind, padding_side, precision):
    # Extend x by a row and a column of zeros at the top and left: the unpooled map
    # includes their averages with x[0]. It then starts at index -2.
    x = _pad_cells(_pad_cells(x, 1, 1, 0), 2, 1, 0)
    unpooled = unpool(x, kind)
    if padding_side == "bottom_right":
        return conv2d(unpooled, kernel, padding=((0, 2), (0, 2)), precision=precision)
    y = conv2d(unpooled, kernel, padding=((2, 2), (2, 2)), precision=precision)
    for axis in (1, 2):
        end = y.shape[axis]
        even = lax.slice_in_dim(y, 2, end, 2, axis)
        odd = lax.slice_in_dim(y, 1, end - 2, 2, axis)
        y = _interleave(even, odd, axis)
    return y


def _transposed(x, kernel, phases, precision):
    """The transpose of a convolution of stride 2 from outputs to entries."""
    highs = []
    for axis in (0, 1):
        kernel, _, high = _common_taps(kernel, phases, axis)
        highs.append(high)
    return _transposed_stride2(x, flipped(kernel), tuple(highs), precision)


# Differentiated by JAX, the kernel gradient would be a convolution with a window as
# large as the map, which cuDNN and Eigen do not compute as a kernel gradient.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _transposed_stride2(x, kernel, highs, precision):
    b, h, w, _ = x.shape
    y = jax.ShapeDtypeStruct((b, 2 * h, 2 * w, kernel.shape[2]), x.dtype)
    convolve = functools.partial(
        _stride2, kernel=kernel, highs=highs, precision=precision
    )
    return jax.linear_transpose(convolve, y)(x)[0]


def _transposed_stride2_forward(x, kernel, highs, precision):
    return _transposed_stride2(x, kernel, highs, precision), (x, kernel)


def _transposed_stride2_backward(highs, precision, residuals, gradient):
    x, kernel = residuals
    convolve = functools.partial(_stride2, gradient, highs=highs, precision=precision)
    (kernel_grad,) = jax.linear_transpose(convolve, kernel)(x)
    if platform.current() == "tpu" and kernel.shape[2] % LANES == 0:
        kernel_grad = with_layout_constraint(kernel_grad, Layout((0, 1, 3, 2)))
    return _stride2(gradient, kernel, highs, precision), kernel_grad


_transposed_stride2.defvjp(_transposed_stride2_forward, _transposed_stride2_backward)


def _stride2(y, kernel, highs, precision):
    """From a map of (2h, 2w) to (h, w). An output reads `high` entries before it."""
    # One zero more than needed at the end makes the padding symmetric for
    # "bottom_right". cuDNN has no other; XLA would copy the map to pad it.
    pads = [
        (high, max(high, taps - 2 - high))
        for high, taps in zip(highs, kernel.shape[:2], strict=True)
    ]
    return lax.conv_general_dilated(
        y,
        kernel,
        (2, 2),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _common_taps(kernel, phases, axis):
    """One kernel on the zero-unpooled map for both phases.

    Returns the kernel, and how many entries it reads before and after an output.
    """
    tap_at = {offset: tap for tap, offset in _tap_offsets(phases).items()}
    low, high = -min(tap_at), max(tap_at)
    # Index `zero` selects the zero padding, for offsets that no tap reads.
    zero = kernel.shape[axis]
    order = [tap_at.get(offset, zero) for offset in range(-low, high + 1)]
    return _take(_pad_cells(kernel, axis, 0, 1), order, axis), low, high


def _four(x, kernel, phases, precision):
    def output_phase(row: _Phase, column: _Phase):
        taps = _take(_take(kernel, row.taps, 0), column.taps, 1)
        padding: Padding = ((row.low, row.high), (column.low, column.high))
        return conv2d(x, taps, padding=padding, precision=precision)

    even, odd = (
        _interleave(*(output_phase(row, column) for column in phases), axis=2)
        for row in phases
    )
    return _interleave(even, odd, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _four_cheap_gradients(x, kernel, phases, precision):
    """`_four`, with each gradient computed in the form that is cheapest on CPU."""
    return _four(x, kernel, phases, precision)


def _four_cheap_forward(x, kernel, phases, precision):
    return _four_cheap_gradients(x, kernel, phases, precision), (x, kernel)


def _four_cheap_backward(phases, precision, residuals, gradient):
    x, kernel = residuals
    entries, channels = x.size // x.shape[-1], x.shape[-1]
    if has_large_kernel(x):
        x_grad = _input_gradient_by_taps(x, kernel, phases, precision, gradient)
    else:
        # The input gradient of `transposed` is one convolution of stride 2. On tiny
        # maps `four` is faster, because `conv2d` computes it by matrix products.
        form = _four if entries <= TINY_MAP * len(x) else _transposed
        _, pull_x = jax.vjp(lambda x: form(x, kernel, phases, precision), x)
        (x_grad,) = pull_x(gradient)
    by_taps = entries <= channels
    gradient_of = _kernel_gradient_by_taps if by_taps else _kernel_gradient_by_stride
    return x_grad, gradient_of(x, kernel, phases, precision, gradient)


_four_cheap_gradients.defvjp(_four_cheap_forward, _four_cheap_backward)


def _average_outputs(x, kernel, padding_side, precision):
    """Average unpooling, computed as means of the outputs of zero unpooling.

    Averaging and the 5x5 are both convolutions and commute. This averages outputs
    instead of a kernel that may be larger than the map, and takes 25 multiplications
    per entry instead of 49.
    """
    top_left = padding_side == "top_left"
    if top_left:
        # Outputs from index -2 on: odd outputs are shifted by two.
        phases = _phases("zero", "bottom_right")
    else:
        # Outputs from index -1, which is odd, to 2h.
        phases = _Phase((1, 3), 1, 0), _Phase((0, 2, 4), 1, 1)
    for axis in (1, 2):
        x = _pad_cells(x, axis, int(top_left), int(not top_left))
    y: Any = _four_cheap_gradients(x, kernel, phases, precision)
    for axis in (1, 2):
        first, middle, last = (
            lax.slice_in_dim(y, k, y.shape[axis] - 2 + k, axis=axis) for k in range(3)
        )
        y = middle + 0.5 * (first + last)
        if top_left:
            odd, even = (lax.slice_in_dim(y, k, None, 2, axis=axis) for k in range(2))
            y = _interleave(even, odd, axis)
    return y


def _kernel_gradient_by_taps(x, kernel, phases, precision, gradient):
    """One matrix product per tap: of the map and of the outputs that the tap writes.

    This writes the kernel gradient once. Assembling it from four phases takes longer
    than the products where the kernel is larger than the map.
    """
    entries = x.reshape(-1, x.shape[-1])
    contract = (((0,), (0,)), ((), ()))
    taps = [
        lax.dot_general(entries, outputs, contract, precision=precision)
        for outputs in _outputs_of_taps(x, phases, gradient)
    ]
    return jnp.stack(taps).reshape(kernel.shape)


def _input_gradient_by_taps(x, kernel, phases, precision, gradient):
    """The sum of one matrix product per tap, of the outputs that it writes and it."""
    contract = (((1,), (1,)), ((), ()))
    taps = kernel.reshape(-1, *kernel.shape[2:])
    products = (
        lax.dot_general(outputs, tap, contract, precision=precision)
        for outputs, tap in zip(
            _outputs_of_taps(x, phases, gradient), taps, strict=True
        )
    )
    return functools.reduce(jnp.add, products).reshape(x.shape)


def _outputs_of_taps(x, phases, gradient):
    """Per tap, the outputs that it adds the entries of x to, (entries, channels)."""
    _, h, w, _ = x.shape
    offsets = [offset for _, offset in sorted(_tap_offsets(phases).items())]
    reach = max(abs(offset) for offset in offsets)
    padded = jnp.pad(gradient, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    for row in offsets:
        for column in offsets:
            # A tap of this offset adds entry i to output 2i - offset.
            top, left = reach - row, reach - column
            outputs = padded[:, top : top + 2 * h : 2, left : left + 2 * w : 2]
            yield outputs.reshape(-1, gradient.shape[-1])


def _kernel_gradient_by_stride(x, kernel, phases, precision, gradient):
    """The kernel gradient of the convolution of stride 2 that maps outputs to entries.

    Zeros between the rows of the outputs, which no window reads, keep it from YNNPACK,
    which would take 40 to 70 % longer than Eigen. In ms at batch 4 (in four phases,
    this): 16x20, 512 to 256 channels: 29, 24; 64x80, 128 to 64: 37, 31.
    """
    pads = []
    for axis in (0, 1):
        _, low, high = _common_taps(kernel, phases, axis)
        pads.append((high, low - 1))
    (top, bottom), columns = pads
    by_offset = lax.conv_general_dilated(
        gradient.transpose(3, 1, 2, 0),
        x.transpose(1, 2, 0, 3),
        (2, 1),
        ((2 * top, 2 * bottom), columns),
        lhs_dilation=(2, 1),
        rhs_dilation=(4, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    ).transpose(1, 2, 0, 3)
    # Each offset from an entry to an output is one tap.
    by_offset = flipped(by_offset)
    for axis in (0, 1):
        offsets = _tap_offsets(phases)
        low = -min(offsets.values())
        order = [low + offset for _, offset in sorted(offsets.items())]
        by_offset = _take(by_offset, order, axis)
    return by_offset


def _tap_offsets(phases) -> dict[int, int]:
    """Tap -> offset from an output to the entry of the unpooled map that it reads."""
    return {
        tap: 2 * (j - phase.low) - r
        for r, phase in enumerate(phases)
        for j, tap in enumerate(phase.taps)
    }


def _interleave(even, odd, axis):
    """Concatenate even[0], odd[0], even[1], odd[1], ... along an axis."""
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


def _pad_cells(x, axis, low, high):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (low, high)
    return jnp.pad(x, widths)


def _take(kernel, taps, axis):
    """Taps of the kernel in order, as slices: cheaper than a gather, gradient too."""
    return jnp.concatenate(
        [lax.slice_in_dim(kernel, tap, tap + 1, axis=axis) for tap in taps], axis
    )


def _check(option: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise UserError(f"{option}={name}: expected one of {', '.join(names)}")
