"""One run from its configuration to its results: open, train, evaluate, show.

`train.loop` does the steps; what surrounds them is here.
"""

import contextlib
import dataclasses
import logging
import math
import re
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxdepth import config as config_lib
from jaxdepth import workdir as workdir_lib
from jaxdepth.commands import cli
from jaxdepth.commands import summary as summary_lib
from jaxdepth.config import Config
from jaxdepth.data import dataset, pipeline
from jaxdepth.evaluation import baselines as baselines_lib
from jaxdepth.evaluation import protocols
from jaxdepth.evaluation.evaluator import Evaluator, map_variables, predict_map
from jaxdepth.runtime import host_process, hosts, jax_setup, terminal
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.training import (
    builders,
    device_cache,
    initialize,
    metrics_writer,
    sharding,
    validation_loss,
)
from jaxdepth.training import loop as loop_lib
from jaxdepth.training import step as step_lib
from jaxdepth.training.checkpoint import Checkpoints, NullCheckpoints
from jaxdepth.training.loop import Outcome, StopSignals, resumed
from jaxdepth.training.state import TrainState
from jaxdepth.training.step import (
    StepSpec,
    init_state,
    to_training_frame,
    train_step,
    train_step_on_table,
)
from jaxdepth.weights import files
from jaxdepth.workdir import WorkDir

logger = logging.getLogger(__name__)
EVAL_BATCH = 8


@dataclasses.dataclass
class Session:
    """An open run.

    Attributes:
      config: settled, nothing is `auto` any more.
      results: what results.json will hold, growing.
      weights: what --weights holds.
    """

    config: Config
    command: str
    workdir: WorkDir
    data: dataset.Data
    baselines: baselines_lib.Baselines
    placement: sharding.Placement
    results: dict[str, Any]
    weights: files.Weights | None

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
    jax_setup.enable_compilation_cache(config.cache_dir)
    any_batch = config.batch_size == "auto"
    config = config_lib.resolve(config, platform=jax.default_backend())
    hosts.check_equal_on_hosts("flags", _common_flags(config))
    placement = sharding.Placement.over(config.parallel)
    config = _settle_batch(config, placement, up=any_batch)
    with hosts.raise_on_all_hosts():  # before anything that takes long
        weights = files.read(config.weights) if config.weights is not None else None
    with (
        terminal.log_file() as begin_log,
        StopSignals() as stopping,
        workdir_lib.shared(config) as workdir,
        contextlib.ExitStack() as held,
    ):
        try:
            # What the user may have got wrong comes out before anything is written.
            with hosts.raise_on_all_hosts():
                if there := workdir.local.is_dir():
                    held.enter_context(workdir.locked())
                session = _open(config, workdir, placement, weights, command=command)
            hosts.check_equal_on_hosts("data", _common_data(session))
            model, state, damaged = _get_ready(session)
            with hosts.raise_on_all_hosts():
                workdir.create()
                if not there:
                    held.enter_context(workdir.locked())
                    if workdir.used():
                        raise UserError(
                            f"{workdir.name} was used by another run in the meantime: "
                            "start again to go on with it"
                        )
                _claim(session)
        except BaseException:
            if config.workdir is None:
                workdir_lib.discard_if_empty(workdir)
            raise
        begin_log(workdir.local / "run.log")
        ready = Ready(model, state, _checkpoints(workdir))
        ready.checkpoints.drop(damaged)
        try:
            return _run(session, ready, stopping)
        except Exception as error:
            logger.debug("the run stopped", exc_info=True)
            if isinstance(error, OSError | MachineError) or hosts.is_lost_peer(error):
                raise _with_last_checkpoint(error, ready.checkpoints) from error
            raise
        finally:
            workdir.sync()


def _common_flags(config: Config) -> dict[str, Any]:
    """What all hosts must be told alike; each may have a cache of its own."""
    flags = config_lib.to_json(config)
    del flags["cache_dir"]
    return {f"--{name}": value for name, value in flags.items()}


def _common_data(session: Session) -> dict[str, Any]:
    """What of their data all hosts must agree on."""
    data, config = session.data, session.config
    return {
        "data": data.name,
        "training images": len(data.train_rows),
        "evaluation images": len(data.eval_rows),
        "training mean": round(session.baselines.constant, 3),
        "steps": config.steps,
        "depth": config.depth,
    }


def _checkpoints(workdir: WorkDir) -> Checkpoints:
    """To be written by host 0, which alone has the work directory."""
    place = workdir.checkpoints_on_host_0
    host_process.record_progress(place)
    return (
        Checkpoints(workdir.checkpoints)
        if hosts.is_first_host()
        else NullCheckpoints(place)
    )


def _with_last_checkpoint(error: Exception, checkpoints: Checkpoints) -> MachineError:
    """The failure in one line that says from where to go on."""
    what = str(error)
    if isinstance(error, OSError):
        what = f"{error.filename or 'a file'}: {error.strerror or error}"
    elif hosts.is_lost_peer(error):
        what = f"lost peer: {what.splitlines()[0][:200]}"
    if "last good checkpoint" in what:
        return MachineError(what)
    return MachineError(f"{what}; {checkpoints.last_good()}")


def _settle_batch(config: Config, placement: sharding.Placement, *, up: bool) -> Config:
    """The batch divides over devices and parts, or, with `up`, is made to."""
    size = int(config.batch_size)
    if up:
        parts = len(placement.devices) * config.accumulate
        size = parts * math.ceil(size / parts)
    placement.check_batch(size, config.accumulate)
    return dataclasses.replace(config, batch_size=size)


def _open(
    config: Config,
    workdir: WorkDir,
    placement: sharding.Placement,
    weights: files.Weights | None,
    *,
    command: str,
) -> Session:
    """Open data, and settle what depends on them."""
    _introduce(config, workdir)
    data = dataset.open_data(config, progress=terminal.Counter())
    config = config_lib.settle_steps(config, train_images=len(data.train_rows))
    config = dataclasses.replace(config, split=_split_flag(data), depth=data.depth)
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
            _frame_depth(depth, config)
            for _, depth in dataset.chunks(data.train, data.train_rows, data.depth)
        ),
        max_depth=config.max_depth,
    )
    opened = Session(
        config, command, workdir, data, fitted, placement, results, weights
    )
    for protocol in opened.protocols:
        for size in data.evaluation.full_sizes(data.eval_rows):
            protocols.check_frame(protocol, size)
    return opened


def _claim(session: Session) -> None:
    """Make the work directory this run's."""
    data = session.data
    record = {
        "config": config_lib.to_json(session.config),
        "command": session.command,
        "training_mean": session.baselines.constant,
        "data": {
            "name": data.name,
            "split": data.split,
            "eval_split": data.eval_split,
            "train_images": len(data.train_rows),
            "eval_images": len(data.eval_rows),
            "depth": data.depth,
        },
        **workdir_lib.environment(),
    }
    session.workdir.write_json(workdir_lib.CONFIG, record)


def _split_flag(data: dataset.Data) -> Any:
    """The split as a flag would name it; a store's own split has no name there."""
    return data.split if data.split in (config_lib.choices("split") or ()) else "auto"


def _frame_depth(depth_mm: np.ndarray, config: Config) -> np.ndarray:
    """Stored depth at the size of the training frame."""
    if depth_mm.shape[1:] == config.frame_size:
        return depth_mm
    rgb = np.zeros((*depth_mm.shape, 3), np.uint8)
    return np.asarray(to_training_frame(rgb, depth_mm, config.frame_size)[1])


def _introduce(config: Config, workdir: WorkDir) -> None:
    """The first lines: what trains on what, and where it goes."""
    device = jax.devices()[0]
    logger.info(
        "jaxdepth: training %s with loss %s on %d %s device%s (%s)%s",
        config.arch,
        config.loss,
        len(jax.devices()),
        device.platform.upper(),
        "s" if len(jax.devices()) > 1 else "",
        device.device_kind,
        f" of {hosts.count()} hosts" if hosts.count() > 1 else "",
    )
    logger.info(
        "recipe %s: --size=%s --batch_size=%s --lr=%g --optimizer=%s --precision=%s",
        config.recipe,
        config.size,
        config.batch_size,
        config.peak_lr,
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


class Scorer:
    """Evaluates the network, and the baselines once, under the run's protocols."""

    def __init__(self, session: Session, model: Any):
        config = session.config

        def predict(variables: Any, rgb: jax.Array) -> jax.Array:
            return step_lib.predict(model, variables, rgb, layout=config.layout)

        self.session = session
        self._rows = session.data.eval_rows[hosts.index() :: hosts.count()]
        options: dict[str, Any] = {
            "share": (hosts.index(), hosts.count()),
            "image_size": config.image_size,
            "given_truth": config.depth,
            "batch_size": EVAL_BATCH,
        }
        if len(session.placement.local) > 1:
            options["devices"] = session.placement.local
        self._network = Evaluator(
            predict,
            session.protocols,
            arch_fixed=config.arch == "cnn_fc",
            **options,
        )
        self._maps = Evaluator(predict_map, session.protocols[:1], **options)
        self._loss = validation_loss.ValidationLoss(
            config,
            model,
            session.data,
            devices=session.placement.local,
            batch_size=EVAL_BATCH,
        )

    def network(self, step: int, state: TrainState) -> list[dict[str, Any]]:
        """Entries of results.json for this step, the one to look at last.

        `loss` beside their metrics is the training loss on the evaluation frames.
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
        found = {}
        for name, depth in (
            ("constant", fitted.constant),
            ("constant_delta", fitted.constant_delta),
            ("mean_map", fitted.mean_map),
        ):
            variables = map_variables(depth, size)
            scores = self._maps(variables, self._frames())
            found[name] = self._entries(self._maps, scores)[-1]["metrics"]
        return found

    def _frames(self) -> Any:
        """This host's share of the evaluation frames."""
        return self.session.data.evaluation.full_frames(self._rows)

    def _entries(self, evaluator: Evaluator, scores: Any) -> list[dict]:
        data = self.session.data
        return evaluator.entries(scores, data=data.name, split=data.eval_split)


@dataclasses.dataclass
class Ready:
    """What a run begins with, on the host."""

    model: Any
    state: TrainState
    checkpoints: Checkpoints


def _get_ready(session: Session) -> tuple[Any, TrainState, list[int]]:
    """The network, the state that training begins, or goes on, with, and the steps of
    checkpoints that are damaged."""
    config = session.config
    model = builders.build_model(
        config,
        init_depth=session.baselines.constant,
        bn_axis=sharding.AXIS if config.bn == "global" else None,
    )
    state = init_state(
        model,
        lambda params: builders.build_optimizer(config, params),
        image_size=config.image_size,
        seed=config.seed,
    )
    if session.weights is not None:
        state = initialize.start_from(
            state,
            session.weights,
            init=config.init,
            layout=config.layout,
            where=str(config.weights),
        )
    if config.average:
        state = state.start_average()
    damaged: list[int] = []
    with hosts.raise_on_all_hosts():
        if hosts.is_first_host():
            state, damaged = _starting_state(session, state)
    state = hosts.broadcast_state(state)
    step = int(state.step)
    session.results["evaluations"] = [
        e for e in session.results["evaluations"] if e["step"] <= step
    ]
    return model, state, damaged


def _run(session: Session, ready: Ready, stopping: StopSignals) -> int:
    _say_start(session, ready.state)
    scorer = Scorer(session, ready.model)
    if "baselines" not in session.results:
        session.results["baselines"] = scorer.baselines()
    outcome = _train(session, ready, scorer, stopping)
    return _finish(session, outcome, ready)


def _starting_state(
    session: Session, fresh: TrainState
) -> tuple[TrainState, list[int]]:
    """The fresh state, or the newest one of this run or of the run to go on from; and
    the steps of this run whose checkpoints are damaged."""
    config, workdir = session.config, session.workdir
    state, damaged = fresh, []
    if epath.Path(workdir.checkpoints).exists():
        own = Checkpoints(workdir.checkpoints, read_only=True)
        if own.steps() and not workdir.used():
            raise UserError(
                f"{workdir.name} holds checkpoints of a run whose {workdir_lib.CONFIG} "
                "is gone: name another --workdir"
            )
        state = resumed(own, fresh, steps=int(config.steps), where=workdir.name)
        damaged = own.damaged
    if int(state.step) == 0 and config.resume not in ("auto", "never"):
        other = WorkDir.open(config.resume)
        before = config_lib.from_json(other.read_config()["config"])
        workdir_lib.refuse_other_network(before, config, where=config.resume)
        theirs = Checkpoints(other.checkpoints, read_only=True)
        state = resumed(theirs, fresh, steps=int(config.steps), where=config.resume)
        if state is fresh:
            raise UserError(f"--resume={config.resume} holds no checkpoint")
        if int(state.step) == int(config.steps):
            raise UserError(
                f"--resume={config.resume} was trained for --steps={config.steps} "
                "already: steps count on from there, so give more"
            )
    if int(state.step) % config.steps_per_call:
        raise UserError(
            f"it goes on from step {int(state.step)}, which is no multiple of "
            f"--steps_per_call={config.steps_per_call}: leave that flag out"
        )
    return state, damaged


def _say_start(session: Session, state: TrainState) -> None:
    config, data = session.config, session.data
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    logger.info(
        "data: %s, split %s, %s depth: %d images train, %d evaluate under %s",
        data.name,
        data.split,
        config.depth,
        len(data.train_rows),
        len(data.eval_rows),
        ", ".join(p.title(config.image_size) for p in session.protocols),
    )
    start = int(state.step)
    if start == config.steps:
        logger.info("all %d steps are done already", start)
        return
    logger.info(
        "%s: %.1f M parameters, steps %d to %s of %s images; the first step compiles, "
        "which takes a while",
        config.arch,
        parameters / 1e6,
        start + 1,
        config.steps,
        config.batch_size,
    )
    if start:
        logger.info("going on from step %d", start)


def _train(
    session: Session, ready: Ready, scorer: Scorer, stopping: StopSignals
) -> Outcome:
    config, data, workdir = session.config, session.data, session.workdir
    state, checkpoints = ready.state, ready.checkpoints
    optimizer = builders.build_optimizer(config, state.params)
    spec = builders.build_spec(config, ready.model, optimizer, axis_name=sharding.AXIS)
    start = int(state.step)

    def evaluate_now(step: int, state: TrainState) -> float | None:
        entries = scorer.network(step, state)
        session.results["evaluations"] += entries
        workdir.write_json(workdir_lib.RESULTS, session.results)
        shown = entries[-1]
        logger.info("step %d: %s", step, summary_lib.summary(shown))
        writer.write_evaluation(step, shown)
        return shown["metrics"]["rmse"]

    with (
        metrics_writer.MetricsWriter(workdir.local, resume_from=start) as writer,
        pipeline.batches(
            data.train,
            data.train_rows,
            depth=data.depth,
            seed=config.seed,
            batch_size=int(config.batch_size),
            start_step=start,
            stop_step=int(config.steps),
            host=hosts.index(),
            hosts=hosts.count(),
            cache=config.cache,
        ) as batches,
    ):
        outcome = loop_lib.loop(
            config,
            state,
            batches,
            step_fn=_step_fn(session, spec),
            placement=session.placement,
            checkpoints=checkpoints,
            writer=writer,
            learning_rate=builders.schedule(config),
            evaluate=evaluate_now,
            after_log=workdir.sync,
            stopping=stopping,
        )
        step = int(outcome.state.step)
        if outcome.reason == "non_finite":
            return outcome
        done = {e["step"] for e in session.results["evaluations"]}
        rmse = None
        if outcome.reason == "done" and step not in done:
            rmse = evaluate_now(step, outcome.state)
        checkpoints.save(step, outcome.state, rmse=rmse)
        checkpoints.wait()
    return outcome


def _step_fn(session: Session, spec: StepSpec) -> Any:
    """The compiled step, on batches from the host or on a table on the devices."""
    placement, data = session.placement, session.data
    stacked = session.config.steps_per_call > 1
    if session.config.cache != "device":
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
    held = sum(x.addressable_shards[0].data.nbytes for x in placed.values())
    logger.info(
        "%d training frames lie on the devices: %.1f MiB on each",
        len(data.train_rows),
        held / 2**20,
    )
    return placement.compile(
        train_step_on_table,
        spec,
        data.train.size,
        table=placed,
        stacked=stacked,
    )


def _finish(session: Session, outcome: Outcome, ready: Ready) -> int:
    """Write and show the results, or say how to go on; returns the exit code."""
    workdir, step = session.workdir, int(outcome.state.step)
    checkpoints = ready.checkpoints
    if outcome.reason == "non_finite":
        logger.error(
            "stopped: the loss is not finite near step %d; %s. Lower --lr, or use "
            "--on_nan=skip",
            step,
            checkpoints.last_good(),
        )
        return cli.NON_FINITE
    if outcome.reason in ("preempted", "interrupted"):
        command = _command_to_go_on(session)
        logger.info("%s at step %d, saved. To go on: %s", outcome.reason, step, command)
        code = cli.PREEMPTED if outcome.reason == "preempted" else cli.INTERRUPTED
        return code
    if outcome.images_per_s is not None or "command" not in session.results:
        session.results |= {
            "images_per_s": outcome.images_per_s,
            "skipped_steps": outcome.skipped,
            "bn": session.config.bn,
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


def _command_to_go_on(session: Session) -> str:
    command = re.sub(r" --resume[= ]never\b", "", session.command)
    if session.config.workdir is None:
        command += f" --workdir={session.workdir.name}"
    return command
