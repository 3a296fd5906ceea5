"""Evaluation during training: network, baselines and validation loss."""

from typing import TYPE_CHECKING, Any

import jax

from jaxdepth import models
from jaxdepth.evaluation.evaluator import Evaluator, map_variables, predict_map
from jaxdepth.runtime import hosts
from jaxdepth.training import validation_loss
from jaxdepth.training.state import TrainState

if TYPE_CHECKING:
    from jaxdepth.commands.train import Session

EVAL_BATCH = 8


class Scorer:
    """Evaluates the network, and the baselines once, under the run's protocols."""

    def __init__(self, session: "Session"):
        config, model = session.config, session.model

        def predict(variables: Any, rgb: jax.Array) -> jax.Array:
            return models.predict(model, variables, rgb, layout=config.model.layout)

        self.session = session
        self._rows = session.data.eval_rows[hosts.index() :: hosts.count()]
        local = session.placement.local
        options: dict[str, Any] = {
            "share": (hosts.index(), hosts.count()),
            "image_size": config.image_size,
            "given_truth": config.data.depth,
            "camera": session.data.camera(config.frame_size),
            "batch_size": EVAL_BATCH,
            "devices": local if len(local) > 1 else None,
        }
        self._network = Evaluator(
            predict,
            session.protocols,
            arch_fixed=models.arch_named(config.model.arch).fixed_size,
            **options,
        )
        self._maps = Evaluator(predict_map, session.protocols[:1], **options)
        self._loss = validation_loss.ValidationLoss(
            config, model, session.data, devices=local, batch_size=EVAL_BATCH
        )

    def network(self, step: int, state: TrainState) -> list[dict[str, Any]]:
        """Entries of results.json for a step; the first protocol's is last.

        `loss` beside the metrics is the training loss on the evaluation frames.
        """
        scores = self._network(state.variables, self._frames())
        loss = self._loss(state.variables)
        return [
            {"step": step, **entry, "loss": loss}
            for entry in self._entries(self._network, scores)
        ]

    def baselines(self) -> dict[str, dict[str, float | None]]:
        """Metrics of the three baselines, as the first protocol averages them."""
        fitted, size = self.session.baselines, self.session.config.image_size
        metrics = {}
        for name in ("constant", "constant_delta", "mean_map"):
            variables = map_variables(getattr(fitted, name), size)
            scores = self._maps(variables, self._frames())
            metrics[name] = self._entries(self._maps, scores)[-1]["metrics"]
        return metrics

    def _frames(self) -> Any:
        """This host's share of the evaluation frames."""
        return self.session.data.evaluation.full_frames(self._rows)

    def _entries(self, evaluator: Evaluator, scores: Any) -> list[dict]:
        data = self.session.data
        return evaluator.entries(scores, data=data.name, split=data.eval_split)
