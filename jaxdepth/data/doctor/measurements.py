"""Measurements of a data set: depth, alignment, copies, broken frames.

`findings.py` derives problems and advice from these measurements.
"""

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxdepth.data import units
from jaxdepth.data.doctor import alignment, duplicates
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import (
    Frame,
    ReadOptions,
    Source,
    any_unit,
    lists,
    open_source,
)
from jaxdepth.data.sources.stored import Stored
from jaxdepth.data.store import recorded
from jaxdepth.data.store.reader import Store, is_store
from jaxdepth.runtime.errors import UserError, one_line
from jaxdepth.runtime.progress import Progress

FRAMES = 800  # inspected by default
VALUES = 4_000_000  # size of the sample of depths, over all frames
SHEET = 12  # regular frames of a contact sheet, and most faulty ones
SHEET_PIXELS = 320  # their longer side, approximately
HINT_FRAMES = 16  # frames whose depth is examined for encodings
GUESSED_SCALE = 25.5  # for 8-bit depth without --depth_scale: 255 is 10 m


@dataclasses.dataclass(frozen=True)
class Opened:
    """Data to inspect.

    Attributes:
      scale: stored units per metre; None if --depth_scale does not apply.
      assumed: why a scale was assumed; None if it was not.
    """

    source: Source
    scale: float | None = None
    assumed: str | None = None


def open_data(
    path: str | Path, *, data_format: str = "auto", options: ReadOptions | None = None
) -> Opened:
    """Open a store, or data of any format and unit.

    Raises: UserError as `open_source` does, except for a wrong unit; and for options
      that differ from those with which a store was prepared.
    """
    options = options or ReadOptions()
    if is_store(path):
        store = Store.open(path)
        flags = {} if data_format == "auto" else {"data_format": data_format}
        recorded.check_flags(store, flags | recorded.given(options), where=str(path))
        return Opened(Stored(store), store.manifest.get("depth_scale"))
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
        options = dataclasses.replace(options, depth_scale=1.0)
        stored = _with_scale(path, source.format, options)
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
            metres, values = (
                next(iter(s.frame(row).depths.values())).astype(np.float64)
                for s in (source, stored)
            )
        except UserError:
            continue
        if (valid := metres > 0).any():
            return float(f"{np.median(values[valid] / metres[valid]):.6g}")
    return None


@dataclasses.dataclass(frozen=True)
class FrameStats:
    """Measurements of one frame.

    Attributes:
      missing: share of missing pixels by kind of depth; other fields are of the first.
      range: minimum and maximum of valid depth, metres as read; None if there is none.
      raw_is_filled: whether raw depth equals filled depth in all valid pixels of raw;
        None if the frame does not have both.
      pair: alignment scores; None without edges to compare.
    """

    row: int
    size: tuple[int, ...]
    missing: dict[str, float]
    range: tuple[float, float] | None
    raw_is_filled: bool | None
    pair: alignment.Pair | None


@dataclasses.dataclass(frozen=True)
class SheetFrame:
    """A reduced frame for the contact sheet."""

    title: str
    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float[np.ndarray, "h w"]


@dataclasses.dataclass
class Inspection:
    """All measurements of a data set.

    Attributes:
      rows: the rows of the sampled frames.
      frames: measurements of the frames that could be read.
      broken: (name, reason) of the frames that could not be read.
      damaged: shards of a store that do not match their checksums.
      values: a sample of depths, metres as read.
      read: summary of the depth, as read.
      hints: hints at an encoding in the depth of up to `HINT_FRAMES` frames.
      verdict: alignment of image and depth over all frames.
      copies: (row, row that it is a copy of) by split; under None, within all frames.
      compared: number of images that were compared.
      sheet: frames for the contact sheet, misaligned and empty ones first.
    """

    opened: Opened
    rows: list[int]
    frames: list[FrameStats] = dataclasses.field(default_factory=list)
    broken: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    damaged: list[str] = dataclasses.field(default_factory=list)
    values: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.float32)
    )
    read: units.Summary = dataclasses.field(default_factory=units.Summary)
    hints: list[units.EncodingHints] = dataclasses.field(default_factory=list)
    verdict: alignment.Verdict | None = None
    copies: dict[str | None, list[tuple[int, int]]] = dataclasses.field(
        default_factory=dict
    )
    compared: int = 0
    sheet: list[SheetFrame] = dataclasses.field(default_factory=list)

    @property
    def source(self) -> Source:
        return self.opened.source

    def name(self, row: int) -> str:
        return self.source.infos[row].name

    @property
    def empty(self) -> list[str]:
        """Names of frames without valid depth."""
        return [self.name(frame.row) for frame in self.frames if frame.range is None]

    @property
    def missing(self) -> dict[str, list[float]]:
        """Share of missing pixels of each frame, by kind of depth."""
        return {
            kind: [f.missing[kind] for f in self.frames if kind in f.missing]
            for kind in self.source.truths
        }

    @property
    def pairs(self) -> list[tuple[str, alignment.Pair]]:
        """(name, alignment scores) of the frames that have edges."""
        return [(self.name(f.row), f.pair) for f in self.frames if f.pair is not None]

    @property
    def misfits(self) -> list[tuple[str, str]]:
        """(name, how) of frames whose alignment differs from that of the data set."""
        if self.verdict is None:
            return []
        named = [(name, self.verdict.misfit(pair)) for name, pair in self.pairs]
        return [(name, how) for name, how in named if how]


def inspect(
    opened: Opened, *, frames: int = FRAMES, progress: Progress | None = None
) -> Inspection:
    """Measure a sample of `frames` evenly spaced frames (0: all frames).

    Frames that can't be read are recorded and skipped. Copies are searched among the
    sampled images; of a store, among all images. The shards of a store are compared
    with their checksums.
    """
    source, total = opened.source, len(opened.source.infos)
    inspection, fingerprints = sample(opened, frames=frames, progress=progress)
    inspection.sheet = _sheet(inspection)
    if isinstance(source, Stored):
        inspection.damaged = source.store.damaged(progress)
        fingerprints = _fingerprints_of_all(source.store, progress)
    inspection.compared = len(fingerprints)
    report = functools.partial(progress, "comparing images") if progress else None
    for name, split in complete_splits(source).items():
        pairs = fingerprints.copies(split["eval"], split["train"], report)
        inspection.copies[name] = pairs
    inspection.copies[None] = fingerprints.copies(range(total), None, report)
    return inspection


def sample(
    opened: Opened, *, frames: int, progress: Progress | None = None
) -> tuple[Inspection, duplicates.Fingerprints]:
    """The measurements of single frames, as in `inspect`, and their fingerprints."""
    source, total = opened.source, len(opened.source.infos)
    inspection = Inspection(opened, _spread(total, frames or total))
    collector = _Collector(inspection)
    for done, row in enumerate(inspection.rows, 1):
        try:
            frame = source.frame(row)
        except UserError as error:
            reason = one_line(error)
            inspection.broken.append((inspection.name(row), reason))
        else:
            collector.add(row, frame)
        if progress is not None:
            progress(f"inspecting {source.name}", done, len(inspection.rows))
    collector.finish()
    return inspection, collector.fingerprints


class _Collector:
    """Collects the measurements of frames in an inspection."""

    def __init__(self, inspection: Inspection):
        self.inspection = inspection
        self.fingerprints, self.pool = duplicates.Fingerprints(), alignment.Pool()
        self.values: list[np.ndarray] = []
        self.references = list(self._references())
        rows = inspection.rows
        self.hint_rows = {rows[k] for k in _spread(len(rows), HINT_FRAMES)}

    def _references(self) -> Iterator[alignment.Edges]:
        """Edges of some frames, as a reference for unrelated images and depth."""
        rows = self.inspection.rows
        for k in _spread(len(rows), 9):
            try:
                frame = self.inspection.source.frame(rows[k])
            except UserError:
                continue
            depth = next(iter(frame.depths.values()))
            if (edges := alignment.edges_of(frame.rgb, depth)) is not None:
                yield edges

    def add(self, row: int, frame: Frame) -> None:
        """Measure a frame."""
        depth = frame.depths[self.inspection.source.truths[0]]
        valid = depth[depth > 0]
        pair = None
        if (edges := alignment.edges_of(frame.rgb, depth)) is not None:
            pair = alignment.compare(edges, self.references)
            self.pool.add(pair)
            # Surfaces of all frames would need much memory; only the pool uses them.
            pair = dataclasses.replace(pair, surfaces={})
        stats = FrameStats(
            row=row,
            size=depth.shape,
            missing={kind: float(np.mean(d <= 0)) for kind, d in frame.depths.items()},
            range=(float(valid.min()), float(valid.max())) if len(valid) else None,
            raw_is_filled=_raw_is_filled(frame),
            pair=pair,
        )
        self.inspection.frames.append(stats)
        # An odd stride samples every column.
        count = max(1, VALUES // len(self.inspection.rows))
        self.values.append(valid[:: max(1, len(valid) // count) | 1])
        self.inspection.read.add(units.Summary.of_values(valid, pixels=depth.size))
        if row in self.hint_rows:
            scale = self.inspection.opened.scale
            self.inspection.hints.append(units.EncodingHints.of(depth, scale=scale))
        self.fingerprints.add(row, frame.rgb)

    def finish(self) -> None:
        """Store the measurements over all frames."""
        if self.values:
            self.inspection.values = np.concatenate(self.values)
        self.inspection.verdict = self.pool.verdict()


def _sheet(inspection: Inspection) -> list[SheetFrame]:
    """Read frames for the contact sheet: faulty ones, then evenly spaced others."""
    source = inspection.source
    remarks = dict.fromkeys(inspection.empty, "no depth") | dict(inspection.misfits)
    rows = {inspection.name(frame.row): frame.row for frame in inspection.frames}
    faulty = [rows[name] for name in remarks][:SHEET]
    others = [frame.row for frame in inspection.frames if frame.row not in faulty]
    sheet = []
    for row in faulty + [others[k] for k in _spread(len(others), SHEET)]:
        frame, name = source.frame(row), inspection.name(row)
        depth = frame.depths[source.truths[0]]
        step = max(1, round(max(depth.shape) / SHEET_PIXELS))
        reduced = np.s_[::step, ::step]
        title = f"{remarks[name]}: {name}" if name in remarks else name
        sheet.append(SheetFrame(title, frame.rgb[reduced], depth[reduced]))
    return sheet


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


def complete_splits(source: Source) -> dict[str, dict[str, list[int]]]:
    """The splits with rows for both training and evaluation."""
    return {k: s for k, s in source.splits().items() if s["train"] and s["eval"]}


def scene_of(source: Source, row: int) -> str | None:
    """The scene of a row, without folders such as train/ and the letter of a part."""
    parts = Path(source.infos[row].scene or "").parts
    bare = "/".join(part for part in parts if part.lower() not in lists.PART_WORDS)
    return splits.scene_of_folder(bare) or None


def _fingerprints_of_all(
    store: Store, progress: Progress | None
) -> duplicates.Fingerprints:
    """The fingerprints of all frames of a store, read at the training size.

    Frames in damaged shards, which `Inspection.damaged` names, are left out.
    """
    fingerprints, total = duplicates.Fingerprints(), len(store)
    for first in range(0, total, 64):
        rows = range(first, min(first + 64, total))
        with contextlib.suppress(UserError):
            rgb, _ = store.gather(rows, depth=store.depths[0])
            for row, image in zip(rows, rgb, strict=True):
                fingerprints.add(row, image)
        if progress is not None:
            progress(f"images of {store.name}", rows[-1] + 1, total)
    return fingerprints


def numbers(inspection: Inspection) -> dict[str, Any]:
    """The measurements as a JSON object; depth in metres as read."""
    source, name = inspection.source, inspection.name
    sizes = Counter("x".join(map(str, frame.size)) for frame in inspection.frames)
    scenes = {info.scene for info in source.infos} - {None}
    return {
        "name": source.name,
        "format": source.format,
        "frames": len(source.infos),
        "looked_at": len(inspection.rows),
        "scenes": len(scenes),
        "splits": {
            split: {part: len(rows) for part, rows in parts.items()}
            for split, parts in source.splits().items()
        },
        "sizes": dict(sizes),
        "depth": _depth_numbers(inspection),
        "missing": {
            kind: {
                "mean": float(np.mean(shares)),
                "worst": max(shares),
                "worst_frame": name(inspection.frames[int(np.argmax(shares))].row),
            }
            for kind, shares in inspection.missing.items()
            if shares
        },
        "no_truth": inspection.empty,
        "broken": [{"name": n, "reason": r} for n, r in inspection.broken],
        "damaged": inspection.damaged,
        "copies": {
            split or "within": [[name(a), name(b)] for a, b in pairs]
            for split, pairs in inspection.copies.items()
        },
        "images_compared": inspection.compared,
        "alignment": _alignment_numbers(inspection),
        "notes": source.notes,
    }


def _depth_numbers(inspection: Inspection) -> dict[str, Any]:
    ranges = [frame.range for frame in inspection.frames if frame.range is not None]
    values = inspection.values
    return {
        "kinds": list(inspection.source.truths),
        "stored_units_per_metre": inspection.opened.scale,
        "valid": inspection.read.share,
        "min": min((low for low, _ in ranges), default=None),
        "median": float(np.median(values)) if len(values) else None,
        "max": max((high for _, high in ranges), default=None),
        "histogram": _histogram(values),
    }


def _alignment_numbers(inspection: Inspection) -> dict[str, Any] | None:
    if (verdict := inspection.verdict) is None:
        return None
    scores = [(pair.scores[alignment.AS_IS], name) for name, pair in inspection.pairs]
    weakest = sorted(scores, key=lambda scored: scored[0])[:5]
    return {
        "verdict": verdict.text,
        "shift": list(verdict.shift),
        "scores": verdict.scores,
        "pairs": len(inspection.pairs),
        "misfits": [{"name": name, "how": how} for name, how in inspection.misfits],
        "weakest": [{"name": name, "score": score} for score, name in weakest],
    }


def _histogram(values: np.ndarray, bins: int = 20) -> dict[str, Sequence[float]] | None:
    """Histogram of depth, edges in metres, up to the 99.9th percentile."""
    if not len(values):
        return None
    top = float(np.percentile(values, 99.9))
    counts, edges = np.histogram(values, bins=bins, range=(0, top))
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist()}
