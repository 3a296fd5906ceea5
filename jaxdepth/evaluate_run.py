"""A trained network on a data set: what `experiments.evaluate` does."""

import csv
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from jaxdepth import datasets, evaluate, predict, session, writers
from jaxdepth.config import Config, EvaluateConfig
from jaxdepth.data import store
from jaxdepth.errors import MachineError, UserError
from jaxdepth.workdir import plain

logger = logging.getLogger(__name__)


def run(config: EvaluateConfig) -> int:
    """Score, print, and write what was asked for; returns the exit code."""
    for flag in ("out", "per_image"):
        path = getattr(config, flag)
        if path is not None and Path(path).exists():
            raise UserError(f"--{flag}={path} exists: name another file")
    predictor = predict.load(config.checkpoint, step=config.step)
    trained = predictor.config
    flags = _as_training_flags(config, trained)
    opened, rows, split = _frames(flags, trained, given=config.data is not None)
    truth = flags.depth if flags.depth in opened.depths else opened.depths[0]
    nyu = "official" in opened.splits
    scored = evaluate.Evaluator(
        predictor.forward,
        session.chosen_protocols(flags, nyu=nyu),
        image_size=trained.image_size,
        arch_fixed=trained.arch == "cnn_fc",
        given_truth=truth,
        batch_size=config.batch_size,
    )
    logger.info(
        "%s (%s, %s, step %s) on %s, split %s: %d images",
        config.checkpoint,
        trained.arch,
        trained.loss,
        predictor.step,
        opened.name,
        split,
        len(rows),
    )
    counter = writers.Counter()
    scores = scored(
        predictor.variables,
        opened.full_frames(rows),
        progress=lambda done: counter("evaluating", done, len(rows)),
    )
    entries = [
        {"step": predictor.step, **entry}
        for entry in scored.entries(scores, data=opened.name, split=split)
    ]
    session.show_table(entries)
    for entry in entries[::2]:
        for note in entry["notes"]:
            logger.info("note: %s: %s", entry["protocol"], note)
    _write(config, entries, scores)
    return 0


def _as_training_flags(config: EvaluateConfig, trained: Config) -> Config:
    """The run's own flags with this command's in their places."""
    values: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            "data_format", "depth_scale", "protocol", "flip_average",
            "densedepth_rel", "max_depth", "cache_dir", "split",
        )
    }  # fmt: skip
    if config.data is not None:
        values |= {"data": config.data, "eval_data": None}
    else:
        # The run's own data: read as the run read them.
        values |= {
            "data_format": trained.data_format,
            "depth_scale": trained.depth_scale,
        }
        if config.split == "auto":
            values["split"] = trained.split
    if values.get("data", trained.data) == "rooms" and values["split"] == "all":
        values["split"] = "auto"
    return dataclasses.replace(trained, **values)


def _frames(
    flags: Config, trained: Config, *, given: bool
) -> tuple[store.Store, np.ndarray, str]:
    """The store, the rows to score, and what results call their split."""
    if flags.data == "rooms":
        opened = datasets.open_rooms(
            dataclasses.replace(flags, rooms=32 if trained.rooms == "auto" else
                                trained.rooms),
            progress=writers.Counter(),
        )  # fmt: skip
        return opened, np.asarray(opened.splits["own"]["eval"]), "own"
    path = flags.data if given or flags.eval_data is None else flags.eval_data
    keep = "all" if flags.split == "all" or path != trained.data else "auto"
    opened = datasets.open_store(
        flags, path, keep_full=keep, progress=writers.Counter()
    )
    if flags.split not in ("auto", "all"):
        if flags.split not in opened.splits:
            have = ", ".join(sorted(opened.splits))
            raise UserError(f"--split={flags.split}: {opened.name} allows {have}")
        rows = np.asarray(opened.splits[flags.split]["eval"])
        split = flags.split
    elif flags.split == "all":
        rows, split = np.arange(len(opened)), "all"
    else:
        rows, split = datasets.evaluation_rows(opened)
    rows = rows.astype(int)
    if not len(rows):
        raise UserError(
            f"--split={split} of {opened.name} has no frame to evaluate: name another, "
            "or --split=all"
        )
    return opened, rows, split


def _write(config: EvaluateConfig, entries: list[dict], scores: Any) -> None:
    try:
        if config.out is not None:
            text = json.dumps(plain({"evaluations": entries}), indent=1)
            with writers.replacing(Path(config.out)) as file:
                file.write(text.encode() + b"\n")
        if config.per_image is not None:
            rows = [
                {"protocol": name, **row}
                for name, found in scores.items()
                for row in found.table()
            ]
            with open(config.per_image, "x", newline="") as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
    except OSError as error:
        raise MachineError(f"{error.filename}: {error.strerror}") from error
