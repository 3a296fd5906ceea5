"""Export of frames to a folder of 8-bit images and 16-bit depth."""

import dataclasses
import os
import re
import shutil
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from jaxdepth import plots
from jaxdepth.data.sources import FrameInfo, Source
from jaxdepth.data.sources.pairing import DEPTH_WORDS, IMAGE_WORDS
from jaxdepth.data.sources.stored import Stored
from jaxdepth.data.store import staging
from jaxdepth.runtime import storage
from jaxdepth.runtime.errors import UserError, one_line
from jaxdepth.runtime.progress import Progress


@dataclasses.dataclass
class Exported:
    """A summary of an export.

    Attributes:
      sizes: number of frames by "HEIGHTxWIDTH".
      reduced: number of frames at training size, because the store has no other.
      broken: (name, reason) of frames that could not be read.
      unit: values per metre in the depth files: 1000, or that of the store.
      saturated: number of pixels beyond the largest value of 16 bits.
    """

    sizes: Counter[str] = dataclasses.field(default_factory=Counter)
    reduced: int = 0
    broken: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    unit: int = 1000
    saturated: int = 0

    @property
    def text(self) -> str:
        sizes = "".join(f", {n} of {size}" for size, n in self.sizes.items())
        reduced = f"; {self.reduced} at training size, because the store has no other"
        unit = f"; depth is in 1/{self.unit} m: read it with --depth_scale={self.unit}"
        far = (
            f"; {self.saturated} pixels beyond {65534 / self.unit:g} m are 65535, "
            "which is read as missing"
        )
        return (
            f"{self.sizes.total()} frames{sizes}{reduced if self.reduced else ''}"
            f"{unit if self.unit != 1000 else ''}{far if self.saturated else ''}"
        )


def export(
    source: Source,
    out: Path,
    *,
    depth: str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write rgb/NAME.png and depth/NAME.png; the folder is replaced atomically.

    The folder can be opened as a source of the same frames, with depth rounded to
    millimetres, or to the codes of a store that has others. Depth beyond 65.534 m (or
    65534 codes) is stored as 65535, a saturated code, and read as missing.

    Args:
      depth: "filled" or "raw"; default: the first kind of the source.

    Raises: UserError if `out` is not empty, depth of that kind does not exist, or no
      frame can be read; MachineError if storage fails.
    """
    kind, out = check(source, out, depth)
    temporary = out.absolute().parent / f".{out.name}.{uuid.uuid4().hex[:12]}"
    try:
        with storage.write_errors(out):
            temporary.mkdir(parents=True)
            exported = _write(source, temporary, kind, progress)
            if not exported.sizes:
                raise UserError(f"{source.name}: no frame could be read")
            os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return exported


def check(source: Source, out: Path, depth: str | None) -> tuple[str, Path]:
    """Check the arguments of `export`; returns the kind of depth and the folder."""
    kind = depth or source.truths[0]
    if kind not in source.truths:
        kinds = " and ".join(source.truths)
        raise UserError(f"--depth={kind}: {source.name} has only {kinds} depth")
    out = staging.resolve_output(out, what="folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--export={out} exists and is not empty: name another folder")
    return kind, out


def _write(
    source: Source, temporary: Path, kind: str, progress: Progress | None
) -> Exported:
    unit = source.store.depth_unit if isinstance(source, Stored) else 1000
    exported, total = Exported(unit=unit), len(source.infos)
    for row, name in enumerate(_names(source.infos)):
        try:
            frame = source.frame(row)
        except UserError as error:
            reason = one_line(error)
            exported.broken.append((source.infos[row].name, reason))
            continue
        image, depth = (temporary / what / f"{name}.png" for what in ("rgb", "depth"))
        for file in (image, depth):
            file.parent.mkdir(parents=True, exist_ok=True)
        _save_rgb(image, frame.rgb)
        plots.save_depth_png16(depth, frame.depths[kind], unit=unit)
        exported.saturated += int((frame.depths[kind] * unit >= 65534.5).sum())
        exported.sizes["x".join(map(str, frame.rgb.shape[:2]))] += 1
        if isinstance(source, Stored) and not source.store.has_full(row):
            exported.reduced += 1
        if progress is not None:
            progress(f"exporting {source.name}", row + 1, total)
    return exported


def _save_rgb(path: Path, rgb: np.ndarray) -> None:
    # Pillow's default compression takes three times as long and saves a few percent.
    Image.fromarray(rgb).save(path, compress_level=1)


def _names(infos: list[FrameInfo]) -> list[str]:
    """Unique names SCENE/NAME of the frames, without words for image or depth."""
    names: dict[str, str] = {}  # by lower case: file systems may ignore case
    for row, info in enumerate(infos):
        parts = Path(re.sub(r"\.[a-zA-Z]\w*$", "", info.name)).parts
        if len(parts) == 1 and info.scene:
            parts = (info.scene, *parts)
        name = "/".join(filter(None, map(_bare, parts))) or f"{row:05d}"
        while name.lower() in names:
            name = f"{name}_{row:05d}"
        names[name.lower()] = name
    return list(names.values())


def _bare(part: str) -> str:
    """A part of a name, without words for image or depth, in portable characters."""
    words = "|".join((*DEPTH_WORDS, *IMAGE_WORDS))
    bare = re.sub(rf"(?<![a-z])({words})(?![a-z])", "", part, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "_", bare).strip("_-.")
