"""`jaxdepth tables`: train the rows of the paper's tables, and print the tables.

Every run is a separate process of `jaxdepth run` with its own work directory, so that a
run that fails, or exhausts the memory, does not affect the others. Finished runs are
reused, and interrupted runs are resumed.
"""

import collections
import dataclasses
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxdepth import config as config_lib
from jaxdepth import workdir as workdir_lib
from jaxdepth.commands import cli
from jaxdepth.commands.paper import published, table_formats
from jaxdepth.commands.paper.table_formats import ABSENT, DONE, FAILED, WAITING, Job
from jaxdepth.config import Config
from jaxdepth.recipes import recipe_named
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files, subprocesses
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.weights import files
from jaxdepth.workdir import WorkDir

logger = logging.getLogger(__name__)

PROG = "jaxdepth tables"
# Commands that are recorded in the files of this command: the present and an old name.
MARKS = ("jaxdepth tables", "experiments.tables")
# Starts `jaxdepth run` with these flags and waits until it ends.
Start = Callable[[Sequence[str]], subprocesses.Completed]
# Flags that the rows or this command decide.
_RESERVED = ("recipe", "arch", "loss", "unpool", "layout", "init", "resume")
# Flag -> flags of the scale that are dropped if it is given.
_REPLACED = {
    "steps": {"eval_every", "save_every", "warmup_steps"},
    "epochs": {"steps", "eval_every", "save_every", "warmup_steps"},
    "warmup_epochs": {"warmup_steps"},
}
_STOPPED = (cli.PREEMPTED, cli.INTERRUPTED)


@dataclasses.dataclass(frozen=True)
class TablesConfig:
    """Train the rows of the paper's tables; print them beside the paper's numbers.

    Other flags of jaxdepth run are passed to every run and override the scale's:
    --data, --split, --size, --steps, --batch_size, --lr, ... The rows decide --arch,
    --loss, --unpool, --layout and --init. --weights accepts one or two converted files
    (A,B); each is used by the rows with the --init that it is for. Rows without their
    weights are printed as absent.
    """

    table: Literal["1", "2", "3", "4", "all"] = "all"
    """1: networks; 2: losses; 3: unpooling; 4: initialisation."""
    scale: published.Scale = "paper"
    """paper: the paper's numbers of images and epochs; small: 57x76 and hundreds of
    steps, for real frames on a CPU; smoke: a test on rooms that takes minutes."""
    workdir: str = "tables"
    """Folder of the tables; the work directories of the runs are RUN/seed-N in it."""
    seeds: int = flags_lib.flag(1, at_least=1)
    """Number of seeds for each row, starting with --seed."""

    def __post_init__(self):
        if not self.workdir:
            raise UserError("--workdir= is empty: give a folder for the tables")
        flags_lib.validate(self)


def run(
    config: TablesConfig, flags: Mapping[str, str], *, command: str, start: Start
) -> int:
    """Train the missing runs, then write and print the tables.

    The files are written after every run.

    Args:
      flags: flags of `jaxdepth run` for every row, name -> value.
      command: command line, which is recorded.
      start: starts a run.

    Returns: the exit code: that of the first failed run; 75 or 130 if stopped; else 0,
      even if weights are absent.
    Raises: UserError, before any run starts, for wrong flags or if a work directory
      holds a run of another configuration.
    """
    names = list(published.TABLES) if config.table == "all" else [config.table]
    jobs = plan(config, names, flags)
    folder, earlier = _open_folder(config.workdir)

    def write() -> dict[str, Any]:
        contents = table_formats.collect(
            names, jobs, earlier, scale=config.scale, command=command
        )
        folder.write_json(workdir_lib.TABLES, contents)
        text = table_formats.markdown(contents)
        output_files.write_text(folder.local / table_formats.MARKDOWN, text)
        folder.sync()
        return contents

    _log_status(jobs)
    waiting = [job for job in jobs if job.status == WAITING]
    codes = []
    for number, job in enumerate(waiting, 1):
        logger.info("run %d of %d: %s", number, len(waiting), job.folder)
        codes.append(_run(job, start))
        contents = write()
        if codes[-1] in _STOPPED:
            table_formats.show(contents, names)
            logger.info("stopped; to resume: %s", command)
            return codes[-1]
    table_formats.show(write(), names)
    for job in jobs:
        if job.status == FAILED:
            logger.warning("%s failed: %s", job.folder, job.reason)
    logger.info(
        "files: %s/{%s,%s}", folder.name, workdir_lib.TABLES, table_formats.MARKDOWN
    )
    return next((code for code in codes if code != cli.OK), cli.OK)


def _log_status(jobs: Sequence[Job]) -> None:
    count = collections.Counter(job.status for job in jobs)
    text = "%d runs: %d finished, %d to train, %d without weights"
    logger.info(text, len(jobs), count[DONE], count[WAITING], count[ABSENT])


def _run(job: Job, start: Start) -> int:
    """Train a run and record its status. Returns the exit code."""
    ended = start(job.flags)
    code = ended.code
    if code == cli.OK:
        workdir = WorkDir.open(job.workdir)
        if not (workdir.local / workdir_lib.RESULTS).exists():
            job.status = FAILED
            job.reason = f"the run wrote no {workdir_lib.RESULTS}"
            return cli.MACHINE
        job.status, job.reason = DONE, None
    elif ended.stopped or code in _STOPPED:
        job.reason = "stopped"
    else:
        job.status = FAILED
        reason = ended.reason.removeprefix("error: ").removeprefix("stopped: ")
        job.reason = reason or f"exit code {code}"
    if ended.stopped and code not in _STOPPED:
        return cli.INTERRUPTED
    return code if code >= 0 else cli.MACHINE


def _open_folder(name: str) -> tuple[WorkDir, dict[str, Any]]:
    """Create the folder of the tables; read its tables.json, {} without one.

    Raises: UserError if a file was not written by this command, or is damaged.
    """
    folder = WorkDir.open(name)
    for file in (workdir_lib.TABLES, table_formats.MARKDOWN):
        output_files.check_ours(folder.local / file, *MARKS, flag="workdir")
    earlier: dict[str, Any] = {}
    if (folder.local / workdir_lib.TABLES).exists():
        earlier = folder.read_json(workdir_lib.TABLES)
        table_formats.check(earlier, where=f"{name}/{workdir_lib.TABLES}")
    try:
        folder.local.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"--workdir={name} can't be created: {error.strerror}"
        ) from error
    return folder, earlier


def flag_values(argv: Sequence[str]) -> dict[str, str]:
    """Flags as name -> value. Raises UserError for those that the rows decide."""
    values: dict[str, str] = {}
    known = flags_lib.flags_of(Config)
    name = None
    for word in argv:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            name = key.replace("-", "_")
            boolean = name in known and known[name].hint is bool
            values[name] = "true" if boolean and not equals else value
            name = None if equals or boolean else name
        elif name is not None:
            values[name], name = word, None
        else:
            raise UserError(f"{word}: expected a flag, as in --data={word}")
    for name in _RESERVED:
        if name in values:
            raise UserError(
                f"--{name}: the rows of a table set this flag; leave it out"
            )
    return values


def plan(
    config: TablesConfig, names: Sequence[str], flags: Mapping[str, str]
) -> list[Job]:
    """The runs of these tables, each once, with their status.

    Raises: UserError for wrong flags, or if a work directory holds a run of another
      configuration.
    """
    flags = dict(flags)
    weights = weights_by_init(flags.pop("weights", ""))
    text = flags.pop("seed", "0")
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"--seed={text}: expected a whole number")
    rows = (row for name in names for row in published.TABLES[name].rows)
    return [
        _job(config, run, seed, flags, weights)
        for run in dict.fromkeys(row.run for row in rows)
        for seed in range(int(text), int(text) + config.seeds)
    ]


def weights_by_init(value: str) -> dict[str, str]:
    """The files of --weights=A,B by the --init that they are for.

    Raises: UserError if a file can't be read, or if both are for the same --init.
    """
    by_init: dict[str, str] = {}
    for name in filter(None, value.split(",")):
        init = files.read(name).init
        if init in by_init:
            raise UserError(
                f"--weights={value}: two files are for --init={init}; give one of them"
            )
        by_init[init] = name
    return by_init


def _job(
    config: TablesConfig,
    run: str,
    seed: int,
    flags: Mapping[str, str],
    weights: Mapping[str, str],
) -> Job:
    """A run with its flags and status. Raises UserError as `plan` does."""
    row = published.RUNS[run]
    dropped = set().union(*(_REPLACED.get(name, ()) for name in flags))
    scaled = published.scaled(run, config.scale)
    values: dict[str, Any] = {"recipe": row.recipe}
    values |= {name: value for name, value in scaled.items() if name not in dropped}
    values |= {**row.flags, **flags}
    folder = f"{run}/seed-{seed}"
    workdir = WorkDir.open(f"{config.workdir.rstrip('/')}/{folder}")
    if row.init != "random":
        saved = workdir.read_config()["config"] if workdir.used() else {}
        values["weights"] = weights.get(row.init) or saved.get("weights")
        if values["weights"] is None:
            reason = f"--init={row.init} needs --weights=FILE"
            return Job(run, seed, folder, workdir.name, [], ABSENT, reason)
    values |= {"seed": seed, "workdir": workdir.name}
    words = [f"--{name}={value}" for name, value in values.items()]
    if finished(workdir, cli.parse_config(words, prog=PROG)):
        return Job(run, seed, folder, workdir.name, words, DONE)
    return Job(run, seed, folder, workdir.name, words, reason="not run yet")


def finished(workdir: WorkDir, requested: Config) -> bool:
    """Whether a work directory holds the finished run of a configuration.

    Raises: UserError if it holds a run with other flags, or is damaged.
    """
    if not workdir.used():
        return False
    saved = workdir.read_config()
    try:
        before = config_lib.from_json(saved["config"])
        now = _resolve_as_before(requested, before, saved)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{workdir.name}/{workdir_lib.CONFIG} is damaged ({error!r}): delete the "
            "folder to run it again"
        ) from None
    # A resumed run may change --steps; a row may not.
    if changes := workdir_lib.differences(before, now, but=("steps",)):
        raise UserError(
            f"{workdir.name} holds a run with other flags ({'; '.join(changes)}): give "
            "another --workdir, or the same flags"
        )
    if not (workdir.local / workdir_lib.RESULTS).exists():
        return False
    results = workdir.read_json(workdir_lib.RESULTS)
    steps = [entry.get("step") for entry in results.get("evaluations", ())]
    return "command" in results and steps[-1:] == [now.train.steps]


def _resolve_as_before(
    requested: Config, before: Config, saved: Mapping[str, Any]
) -> Config:
    """Resolve `requested` with the platform and data of an earlier run.

    Args:
      before: resolved configuration of the earlier run.
      saved: its config.json.
    """
    config = config_lib.resolve(requested, platform=saved["devices"]["platform"])
    images = saved["data"]["train_images"]
    config = config_lib.resolve_steps(config, train_images=images)
    values: dict[str, Any] = {}
    words = shlex.split(saved["command"])
    split = flags_lib.value_of(words, "split") or "auto"
    if split == requested.data.split == "auto":
        values["split"] = before.data.split
    # If the data lack the requested kind of ground truth, training uses the other kind.
    recipe = recipe_named(before.output.recipe).flags
    depth = flags_lib.value_of(words, "depth") or recipe.get("depth", "filled")
    if depth == requested.data.depth:
        values["depth"] = before.data.depth
    return config.replace(**values)


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags. Returns the exit code."""
    if flags_lib.asks_help(argv):
        flags_lib.parse(TablesConfig, ["--help"], prog=PROG)
    values = flag_values(argv)
    names = [f.name for f in dataclasses.fields(TablesConfig) if f.name in values]
    words = [f"--{name}={values.pop(name)}" for name in names]
    config = flags_lib.parse(TablesConfig, words, prog=PROG)

    def start(flags: Sequence[str]) -> subprocesses.Completed:
        words = [sys.executable, "-m", "jaxdepth", "run", *flags]
        return subprocesses.run(words, environment=environment())

    command_line = shlex.join([*PROG.split(), *argv])
    return run(config, values, command=command_line, start=start)


def environment() -> dict[str, str]:
    """Environment of the runs: this package on the path.

    Their --cache_dir is the same, so they share its compiled programs.
    """
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return dict(os.environ) | {"PYTHONPATH": path}
