"""`jaxdepth prepare-data`: pack a data set into a store, in a folder or at a URL.

    jaxdepth prepare-data nyu_depth_v2_labeled.mat nyu
    jaxdepth prepare-data pairs/ tum --size=120x160 --depth_scale=5000
    jaxdepth prepare-data raw/ gs://bucket/nyu --every=10
    jaxdepth prepare-data raw/ nyu --dry_run

Frames that can't be used are left out and listed. If the command is stopped, the same
command resumes after the last finished shard.
"""

import dataclasses
import logging
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxdepth.commands import cli
from jaxdepth.config import Auto, ReadConfig, StoreConfig, check_max_depth, parse_size
from jaxdepth.data import checks
from jaxdepth.data.doctor import findings
from jaxdepth.data.sources import ReadOptions, open_source
from jaxdepth.data.sources.stored import Stored
from jaxdepth.data.split import HELD_OUT
from jaxdepth.data.store import remote, staging
from jaxdepth.data.store.reader import Store, is_store
from jaxdepth.data.store.writer import Job, Packing
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth prepare-data"
LISTED = 20  # frames listed on the terminal
# For the choice of worker processes: the number of frames to time, the seconds that a
# worker takes to start, and the seconds to return a frame to the parent.
SAMPLE, START_SECONDS, RETURN_SECONDS = 4, 4.0, 0.004


@dataclasses.dataclass(frozen=True)
class PrepareConfig(StoreConfig):
    """Pack images and depth into a store, for --data of jaxdepth run."""

    files: tuple[str, ...] = flag(positional=True)
    """SOURCE OUT: the data to read, and the folder or URL (gs://...) of the store."""
    size: str = "240x320"
    """Size of the stored frames, HEIGHTxWIDTH: 20/19 of --size in training."""
    data_format: str = flag("auto", choices="auto|jaxdepth.data.sources:SOURCES")
    """Format of SOURCE; auto: detected from its content."""
    reading: ReadConfig = ReadConfig()
    every: int = flag(1, at_least=1)
    """Keep every Nth frame of a recorded sequence."""
    doubles: Literal["drop", "keep"] = "drop"
    """Whether to drop images of a raw dump that match several depth maps."""
    max_gap: float | None = flag(None, above=0)
    """Maximum time between image and depth in a raw dump, seconds."""
    variant: Literal["B", "A"] = "B"
    """Release of the NYU toolbox whose projection is used."""
    fill: Literal["none", "colorization", "cross_bf"] = "none"
    """Method to fill holes in projected raw depth."""
    keep_full: Literal["auto", "all", "none"] = "auto"
    """Frames to keep at full size, too, for evaluation and for training at a larger
    --size; auto: those that a split evaluates on, or without such a split all of up to
    1000."""
    workers: int | Auto = flag("auto", at_least=0)
    """Number of worker processes; auto: one per CPU if that is faster than none;
    0: none."""
    dry_run: bool = False
    """Print what would be written, and write nothing."""

    def __post_init__(self):
        flags_lib.validate(self)
        check_max_depth(self.max_depth)

    @property
    def read_options(self) -> ReadOptions:
        """The flags that are read options."""
        names = {field.name for field in dataclasses.fields(ReadOptions)}
        values = flags_lib.as_flat(self)
        return ReadOptions(**{name: values[name] for name in names})


def command(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    flags = flags_lib.parse(PrepareConfig, argv, prog=PROG)
    path, out = _source_and_output(flags)
    source = open_source(
        path, data_format=flags.data_format, options=flags.read_options
    )
    packing = Packing(
        size=parse_size(flags.size),
        mask_extremes=flags.mask_extremes,
        max_depth=flags.max_depth,
        keep_full=flags.keep_full,
        eval_fraction=flags.eval_fraction,
        test_scenes=flags.test_scenes,
        skip_wrong=True,
    )
    job = Job(source, packing, flags.read_options)
    _describe(job)
    if flags.dry_run:
        for note in source.notes:
            logger.info("note: %s", note)
        _print_sizes(job, out)
        return cli.OK
    if (manifest := job.finished(out)) is not None:
        done = "already holds these data with the same options: nothing to do"
        logger.info("%s %s", out, done)
    else:
        counter = FrameCounter()
        workers = choose_workers(job) if flags.workers == "auto" else flags.workers
        manifest = job.write(out, workers=workers, progress=counter)
        _print_summary(manifest, out, counter)
    for kind in manifest["depths"]:
        logger.info("%s", checks.read_line(manifest, kind, where=path))
    written = source if remote.is_remote(out) else Stored(Store.open(out))
    if (problem := findings.misalignment(written, where=path)) is not None:
        logger.warning("%s", problem)
    logger.info("train on it: %s", training_command(manifest, out))
    return cli.OK


def _source_and_output(flags: PrepareConfig) -> tuple[str, str]:
    """Return SOURCE and OUT. Raises UserError if they can't be used together."""
    if len(flags.files) != 2 and not (flags.dry_run and len(flags.files) == 1):
        raise UserError(f"give SOURCE OUT: {len(flags.files)} names were given")
    path, out = flags.files[0], flags.files[-1] if len(flags.files) == 2 else "OUT"
    if remote.is_remote(path):
        raise UserError(f"{path}: data are read from local paths; copy them first")
    if is_store(path):
        raise UserError(f"{path} is a store already: train on it with --data={path}")
    if not remote.is_remote(out):
        folder, root = staging.resolve_output(out, what="OUT"), Path(path)
        if root.is_dir() and folder.resolve().is_relative_to(root.resolve()):
            problem = f"is inside {path}, where its arrays would be read as data"
            raise UserError(f"{out} {problem}: name a folder outside")
    return path, out


def choose_workers(job: Job) -> int:
    """Return the number of CPUs if that many workers are faster than none, else 0.

    Estimated from the time of a few frames, the time to start workers, and the time
    to return packed frames.
    """
    allowed = getattr(os, "sched_getaffinity", None)
    cpus = len(allowed(0)) if allowed is not None else os.cpu_count() or 1
    frames = len(job.source.infos)
    rows = sorted({frames * k // (SAMPLE + 1) for k in range(SAMPLE + 1)})
    job.try_row(rows[0])  # opens files
    began = time.monotonic()
    for row in rows[1:]:
        job.try_row(row)
    serial = (time.monotonic() - began) / max(1, len(rows) - 1) * frames
    parallel = START_SECONDS + max(serial / cpus, RETURN_SECONDS * frames)
    return cpus if cpus > 1 and parallel < serial else 0


class FrameCounter(terminal.Counter):
    """Progress that also records the number of frames packed, and the seconds."""

    def __init__(self):
        super().__init__()
        self._began = time.monotonic()
        self._first: int | None = None
        self.seconds, self.frames = 0.0, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        super().__call__(what, done, total)
        self._first = done if self._first is None else self._first
        self.seconds, self.frames = time.monotonic() - self._began, done - self._first


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
        train, evaluation = len(rows["train"]), len(rows["eval"])
        logger.info("split %s: %d train, %d evaluate", name, train, evaluation)


def _print_sizes(job: Job, out: str) -> None:
    """Print a table of the sizes that would be written, MiB by kind."""
    kinds = job.source.truths
    stored = [(job.packing.size, "", len(job.source.infos))]
    if job.full_rows:
        stored.append((_full_size(job), " (full size)", len(job.full_rows)))
    rows: list[list[Any]] = []
    for (height, width), note, count in stored:
        mib = count * height * width / 2**20  # of one byte per pixel
        columns = [3 * mib, *(2 * mib for _ in kinds)]
        rows.append([f"{height}x{width}{note}", count, *columns, sum(columns)])
    total = [sum(column) for column in zip(*(row[2:] for row in rows), strict=True)]
    rows.append(["total", "", *total])
    terminal.print_table(
        f"size of {out}, if all frames are readable and as large as the first one",
        ["frames of", "number", "rgb MiB", *(f"{kind} MiB" for kind in kinds), "MiB"],
        [[f"{x:.1f}" if isinstance(x, float) else x for x in row] for row in rows],
    )


def _full_size(job: Job) -> tuple[int, int]:
    """Height and width of the first readable frame of which a full size is kept."""
    for row in sorted(job.full_rows):
        try:
            height, width = job.source.frame(row).rgb.shape[:2]
            return height, width
        except UserError:
            continue
    return 0, 0


def _print_summary(manifest: dict[str, Any], out: str, counter: FrameCounter) -> None:
    size = sum(entry["bytes"] for entry in manifest["files"].values())
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
    """List the first names, if there are several; the notes name a single one."""
    if len(names) < 2:
        return
    logger.info("%d frames %s, all named in manifest.json:", len(names), what)
    for name in names[:LISTED]:
        logger.info("  %s", name)
    if len(names) > LISTED:
        logger.info("  and %d more", len(names) - LISTED)


def training_command(manifest: dict[str, Any], out: str) -> str:
    """Return the command that trains on the store, or only evaluates on it.

    PATH stands for data that the store does not contain.
    """
    run = ["jaxdepth", "run"]
    words, (height, width) = [f"--data={out}"], manifest["size"]
    if (height, width) != (240, 320):
        words.append(f"--size={19 * height // 20}x{19 * width // 20}")
    max_depth = manifest.get("options", {}).get("packing", {}).get("max_depth", 10.0)
    limit = [f"--max_depth={max_depth:g}"] if max_depth != 10 else []
    words += limit
    for name in ("own", "official", "tune", HELD_OUT):
        rows = manifest["splits"].get(name)
        if rows is None or not rows["eval"] or not manifest["full"]:
            continue
        if not rows["train"]:
            return shlex.join([*run, "--data=PATH", f"--eval_data={out}", *limit])
        words += ["--split=tune"] if name == "tune" else []
        return shlex.join([*run, *words])
    return shlex.join([*run, *words, "--split=all", "--eval_data=PATH"])
