"""Recognises the input that a ResNet was trained on: channel order, scale and mean.

Batch normalisation keeps the mean and variance of the first convolution's output over
the training images. All photographs have similar statistics, so these two arrays
identify the input of the convolution. Caffe networks, for example, take BGR colours of
0 to 255 minus the mean.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import numpy as np

from jaxdepth.runtime.errors import UserError

# Covariance of two pixel values in photographs, colours of 0 to 1, times 1e5. Columns:
# pairs of channels (RR, RG, RB, GG, GB, BB). Rows: distances of the two pixels, (0, 0),
# (0, 1), ... (0, 6), (1, 1), ... (6, 6), in either order and with any signs.
# Measured: the mean of two covariances, of six photographs of ImageNet (224x224) and of
# 398 training frames of NYU Depth V2 at heights of 342, 228, 171 and 114 pixels.
_COVARIANCE = np.array([
    (6411, 5680, 5336, 6144, 5896, 6610),
    (6213, 5491, 5160, 5945, 5715, 6417),
    (5947, 5238, 4926, 5678, 5465, 6149),
    (5745, 5047, 4749, 5474, 5272, 5942),
    (5568, 4882, 4596, 5297, 5104, 5762),
    (5408, 4736, 4460, 5142, 4955, 5604),
    (5251, 4595, 4331, 4994, 4816, 5458),
    (6058, 5342, 5026, 5789, 5573, 6268),
    (5835, 5130, 4832, 5564, 5366, 6046),
    (5645, 4953, 4669, 5375, 5187, 5854),
    (5474, 4795, 4524, 5206, 5028, 5684),
    (5318, 4654, 4395, 5056, 4887, 5536),
    (5159, 4513, 4268, 4910, 4750, 5393),
    (5667, 4972, 4689, 5396, 5210, 5879),
    (5505, 4821, 4550, 5235, 5058, 5716),
    (5352, 4679, 4421, 5083, 4915, 5564),
    (5207, 4549, 4302, 4945, 4785, 5427),
    (5058, 4418, 4182, 4809, 4657, 5294),
    (5369, 4695, 4436, 5100, 4932, 5580),
    (5233, 4570, 4321, 4966, 4805, 5445),
    (5099, 4450, 4211, 4838, 4685, 5319),
    (4959, 4326, 4099, 4710, 4565, 5194),
    (5115, 4462, 4223, 4849, 4696, 5328),
    (4994, 4354, 4123, 4734, 4588, 5214),
    (4862, 4239, 4019, 4616, 4477, 5099),
    (4887, 4259, 4037, 4634, 4493, 5114),
    (4768, 4156, 3944, 4527, 4394, 5011),
    (4661, 4065, 3862, 4433, 4307, 4921),
]) / 1e5  # fmt: skip
_KERNEL = 7
# Divisors of colours of 0 to 1.
_SCALES = {
    "divided by ImageNet's deviation": (0.229, 0.224, 0.225),
    "of 0 to 1": (1.0, 1.0, 1.0),
    "of -1 to 1": (0.5, 0.5, 0.5),
    "of 0 to 255": (1 / 255, 1 / 255, 1 / 255),
}
TORCHVISION = "divided by ImageNet's deviation"
# Largest accepted deviation of expected variances: natural logarithm of the factor,
# median over channels. The closest two scales are a factor of four apart.
_MAX_SCALE_ERROR = 0.6
# Largest accepted median absolute deviation of these logarithms between channels.
_MAX_SPREAD = 0.6
# Minimum odds of the channel order, as a natural logarithm: 55 to 1.
_MIN_LOG_ODDS = 4.0
# Channels below this share of the median variance are dead.
_DEAD = 1e-3
_MIN_CHANNELS = 16
# Smallest standard deviation assumed for a log variance: photographs differ by more.
_MIN_NOISE = 0.05
# Largest accepted difference from ImageNet's mean, in colours of 0 to 1. Training
# images differ by 0.006, and colours of -1 to 1 by 0.09.
_MAX_MEAN_ERROR = 0.03


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """An input of the first convolution.

    Attributes:
      bgr: True for blue, green, red; None if the order is not certain.
      scale: key of `_SCALES`.
      mean: estimated mean of the training images after mean subtraction, RGB
        colours of 0 to 1; None if it was not estimated.
      log_odds: natural logarithm of the odds of BGR over RGB.
    """

    bgr: bool | None
    scale: str = TORCHVISION
    mean: tuple[float, ...] | None = None
    log_odds: float = 0.0

    @property
    def is_torchvision(self) -> bool:
        """Whether the input is torchvision's, so that no conversion is needed."""
        return not self.bgr and self.scale == TORCHVISION and self.is_centred

    @property
    def is_centred(self) -> bool:
        """Whether ImageNet's mean was subtracted."""
        return self.mean is None or max(map(abs, self.mean)) < _MAX_MEAN_ERROR

    def __str__(self) -> str:
        order = {True: "BGR", False: "RGB", None: "RGB or BGR"}[self.bgr]
        mean = " minus ImageNet's mean"
        if self.mean is not None and not self.is_centred:
            mean = ", whose mean is " + " ".join(f"{x:.2f}" for x in self.mean)
            mean += " of full scale"
        return f"{order} colours {self.scale}{mean}"


# Values of --input that name an input.
NAMED = {
    "torchvision": InputFormat(bgr=False),
    "bgr": InputFormat(bgr=True),
    "rgb255": InputFormat(bgr=False, scale="of 0 to 255"),
    "caffe": InputFormat(bgr=True, scale="of 0 to 255"),
}


@functools.cache
def _covariance() -> np.ndarray:
    """Covariance of the values of a patch, (3 * 49, 3 * 49), channel-major."""
    offsets = itertools.combinations_with_replacement(range(_KERNEL), 2)
    rows = {offset: row for row, offset in enumerate(offsets)}
    pixels = list(itertools.product(range(_KERNEL), repeat=2))
    row = [
        [rows[min(d), max(d)] for v, u in pixels if (d := (abs(y - v), abs(x - u)))]
        for y, x in pixels
    ]
    covariance = np.empty((3, len(pixels), 3, len(pixels)))
    for n, (a, b) in enumerate(itertools.combinations_with_replacement(range(3), 2)):
        covariance[a, :, b] = covariance[b, :, a] = _COVARIANCE[row, n]
    return covariance.reshape(3 * len(pixels), -1)


def _in_colours(kernel: np.ndarray, scale: str, *, bgr: bool) -> np.ndarray:
    """Convert an OIHW kernel to RGB input of 0 to 1."""
    kernel = kernel[:, ::-1] if bgr else kernel
    return kernel / np.array(_SCALES[scale])[:, None, None]


def _log_variance(kernel: np.ndarray) -> np.ndarray:
    """Log of the output variance per channel of a kernel for RGB colours of 0 to 1."""
    flat = kernel.reshape(len(kernel), -1)
    variance = np.einsum("ki,ij,kj->k", flat, _covariance(), flat)
    # The measured covariance is not exactly positive definite.
    return np.log(np.maximum(variance, 1e-5 * (flat**2).sum(-1)))


def recognise(
    kernel: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> InputFormat | None:
    """Return the input for which conv1's output has its recorded statistics.

    Args:
      kernel: conv1.weight, (n, 3, 7, 7).
      mean: bn1.running_mean, (n,).
      variance: bn1.running_var, (n,).

    Returns: None if the statistics fit none of the usual scales.
    """
    live = variance > _DEAD * np.median(variance)
    live &= (kernel != 0).any((1, 2, 3))
    if np.count_nonzero(live) < _MIN_CHANNELS:
        return None
    kernel, mean, variance = (
        x[live].astype(np.float64) for x in (kernel, mean, variance)
    )
    log_variance = np.log(variance)
    errors = {}
    for scale in _SCALES:
        expected = _log_variance(_in_colours(kernel, scale, bgr=False))
        errors[scale] = log_variance - expected
    scale = min(errors, key=lambda name: abs(np.median(errors[name])))
    median = np.median(errors[scale])
    spread = np.median(np.abs(errors[scale] - median))
    if abs(median) > _MAX_SCALE_ERROR or spread > _MAX_SPREAD:
        return None
    log_odds = _log_odds_of_bgr(kernel, log_variance, scale)
    bgr = log_odds > 0 if abs(log_odds) >= _MIN_LOG_ODDS else None
    gains = _in_colours(kernel, scale, bgr=bool(bgr)).sum((2, 3))
    # Least squares, weighted by the inverse of each channel's standard deviation.
    deviation = np.sqrt(variance)
    estimated = np.linalg.lstsq(gains / deviation[:, None], mean / deviation)[0]
    return InputFormat(bgr, scale, tuple(map(float, estimated)), log_odds)


def _log_odds_of_bgr(kernel: np.ndarray, log_variance: np.ndarray, scale: str) -> float:
    """Log of the likelihood ratio of BGR and RGB, from the variances of the channels.

    The logarithms of recorded and expected variance differ by normal noise, and by a
    linear function of the filter's frequency and its share of colour: photographs
    differ in sharpness and saturation.
    """
    kernels = [_in_colours(kernel, scale, bgr=bgr) for bgr in (False, True)]
    rgb, bgr = map(_log_variance, kernels)
    mean = (rgb + bgr) / 2
    energy = (kernels[0] ** 2).sum((1, 2, 3))
    grey = 3 * (kernels[0].mean(1) ** 2).sum((1, 2))
    known = [np.ones_like(energy), mean - np.log(energy), grey / energy]
    basis, _ = np.linalg.qr(np.stack(known, axis=1))

    def remainder(x: np.ndarray) -> np.ndarray:
        return x - basis @ (basis.T @ x)

    # The recorded minus the mean expected value is half_difference for RGB, and
    # -half_difference for BGR.
    half_difference = remainder((rgb - bgr) / 2)
    recorded = remainder(log_variance - mean)
    squares = half_difference @ half_difference
    if squares < 1e-9:
        return 0.0
    noise = recorded - half_difference * (half_difference @ recorded / squares)
    noise_variance = (noise @ noise) / (len(noise) - 4)
    log_odds = -2 * (half_difference @ recorded) / max(noise_variance, _MIN_NOISE**2)
    return float(log_odds)


def to_torchvision(
    state_dict: Mapping[str, np.ndarray], source: InputFormat, *, where: str
) -> dict[str, np.ndarray]:
    """Change conv1 of a ResNet so that it takes torchvision's input.

    Args:
      state_dict: with `conv1.weight`.
      source: the input that conv1 takes now.
      where: the file, for messages.

    Raises: UserError if another mean than ImageNet's was subtracted. The convolution
      pads with zeros, which then stand for another colour, so no bias is equivalent.
    """
    if not source.is_centred:
        raise UserError(
            f"{where} takes {source}: conv1 can't be converted to colours minus "
            "ImageNet's mean, because zero padding then stands for another colour; "
            "--input=torchvision leaves conv1 as it is"
        )
    kernel = state_dict["conv1.weight"]
    if source.bgr:
        kernel = kernel[:, ::-1]
    if source.scale != TORCHVISION:
        factor = np.divide(_SCALES[TORCHVISION], _SCALES[source.scale])
        kernel = (kernel * factor[:, None, None]).astype(np.float32)
    return {**state_dict, "conv1.weight": kernel}
