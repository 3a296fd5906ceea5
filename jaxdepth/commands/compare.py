"""Is run A better than run B: what `jaxdepth compare` does."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxdepth.commands import evaluate as evaluate_command
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands.evaluate import Scored
from jaxdepth.config import EvaluateConfig
from jaxdepth.evaluation import bootstrap
from jaxdepth.evaluation.evaluator import Scores
from jaxdepth.evaluation.metrics import METRICS
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files, terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag
from jaxdepth.workdir import write_json

logger = logging.getLogger(__name__)
COLUMNS = ("A", "B", "A - B", "from", "to", "A better in")
# What has to be the same of two numbers that are compared.
_SAME = (
    "protocol", "averaging", "truth", "data", "split", "frame_size", "images",
    "flip_average", "abs_rel_over",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Score two runs on the same images, and say how sure their difference is.

    Images, and where they are known whole scenes, are drawn with replacement, the same
    ones for both runs.
    """

    runs: tuple[str, ...] = flag(positional=True)
    """Work directories of run A and of run B."""
    step: str = "best"
    """best, last or the number of a step."""
    data: str | None = None
    """rooms, or a path as for training; default: what the runs evaluated on."""
    split: Literal["auto", "official", "tune", "report", "all"] = "auto"
    """Whose evaluation frames to take; auto: as the runs did."""
    protocol: Literal["auto", "laina", "eigen", "densedepth", "plain", "all"] = "auto"
    """How predictions are scored; auto: as the runs did."""
    flip_average: Literal["auto", "on", "off"] = "auto"
    """Average with the mirrored image's prediction; auto: as the runs did."""
    batch_size: int = 8
    """Images at a time."""
    cache_dir: str = "~/.cache/jaxdepth"
    """Where prepared data are kept."""
    resamples: int = bootstrap.RESAMPLES
    """Draws of the bootstrap."""
    seed: int = 0
    """Of the draws."""
    out: str | None = None
    """A JSON file for the numbers; an existing one is not overwritten."""

    def __post_init__(self):
        if self.resamples < 1:
            raise UserError(f"--resamples={self.resamples}: must be at least 1")
        if self.seed < 0:
            raise UserError(f"--seed={self.seed}: must be at least 0")


def run(config: CompareConfig) -> int:
    """Score, compare, print and write; returns the exit code.

    Raises UserError unless both were scored on the same images in the same way.
    """
    if len(config.runs) != 2:
        raise UserError("give two work directories: those of run A and of run B")
    if config.out is not None:
        output_files.check_new_file(config.out, flag="out")
    a, b = (evaluate_command.score(_evaluation(config, name)) for name in config.runs)
    refuse_different(a, b)
    for note in dict.fromkeys([*a.notes, *b.notes]):
        logger.info("note: %s", note)
    compared = []
    for protocol, entry in zip(reversed(a.protocols), a.entries[1::2], strict=True):
        pair = a.scores[protocol.name], b.scores[protocol.name]
        for found in compare(*pair, entry["averaging"], config):
            said = {k: entry[k] for k in _SAME}
            names = {"a": config.runs[0], "b": config.runs[1]}
            of = {"step_of": _of(a, b, "step"), "size_of": _of(a, b, "size")}
            compared.append(names | said | of | found)
            _show(compared[-1], summary_lib.scored_by(entry))
    if config.out is not None:
        write_json(config.out, {"comparisons": compared})
    return 0


def _of(a: Scored, b: Scored, key: str) -> dict[str, Any]:
    """What each of the two networks has as its own: a step, the size trained at."""
    return {"a": a.entries[-1][key], "b": b.entries[-1][key]}


def _evaluation(config: CompareConfig, name: str) -> EvaluateConfig:
    shared = {field.name for field in dataclasses.fields(EvaluateConfig)}
    shared &= {field.name for field in dataclasses.fields(CompareConfig)} - {"out"}
    return EvaluateConfig(checkpoint=name, **{k: getattr(config, k) for k in shared})


def refuse_different(a: Scored, b: Scored) -> None:
    """UserError where two runs were not scored on the same pixels in the same way."""
    if len(a.entries) != len(b.entries):
        raise UserError("the runs were scored under other protocols: give --protocol")
    for one, two in zip(a.entries, b.entries, strict=True):
        for key in _SAME:
            if one[key] != two[key]:
                raise UserError(
                    f"the runs can't be compared: {key} is {one[key]} for A and "
                    f"{two[key]} for B; --data, --split and --protocol=plain make "
                    "them alike"
                )
    for name, one in a.scores.items():
        two = b.scores[name]
        left, right = one.sums.table["count"], two.sums.table["count"]
        if one.names != two.names or not np.array_equal(left, right):
            raise UserError(
                "the runs can't be compared: they were scored on other images, or on "
                "other pixels of them (--max_depth, --seed of rooms)"
            )
        for kind in ("rgb", *sorted(one.truths)):
            if [k[kind] for k in a.checksums] != [k[kind] for k in b.checksums]:
                what = "images" if kind == "rgb" else f"{kind} depth of the images"
                raise UserError(
                    f"the runs can't be compared: the {what} that they were scored on "
                    "differ; name one --data for both, read as one --depth_scale says"
                )


def compare(
    a: Scores,
    b: Scores,
    averaging: Any,
    config: CompareConfig,
) -> list[dict[str, Any]]:
    """`bootstrap.of_pair` over images, and over scenes where they are known."""
    options = {"seed": config.seed, "count": config.resamples}
    ways = [
        bootstrap.over_images(a.sums, **options),
        bootstrap.over_scenes(a.sums, a.scenes, **options),
    ]
    return [
        bootstrap.of_pair(a.sums, b.sums, averaging, way)
        for way in ways
        if way is not None
    ]


def _show(found: dict[str, Any], measured_by: str) -> None:
    rows = []
    for name in METRICS:
        m = found["metrics"][name]
        low, high = m["interval"] or (None, None)
        share = None if m["a_better"] is None else f"{m['a_better']:.1%}"
        rows.append((name, m["a"], m["b"], m["difference"], low, high, share))
    about = ", ".join(
        f"{key.upper()} {found[key]} (step {found['step_of'][key]}, trained at "
        f"{found['size_of'][key]})"
        for key in "ab"
    )
    title = (
        f"{about}: {measured_by}; {found['level']:.0%} interval "
        f"of A - B, bootstrap over {found['units']} {found['unit']}s, "
        f"{found['resamples']} resamples; deltas are better higher, all others lower"
    )
    terminal.print_table(title, ("metric", *COLUMNS), rows)


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags; returns the exit code."""
    return run(flags_lib.parse(CompareConfig, argv, prog="jaxdepth compare"))
