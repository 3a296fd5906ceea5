"""`jaxdepth pack`: write a trained network to one file, or make a run smaller."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, Literal

from jaxdepth import config as config_lib
from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import finished_runs
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag
from jaxdepth.training.checkpoint import Checkpoints
from jaxdepth.weights import files, foreign, packed
from jaxdepth.workdir import WorkDir

logger = logging.getLogger(__name__)
PROG = "jaxdepth pack"
# Terms of weights, by the name of the data that they were trained on.
TERMS = (
    "These weights were trained on the data set {data}; its terms apply to them, in "
    "addition to those of the software."
)
NYU_TERMS = (
    "These weights were trained on NYU Depth V2 (N. Silberman, D. Hoiem, P. Kohli, R. "
    "Fergus: Indoor Segmentation and Support Inference from RGBD Images, ECCV 2012). "
    "Its authors state no licence; it is used for research, with this citation. The "
    "Apache-2.0 licence of the software alone does not cover the weights."
)


@dataclasses.dataclass(frozen=True)
class PackConfig:
    """Write a trained network to one safetensors file, to share and to predict with.

    The file holds parameters, configuration, camera, scores and terms, and no data,
    paths or optimizer state. jaxdepth predict, evaluate and compare accept it as
    --checkpoint, jaxdepth.load as a path.

    --trim writes nothing: it deletes the optimizer state in a work directory, which is
    two thirds of a checkpoint and needed only to resume the run.
    """

    files: tuple[str, ...] = flag(positional=True)
    """WORKDIR OUT: the work directory of the run, and a new file that ends in
    .safetensors; with --trim only WORKDIR."""
    trim: bool = False
    """Delete the optimizer state in WORKDIR. The run can't be resumed exactly
    afterwards: with more --steps, the optimizer starts anew."""
    step: str = "best"
    """best, last or the number of a step."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the convolution kernels; the rest is float32."""
    scores: str | None = None
    """JSON files of jaxdepth evaluate --out, separated by commas, whose scores to
    include; default: those of the run at that step."""
    licence: str | None = None
    """Terms of the weights, in a sentence; default: a note on the training data."""

    def __post_init__(self):
        flags_lib.validate(self)


def run(config: PackConfig) -> int:
    """Write the file, or trim the run. Returns the exit code."""
    if config.trim:
        return _trim(config)
    if len(config.files) != 2:
        raise UserError(f"give WORKDIR OUT, see {PROG} --help")
    source, out = config.files
    path = files.output(out, packed.SUFFIX)
    _refuse_file(source)
    trained = finished_runs.read(source)
    predictor = predictor_lib.load(source, step=config.step)
    step = predictor.step
    evaluations = [e for e in trained.evaluations if e["step"] == step]
    if config.scores is not None:
        names = config.scores.split(",")
        evaluations = [entry for name in names for entry in _scores(name, step)]
    data = trained.saved.get("data", {})
    network = packed.PackedNetwork(
        variables=predictor.variables,
        config=predictor.config,
        step=step,
        data=data,
        evaluations=evaluations,
        command=_command(predictor.config),
        versions=trained.saved.get("versions", {}),
        licence=config.licence or _terms(data),
    )
    packed.write(path, network, dtype=config.dtype)
    logger.info(
        "%s: %s of %s, step %s, %.2f MB", path, predictor.config.model.arch, source,
        step, path.stat().st_size / 1e6,
    )  # fmt: skip
    return 0


def _trim(config: PackConfig) -> int:
    """Delete the optimizer state of all checkpoints of a run."""
    others = dataclasses.replace(PackConfig(config.files), trim=True)
    if config != others:
        raise UserError("--trim writes no file: give no other flag")
    if len(config.files) != 1:
        raise UserError(f"--trim: give the work directory of one run, see {PROG} -h")
    (name,) = config.files
    _refuse_file(name)
    workdir = WorkDir.open(name)
    trained = config_lib.from_json(workdir.read_config()["config"])
    with workdir.locked(instead=""):
        checkpoints = Checkpoints(workdir.checkpoints, read_only=True)
        steps = checkpoints.steps()
        freed = checkpoints.remove_optimizer(steps)
    if not freed:
        logger.info("%s: its checkpoints have no optimizer state to delete", name)
        return 0
    last, planned = steps[-1], int(trained.train.steps)
    logger.info(
        "%s: deleted the optimizer state, %.0f MB. The run%s can't be resumed exactly "
        "any more: from now on, the optimizer starts anew",
        name,
        freed / 1e6,
        "" if last >= planned else f", which stopped at step {last} of {planned},",
    )
    return 0


def _refuse_file(name: str) -> None:
    foreign.refuse(name)
    if packed.find(name) is not None:
        raise UserError(f"{name} is a file: give the work directory of a run")


def _command(config: config_lib.Config) -> str:
    """The command that trains such a network, without the paths of this machine."""
    default = config_lib.Config.of().flat()
    flags = packed.portable(config)
    texts = {k: str(v).lower() if isinstance(v, bool) else v for k, v in flags.items()}
    given = [f"--{k}={v}" for k, v in texts.items() if flags[k] != default[k]]
    return " ".join(["jaxdepth run", *given])


def _scores(name: str, step: int | None) -> list[dict[str, Any]]:
    """The scores in a file of `jaxdepth evaluate --out`."""
    path = files.expanded(name)
    try:
        regular.check(path)
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--scores={name} can't be read: {error}") from None
    entries = config_lib.loads(text, where=name).get("evaluations")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"--scores={name}: it holds no evaluations")
    for entry in entries:
        finished_runs.check_evaluation(entry, name)
        if entry["step"] != step:
            raise UserError(
                f"--scores={name}: scores of step {entry['step']}, but step {step} is "
                "packed; give --step, or score that step"
            )
    return entries


def _terms(data: dict[str, Any]) -> str:
    if data.get("train_nyu"):
        return NYU_TERMS
    return TERMS.format(data=data.get("train_name", "unknown"))


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags. Returns the exit code."""
    return run(flags_lib.parse(PackConfig, argv, prog=PROG))
