"""Camera files of a data set: the intrinsics of each image.

A camera file is recognised by its name (`NAME`), in the folder of the image or in one
of its parents up to the data's folder; the innermost one is used. Files of one image,
as in ARKitScenes and Matterport3D, take precedence.
"""

import collections
import contextlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdepth.data.sources import BrokenFrame, files, lists
from jaxdepth.data.sources.files import Camera
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError, printable

# intrinsics.txt (SUN RGB-D, 3DMatch), intrinsic_color.txt (ScanNet), camera_matrix.csv
# (Stray Scanner), cam_params.json (Replica of NICE-SLAM), camera_primesense.json
# (Open3D), transforms.json (nerfstudio), K.txt, camera.txt, color.pincam and so on.
NAME = re.compile(
    r"(((rgb|colou?r|image|cam|camera)[_-])?(intrinsics?|k|calib|calibration)"
    r"([_-](rgb|colou?r))?"
    r"|(cam|camera)([_-](matrix|params|parameters|primesense|k))?"
    r"|transforms(?=\.json)|colou?r(?=\.pincam))\.(txt|csv|json|pincam)",
    re.IGNORECASE,
)
FOLDER = re.compile(r"(cam(era)?[_-])?(intrinsics?|calib(ration)?)", re.IGNORECASE)
LARGEST = 1 << 24  # bytes; Matterport3D lists all images of a house in one file
CENTRAL = 0.25, 0.75  # of the image; the principal point lies between
FOCAL_LENGTHS = 10.0, 1e5  # pixels
STRAY_VIDEO = (1440, 1920)  # size to which the camera_matrix.csv of the app refers
# Names of values in JSON files and in lines "name = value".
KEYS = {
    "fx": ("fx", "fl_x", "fx_color", "focal_length_x"),
    "fy": ("fy", "fl_y", "fy_color", "focal_length_y"),
    "cx": ("cx", "ppx", "mx_color", "principal_point_x"),
    "cy": ("cy", "ppy", "my_color", "principal_point_y"),
    "width": ("width", "w", "colorwidth", "image_width"),
    "height": ("height", "h", "colorheight", "image_height"),
}
MATRICES = ("k", "intrinsic_matrix", "camera_matrix", "intrinsics", "intrinsic")


class Stated(NamedTuple):
    """Intrinsics as a file states them.

    Attributes:
      camera: fx, fy, cx, cy in pixels.
      size: (height, width) of the images that they are for; None if not stated.
      from_bottom: whether cy counts rows from the bottom.
      depth_scale: stored units of depth per metre; None if not stated.
    """

    camera: Camera
    size: tuple[int, int] | None = None
    from_bottom: bool = False
    depth_scale: float | None = None

    def at(self, size: tuple[int, int]) -> Camera:
        """The intrinsics for an image of another size (height, width).

        Raises: ValueError if the image has another aspect ratio, or if the principal
          point is far from its centre, so that the camera is not that of the image.
        """
        (height, width), (fx, fy, cx, cy) = size, self.camera
        rows, columns = self.size or size
        if self.from_bottom:
            cy = rows - 1 - cy
        sy, sx = height / rows, width / columns
        if abs(sx / sy - 1) > files.MAX_SQUEEZE:
            raise ValueError(
                f"it is for images of {rows}x{columns}, and the image has another "
                f"aspect ratio, {height}x{width}"
            )
        # Integer coordinates are pixel centres, not corners.
        cx, cy = (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5
        if not all(
            CENTRAL[0] * n <= c <= CENTRAL[1] * n
            for c, n in ((cx, width), (cy, height))
        ):
            raise ValueError(
                f"its principal point ({cx:.6g}, {cy:.6g}) is far from the centre of "
                f"the image of {height}x{width}"
                + ("" if self.size else "; it may be for images of another size")
            )
        return fx * sx, fy * sy, cx, cy


class Cameras:
    """The camera files of a data set, and the intrinsics of its images.

    Call `notes` once before `of`: it reports the files that can't be used.

    Args:
      root: the data's folder.
      known: the camera of images that have no file, such as a published constant.
      allow_outside: follow links that lead outside the folder.
    """

    def __init__(
        self, root: Path, *, known: Stated | None = None, allow_outside: bool = False
    ):
        self._root = root
        self._known = known
        self._inside = lists.Root(root, allow_outside=allow_outside)
        self._shared: dict[Path, Path | None] = {}  # folder -> its camera file
        self._stated: dict[Path, Stated] = {}  # shared files that can be used
        self._unused: dict[Path, str] = {}  # shared files that can't, and the reasons
        self._own: dict[Path, _OwnFiles] = {}  # folder -> files of single images

    def of(self, image: Path, size: tuple[int, int]) -> Camera | None:
        """The intrinsics of an image of a size (height, width); None if unknown.

        Raises: BrokenFrame if the image has a camera file that can't be used, except
          for a file that `notes` has reported.
        """
        file = self.file_of(image)
        if file is None:
            return self._known_at(size)
        if file in self._unused:
            return None
        try:
            return self._read(file, image).at(size)
        except ValueError as error:
            raise BrokenFrame(
                f"{file} can't be used as the camera of {image}: {error}"
            ) from None

    def file_of(self, image: Path) -> Path | None:
        """The camera file of an image; None if there is none.

        Raises: UserError for a link that leads outside the folder.
        """
        folder = image.parent
        if folder not in self._own:
            self._own[folder] = _OwnFiles(folder, inside=folder != self._root)
        return self._own[folder].of(image, self._check) or self._shared_file(folder)

    def depth_scale(self, images: Sequence[Path]) -> tuple[float, str] | None:
        """The depth scale that the files of these images state, and a file's name.

        Raises: UserError if they state several.
        """
        scales: dict[float, str] = {}
        for folder in sorted({image.parent for image in images}):
            file = self._shared_file(folder)
            stated = self._stated.get(file) if file is not None else None
            if file is not None and stated is not None and stated.depth_scale:
                scales.setdefault(stated.depth_scale, self._name(file))
        if len(scales) > 1:
            (first, file), (second, other) = list(scales.items())[:2]
            raise UserError(
                f"{self._root}: {file} states {first:g} units of depth per metre and "
                f"{other} states {second:g}: read these folders separately"
            )
        return next(iter(scales.items()), None)

    def notes(self, images: Sequence[Path]) -> list[str]:
        """One line on the camera files in use, and one on those that can't be used.

        Every file that images share is read, and a sample of those of single images.
        """
        first: dict[Path, Path] = {}  # camera file -> an image
        counts: collections.Counter[Path | None] = collections.Counter()
        for image in images:
            file = self.file_of(image)
            counts[file] += 1
            if file is not None:
                first.setdefault(file, image)
        shared = set(self._shared.values())
        single = [file for file in first if file not in shared]
        sampled = [single[k] for k in files.spaced(len(single))]
        unused: dict[Path, str] = {}
        for file in [file for file in first if file in shared] + sampled:
            try:
                if file in self._unused:
                    raise ValueError(self._unused[file])
                self._read(file, first[file]).at(files.size_of(first[file]))
            except ValueError as error:
                unused[file] = str(error)
            except BrokenFrame:
                continue  # an image that can't be read is reported elsewhere
        self._unused |= {file: why for file, why in unused.items() if file in shared}
        used = {file: counts[file] for file in first if file not in unused}
        notes = [*self._used_note(used, len(images)), *self._unused_note(unused)]
        if counts[None]:
            notes += self._known_note(next(i for i in images if not self.file_of(i)))
        return notes

    def _known_at(self, size: tuple[int, int]) -> Camera | None:
        with contextlib.suppress(ValueError):  # images of another aspect ratio
            return None if self._known is None else self._known.at(size)

    def _known_note(self, image: Path) -> Iterator[str]:
        with contextlib.suppress(BrokenFrame):
            if (camera := self._known_at(files.size_of(image))) is not None:
                values = ", ".join(f"{value:.6g}" for value in camera)
                yield f"camera as published for this data set: fx, fy, cx, cy {values}"

    def _used_note(self, used: dict[Path, int], total: int) -> Iterator[str]:
        if used:
            more = f" and {len(used) - 1} more" if len(used) > 1 else ""
            count = sum(used.values())
            part = "" if count == total else f", for {count} of {total} images"
            yield f"camera read from {self._name(next(iter(used)))}{more}{part}"

    def _unused_note(self, unused: dict[Path, str]) -> Iterator[str]:
        if unused:
            file, reason = next(iter(unused.items()))
            more = f" ({len(unused)} such files)" if len(unused) > 1 else ""
            yield f"{self._name(file)} is not used as a camera: {reason}{more}"

    def _name(self, file: Path) -> str:
        inside = file.is_relative_to(self._root)
        return printable(file.relative_to(self._root) if inside else file)

    def _read(self, file: Path, image: Path) -> Stated:
        """Read a file, or return what was read. Raises ValueError with the reason."""
        if file in self._stated:
            return self._stated[file]
        own = self._own[image.parent]
        return own.in_house(file, image) if file.suffix == ".conf" else parse(file)

    def _shared_file(self, folder: Path) -> Path | None:
        """The camera file of a folder or of its nearest parent that has one."""
        if folder not in self._shared:
            choices = _in_folder(folder)
            if folder == self._root:  # Replica has one file beside its scenes
                above = folder.absolute().parent / "cam_params.json"
                choices += [above] if files.is_file(above) else []
            if choices:
                self._shared[folder] = self._first_usable(choices)
            elif folder.is_relative_to(self._root) and folder != self._root:
                self._shared[folder] = self._shared_file(folder.parent)
            else:
                self._shared[folder] = None
        return self._shared[folder]

    def _first_usable(self, choices: Sequence[Path]) -> Path:
        """Parse the files until one can be used; the first file if none can."""
        for file in choices:
            self._check(file)
            try:
                self._stated[file] = parse(file)
            except ValueError as error:
                self._unused[file] = str(error)
            else:
                return file
        return choices[0]

    def _check(self, file: Path) -> None:
        """Raise UserError for a link that leads outside the folder."""
        if file.is_relative_to(self._root):
            self._inside.find(str(file.relative_to(self._root)))


class _OwnFiles:
    """Finds the camera files of single images of a folder.

    Args:
      inside: whether the parent of the folder belongs to the data.
    """

    def __init__(self, folder: Path, *, inside: bool):
        beside = folder.parent if inside else folder
        self._pincams = folder.with_name(f"{folder.name}_intrinsics")
        self._has_pincams = inside and self._pincams.is_dir()
        self._folders = _camera_folders(beside) if inside else []
        self._matterport = beside / "matterport_camera_intrinsics"
        undistorted = beside / "undistorted_camera_parameters"
        self._houses = sorted(undistorted.glob("*.conf")) if inside else []
        self._cameras: dict[Path, dict[str, list[str]]] = {}

    def of(self, image: Path, check: Callable[[Path], None]) -> Path | None:
        """The file of an image; `check` is called with it."""
        for file in self._choices(image):
            if files.is_file(file):
                check(file)
                return file
        return None

    def in_house(self, file: Path, image: Path) -> Stated:
        """Read the camera of an image from a file of Matterport3D; see `_of_house`."""
        if file not in self._cameras:
            self._cameras[file] = _of_house(_text(file))
        matrix = self._cameras[file].get(image.name)
        if matrix is None or len(matrix) != 9 or not all(map(lists.is_number, matrix)):
            raise ValueError(f"it has no camera of {printable(image.name)}")
        stated = _checked(_of_matrix([float(number) for number in matrix]))
        return stated._replace(from_bottom=True)

    def _choices(self, image: Path) -> Iterator[Path]:
        if self._has_pincams:
            yield from _pincams(self._pincams, image.stem)
        if match := re.fullmatch(r"(\w+)_i(\d)_\d", image.stem):
            yield self._matterport / f"{match[1]}_intrinsics_{match[2]}.txt"
            yield from self._houses
        for folder in self._folders:
            for suffix in (".txt", ".json", ".csv", ".pincam"):
                yield folder / f"{image.stem}{suffix}"


def parse(file: Path) -> Stated:
    """Read a camera file of any known format. Raises ValueError with the reason."""
    text = _text(file)
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


def _text(file: Path) -> str:
    try:
        regular.check(file)
        with open(file, "rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(content) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not text in UTF-8") from None


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

    Scenes of ScanNet have fx_color and so on; Middlebury has cam0=[fx 0 cx; ...].
    """
    values: dict[str, Any] = {}
    for line in text.splitlines():
        name, separator, value = re.sub(r"#.*", "", line).partition("=")
        if not separator:
            name, separator, value = line.partition(":")
        words = re.sub(r"[,;\[\]()]", " ", value).split()
        if separator and words and all(map(lists.is_number, words)):
            values[name.strip().lower()] = list(map(float, words))
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
            scale = named.get("png_depth_scale")
            if scale is None and name.lower() in (
                "cam_params.json",
                "camera_params.json",
            ):
                scale = named.get("scale")  # Replica of NICE-SLAM
            plausible = _is_number(scale) and 1 < scale < 1e6
            return stated._replace(depth_scale=float(scale) if plausible else None)
        pending += value.values()
    return None


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


def _in_folder(folder: Path) -> list[Path]:
    """The camera files of a folder, or of the camera folders in it, best first."""
    found = _named(folder)
    for inner in _camera_folders(folder):
        found = found or _named(inner)
    scene = folder / f"{folder.absolute().name}.txt"  # ScanNet
    with contextlib.suppress(ValueError):
        if not found and files.is_file(scene) and "fx_color" in _text(scene):
            return [scene]
    return sorted(found, key=lambda file: not re.search("(?i)colou?r|rgb", file.name))


def _named(folder: Path) -> list[Path]:
    names = [name for name in _entries(folder) if NAME.fullmatch(name)]
    return [folder / name for name in names if files.is_file(folder / name)]


def _camera_folders(folder: Path) -> list[Path]:
    names = [name for name in _entries(folder) if FOLDER.fullmatch(name)]
    return [folder / name for name in names if (folder / name).is_dir()]


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _pincams(folder: Path, stem: str) -> Iterator[Path]:
    """Names of the file of an image of ARKitScenes, whose time may differ by 1 ms."""
    yield folder / f"{stem}.pincam"
    video, _, time = stem.rpartition("_")
    if lists.is_number(time):
        for shift in (-0.001, 0.001):
            yield folder / f"{video}_{float(time) + shift:.3f}.pincam"


def _of_house(text: str) -> dict[str, list[str]]:
    """Matrices by image in a file of Matterport3D, whose rows count from the bottom.

    Lines "intrinsics_matrix" hold for the lines "scan DEPTH IMAGE" below them.
    """
    matrix: list[str] = []
    cameras = {}
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["intrinsics_matrix"]:
            matrix = words[1:]
        elif words[:1] == ["scan"] and len(words) > 2:
            cameras[words[2]] = matrix
    return cameras
