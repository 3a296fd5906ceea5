"""Training losses over valid pixels, and their registry.

A loss is averaged over the valid pixels of each image, then over the images that have
one. An image without a valid pixel adds nothing, to the gradient either. All arithmetic
is float32, whatever the dtype of the prediction.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxdepth.runtime.registry import Registry

BerhuScope = Literal["image", "batch"]

# Metres; keeps the logarithm of a dead ReLU's zeros, and its gradient, finite.
MIN_PRED = 1e-3
# Metres; alpha of Hu et al. 2019, section 3.2.
HU_ALPHA = 0.5


def mse(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
) -> Float[Array, ""]:
    """Mean squared error.

        mean((pred - target)^2)

    Args:
      pred: predicted depth, metres, any floating dtype.
      target: measured depth, metres; may be anything where `valid` is False.
      valid: True at pixels to count. An image without one adds nothing.

    Returns: float32 scalar, m^2: the mean over images with a valid pixel; 0 if none.
    """
    return _mean_loss("mse", pred, target, valid)


def si(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
    si_lambda: float = 0.5,
) -> Float[Array, ""]:
    """Scale-invariant error in log depth.

        mean(d^2) - si_lambda * mean(d)^2,   d = log max(pred, 1e-3) - log target

    Args:
      pred: predicted depth, metres, any floating dtype. Below 1 mm it counts as
        1 mm and has no gradient.
      target: measured depth, metres, > 0 where `valid`; anything elsewhere.
      valid: True at pixels to count. An image without one adds nothing.
      si_lambda: 0 gives the mean squared log error, 1 ignores the scale of `pred`.

    Returns: float32 scalar, no unit: the mean over images with a valid pixel; 0 if
      none. Never negative for `si_lambda` <= 1.
    Source: Eigen et al. 2014, equations 3 and 4.
    """
    return _mean_loss("si", pred, target, valid, si_lambda=si_lambda)


def berhu(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
    berhu_scope: BerhuScope = "image",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Reverse Huber: L1 for small errors, a parabola beyond the threshold c.

        mean(e if e <= c else (e^2 + c^2) / (2 c)),   e = |pred - target|,
        c = max(e) / 5 over the valid pixels of the image, or of the batch

    c is a constant in the gradient; where it is 0 the loss is L1.

    Args:
      pred: predicted depth, metres, any floating dtype.
      target: measured depth, metres; may be anything where `valid` is False.
      valid: True at pixels to count. An image without one adds nothing.
      berhu_scope: c over each image, or one c over the batch.
      axis_name: with scope "batch", the mapped axis that the batch is spread over.

    Returns: float32 scalar, metres: the mean over images with a valid pixel; 0 if
      none.
    Source: Laina et al. 2016, section 3.2 (c over the batch).
    """
    options = {"berhu_scope": berhu_scope, "axis_name": axis_name}
    return _mean_loss("berhu", pred, target, valid, **options)


def si_grad(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
    si_lambda: float = 0.5,
) -> Float[Array, ""]:
    """Scale-invariant error with gradient matching: `si` + 0.5 gradient.

        gradient = sum over every 1st, 2nd, 4th and 8th pixel of
            (sum |d[i+1, j] - d[i, j]| + sum |d[i, j+1] - d[i, j]|) / n,

    with d as in `si`, over pairs of valid neighbours; n is the number of valid pixels
    at that stride. Arguments and result are those of `si`.

    Source: Li and Snavely 2018 (MegaDepth), equations 2 and 3, without the ordinal
      term.
    """
    return _mean_loss("si_grad", pred, target, valid, si_lambda=si_lambda)


def si_berhu(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
    si_lambda: float = 0.5,
    berhu_scope: BerhuScope = "image",
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Scale-invariant error plus berHu: `si` + 0.5 / m of `berhu`.

    The arguments are those of the two losses. The combination is not from a paper.
    """
    options = {"berhu_scope": berhu_scope, "axis_name": axis_name}
    return _mean_loss("si_berhu", pred, target, valid, si_lambda=si_lambda, **options)


def l1(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
) -> Float[Array, ""]:
    """Mean absolute error.

        mean(|pred - target|)

    The gradient is 0 where the error is 0.

    Args:
      pred: predicted depth, metres, any floating dtype.
      target: measured depth, metres; may be anything where `valid` is False.
      valid: True at pixels to count. An image without one adds nothing.

    Returns: float32 scalar, metres: the mean over images with a valid pixel; 0 if none.
    """
    return _mean_loss("l1", pred, target, valid)


def l1_grad(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
) -> Float[Array, ""]:
    """Mean absolute error with gradient matching in metres: `l1` + 0.5 gradient.

        gradient = sum over every 1st, 2nd, 4th and 8th pixel of
            (sum |e[i+1, j] - e[i, j]| + sum |e[i, j+1] - e[i, j]|) / n,

    with e = pred - target, over pairs of valid neighbours; n is the number of valid
    pixels at that stride. Arguments and result are those of `l1`.

    Source: Ranftl et al. 2020 (MiDaS), equation 11, and the weight 0.5 of equation 12.
      There, e is the error of disparity after scale and shift are fitted; here it is
      the error of depth as predicted.
    """
    return _mean_loss("l1_grad", pred, target, valid)


def hu(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
) -> Float[Array, ""]:
    """Logarithmic errors of depth and its gradient, and error of surface normals.

        mean(F(e)) + mean(F(S_x e) + F(S_y e)) + mean(1 - cos(n(pred), n(target))),
        e = pred - target,   F(x) = ln(|x| + 0.5),   n(d) = (-S_x d, -S_y d, 1)

    S_x and S_y are Sobel filters with weights 1, 2, 1 and without a divisor, in metres;
    cos is the cosine of the angle between two vectors. The first mean is over valid
    pixels, the others are over 3x3 windows in which all pixels are valid, without
    padding. In an image without such a window, the last two terms are 0.

    The gradient of F is largest for small errors, so that the large errors of distant
    points do not dominate, as they do in L1. F is negative below 0.5: without any error
    the loss is 3 ln 0.5 = -2.08. The gradient is 0 where an error is 0.

    Args:
      pred: predicted depth, metres, any floating dtype.
      target: measured depth, metres; may be anything where `valid` is False.
      valid: True at pixels to count. An image without one adds nothing.

    Returns: float32 scalar: the mean over images with a valid pixel; 0 if none.
    Source: Hu et al. 2019, section 3.2, with alpha = 0.5 and lambda = mu = 1. The
      gradient is that of the signed error, as in the authors' code.
    """
    return _mean_loss("hu", pred, target, valid)


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Options that a loss may use.

    Attributes:
      si_lambda: weight of the squared mean in the scale-invariant loss.
      berhu_scope: scope of berHu's threshold, each image or the batch.
      axis_name: mapped axis that the batch is spread over, None on one device.
    """

    si_lambda: float = 0.5
    berhu_scope: BerhuScope = "image"
    axis_name: str | None = None


PerImageLoss = Callable[[jax.Array, jax.Array, jax.Array, LossOptions], jax.Array]
"""(pred, target, valid, options) -> the loss of each image, (b,) float32.

`pred` and `target` are (b, h, w) float32 in metres, 1 where `valid` is False; an image
without a valid pixel must give a finite value, which is not counted.
"""

LOSSES: Registry[PerImageLoss] = Registry("loss")


def register_loss(name: str) -> Callable[[PerImageLoss], PerImageLoss]:
    """Register a per-image loss under a name, as a choice of `--loss`.

        @register_loss("relative")
        def relative(pred, target, valid, options):
            return masked_mean(jnp.abs(pred - target) / target, valid)

    Raises: ValueError for a name that is registered already.
    """
    return lambda function: LOSSES.register(name, function)


def loss_sums(
    name: str,
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    valid: Bool[Array, "b h w"],
    options: LossOptions | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute a loss's numerator and denominator, to be summed over devices.

    Args:
      name: name in `LOSSES`.
      pred: predicted depth, metres, any floating dtype.
      target: measured depth, metres; may be anything where `valid` is False.
      valid: True at pixels to count.
      options: options of the losses; default: `LossOptions()`.

    Returns: the sum of the per-image losses over images with a valid pixel, and the
      number of those images; float32 scalars of this device's images. (The threshold
      of berHu in scope "batch" is the only value taken across `options.axis_name`.)
    Raises: KeyError for a name that is not in `LOSSES`.
    """
    loss = LOSSES[name]
    # Replace invalid values first: a NaN behind a mask that is applied last would still
    # reach the gradient as 0 * NaN.
    pred = jnp.where(valid, pred.astype(jnp.float32), 1.0)
    target = jnp.where(valid, target.astype(jnp.float32), 1.0)
    images = loss(pred, target, valid, options or LossOptions())
    counted = jnp.any(valid, axis=(1, 2))
    total = jnp.sum(jnp.where(counted, images, 0.0))
    return total, jnp.sum(counted, dtype=jnp.float32)


def _log_diff(
    pred: Float[Array, "b h w"], target: Float[Array, "b h w"]
) -> Float[Array, "b h w"]:
    return jnp.log(jnp.maximum(pred, MIN_PRED)) - jnp.log(target)


@register_loss("mse")
def _mse(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    options: LossOptions,
) -> Float[Array, "b"]:
    return masked_mean(jnp.square(pred - target), valid)


@register_loss("si")
def _si(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    options: LossOptions,
) -> Float[Array, "b"]:
    log_diff = _log_diff(pred, target)
    mean = masked_mean(log_diff, valid)
    # mean(d^2) - s mean(d)^2 = var(d) + (1 - s) mean(d)^2, without the cancellation.
    variance = masked_mean(jnp.square(log_diff - mean[:, None, None]), valid)
    return variance + (1 - options.si_lambda) * jnp.square(mean)


def _gradient(
    diff: Float[Array, "b h w"], valid: Bool[Array, "b h w"]
) -> Float[Array, "b"]:
    """Sum the absolute differences of neighbours in `diff` at four strides."""
    total = jnp.zeros(len(diff))
    for stride in (1, 2, 4, 8):
        d, v = diff[:, ::stride, ::stride], valid[:, ::stride, ::stride]
        down = _absolute(d[:, 1:] - d[:, :-1]) * (v[:, 1:] & v[:, :-1])
        across = _absolute(d[:, :, 1:] - d[:, :, :-1]) * (v[:, :, 1:] & v[:, :, :-1])
        change = jnp.sum(down, axis=(1, 2)) + jnp.sum(across, axis=(1, 2))
        total += change / jnp.maximum(jnp.sum(v, axis=(1, 2), dtype=jnp.float32), 1.0)
    return total


def _absolute(x: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Compute |x| with gradient 0 at 0, where jnp.abs has gradient 1."""
    return x * lax.stop_gradient(jnp.sign(x))


@register_loss("berhu")
def _berhu(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    options: LossOptions,
) -> Float[Array, "b"]:
    scope, axis_name = options.berhu_scope, options.axis_name
    error = _absolute(pred - target)  # 0 where not valid
    # Stopped before the maximum over devices, which has no gradient rule.
    constant = lax.stop_gradient(error)
    if scope == "image":
        c = 0.2 * jnp.max(constant, axis=(1, 2), keepdims=True)
    elif scope == "batch":
        largest = jnp.max(constant, keepdims=True)
        c = 0.2 * (lax.pmax(largest, axis_name) if axis_name else largest)
    else:
        raise ValueError(f"berhu_scope {scope!r}: expected image or batch")
    positive = c > 0
    divisor = jnp.where(positive, c, 1.0)
    # e * (e / c), not e^2 / c: the square of a tiny error would underflow.
    parabola = 0.5 * (error * (error / divisor) + divisor)
    return masked_mean(jnp.where(~positive | (error <= c), error, parabola), valid)


@register_loss("si_grad")
def _si_grad(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    options: LossOptions,
) -> Float[Array, "b"]:
    gradient = _gradient(_log_diff(pred, target), valid)
    return _si(pred, target, valid, options) + 0.5 * gradient


@register_loss("si_berhu")
def _si_berhu(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    options: LossOptions,
) -> Float[Array, "b"]:
    si_term = _si(pred, target, valid, options)
    return si_term + 0.5 * _berhu(pred, target, valid, options)


@register_loss("l1")
def _l1(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    options: LossOptions,
) -> Float[Array, "b"]:
    return masked_mean(_absolute(pred - target), valid)


@register_loss("l1_grad")
def _l1_grad(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    options: LossOptions,
) -> Float[Array, "b"]:
    gradient = _gradient(pred - target, valid)
    return _l1(pred, target, valid, options) + 0.5 * gradient


@register_loss("hu")
def _hu(
    pred: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    options: LossOptions,
) -> Float[Array, "b"]:
    def log_error(x):
        return jnp.log(_absolute(x) + HU_ALPHA)

    error = pred - target
    down, across = _sobel(error)
    # 1 - cos = |n - m|^2 / 2 for unit vectors, without the cancellation.
    change = _normals(pred) - _normals(target)
    normal = 0.5 * jnp.sum(jnp.square(change), axis=0)
    windows = _all_valid(valid)
    gradient = log_error(down) + log_error(across)
    return masked_mean(log_error(error), valid) + masked_mean(
        gradient + normal, windows
    )


def _sobel(
    x: Float[Array, "b h w"],
) -> tuple[Float[Array, "b i j"], Float[Array, "b i j"]]:
    """Apply the Sobel filters along rows and along columns, to whole 3x3 windows."""
    across = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    down = x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]
    return down[:, 2:] - down[:, :-2], across[:, :, 2:] - across[:, :, :-2]


def _normals(depth: Float[Array, "b h w"]) -> Float[Array, "3 b i j"]:
    """Compute unit normals (-S_x d, -S_y d, 1) of the 3x3 windows."""
    down, across = _sobel(depth)
    normal = jnp.stack([-across, -down, jnp.ones_like(down)])
    # The direction does not depend on the divisor, and its square does not overflow.
    largest = jnp.max(jnp.abs(normal), axis=0, keepdims=True)
    normal = normal / lax.stop_gradient(largest)
    return normal / jnp.linalg.norm(normal, axis=0, keepdims=True)


def _all_valid(valid: Bool[Array, "b h w"]) -> Bool[Array, "b i j"]:
    """Whether all nine pixels of each 3x3 window are valid."""
    rows = valid[:, :-2] & valid[:, 1:-1] & valid[:, 2:]
    return rows[:, :, :-2] & rows[:, :, 1:-1] & rows[:, :, 2:]


def masked_mean(
    x: Float[Array, "b h w"], valid: Bool[Array, "b h w"]
) -> Float[Array, "b"]:
    """Compute the mean of each image over its valid pixels; 0 without one."""
    total = jnp.sum(jnp.where(valid, x, 0.0), axis=(1, 2))
    count = jnp.sum(valid, axis=(1, 2), dtype=jnp.float32)
    return total / jnp.maximum(count, 1.0)


def _mean_loss(
    name: str, pred: jax.Array, target: jax.Array, valid: jax.Array, **options: Any
) -> Float[Array, ""]:
    total, images = loss_sums(
        name, pred, target, valid=valid, options=LossOptions(**options)
    )
    return total / jnp.maximum(images, 1.0)
