"""Arrays of NumPy, JAX, PyTorch and others as images (H, W, 3) uint8."""

import logging
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxdepth.runtime.errors import UserError, one_line, printable

logger = logging.getLogger(__name__)
CHANNELS = (1, 3, 4)  # grey, RGB, RGB and opacity
SHAPES = "(H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4"
TYPES = "uint8, uint16, or floating-point from 0 to 1"


def is_array(x: Any) -> bool:
    """Whether `x` looks like an array of any library."""
    return hasattr(x, "__array__") or (hasattr(x, "shape") and hasattr(x, "dtype"))


def to_numpy(x: Any) -> np.ndarray:
    """Convert an array of any library to NumPy; one of PyTorch from any device.

    Raises: UserError if its library refuses.
    """
    try:
        if callable(getattr(x, "detach", None)) and callable(getattr(x, "cpu", None)):
            x = x.detach().cpu()
            if "bfloat16" in str(x.dtype):  # PyTorch does not convert it
                x = x.float()
        return np.asarray(x)
    except Exception as error:  # each library has exceptions of its own
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        reason = printable(one_line(error), 300)
        raise UserError(f"the {kind} can't be converted to NumPy: {reason}") from None


def to_rgb(x: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an array of one image to RGB in 8 bits.

    Args:
      x: (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4: grey, RGB, or RGB and an
        opacity, which is ignored. A shape that can be read in both ways, such as
        (3, 90, 3), is (H, W, C). Of type uint8; uint16, with white at 65535; or
        floating-point from 0 to 1.

    Returns: for uint8 RGB, a view.
    Raises: UserError, with the fix, for other shapes, types and values.
    """
    array = _channels_last(to_numpy(x))
    array = array[..., :3]
    kind, size = array.dtype.kind, array.dtype.itemsize
    if "float" in array.dtype.name:  # also bfloat16, which is of no kind
        array = _float_to_8_bits(array)
    elif kind == "u" and size == 2:
        if array.max() <= 255:
            logger.warning(
                "note: no value of the uint16 image is above 255, where white is "
                "65535: if its values have 8 bits, give image.astype(np.uint8)"
            )
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif not (kind == "u" and size == 1):
        raise UserError(
            f"the image is of type {array.dtype}: expected {TYPES}; if its values are "
            "0 to 255, give image.astype(np.uint8)"
        )
    return array if array.shape[-1] == 3 else np.repeat(array, 3, axis=-1)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """The image as (H, W, C)."""
    shape = array.shape
    if 0 not in shape:
        if len(shape) == 2:
            return array[..., None]
        if len(shape) == 3 and shape[-1] in CHANNELS:
            return array
        if len(shape) == 3 and shape[0] in CHANNELS:
            return np.moveaxis(array, 0, -1)
    raise UserError(
        f"the image has shape {shape}: expected {SHAPES}, or a list of such images, or "
        "(B, H, W, C) or (B, C, H, W)"
    )


def _float_to_8_bits(array: np.ndarray) -> np.ndarray:
    """Scale floating-point values from 0 to 1 to 255, and round them."""
    if array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    low, high = float(array.min()), float(array.max())
    if low >= 0 and high <= 1:
        return np.round(array * 255).astype(np.uint8)
    if not np.isfinite([low, high]).all():
        given = "holds NaN or infinite values"
        fix = "give np.nan_to_num(image, posinf=1, neginf=0)"
    else:
        given = f"has values from {low:.6g} to {high:.6g}"
        if low >= -0.1 and high <= 1.1:  # as after resizing by cubic interpolation
            fix = "give np.clip(image, 0, 1)"
        elif low < 0:
            fix = "undo its normalisation, such as by image * std + mean"
        else:
            fix = f"give image / {255 if high <= 255 else 65535}"
    raise UserError(
        f"the image of type {array.dtype} {given}: floating-point images range from 0 "
        f"to 1; {fix}"
    )
