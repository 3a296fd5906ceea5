"""Predictions of a finished run on the frames it was evaluated on, for pictures."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from jaxdepth import models
from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import train as train_command
from jaxdepth.commands.finished_runs import Run
from jaxdepth.data import dataset
from jaxdepth.data.store import resample
from jaxdepth.evaluation import protocols
from jaxdepth.evaluation.evaluator import Evaluator
from jaxdepth.evaluation.metrics import METRICS


@dataclasses.dataclass(frozen=True)
class Example:
    """One evaluation frame at its own size.

    Attributes:
      name: of the frame.
      rgb: colours.
      target: truth in metres, 0 = missing.
      pred: metres, of the whole frame as `jaxdepth predict` gives it.
      camera: fx, fy, cx, cy of the frame, pixels; None where the store has none.
    """

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    target: Float[np.ndarray, "h w"]
    pred: Float[np.ndarray, "h w"]
    camera: tuple[float, float, float, float] | None


@dataclasses.dataclass(frozen=True)
class Scored:
    """Every evaluation image under the run's first protocol.

    Attributes:
      entry: the evaluation, as in results.json.
      images: per image `name` and the metrics, in the order of the evaluation frames.
    """

    entry: dict[str, Any]
    images: list[dict[str, Any]]


class Trained:
    """A run's network and the frames it was evaluated on.

    Args:
      run: with its configuration and a checkpoint.
      step: as `predict.load` takes it.
      cache_dir: where prepared data are; None: where the run had them.

    Raises: UserError where configuration, checkpoint or data are not there.
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
        self.predictor = predictor_lib.load(run.workdir.name, step=step)
        self.data = dataset.open_data(config, progress=progress)

    def __len__(self) -> int:
        """How many frames evaluate."""
        return len(self.data.eval_rows)

    def score(self) -> Scored:
        """All frames under the protocol that the run names its numbers by."""
        config, data = self.config, self.data
        evaluator = Evaluator(
            self.predictor.forward,
            train_command.chosen_protocols(config, nyu=data.nyu)[:1],
            image_size=config.image_size,
            arch_fixed=models.arch_named(config.model.arch).fixed_size,
            given_truth=config.data.depth,
        )

        def progress(done: int) -> None:
            if self._progress is not None:
                self._progress("scoring", done, len(self))

        scores = evaluator(self.predictor.variables, data.frames(), progress=progress)
        entries = evaluator.entries(scores, data=data.name, split=data.eval_split)
        found = next(iter(scores.values()))
        return Scored({"step": self.predictor.step, **entries[-1]}, found.table())

    def frames(self, places: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """The evaluation frames at these places, as the store has them."""
        rows = self.data.eval_rows[np.asarray(places, int)]
        return list(self.data.evaluation.full_frames(rows))

    def truth(self, frame: dict[str, Any]) -> Float[np.ndarray, "h w"]:
        """The truth that the run trains on, or else the other kind."""
        kinds = (self.config.data.depth, *self.data.evaluation.depths)
        found = (frame["depth"].get(kind) for kind in kinds)
        return next(depth for depth in found if depth is not None)

    def examples(self, places: Sequence[int] | np.ndarray) -> list[Example]:
        """Frames with their truth and prediction, in the order of `places`."""
        return [
            Example(
                frame["name"],
                frame["rgb"],
                self.truth(frame),
                self.predictor.predict(frame["rgb"]),
                self._camera(frame["rgb"].shape[:2]),
            )
            for frame in self.frames(places)
        ]

    def output(self, rgb: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "i j"]:
        """Metres at the network's own output size, of a whole frame."""
        size = self.predictor.input_size((rgb.shape[0], rgb.shape[1]))
        small = protocols.resize_input(rgb[None].astype(np.float32), size)
        return np.asarray(self.predictor.network(small)[0], np.float32)

    def _camera(
        self, size: tuple[int, int]
    ) -> tuple[float, float, float, float] | None:
        known = self.data.evaluation.manifest.get("intrinsics")
        if known is None:
            return None
        camera = [known[k] for k in ("fx", "fy", "cx", "cy")]
        return resample.frame_intrinsics(camera, tuple(known["size"]), size)


def ranked(images: Sequence[dict[str, Any]], metric: str) -> list[int]:
    """Places of the images from worst to best; those without a value are left out."""
    sign = 1 if METRICS[metric].larger_is_better else -1
    there = [k for k, image in enumerate(images) if image[metric] is not None]
    return sorted(there, key=lambda k: (sign * images[k][metric], k))
