"""A folder of image and depth pairs: 16-bit PNG or npy depth."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxdepth import photos
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, check_unit
from jaxdepth.errors import UserError

DEPTH_WORDS = ("sync_depth", "depths", "depth8", "depth", "gt", "disp")
IMAGE_WORDS = ("rgb", "images", "image", "colors", "color", "img", "photo")
SAMPLE = 8
TAKES = frozenset({"depth_scale"})


def recognises(path: Path) -> bool:
    """Any folder: the last format to be asked."""
    return path.is_dir()


def source_of(path: Path, options: ReadOptions) -> "Folder":
    return Folder(path, depth_scale=options.depth_scale)


class Folder:
    """Pairs found by their names.

    A depth file is any .npy, and a picture whose name says depth or, where its name
    says nothing, the nearest folder's that says depth or image; what is left of both
    names without the words rgb, image, color, depth, ... pairs them: rgb/0001.jpg +
    depth/0001.png, rgb_00001.jpg + sync_depth_00001.png, 7_colors.png + 7_depth.png,
    a.jpg + a.npy. Where none says anything, a.png is the depth of a.jpg. A sub-folder
    that holds pairs is their scene.

    Where no names pair, a .txt or .csv file in the folder may: two columns, image and
    depth, paths from the folder.

    Depth in metres is the stored value / `depth_scale` (default 1000 for 16-bit PNG,
    1 for npy and for floating-point pictures); 0, negative, NaN and infinite are
    missing. 8-bit PNG has no usual scale, so it needs one.
    """

    format = "folder"
    truths: tuple[str, ...] = ("filled",)

    def __init__(self, path: Path, *, depth_scale: float | None = None):
        if not path.is_dir():
            raise UserError(f"{path} is not a folder of images and depth")
        self.path = path
        self.name = path.name or str(path)
        self.depth_scale = depth_scale
        self.notes: list[str] = []
        self.pairs = self._find()
        self.eight_bit = False
        self.infos = [
            FrameInfo(str(image.relative_to(path)), _scene(key))
            for key, image, _ in self.pairs
        ]
        self._look()

    def frame(self, row: int) -> Frame:
        _, image, depth_file = self.pairs[row]
        rgb = photos.read(image)
        depth, eight_bit = self._depth(depth_file)
        if eight_bit != self.eight_bit:
            bits = {False: "more", True: "8"}
            raise UserError(
                f"{depth_file} has {bits[eight_bit]} bits a pixel and other depth of "
                f"{self.path} {bits[self.eight_bit]}: one --depth_scale can't fit both"
            )
        if depth.shape != rgb.shape[:2]:
            raise UserError(
                f"{image} is {rgb.shape[0]}x{rgb.shape[1]} and {depth_file} is "
                f"{depth.shape[0]}x{depth.shape[1]}: image and depth must have one size"
            )
        filled = self.truths[0] == "filled"
        return Frame(
            np.ascontiguousarray(rgb),
            filled=depth if filled else None,
            raw=None if filled else depth,
        )

    def fingerprint(self) -> dict[str, Any]:
        files = [f for _, *both in self.pairs for f in both]
        stats = [file.stat() for file in files]
        return {
            "path": str(self.path.resolve()),
            "files": [str(f.relative_to(self.path)) for f in files],
            "bytes": [s.st_size for s in stats],
            "changed": [s.st_mtime_ns for s in stats],
            "depth_scale": self.depth_scale,
        }

    def splits(self) -> dict[str, dict[str, list[int]]]:
        return {"all": {"train": list(range(len(self.pairs))), "eval": []}}

    def _find(self) -> list[tuple[str, Path, Path]]:
        """(key, image, depth) of every pair, by name. UserError where there is none."""
        images: dict[str, Path] = {}
        depths: dict[str, Path] = {}
        for file in sorted(self.path.rglob("*")):
            npy = file.suffix.lower() == ".npy" and file.is_file()
            if file.name.startswith(".") or not (npy or photos.is_photo(file)):
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
        keys = sorted(images.keys() & depths.keys())
        if not keys and (listed := self._listed()):
            return listed
        if not keys:
            raise UserError(
                f"{self.path} holds no pair of image and depth ({len(images)} images, "
                f"{len(depths)} depth files): pairs share their name, as in "
                "rgb/0001.jpg and depth/0001.png"
            )
        for what, extra in (("images", images), ("depth files", depths)):
            alone = sorted(extra.keys() - set(keys))
            if alone:
                first = extra[alone[0]].relative_to(self.path)
                self.notes.append(
                    f"{len(alone)} {what} without a partner left out, first {first}"
                )
        return [(key, images[key], depths[key]) for key in keys]

    def _listed(self) -> list[tuple[str, Path, Path]]:
        """The pairs of the first list in the folder; none where there is no list."""
        for file in sorted(self.path.glob("*")):
            if file.suffix.lower() not in (".txt", ".csv"):
                continue
            pairs = _read_list(file)
            if pairs:
                self.notes.append(f"pairs as {file.name} lists them")
                return pairs
        return []

    def _depth(self, file: Path) -> tuple[np.ndarray, bool]:
        """Metres, (H, W) float32, and whether the file had 8 bits."""
        if file.suffix.lower() == ".npy":
            values, scale = _load_npy(file), self.depth_scale or 1.0
            eight_bit = values.dtype == np.uint8
        else:
            values = _load_image(file)
            eight_bit = values.dtype == np.uint8
            usual = 1.0 if values.dtype.kind == "f" else 1000.0
            scale = self.depth_scale or usual
        if eight_bit and self.depth_scale is None:
            raise UserError(
                f"{file} is 8-bit depth, whose unit is not known: give "
                "--depth_scale=UNITS_PER_METRE (25.5 where 255 stands for 10 m)"
            )
        metres = values.astype(np.float64) / scale
        good = np.isfinite(metres) & (metres > 0)
        return np.where(good, metres, 0).astype(np.float32), eight_bit

    def _look(self) -> None:
        """Unit, holes and bits of a sample, before everything is read."""
        rows = sorted({int(r) for r in np.linspace(0, len(self.pairs) - 1, SAMPLE)})
        sample = [self._depth(self.pairs[row][2]) for row in rows]
        self.eight_bit = any(eight for _, eight in sample)
        holes = np.mean([np.mean(depth == 0) for depth, _ in sample])
        # Filled maps have no holes; a sensor's have some percent at least.
        if holes > 0.001:
            self.truths = ("raw",)
        valid = np.concatenate([depth[depth > 0] for depth, _ in sample])
        if len(valid):
            check_unit(
                float(np.median(valid)),
                largest=float(valid.max()),
                where=str(self.path),
                hint="give --depth_scale=UNITS_PER_METRE",
            )


def _is_depth(relative: Path) -> bool:
    """By the file's name or, where it says nothing, the nearest folder's that does."""
    for part in (relative.stem, *reversed(relative.parts[:-1])):
        if _says(part, DEPTH_WORDS):
            return True
        if _says(part, IMAGE_WORDS):
            return False
    return False


def _is_depth_of(file: Path, image: Path) -> bool:
    """Whether they are a.png and a.jpg, with nothing in the name to tell them apart."""
    return (
        file.with_suffix("") == image.with_suffix("")
        and file.suffix.lower() == ".png"
        and image.suffix.lower() in (".jpg", ".jpeg")
    )


def _says(part: str, words: tuple[str, ...]) -> bool:
    return any(
        re.search(rf"(^|[^a-z]){word}([^a-z]|$)", part.lower()) for word in words
    )


def _key(relative: Path) -> str:
    """The name without the words that tell image from depth."""
    words = "|".join((*DEPTH_WORDS, *IMAGE_WORDS))
    parts = []
    for part in (*relative.parts[:-1], relative.stem):
        bare = re.sub(rf"(?<![a-z])({words})(?![a-z])", "", part, flags=re.IGNORECASE)
        bare = bare.strip("_-. ")
        if bare:
            parts.append(bare)
    return "/".join(parts)


def _scene(key: str) -> str | None:
    return key.rsplit("/", 1)[0] if "/" in key else None


def _read_list(file: Path) -> list[tuple[str, Path, Path]]:
    """Pairs of a two-column list; none where its first line names no two files.

    UserError for a later line that doesn't, and for an image that is listed twice.
    """
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    pairs: dict[str, tuple[str, Path, Path]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.split(",") if "," in line else line.split()
        # A leading slash means the folder, too, in the lists that circulate.
        names = [column.strip().lstrip("/") for column in columns]
        both = [file.parent / name for name in names]
        if len(both) != 2 or not all(path.is_file() for path in both):
            if not pairs:
                return []
            raise UserError(
                f"{file}, line {number}: {line.strip()[:120]!r} does not name an image "
                "and a depth file"
            )
        if names[0] in pairs:
            raise UserError(f"{file}, line {number}: {names[0]} is listed twice")
        pairs[names[0]] = (_key(Path(names[0])), both[0], both[1])
    return list(pairs.values())


def _load_npy(file: Path) -> np.ndarray:
    try:
        with open(file, "rb") as stream:
            values = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{file} can't be read as npy: {reason}") from None
    if not isinstance(values, np.ndarray):
        raise UserError(f"{file} is an npz archive: one npy array is wanted")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise UserError(
            f"{file} has shape {values.shape} of {values.dtype}: one depth map (H, W) "
            "is wanted"
        )
    return values


def _load_image(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            mode, values = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file} can't be read as an image: {error}") from None
    if values.ndim != 2 or mode in ("P", "1"):
        raise UserError(
            f"{file} is a colour picture (mode {mode}): depth is one channel, 16-bit"
        )
    return values
