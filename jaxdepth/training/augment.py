"""Data augmentation of image and depth together, on the device.

The transform of an image depends on its key only, not on the batch or the devices.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8, UInt16

from jaxdepth.ops import platform


@dataclasses.dataclass(frozen=True)
class AugmentPolicy:
    """Ranges of the random transform, after Eigen et al. 2014 and Laina et al. 2016.

    Attributes:
      scale: range of the factor that enlarges the image and divides its depth.
      scales: values of that factor, equally likely; replace `scale` if there are any.
      rotation: largest angle in degrees, in both directions.
      colour: range of the factor of each channel.
      brightness: range of the factor of all channels.
      contrast: range of the factor of the difference from the view's mean grey.
      saturation: range of the factor of the difference from each pixel's grey.
      cutout: range of the height and width, as shares of the view, of a rectangle that
        takes the view's mean colour and keeps its depth; (0, 0): none.
      flip: probability of mirroring.
    """

    scale: tuple[float, float] = (1.0, 1.5)
    scales: tuple[float, ...] = ()
    rotation: float = 5.0
    colour: tuple[float, float] = (0.8, 1.2)
    brightness: tuple[float, float] = (0.8, 1.2)
    contrast: tuple[float, float] = (1.0, 1.0)
    saturation: tuple[float, float] = (1.0, 1.0)
    cutout: tuple[float, float] = (0.0, 0.0)
    flip: float = 0.5

    @property
    def resamples(self) -> bool:
        """Whether views need interpolation between the frame's pixels."""
        return bool(self.scales) or self.scale != (1.0, 1.0) or self.rotation != 0.0


_MILD = AugmentPolicy(scale=(0.9, 1.12), rotation=2.5)
_JITTER = (0.6, 1.4)
POLICIES: dict[str, AugmentPolicy | None] = {
    "none": None,
    "flip": AugmentPolicy(scale=(1.0, 1.0), rotation=0.0),
    # Scales on both sides of 1: scales above 1 alone bias depth towards the camera.
    "mild": _MILD,
    "full": AugmentPolicy(),
    # The published code of Vandenhende et al. 2020 (MTI-Net) for NYU, which also scales
    # about the centre of the image: here the place of the view is random.
    "scales": AugmentPolicy(
        scales=(1.0, 1.2, 1.5), rotation=0.0, colour=(1.0, 1.0), brightness=(1.0, 1.0)
    ),
    # The published code of Hu et al. 2019: torchvision's ColorJitter(0.4, 0.4, 0.4).
    "jitter": dataclasses.replace(
        _MILD, brightness=_JITTER, contrast=_JITTER, saturation=_JITTER
    ),
    # DeVries and Taylor 2017: the centre lies anywhere in the view, so that a part of
    # the rectangle may be outside, and labels stay. Their rectangle is a square of one
    # size and has the mean colour of the data set; the range is this project's choice.
    "cutout": dataclasses.replace(_MILD, cutout=(0.1, 0.5)),
    # All of these together, for training without pretrained weights on a few hundred
    # images, which is limited by overfitting.
    "strong": AugmentPolicy(
        scale=(0.85, 1.4),
        brightness=_JITTER,
        contrast=_JITTER,
        saturation=_JITTER,
        cutout=(0.1, 0.5),
    ),
}

# Weights of red, green and blue in grey: ITU-R BT.601, as in torchvision.
_GREY = (0.299, 0.587, 0.114)
# Keys after the six of every policy, so that these draws do not change the others.
_CONTRAST, _SATURATION, _CUTOUT = 6, 7, 8


def example_keys(
    seed: int, step: Int[Array, ""] | int, position: Int[Array, "b"]
) -> Key[Array, "b"]:
    """One key per image from seed, step and index in the global batch."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(position)


def crop_offsets(frame: tuple[int, ...], size: tuple[int, ...]) -> tuple[int, ...]:
    """(top, left) of the centre crop: (6, 8) for 228x304 of 240x320."""
    return (frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2


def augment(
    rgb: UInt8[Array, "b h w 3"],
    depth_codes: UInt16[Array, "b h w"],
    keys: Key[Array, "b"],
    *,
    size: tuple[int, int],
    policy: str | AugmentPolicy | None = "none",
    depth_unit: int = 1000,
) -> tuple[Float[Array, "b i j 3"], Float[Array, "b i j"]]:
    """Crops of `size`: the centre crop, or a random view.

    With a policy: scale, rotation about the centre of the view, random crop, flip,
    colour factors and cutout. Colours are interpolated bilinearly, with replicated
    edges; depth is taken from the nearest pixel, so that it is never mixed across a
    hole or an edge, and is missing beyond the frame. Depth is divided by the scale. A
    policy without scale and rotation crops whole pixels.

    Args:
      rgb, depth_codes: training frames; depth in codes, 0 = missing.
      keys: one per image; unused without a policy.
      size: (height, width), at most the frame's.
      policy: name in `POLICIES`, or a policy; "none" or None: centre crop.
      depth_unit: codes per metre; 1000: millimetres.

    Returns: colours 0 to 255 and metres (0 = missing), float32.
    """
    chosen = POLICIES[policy] if isinstance(policy, str) else policy
    if chosen is None:
        top, left = crop_offsets(rgb.shape[1:3], size)
        rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
        rgb, depth_codes = rgb[:, rows, columns], depth_codes[:, rows, columns]
        return rgb.astype(jnp.float32), depth_codes.astype(jnp.float32) / depth_unit
    view = functools.partial(_view, size=size, policy=chosen, depth_unit=depth_unit)
    return jax.vmap(view)(rgb, depth_codes, keys)


def _view(rgb, depth_codes, key, *, size, policy: AugmentPolicy, depth_unit: int):
    """A random view of one image."""
    k_scale, k_angle, k_place, k_flip, k_colour, k_bright = jax.random.split(key, 6)
    s = _scale(k_scale, policy)
    limit = jnp.deg2rad(policy.rotation)
    angle = jax.random.uniform(k_angle, (), minval=-limit, maxval=limit)
    place = jax.random.uniform(k_place, (2,), minval=-1.0, maxval=1.0)
    flip = jax.random.bernoulli(k_flip, policy.flip)
    if policy.resamples:
        rows, columns = sample_grid(
            rgb.shape[:2], size, scale=s, angle=angle, place=place, flip=flip
        )
        image = _bilinear(rgb, rows, columns)
        codes = _nearest(depth_codes, rows, columns).astype(jnp.float32)
        depth = codes / depth_unit / s
    else:
        image = _cut(rgb, size, place, flip).astype(jnp.float32)
        depth = _cut(depth_codes, size, place, flip).astype(jnp.float32) / depth_unit
    low, high = policy.colour
    colour = jax.random.uniform(k_colour, (3,), minval=low, maxval=high)
    low, high = policy.brightness
    bright = jax.random.uniform(k_bright, (), minval=low, maxval=high)
    image = image * (colour * bright)[None, None]
    # Each of these factors commutes with the others, so their order is no choice.
    if policy.contrast != (1.0, 1.0):
        mean = jnp.mean(_grey(image))
        factor = _factor(key, _CONTRAST, policy.contrast)
        image = mean + factor * (image - mean)
    if policy.saturation != (1.0, 1.0):
        grey = _grey(image)
        image = grey + _factor(key, _SATURATION, policy.saturation) * (image - grey)
    image = jnp.clip(image, 0.0, 255.0)
    if policy.cutout != (0.0, 0.0):
        image = _cut_out(image, jax.random.fold_in(key, _CUTOUT), policy.cutout)
    return image, depth


def _scale(key, policy: AugmentPolicy):
    """The factor that enlarges the image."""
    if policy.scales:
        return jax.random.choice(key, jnp.array(policy.scales, jnp.float32))
    low, high = policy.scale
    return jax.random.uniform(key, (), minval=low, maxval=high)


def _factor(key, index: int, limits: tuple[float, float]):
    """A random factor from a key of its own."""
    low, high = limits
    return jax.random.uniform(jax.random.fold_in(key, index), minval=low, maxval=high)


def _grey(image):
    """The grey of each pixel, (h, w, 1)."""
    weights = jnp.array(_GREY, jnp.float32)[None, None]
    return jnp.sum(image * weights, -1, keepdims=True)  # a TPU would round a product


def _cut_out(image, key, sides: tuple[float, float]):
    """Give a random rectangle the mean colour."""
    k_centre, k_side = jax.random.split(key)
    size = jnp.array(image.shape[:2], jnp.float32)
    centre = jax.random.uniform(k_centre, (2,)) * size
    half = jax.random.uniform(k_side, (2,), minval=sides[0], maxval=sides[1]) * size / 2
    rows, columns = (
        jnp.abs(jnp.arange(n) + 0.5 - centre[axis]) <= half[axis]
        for axis, n in enumerate(image.shape[:2])
    )
    inside = (rows[:, None] & columns[None])[..., None]
    return jnp.where(inside, jnp.mean(image, (0, 1), keepdims=True), image)


def sample_grid(
    frame: tuple[int, int],
    size: tuple[int, int],
    *,
    scale: Float[Array, ""] | float,
    angle: Float[Array, ""] | float,
    place: Float[Array, "2"],
    flip: Array | bool,
) -> tuple[Float[Array, "i j"], Float[Array, "i j"]]:
    """Coordinates in the frame of each pixel of the view: (rows, columns), 0-based.

    The view covers `size` / `scale` pixels of the frame and is rotated by `angle`
    (radians) about its centre. `place` moves the centre along each axis from one end of
    the possible range (-1) to the other (1). Scale 1, angle 0 and place 0 give the
    centre crop.
    """
    height, width = size
    centre = jnp.array([(n - 1) / 2 for n in size], jnp.float32)
    top, left = crop_offsets(frame, size)
    middle = centre + jnp.array([top, left], jnp.float32)
    room = (jnp.array(frame, jnp.float32) - jnp.array(size, jnp.float32) / scale) / 2
    # The centre crop of an odd difference is half a pixel off the frame's centre.
    middle = middle + place * jnp.maximum(room - 0.5, 0.0)
    y = jnp.arange(height, dtype=jnp.float32)[:, None] - centre[0]
    x = jnp.arange(width, dtype=jnp.float32)[None, :] - centre[1]
    x = jnp.where(flip, -x, x)
    cos, sin = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    return middle[0] + cos * y + sin * x, middle[1] - sin * y + cos * x


def _cut(x, size, place, flip):
    """A crop of `size` pixels; `place` moves it from one end (-1) to the other (1)."""
    room = jnp.array([n - m for n, m in zip(x.shape, size, strict=False)])
    start = jnp.minimum(jnp.int32((place + 1) / 2 * (room + 1)), room)
    more = (0,) * (x.ndim - 2)
    cut = jax.lax.dynamic_slice(x, (*start, *more), (*size, *x.shape[2:]))
    return jnp.where(flip, cut[:, ::-1], cut)


def _nearest(depth, rows, columns):
    height, width = depth.shape
    r, c = jnp.round(rows).astype(jnp.int32), jnp.round(columns).astype(jnp.int32)
    inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
    r, c = jnp.clip(r, 0, height - 1), jnp.clip(c, 0, width - 1)
    return jnp.where(inside, depth[r, c], 0)


def _bilinear(rgb, rows, columns):
    height, width, _ = rgb.shape
    rows = jnp.clip(rows, 0.0, height - 1.0)
    columns = jnp.clip(columns, 0.0, width - 1.0)
    r0 = jnp.minimum(rows.astype(jnp.int32), height - 1)
    c0 = jnp.minimum(columns.astype(jnp.int32), width - 1)
    r1, c1 = jnp.minimum(r0 + 1, height - 1), jnp.minimum(c0 + 1, width - 1)
    fr, fc = (rows - r0)[..., None], (columns - c0)[..., None]
    at = _packed(rgb) if platform.current() == "tpu" else _unpacked(rgb)
    above = at(r0, c0) * (1 - fc) + at(r0, c1) * fc
    below = at(r1, c0) * (1 - fc) + at(r1, c1) * fc
    return above * (1 - fr) + below * fr


def _unpacked(rgb):
    """A function (rows, columns) -> colours, float32."""
    image = rgb.astype(jnp.float32)
    return lambda r, c: image[r, c]


def _packed(rgb):
    """`_unpacked` with the three channels packed into one 32-bit word.

    A TPU gathers single elements: by its compiler's estimate this takes a third of the
    cycles and a tenth of the bytes. On CPU it is 2.5 times slower.
    """
    red, green, blue = jnp.moveaxis(rgb.astype(jnp.uint32), -1, 0)
    words = red | green << 8 | blue << 16

    def at(r, c):
        packed = words[r, c]
        channels = [(packed >> shift) & 255 for shift in (0, 8, 16)]
        return jnp.stack(channels, -1).astype(jnp.float32)

    return at
