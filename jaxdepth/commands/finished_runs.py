"""Finished runs, read for figures and reports: files, tables and predictions."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxdepth import config as config_lib
from jaxdepth import models
from jaxdepth import predictor as predictor_lib
from jaxdepth.camera import Camera
from jaxdepth.config import Config
from jaxdepth.data import dataset
from jaxdepth.evaluation import protocols
from jaxdepth.evaluation.evaluator import Evaluator
from jaxdepth.evaluation.metrics import METRICS
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import metrics_writer
from jaxdepth.weights import foreign, packed
from jaxdepth.workdir import CONFIG, RESULTS, TABLES, WorkDir


def _is_metrics(value: Any) -> bool:
    """Whether a value is a dict of numbers, or None where a metric is undefined."""
    return isinstance(value, dict) and all(
        x is None or _is_number(x) for x in value.values()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# Values of every evaluation, without which its metrics can't be interpreted.
_TYPES: dict[str, Callable[[Any], bool]] = {
    "step": _is_number,
    "metrics": _is_metrics,
    **dict.fromkeys(
        ("protocol", "averaging", "truth", "data", "split", "size"),
        lambda value: isinstance(value, str),
    ),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a work directory.

    Attributes:
      name: name of the run in figures and reports.
      workdir: its work directory.
      saved: contents of config.json; empty if there is none.
      results: contents of results.json; empty if there is none.
      records: records of metrics.jsonl.
    """

    name: str
    workdir: WorkDir
    saved: dict[str, Any]
    results: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def config(self) -> Config:
        """The configuration that it was trained with. Raises UserError without one."""
        if "config" not in self.saved:
            raise UserError(f"{self.workdir.name} has no {CONFIG}")
        return config_lib.from_json(self.saved["config"])

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The evaluations of results.json."""
        return self.results.get("evaluations", [])

    def flag(self, name: str) -> Any:
        """The value of a flag of its configuration, None if unknown."""
        return self.saved.get("config", {}).get(name)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The runs and tables in the folders that a command was given.

    Attributes:
      runs: each run once, in order; for each row of a table its first finished seed.
      tables: contents of tables.json by folder.
    """

    runs: list[Run]
    tables: dict[str, dict[str, Any]]


def find(names: Sequence[str]) -> Selection:
    """Read runs from their work directories, and from folders of tables.

    Raises: UserError if a folder is neither, or if one of its files is damaged.
    """
    runs: list[Run] = []
    tables: dict[str, dict[str, Any]] = {}
    for name in names:
        workdir = WorkDir.open(name)
        if (workdir.local / TABLES).exists():
            tables[name] = workdir.read_json(TABLES)
            runs += _runs_of_tables(name, tables[name])
        else:
            runs.append(read(name))
    return Selection(list({run.workdir.name: run for run in runs}.values()), tables)


def read(folder: str, *, name: str | None = None) -> Run:
    """Read a run from its work directory.

    Args:
      folder: work directory.
      name: name in figures and reports; default: the folder.

    Raises: UserError if the folder is not a work directory, or a file is damaged.
    """
    foreign.refuse(folder)
    if packed.find(folder) is not None:
        raise UserError(
            f"{folder} is a packed network, without curves and data: give the work "
            "directory of its run"
        )
    workdir = WorkDir.open(folder)
    existing = {file for file in (CONFIG, RESULTS) if (workdir.local / file).exists()}
    if not existing:
        raise UserError(
            f"{folder} is not the work directory of a run or of tables: it has no "
            f"{CONFIG}, {RESULTS} or {TABLES}"
        )
    saved, results = (
        workdir.read_json(file) if file in existing else {}
        for file in (CONFIG, RESULTS)
    )
    if not isinstance(saved.get("config", {}), dict):
        raise UserError(
            f"{folder}/{CONFIG} is damaged: its config is not a JSON object"
        )
    entries = results.get("evaluations", [])
    if not isinstance(entries, list):
        raise UserError(
            f"{folder}/{RESULTS} is damaged: its evaluations are not a list"
        )
    for entry in entries:
        check_evaluation(entry, f"{folder}/{RESULTS}")
    records = metrics_writer.read_metrics(workdir.local)
    return Run(name or folder, workdir, saved, results, records)


def check_evaluation(entry: Any, where: str) -> None:
    """Raise UserError if an evaluation lacks a key, or a value has another type."""
    values = entry if isinstance(entry, dict) else {}
    wrong = sorted(k for k, kind in _TYPES.items() if not kind(values.get(k)))
    if wrong:
        raise UserError(
            f"{where} holds an evaluation without {', '.join(wrong)}: it is damaged, "
            "or was written by another version"
        )


def _runs_of_tables(folder: str, tables: dict[str, Any]) -> list[Run]:
    """The first finished seed of each row of these tables."""
    labels: dict[str, str] = {}
    try:
        for table in tables.get("tables", ()):
            for row in table["rows"]:
                done = [s for s in row["seeds"] if s.get("evaluation")]
                if done:
                    workdir = f"{folder.rstrip('/')}/{done[0]['workdir']}"
                    label = f"{row['label']}, table {table['table']}"
                    labels.setdefault(workdir, label)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}/{TABLES} is damaged: {error!r}") from None
    return [read(workdir, name=label) for workdir, label in labels.items()]


@dataclasses.dataclass(frozen=True)
class Example:
    """One evaluation frame at its full size, with its prediction.

    Attributes:
      name: name of the frame.
      rgb: colours.
      target: ground truth, metres, 0 if missing.
      pred: prediction, metres, for the whole frame as `jaxdepth predict` makes it.
      camera: of the frame; None if it is unknown.
    """

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    target: Float[np.ndarray, "h w"]
    pred: Float[np.ndarray, "h w"]
    camera: Camera | None


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """Scores of all evaluation frames under the run's first protocol.

    Attributes:
      entry: the evaluation, as in results.json.
      images: `name` and metrics of each image, in the order of the evaluation frames.
    """

    entry: dict[str, Any]
    images: list[dict[str, Any]]


class TrainedRun:
    """The network of a run and its evaluation frames.

    Args:
      run: a run with a configuration and a checkpoint.
      step: step of the checkpoint, as in `jaxdepth.load`.
      cache_dir: folder of prepared data and compiled programs; default: the run's.
      progress: called with a label, the number done and the total.

    Raises: UserError if configuration, checkpoint or data are missing.
    """

    def __init__(
        self,
        run: Run,
        *,
        step: str | int = "best",
        cache_dir: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ):
        config = run.config
        if cache_dir is not None:
            config = config.replace(cache_dir=cache_dir)
        self.config, self._progress = config, progress
        self.predictor = predictor_lib.load(
            run.workdir.name, step=step, cache_dir=config.data.cache_dir
        )
        self.data = dataset.open_data(config, training=False, progress=progress)

    def __len__(self) -> int:
        """Number of evaluation frames."""
        return len(self.data.eval_rows)

    def score(self) -> ImageScores:
        """Score all evaluation frames under the run's first protocol."""
        config, data = self.config, self.data
        evaluator = Evaluator(
            self.predictor.forward,
            protocols.chosen_protocols(config, nyu=data.nyu)[:1],
            image_size=config.image_size,
            arch_fixed=models.arch_named(config.model.arch).fixed_size,
            given_truth=config.data.depth,
            camera=self.predictor.camera,
        )

        def progress(done: int) -> None:
            if self._progress is not None:
                self._progress("scoring", done, len(self))

        scores = evaluator(self.predictor.variables, data.frames(), progress=progress)
        entries = evaluator.entries(scores, data=data.name, split=data.eval_split)
        (first,) = scores.values()
        return ImageScores({"step": self.predictor.step, **entries[-1]}, first.table())

    def frames(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The evaluation frames at these indices, at their full size."""
        rows = self.data.eval_rows[np.asarray(indices, int)]
        return list(self.data.evaluation.full_frames(rows))

    def target(self, frame: dict[str, Any]) -> Float[np.ndarray, "h w"]:
        """The ground truth of a frame; the kind used for training if available."""
        kinds = (self.config.data.depth, *self.data.evaluation.depths)
        depths = (frame["depth"].get(kind) for kind in kinds)
        return next(depth for depth in depths if depth is not None)

    def examples(self, indices: Sequence[int] | np.ndarray) -> list[Example]:
        """The evaluation frames at these indices, with ground truth and prediction."""
        return [
            Example(
                frame["name"],
                frame["rgb"],
                self.target(frame),
                self.predictor.predict_frame(frame),
                frame["camera"],
            )
            for frame in self.frames(indices)
        ]

    def output(self, rgb: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "i j"]:
        """The prediction for a whole frame, metres, at the network's output size."""
        size = self.predictor.input_size((rgb.shape[0], rgb.shape[1]))
        small = protocols.resize_input(rgb[None].astype(np.float32), size)
        return np.asarray(self.predictor.network(small)[0], np.float32)


def worst_first(images: Sequence[dict[str, Any]], metric: str) -> list[int]:
    """Indices of the images from worst to best, without those of undefined metric."""
    sign = 1 if METRICS[metric].larger_is_better else -1
    defined = [k for k, image in enumerate(images) if image[metric] is not None]
    return sorted(defined, key=lambda k: (sign * images[k][metric], k))
