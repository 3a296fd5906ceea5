"""From what the doctor measured to what a user should know, one line each."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from jaxdepth.data.doctor import alignment
from jaxdepth.data.doctor.measurements import Examination, scene_of, sides
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources.stored import Stored

Level = Literal["problem", "warning", "ok"]
# Medians of rooms, metres. Over NYU's training frames it is 2.4, of a desk 0.8.
ROOMS = (0.6, 8.0)
ROOM = 2.5
SMALL_ROOM = 1.2  # metres: nowhere is everything nearer than this
# Units per metre that depth is found in.
UNITS = {
    "metres": 1.0,
    "8-bit codes of which 255 is 10 m": 25.5,
    "centimetres": 100.0,
    "millimetres": 1000.0,
    "1/5000 m, as TUM's": 5000.0,
    "tenths of a millimetre": 10000.0,
}
LEVELS = 256  # distinct depths that 8 bits can hold
COARSE = 0.015  # metres: a step that shows in the errors
REACH = 10.0  # metres: --max_depth, beyond which truth doesn't count
NAMED = 5  # frames in a line; the rest is counted


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line for the user.

    Attributes:
      level: "problem" spoils training or its numbers, "warning" may, "ok" is fine.
      what: the thing looked at.
      evidence: what was seen.
      advice: what to do; empty where nothing is to be done.
    """

    level: Level
    what: str
    evidence: str
    advice: str = ""

    def __str__(self) -> str:
        tail = f": {self.advice}" if self.advice else ""
        return f"{self.level:7}  {self.what}: {self.evidence}{tail}"


def of(found: Examination) -> list[Finding]:
    """All findings, the worst first."""
    rules: Sequence[Callable[[Examination], Iterator[Finding]]] = (
        _unit, _steps, _kinds, _far, _empty, _broken, _damaged, _left_out, _sizes,
        _alignment, _scenes, _test_scenes, _copies, _copies_within,
    )  # fmt: skip
    order = ("problem", "warning", "ok")
    every = [finding for rule in rules for finding in rule(found)]
    return sorted(every, key=lambda finding: order.index(finding.level))


def guess_unit(median: float, *, whole: bool, largest: float) -> str | None:
    """The unit in which a median of stored values is nearest to a room's.

    Args:
      whole: whether the stored values are whole numbers.
      largest: of the stored values.

    Returns: a name in `UNITS`; None where it is in none of them a room's.
    """
    readings = {name: median / units for name, units in UNITS.items()}
    if not whole or largest > 255:
        del readings["8-bit codes of which 255 is 10 m"]
    rooms = {n: m for n, m in readings.items() if ROOMS[0] <= m <= ROOMS[1]}
    return min(rooms, key=lambda n: abs(math.log(rooms[n] / ROOM)), default=None)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the depths look like.

    Attributes:
      scale: stored units per metre, as read.
      fits: whether the median, as read, is a room's.
      unit: a name in `UNITS` that fits where reading does not.
    """

    scale: float
    fits: bool
    unit: str | None

    @property
    def factor(self) -> float:
        """Metres for a metre as read."""
        return self.scale / UNITS[self.unit] if self.unit else 1.0


def reading_of(found: Examination) -> Reading:
    """The unit of the depths that were sampled, of which there are some."""
    values = found.values
    scale, median = found.opened.scale or _fixed_scale(found), float(np.median(values))
    if ROOMS[0] <= median <= ROOMS[1]:
        return Reading(scale, True, None)
    stored = values.astype(np.float64) * scale
    whole = bool((np.abs(stored - np.round(stored)) < 0.02).all())
    unit = guess_unit(median * scale, whole=whole, largest=float(stored.max()))
    return Reading(scale, False, unit)


def _unit(found: Examination) -> Iterator[Finding]:
    if found.opened.assumed:
        yield Finding(
            "problem",
            "unit",
            f"{found.opened.assumed}; looked at as if 255 were 10 m",
        )
    if not len(found.values):
        return
    reading, values = reading_of(found), found.values
    scale, name = reading.scale, reading.unit
    median, high = (float(np.percentile(values, p)) for p in (50, 99))
    seen = f"{values.min():.3g} to {values.max():.3g} m, median {median:.3g} m"
    if found.opened.scale:
        low, middle, top = (
            float(x) * scale for x in (values.min(), median, values.max())
        )
        seen = (
            f"stored values {low:.5g} to {top:.5g}, median {middle:.5g}, at {scale:g} "
            f"per metre a median of {median:.3g} m"
        )
    if reading.fits:
        yield Finding(
            "ok", "unit", f"{seen}, as rooms have; 99 % is below {high:.3g} m"
        )
    elif name is None:
        yield Finding(
            "problem" if median > 100 or values.max() < 0.1 else "warning",
            "unit",
            f"{seen}; rooms have 1 to 5 m",
            f"find out the unit of these data; {_rescaled(found, None)}",
        )
    else:
        sure = high < SMALL_ROOM or median > 100
        yield Finding(
            "problem" if sure else "warning",
            "unit",
            f"values look like {name}: {seen}, 99 % below {high:.3g} m; as {name} the "
            f"median is {median * reading.factor:.3g} m, which is what rooms have",
            _rescaled(found, UNITS[name]),
        )


def _fixed_scale(found: Examination) -> float:
    return 1000.0 if isinstance(found.source, Stored) else 1.0


def _rescaled(found: Examination, units: float | None) -> str:
    """How data are read in another unit."""
    if isinstance(found.source, Stored):
        return "prepare the store again from data read with the right --depth_scale"
    if found.opened.scale is None:
        return f"data of format {found.source.format} hold metres: convert them"
    return f"give --depth_scale={units:g}" if units else "then give --depth_scale"


@dataclasses.dataclass(frozen=True)
class Steps:
    """How depth is quantised.

    Attributes:
      distinct: different values in the sample.
      step: metres between steps that most values lie on; None where there are none.
      strength: 1 where all values lie on steps, 0 for none.
    """

    distinct: int
    step: float | None
    strength: float


def steps_of(values: Float[np.ndarray, "n"]) -> Steps:
    """Even steps in depth: a peak in the spectrum of its histogram.

    Depth that was averaged or resized after it was quantised keeps most of it.
    """
    distinct = len(np.unique(values))
    top = float(values.max())
    spread = float(np.subtract(*np.percentile(values, (99, 1))))
    bins, fine = 1 << 17, 8  # the spectrum is read at every 1/8 step over the range
    places = np.round(values.astype(np.float64) * ((bins - 1) / top)).astype(np.int64)
    counts = np.bincount(places, minlength=bins)
    spectrum = np.abs(np.fft.rfft(counts, fine * bins)) / len(values)
    # Below 8 steps over the spread of depth any histogram has peaks.
    first = math.ceil(fine * 8 * top / spread) if spread > 0 else len(spectrum)
    high = np.flatnonzero(spectrum[first : fine * 2048] >= 0.4)
    if not len(high):
        return Steps(distinct, None, 0.0)
    k = first + int(high[0])
    while k + 1 < len(spectrum) and spectrum[k + 1] > spectrum[k]:
        k += 1
    return Steps(distinct, fine * top / k, float(spectrum[k]))


def _steps(found: Examination) -> Iterator[Finding]:
    if not len(found.values):
        return
    steps = steps_of(found.values * np.float32(reading_of(found).factor))
    advice = (
        "enough to train on; errors of some centimetres can't be judged by it, so "
        "evaluate on 16-bit or floating-point truth"
    )
    count = f"{steps.distinct:,} distinct depths in {len(found.values):,} pixels"
    if steps.step is not None and steps.distinct <= LEVELS:
        coarse = steps.step >= COARSE or found.source.eight_bit
        evidence = f"{count}, on even steps of {steps.step * 1000:.1f} mm"
        if coarse:
            yield Finding("warning", "8-bit depth", evidence, advice)
        else:
            yield Finding("ok", "steps", evidence)
    elif steps.step is not None and steps.step >= COARSE:
        yield Finding(
            "warning",
            "8-bit depth",
            f"{count}, most of them on steps of {steps.step * 1000:.1f} mm (strength "
            f"{steps.strength:.2f}): 8-bit depth that was resized",
            advice,
        )
    elif found.source.eight_bit or (
        steps.distinct <= LEVELS and len(found.looks) >= 16 and steps.distinct > 1
    ):
        evidence = f"{count}, on uneven steps: codes of 8 bits"
        yield Finding("warning", "8-bit depth", evidence, advice)
    else:
        even = f", on steps of {steps.step * 1000:.1f} mm" if steps.step else ""
        yield Finding("ok", "steps", count + even)


def _kinds(found: Examination) -> Iterator[Finding]:
    for kind in found.source.truths:
        shares = [k.kinds[kind] for k in found.looks if k.kinds.get(kind, 1) < 1]
        if not shares:
            continue
        mean, worst = float(np.mean(shares)), max(shares)
        evidence = f"{mean:.1%} of the pixels missing, in the worst frame {worst:.1%}"
        if kind == "filled" and mean > 0.001:
            advice = "holes count as missing: train and evaluate on it as raw depth"
            yield Finding("warning", "filled depth has holes", evidence, advice)
        elif mean > 0.6:
            advice = "look at the contact sheet: little is left to train on"
            yield Finding("warning", f"{kind} depth", evidence, advice)
        else:
            yield Finding("ok", f"{kind} depth", evidence)
    equal = [k.raw_is_filled for k in found.looks if k.raw_is_filled is not None]
    if equal and all(equal):
        yield Finding(
            "warning",
            "raw depth",
            f"equals filled depth wherever it is there, in all {len(equal)} frames",
            "it is filled depth with parts cut out: use --depth=filled",
        )


def _far(found: Examination) -> Iterator[Finding]:
    if not len(found.values):
        return
    far = float(np.mean(found.values * reading_of(found).factor > REACH))
    if far > 0.01:
        advice = "--max_depth leaves it out: raise it where these are no rooms"
        yield Finding("warning", "far depth", f"{far:.1%} beyond {REACH:g} m", advice)


def _empty(found: Examination) -> Iterator[Finding]:
    looked = len(found.looks)
    if found.empty:
        yield Finding(
            "problem",
            "frames without truth",
            f"{len(found.empty)} of {looked}: {_list(found.empty)}",
            "they are left out when a store is prepared; find out why they are empty",
        )
    elif looked:
        yield Finding("ok", "truth", f"in each of {looked} frames")


def _broken(found: Examination) -> Iterator[Finding]:
    if found.broken:
        named = [f"{name} ({reason})" for name, reason in found.broken]
        yield Finding(
            "problem",
            "frames that can't be read",
            f"{len(found.broken)} of {len(found.rows)}: {_list(named, 3)}",
            "get these files again, or remove them",
        )


def _damaged(found: Examination) -> Iterator[Finding]:
    """Bytes of a store that changed after it was written."""
    if found.damaged:
        yield Finding(
            "problem",
            "shards",
            f"{len(found.damaged)} are not what their checksums say: "
            f"{_list(found.damaged, 3)}",
            "prepare the store again",
        )


def _left_out(found: Examination) -> Iterator[Finding]:
    """What a store does not hold, of what it was prepared from."""
    if not isinstance(found.source, Stored):
        return
    manifest = found.source.store.manifest
    named = [f"{frame['name']} ({frame['reason']})" for frame in manifest["broken"]]
    for what, names in (
        ("frames without truth", manifest["left_out"]),
        ("frames that can't be read", named),
    ):
        if names:
            yield Finding(
                "warning",
                what,
                f"{len(names)} were left out when this store was prepared: "
                f"{_list(names, 3)}",
                "look at the data that it was prepared from",
            )


def _sizes(found: Examination) -> Iterator[Finding]:
    aspects = {round(k.size[1] / k.size[0], 2) for k in found.looks}
    if len(aspects) > 1:
        yield Finding(
            "warning",
            "sizes",
            f"frames of {len(aspects)} shapes, width / height "
            f"{min(aspects):g} to {max(aspects):g}",
            "they are cut to one shape about their middle when a store is prepared",
        )


def _alignment(found: Examination) -> Iterator[Finding]:
    verdict = found.verdict
    if verdict is None:
        if found.looks:
            evidence = "no frame has edges in image and depth to compare"
            yield Finding("warning", "alignment", evidence, "look at the contact sheet")
        return
    scores = ", ".join(f"{name} {score:.2f}" for name, score in verdict.scores.items())
    evidence = f"edges of image and depth over {len(found.pairs)} frames ({scores})"
    if verdict.kind == alignment.ALIGNED:
        yield Finding("ok", "alignment", f"depth lies on its image: {evidence}")
    elif verdict.kind == alignment.UNRELATED:
        yield Finding(
            "problem",
            "alignment",
            f"depth has no relation to its image: {evidence}",
            "check how images and depth are paired",
        )
    else:
        at = ", down and right" if verdict.kind == alignment.SHIFTED else ""
        yield Finding(
            "problem",
            "alignment",
            f"depth is {verdict.text}{at} against its image: {evidence}",
            "turn it back before training"
            if not at
            else "shift it back, or register "
            "depth to the image as the NYU toolbox does",
        )
    yield from _misfits(found)


def _misfits(found: Examination) -> Iterator[Finding]:
    misfits, pairs = found.misfits, len(found.pairs)
    if misfits:
        turned = sum(how in alignment.TURNS for _, how in misfits)
        # Registration fails in good sets as well: in 6 of NYU's 795.
        named = _list([f"{name} ({how})" for name, how in misfits])
        many = turned > 0.01 * pairs or len(misfits) > 0.1 * pairs
        yield Finding(
            "problem" if many else "warning",
            "frames whose depth does not fit",
            f"{len(misfits)} of {pairs}: {named}",
            "look at them: they come first in the contact sheet",
        )


def _scenes(found: Examination) -> Iterator[Finding]:
    """Scenes and frames on both sides of a split."""
    infos = found.source.infos
    for split, parts in sides(found.source).items():
        both = sorted(set(parts["train"]) & set(parts["eval"]))
        scenes = [
            {s for row in parts[p] if (s := scene_of(found.source, row))}
            for p in ("train", "eval")
        ]
        common = sorted(scenes[0] & scenes[1])
        if both:
            names = [infos[row].name for row in both]
            yield Finding(
                "problem",
                f"split {split}",
                f"{len(both)} frames train and evaluate: {_list(names)}",
                "its numbers would say nothing of new images: mend the split",
            )
        if common:
            yield Finding(
                "problem",
                f"split {split}",
                f"{len(common)} scenes are on both sides: {_list(common)}",
                "its numbers would be too good: put each scene on one side",
            )
        if not both and not common and scenes[0] and scenes[1]:
            evidence = f"no scene of {len(scenes[1])} is on both sides"
            yield Finding("ok", f"split {split}", evidence)


def _test_scenes(found: Examination) -> Iterator[Finding]:
    """Folders that train although NYU's official test frames show their scene."""
    infos = found.source.infos
    train = {row for parts in found.source.splits().values() for row in parts["train"]}
    # The labeled set's own frames have their side in the official split.
    scenes: dict[str, set[str]] = {}
    for row in train:
        folder, scene = infos[row].scene, scene_of(found.source, row)
        if infos[row].official_index is None and folder and scene:
            scenes.setdefault(scene, set()).add(folder)
    shown = [scene for scene in scenes if splits.is_test_scene(scene)]
    folders = sorted(folder for scene in shown for folder in scenes[scene])
    if shown:
        yield Finding(
            # Nothing but test scenes is most likely there to evaluate on.
            "problem" if len(shown) < len(scenes) else "warning",
            "official test scenes",
            f"{len(shown)} of {len(scenes)} scenes that train are in NYU's test set: "
            f"{_list(folders)}",
            "leave them out, or never evaluate on the official test frames",
        )


def _copies(found: Examination) -> Iterator[Finding]:
    for split, pairs in found.copies.items():
        if split is None:
            continue
        if pairs:
            named = [f"{found.name(a)} = {found.name(b)}" for a, b in pairs]
            yield Finding(
                "problem",
                f"split {split}",
                f"{len(pairs)} images that evaluate are copies of ones that train: "
                f"{_list(named, 3)}",
                "its numbers would be too good: keep each image on one side",
            )
        else:
            evidence = "no image that evaluates is a copy of one that trains"
            yield Finding("ok", f"split {split}", evidence)


def _copies_within(found: Examination) -> Iterator[Finding]:
    pairs, looked = found.copies.get(None, []), found.hashed
    if pairs:
        named = [f"{found.name(a)} = {found.name(b)}" for a, b in pairs]
        yield Finding(
            "warning",
            "copies",
            f"{len(pairs)} of {looked} images are copies of others: {_list(named, 3)}",
            "neighbours of a recording say little new: take one out of some",
        )
    elif looked:
        yield Finding("ok", "copies", f"none among {looked} images")


def _list(names: Sequence[str], most: int = NAMED) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
