"""A trained network on a data set: what `jaxdepth evaluate` does."""

import csv
import dataclasses
import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxdepth import models
from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands import train as train_command
from jaxdepth.config import Config, EvaluateConfig
from jaxdepth.data import dataset
from jaxdepth.data.store.reader import Store
from jaxdepth.evaluation import bootstrap, metrics, protocols
from jaxdepth.evaluation.evaluator import Evaluator, Scores
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import jax_setup, output_files, terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.workdir import write_json

logger = logging.getLogger(__name__)
# Flags that win over the run's own where they are given.
_GIVEN = (
    "protocol", "flip_average", "densedepth_rel", "max_depth", "data_format",
    "depth_scale",
)  # fmt: skip
# What each line of --per_image was measured by, beside its protocol.
_SAID = ("data", "split", "truth", "size", "flip_average", "abs_rel_over")


@dataclasses.dataclass(frozen=True)
class Scored:
    """A network's scores.

    Attributes:
      entries: as in results.json, with `step` and, in the averaging that each
        protocol names, `interval` of `bootstrap.of_one`.
      scores: sums per image, by protocol name.
      protocols: the first one's number is shown first.
      checksums: of each image, under "rgb", and of its truth, by kind.
      notes: what a reader must know of the data.
    """

    entries: list[dict[str, Any]]
    scores: dict[str, Scores]
    protocols: tuple[protocols.Protocol, ...]
    checksums: list[dict[str, int]]
    notes: list[str]


def run(config: EvaluateConfig) -> int:
    """Score, print, and write what was asked for; returns the exit code."""
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
    for entry in scored.entries[::2]:
        for note in entry["notes"]:
            logger.info("note: %s: %s", entry["protocol"], note)
    _write(config, scored)
    return 0


def score(config: EvaluateConfig) -> Scored:
    """Load a network and the data, and score it on them."""
    jax_setup.enable_compilation_cache(config.cache_dir)
    predictor = predictor_lib.load(config.checkpoint, step=config.step)
    trained = predictor.config
    flags = _as_training_flags(config, trained)
    opened, rows, split = _frames(flags, trained, split=config.split)
    truth = flags.data.depth if flags.data.depth in opened.depths else opened.depths[0]
    chosen = train_command.chosen_protocols(flags, nyu="official" in opened.splits)
    evaluator = Evaluator(
        predictor.forward,
        chosen,
        image_size=trained.image_size,
        arch_fixed=models.arch_named(trained.model.arch).fixed_size,
        given_truth=truth,
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
        _summed(opened.full_frames(rows), checksums),
        progress=lambda done: counter("evaluating", done, len(rows)),
    )
    entries = [
        {"step": predictor.step, **entry}
        for entry in evaluator.entries(scores, data=opened.name, split=split)
    ]
    # Two entries a protocol, the named averaging second, the first protocol last.
    for protocol, entry in zip(reversed(chosen), entries[1::2], strict=True):
        entry["interval"] = _interval(scores[protocol.name], entry["averaging"])
    return Scored(entries, scores, chosen, checksums, opened.notes)


def _summed(
    frames: Iterator[dict[str, Any]], checksums: list[dict[str, int]]
) -> Iterator[dict[str, Any]]:
    """The frames, while a checksum of each of their arrays is appended."""
    for frame in frames:
        arrays = {"rgb": frame["rgb"], **frame["depth"]}
        checksums.append({k: zlib.crc32(x.tobytes()) for k, x in arrays.items()})
        yield frame


def _interval(found: Scores, averaging: metrics.Averaging) -> dict[str, Any]:
    """Over scenes where they are known, else over images."""
    by_scene = bootstrap.over_scenes(found.sums, found.scenes)
    how = by_scene or bootstrap.over_images(found.sums)
    return bootstrap.of_one(found.sums, averaging, how)


def _as_training_flags(config: EvaluateConfig, trained: Config) -> Config:
    """The run's own flags with this command's in their places.

    Its own data, named again or not, are read as the run read them.
    """
    given = {name: getattr(config, name) for name in _GIVEN}
    values: dict[str, Any] = {"cache_dir": config.cache_dir}
    if config.data is not None and config.data != trained.data.path:
        values |= {"data": config.data, "eval_data": None, "split": "auto"}
        values |= {"data_format": "auto", "depth_scale": None, "protocol": "auto"}
        if config.data == "rooms":  # the network saw none: as few as there can be
            values["rooms"] = 1
    elif config.data is not None:
        values["eval_data"] = None
    values |= {k: v for k, v in given.items() if v not in ("auto", None)}
    return trained.replace(**values)


def _frames(
    flags: Config, trained: Config, *, split: str
) -> tuple[Store, np.ndarray, str]:
    """The store, the rows to score, and what results call their split.

    Args:
      flags: whose `eval_data`, or else `data`, are scored.
      split: as the flag has it.
    """
    counter = terminal.Counter()
    own = flags.eval.eval_data is None and flags.data.path == trained.data.path
    # Of data that all trained there is no other part to take.
    own = own and trained.data.split != "all"
    if flags.data.path == "rooms" and flags.eval.eval_data is None:
        if split != "auto":
            raise UserError(f"--split={split}: rooms have their own; leave --split out")
        opened = dataset.open_rooms(flags, progress=counter)
    elif flags.eval.eval_data is not None:
        opened = dataset.open_other(flags, flags.eval.eval_data, progress=counter)
    else:
        keep = "auto" if own and split != "all" else "all"
        opened = dataset.open_store(
            flags, flags.data.path, keep_full=keep, progress=counter
        )
    if split == "all":
        rows = np.arange(len(opened))
    elif split != "auto":
        if split not in opened.splits:
            have = ", ".join(sorted(opened.splits))
            raise UserError(f"--split={split}: {opened.name} allows {have}")
        rows = np.asarray(opened.splits[split]["eval"])
    elif own:
        split = dataset.own_split(trained, opened)
        rows = np.asarray(opened.splits[split]["eval"])
    else:
        rows, split = dataset.evaluation_rows(opened)
    if not len(rows):
        raise UserError(
            f"--split={split} of {opened.name} has no frame to evaluate: name another, "
            "or --split=all"
        )
    return opened, rows.astype(int), split


def _write(config: EvaluateConfig, scored: Scored) -> None:
    if config.out is not None:
        write_json(config.out, {"evaluations": scored.entries, "notes": scored.notes})
    if config.per_image is not None:
        said = {entry["protocol"]: entry for entry in scored.entries}
        rows = [
            {
                "protocol": title,
                **{k: said[title][k] for k in _SAID},
                **row,
            }
            for title, found in zip(said, reversed(scored.scores.values()), strict=True)
            for row in found.table()
        ]
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        output_files.write_text(config.per_image, text.getvalue())


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags; returns the exit code."""
    jax_setup.retain_host_memory()
    return run(flags_lib.parse(EvaluateConfig, argv, prog="jaxdepth evaluate"))
