"""Data sources: one module per data format; `open_source` selects the format."""

import contextlib
import contextvars
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from jaxdepth.data import units
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.registry import Registry


class BrokenFrame(UserError):
    """One frame can't be read; the message names its file and the reason."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image and its ground truth.

    Attributes:
      rgb: (H, W, 3) uint8.
      filled, raw: depth, (H, W) float32, metres, 0 = missing; None if the source has
        no depth of this kind.
      intrinsics: fx, fy, cx, cy in pixels of this frame, with pixel centres counted
        from 0; None if unknown.
      unit: stored units per metre of depth. `--mask_extremes` compares depth as
        integers of this unit if it is finer than that of the store.
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    filled: Float[np.ndarray, "h w"] | None = None
    raw: Float[np.ndarray, "h w"] | None = None
    intrinsics: tuple[float, float, float, float] | None = None
    unit: float = 1000.0

    @property
    def depths(self) -> dict[str, np.ndarray]:
        """The depth maps that this frame has, by kind."""
        both = {"filled": self.filled, "raw": self.raw}
        return {kind: depth for kind, depth in both.items() if depth is not None}


@dataclasses.dataclass(frozen=True)
class FrameInfo:
    """Properties of a frame that are known without reading its pixels.

    Attributes:
      name: unique in the source.
      scene: frames of one scene are never split between training and evaluation.
      official_index: number in the labeled set of NYU Depth V2, from 1.
    """

    name: str
    scene: str | None = None
    official_index: int | None = None


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Options for reading a data set. Each format uses a subset of them.

    Attributes:
      depth_scale: stored units per metre; None for the default of the format.
      depth_code: how 16-bit values are encoded, see `units.decode`.
      depth_kind, depth_fx, baseline, doffs: see `units.Geometry`.
      every: keep one frame in `every` of a recorded sequence.
      doubles: "drop" leaves out frames of a raw dump whose image is matched by more
        than one depth map (the paper, section 4), "keep" keeps them.
      max_gap: largest time between image and depth of a raw dump, in seconds; None
        for no limit.
      variant: release of the NYU toolbox whose projection is computed, "B" or "A".
      fill: the toolbox's method to fill holes in projected raw depth.
      allow_outside: read files outside the data's folder if a list names them or a
        symbolic link points to them.
    """

    depth_scale: float | None = None
    depth_code: units.Code = "plain"
    depth_kind: units.Kind = "planar"
    depth_fx: float | None = None
    baseline: float | None = None
    doffs: float = 0.0
    every: int = 1
    doubles: Literal["drop", "keep"] = "drop"
    max_gap: float | None = None
    variant: Literal["B", "A"] = "B"
    fill: Literal["none", "colorization", "cross_bf"] = "none"
    allow_outside: bool = False

    @property
    def geometry(self) -> units.Geometry:
        """The conversion of depth files to planar depth."""
        return units.Geometry(self.depth_kind, self.depth_fx, self.baseline, self.doffs)


@runtime_checkable
class Source(Protocol):
    """A data set as a sequence of frames.

    Attributes:
      name: name of the data in results.
      format: name in `SOURCES`, or "rooms".
      infos: one per frame.
      truths: kinds of ground truth that every frame has: "filled", "raw" or both, in
        this order.
      eight_bit: True if depth is stored as 8-bit codes. `--mask_extremes` does not
        apply to it, because many pixels share the extreme codes.
      notes: one-line messages for the user.
    """

    name: str
    format: str
    infos: list[FrameInfo]
    truths: tuple[str, ...]
    eight_bit: bool
    notes: list[str]

    def frame(self, row: int) -> Frame:
        """Read one frame.

        Raises: BrokenFrame if its files can't be read, so that the caller can skip the
          frame; another UserError if the data set as a whole is invalid.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """JSON-serializable key of a prepared store; changes when the data change."""
        ...

    def splits(self) -> dict[str, dict[str, list[int]]]:
        """Frame indices by split: split -> {"train": rows, "eval": rows}.

        "all" has every frame in "train" and none in "eval"; "own" is the data set's own
        split; "official", "tune" and "report" are those of NYU Depth V2.
        """
        ...


@runtime_checkable
class Format(Protocol):
    """An entry of `SOURCES`: the class of the sources of one format."""

    @property
    def OPTIONS(self) -> frozenset[str]:
        """Names of the fields of `ReadOptions` that the format uses."""
        ...

    def recognises(self, path: Path) -> bool:
        """Whether the path holds data of this format. Fast; never raises."""
        ...

    def __call__(self, path: Path, options: ReadOptions) -> Source:
        """Open the data. Raises UserError if they can't be read."""
        ...


class _BuiltIn:
    """A built-in format, whose module is imported on first use.

    Args:
      place: "module:Class".
    """

    def __init__(self, place: str):
        self._place = place

    @property
    def OPTIONS(self) -> frozenset[str]:
        return self._format.OPTIONS

    def recognises(self, path: Path) -> bool:
        return self._format.recognises(path)

    def __call__(self, path: Path, options: ReadOptions) -> Source:
        return self._format(path, options)

    @property
    def _format(self) -> Format:
        module, name = self._place.split(":")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)


SOURCES: Registry[Format] = Registry("data_format")
"""The formats that `--data_format` accepts.

A format is one class: its objects are a `Source`, and it has the attribute `OPTIONS`
and the static method `recognises` of `Format`. To add one, register it:

    class Mine:
        format = "mine"
        OPTIONS = frozenset({"depth_scale"})

        @staticmethod
        def recognises(path):
            return (path / "mine.json").is_file()

        def __init__(self, path, options):
            self.name, self.notes = path.name, []
            self.truths, self.eight_bit = ("raw",), False
            self.infos = [FrameInfo(name) for name in ...]

        def frame(self, row): ...        # Frame(rgb, raw=depth)
        def fingerprint(self): ...       # {"path": str(path), "changed": mtime}
        def splits(self): ...            # {"all": {"train": [0, 1, ...], "eval": []}}

    register_source("mine", Mine)

`files` has helpers: `read_rgb`, `read_depth`, `to_metres`, `stamp`. A format of
integers may have an attribute `scale`, stored units per metre, for messages. Objects
must be picklable, because frames may be read in other processes. Data are recognised by
registered formats first, then by the built-in ones in the order below.
"""
for _name, _place in {
    "nyu_labeled": "labeled:Labeled",
    "nyu_raw": "nyu_raw:NyuRaw",
    "tfds": "tfds:Tfds",
    "fastdepth": "fastdepth:FastDepth",
    "hypersim": "hypersim:Hypersim",
    "bts": "bts:Bts",
    "densedepth": "densedepth:DenseDepth",
    "tum": "tum:Tum",
    "kitti": "kitti:Kitti",
    "folder": "folder:Folder",
}.items():
    SOURCES.register(_name, _BuiltIn(_place))


def register_source(name: str, source: Any) -> Any:
    """Register a data format under a name, which `--data_format` then takes.

    Args:
      name: name of the format.
      source: class of its sources, see `SOURCES`.

    Raises: ValueError for a name that is registered already.
    """
    return SOURCES.register(name, source)


def open_source(
    path: str | Path,
    *,
    data_format: str = "auto",
    options: ReadOptions | None = None,
) -> Source:
    """Open a data set in the given format, or detect its format.

    Raises: UserError if the path does not exist, its format is unknown, the data can't
      be read, or an option was given that the format does not use.
    """
    path, options = Path(path).expanduser(), options or ReadOptions()
    if not path.exists():
        raise UserError(f"--data={path}: no such file or folder")
    _check_regular(path)
    if data_format == "auto":
        data_format = _recognised(path)
    chosen = SOURCES.named(data_format)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name not in chosen.OPTIONS:
            raise UserError(
                f"--{field.name}={value}: format {data_format} does not use it; leave "
                "it out"
            )
    options.geometry.check()
    return chosen(path, options)


def takes(path: str | Path, option: str) -> bool:
    """Whether the format of the data at `path` uses a field of `ReadOptions`."""
    path = Path(path).expanduser()
    if not path.exists():
        return False
    _check_regular(path)
    return option in SOURCES[_recognised(path)].OPTIONS


def _check_regular(path: Path) -> None:
    """Raise UserError for a FIFO or a device, because reading it could block."""
    try:
        regular.check(path)
    except OSError as error:
        raise UserError(f"--data={path}: {error.strerror}") from None


def _recognised(path: Path) -> str:
    """The name of the first format that recognises the data."""
    for name in sorted(SOURCES, key=lambda name: isinstance(SOURCES[name], _BuiltIn)):
        if SOURCES[name].recognises(path):
            return name
    return "nyu_labeled"  # unknown format: this reader raises a UserError


_ANY_UNIT = contextvars.ContextVar("any_unit", default=False)


@contextlib.contextmanager
def any_unit() -> Iterator[None]:
    """Disable `check_unit` within the context, to inspect data of a wrong unit."""
    token = _ANY_UNIT.set(True)
    try:
        yield
    finally:
        _ANY_UNIT.reset(token)


def unit_is_checked() -> bool:
    """Whether `check_unit` is enabled: False within `any_unit`."""
    return not _ANY_UNIT.get()


def check_unit(
    median: float, *, largest: float, where: str, hint: str, listed: str = ""
) -> None:
    """Check that depth values are plausible in metres.

    Args:
      median, largest: over the valid pixels of a sample, metres.
      where: the data, for the message.
      hint: how to fix the unit, for the message.
      listed: candidate units, for the message.

    Raises: UserError for a median above 100 m or no depth above 0.1 m, except within
      `any_unit`.
    """
    if not unit_is_checked():
        return
    hint = f"{hint} ({listed})" if listed else hint
    if median > 100:
        raise UserError(
            f"{where}: the median depth would be {median:.0f} m, so the assumed unit "
            f"is wrong: {hint}"
        )
    if largest < 0.1:
        raise UserError(
            f"{where}: no depth is above {largest:.3g} m (median {median:.2g} m), so "
            f"the assumed unit is wrong: {hint}"
        )
