"""Camera files of a data set: the intrinsics of each image.

A camera file is recognised by its name (`NAME`), in the folder of the image or in one
of its parents up to the data's folder; the innermost one is used. Files of one image,
as in ARKitScenes and Matterport3D, take precedence. Without any file, the focal length
is that of the image's EXIF data, if they give it.
"""

import collections
import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jaxdepth import images as images_lib
from jaxdepth.camera import Camera, centred
from jaxdepth.data.sources import BrokenFrame, camera_files, files, lists
from jaxdepth.data.sources.camera_files import Stated
from jaxdepth.runtime.errors import UserError, printable

# intrinsics.txt (SUN RGB-D, 3DMatch), intrinsic_color.txt (ScanNet), camera_matrix.csv
# (Stray Scanner), cam_params.json (Replica of NICE-SLAM), camera_primesense.json
# (Open3D), transforms.json (nerfstudio), K.txt, camera.txt, color.pincam and so on.
NAME = re.compile(
    r"(((rgb|colou?r|image|cam|camera)[_-])?(intrinsics?|k|calib|calibration)"
    r"([_-](rgb|colou?r))?"
    r"|(cam|camera)([_-](matrix|params|parameters|primesense|k))?"
    r"|transforms(?=\.json)|colou?r(?=\.pincam))"
    r"\.(txt|csv|json|ya?ml|npy|pincam)",
    re.IGNORECASE,
)
FOLDER = re.compile(r"(cam(era)?[_-])?(intrinsics?|calib(ration)?)", re.IGNORECASE)


class Cameras:
    """The camera files of a data set, and the intrinsics of its images.

    Call `notes` once before `of`: it reports the files that can't be used.

    Args:
      root: the data's folder.
      known: the camera of images that have no file, such as a published constant.
      above: name of a camera file that may be beside the data's folder.
      allow_outside: follow links that lead outside the folder.
    """

    def __init__(
        self,
        root: Path,
        *,
        known: Stated | None = None,
        above: str | None = None,
        allow_outside: bool = False,
    ):
        self._root = root
        self._known = known
        self._above = above
        self._inside = lists.Root(root, allow_outside=allow_outside)
        self._shared: dict[Path, Path | None] = {}  # folder -> its camera file
        self._stated: dict[Path, Stated] = {}  # shared files that can be used
        self._unused: dict[Path, str] = {}  # shared files that can't, and the reasons
        self._own: dict[Path, _OwnFiles] = {}  # folder -> files of single images
        self._ignores_own = False

    def of(self, image: Path, size: tuple[int, int]) -> Camera | None:
        """The intrinsics of an image of a size (height, width); None if unknown.

        Raises: BrokenFrame if the image has a camera file that can't be used, except
          for a file that `notes` has reported.
        """
        file = self.file_of(image)
        if file is None:
            return self._known_at(size) or _by_exif(image, size)
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
        own = None if self._ignores_own else self._own[folder].of(image, self._check)
        return own or self._shared_file(folder)

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

        Every file that images share is read, and a sample of those of single images; if
        none of the sample can be used, they are all ignored from then on.
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
        scaled = ""
        for file in [file for file in first if file in shared] + sampled:
            try:
                if file in self._unused:
                    raise ValueError(self._unused[file])
                stated, size = self._read(file, first[file]), files.size_of(first[file])
                stated.at(size)
                if stated.size not in (None, size):
                    scaled = f", scaled from {stated.size[0]}x{stated.size[1]}"
            except ValueError as error:
                unused[file] = str(error)
            except BrokenFrame:
                continue  # an image that can't be read is reported elsewhere
        self._unused |= {file: why for file, why in unused.items() if file in shared}
        self._ignores_own = bool(single) and all(file in unused for file in sampled)
        if self._ignores_own:
            unused |= dict.fromkeys(single, unused[sampled[0]])
        used = {file: counts[file] for file in first if file not in unused}
        notes = [note + scaled for note in self._used_note(used, len(images))]
        notes += self._unused_note(unused)
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
            elif (focal := images_lib.focal_length(image)) is not None:
                yield (
                    "focal lengths of images without a camera file are those of their "
                    f"EXIF data: {focal:.6g} pixels of the first"
                )

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
        return (
            own.in_house(file, image)
            if file.suffix == ".conf"
            else camera_files.parse(file)
        )

    def _shared_file(self, folder: Path) -> Path | None:
        """The camera file of a folder or of its nearest parent that has one."""
        if folder not in self._shared:
            choices = _in_folder(folder)
            if folder == self._root and self._above is not None:
                above = folder.absolute().parent / self._above
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
                self._stated[file] = camera_files.parse(file)
            except ValueError as error:
                self._unused[file] = str(error)
            else:
                return file
        return choices[0]

    def _check(self, file: Path) -> None:
        """Raise UserError for a link that leads outside the folder."""
        if (name := files.name_in(self._root, file)) is not None:
            self._inside.find(name)


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
        self._cameras: dict[Path, dict[str, Stated]] = {}

    def of(self, image: Path, check: Callable[[Path], None]) -> Path | None:
        """The file of an image; `check` is called with it."""
        for file in self._choices(image):
            if files.is_file(file):
                check(file)
                return file
        return None

    def in_house(self, file: Path, image: Path) -> Stated:
        """Read the camera of an image from a file of Matterport3D; see
        `camera_files.of_house`."""
        if file not in self._cameras:
            self._cameras[file] = camera_files.of_house(camera_files.text_of(file))
        camera = self._cameras[file].get(image.name)
        if camera is None:
            raise ValueError(f"it has no camera of {printable(image.name)}")
        return camera

    def _choices(self, image: Path) -> Iterator[Path]:
        if self._has_pincams:
            yield from _pincams(self._pincams, image.stem)
        if match := re.fullmatch(r"(\w+)_i(\d)_\d", image.stem):
            yield self._matterport / f"{match[1]}_intrinsics_{match[2]}.txt"
            yield from self._houses
        for folder in self._folders:
            for suffix in (".txt", ".json", ".csv", ".yaml", ".npy", ".pincam"):
                yield folder / f"{image.stem}{suffix}"


def _by_exif(image: Path, size: tuple[int, int]) -> Camera | None:
    """The camera by the focal length in the EXIF data of an image."""
    focal = images_lib.focal_length(image)
    return None if focal is None else centred(focal, focal, size)


def _in_folder(folder: Path) -> list[Path]:
    """The camera files of a folder, or of the camera folders in it, best first."""
    found = _named(folder)
    for inner in _camera_folders(folder):
        found = found or _named(inner)
    # ScanNet, 3RScan, and BundleFusion; other texts can have these names.
    for name in (f"{folder.absolute().name}.txt", "_info.txt", "info.txt"):
        file = folder / name
        with contextlib.suppress(ValueError):
            text = "" if found else camera_files.text_of(file)
            if re.search("fx_color|m_calibrationColor", text):
                return [file]
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
