"""`jaxdepth evaluate`: score a trained network on a data set."""

import csv
import dataclasses
import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from jaxdepth import models
from jaxdepth import predictor as predictor_lib
from jaxdepth.camera import centred
from jaxdepth.commands import summary as summary_lib
from jaxdepth.config import Config, EvaluateConfig, ReadConfig
from jaxdepth.data import dataset
from jaxdepth.data.store import recorded
from jaxdepth.data.store.reader import Store
from jaxdepth.evaluation import bootstrap, metrics, protocols
from jaxdepth.evaluation.evaluator import Evaluator
from jaxdepth.evaluation.scores import Scores
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import jax_setup, output_files, terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import packed
from jaxdepth.workdir import write_json

logger = logging.getLogger(__name__)
# Flags that override the run's flags.
_OVERRIDES = (
    "protocol", "flip_average", "densedepth_rel", "max_depth", "data_format",
    "depth_scale", "depth_code",
)  # fmt: skip
# Those of them that can't change what a store holds.
_READING = ("data_format", "depth_scale", "depth_code")
# Columns of --per_image that describe the evaluation, in addition to the protocol.
_CONDITIONS = ("data", "split", "truth", "size", "flip_average", "abs_rel_over")


@dataclasses.dataclass(frozen=True)
class Scored:
    """The scores of a network.

    Attributes:
      entries: evaluations as in results.json, with `step` and, for the averaging that
        the protocol names, `interval` of `bootstrap.of_one`.
      scores: sums per image, by protocol name.
      protocols: protocols; the first one is shown first.
      checksums: per image, the checksum of its colours ("rgb") and of each kind of
        ground truth.
      notes: notes about the data.
    """

    entries: list[dict[str, Any]]
    scores: dict[str, Scores]
    protocols: tuple[protocols.Protocol, ...]
    checksums: list[dict[str, int]]
    notes: list[str]


def run(config: EvaluateConfig) -> int:
    """Score a network, print the scores and write the files. Returns the exit code."""
    for flag in ("out", "per_image"):
        if (path := getattr(config, flag)) is not None:
            output_files.check_new_file(path, flag=flag)
    if config.out is not None and config.per_image is not None:
        output_files.check_apart(out=config.out, per_image=config.per_image)
    scored = score(config)
    for note in scored.notes:
        logger.info("note: %s", note)
    summary_lib.show_table(scored.entries)
    for entry in reversed(scored.entries):
        if "interval" in entry:
            summary_lib.show_parts(entry)
            summary_lib.show_interval(entry)
    _write(config, scored)
    return 0


def score(config: EvaluateConfig) -> Scored:
    """Load a network and a data set, and score the network on it."""
    jax_setup.enable_compilation_cache(config.cache_dir)
    predictor = predictor_lib.load(config.checkpoint, step=config.step)
    if config.data is None and packed.find(config.checkpoint) is not None:
        raise UserError(
            f"--checkpoint={config.checkpoint} is a packed network, without data: give "
            "--data=PATH"
        )
    trained = predictor.config
    flags = _as_training_flags(config, trained)
    opened, rows, split = _frames(flags, trained, split=config.split)
    if (path := flags.eval.eval_data) is not None and dataset.is_packed(path):
        given = {name: getattr(config, name) for name in _READING}
        given = {name: x for name, x in given.items() if x not in ("auto", None)}
        recorded.check_flags(opened, given, where=path)
    truth = flags.data.depth if flags.data.depth in opened.depths else opened.depths[0]
    chosen = protocols.chosen_protocols(flags, nyu="official" in opened.splits)
    evaluator = Evaluator(
        predictor.forward,
        chosen,
        image_size=trained.image_size,
        arch_fixed=models.arch_named(trained.model.arch).fixed_size,
        given_truth=truth,
        camera=None if config.fx is None else predictor.camera,
        batch_size=config.batch_size,
    )
    logger.info(
        "%s (%s, %s, step %s) on %s, split %s: %d images",
        config.checkpoint,
        trained.model.arch,
        trained.loss.name,
        predictor.step,
        opened.name,
        split,
        len(rows),
    )
    counter = terminal.Counter()
    checksums: list[dict[str, int]] = []
    scores = evaluator(
        predictor.variables,
        _with_checksums(_with_fx(opened.full_frames(rows), config.fx), checksums),
        progress=lambda done: counter("evaluating", done, len(rows)),
    )
    entries = [
        {"step": predictor.step, **entry}
        for entry in evaluator.entries(scores, data=opened.name, split=split)
    ]
    # Each protocol has two entries, its named averaging second; the first is last.
    for protocol, entry in zip(reversed(chosen), entries[1::2], strict=True):
        entry["interval"] = _interval(scores[protocol.name], entry["averaging"])
    notes = list(opened.notes)
    if config.data not in (None, trained.data.path):
        unknown = entries[-1]["camera_factor"]["unknown"]
        notes += _camera_notes(config, predictor, unknown)
    return Scored(entries, scores, chosen, checksums, notes)


def _with_fx(
    frames: Iterator[dict[str, Any]], fx: float | Literal["auto"] | None
) -> Iterator[dict[str, Any]]:
    """Yield the frames, with the camera of a focal length if it is a number."""
    for frame in frames:
        if isinstance(fx, int | float):
            frame["camera"] = centred(fx, fx, frame["rgb"].shape[:2])
        yield frame


def _camera_notes(
    config: EvaluateConfig, predictor: predictor_lib.Predictor, unknown: int
) -> list[str]:
    """Why predictions are not corrected for the focal length, if they are not.

    Args:
      unknown: number of frames that were not corrected.
    """
    if config.fx is None or not unknown:
        return []
    whose = "the training data" if predictor.camera is None else f"{unknown} frames"
    how = "" if predictor.camera is None else "; give --fx=PIXELS"
    return [
        f"the focal length of {whose} is unknown: their predictions are not corrected "
        f"for it{how}"
    ]


def _with_checksums(
    frames: Iterator[dict[str, Any]], checksums: list[dict[str, int]]
) -> Iterator[dict[str, Any]]:
    """Yield the frames; append the checksums of their arrays to `checksums`."""
    for frame in frames:
        arrays = {"rgb": frame["rgb"], **frame["depth"]}
        checksums.append({k: zlib.crc32(x.tobytes()) for k, x in arrays.items()})
        yield frame


def _interval(scores: Scores, averaging: metrics.Averaging) -> dict[str, Any]:
    """Bootstrap intervals over scenes if they are known, else over images."""
    by_scene = bootstrap.over_scenes(scores.sums, scores.scenes)
    resamples = by_scene or bootstrap.over_images(scores.sums)
    return bootstrap.of_one(scores.sums, averaging, resamples)


def _as_training_flags(config: EvaluateConfig, trained: Config) -> Config:
    """The run's flags, overridden by this command's.

    The run's flags for reading data apply unless --data names other data.
    """
    overrides = {name: getattr(config, name) for name in _OVERRIDES}
    values: dict[str, Any] = {"cache_dir": config.cache_dir}
    if config.data is not None and config.data != trained.data.path:
        values |= {"data": config.data, "eval_data": None, "split": "auto"}
        values |= {"data_format": "auto", "protocol": "auto"}
        reading = ReadConfig(allow_outside=trained.data.reading.allow_outside)
        values |= dataclasses.asdict(reading)
        if config.data == "rooms":  # evaluation needs no training rooms
            values["rooms"] = 1
    elif config.data is not None:
        values["eval_data"] = None
    values |= {k: v for k, v in overrides.items() if v not in ("auto", None)}
    return trained.replace(**values)


def _frames(
    flags: Config, trained: Config, *, split: str
) -> tuple[Store, np.ndarray, str]:
    """The store, the rows to score, and the name of their split in the results.

    Args:
      flags: flags of the evaluation; `eval_data`, or else `data`, is scored.
      trained: flags of the run.
      split: value of --split.

    Raises: UserError for a split that the data do not have, or an empty one.
    """
    counter = terminal.Counter()
    # Whether the run's evaluation split is scored. After --split=all there is none.
    same_data = (
        flags.eval.eval_data is None
        and flags.data.path == trained.data.path
        and trained.data.split != "all"
    )
    if flags.data.path == "rooms" and flags.eval.eval_data is None:
        if split != "auto":
            raise UserError(
                f"--split={split}: rooms have their own split; leave --split out"
            )
        opened = dataset.open_rooms(flags, progress=counter)
    elif flags.eval.eval_data is not None:
        opened = dataset.open_other(flags, flags.eval.eval_data, progress=counter)
    else:
        keep = "auto" if same_data and split != "all" else "all"
        opened = dataset.open_store(
            flags, flags.data.path, keep_full=keep, progress=counter
        )
    rows, split = _rows(opened, trained, split=split, same_data=same_data)
    if not len(rows):
        raise UserError(
            f"--split={split}: {opened.name} has no frame to evaluate; give another "
            "split, or --split=all"
        )
    return opened, rows.astype(int), split


def _rows(
    opened: Store, trained: Config, *, split: str, same_data: bool
) -> tuple[np.ndarray, str]:
    """The rows to score, and the name of their split. Raises UserError as `_frames`."""
    if split == "all":
        return np.arange(len(opened)), split
    if split == "auto" and not same_data:
        return dataset.evaluation_rows(opened)
    if split == "auto":
        split = dataset.own_split(trained, opened)
    elif split not in opened.splits:
        have = ", ".join(sorted(opened.splits))
        raise UserError(f"--split={split}: {opened.name} has the splits {have}")
    return np.asarray(opened.splits[split]["eval"]), split


def _write(config: EvaluateConfig, scored: Scored) -> None:
    """Write the files of --out and --per_image."""
    if config.out is not None:
        write_json(config.out, {"evaluations": scored.entries, "notes": scored.notes})
    if config.per_image is not None:
        entries = {entry["protocol"]: entry for entry in scored.entries}
        pairs = zip(entries.items(), reversed(scored.scores.values()), strict=True)
        rows = [
            {"protocol": title, **{k: entry[k] for k in _CONDITIONS}, **row}
            for (title, entry), scores in pairs
            for row in scores.table()
        ]
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        output_files.write_text(config.per_image, text.getvalue())


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags. Returns the exit code."""
    jax_setup.retain_host_memory()
    return run(flags_lib.parse(EvaluateConfig, argv, prog="jaxdepth evaluate"))
