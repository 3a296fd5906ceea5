"""Formats of camera files: what they state, for images of any size."""

import collections
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdepth.camera import Camera, centred
from jaxdepth.data.nyu import toolbox
from jaxdepth.data.sources import files, lists
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError, printable

LARGEST = 1 << 24  # bytes; Matterport3D lists all images of a house in one file
LARGEST_JSON = 1 << 22  # bytes, which objects in memory exceed by far
CENTRAL = 0.25, 0.75  # of the image; the principal point lies between
FOCAL_LENGTHS = 10.0, 1e5  # pixels
NYU_FOCAL = 518.8579  # pixels, in the published lists of NYU Depth V2
STRAY_VIDEO = (1440, 1920)  # size to which the camera_matrix.csv of the app refers
# Names of values in JSON files and in lines "name = value".
KEYS = {
    "fx": ("fx", "fl_x", "fx_color", "focal_length_x"),
    "fy": ("fy", "fl_y", "fy_color", "focal_length_y"),
    "cx": ("cx", "ppx", "mx_color", "principal_point_x"),
    "cy": ("cy", "ppy", "my_color", "principal_point_y"),
    "width": ("width", "w", "colorwidth", "m_colorwidth", "image_width"),
    "height": ("height", "h", "colorheight", "m_colorheight", "image_height"),
}
DEPTH_SCALES = ("png_depth_scale", "depth_scale", "integer_depth_scale")
MATRICES = (
    "k", "intrinsic_matrix", "camera_matrix", "intrinsics", "intrinsic",
    "m_calibrationcolorintrinsic",
)  # fmt: skip


class Stated(NamedTuple):
    """Intrinsics as a file states them.

    Attributes:
      camera: fx, fy, cx, cy in pixels.
      size: (height, width) of the images that they are for; None if not stated.
      from_bottom: whether cy counts rows from the bottom.
      depth_scale: stored units of depth per metre; None if not stated.
    """

    camera: tuple[float, float, float, float]
    size: tuple[int, int] | None = None
    from_bottom: bool = False
    depth_scale: float | None = None

    def at(self, size: tuple[int, int]) -> Camera:
        """The intrinsics for an image of another size (height, width).

        Raises: ValueError if the image has another aspect ratio, or if the principal
          point is far from its centre, so that the camera is not that of the image.
        """
        height, width = size
        rows, columns = self.size or size
        camera = Camera(*self.camera)
        if self.from_bottom:
            camera = camera._replace(cy=rows - 1 - camera.cy)
        sy, sx = height / rows, width / columns
        if abs(sx / sy - 1) > files.MAX_SQUEEZE:
            raise ValueError(
                f"it is for images of {rows}x{columns}, and the image has another "
                f"aspect ratio, {height}x{width}"
            )
        scaled = camera.scaled(sy, sx)
        if not all(
            CENTRAL[0] * n <= c <= CENTRAL[1] * n
            for c, n in ((scaled.cx, width), (scaled.cy, height))
        ):
            raise ValueError(
                f"its principal point ({scaled.cx:.6g}, {scaled.cy:.6g}) is far from "
                f"the centre of the image of {height}x{width}"
                + ("" if self.size else "; it may be for images of another size")
            )
        return scaled


def of_focal(focal: float, size: tuple[int, int]) -> Camera | None:
    """The camera of an image (height, width) for a focal length given in a list.

    The focal length in the lists of NYU Depth V2 is that of images of 480x640; other
    sizes of this aspect ratio are assumed to be resized, and crops have no known
    camera. Other focal lengths are in pixels of the image, whose centre is the
    principal point.
    """
    if abs(focal - NYU_FOCAL) >= 0.01:
        return centred(focal, focal, size)
    try:
        return Stated(toolbox.RGB_CAMERA.intrinsics, (480, 640)).at(size)
    except ValueError:
        return None


def parse(file: Path) -> Stated:
    """Read a camera file of any known format. Raises ValueError with the reason."""
    if file.suffix.lower() == ".npy":
        return _from_array(file)
    text = text_of(file)
    if file.suffix.lower() == ".json":
        try:
            stated = _from_json(json.loads(text), file.name)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no JSON: {files.reason_of(error)}") from None
        if stated is None:
            raise ValueError("it has no fx, fy, cx, cy and no matrix K")
        return stated
    if (stated := _from_names(text)) is None:
        stated = _from_numbers(text)
    if file.name.lower() == "camera_matrix.csv" and stated.size is None:
        video = stated._replace(size=STRAY_VIDEO)
        try:
            video.at(STRAY_VIDEO)
        except ValueError:
            return stated
        return video
    return stated


def text_of(file: Path) -> str:
    """Read a text file. Raises ValueError with the reason if that fails."""
    largest = LARGEST_JSON if file.suffix.lower() == ".json" else LARGEST
    try:
        regular.check(file)
        with open(file, "rb") as stream:
            content = stream.read(largest + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None


def _from_array(file: Path) -> Stated:
    """Read a matrix of 3x3, 3x4 or 4x4, or the four numbers fx, fy, cx, cy."""
    try:
        values = files.read_any(file)
    except UserError:
        raise ValueError("it can't be read as an array of numbers") from None
    if values.dtype.kind not in "uif" or values.size not in (4, 9, 12, 16):
        raise ValueError(f"it has shape {values.shape} of {values.dtype}")
    numbers = [float(value) for value in values.flat]
    return _checked(numbers if len(numbers) == 4 else _of_matrix(numbers))


def _from_numbers(text: str) -> Stated:
    """Parse a matrix of 3x3, 3x4 or 4x4; fx fy cx cy; or width height fx fy cx cy."""
    lines = [re.split("#|//|%", line)[0] for line in text.splitlines()]
    words = re.sub(r"[,;:=\[\]()]", " ", " ".join(lines)).split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        wrong = next(word for word in words if not lists.is_number(word))
        raise ValueError(
            f"{printable(wrong, 40)!r} is not a number: expected a matrix of 3x3 or "
            "4x4, or fx fy cx cy"
        ) from None
    if len(numbers) in (6, 11):  # ARKitScenes; Matterport3D, with distortion
        width, height, *camera = numbers[:6]
        return _checked(camera, (height, width))
    if len(numbers) == 4:
        return _checked(numbers)
    if len(numbers) in (9, 12, 16):
        return _checked(_of_matrix(numbers))
    raise ValueError(
        f"it has {len(numbers)} numbers: expected a matrix of 3x3 or 4x4, or fx fy cx "
        "cy"
    )


def _of_matrix(numbers: Sequence[float]) -> list[float]:
    """fx, fy, cx, cy of a matrix in row-major or column-major order."""
    n = 3 if len(numbers) == 9 else 4
    rows = [list(numbers[k : k + n]) for k in range(0, len(numbers), n)]
    square = [row[:3] for row in rows[:3]]
    transposed = [list(column) for column in zip(*square, strict=True)]
    for matrix in square, transposed:
        (fx, _, cx), (zero, fy, cy), last = matrix
        if last == [0, 0, 1] and zero == 0:
            return [fx, fy, cx, cy]
    raise ValueError("it is not a camera matrix: its last row is not 0 0 1")


def _from_names(text: str) -> Stated | None:
    """Parse lines "name = value" or "name: value"; None if they are none.

    Scenes of ScanNet have fx_color and so on, Middlebury has cam0=[fx 0 cx; ...],
    ORB-SLAM Camera.fx, and ROS "data" below "camera_matrix".
    """
    values: dict[str, Any] = {}
    above = ""
    for line in text.splitlines():
        line = re.sub(r"#.*", "", line)
        name, separator, value = line.partition("=" if "=" in line else ":")
        name = name.strip().lower().removeprefix("camera.")
        words = re.sub(r"[,;\[\]()]", " ", value).split()
        if separator and words and all(map(lists.is_number, words)):
            name = above if name == "data" else name
            values.setdefault(name, list(map(float, words)))
        elif separator and not words:
            above = name
    singles = {name: v[0] if len(v) == 1 else v for name, v in values.items()}
    if "cam0" in singles:
        singles["k"] = singles["cam0"]
    return _from_values(singles) if singles else None


def _from_json(content: Any, name: str) -> Stated | None:
    """The first object in a JSON file that holds intrinsics, outer ones first."""
    pending = collections.deque([content])
    while pending:
        value = pending.popleft()
        if not isinstance(value, dict):
            continue
        named = {str(key).lower(): item for key, item in value.items()}
        if (stated := _from_values(named)) is not None:
            scale = next((named[key] for key in DEPTH_SCALES if key in named), None)
            if scale is None and name.lower() in (
                "cam_params.json",
                "camera_params.json",
            ):
                scale = named.get("scale")  # Replica of NICE-SLAM
            return stated._replace(depth_scale=_units_per_metre(scale))
        pending += value.values()
    return None


def _units_per_metre(scale: Any) -> float | None:
    """Stored units per metre, from this number or from metres per unit."""
    if not _is_number(scale) or scale <= 0 or scale == 1:
        return None
    return float(f"{scale if scale > 1 else 1 / scale:.9g}")


def _from_values(values: dict[str, Any]) -> Stated | None:
    """Intrinsics from named values; None if they are incomplete."""
    found = {
        key: next((values[name] for name in names if name in values), None)
        for key, names in KEYS.items()
    }
    size = found["height"], found["width"]
    camera = [found[key] for key in ("fx", "fy", "cx", "cy")]
    if not all(map(_is_number, camera)):
        matrix = next((values[name] for name in MATRICES if name in values), None)
        if isinstance(matrix, list) and matrix and isinstance(matrix[0], list):
            matrix = [x for row in matrix if isinstance(row, list) for x in row]
        if not isinstance(matrix, list) or not all(map(_is_number, matrix)):
            return None
        if len(matrix) == 4:
            camera = matrix
        elif len(matrix) in (9, 12, 16):
            camera = _of_matrix(matrix)
        else:
            return None
    return _checked(camera, size if all(map(_is_number, size)) else None)


def _is_number(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and abs(value) < 1e9  # not NaN, and within the range of a float


def _checked(camera: Sequence[Any], size: Any = None) -> Stated:
    """Check the range of intrinsics. Raises ValueError."""
    fx, fy, cx, cy = (float(value) for value in camera)
    if not all(map(math.isfinite, (fx, fy, cx, cy))):
        raise ValueError("a value is not finite")
    low, high = FOCAL_LENGTHS
    if not (low <= fx <= high and low <= fy <= high):
        raise ValueError(
            f"the focal lengths {fx:g} and {fy:g} are not plausible in pixels"
        )
    if size is not None:
        rows, columns = (round(n) if math.isfinite(n) else 0 for n in size)
        if rows < 1 or columns < 1:
            raise ValueError("its image size is not positive")
        size = rows, columns
    return Stated((fx, fy, cx, cy), size)


def of_house(text: str) -> dict[str, Stated]:
    """Cameras by name of the image in a file of Matterport3D.

    Lines "intrinsics_matrix" hold for the lines "scan DEPTH IMAGE" below them. Rows
    count from the bottom. Images of invalid matrices are left out.
    """
    stated: Stated | None = None
    cameras = {}
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["intrinsics_matrix"]:
            try:
                stated = _from_numbers(" ".join(words[1:]))._replace(from_bottom=True)
            except ValueError:
                stated = None
        elif words[:1] == ["scan"] and len(words) > 2 and stated is not None:
            cameras[words[2]] = stated
    return cameras
