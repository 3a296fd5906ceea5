"""What is wrong with data, before anything is trained on them.

`inspect` looks at frames and measures; the findings, each a level, what, evidence and
what to do, are drawn from the measurements in `findings.py`.
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

FRAMES = 800  # looked at, unless told
VALUES = 4_000_000  # depths kept for the histogram, over all frames
SHOWN = 12  # frames of a contact sheet, and as many that stand out
SHOWN_PIXELS = 320  # of their longer side, about
GUESSED_SCALE = 25.5  # of 8-bit depth without --depth_scale: 255 is 10 m
# Names of folders that say on which side of a split their frames are.
TRAIN = {"train", "training"}
EVAL = {"test", "testing", "val", "valid", "validation", "eval"}
Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Opened:
    """Data to look at.

    Attributes:
      scale: stored units per metre where --depth_scale may change it.
      assumed: why a scale was assumed, where none was given and one is needed.
    """

    source: Source
    scale: float | None = None
    assumed: str | None = None


def open_data(
    path: str | Path, *, data_format: str = "auto", options: ReadOptions | None = None
) -> Opened:
    """A store, or data of any format, in whatever unit they seem to be.

    Raises UserError as `open_source` does, but not for a wrong unit.
    """
    options = options or ReadOptions()
    if is_store(path):
        if data_format != "auto" or options != ReadOptions():
            raise UserError(
                f"{path} is a store: it was read when it was prepared, so "
                "--data_format and --depth_scale say nothing of it"
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
    """The source, or None where it can't be opened with that scale."""
    try:
        return open_source(path, data_format=data_format, options=options)
    except UserError:
        return None


def _scale(source: Source, stored: Source | None) -> float | None:
    """Stored units per metre, from a frame that is read in both."""
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
        if (there := both[0] > 0).any():
            return float(f"{np.median(both[1][there] / both[0][there]):.6g}")
    return None


@dataclasses.dataclass(frozen=True)
class Look:
    """One frame. Metres as read; None where it has no truth, or no edges to compare.

    Attributes:
      kinds: share of missing pixels by kind of truth; what follows is of the first.
      raw_is_filled: whether raw depth equals filled depth wherever it is there.
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
    """A small copy of a frame, for the contact sheet."""

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float[np.ndarray, "h w"]


@dataclasses.dataclass
class Examination:
    """All that was measured.

    Attributes:
      rows: the frames that were to be looked at.
      broken: (name, reason) of those that could not be read.
      damaged: shards of a store that are not what their checksums say.
      values: a sample of depths, metres as read.
      verdict: what the pairs of image and depth say together.
      copies: by split, and under None within all: (row, row that it is a copy of).
      hashed: rows whose images were compared.
      shown: frames for the contact sheet; those that stand out come first.
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
        """Frames without any truth."""
        return [self.name(k.row) for k in self.looks if k.median is None]

    @property
    def pairs(self) -> list[tuple[str, alignment.Pair]]:
        return [(self.name(k.row), k.pair) for k in self.looks if k.pair is not None]

    @property
    def misfits(self) -> list[tuple[str, str]]:
        """(name, how) of pairs that stand out from what all together are."""
        if self.verdict is None:
            return []
        found = [(name, self.verdict.how(pair)) for name, pair in self.pairs]
        return [(name, how) for name, how in found if how]


def examine(
    opened: Opened, *, frames: int = FRAMES, progress: Progress | None = None
) -> Examination:
    """Look at `frames` frames from first to last (0: at all) and measure.

    Frames that can't be read are noted and passed over. The images of a store are
    compared with each other all of them, of other data those that are looked at; its
    shards are held against their checksums.
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
            progress(f"looking at {source.name}", done, len(found.rows))
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
    """What adds up from frame to frame."""

    def __init__(self, found: Examination, source: Source):
        self.found, self.kind = found, source.truths[0]
        self.prints, self.pool = duplicates.Prints(), alignment.Pool()
        self.each = VALUES // max(1, len(found.rows))
        self.values: list[np.ndarray] = []
        self.others = self._read_others(source)

    def _read_others(self, source: Source) -> list[alignment.Edges]:
        """Edges of some frames, with whose depth each image is compared, too."""
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
            # An odd stride takes from every column.
            self.values.append(valid[:: max(1, len(valid) // max(1, self.each)) | 1])
        if look.pair is not None:
            self.pool.add(look.pair)
            # Surfaces of fifty thousand frames would be too much to keep.
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
    """Frames that stand out, and as many others from first to last; read again."""
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
    there = frame.raw > 0
    return bool((frame.raw[there] == frame.filled[there]).all())


def _spread(total: int, count: int) -> list[int]:
    """At most `count` of `total` numbers, from first to last."""
    if count >= total:
        return list(range(total))
    return sorted({int(k) for k in np.linspace(0, total - 1, count)})


def sides(source: Source) -> dict[str, dict[str, list[int]]]:
    """Rows that train and evaluate, of the splits that have both.

    Where no split has, sub-folders named train and test, or the like, are one.
    """
    known = {name: s for name, s in source.splits().items() if s["train"] and s["eval"]}
    if known:
        return known
    parts: dict[str, list[int]] = {"train": [], "eval": []}
    for row, info in enumerate(source.infos):
        words = {word.lower() for word in Path(info.name).parts[:-1]}
        if words & TRAIN:
            parts["train"].append(row)
        elif words & EVAL:
            parts["eval"].append(row)
    return {"by folder": parts} if all(parts.values()) else {}


def scene_of(source: Source, row: int) -> str | None:
    """The row's scene without folders that say its side, and a raw folder's letter."""
    parts = Path(source.infos[row].scene or "").parts
    bare = "/".join(part for part in parts if part.lower() not in TRAIN | EVAL)
    return splits.scene_of_folder(bare) or None


def _prints_of_all(opened: Store, progress: Progress | None) -> duplicates.Prints:
    """Of all frames at the training size, which takes little time to read."""
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
    def told(done: int, of: int) -> None:
        if progress is not None:
            progress("images compared", done, of)

    across: dict[str | None, list[tuple[int, int]]] = {
        name: prints.copies(split["eval"], split["train"], told)
        for name, split in both_sides.items()
    }
    return {**across, None: prints.copies(range(total), None, told)}


def numbers(found: Examination) -> dict[str, Any]:
    """The measurements as JSON has them; metres as read."""
    source, verdict = found.source, found.verdict
    sizes = Counter(f"{k.size[0]}x{k.size[1]}" for k in found.looks)
    missing = {
        kind: [k.kinds[kind] for k in found.looks if kind in k.kinds]
        for kind in source.truths
    }
    scenes = {info.scene for info in source.infos} - {None}
    values = found.values
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
        "depth": {
            "kinds": list(source.truths),
            "stored_units_per_metre": found.opened.scale,
            "min": min((k.low for k in found.looks if k.low is not None), default=None),
            "median": float(np.median(values)) if len(values) else None,
            "max": max(
                (k.high for k in found.looks if k.high is not None), default=None
            ),
            "histogram": _histogram(values),
        },
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
    """Shares of the depth between edges in metres, up to the 99.9th percentile."""
    if not len(values):
        return None
    top = float(np.percentile(values, 99.9))
    counts, edges = np.histogram(values, bins=bins, range=(0, top))
    return {"edges": edges.tolist(), "shares": (counts / len(values)).tolist()}
