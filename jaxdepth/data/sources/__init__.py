"""Data of any format as frames. One file per format; `open_source` recognises them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from jaxdepth.errors import UserError


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image and its truth.

    Attributes:
      rgb: (H, W, 3) uint8.
      filled, raw: (H, W) float32 metres, 0 = missing; None where there is none.
      intrinsics: fx, fy, cx, cy in pixels of this frame, pixel centres from 0; None
        where they are not known.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    filled: Float[np.ndarray, "h w"] | None = None
    raw: Float[np.ndarray, "h w"] | None = None
    intrinsics: tuple[float, float, float, float] | None = None

    @property
    def depths(self) -> dict[str, np.ndarray]:
        """The kinds of truth that are there."""
        both = {"filled": self.filled, "raw": self.raw}
        return {kind: depth for kind, depth in both.items() if depth is not None}


@dataclasses.dataclass(frozen=True)
class FrameInfo:
    """What is known of a frame without reading its pixels."""

    name: str
    scene: str | None = None
    official_index: int | None = None


@runtime_checkable
class Source(Protocol):
    """Frames by number.

    Attributes:
      name: what results call it.
      format: name in `FORMATS`, or "rooms".
      infos: one per frame.
      truths: kinds of depth, "filled" first.
      eight_bit: depth comes from 8-bit codes, whose extremes are plateaus.
      notes: lines that the user should read.
    """

    name: str
    format: str
    infos: list[FrameInfo]
    truths: tuple[str, ...]
    eight_bit: bool
    notes: list[str]

    def frame(self, row: int) -> Frame:
        """Read one frame. UserError where it is broken."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What changes when the data do: keys a prepared store."""
        ...

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """Rows that train and evaluate, by name of the split."""
        ...


def _labeled(path: Path, depth_scale: float | None) -> Source:
    from jaxdepth.data.sources import labeled

    if depth_scale is not None:
        raise UserError("--depth_scale: a labeled .mat holds metres; leave it out")
    return labeled.Labeled(path)


def _folder(path: Path, depth_scale: float | None) -> Source:
    from jaxdepth.data.sources import folder

    return folder.Folder(path, depth_scale=depth_scale)


FORMATS: dict[str, Callable[[Path, float | None], Source]] = {
    "nyu_labeled": _labeled,
    "folder": _folder,
}


def open_source(
    path: str | Path, *, data_format: str = "auto", depth_scale: float | None = None
) -> Source:
    """Open data, whose content tells what they are unless `data_format` does.

    Args:
      depth_scale: stored units per metre, for depth that is stored in other units.

    Raises: UserError where there is nothing, or nothing of a known format.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"--data={path}: there is no such file or folder")
    if data_format != "auto":
        return FORMATS[data_format](path, depth_scale)
    # A file is taken for a labeled one: its reader says what it is instead.
    return FORMATS["folder" if path.is_dir() else "nyu_labeled"](path, depth_scale)


def check_unit(median: float, *, largest: float, where: str, hint: str) -> None:
    """UserError for depth that can't be metres.

    Args:
      median, largest: over valid pixels of a sample, metres.
    """
    if median > 100:
        raise UserError(
            f"{where}: the median depth would be {median:.0f} m, so its unit is not "
            f"what was assumed: {hint}"
        )
    if largest < 0.1:
        raise UserError(
            f"{where}: no depth is above {largest:.3g} m (median {median:.2g} m), so "
            f"its unit is not what was assumed: {hint}"
        )
