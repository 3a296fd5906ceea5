"""Pairs of image and depth files of one folder, matched by their names."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from jaxdepth import images as images_lib
from jaxdepth.data.sources import files, lists
from jaxdepth.data.sources.listed import DEPTH_SUFFIXES, MASK_WORDS, Listed
from jaxdepth.runtime.errors import UserError

DEPTH_WORDS = (
    "sync_depth", "depth_maps", "depth_map", "depthmaps", "depthmap", "depths",
    "depth8", "depth", "gt", "disparity", "disp",
)  # fmt: skip
IMAGE_WORDS = ("rgb", "images", "image", "colors", "color", "img", "photo")
# A folder named "valid" may hold the frames of a validation set.
MASK_FOLDERS = ("masks", "mask", "confidence", "conf")
Kind = Literal["image", "depth", "mask"]


def pairs(root: Path, *, allow_outside: bool = False) -> tuple[list[Listed], list[str]]:
    """The pairs of a folder, sorted by key, and one-line notes on what is left out.

    The kind of a file is given by the first word for mask, depth or image in its name,
    or else in its folders, innermost first; .npy, .npz, .pfm, .pgm and .exr files
    without such a word are depth. The key that pairs files is their path without these
    words. Without any such word, a.png is the depth of a.jpg.

    Raises: UserError if there is no pair, if two files of a kind share a key, or if a
      symbolic link leads outside the folder, unless `allow_outside`.
    """
    groups = _by_key(root)
    images, depths, masks = groups["image"], groups["depth"], groups["mask"]
    keys = sorted(images.keys() & depths.keys())
    if not keys:
        raise UserError(
            f"{root} holds no pair of image and depth ({len(images)} images, "
            f"{len(depths)} depth files): pairs share their name, as in "
            f"rgb/0001.jpg and depth/0001.png{_examples(images, depths)}"
        )
    notes = [
        f"left out {len(alone)} {what} without a partner, first "
        f"{lists.printable(str(group[alone[0]].relative_to(root)))}"
        for what, group in (
            ("images", images), ("depth files", depths), ("masks", masks),
        )
        if (alone := sorted(group.keys() - set(keys)))
    ]  # fmt: skip
    found = [Listed(key, images[key], depths[key], mask=masks.get(key)) for key in keys]
    if not allow_outside:
        _check_inside(root, (f for pair in found for f in pair[1:5]))
    return found, notes


def key_of(relative: Path) -> str:
    """The path without suffix and without words for image, depth and mask."""
    parts = []
    for part in (*relative.parts[:-1], relative.stem):
        last = part == relative.stem
        words = (*DEPTH_WORDS, *IMAGE_WORDS, *(MASK_WORDS if last else MASK_FOLDERS))
        bare = re.sub(
            rf"(?<![a-z])({'|'.join(words)})(?![a-z])", "", part, flags=re.IGNORECASE
        ).strip("_-. ")
        if bare:
            parts.append(bare)
    return "/".join(parts)


def _by_key(root: Path) -> dict[Kind, dict[str, Path]]:
    """The files of each kind. Raises UserError if two of a kind share a key."""
    groups: dict[Kind, dict[str, Path]] = {"image": {}, "depth": {}, "mask": {}}
    for file in files.below(root):
        array = file.suffix.lower() in DEPTH_SUFFIXES and file.is_file()
        if not (array or images_lib.is_photo(file)):
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


def _check_inside(root: Path, paths: Iterable[Path | None]) -> None:
    folder = lists.Root(root)
    for path in paths:
        if path is not None:
            folder.find(str(path.relative_to(root)))
