"""Pinhole cameras: the effect of scaling on intrinsics, and of focal length on depth.

A network learns the depth of objects from their size in the image, so its metres are
those of the camera that it was trained with. For another focal length, predictions are
multiplied by the ratio of the two (`depth_factor`).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxdepth.runtime.errors import UserError, printable

Size = tuple[int, int]
# Focal length in pixels of a photo; "auto": from its EXIF data; None: no correction.
Fx = float | Literal["auto"] | None


class Camera(NamedTuple):
    """Intrinsics in pixels of a frame, with pixel centres counted from 0."""

    fx: float
    fy: float
    cx: float
    cy: float

    def scaled(self, y: float, x: float) -> "Camera":
        """The camera of the frame with height scaled by `y` and width by `x`."""
        # Integer coordinates are pixel centres, not corners.
        return Camera(
            self.fx * x, self.fy * y,
            (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5,
        )  # fmt: skip

    def shifted(self, top: float, left: float) -> "Camera":
        """The camera of the crop that begins at row `top` and column `left`."""
        return self._replace(cx=self.cx - left, cy=self.cy - top)


# NYU Depth V2's colour camera at 480x640: camera_params.m of the NYU toolbox.
NYU = Camera(
    fx=5.1885790117450188e02, fy=5.1946961112127485e02,
    cx=3.2558244941119034e02, cy=2.5373616633400465e02,
)  # fmt: skip


def centred(fx: float, fy: float, size: Size) -> Camera:
    """A camera whose principal point is the centre of a frame of (height, width)."""
    return Camera(fx, fy, (size[1] - 1) / 2, (size[0] - 1) / 2)


def unproject(
    depth: Float[np.ndarray, "h w"], camera: Camera
) -> Float[np.ndarray, "h w 3"]:
    """The points of depth pixels in camera coordinates: x right, y down, z forward.

        x = (column - cx) z / fx,  y = (row - cy) z / fy

    Args:
      depth: metres along the optical axis.
      camera: of a frame of the size of `depth`.

    Returns: float32, metres.
    """
    height, width = depth.shape
    points = np.empty((height, width, 3), np.float32)
    points[..., 0] = depth * ((np.arange(width) - camera.cx) / camera.fx)
    points[..., 1] = depth * ((np.arange(height) - camera.cy) / camera.fy)[:, None]
    points[..., 2] = depth
    return points


def checked_fx(fx: Any) -> Fx:
    """The argument `fx` of `Predictor.predict`.

    Raises: UserError for other values.
    """
    if fx is None or (isinstance(fx, str) and fx == "auto"):
        return fx
    try:
        number = math.nan if isinstance(fx, str | bytes | bool) else float(fx)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(
            f'fx={printable(repr(fx), 60)}: expected "auto" (from the EXIF data of the '
            "photo), a focal length above 0 in pixels, or None (no correction)"
        )
    return number


def median(cameras: Sequence[Camera]) -> Camera | None:
    """The median of each of the intrinsics; None without any camera."""
    if not cameras:
        return None
    return Camera(*(float(x) for x in np.median(np.asarray(cameras), axis=0)))


def covering_scale(size: Size, frame: Size) -> float:
    """The scale at which a frame of `size` just covers `frame`, its aspect kept."""
    return max(new / old for new, old in zip(frame, size, strict=True))


def depth_factor(
    fx: float | None, size: Size, *, trained_fx: float | None, frame: Size
) -> float:
    """The factor that corrects predicted metres for a frame's focal length.

    It is the frame's focal length at the scale of the network's input over that of the
    training data. 1 if either is unknown.

    Args:
      fx: focal length in pixels of the frame.
      size: (height, width) of the frame.
      trained_fx: focal length in pixels of the training frame.
      frame: (height, width) of the training frame.
    """
    if fx is None or trained_fx is None:
        return 1.0
    factor = fx * covering_scale(size, frame) / trained_fx
    # So that rounding does not change the scores of the training camera.
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-6) else factor
