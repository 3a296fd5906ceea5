"""The paper's tables: rows, published numbers, and the runs that reproduce them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jaxdepth.recipes import RECIPES

Scale = Literal["paper", "small", "smoke"]

# Notes under the tables.
NOTES = (
    "The paper's numbers were measured on its own held-out frames of the raw data at "
    "228x304: compare the order of the rows rather than their values.",
    "abs rel is not compared: the paper's 2.4e4 to 4.5e6 come from dividing by ground "
    "truth near zero, which is masked here.",
    "The paper shows two runs twice, and so do these tables: Table 1's CNN is Table "
    "2's scale-invariant row, Table 1's CNN+Res is Table 4's random decoder.",
    "All numbers are those of the last training step; no checkpoint was selected.",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run; rows of several tables may show the same run.

    Attributes:
      recipe: name of its recipe.
      flags: flags that override the recipe.
    """

    recipe: str
    flags: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def init(self) -> str:
        """Its --init; a value other than "random" requires weights for it."""
        return {**RECIPES[self.recipe].flags, **self.flags}.get("init", "random")


RUNS: dict[str, Run] = {
    "cnn_fc": Run("table1_cnn_fc"),
    "cnn": Run("table1_cnn"),
    "cnn_trans": Run("table1_cnn_trans"),
    "upproj_imagenet": Run("table4_imagenet"),
    "upproj_random": Run("table4_imagenet", {"init": "random"}),
    "upproj_nyu": Run("table4_nyu"),
    "cnn_mse": Run("table2_mse"),
    "cnn_berhu": Run("table2_berhu"),
    "unpool_zero": Run("table3_zero"),
    "unpool_average": Run("table3_average"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      label: label of the row, as in the paper.
      run: a key of `RUNS`.
      numbers: the paper's delta1, abs rel and RMSE (m); None for a row that the paper
        does not have.
    """

    label: str
    run: str
    numbers: tuple[float, float, float] | None = None

    @property
    def paper(self) -> dict[str, float] | None:
        """The paper's numbers by metric."""
        if self.numbers is None:
            return None
        return dict(zip(("delta1", "abs_rel", "rmse"), self.numbers, strict=True))


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper."""

    title: str
    rows: tuple[Row, ...]


# Not in the paper: shows what the ImageNet weights contribute.
_UNTRAINED = Row("CNN+Res, encoder random too (ours)", "upproj_random")
TABLES: dict[str, Table] = {
    "1": Table(
        "networks",
        (
            Row("CNN+FC", "cnn_fc", (0.307, 3.4e5, 1.12)),
            Row("CNN", "cnn", (0.195, 1.2e6, 1.22)),
            Row("CNN+trans", "cnn_trans", (0.143, 3.2e5, 1.23)),
            Row("CNN+Res", "upproj_imagenet", (0.634, 2.35e4, 1.74)),
            _UNTRAINED,
        ),
    ),
    "2": Table(
        "losses on cnn",
        (
            Row("mean squared", "cnn_mse", (0.380, 4.52e6, 1.23)),
            Row("scale-invariant", "cnn", (0.195, 1.21e6, 1.22)),
            Row("berHu", "cnn_berhu", (0.352, 1.76e6, 0.98)),
        ),
    ),
    "3": Table(
        "unpooling in upproj",
        (
            Row("zero", "unpool_zero", (0.0537, 1.28e6, 6.18)),
            Row("average", "unpool_average", (0.0557, 1.27e6, 6.37)),
        ),
    ),
    "4": Table(
        "initialisation of upproj",
        (
            Row("random decoder", "upproj_imagenet", (0.634, 2.35e4, 1.74)),
            Row("pretrained on NYU", "upproj_nyu", (0.729, 1.43e6, 0.734)),
            _UNTRAINED,
        ),
    ),
}


def also_in(run: str, table: str) -> list[str]:
    """Other tables that show a run: "Table 2, scale-invariant", "Table 4".

    The label follows if it differs from the label in `table`.
    """
    (label,) = (row.label for row in TABLES[table].rows if row.run == run)
    return [
        f"Table {name}" if row.label == label else f"Table {name}, {row.label}"
        for name, other in TABLES.items()
        for row in other.rows
        if row.run == run and name != table
    ]


_UNPOOL = ("unpool_zero", "unpool_average")
_UPPROJ = ("upproj_imagenet", "upproj_random", "upproj_nyu", *_UNPOOL)

# For real frames on a CPU. All runs of Tables 1, 2 and 4 have the same number of steps
# and images; Table 3 has its 25 images and 120 epochs. Learning rates were chosen on
# held-out scenes. No augmentation: its random scale changes depth, and so few steps do
# not suffice to learn that. Two checkpoints per run, because a checkpoint of upproj
# takes 0.8 GB with its optimizer state.
_SMALL: dict[str, Any] = {
    "size": "57x76",
    "batch_size": 16,
    "steps": 480,
    "train_images": 500,
    "schedule": "cosine",
    "warmup_steps": 20,
    "augment": "none",
    "eval_every": 80,
    "save_every": 240,
}
_SMALL_RATES = {"cnn_fc": {"lr": 3e-4}} | {run: {"lr": 6e-4} for run in _UPPROJ}
_SMALL_UNPOOL = {"train_images": 25, "steps": 188, "eval_every": 47, "save_every": 94}
# For a check on rooms, within minutes, that every row runs; the metrics mean nothing.
_SMOKE: dict[str, Any] = {
    "size": "60x80",
    "rooms": 48,
    "train_images": 32,
    "batch_size": 8,
    "steps": 4,
    "augment": "none",
    "cache": "device",  # so that TensorFlow is not started
    "eval_every": 2,
    "save_every": 4,
}


def scaled(run: str, scale: Scale) -> dict[str, Any]:
    """The flags of a run at a scale, which override its recipe's."""
    if scale == "small":
        unpool = _SMALL_UNPOOL if run in _UNPOOL else {}
        return _SMALL | _SMALL_RATES.get(run, {}) | unpool
    if scale == "smoke":
        return _SMOKE | ({"train_images": 25} if run in _UNPOOL else {})
    return {}
