"""Measurements of a data set: depth, alignment, copies, broken frames.

`findings.py` derives problems and advice from these measurements.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxdepth.data.doctor import alignment, duplicates
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import Frame, ReadOptions, Source, any_unit, open_source
from jaxdepth.data.sources.stored import Stored
from jaxdepth.data.store.reader import Store, is_store
from jaxdepth.runtime.errors import UserError

FRAMES = 800  # inspected by default
VALUES = 4_000_000  # size of the sample of depths, over all frames
SHOWN = 12  # regular frames of a contact sheet, and largest number of odd ones
SHOWN_PIXELS = 320  # their longer side, approximately
GUESSED_SCALE = 25.5  # for 8-bit depth without --depth_scale: 255 is 10 m
# Names of folders for training and for evaluation.
TRAIN = {"train", "training"}
EVAL = {"test", "testing", "val", "valid", "validation", "eval"}
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Opened:
    """Data to inspect.

    Attributes:
      scale: stored units per metre; None if --depth_scale does not apply.
      assumed: why a scale had to be assumed; None if it was not.
    """

    source: Source
    scale: float | None = None
    assumed: str | None = None


def open_data(
    path: str | Path, *, data_format: str = "auto", options: ReadOptions | None = None
) -> Opened:
    """Open a store, or data of any format and unit.

    Raises: UserError as `open_source` does, except for a wrong unit; read options for a
      store.
    """
    options = options or ReadOptions()
    if is_store(path):
        if data_format != "auto" or options != ReadOptions():
            raise UserError(
                f"{path} is a store: --data_format and --depth_scale have no effect "
                "on it; leave them out"
            )
        return Opened(Stored(Store.open(path)))
    guessed = dataclasses.replace(options, depth_scale=GUESSED_SCALE)
    assumed = None
    with any_unit():
        try:
            source = open_source(path, data_format=data_format, options=options)
        except UserError as error:
            source = _with_scale(path, data_format, guessed)
            if options.depth_scale or source is None or not source.eight_bit:
                raise
            options, assumed = guessed, str(error)
        stored = _with_scale(
            path, source.format, dataclasses.replace(options, depth_scale=1.0)
        )
    return Opened(source, _scale(source, stored), assumed)


def _with_scale(path: str | Path, data_format: str, options: ReadOptions):
    """Open the data with these options; None if that fails."""
    try:
        return open_source(path, data_format=data_format, options=options)
    except UserError:
        return None


def _scale(source: Source, stored: Source | None) -> float | None:
    """Stored units per metre, from a frame read as metres and as stored values."""
    if stored is None:
        return None
    for row in _spread(len(source.infos), 8):
        try:
            both = [
                next(iter(s.frame(row).depths.values())).astype(np.float64)
                for s in (source, stored)
            ]
        except UserError:
            continue
        if (valid := both[0] > 0).any():
            return float(f"{np.median(both[1][valid] / both[0][valid]):.6g}")
    return None


@dataclasses.dataclass(frozen=True)
class Look:
    """Measurements of one frame; depth in metres as read.

    Attributes:
      kinds: share of missing pixels by kind of depth; other fields are of the first.
      low, median, high: of valid depth; None if there is none.
      raw_is_filled: whether raw depth equals filled depth in all valid pixels of raw;
        None if one of them is missing.
      pair: scores of alignment; None without edges to compare.
    """

    row: int
    size: tuple[int, int]
    kinds: dict[str, float]
    low: float | None = None
    median: float | None = None
    high: float | None = None
    raw_is_filled: bool | None = None
    pair: alignment.Pair | None = None


@dataclasses.dataclass(frozen=True)
class Shown:
    """A reduced frame for the contact sheet."""

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float[np.ndarray, "h w"]


@dataclasses.dataclass
class Examination:
    """All measurements of a data set.

    Attributes:
      rows: the frames to inspect.
      looks: measurements of the frames that could be read.
      broken: (name, reason) of the frames that could not be read.
      damaged: shards of a store that do not match their checksums.
      values: a sample of depths, metres as read.
      verdict: alignment of image and depth over all frames.
      copies: (row, row that it is a copy of) by split; under None, within all frames.
      hashed: number of images that were compared.
      shown: frames for the contact sheet, misaligned and empty ones first.
    """

    opened: Opened
    rows: list[int]
    looks: list[Look] = dataclasses.field(default_factory=list)
    broken: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    damaged: list[str] = dataclasses.field(default_factory=list)
    values: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.float32)
    )
    verdict: alignment.Verdict | None = None
    copies: dict[str | None, list[tuple[int, int]]] = dataclasses.field(
        default_factory=dict
    )
    hashed: int = 0
    shown: list[Shown] = dataclasses.field(default_factory=list)

    @property
    def source(self) -> Source:
        return self.opened.source

    def name(self, row: int) -> str:
        return self.source.infos[row].name

    @property
    def empty(self) -> list[str]:
        """Names of frames without valid depth."""
        return [self.name(k.row) for k in self.looks if k.median is None]

    @property
    def pairs(self) -> list[tuple[str, alignment.Pair]]:
        return [(self.name(k.row), k.pair) for k in self.looks if k.pair is not None]

    @property
    def misfits(self) -> list[tuple[str, str]]:
        """(name, how) of frames whose alignment differs from that of the data set."""
        if self.verdict is None:
            return []
        named = [(name, self.verdict.how(pair)) for name, pair in self.pairs]
        return [(name, how) for name, how in named if how]


def examine(
    opened: Opened, *, frames: int = FRAMES, progress: Progress | None = None
) -> Examination:
    """Measure a sample of `frames` evenly spaced frames (0: all frames).

    Frames that can't be read are recorded and skipped. Copies are searched among the
    sampled images; of a store, among all images. The shards of a store are compared
    with their checksums.
    """
    source, total = opened.source, len(opened.source.infos)
    found = Examination(opened, _spread(total, frames or total))
    walk = _Walk(found, source)
    for done, row in enumerate(found.rows, 1):
        try:
            frame = source.frame(row)
        except UserError as error:
            found.broken.append((found.name(row), " ".join(str(error).split())))
        else:
            walk.add(row, frame)
        if progress is not None:
            progress(f"inspecting {source.name}", done, len(found.rows))
    walk.finish()
    found.shown = _shown(found)
    prints = walk.prints
    if isinstance(source, Stored):
        found.damaged = source.store.damaged(progress)
        prints = _prints_of_all(source.store, progress)
    found.hashed = len(prints)
    found.copies = _copies(prints, sides(source), total, progress)
    return found


class _Walk:
    """Accumulates the measurements of frames."""

    def __init__(self, found: Examination, source: Source):
        self.found, self.kind = found, source.truths[0]
        self.prints, self.pool = duplicates.Prints(), alignment.Pool()
        self.each = VALUES // max(1, len(found.rows))
        self.values: list[np.ndarray] = []
        self.others = self._read_others(source)

    def _read_others(self, source: Source) -> list[alignment.Edges]:
        """Edges of some frames, as a reference for unrelated images and depth."""
        others = []
        for k in _spread(len(self.found.rows), 9):
            row = self.found.rows[k]
            try:
                frame = source.frame(row)
            except UserError:
                continue
            depth = next(iter(frame.depths.values()))
            if (edges := alignment.edges_of(frame.rgb, depth)) is not None:
                others.append(edges)
        return others

    def add(self, row: int, frame: Frame) -> None:
        depth = frame.depths[self.kind]
        valid = depth[depth > 0]
        look = Look(
            row=row,
            size=(depth.shape[0], depth.shape[1]),
            kinds={kind: float(np.mean(d <= 0)) for kind, d in frame.depths.items()},
            raw_is_filled=_raw_is_filled(frame),
        )
        if len(valid):
            edges = alignment.edges_of(frame.rgb, depth)
            look = dataclasses.replace(
                look,
                low=float(valid.min()),
                median=float(np.median(valid)),
                high=float(valid.max()),
                pair=alignment.compare(edges, self.others) if edges else None,
            )
            # An odd stride samples every column.
            self.values.append(valid[:: max(1, len(valid) // max(1, self.each)) | 1])
        if look.pair is not None:
            self.pool.add(look.pair)
            # Surfaces of all frames would need much memory; only the pool uses them.
            look = dataclasses.replace(
                look, pair=dataclasses.replace(look.pair, surfaces={})
            )
        self.prints.add(row, frame.rgb)
        self.found.looks.append(look)

    def finish(self) -> None:
        if self.values:
            self.found.values = np.concatenate(self.values)
        self.found.verdict = self.pool.verdict()


def _shown(found: Examination) -> list[Shown]:
    """Read frames for the contact sheet: odd ones, then evenly spaced others."""
    remarks = {name: "no truth" for name in found.empty} | dict(found.misfits)
    looks = {found.name(look.row): look.row for look in found.looks}
    odd = [looks[name] for name in remarks][:SHOWN]
    rows = [look.row for look in found.looks if look.row not in odd]
    shown = []
    for row in odd + [rows[k] for k in _spread(len(rows), SHOWN)]:
        frame = found.source.frame(row)
        depth = frame.depths[found.source.truths[0]]
        step = max(1, round(max(depth.shape) / SHOWN_PIXELS))
        remark = remarks.get(name := found.name(row))
        title = f"{remark}: {name}" if remark else name
        shown.append(Shown(title, frame.rgb[::step, ::step], depth[::step, ::step]))
    return shown


def _raw_is_filled(frame: Frame) -> bool | None:
    if frame.raw is None or frame.filled is None:
        return None
    valid = frame.raw > 0
    return bool((frame.raw[valid] == frame.filled[valid]).all())


def _spread(total: int, count: int) -> list[int]:
    """At most `count` evenly spaced indices below `total`, from first to last."""
    if count >= total:
        return list(range(total))
    return sorted({int(k) for k in np.linspace(0, total - 1, count)})


def sides(source: Source) -> dict[str, dict[str, list[int]]]:
    """The splits with rows for training and for evaluation.

    Without any, sub-folders named train and test, or similar, define one.
    """
    complete = {
        name: s for name, s in source.splits().items() if s["train"] and s["eval"]
    }
    if complete:
        return complete
    parts: dict[str, list[int]] = {"train": [], "eval": []}
    for row, info in enumerate(source.infos):
        words = {word.lower() for word in Path(info.name).parts[:-1]}
        if words & TRAIN:
            parts["train"].append(row)
        elif words & EVAL:
            parts["eval"].append(row)
    return {"by folder": parts} if all(parts.values()) else {}


def scene_of(source: Source, row: int) -> str | None:
    """The scene of a row, without folders like train/ and a raw folder's letter."""
    parts = Path(source.infos[row].scene or "").parts
    bare = "/".join(part for part in parts if part.lower() not in TRAIN | EVAL)
    return splits.scene_of_folder(bare) or None


def _prints_of_all(opened: Store, progress: Progress | None) -> duplicates.Prints:
    """The hashes of all frames of a store, read at the training size."""
    prints, total = duplicates.Prints(), len(opened)
    for first in range(0, total, 64):
        rows = range(first, min(first + 64, total))
        rgb, _ = opened.gather(rows, depth=opened.depths[0])
        for row, image in zip(rows, rgb, strict=True):
            prints.add(row, image)
        if progress is not None:
            progress(f"images of {opened.name}", rows[-1] + 1, total)
    return prints


def _copies(
    prints: duplicates.Prints,
    both_sides: dict[str, dict[str, list[int]]],
    total: int,
    progress: Progress | None,
) -> dict[str | None, list[tuple[int, int]]]:
    def report(done: int, of: int) -> None:
        if progress is not None:
            progress("comparing images", done, of)

    across: dict[str | None, list[tuple[int, int]]] = {
        name: prints.copies(split["eval"], split["train"], report)
        for name, split in both_sides.items()
    }
    return {**across, None: prints.copies(range(total), None, report)}


def numbers(found: Examination) -> dict[str, Any]:
    """The measurements as a JSON object; depth in metres as read."""
    source, verdict = found.source, found.verdict
    sizes = Counter(f"{k.size[0]}x{k.size[1]}" for k in found.looks)
    missing = {
        kind: [k.kinds[kind] for k in found.looks if kind in k.kinds]
        for kind in source.truths
    }
    scenes = {info.scene for info in source.infos} - {None}
    return {
        "name": source.name,
        "format": source.format,
        "frames": len(source.infos),
        "looked_at": len(found.rows),
        "scenes": len(scenes),
        "splits": {
            name: {part: len(rows) for part, rows in split.items()}
            for name, split in source.splits().items()
        },
        "sizes": dict(sizes),
        "depth": _depth_numbers(found),
        "missing": {
            kind: {
                "mean": float(np.mean(shares)),
                "worst": max(shares),
                "worst_frame": found.name(found.looks[int(np.argmax(shares))].row),
            }
            for kind, shares in missing.items()
            if shares
        },
        "no_truth": found.empty,
        "broken": [{"name": n, "reason": r} for n, r in found.broken],
        "damaged": found.damaged,
        "copies": {
            name or "within": [[found.name(a), found.name(b)] for a, b in pairs]
            for name, pairs in found.copies.items()
        },
        "images_compared": found.hashed,
        "alignment": None if verdict is None else _alignment_numbers(found, verdict),
        "notes": source.notes,
    }


def _depth_numbers(found: Examination) -> dict[str, Any]:
    lows = [look.low for look in found.looks if look.low is not None]
    highs = [look.high for look in found.looks if look.high is not None]
    return {
        "kinds": list(found.source.truths),
        "stored_units_per_metre": found.opened.scale,
        "min": min(lows, default=None),
        "median": float(np.median(found.values)) if len(found.values) else None,
        "max": max(highs, default=None),
        "histogram": _histogram(found.values),
    }


def _alignment_numbers(
    found: Examination, verdict: alignment.Verdict
) -> dict[str, Any]:
    weakest = sorted(found.pairs, key=lambda p: p[1].turns[alignment.AS_IS])[:5]
    return {
        "verdict": verdict.text,
        "shift": list(verdict.shift),
        "scores": verdict.scores,
        "pairs": len(found.pairs),
        "misfits": [{"name": name, "how": how} for name, how in found.misfits],
        "weakest": [
            {"name": name, "score": pair.turns[alignment.AS_IS]}
            for name, pair in weakest
        ],
    }


def _histogram(values: np.ndarray, bins: int = 20) -> dict[str, Sequence[float]] | None:
    """Histogram of depth, edges in metres, up to the 99.9th percentile."""
    if not len(values):
        return None
    top = float(np.percentile(values, 99.9))
    counts, edges = np.histogram(values, bins=bins, range=(0, top))
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist()}
