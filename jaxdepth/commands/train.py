"""A training run in four stages: open, claim, train, finish.

`training.loop` takes the steps; this module prepares them and keeps the results.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxdepth import config as config_lib
from jaxdepth import models
from jaxdepth import workdir as workdir_lib
from jaxdepth.commands import cli
from jaxdepth.commands import summary as summary_lib
from jaxdepth.commands.scorer import Scorer
from jaxdepth.config import Config
from jaxdepth.data import checks, dataset, pipeline
from jaxdepth.data.doctor import findings
from jaxdepth.data.sources.stored import Stored
from jaxdepth.data.store.reader import Store
from jaxdepth.evaluation import baselines as baselines_lib
from jaxdepth.evaluation import describe, protocols
from jaxdepth.runtime import host_process, hosts, jax_setup, terminal
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.training import checkpoint, device_cache, initialize, sharding
from jaxdepth.training import loop as loop_lib
from jaxdepth.training import optimizer as optimizer_lib
from jaxdepth.training.checkpoint import Checkpoints, NullCheckpoints
from jaxdepth.training.loop import Outcome, StopSignals, resumed
from jaxdepth.training.metrics_writer import MetricsWriter
from jaxdepth.training.state import TrainState
from jaxdepth.training.step import (
    StepSpec,
    batch_shapes,
    init_state,
    to_training_frame,
    train_step,
    train_step_on_table,
)
from jaxdepth.weights import files, foreign, packed
from jaxdepth.workdir import WorkDir

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Session:
    """The objects that the stages of a run share.

    Attributes:
      config: resolved configuration, without "auto" values.
      command: the command line.
      workdir: its work directory.
      data: open data.
      baselines: constants and mean depth map of the training depth.
      placement: devices.
      results: contents of results.json; evaluations are added to it.
      model: the network.
      state: state that training starts from, one copy on the host.
      step: the training step if it compiles ahead, else None.
      checkpoints: writes checkpoints; set by `claim`.
      damaged: steps whose checkpoints can't be read.
    """

    config: Config
    command: str
    workdir: WorkDir
    data: dataset.Data
    baselines: baselines_lib.Baselines
    placement: sharding.Placement
    results: dict[str, Any]
    model: Any = None
    state: TrainState | None = None
    step: sharding.CompiledStep | None = None
    checkpoints: Checkpoints | None = None
    damaged: list[int] = dataclasses.field(default_factory=list)

    @property
    def protocols(self) -> tuple[protocols.Protocol, ...]:
        return protocols.chosen_protocols(self.config, nyu=self.data.nyu)


def run(config: Config, *, command: str) -> int:
    """Train, evaluate and save a run in four stages. Returns the exit code.

    Raises: UserError and MachineError. A folder made by this call is removed if the
      run did not start.
    """
    jax_setup.enable_compilation_cache(config.data.cache_dir)
    config, placement, weights = _prepare(config)
    with (
        terminal.log_file() as begin_log,
        StopSignals() as stopping,
        workdir_lib.shared(config) as workdir,
        contextlib.ExitStack() as locks,
    ):
        with _removed_on_failure(config, workdir):
            session = open_session(config, workdir, placement, weights, command, locks)
            claim(session, locks)
        begin_log(workdir.local / "run.log")
        with _failures_with_checkpoint(session):
            outcome = train(session, stopping)
            return finish(session, outcome)


def _prepare(
    config: Config,
) -> tuple[Config, sharding.Placement, files.Weights | None]:
    """Resolve what depends on the devices, and read the weights: quick checks first."""
    any_batch = config.train.batch_size == "auto"
    config = config_lib.resolve(config, platform=jax.default_backend())
    hosts.check_equal_on_hosts("flags", _common_flags(config))
    placement = sharding.Placement.over(config.train.parallel)
    placement.statistics(config.model.bn)  # raises UserError
    config = _resolve_batch(config, placement, round_up=any_batch)
    path = config.model.weights
    with hosts.raise_on_all_hosts():
        weights = None if path is None else files.read(path)
    return config, placement, weights


@contextlib.contextmanager
def _removed_on_failure(config: Config, workdir: WorkDir) -> Iterator[None]:
    """Remove a folder that was made for this run if an error is raised."""
    try:
        yield
    except BaseException:
        if config.output.workdir is None:
            workdir_lib.discard_if_empty(workdir)
        raise


@contextlib.contextmanager
def _failures_with_checkpoint(session: Session) -> Iterator[None]:
    """Convert machine failures to a MachineError that names the last checkpoint."""
    try:
        yield
    except Exception as error:
        logger.debug("the run stopped", exc_info=True)
        if isinstance(error, OSError | MachineError) or hosts.is_lost_peer(error):
            assert session.checkpoints is not None
            raise _with_last_checkpoint(error, session.checkpoints) from error
        raise
    finally:
        session.workdir.sync()


def open_session(
    config: Config,
    workdir: WorkDir,
    placement: sharding.Placement,
    weights: files.Weights | None,
    command: str,
    locks: contextlib.ExitStack,
) -> Session:
    """Stage 1: open data, weights and state. Writes nothing.

    The work directory is locked if it exists.
    """
    with hosts.raise_on_all_hosts():
        if workdir.local.is_dir():
            locks.enter_context(workdir.locked())
        if _names_other_run(config) and hosts.is_first_host() and not workdir.used():
            _network_to_resume(config)  # before data are packed and programs compiled
        session = _open_data(config, workdir, placement, command=command)
    hosts.check_equal_on_hosts("data", _common_data(session))
    _initialize(session, weights)
    return session


def claim(session: Session, locks: contextlib.ExitStack) -> None:
    """Stage 2: create and lock the work directory, and write config.json."""
    workdir = session.workdir
    with hosts.raise_on_all_hosts():
        existed = workdir.local.is_dir()
        workdir.create()
        if not existed:
            locks.enter_context(workdir.locked())
            if workdir.used():
                raise UserError(
                    f"{workdir.name} was used by another run while this one started: "
                    "run the command again to resume that run"
                )
        _write_config(session)
    session.checkpoints = _checkpoints(workdir)
    session.checkpoints.drop(session.damaged)


def _common_flags(config: Config) -> dict[str, Any]:
    """The flags that must be equal on all hosts: all but --cache_dir."""
    flags = config_lib.to_json(config)
    del flags["cache_dir"]
    return {f"--{name}": value for name, value in flags.items()}


def _common_data(session: Session) -> dict[str, Any]:
    """The properties of the data that must be equal on all hosts."""
    data, config = session.data, session.config
    return {
        "data": data.name,
        "training images": len(data.train_rows),
        "evaluation images": len(data.eval_rows),
        "training mean": round(session.baselines.constant, 3),
        "steps": config.train.steps,
        "depth": config.data.depth,
    }


def _checkpoints(workdir: WorkDir) -> Checkpoints:
    """Checkpoints that host 0 writes; it alone has the work directory."""
    place = workdir.checkpoints_on_host_0
    host_process.record_progress(place)
    return (
        Checkpoints(workdir.checkpoints)
        if hosts.is_first_host()
        else NullCheckpoints(place)
    )


def _with_last_checkpoint(error: Exception, checkpoints: Checkpoints) -> MachineError:
    """The failure in one line that names the checkpoint to resume from."""
    message = str(error)
    if isinstance(error, OSError):
        message = f"{error.filename or 'a file'}: {error.strerror or error}"
    elif hosts.is_lost_peer(error):
        message = f"lost peer: {message.splitlines()[0][:200]}"
    if "last good checkpoint" not in message:
        message += f"; {checkpoints.last_good()}"
    return MachineError(message)


def _resolve_batch(
    config: Config, placement: sharding.Placement, *, round_up: bool
) -> Config:
    """Check that the batch divides over devices and microbatches, or round it up."""
    size = int(config.train.batch_size)
    if round_up:
        parts = len(placement.devices) * config.train.accumulate
        size = parts * math.ceil(size / parts)
    placement.check_batch(size, config.train.accumulate)
    return config.replace(batch_size=size)


def _open_data(
    config: Config, workdir: WorkDir, placement: sharding.Placement, *, command: str
) -> Session:
    """Open the data and resolve the values that depend on it."""
    _introduce(config, workdir)
    data = dataset.open_data(config, progress=terminal.Counter())
    config = config_lib.resolve_steps(config, train_images=len(data.train_rows))
    config = config.replace(split=_split_flag(data), depth=data.depth)
    _check_data(data.train, data.depth, path=config.data.path)
    for line in data.notes:
        logger.info("note: %s", line)
    results: dict[str, Any] = {"evaluations": []}
    if workdir.used():
        before = config_lib.from_json(workdir.read_config()["config"])
        workdir_lib.refuse_changes(before, config, where=workdir.name)
        if (workdir.local / workdir_lib.RESULTS).exists():
            results |= workdir.read_json(workdir_lib.RESULTS)
    fitted = baselines_lib.fit(
        (
            _frame_depth(depth, config, data.train.depth_unit)
            for _, depth in dataset.chunks(data.train, data.train_rows, data.depth)
        ),
        max_depth=config.data.max_depth,
        depth_unit=data.train.depth_unit,
    )
    session = Session(config, command, workdir, data, fitted, placement, results)
    for protocol in session.protocols:
        for size in data.evaluation.full_sizes(data.eval_rows):
            protocols.check_frame(protocol, size)
    return session


def _check_data(store: Store, depth: str, *, path: str) -> None:
    """Log what was read, and the cheap checks of `jaxdepth inspect-data`."""
    logger.info("%s", checks.depth_line(store, depth, where=path))
    if path == "rooms":  # rendered
        return
    if (problem := findings.misalignment(Stored(store), where=path)) is not None:
        logger.warning("%s", problem)


def _write_config(session: Session) -> None:
    data = session.data
    camera = data.camera(session.config.frame_size)
    record = {
        "config": config_lib.to_json(session.config),
        "command": session.command,
        "training_mean": session.baselines.constant,
        "data": {
            "name": data.name,
            "train_name": data.train.name,
            "train_nyu": "official" in data.train.splits,
            "split": data.split,
            "eval_split": data.eval_split,
            "train_images": len(data.train_rows),
            "eval_images": len(data.eval_rows),
            "depth": data.depth,
            "camera": camera
            and {"size": list(session.config.frame_size), **camera._asdict()},
        },
        **workdir_lib.environment(),
    }
    session.workdir.write_json(workdir_lib.CONFIG, record)


def _split_flag(data: dataset.Data) -> Any:
    """The value of --split for the data; "auto" for a store's own split."""
    return data.split if data.split in (config_lib.choices("split") or ()) else "auto"


def _frame_depth(
    depth_codes: np.ndarray, config: Config, depth_unit: int
) -> np.ndarray:
    """Stored depth at the size of the training frame, as the training step makes it."""
    if depth_codes.shape[1:] == config.frame_size:
        return depth_codes
    rgb = np.zeros((*depth_codes.shape, 3), np.uint8)
    limits = {"max_depth": config.data.max_depth, "depth_unit": depth_unit}
    return np.asarray(
        to_training_frame(rgb, depth_codes, config.frame_size, **limits)[1]
    )


def _introduce(config: Config, workdir: WorkDir) -> None:
    """Log network, loss, devices, recipe and work directory."""
    device = jax.devices()[0]
    logger.info(
        "jaxdepth: training %s with loss %s on %d %s device%s (%s)%s",
        config.model.arch,
        config.loss.name,
        len(jax.devices()),
        device.platform.upper(),
        "s" if len(jax.devices()) > 1 else "",
        device.device_kind,
        f" of {hosts.count()} hosts" if hosts.count() > 1 else "",
    )
    logger.info(
        "recipe %s: --size=%s --batch_size=%s --lr=%g --optimizer=%s --precision=%s",
        config.output.recipe,
        config.model.size,
        config.train.batch_size,
        config.peak_lr,
        config.optimizer.name,
        config.model.precision,
    )
    if config.data.path == "rooms":
        logger.info(
            "no data given: training on %s rendered rooms. For NYU Depth V2: "
            "--data=nyu_depth_v2_labeled.mat (see README)",
            config.data.rooms,
        )
    logger.info("work directory: %s", workdir.name)


def _initialize(session: Session, weights: files.Weights | None) -> None:
    """Create the network and the state from which training starts or resumes."""
    config = session.config
    axis, groups = session.placement.statistics(config.model.bn)
    model = models.create(
        config.model,
        init_depth=session.baselines.constant,
        bn_axis=axis,
        bn_groups=groups,
    )
    session.model = model
    fresh_state = functools.partial(
        init_state,
        model,
        optimizer_lib.create(config),
        image_size=config.image_size,
        seed=config.train.seed,
    )
    if weights is None:
        _compile_ahead(session, fresh_state)
    state = fresh_state()
    if weights is not None:
        state = initialize.start_from(
            state,
            weights,
            init=config.model.init,
            layout=config.model.layout,
            where=str(config.model.weights),
        )
        _compile_ahead(session, fresh_state)
    if config.train.ema:
        state = state.start_ema()
    damaged: list[int] = []
    with hosts.raise_on_all_hosts():
        if hosts.is_first_host():
            state, damaged = _starting_state(session, state)
    state = hosts.broadcast_state(state)
    step = int(state.step)
    session.results["evaluations"] = [
        e for e in session.results["evaluations"] if e["step"] <= step
    ]
    session.state, session.damaged = state, damaged


def _compile_ahead(session: Session, fresh_state: Callable[[], TrainState]) -> None:
    """Start to compile the step in a thread, while the run prepares its first call.

    No-op for a run that resumes, because that may fail or have no step left, and a
    process ends no earlier than its threads.
    """
    config, placement, store = session.config, session.placement, session.data.train
    resumes = session.workdir.used() or _names_other_run(config)
    single = placement.kind == "jit" and not hosts.is_multi_host()
    if resumes or not single or config.data.cache == "device":
        return
    state = jax.eval_shape(fresh_state)
    if config.train.ema:
        state = jax.eval_shape(TrainState.start_ema, state)
    stacked = config.train.steps_per_call > 1
    batch = batch_shapes(config, store.size)
    session.step = placement.compile(train_step, _spec(session), stacked=stacked)
    placed = placement.shapes(batch, sharding.batch_spec(stacked))
    session.step.compile_ahead(placement.state_shapes(state), placed)


def _spec(session: Session) -> StepSpec:
    """The static arguments of the training step."""
    optimizer = optimizer_lib.create(session.config)
    unit = session.data.train.depth_unit
    return StepSpec(session.model, optimizer, session.config, sharding.AXIS, unit)


def _names_other_run(config: Config) -> bool:
    return config.output.resume not in ("auto", "never")


def _network_to_resume(config: Config) -> Checkpoints | packed.PackedNetwork:
    """What --resume names: the checkpoints of another run, or a packed network.

    Raises: UserError if there is none, or if it is of another network.
    """
    name = config.output.resume
    if (file := packed.find(name)) is not None:
        network = packed.read(file)
        workdir_lib.refuse_other_network(
            network.config, config, where=name, optimizer=False
        )
        return network
    foreign.refuse(name)
    other = WorkDir.open(name)
    before = config_lib.from_json(other.read_config()["config"])
    checkpoints = Checkpoints(other.checkpoints, read_only=True)
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"--resume={name} holds no checkpoint")
    workdir_lib.refuse_other_network(
        before, config, where=name, optimizer=checkpoints.has_optimizer(steps[-1])
    )
    return checkpoints


def _state_of_other(config: Config, fresh: TrainState) -> TrainState:
    """The state of what --resume names. Raises: UserError as `_network_to_resume`."""
    name, steps = config.output.resume, int(config.train.steps)
    other = _network_to_resume(config)
    if isinstance(other, Checkpoints):
        state = resumed(other, fresh, steps=steps, where=name)
    else:
        checkpoint.check_shapes(other.variables, fresh.network, where=name)
        state = checkpoint.starting_from(other.variables, fresh, step=other.step or 0)
    if int(state.step) >= steps:
        raise UserError(
            f"--resume={name} was trained for {int(state.step)} steps, and "
            f"--steps={steps} includes them; give a larger --steps"
        )
    if isinstance(other, packed.PackedNetwork):
        loop_lib.log_new_optimizer(name)
    return state


def _starting_state(
    session: Session, fresh: TrainState
) -> tuple[TrainState, list[int]]:
    """The state to start from, and the steps of this run's damaged checkpoints.

    The newest state of this run, else of what --resume names, else `fresh`.
    """
    config, workdir = session.config, session.workdir
    state, damaged, steps = fresh, [], int(config.train.steps)
    if epath.Path(workdir.checkpoints).exists():
        own = Checkpoints(workdir.checkpoints, read_only=True)
        if own.steps() and not workdir.used():
            raise UserError(
                f"{workdir.name} holds checkpoints of a run, but no "
                f"{workdir_lib.CONFIG}: name another --workdir"
            )
        state = resumed(own, fresh, steps=steps, where=workdir.name)
        damaged = own.damaged
    if int(state.step) == 0 and _names_other_run(config):
        state = _state_of_other(config, fresh)
    if int(state.step) % config.train.steps_per_call:
        raise UserError(
            f"--steps_per_call={config.train.steps_per_call}: the run resumes from "
            f"step {int(state.step)}, which is not a multiple of it; leave the flag out"
        )
    return state, damaged


def _log_start(session: Session, state: TrainState) -> None:
    config, data = session.config, session.data
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    logger.info(
        "data: %s, split %s, %s depth: %d images train, %d evaluate under %s",
        data.name,
        data.split,
        config.data.depth,
        len(data.train_rows),
        len(data.eval_rows),
        ", ".join(p.title(config.image_size) for p in session.protocols),
    )
    start = int(state.step)
    if start == config.train.steps:
        logger.info("all %d steps are done", start)
        return
    logger.info(
        "%s: %.1f M parameters, steps %d to %s of %s images; the first step compiles, "
        "which takes a while",
        config.model.arch,
        parameters / 1e6,
        start + 1,
        config.train.steps,
        config.train.batch_size,
    )
    if start:
        logger.info("resuming from step %d", start)


def train(session: Session, stopping: StopSignals) -> Outcome:
    """Stage 3: train from the session's state to the last step, or until stopped."""
    config, data, workdir = session.config, session.data, session.workdir
    state, checkpoints = session.state, session.checkpoints
    assert state is not None and checkpoints is not None
    _log_start(session, state)
    scorer = Scorer(session)
    if "baselines" not in session.results:
        session.results["baselines"] = scorer.baselines()
    start = int(state.step)
    with (
        MetricsWriter(workdir.local, resume_from=start) as writer,
        pipeline.batches(
            data.train,
            data.train_rows,
            depth=data.depth,
            seed=config.train.seed,
            batch_size=int(config.train.batch_size),
            start_step=start,
            stop_step=int(config.train.steps),
            host=hosts.index(),
            hosts=hosts.count(),
            cache=config.data.cache,
        ) as batches,
    ):
        evaluate = functools.partial(_evaluate, session, scorer, writer)
        outcome = loop_lib.loop(
            config,
            state,
            batches,
            step_fn=_step_fn(session),
            placement=session.placement,
            checkpoints=checkpoints,
            writer=writer,
            learning_rate=optimizer_lib.schedule_of(config),
            evaluate=evaluate,
            after_log=workdir.sync,
            stopping=stopping,
        )
        if outcome.reason != "non_finite":
            step, rmse = int(outcome.state.step), None
            evaluated = {e["step"] for e in session.results["evaluations"]}
            done = outcome.reason == "done"
            keep = config.output.keep_optimizer or not done
            if done and step not in evaluated:
                rmse = evaluate(step, outcome.state)
            checkpoints.save(step, outcome.state, rmse=rmse, optimizer=keep)
            checkpoints.wait()
            if done:
                checkpoints.finish(keep_optimizer=keep)
    return outcome


def _evaluate(
    session: Session,
    scorer: Scorer,
    writer: MetricsWriter,
    step: int,
    state: TrainState,
) -> float | None:
    """Score a state, and write and log the results; RMSE of the first protocol."""
    entries = scorer.network(step, state)
    session.results["evaluations"] += entries
    session.workdir.write_json(workdir_lib.RESULTS, session.results)
    first = entries[-1]
    logger.info("step %d: %s", step, describe.summary(first))
    writer.write_evaluation(step, first)
    return first["metrics"]["rmse"]


def _step_fn(session: Session) -> Any:
    """The compiled step, on batches from the host or from the device cache."""
    if session.step is not None:
        return session.step
    config, placement, data = session.config, session.placement, session.data
    spec, stacked = _spec(session), config.train.steps_per_call > 1
    if config.data.cache != "device":
        return placement.compile(train_step, spec, stacked=stacked)
    part = device_cache.reader(
        data.train, data.train_rows, depth=data.depth, devices=len(placement.devices)
    )
    try:
        placed = jax.block_until_ready(placement.place_table(part))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"--cache=device: {len(data.train_rows)} frames of {data.train.size} do "
            "not fit into the devices' memory: use --cache=host or none"
        ) from None
    per_device = sum(x.addressable_shards[0].data.nbytes for x in placed.values())
    logger.info(
        "%d training frames are cached on the devices: %.1f MiB on each",
        len(data.train_rows),
        per_device / 2**20,
    )
    return placement.compile(
        train_step_on_table, spec, data.train.size, table=placed, stacked=stacked
    )


def finish(session: Session, outcome: Outcome) -> int:
    """Stage 4: write and show the results, or log how to resume; the exit code."""
    workdir, step = session.workdir, int(outcome.state.step)
    checkpoints = session.checkpoints
    assert checkpoints is not None
    if outcome.reason == "non_finite":
        logger.error(
            "stopped: the loss is not finite near step %d; %s. Lower --lr, or use "
            "--on_nan=skip",
            step,
            checkpoints.last_good(),
        )
        return cli.NON_FINITE
    if outcome.reason in ("preempted", "interrupted"):
        command = _resume_command(session)
        logger.info(
            "%s at step %d, saved. To resume: %s", outcome.reason, step, command
        )
        return cli.PREEMPTED if outcome.reason == "preempted" else cli.INTERRUPTED
    if outcome.images_per_s is not None or "command" not in session.results:
        session.results |= {
            "images_per_s": outcome.images_per_s,
            "skipped_steps": outcome.skipped,
            "bn": session.config.model.bn,
            "command": session.command,
            **workdir_lib.environment(),
        }
        workdir.write_json(workdir_lib.RESULTS, session.results)
    if hosts.is_first_host():
        summary_lib.show(
            session.config, workdir, session.data, session.results, outcome.state
        )
    checkpoints.close()
    return cli.OK


def _resume_command(session: Session) -> str:
    command = re.sub(r" --resume[= ]never\b", "", session.command)
    if session.config.output.workdir is None:
        command += f" --workdir={session.workdir.name}"
    return command
