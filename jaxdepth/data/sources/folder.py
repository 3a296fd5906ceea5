"""A folder of image and depth files in pairs; depth as 16-bit PNG or npy."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdepth import images as images_lib
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, files
from jaxdepth.runtime.errors import UserError

DEPTH_WORDS = (
    "sync_depth", "depth_maps", "depth_map", "depthmaps", "depthmap", "depths",
    "depth8", "depth", "gt", "disp",
)  # fmt: skip
IMAGE_WORDS = ("rgb", "images", "image", "colors", "color", "img", "photo")


class Pair(NamedTuple):
    """The files of one frame, and the key that their names share."""

    key: str
    image: Path
    depth: Path
    filled: Path | None = None


class Folder:
    """Image and depth pairs, matched by file name or by a list.

    By name: a .npy file is depth. Another file is depth if its name contains a word
    for depth (`DEPTH_WORDS`); if the name contains no word for depth or image, the
    nearest parent folder with such a word decides. The key that pairs two files is
    their path without these words: rgb/0001.jpg + depth/0001.png, rgb_00001.jpg +
    sync_depth_00001.png, 7_colors.png + 7_depth.png, a.jpg + a.npy. Without any such
    word, a.png is the depth of a.jpg. The scene is the sub-folder of the pair.

    By list: a .txt or .csv file in the folder with the columns image and depth, paths
    relative to the folder, is used if no names match. A list with the columns image,
    raw depth and filled depth (Marigold's) takes precedence over names; if its folders
    and numbers are those of the labeled set, its frames have official indices.

    Depth in metres is the stored value / `depth_scale` (default 1000 for 16-bit PNG,
    1 for npy and floating-point images). Values that are 0, negative, NaN or infinite
    are missing. 8-bit PNG requires a `depth_scale`.
    """

    format = "folder"
    OPTIONS = frozenset({"depth_scale"})
    truths: tuple[str, ...] = ("filled",)

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the path is a folder."""
        return path.is_dir()

    def __init__(self, path: Path, options: ReadOptions):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder of images and depth")
        self.path = path
        self.name = files.name_of(path)
        self.depth_scale = options.depth_scale
        self.notes: list[str] = []
        self.pairs = self._listed(3) or self._pairs_by_name()
        self.eight_bit = False
        self._official = _official_indices(self.pairs)
        self.infos = [
            FrameInfo(
                str(pair.image.relative_to(path)),
                pair.image.parent.name if index else _scene(pair.key),
                index,
            )
            for pair, index in zip(self.pairs, self._official, strict=True)
        ]
        self._inspect_sample()

    def frame(self, row: int) -> Frame:
        pair = self.pairs[row]
        rgb = files.read_rgb(pair.image)
        depths = {}
        for kind, file in self._depth_files(pair).items():
            depths[kind], eight_bit = self._depth(file)
            if eight_bit != self.eight_bit:
                bits = {False: "more than 8", True: "8"}
                raise UserError(
                    f"{file} has {bits[eight_bit]} bits a pixel and other depth of "
                    f"{self.path} {bits[self.eight_bit]}: one --depth_scale can't fit "
                    "both"
                )
            files.check_same_size(rgb, depths[kind], pair.image, file)
        return Frame(rgb, **depths, unit=self.depth_scale or 1000.0)

    def fingerprint(self) -> dict[str, Any]:
        every = [f for pair in self.pairs for f in pair[1:] if f is not None]
        return {
            "path": str(self.path.resolve()),
            "depth_scale": self.depth_scale,
            **files.stamp(every),
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        official = None
        if None not in self._official:
            scenes = [info.scene for info in self.infos]
            official = splits.by_official_frames(self._official, scenes)
        everything = {"train": list(range(len(self.pairs))), "eval": []}
        return {**(official or {}), "all": everything}

    def _depth_files(self, pair: Pair) -> dict[str, Path]:
        if pair.filled is None:
            return {self.truths[0]: pair.depth}
        return {"filled": pair.filled, "raw": pair.depth}

    def _pairs_by_name(self) -> list[Pair]:
        """Every pair, sorted by key; pairs of a list of two columns if no names match.

        Raises: UserError if there is no pair.
        """
        images, depths = self._files_by_key()
        keys = sorted(images.keys() & depths.keys())
        if not keys and (listed := self._listed(2)):
            return listed
        if not keys:
            raise UserError(
                f"{self.path} holds no pair of image and depth ({len(images)} images, "
                f"{len(depths)} depth files): pairs share their name, as in "
                f"rgb/0001.jpg and depth/0001.png{_examples(images, depths)}"
            )
        for what, extra in (("images", images), ("depth files", depths)):
            alone = sorted(extra.keys() - set(keys))
            if alone:
                first = extra[alone[0]].relative_to(self.path)
                self.notes.append(
                    f"{len(alone)} {what} without a partner left out, first {first}"
                )
        return [Pair(key, images[key], depths[key]) for key in keys]

    def _files_by_key(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """The images and the depth files. UserError if two of a kind share a key."""
        images: dict[str, Path] = {}
        depths: dict[str, Path] = {}
        for file in files.below(self.path):
            npy = file.suffix.lower() == ".npy" and file.is_file()
            if not (npy or images_lib.is_photo(file)):
                continue
            relative = file.relative_to(self.path)
            is_depth = npy or _is_depth(relative)
            group, key = (depths if is_depth else images), _key(relative)
            if key in group and _is_depth_of(file, group[key]) and key not in depths:
                group = depths
            if key in group:
                raise UserError(
                    f"{self.path}: {group[key].relative_to(self.path)} and {relative} "
                    "would be one frame: keep one of them"
                )
            group[key] = file
        return images, depths

    def _listed(self, columns: int) -> list[Pair]:
        """Read the folder's first list with that many columns; [] without one."""
        for file in sorted(self.path.glob("*")):
            if file.suffix.lower() not in (".txt", ".csv"):
                continue
            pairs = _read_pairs(file, columns)
            if pairs:
                self.notes.append(f"pairs read from {file.name}")
                return pairs
        return []

    def _depth(self, file: Path) -> tuple[np.ndarray, bool]:
        """Read depth in metres, (H, W) float32; also whether the file has 8 bits."""
        values = files.read_depth(file)
        eight_bit = values.dtype == np.uint8
        npy = file.suffix.lower() == ".npy" or values.dtype.kind == "f"
        scale = self.depth_scale or (1.0 if npy else 1000.0)
        if eight_bit and self.depth_scale is None:
            raise UserError(
                f"{file} is 8-bit depth of unknown unit: give "
                "--depth_scale=UNITS_PER_METRE (25.5 if 255 is 10 m)"
            )
        return files.to_metres(values, scale), eight_bit

    def _inspect_sample(self) -> None:
        """Determine bits and kinds of depth from a sample, and check its unit."""
        sampled = files.sample(
            lambda pair: [self._depth(f) for f in pair[2:] if f is not None], self.pairs
        )
        self.eight_bit = any(eight for both in sampled for _, eight in both)
        depths = [both[0][0] for both in sampled]
        if any(pair.filled for pair in self.pairs):
            self.truths = ("filled", "raw")
        else:
            self.truths = (files.kind_of(depths),)
        files.check_metres(
            depths,
            where=str(self.path),
            hint="give --depth_scale=UNITS_PER_METRE",
        )


def _is_depth(relative: Path) -> bool:
    """Whether the first word for depth or image, from the file's name up, is depth."""
    for part in (relative.stem, *reversed(relative.parts[:-1])):
        if _contains_word(part, DEPTH_WORDS):
            return True
        if _contains_word(part, IMAGE_WORDS):
            return False
    return False


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


def _key(relative: Path) -> str:
    """The path without suffix and without words for image and depth."""
    words = "|".join((*DEPTH_WORDS, *IMAGE_WORDS))
    parts = []
    for part in (*relative.parts[:-1], relative.stem):
        bare = re.sub(rf"(?<![a-z])({words})(?![a-z])", "", part, flags=re.IGNORECASE)
        bare = bare.strip("_-. ")
        if bare:
            parts.append(bare)
    return "/".join(parts)


def _official_indices(pairs: list[Pair]) -> list[int | None]:
    """Official indices by name: kitchen_0004/rgb_0001.png is frame 1 of kitchen_0004.

    All None unless every pair has filled depth and a number that fits its scene.
    """
    scenes = splits.official()["scenes"]
    indices: list[int | None] = []
    for pair in pairs:
        digits = re.search(r"(\d+)$", pair.image.stem)
        index = int(digits[1]) if digits else 0
        fits = 0 < index <= len(scenes) and scenes[index - 1] == pair.image.parent.name
        if pair.filled is None or not fits:
            return [None] * len(pairs)
        indices.append(index)
    return indices


def _examples(images: dict[str, Path], depths: dict[str, Path]) -> str:
    """The first key of each kind, for a message; "" if one kind has no files."""
    if not images or not depths:
        return ""
    return f"; the first keys are {min(images)!r} and {min(depths)!r}"


def _scene(key: str) -> str | None:
    return key.rsplit("/", 1)[0] if "/" in key else None


def _read_pairs(file: Path, columns: int) -> list[Pair]:
    """Read a list with that many columns; [] if its first two lines name no files.

    The first line may be a heading.

    Raises: UserError for a later line that names no files, and for an image that is
      listed twice.
    """

    def existing(names: list[str]) -> list[Path] | None:
        paths = [files.in_folder(file.parent, name) for name in names]
        fits = len(names) == columns and all(map(files.is_file, paths))
        return paths if fits else None

    first_lines = [existing(names) for names in files.peek_list(file, 2)]
    if not any(first_lines):
        return []
    frames: dict[str, Pair] = {}
    for number, names in files.read_list(file)[first_lines[0] is None :]:
        paths = existing(names)
        if paths is None:
            raise UserError(
                f"{file}, line {number}: {' '.join(names)[:120]!r} does not name an "
                f"image and {'a depth file' if columns == 2 else 'two depth files'}"
            )
        image = names[0].lstrip("/")
        if image in frames:
            raise UserError(f"{file}, line {number}: {image} is listed twice")
        frames[image] = Pair(_key(Path(image)), *paths)
    return list(frames.values())
