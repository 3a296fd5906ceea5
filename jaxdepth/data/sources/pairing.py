"""Pairs of image and depth files of one folder, matched by their names."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from jaxdepth import images as images_lib
from jaxdepth.data.sources import cameras, files, lists, tum
from jaxdepth.data.sources.listed import (
    DEPTH_SUFFIXES,
    MASK_WORDS,
    SUFFIXES,
    Listed,
)
from jaxdepth.runtime.errors import UserError

DEPTH_WORDS = (
    "sync_depth", "depth_maps", "depth_map", "depthmaps", "depthmap", "depths",
    "depth8", "depth", "gt", "disparity", "disp",
)  # fmt: skip
IMAGE_WORDS = ("rgb", "images", "image", "colors", "color", "img", "photo")
# A folder named "valid" may hold the frames of a validation set.
MASK_FOLDERS = ("masks", "mask", "confidence", "conf")
# Left out of keys, but the kind of a file does not follow from them: Replica has
# frame000000.jpg and depth000000.png, others rgb/frame_1.jpg and depth/frame_1.png.
NEUTRAL_WORDS = ("frames", "frame")
Kind = Literal["image", "depth", "mask"]
VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
# Files beside images and depth that are no pictures, and are not named as left out.
OTHERS = (
    ".txt", ".csv", ".tsv", ".lst", ".list", ".json", ".yaml", ".yml", ".xml", ".md",
    ".rst", ".html", ".pdf", ".log", ".ini", ".cfg", ".conf", ".toml", ".ply", ".obj",
    ".mtl", ".stl", ".off", ".traj", ".pincam", ".cam", ".sh", ".py", ".m", ".sim", "",
)  # fmt: skip
NAMED = 6  # largest number of suffixes in a note


def pairs(
    root: Path, paths: Sequence[Path] | None = None, *, allow_outside: bool = False
) -> tuple[list[Listed], list[str]]:
    """The pairs of a folder, sorted by key, and one-line notes on what is left out.

    The kind of a file is given by the first word for mask, depth or image in its name,
    or else in its folders, innermost first; .npy, .npz, .pfm, .pgm and .exr files
    without such a word are depth. The key that pairs files is their path without these
    words. Without any such word, a.png is the depth of a.jpg. One image and one depth
    file without a number are a pair, too.

    Args:
      paths: all files of the folder; None to search it.

    Raises: UserError if there is no pair, if two files of a kind share a key, or if a
      symbolic link leads outside the folder, unless `allow_outside`.
    """
    paths = files.below(root) if paths is None else paths
    groups = _by_key(root, paths)
    images, depths, masks = groups["image"], groups["depth"], groups["mask"]
    _pair_single(images, depths)
    keys = sorted(images.keys() & depths.keys())
    if not keys:
        raise UserError(_no_pair(root, paths, images, depths))
    notes = [
        f"left out {len(alone)} {what} without a partner, first "
        f"{lists.printable(str(group[alone[0]].relative_to(root)))}"
        for what, group in (
            ("images", images), ("depth files", depths), ("masks", masks),
        )
        if (alone := sorted(group.keys() - set(keys)))
    ]  # fmt: skip
    found = [Listed(key, images[key], depths[key], mask=masks.get(key)) for key in keys]
    check_inside(root, found, allow_outside=allow_outside)
    return found, notes


def check_inside(
    root: Path, frames: Iterable[Listed], *, allow_outside: bool = False
) -> None:
    """Raise UserError for a link that leads outside the folder."""
    folder = lists.Root(root, allow_outside=allow_outside)
    for frame in frames:
        for path in filter(None, frame[1:5]):
            if (name := files.name_in(root, path)) is not None:
                folder.find(name)


def unused(root: Path, paths: Iterable[Path], frames: Sequence[Listed]) -> list[str]:
    """Return a note on images and arrays of a folder that no frame uses."""
    used = {file for frame in frames for file in frame[1:5]}
    others = [
        path
        for path in paths
        if path.suffix.lower() in SUFFIXES
        and path not in used
        and cameras.NAME.fullmatch(path.name) is None
    ]
    if not others:
        return []
    first = lists.printable(others[0].relative_to(root))
    return [f"{len(others)} other images and arrays are not used, first {first}"]


def unread(root: Path, paths: Iterable[Path]) -> str | None:
    """Count the files of types that are not read, by suffix; None if there are none."""
    by_suffix: dict[str, list[Path]] = {}
    for path in paths:
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES and suffix not in OTHERS:
            by_suffix.setdefault(suffix, []).append(path)
    if not by_suffix:
        return None
    most = sorted(by_suffix, key=lambda suffix: (-len(by_suffix[suffix]), suffix))
    counts = [f"{len(by_suffix[s])} {lists.printable(s)}" for s in most[:NAMED]]
    more = f" and {len(most) - NAMED} other types" if len(most) > NAMED else ""
    first = lists.printable(by_suffix[most[0]][0].relative_to(root))
    return f"files that are not read: {', '.join(counts)}{more}, first {first}"


def key_of(relative: Path) -> str:
    """The path without suffix and without words for image, depth and mask."""
    parts = []
    for part in (*relative.parts[:-1], relative.stem):
        last = part == relative.stem
        words = (
            *DEPTH_WORDS, *IMAGE_WORDS, *NEUTRAL_WORDS,
            *(MASK_WORDS if last else MASK_FOLDERS),
        )  # fmt: skip
        bare = re.sub(
            rf"(?<![a-z])({'|'.join(words)})(?![a-z])", "", part, flags=re.IGNORECASE
        ).strip("_-. ")
        if bare:
            parts.append(bare)
    return "/".join(parts)


def _pair_single(images: dict[str, Path], depths: dict[str, Path]) -> None:
    """Give the depth file the key of the image if they are all there is."""
    if len(images) == len(depths) == 1:
        ((key, image),), ((other, depth),) = images.items(), depths.items()
        same = image.parent == depth.parent
        if same and not re.search(r"\d", f"{image.stem}{depth.stem}"):
            depths[key] = depths.pop(other)


def _by_key(root: Path, paths: Iterable[Path]) -> dict[Kind, dict[str, Path]]:
    """The files of each kind. Raises UserError if two of a kind share a key."""
    groups: dict[Kind, dict[str, Path]] = {"image": {}, "depth": {}, "mask": {}}
    for file in paths:
        array = file.suffix.lower() in DEPTH_SUFFIXES and file.is_file()
        is_camera = cameras.NAME.fullmatch(file.name) is not None
        if is_camera or not (array or images_lib.is_photo(file)):
            continue
        relative = file.relative_to(root)
        kind, key = _kind(relative, array), key_of(relative)
        known = groups[kind]
        if (
            kind == "image" and key in known and key not in groups["depth"]
            and _is_depth_of(file, known[key])
        ):  # fmt: skip
            known = groups["depth"]
        if key in known:
            raise UserError(
                f"{root}: {lists.printable(str(known[key].relative_to(root)))} and "
                f"{lists.printable(str(relative))} have the same key; keep one of them"
            )
        known[key] = file
    return groups


def _kind(relative: Path, array: bool) -> Kind:
    photo = relative.suffix.lower() in (".jpg", ".jpeg")
    for k, part in enumerate((relative.stem, *reversed(relative.parts[:-1]))):
        if not photo and _contains_word(part, MASK_FOLDERS if k else MASK_WORDS):
            return "mask"
        if _contains_word(part, DEPTH_WORDS):
            return "depth"
        if _contains_word(part, IMAGE_WORDS):
            return "image"
    return "depth" if array else "image"


def _is_depth_of(file: Path, image: Path) -> bool:
    """Whether the two are a.png and a.jpg, so that only the suffix differs."""
    return (
        file.with_suffix("") == image.with_suffix("")
        and file.suffix.lower() == ".png"
        and image.suffix.lower() in (".jpg", ".jpeg")
    )


def _contains_word(part: str, words: tuple[str, ...]) -> bool:
    return any(
        re.search(rf"(^|[^a-z]){word}([^a-z]|$)", part.lower()) for word in words
    )


def _examples(images: dict[str, Path], depths: dict[str, Path]) -> str:
    """The first key of each kind, for a message; "" if one kind has no files."""
    if not images or not depths:
        return ""
    first = [repr(lists.printable(min(group))) for group in (images, depths)]
    return f"; the first keys are {first[0]} and {first[1]}"


def _no_pair(
    root: Path, paths: Sequence[Path], images: dict[str, Path], depths: dict[str, Path]
) -> str:
    """The message for a folder without pairs, with what to do about it."""
    held = f"({len(images)} images, {len(depths)} depth files)"
    videos = [path for path in paths if path.suffix.lower() in VIDEOS]
    if depths and not images and videos:
        video, rgb = (_quoted(path) for path in (videos[0], videos[0].parent / "rgb"))
        return (
            f"{root} holds depth and a video, but no images {held}: extract the images "
            f"of the video: mkdir {rgb} && ffmpeg -i {video} -fps_mode passthrough "
            f"-start_number 0 {rgb}/%06d.png"
        )
    message = f"{root} holds no pair of image and depth {held}"
    recordings = [p.parent for p in paths if p.name in ("rgb.txt", tum.ASSOCIATIONS)]
    for folder in recordings:
        if folder != root and tum.Tum.recognises(folder):
            return f"{message}; {_quoted(folder)} is a recording of TUM RGB-D: give it"
    message += (
        ": pairs share their name, as in rgb/0001.jpg and depth/0001.png"
        f"{_examples(images, depths)}"
    )
    if (text := unread(root, paths)) is not None:
        message += f"; {text}"
    suffixes = {path.suffix.lower() for path in paths}
    if suffixes.intersection(ARCHIVES):
        return f"{message}; unpack the archives"
    if ".sens" in suffixes:
        return f"{message}; export .sens files with ScanNet's SensReader"
    return message


def _quoted(path: Path) -> str:
    return lists.printable(shlex.quote(str(path)), None)
