"""Any data that training reads, packed once into a store: in a folder or at a URL.

    jaxdepth prepare-data nyu_depth_v2_labeled.mat nyu
    jaxdepth prepare-data pairs/ tum --size=120x160 --depth_scale=5000
    jaxdepth prepare-data raw/ gs://bucket/nyu --every=10
    jaxdepth prepare-data raw/ nyu --dry_run

Frames that can't be used are left out and listed. A call that was stopped goes on
after its last finished shard when it is given again.
"""

import dataclasses
import logging
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxdepth import config
from jaxdepth.commands import cli
from jaxdepth.config import Auto
from jaxdepth.data.sources import ReadOptions, open_source
from jaxdepth.data.store import remote, staging
from jaxdepth.data.store.reader import is_store
from jaxdepth.data.store.writer import Job, Packing
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth prepare-data"
LISTED = 20  # frames named on the terminal
# Of processes that read: frames timed to choose, seconds until the first one works, and
# seconds that a frame costs on its way back.
SAMPLE, START_SECONDS, SECONDS_BACK = 4, 4.0, 0.004


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Pack images and depth into a store, which --data= of jaxdepth run takes."""

    files: tuple[str, ...] = flag(positional=True)
    """SOURCE OUT: what to read, and the folder or URL (gs://...) of the store."""
    size: str = "240x320"
    """Stored frames, HEIGHTxWIDTH: 20/19 of the --size that a network trains at."""
    data_format: str = flag("auto", choices="auto|jaxdepth.data.sources:FORMATS")
    """What SOURCE is, where its content should not decide."""
    depth_scale: float | None = flag(None, above=0)
    """Stored units per metre in depth files; default 1000 for PNG, 1 for npy."""
    every: int = flag(1, at_least=1)
    """Of a recorded sequence, one frame out of so many."""
    doubles: Literal["drop", "keep"] = "drop"
    """Of a raw dump, images that several depth maps are matched with."""
    max_gap: float | None = flag(None, above=0)
    """Of a raw dump, the largest time between image and depth, seconds."""
    variant: Literal["B", "A"] = "B"
    """Release of the NYU toolbox whose projection is followed."""
    fill: Literal["none", "colorization", "cross_bf"] = "none"
    """How holes in projected raw depth are filled."""
    mask_extremes: Literal["auto", "on", "off"] = "auto"
    """Leave out each image's own smallest and largest depth, as the paper does;
    auto: on for raw depth, off for filled."""
    max_depth: float = 10.0
    """Metres; farther truth is none for --mask_extremes."""
    keep_full: Literal["auto", "all", "none"] = "auto"
    """Frames kept at full size, too, to evaluate on; auto: those that a split
    evaluates on, or where none does all of up to 1000."""
    workers: int | Auto = flag("auto", at_least=0)
    """Processes that read and pack; auto: one per CPU where that is quicker than
    reading here, which 0 does."""
    dry_run: bool = False
    """Say what would be written, and write nothing."""

    def __post_init__(self):
        flags_lib.validate(self)
        if self.max_depth > 65.535:
            raise UserError(
                f"--max_depth={self.max_depth}: at most 65.535 m, what uint16 mm hold"
            )

    @property
    def read_options(self) -> ReadOptions:
        names = [field.name for field in dataclasses.fields(ReadOptions)]
        return ReadOptions(**{name: getattr(self, name) for name in names})


def command(argv: Sequence[str]) -> int:
    """Prepare as the flags say; returns the exit code."""
    flags = flags_lib.parse(PrepareConfig, argv, prog=PROG)
    path, out = _names(flags)
    source = open_source(
        path, data_format=flags.data_format, options=flags.read_options
    )
    job = Job(
        source,
        Packing(
            size=config.parse_size(flags.size),
            mask_extremes=flags.mask_extremes,
            max_depth=flags.max_depth,
            keep_full=flags.keep_full,
            skip_wrong=True,
        ),
        flags.read_options,
    )
    _describe(job)
    if flags.dry_run:
        for note in source.notes:
            logger.info("note: %s", note)
        _say_sizes(job, out)
        return cli.OK
    if (manifest := job.finished(out)) is not None:
        logger.info(
            "%s holds these data already, with the same options: nothing to do",
            out,
        )
    else:
        counter = Rate()
        workers = workers_for(job) if flags.workers == "auto" else flags.workers
        manifest = job.write(out, workers=workers, progress=counter)
        _summarise(manifest, out, counter)
    logger.info("train on it: %s", training_command(manifest, out))
    return cli.OK


def _names(flags: PrepareConfig) -> tuple[str, str]:
    """SOURCE and OUT. UserError where they make no sense together."""
    if len(flags.files) != 2 and not (flags.dry_run and len(flags.files) == 1):
        raise UserError(f"give SOURCE OUT: {len(flags.files)} names were given")
    path, out = flags.files[0], flags.files[-1] if len(flags.files) == 2 else "OUT"
    if remote.is_remote(path):
        raise UserError(f"{path}: data are read from local paths; copy them first")
    if is_store(path):
        raise UserError(f"{path} is a store already: train on it with --data={path}")
    if not remote.is_remote(out):
        place, root = staging.folder_of(out, what="OUT"), Path(path)
        if root.is_dir() and place.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{out} lies in {path}, where its arrays would count as data: name a "
                "place outside"
            )
    return path, out


def workers_for(job: Job) -> int:
    """One process per CPU where that is quicker than none, by the time of some frames.

    A process takes seconds to start, and what it packed has to come back.
    """
    allowed = getattr(os, "sched_getaffinity", None)
    cpus = len(allowed(0)) if allowed is not None else os.cpu_count() or 1
    frames = len(job.source.infos)
    rows = sorted({frames * k // (SAMPLE + 1) for k in range(SAMPLE + 1)})
    job.try_row(rows[0])  # opens files
    began = time.monotonic()
    for row in rows[1:]:
        job.try_row(row)
    work = (time.monotonic() - began) / max(1, len(rows) - 1) * frames
    apart = START_SECONDS + max(work / cpus, SECONDS_BACK * frames)
    return cpus if cpus > 1 and apart < work else 0


class Rate(terminal.Counter):
    """Progress that also knows how many frames went through it, and in what time."""

    def __init__(self):
        super().__init__()
        self._began = time.monotonic()
        self.before: int | None = None
        self.seconds, self.frames = 0.0, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        super().__call__(what, done, total)
        self.before = done if self.before is None else self.before
        self.seconds, self.frames = time.monotonic() - self._began, done - self.before


def _describe(job: Job) -> None:
    source = job.source
    scenes = {info.scene for info in source.infos} - {None}
    logger.info(
        "%s: format %s, %d frames%s, %s depth",
        source.name,
        source.format,
        len(source.infos),
        f" of {len(scenes)} scenes" if scenes else "",
        " and ".join(source.truths),
    )
    for name, rows in job.splits.items():
        logger.info(
            "split %s: %d train, %d evaluate",
            name,
            len(rows["train"]),
            len(rows["eval"]),
        )


def _say_sizes(job: Job, out: str) -> None:
    """A table of what would be written, MiB by kind."""
    height, width = job.packing.size
    rows = [_sizes(f"{height}x{width}", job, len(job.source.infos), height * width)]
    if job.full_rows:
        height, width = _full_size(job)
        size = f"{height}x{width} (full size)"
        rows.append(_sizes(size, job, len(job.full_rows), height * width))
    total = [sum(column) for column in zip(*(row[2:] for row in rows), strict=True)]
    rows.append(["together", "", *total])
    terminal.print_table(
        f"{out} would hold, if all frames can be read and have the first one's size",
        [
            "frames of",
            "number",
            *(f"{k} MiB" for k in ("rgb", *job.source.truths)),
            "MiB",
        ],
        [[f"{x:.1f}" if isinstance(x, float) else x for x in row] for row in rows],
    )


def _sizes(name: str, job: Job, count: int, pixels: int) -> list[Any]:
    mib = [
        count * pixels * each / 2**20 for each in (3, *(2 for _ in job.source.truths))
    ]
    return [name, count, *mib, sum(mib)]


def _full_size(job: Job) -> tuple[int, int]:
    """Height and width of the first frame that is kept at full size."""
    for row in sorted(job.full_rows):
        try:
            height, width = job.source.frame(row).rgb.shape[:2]
            return height, width
        except UserError:
            continue
    return 0, 0


def _summarise(manifest: dict[str, Any], out: str, counter: Rate) -> None:
    size = sum(known["bytes"] for known in manifest["files"].values())
    logger.info(
        "%s: %d frames of %s, %d of them at full size too, %.1f MiB; %d packed now in "
        "%.1f s, %.1f frames/s",
        out,
        manifest["count"],
        "x".join(map(str, manifest["size"])),
        sum(map(len, manifest["full"].values())),
        size / 2**20,
        counter.frames,
        counter.seconds,
        counter.frames / max(counter.seconds, 1e-9),
    )
    for note in manifest["notes"]:
        logger.info("note: %s", note)
    _list("can't be used", [f"{b['name']}: {b['reason']}" for b in manifest["broken"]])
    _list("have no depth", manifest["left_out"])


def _list(what: str, names: list[str]) -> None:
    """The first frames of a kind; one alone stands in the notes already."""
    if len(names) < 2:
        return
    logger.info("%d frames %s, all named in manifest.json:", len(names), what)
    for name in names[:LISTED]:
        logger.info("  %s", name)
    if len(names) > LISTED:
        logger.info("  and %d more", len(names) - LISTED)


def training_command(manifest: dict[str, Any], out: str) -> str:
    """The command that trains on the store, or evaluates on it where none of it trains.

    PATH stands for the data that it lacks.
    """
    run = ["jaxdepth", "run"]
    words, (height, width) = [f"--data={out}"], manifest["size"]
    if (height, width) != (240, 320):
        words.append(f"--size={19 * height // 20}x{19 * width // 20}")
    for name in ("own", "official", "tune"):
        rows = manifest["splits"].get(name)
        if rows is None or not rows["eval"] or not manifest["full"]:
            continue
        if not rows["train"]:
            return shlex.join([*run, "--data=PATH", f"--eval_data={out}"])
        words += ["--split=tune"] if name == "tune" else []
        return shlex.join([*run, *words])
    return shlex.join([*run, *words, "--split=all", "--eval_data=PATH"])
