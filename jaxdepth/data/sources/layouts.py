"""Pairs of image and depth in folders that are laid out as their publishers ship them.

Only layouts that `pairing` can't match by name, or whose encoding differs from its
defaults, are listed. Sources: the documentation or the loaders of each data set.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import files, tum
from jaxdepth.data.sources.camera_files import Stated
from jaxdepth.data.sources.listed import Listed
from jaxdepth.runtime.errors import UserError

PRIMESENSE = Stated((525.0, 525.0, 319.5, 239.5), (480, 640))
STREAMS = ("image", "rgb", "color", "depth", "depth_bfx", "extrinsics", "fullres")
MAX_GAP = 20_000  # microseconds between an image and its depth, as in TUM RGB-D


@dataclasses.dataclass(frozen=True)
class Layout:
    """One layout of a data set. Later layouts of the same data set are alternatives.

    Attributes:
      name: of the data set.
      image: matches the path of an image, relative to the data's folder.
      depth: replacements in that path that give the path of its depth.
      mask: likewise for a mask or confidence map, if there is one.
      scale: default units of depth per metre.
      camera: of images without a camera file.
      camera_above: name of a camera file that may be beside the data's folder.
      note: for the user.
    """

    name: str
    image: str
    depth: Sequence[tuple[str, str]]
    mask: Sequence[tuple[str, str]] = ()
    scale: float = 1000.0
    camera: Stated | None = None
    camera_above: str | None = None
    note: str = ""


_ANY = r"(?:.*/)?"
_PICTURE = r"\.(?:png|jpe?g)"
LAYOUTS = (
    Layout(
        "ARKitScenes",
        rf"{_ANY}lowres_wide/[^/]+{_PICTURE}",
        depth=((r"lowres_wide/([^/]+)\.\w+$", r"lowres_depth/\1.png"),),
        mask=((r"lowres_wide/([^/]+)\.\w+$", r"confidence/\1.png"),),
        note="lowres_wide and lowres_depth, without pixels of confidence below 2",
    ),
    Layout(
        "ARKitScenes",
        rf"{_ANY}(?:color|wide)/[^/]+{_PICTURE}",
        depth=((r"(?:color|wide)/([^/]+)\.\w+$", r"highres_depth/\1.png"),),
        note="highres_depth, of the laser scanner",
    ),
    Layout(
        "Matterport3D",
        rf"{_ANY}undistorted_color_images/\w+_i\d_\d\.jpg",
        depth=(("_color_images/", "_depth_images/"), (r"_i(\d_\d)\.jpg", r"_d\1.png")),
        scale=4000.0,
        note="undistorted images",
    ),
    Layout(
        "Matterport3D",
        rf"{_ANY}matterport_color_images/\w+_i\d_\d\.jpg",
        depth=(("_color_images/", "_depth_images/"), (r"_i(\d_\d)\.jpg", r"_d\1.png")),
        scale=4000.0,
        note="images with lens distortion",
    ),
    Layout(
        "Replica",
        rf"{_ANY}results/frame\d+{_PICTURE}",
        depth=((r"frame(\d+)\.\w+$", r"depth\1.png"),),
        scale=6553.5,
        camera_above="cam_params.json",  # --data can be one scene
    ),
    Layout(
        "7-Scenes",
        rf"{_ANY}frame-\d{{6}}\.color\.png",
        depth=((r"\.color\.png$", ".depth.png"),),
        camera=Stated((585.0, 585.0, 320.0, 240.0), (480, 640)),
        note="colour and depth are of two cameras and not registered to each other: "
        "edges differ by several pixels",
    ),
    Layout(
        "Redwood",
        rf"{_ANY}[^/]+-color/\d+\.(?:jpg|png)",
        depth=((r"-color/(\d+)\.\w+$", r"-depth-clean/\1.png"),),
        camera=PRIMESENSE,
        note="depth without noise",
    ),
    Layout(
        "Redwood",
        rf"{_ANY}[^/]+-color/\d+\.(?:jpg|png)",
        depth=((r"-color/(\d+)\.\w+$", r"-depth-simulated/\1.png"),),
        camera=PRIMESENSE,
        note="depth with simulated noise",
    ),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """The pairs of a folder in a published layout.

    Attributes:
      frames: sorted by the path of the image.
      notes: one line each.
      scale: default units of depth per metre.
      camera, camera_above: see `Layout`.
      rotated: whether the layout stores depth with its bits rotated (SUN RGB-D).
    """

    frames: list[Listed]
    notes: list[str]
    scale: float = 1000.0
    camera: Stated | None = None
    camera_above: str | None = None
    rotated: bool = False


def find(root: Path, paths: Iterable[Path]) -> Found | None:
    """The pairs of a folder in a published layout; None if it has none.

    Args:
      paths: all files of the folder.

    Raises: UserError for a folder with data of several publishers.
    """
    names = sorted(filter(None, (files.name_in(root, path) for path in paths)))
    present = set(names)
    found: dict[str, tuple[Layout, list[Listed]]] = {}
    unused = []
    for layout in LAYOUTS:
        frames = _matches(layout, root, names, present)
        if frames and layout.name in found:
            unused.append(f"{layout.note} ({len(frames)} pairs)")
        elif frames:
            found[layout.name] = layout, frames
    if frames := _in_frame_folders(root, names):
        return _sunrgbd(frames) if not found else _reject(root, [*found, "SUN RGB-D"])
    if not found and (frames := _by_time(root, names)):
        return Found(frames, ["image and depth matched by the times in their names"])
    if not found:
        return None
    if len(found) > 1:
        _reject(root, list(found))
    ((layout, frames),) = found.values()
    title = f"{layout.name}: {layout.note}" if layout.note else layout.name
    notes = [f"layout of {title}"]
    notes += [f"not used, as they show the same frames: {text}" for text in unused]
    return Found(frames, notes, layout.scale, layout.camera, layout.camera_above)


def _reject(root: Path, names: Sequence[str]) -> Any:
    raise UserError(
        f"{root} holds data of {' and '.join(names)}, which have different units: give "
        "the folder of one of them"
    )


def _matches(
    layout: Layout, root: Path, names: Sequence[str], present: set[str]
) -> list[Listed]:
    frames = []
    image = re.compile(layout.image)
    for name in names:
        if image.fullmatch(name) is None:
            continue
        depth, mask = _replaced(name, layout.depth), _replaced(name, layout.mask)
        if depth in present:
            masked = root / mask if mask != name and mask in present else None
            frames.append(Listed(name, root / name, root / depth, mask=masked))
    return frames


def _replaced(name: str, replacements: Sequence[tuple[str, str]]) -> str:
    for pattern, new in replacements:
        name = re.sub(pattern, new, name)
    return name


# SUN RGB-D has a folder for each frame, with image/, depth/ (as measured), depth_bfx/
# (with holes filled), fullres/ (the same frame, not cropped), extrinsics/ and
# intrinsics.txt. Image and depth may have different names, with their times:
# 0000103-000003417420.jpg and 0000102-000003403331.png. Recordings of SUN3D have many
# frames in such a folder.
def _in_frame_folders(root: Path, names: Sequence[str]) -> list[Listed]:
    """The frames of folders with intrinsics.txt, image/, depth/ and extrinsics/."""
    frames = []
    for folder, kinds in _streams(names).items():
        certain = "extrinsics" in kinds or "fullres" in kinds or "depth_bfx" in kinds
        camera = root / folder / "intrinsics.txt"
        if "image" not in kinds or not certain or not camera.is_file():
            continue
        measured, filled = kinds.get("depth", []), kinds.get("depth_bfx", [])
        by_name = {name.rsplit("/", 1)[1]: root / name for name in filled}
        scene = _scene(folder, single=len(kinds["image"]) == 1)
        for image, depth in _paired(kinds["image"], measured or filled):
            file = by_name.get(depth.rsplit("/", 1)[1]) if measured else None
            frames.append(
                Listed(image, root / image, root / depth, filled=file, scene=scene)
            )
    return sorted(frames, key=lambda frame: frame.name)


def _by_time(root: Path, names: Sequence[str]) -> list[Listed]:
    """The frames of recordings whose names have the times of image and of depth.

    Redwood's scans have rgb/0000002-000000033368.jpg, depth/0000002-000000033470.png.
    [] if image and depth have equal names everywhere.
    """
    frames, differ = [], False
    for kinds in _streams(names).values():
        images = kinds.get("rgb") or kinds.get("color") or kinds.get("image") or []
        depths = kinds.get("depth", [])
        stems = [{Path(name).stem for name in group} for group in (images, depths)]
        if all(_time(stem) is not None for group in stems for stem in group):
            differ |= stems[0] != stems[1]
            pairs = _paired(images, depths)
            frames += [Listed(name, root / name, root / depth) for name, depth in pairs]
    return sorted(frames, key=lambda frame: frame.name) if differ else []


def _streams(names: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Files by folder and by the sub-folder that shows their kind."""
    folders: dict[str, dict[str, list[str]]] = {}
    for name in names:
        *above, kind, _ = ["", "", *name.split("/")]
        if kind in STREAMS:
            folders.setdefault("/".join(above).strip("/"), {}).setdefault(
                kind, []
            ).append(name)
    return folders


def _paired(images: Sequence[str], depths: Sequence[str]) -> list[tuple[str, str]]:
    """Pair the files of two folders: one each, equal stems, or by time."""
    if len(images) == len(depths) == 1:
        return [(images[0], depths[0])]
    by_stem = {Path(name).stem: name for name in depths}
    same = [(name, by_stem.get(Path(name).stem)) for name in images]
    pairs = [(image, depth) for image, depth in same if depth is not None]
    times = [[_time(name) for name in group] for group in (images, depths)]
    if len(pairs) == len(images) or any(None in group for group in times):
        return pairs
    matched = tum.associate(times[0], times[1], MAX_GAP)  # pyright: ignore
    return [(images[i], depths[j]) for i, j in matched]


def _time(name: str) -> float | None:
    """The time in microseconds of NUMBER-TIME.jpg."""
    match = re.fullmatch(r"\d+-(\d{9,})", Path(name).stem)
    return float(match[1]) if match else None


def _scene(folder: str, *, single: bool) -> str | None:
    """The scene of a folder of one frame, or of a recording.

    Frames of NYU Depth V2 get the name of their scene: NYU0034 is official frame 34.
    """
    above, _, name = folder.rpartition("/")
    scenes = splits.official()["scenes"]
    if (nyu := re.fullmatch(r"NYU(\d{4})", name)) and 0 < int(nyu[1]) <= len(scenes):
        return scenes[int(nyu[1]) - 1]
    if session := re.fullmatch(r"\d+_(.+)_rgbf\d+(-resize)?", name):
        return f"{above}/{session[1]}".lstrip("/")
    if single and re.fullmatch(r"\d+-\d{9,}", name):
        return above or None
    return folder or None


def _sunrgbd(frames: list[Listed]) -> Found:
    filled = sum(frame.filled is not None for frame in frames)
    notes = ["layout of SUN RGB-D: image and depth; fullres shows the same frames"]
    if filled:
        notes.append(
            "raw depth is of depth, filled depth of depth_bfx (--depth=raw|filled)"
        )
    return Found(frames, notes, rotated=True)
