"""`jaxdepth compare`: whether run A is better than run B, by paired bootstrap."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxdepth.commands import evaluate as evaluate_command
from jaxdepth.commands.evaluate import Scored
from jaxdepth.config import EvaluateConfig
from jaxdepth.evaluation import bootstrap, describe
from jaxdepth.evaluation.metrics import METRICS, larger_is_better
from jaxdepth.evaluation.scores import Scores
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files, terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag
from jaxdepth.workdir import write_json

logger = logging.getLogger(__name__)
COLUMNS = ("A", "B", "A - B", "from", "to", "A better in")
# Keys of an evaluation that must be equal for both runs.
_SAME = (
    "protocol", "averaging", "truth", "data", "split", "frame_size", "images",
    "flip_average", "abs_rel_over",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Score two runs on the same images, with an interval of their difference.

    A paired bootstrap draws images with replacement, the same ones for both runs, and
    whole scenes if the scenes are known.
    """

    runs: tuple[str, ...] = flag(positional=True)
    """Work directories of run A and of run B."""
    step: str = "best"
    """best, last or the number of a step."""
    data: str | None = None
    """rooms, or a path as for training; default: the runs' evaluation data."""
    split: Literal["auto", "official", "tune", "report", "all"] = "auto"
    """Evaluation frames; auto: the runs' split."""
    protocol: str = flag(
        "auto", choices="auto|all|jaxdepth.evaluation.protocols:PROTOCOLS"
    )
    """Evaluation protocol; auto: the runs' protocol."""
    flip_average: Literal["auto", "on", "off"] = "auto"
    """Flip test-time augmentation; auto: as in the runs."""
    batch_size: int = flag(8, at_least=1)
    """Images per batch."""
    cache_dir: str = "~/.cache/jaxdepth"
    """Folder for prepared data."""
    resamples: int = flag(bootstrap.RESAMPLES, at_least=1)
    """Resamples of the bootstrap."""
    seed: int = flag(0, at_least=0)
    """Seed of the resamples."""
    out: str | None = None
    """JSON file for the comparison; an existing file is not overwritten."""

    def __post_init__(self):
        flags_lib.validate(self)


def run(config: CompareConfig) -> int:
    """Score both runs, print and write the comparison. Returns the exit code.

    Raises: UserError unless both were scored on the same images in the same way.
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
        for comparison in compare(*pair, entry["averaging"], config):
            names = {"a": config.runs[0], "b": config.runs[1]}
            same = {k: entry[k] for k in _SAME}
            differing = {
                f"{k}_of": {"a": a.entries[-1][k], "b": b.entries[-1][k]}
                for k in ("step", "size")
            }
            compared.append(names | same | differing | comparison)
            _show(compared[-1], describe.scoring(entry))
    if config.out is not None:
        write_json(config.out, {"comparisons": compared})
    return 0


def _evaluation(config: CompareConfig, name: str) -> EvaluateConfig:
    """The flags of `jaxdepth evaluate` for one of the runs."""
    shared = {field.name for field in dataclasses.fields(EvaluateConfig)}
    shared &= {field.name for field in dataclasses.fields(CompareConfig)} - {"out"}
    return EvaluateConfig(checkpoint=name, **{k: getattr(config, k) for k in shared})


def refuse_different(a: Scored, b: Scored) -> None:
    """Raise UserError unless both runs were scored on the same pixels, in one way."""
    if len(a.entries) != len(b.entries):
        raise UserError(
            "the runs were scored under different protocols: give --protocol"
        )
    for one, two in zip(a.entries, b.entries, strict=True):
        for key in _SAME:
            if one[key] != two[key]:
                raise UserError(
                    f"the runs can't be compared: {key} is {one[key]} for A and "
                    f"{two[key]} for B; give --data, --split or --protocol=plain for "
                    "both"
                )
    for name, one in a.scores.items():
        two = b.scores[name]
        left, right = one.sums.table["count"], two.sums.table["count"]
        if one.names != two.names or not np.array_equal(left, right):
            raise UserError(
                "the runs can't be compared: they were scored on different images, or "
                "on different pixels of them (--max_depth, or --seed of rooms, differs)"
            )
        for kind in ("rgb", *sorted(one.truths)):
            if [k[kind] for k in a.checksums] != [k[kind] for k in b.checksums]:
                subject = "images" if kind == "rgb" else f"{kind} depth of the images"
                raise UserError(
                    f"the runs can't be compared: the {subject} that they were scored "
                    "on differ; give one --data for both, read with one --depth_scale"
                )


def compare(
    a: Scores, b: Scores, averaging: Any, config: CompareConfig
) -> list[dict[str, Any]]:
    """`bootstrap.of_pair` over images, and over scenes if they are known."""
    options = {"seed": config.seed, "count": config.resamples}
    return [
        bootstrap.of_pair(a.sums, b.sums, averaging, resamples)
        for resamples in (
            bootstrap.over_images(a.sums, **options),
            bootstrap.over_scenes(a.sums, a.scenes, **options),
        )
        if resamples is not None
    ]


def _show(comparison: dict[str, Any], scoring: str) -> None:
    rows = []
    for name in METRICS:
        m = comparison["metrics"][name]
        low, high = m["interval"] or (None, None)
        share = None if m["a_better"] is None else f"{m['a_better']:.1%}"
        rows.append((name, m["a"], m["b"], m["difference"], low, high, share))
    about = ", ".join(
        f"{key.upper()} {comparison[key]} (step {comparison['step_of'][key]}, trained "
        f"at {comparison['size_of'][key]})"
        for key in "ab"
    )
    title = (
        f"{about}: {scoring}; {comparison['level']:.0%} interval "
        f"of A - B, bootstrap over {comparison['units']} {comparison['unit']}s, "
        f"{comparison['resamples']} resamples; higher is better for "
        f"{', '.join(larger_is_better())}, lower for all others"
    )
    terminal.print_table(title, ("metric", *COLUMNS), rows)


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags. Returns the exit code."""
    return run(flags_lib.parse(CompareConfig, argv, prog="jaxdepth compare"))
