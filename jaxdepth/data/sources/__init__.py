"""Data of any format as frames. One file per format; `open_source` recognises them."""

import contextlib
import contextvars
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from jaxdepth.runtime.errors import UserError


class BrokenFrame(UserError):
    """Files of one frame that can't be read, named with the reason."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image and its truth.

    Attributes:
      rgb: (H, W, 3) uint8.
      filled, raw: (H, W) float32 metres, 0 = missing; None where there is none.
      intrinsics: fx, fy, cx, cy in pixels of this frame, pixel centres from 0; None
        where they are not known.
      unit: stored integers per metre of truth. `--mask_extremes` looks for its
        extremes in them where they are finer than millimetres.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    filled: Float[np.ndarray, "h w"] | None = None
    raw: Float[np.ndarray, "h w"] | None = None
    intrinsics: tuple[float, float, float, float] | None = None
    unit: float = 1000.0

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
        """Read one frame.

        Raises BrokenFrame where its files can't be read, which a store may leave out;
        another UserError where something is wrong with the data as a whole.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What changes when the data do: keys a prepared store."""
        ...

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """Rows that train and evaluate, by name of the split."""
        ...


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """What a user may say about how data are read. Each format takes some of it.

    Attributes:
      depth_scale: stored units per metre, where depth is stored in other units.
      every: of a recorded sequence, one frame out of so many.
      doubles: "drop" leaves out frames of a raw dump whose image is matched by more
        than one depth map (the paper, section 4), "keep" keeps them.
      max_gap: largest time in seconds between image and depth of a raw dump.
      variant: release of the NYU toolbox whose projection is followed, "B" or "A".
      fill: how holes in projected raw depth are filled, as the toolbox does.
    """

    depth_scale: float | None = None
    every: int = 1
    doubles: Literal["drop", "keep"] = "drop"
    max_gap: float | None = None
    variant: Literal["B", "A"] = "B"
    fill: Literal["none", "colorization", "cross_bf"] = "none"


# In the order in which they are asked whether they know the data. Each is a module
# here with `recognises(path) -> bool`, quick and without errors; `source_of(path,
# options) -> Source`; and `TAKES`, the options that it has a use for.
FORMATS: dict[str, str] = {
    "nyu_labeled": "labeled",
    "nyu_raw": "nyu_raw",
    "tfds": "tfds",
    "fastdepth": "fastdepth",
    "bts": "bts",
    "densedepth": "densedepth",
    "tum": "tum",
    "folder": "folder",
}


def open_source(
    path: str | Path,
    *,
    data_format: str = "auto",
    options: ReadOptions | None = None,
) -> Source:
    """Open data, whose content tells what they are unless `data_format` does.

    Raises: UserError where there is nothing, nothing of a known format, or an option
      was given that the format has no use for.
    """
    path, options = Path(path).expanduser(), options or ReadOptions()
    if not path.exists():
        raise UserError(f"--data={path}: there is no such file or folder")
    if data_format == "auto":
        data_format = _recognised(path)
    module = _module(data_format)
    for field in dataclasses.fields(options):
        given = getattr(options, field.name)
        if given != field.default and field.name not in module.TAKES:
            raise UserError(
                f"--{field.name}={given}: data of format {data_format} have no use "
                "for it; leave it out"
            )
    return module.source_of(path, options)


def takes(path: str | Path, option: str) -> bool:
    """Whether the data at `path` have a use for a field of `ReadOptions`."""
    path = Path(path).expanduser()
    return path.exists() and option in _module(_recognised(path)).TAKES


def _recognised(path: Path) -> str:
    for name in FORMATS:
        if _module(name).recognises(path):
            return name
    # Their readers say what it is instead.
    return "folder" if path.is_dir() else "nyu_labeled"


def _module(data_format: str) -> Any:
    return importlib.import_module(f"{__name__}.{FORMATS[data_format]}")


_ANY_UNIT = contextvars.ContextVar("any_unit", default=False)


@contextlib.contextmanager
def any_unit() -> Iterator[None]:
    """Within it no unit is refused: for a look at what is wrong with data."""
    token = _ANY_UNIT.set(True)
    try:
        yield
    finally:
        _ANY_UNIT.reset(token)


def check_unit(median: float, *, largest: float, where: str, hint: str) -> None:
    """UserError for depth that can't be metres, but within `any_unit`.

    Args:
      median, largest: over valid pixels of a sample, metres.
    """
    if _ANY_UNIT.get():
        return
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
