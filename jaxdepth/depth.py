"""The depth of a photo: metres, the camera that they are for, files and pictures."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from jaxdepth import plots
from jaxdepth.camera import Camera, unproject
from jaxdepth.runtime import atomic, storage
from jaxdepth.runtime.errors import UserError, printable

FxSource = Literal["exif", "given", "training"]
_SOURCES = {"exif": "EXIF data", "given": "as given", "training": "training data"}


class PointCloud(NamedTuple):
    """The pixels of a depth map as points.

    Attributes:
      points: (N, 3) float32, metres in camera coordinates: x right, y down, z forward.
      rgb: (N, 3) uint8, colours of the photo; None if they were not kept.
    """

    points: Float[np.ndarray, "n 3"]
    rgb: UInt8[np.ndarray, "n 3"] | None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Depth:
    """The predicted depth of one photo.

    `np.asarray(depth)` is `depth.metres`. In a notebook, it is shown in colours with a
    bar in metres.

    Attributes:
      metres: (H, W) float32, along the optical axis, at the size of the photo.
      rgb: (H, W, 3) uint8, the photo; None if it was not kept.
      camera: intrinsics in pixels of `metres`, for point clouds, with the principal
        point in the centre. Its focal length is that of the photo, or, if that is
        unknown, the one that `metres` assume, which is that of the training data. None
        if both are unknown.
      fx_source: origin of the focal length: "exif", "given" or "training"; None if it
        is unknown.
      reduced: factor by which a photo of more than 33 megapixels was reduced when it
        was read; else 1.
    """

    metres: Float[np.ndarray, "h w"]
    rgb: UInt8[np.ndarray, "h w 3"] | None = None
    camera: Camera | None = None
    fx_source: FxSource | None = None
    reduced: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of `metres`."""
        return self.metres.shape[0], self.metres.shape[1]

    @property
    def fx(self) -> float | None:
        """Focal length of `camera`, in pixels of `metres`; None if it is unknown."""
        return None if self.camera is None else self.camera.fx

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """`metres` as NumPy converts arrays: without a copy unless one is needed."""
        return np.array(self.metres, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        """Size, range and focal length in one line."""
        height, width = self.shape
        known = self.metres[plots.has_depth(self.metres)]
        text = "no depth"
        if len(known):
            text = f"{known.min():.2f} to {known.max():.2f} m"
            text += f", median {np.median(known):.2f} m"
        if self.fx is not None:
            text += f", fx {self.fx:.5g} pixels"
        if self.fx_source is not None:
            text += f" ({_SOURCES[self.fx_source]})"
        return f"Depth({height}x{width}, {text})"

    def _repr_png_(self) -> bytes:
        """The picture that notebooks show."""
        return plots.depth_png(self.metres)

    def point_cloud(self) -> PointCloud:
        """The pixels with finite depth above 0 as points, row by row.

        For other intrinsics, use `dataclasses.replace(depth, camera=Camera(...))`.

        Raises: UserError if the focal length is unknown.
        """
        valid = plots.has_depth(self.metres)
        points = unproject(self.metres, self._known_camera())[valid]
        return PointCloud(points, None if self.rgb is None else self.rgb[valid])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file, in the format of its suffix. An existing one is replaced.

        - `.npy`: float32 metres.
        - `.png`: 16-bit millimetres; 65535 is 65.535 m or more, 0 is missing.
        - `_color.png`: colours between the 1st and 99th percentile.
        - `.ply`: the point cloud, with the colours of the photo.

        Raises: UserError for another suffix, a missing folder, or a point cloud without
          focal length or photo; MachineError if storage fails.
        """
        path = Path(path).expanduser()
        name = printable(path, None)
        suffixes = [s for s in WRITERS if path.name.lower().endswith(s)]
        if not suffixes:
            raise UserError(f"{name}: expected a suffix of {', '.join(WRITERS)}")
        if not path.parent.is_dir():
            raise UserError(f"{name}: there is no folder {path.parent}: create it")
        if path.is_dir():
            raise UserError(f"{name} is a folder: name a file in it")
        with storage.write_errors(name):
            WRITERS[max(suffixes, key=len)](self, path)

    def _known_camera(self) -> Camera:
        if self.camera is None:
            raise UserError(
                "the focal length is unknown: predict with fx=PIXELS for a point cloud"
            )
        return self.camera


def _save_npy(depth: Depth, path: Path) -> None:
    with atomic.atomic_write(path) as file:
        np.save(file, depth.metres)


def _save_ply(depth: Depth, path: Path) -> None:
    camera = depth._known_camera()
    if depth.rgb is None:
        raise UserError("the photo was not kept: predict with keep_photos=True")
    plots.write_ply(path, depth.metres, depth.rgb, **camera._asdict())


# End of a file's name -> function that writes the file. The longest end applies.
WRITERS: dict[str, Callable[[Depth, Path], None]] = {
    ".npy": _save_npy,
    ".png": lambda depth, path: plots.save_depth_png16(path, depth.metres),
    "_color.png": lambda depth, path: plots.save_color_png(path, depth.metres),
    ".ply": _save_ply,
}
