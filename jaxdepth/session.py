"""One run from its configuration to its results: open, train, evaluate, show.

`train.loop` does the steps; what surrounds them is here.
"""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdepth import (
    baselines as baselines_lib,
)
from jaxdepth import (
    builders,
    cli,
    datasets,
    evaluate,
    protocols,
    sharding,
    steps,
    train,
    viz,
    writers,
)
from jaxdepth import config as config_lib
from jaxdepth import workdir as workdir_lib
from jaxdepth.checkpoint import Checkpoints
from jaxdepth.config import Config
from jaxdepth.data import pipeline
from jaxdepth.errors import MachineError
from jaxdepth.train_state import TrainState
from jaxdepth.workdir import WorkDir

logger = logging.getLogger(__name__)
PANEL_ROWS = 4
EVAL_BATCH = 8


@dataclasses.dataclass
class Session:
    """An open run.

    Attributes:
      config: settled, nothing is `auto` any more.
      results: what results.json will hold, growing.
    """

    config: Config
    command: str
    workdir: WorkDir
    data: datasets.Data
    baselines: baselines_lib.Baselines
    placement: sharding.Placement
    results: dict[str, Any]

    @property
    def protocols(self) -> tuple[protocols.Protocol, ...]:
        return chosen_protocols(self.config, nyu=self.data.nyu)


def chosen_protocols(config: Config, *, nyu: bool) -> tuple[protocols.Protocol, ...]:
    """The protocols of --protocol; the first one names the numbers shown first."""
    default = "laina" if nyu else "plain"
    names = [default] if config.protocol == "auto" else [config.protocol]
    if config.protocol == "all":
        names = [default, *(name for name in protocols.PROTOCOLS if name != default)]
    return protocols.choose(
        names,
        max_depth=config.max_depth,
        flip_average=config.flip_average,
        densedepth_rel=config.densedepth_rel,
    )


def run(config: Config, *, command: str) -> int:
    """Train, evaluate, save and show. Returns the exit code.

    Raises UserError and MachineError as its parts do; a folder that this call made is
    taken back where the run never started.
    """
    config = config_lib.resolve(config, platform=jax.default_backend())
    placement = sharding.Placement.over(config.parallel)
    config = _settle_batch(config, placement)
    workdir = workdir_lib.choose(config)
    named = config.workdir is not None
    try:
        session = _open(config, workdir, placement, command=command)
    except BaseException:
        if not named:
            workdir_lib.discard_if_empty(workdir)
        raise
    with writers.log_file(workdir.local / "run.log"):
        try:
            return _run(session)
        except Exception:
            logger.debug("the run stopped", exc_info=True)
            raise
        finally:
            workdir.sync()


def _settle_batch(config: Config, placement: sharding.Placement) -> Config:
    size = int(config.batch_size)
    placement.check_batch(size, config.accumulate)
    return config


def _open(
    config: Config, workdir: WorkDir, placement: sharding.Placement, *, command: str
) -> Session:
    """Open data, settle what depends on them, and create the work directory."""
    _introduce(config, workdir)
    data = datasets.open_data(config, progress=writers.counter)
    config = config_lib.settle_steps(config, train_images=len(data.train_rows))
    config = dataclasses.replace(config, split=_split_flag(data), depth=data.depth)
    for line in data.notes:
        logger.info("note: %s", line)
    results: dict[str, Any] = {"evaluations": []}
    if workdir.used():
        saved = workdir.read_json(workdir_lib.CONFIG)
        before = config_lib.from_json(saved["config"])
        workdir_lib.refuse_changes(before, config, where=workdir.name)
        if (workdir.local / workdir_lib.RESULTS).exists():
            results = workdir.read_json(workdir_lib.RESULTS)
    fitted = baselines_lib.fit(
        (
            _frame_depth(depth, config)
            for _, depth in datasets.chunks(data.train, data.train_rows, data.depth)
        ),
        max_depth=config.max_depth,
    )
    workdir.create()
    record = {
        "config": config_lib.to_json(config),
        "command": command,
        "training_mean": fitted.constant,
        "data": {
            "name": data.name,
            "split": data.split,
            "train_images": len(data.train_rows),
            "eval_images": len(data.eval_rows),
            "depth": data.depth,
        },
        **workdir_lib.environment(),
    }
    workdir.write_json(workdir_lib.CONFIG, record)
    return Session(config, command, workdir, data, fitted, placement, results)


def _split_flag(data: datasets.Data) -> Any:
    """The split as a flag would name it; a store's own split has no name there."""
    return data.split if data.split in (config_lib.choices("split") or ()) else "auto"


def _frame_depth(depth_mm: np.ndarray, config: Config) -> np.ndarray:
    """Stored depth at the size of the training frame."""
    if depth_mm.shape[1:] == config.frame_size:
        return depth_mm
    rgb = np.zeros((*depth_mm.shape, 3), np.uint8)
    return np.asarray(steps.to_training_frame(rgb, depth_mm, config.frame_size)[1])


def _introduce(config: Config, workdir: WorkDir) -> None:
    """The first lines: what trains on what, and where it goes."""
    device = jax.devices()[0]
    logger.info(
        "jaxdepth: training %s with loss %s on %d %s device%s (%s)",
        config.arch,
        config.loss,
        len(jax.devices()),
        device.platform.upper(),
        "s" if len(jax.devices()) > 1 else "",
        device.device_kind,
    )
    logger.info(
        "recipe %s: --size=%s --batch_size=%s --lr=%g --optimizer=%s --precision=%s",
        config.recipe,
        config.size,
        config.batch_size,
        config.lr,
        config.optimizer,
        config.precision,
    )
    if config.data == "rooms":
        logger.info(
            "no data given: training on %s rendered rooms. For NYU Depth V2: "
            "--data=nyu_depth_v2_labeled.mat (see README)",
            config.rooms,
        )
    logger.info("work directory: %s", workdir.name)


