"""Findings: one-line conclusions for the user from the measurements of a data set."""

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from jaxdepth.data import units
from jaxdepth.data.doctor import alignment
from jaxdepth.data.doctor.measurements import (
    Inspection,
    Opened,
    complete_splits,
    sample,
    scene_of,
)
from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import Source
from jaxdepth.data.sources.stored import Stored

Level = Literal["problem", "warning", "ok"]
ROOM = 2.5  # metres; typical median of rooms
LEVELS = 256  # distinct values of 8 bits
COARSE = 0.015  # metres; steps of this size affect the metrics
REACH = 10.0  # metres; the default of --max_depth, beyond which depth is ignored
NAMED = 5  # frames named in a line; further ones are counted


@dataclasses.dataclass(frozen=True)
class Finding:
    """One conclusion, printed as one line.

    Attributes:
      level: "problem" if training or metrics will be wrong, "warning" if they may be,
        else "ok".
      what: the property that was checked.
      evidence: the measurements.
      advice: the fix; empty if none is needed.
    """

    level: Level
    what: str
    evidence: str
    advice: str = ""

    def __str__(self) -> str:
        tail = f": {self.advice}" if self.advice else ""
        return f"{self.level:7}  {self.what}: {self.evidence}{tail}"


def misalignment(source: Source, *, where: str, frames: int = 16) -> str | None:
    """What is wrong with the alignment of image and depth in a sample, in one line.

    Args:
      where: path of the data, for a command that shows more.

    Returns: None for depth that matches its image, or that can't be compared with it.
    """
    inspection, _ = sample(Opened(source), frames=frames)
    wrong = [line for line in _alignment(inspection) if line.level == "problem"]
    if not wrong:
        return None
    check = f"to check it, run jaxdepth inspect-data {shlex.quote(where)}"
    return f"{wrong[0].what}: {wrong[0].evidence}; {check}"


def of(inspection: Inspection) -> list[Finding]:
    """All findings of an inspection, the most severe first."""
    rules: Sequence[Callable[[Inspection], Iterator[Finding]]] = (
        _unit, _steps, _kinds, _far, _empty, _broken, _damaged, _left_out, _sizes,
        _alignment, _scenes, _test_scenes, _copies,
    )  # fmt: skip
    every = [finding for rule in rules for finding in rule(inspection)]
    return sorted(every, key=lambda finding: get_args(Level).index(finding.level))


def _is_implausible(inspection: Inspection) -> bool:
    """Whether depth as read does not look like a room."""
    return units.implausibility(inspection.read) is not None


def _factor(inspection: Inspection) -> float:
    """From depth as read to metres; to a typical median if it can't be metres."""
    median = inspection.read.median
    return 1.0 if units.ROOM[0] <= median <= units.ROOM[1] else ROOM / median


def _unit(inspection: Inspection) -> Iterator[Finding]:
    if assumed := inspection.opened.assumed:
        yield Finding("problem", "unit", f"{assumed}; until then, 255 is read as 10 m")
    values, scale = inspection.values, inspection.opened.scale
    if not len(values):
        return
    low, median, high, top = (float(np.percentile(values, p)) for p in (0, 50, 99, 100))
    span = f"{low:.3g} to {top:.3g} m, median {median:.3g} m"
    if scale:
        span = (
            f"stored values {low * scale:.5g} to {top * scale:.5g}, median "
            f"{median * scale:.5g}, at {scale:g} per metre a median of {median:.3g} m"
        )
    implausible = units.implausibility(inspection.read)
    encoding = units.suspected_encoding(
        inspection.hints, implausible=implausible is not None
    )
    if implausible is None and encoding is None:
        evidence = f"{span}, plausible for rooms; 99 % is below {high:.3g} m"
        yield Finding("ok", "unit", evidence)
        return
    wrong = encoding is not None or median > 100 or top < units.SMALL_ROOM
    evidence = "; ".join([span, *(text for text in (implausible, encoding) if text)])
    yield Finding(
        "problem" if wrong else "warning", "unit", evidence, _read_by(inspection)
    )


def _read_by(inspection: Inspection) -> str:
    """Advice on how to read the data with another unit."""
    scale = inspection.opened.scale
    if isinstance(inspection.source, Stored):
        how = "prepare the store again with another --depth_scale"
    elif scale is None:
        how = f"format {inspection.source.format} expects metres: convert the depth"
    else:
        how = "give the --depth_scale of these files"
    whole = units.is_whole(inspection.values, scale)
    table = units.candidates(inspection.read, scale=scale or 1.0, whole=whole)
    return f"{how}; {table}"


@dataclasses.dataclass(frozen=True)
class Steps:
    """Quantisation of depth.

    Attributes:
      distinct: number of distinct values in the sample.
      step: metres between the multiples that most values are at; None if not quantised.
      strength: 1 if all values are multiples of `step`, 0 if none are.
    """

    distinct: int
    step: float | None
    strength: float


def steps_of(values: Float[np.ndarray, "n"]) -> Steps:
    """Detect evenly quantised depth by a peak in the spectrum of its histogram.

    The peak remains, weaker, if depth was averaged or resized after quantisation.
    """
    distinct = len(np.unique(values))
    top = float(values.max())
    spread = float(np.subtract(*np.percentile(values, (99, 1))))
    bins, fine = 1 << 17, 8  # the spectrum is sampled at every 1/8 step over the range
    indices = np.round(values.astype(np.float64) * ((bins - 1) / top)).astype(np.int64)
    counts = np.bincount(indices, minlength=bins)
    spectrum = np.abs(np.fft.rfft(counts, fine * bins)) / len(values)
    # With fewer than 8 steps over the spread of depth, any histogram has peaks.
    first = math.ceil(fine * 8 * top / spread) if spread > 0 else len(spectrum)
    high = np.flatnonzero(spectrum[first : fine * 2048] >= 0.4)
    if not len(high):
        return Steps(distinct, None, 0.0)
    k = first + int(high[0])
    while k + 1 < len(spectrum) and spectrum[k + 1] > spectrum[k]:
        k += 1
    return Steps(distinct, fine * top / k, float(spectrum[k]))


def _steps(inspection: Inspection) -> Iterator[Finding]:
    if not len(inspection.values):
        return
    steps = steps_of(inspection.values * np.float32(_factor(inspection)))
    pixels = len(inspection.values)
    evidence = f"{steps.distinct:,} distinct depths in {pixels:,} pixels"
    eight_bit, few = inspection.source.eight_bit, steps.distinct <= LEVELS
    even = f"steps of {steps.step * 1000:.1f} mm" if steps.step else ""
    coarse = steps.step is not None and steps.step >= COARSE
    if steps.step is not None and few:
        evidence += f", on even {even}"
        eight_bit = eight_bit or coarse
    elif coarse:
        evidence += (
            f", most of them on {even} (strength {steps.strength:.2f}): 8-bit depth "
            "that was resized"
        )
        eight_bit = True
    elif eight_bit or (few and len(inspection.frames) >= 16 and steps.distinct > 1):
        evidence += ", on uneven steps: codes of 8 bits"
        eight_bit = True
    elif even:
        evidence += f", on {even}"
    if eight_bit:
        advice = (
            "sufficient for training; too coarse to measure errors of centimetres: "
            "evaluate on 16-bit or floating-point depth"
        )
        yield Finding("warning", "8-bit depth", evidence, advice)
    else:
        yield Finding("ok", "steps", evidence)


def _kinds(inspection: Inspection) -> Iterator[Finding]:
    for kind, missing in inspection.missing.items():
        shares = [share for share in missing if share < 1]
        if not shares:
            continue
        mean, worst = float(np.mean(shares)), max(shares)
        evidence = f"{mean:.1%} of the pixels missing, in the worst frame {worst:.1%}"
        if kind == "filled" and mean > 0.001:
            advice = "holes count as missing: train and evaluate on it as raw depth"
            yield Finding("warning", "filled depth has holes", evidence, advice)
        elif mean > 0.6:
            advice = "few pixels remain for training: check the contact sheet"
            yield Finding("warning", f"{kind} depth", evidence, advice)
        else:
            yield Finding("ok", f"{kind} depth", evidence)
    equal = [f.raw_is_filled for f in inspection.frames if f.raw_is_filled is not None]
    if equal and all(equal):
        frames = f"in all {len(equal)} frames"
        evidence = f"equals filled depth in all its valid pixels, {frames}"
        advice = "it is filled depth with parts removed: use --depth=filled"
        yield Finding("warning", "raw depth", evidence, advice)


def _far(inspection: Inspection) -> Iterator[Finding]:
    if not len(inspection.values) or _is_implausible(inspection):
        return
    reach = _reach(inspection.source)
    far = float(np.mean(inspection.values > reach))
    if far > 0.01:
        advice = "--max_depth removes it: raise --max_depth if these are not rooms"
        yield Finding("warning", "far depth", f"{far:.1%} beyond {reach:g} m", advice)


def _reach(source: Source) -> float:
    """The --max_depth of a store, or the default, metres."""
    if not isinstance(source, Stored):
        return REACH
    packing = source.store.manifest.get("options", {}).get("packing", {})
    return packing.get("max_depth", REACH)


def _empty(inspection: Inspection) -> Iterator[Finding]:
    empty, total = inspection.empty, len(inspection.frames)
    if empty:
        evidence = f"{len(empty)} of {total}: {_list(empty)}"
        advice = "prepare-data leaves them out; check why their depth is empty"
        yield Finding("problem", "frames without ground truth", evidence, advice)
    elif total:
        yield Finding("ok", "ground truth", f"in each of {total} frames")


def _broken(inspection: Inspection) -> Iterator[Finding]:
    if broken := inspection.broken:
        named = [f"{name} ({reason})" for name, reason in broken]
        evidence = f"{len(broken)} of {len(inspection.rows)}: {_list(named, 3)}"
        advice = "replace these files, or remove them"
        yield Finding("problem", "frames that can't be read", evidence, advice)


def _damaged(inspection: Inspection) -> Iterator[Finding]:
    """Shards of a store that changed after it was written."""
    if damaged := inspection.damaged:
        evidence = f"{len(damaged)} do not match their checksums: {_list(damaged, 3)}"
        yield Finding("problem", "shards", evidence, "prepare the store again")


def _left_out(inspection: Inspection) -> Iterator[Finding]:
    """Frames that were left out when a store was prepared."""
    if not isinstance(inspection.source, Stored):
        return
    manifest = inspection.source.store.manifest
    broken = [f"{frame['name']} ({frame['reason']})" for frame in manifest["broken"]]
    advice = "check the data that it was prepared from"
    for what, names in (
        ("frames without ground truth", manifest["left_out"]),
        ("frames that can't be read", broken),
    ):
        left_out = f"{len(names)} were left out when this store was prepared"
        if names:
            yield Finding("warning", what, f"{left_out}: {_list(names, 3)}", advice)


def _sizes(inspection: Inspection) -> Iterator[Finding]:
    aspects = {round(f.size[1] / f.size[0], 2) for f in inspection.frames}
    if len(aspects) > 1:
        ratios = f"width / height {min(aspects):g} to {max(aspects):g}"
        evidence = f"frames of {len(aspects)} aspect ratios, {ratios}"
        advice = "a store crops them centrally to one aspect ratio"
        yield Finding("warning", "sizes", evidence, advice)


def _alignment(inspection: Inspection) -> Iterator[Finding]:
    verdict = inspection.verdict
    if verdict is None:
        if inspection.frames:
            evidence = "no frame has edges in image and depth to compare"
            yield Finding("warning", "alignment", evidence, "check the contact sheet")
        return
    scores = ", ".join(f"{name} {score:.2f}" for name, score in verdict.scores.items())
    evidence = (
        f"edges of image and depth over {len(inspection.pairs)} frames ({scores})"
    )
    if verdict.kind == alignment.ALIGNED:
        yield Finding("ok", "alignment", f"depth matches its image: {evidence}")
    elif verdict.kind == alignment.UNRELATED:
        evidence = f"depth does not match its image: {evidence}"
        advice = "check how images and depth are paired"
        yield Finding("problem", "alignment", evidence, advice)
    elif verdict.kind == alignment.SHIFTED:
        shift = f"depth is {verdict.text}, down and right, relative to its image"
        advice = (
            "undo the shift, or register depth to the image as the NYU toolbox does"
        )
        yield Finding("problem", "alignment", f"{shift}: {evidence}", advice)
    else:
        evidence = f"depth is {verdict.text} relative to its image: {evidence}"
        yield Finding("problem", "alignment", evidence, "undo this before training")
    yield from _misfits(inspection)


def _misfits(inspection: Inspection) -> Iterator[Finding]:
    misfits, pairs = inspection.misfits, len(inspection.pairs)
    if misfits:
        oriented = sum(how in alignment.ORIENTATIONS for _, how in misfits)
        # Good data sets have a few misaligned frames: 6 of NYU's 795.
        many = oriented > 0.01 * pairs or len(misfits) > 0.1 * pairs
        level = "problem" if many else "warning"
        named = _list([f"{name} ({how})" for name, how in misfits])
        evidence = f"{len(misfits)} of {pairs}: {named}"
        advice = "check them: they are first in the contact sheet"
        yield Finding(level, "misaligned frames", evidence, advice)


def _scenes(inspection: Inspection) -> Iterator[Finding]:
    """Frames and scenes that are in both parts of a split."""
    source = inspection.source
    for split, parts in complete_splits(source).items():
        common_rows = sorted(set(parts["train"]) & set(parts["eval"]))
        train, evaluation = (
            {s for row in parts[part] if (s := scene_of(source, row))}
            for part in ("train", "eval")
        )
        common = sorted(train & evaluation)
        if common_rows:
            names = _list([source.infos[row].name for row in common_rows])
            evidence = (
                f"{len(common_rows)} frames are for training and evaluation: {names}"
            )
            advice = (
                "metrics would not measure generalisation: remove them from one part"
            )
            yield Finding("problem", f"split {split}", evidence, advice)
        if common:
            evidence = f"{len(common)} scenes are in both parts: {_list(common)}"
            advice = "metrics would be too good: put each scene into one part only"
            yield Finding("problem", f"split {split}", evidence, advice)
        if not common_rows and not common and train and evaluation:
            evidence = f"none of {len(evaluation)} scenes for evaluation is in training"
            yield Finding("ok", f"split {split}", evidence)


def _test_scenes(inspection: Inspection) -> Iterator[Finding]:
    """Training folders with scenes of NYU's official test frames."""
    infos = inspection.source.infos
    train = {
        row for parts in inspection.source.splits().values() for row in parts["train"]
    }
    # Frames of the labeled set are covered by the official split.
    scenes: dict[str, set[str]] = {}
    for row in train:
        folder, scene = infos[row].scene, scene_of(inspection.source, row)
        if infos[row].official_index is None and folder and scene:
            scenes.setdefault(scene, set()).add(folder)
    tested = [scene for scene in scenes if splits.is_test_scene(scene)]
    folders = sorted(folder for scene in tested for folder in scenes[scene])
    if tested:
        # Data with test scenes only are most likely meant for evaluation.
        level = "problem" if len(tested) < len(scenes) else "warning"
        share = f"{len(tested)} of {len(scenes)} training scenes"
        evidence = f"{share} are in NYU's test set: {_list(folders)}"
        advice = "leave them out, or do not evaluate on the official test frames"
        yield Finding(level, "official test scenes", evidence, advice)


def _copies(inspection: Inspection) -> Iterator[Finding]:
    for split, pairs in inspection.copies.items():
        named = [f"{inspection.name(a)} = {inspection.name(b)}" for a, b in pairs]
        count, listed = len(pairs), _list(named, 3)
        if split is None:
            total = inspection.compared
            if pairs:
                evidence = f"{count} of {total} images are copies of others: {listed}"
                advice = (
                    "consecutive frames of a recording add little: keep every Nth frame"
                )
                yield Finding("warning", "copies", evidence, advice)
            elif total:
                yield Finding("ok", "copies", f"none among {total} images")
        elif pairs:
            evidence = (
                f"{count} evaluation images are copies of training images: {listed}"
            )
            advice = "metrics would be too good: put each image into one part only"
            yield Finding("problem", f"split {split}", evidence, advice)
        else:
            evidence = "no evaluation image is a copy of a training image"
            yield Finding("ok", f"split {split}", evidence)


def _list(names: Sequence[str], most: int = NAMED) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
