"""The paper's tables from runs of its rows: what `jaxdepth tables` does.

Every run is a process of `jaxdepth run` with a work directory of its own, so that
one that fails, or takes all memory, loses no other. What is finished is reused, what
was stopped goes on.
"""

import dataclasses
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
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
# The recorded command identifies files of this command, in its old and new form.
MARKS = ("jaxdepth tables", "experiments.tables")
# Starts a run with these flags of jaxdepth run and waits for its end.
Start = Callable[[Sequence[str]], subprocesses.Completed]
# What a row says itself, and what this command decides.
_OWN = ("recipe", "arch", "loss", "unpool", "layout", "init", "resume")
# Flags that name one thing, and what of a scale goes with its own choice.
_LENGTH = (
    ({"steps", "epochs"}, ("eval_every", "save_every", "warmup_steps")),
    ({"warmup_steps", "warmup_epochs"}, ()),
)
_STOPPED = (cli.PREEMPTED, cli.INTERRUPTED)


@dataclasses.dataclass(frozen=True)
class TablesConfig:
    """Run the rows of the paper's tables, and print them beside the paper's numbers.

    All flags of jaxdepth run that a row does not decide itself go on to every run
    and win over the scale's: --data, --split, --size, --steps, --batch_size, --lr, ...
    --weights takes one or two converted files (A,B): each goes to the rows that start
    from it. Rows whose weights are not given are printed as absent.
    """

    table: Literal["1", "2", "3", "4", "all"] = "all"
    """1: networks; 2: losses; 3: unpooling; 4: initialisation."""
    scale: Literal["paper", "small", "smoke"] = "paper"
    """paper: its own numbers of images and epochs; small: 57x76 in hundreds of steps,
    for real frames on a CPU; smoke: whether everything runs, on rooms, in minutes."""
    workdir: str = "tables"
    """Folder of the tables; each run has its work directory RUN/seed-N in it."""
    seeds: int = 1
    """Runs of each row, from --seed on."""

    def __post_init__(self):
        if not self.workdir:
            raise UserError("--workdir= is empty: name a folder for the tables")
        if self.seeds < 1:
            raise UserError(f"--seeds={self.seeds}: must be at least 1")


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags of `TablesConfig`, and the ones that go on to every run."""
    names = {field.name for field in dataclasses.fields(TablesConfig)}
    mine: list[str] = []
    theirs: list[str] = []
    into = theirs
    for word in argv:
        if word.startswith("-"):
            name = word.partition("=")[0].lstrip("-").replace("-", "_")
            into = mine if name in {*names, "help", "h"} else theirs
        into.append(word)
    return mine, theirs


def run(
    config: TablesConfig, flags: Sequence[str], *, command: str, start: Start
) -> int:
    """Run what is missing, then write and print the tables; returns the exit code.

    0 also where weights are absent; where runs failed, the code of the first of them;
    75 or 130 where it was stopped. Files are written after every run.

    Args:
      flags: of `jaxdepth run`, for every row.
      command: this command, to be kept.
      start: starts a run.
    Raises: UserError before anything runs, where flags are wrong or a work directory
      holds a run of another configuration.
    """
    names = list(published.TABLES) if config.table == "all" else [config.table]
    jobs = plan(config, names, given(flags))
    here = WorkDir.open(config.workdir)
    earlier = _earlier(here)
    _make(here)

    def write() -> dict[str, Any]:
        found = table_formats.collect(names, jobs, scale=config.scale, command=command)
        found = table_formats.with_earlier(found, earlier)
        _write(here, found)
        return found

    waiting = [job for job in jobs if job.status == WAITING]
    absent = sum(job.status == ABSENT for job in jobs)
    logger.info(
        "%d runs: %d are finished, %d to do, %d without their weights",
        len(jobs),
        len(jobs) - len(waiting) - absent,
        len(waiting),
        absent,
    )
    codes = []
    for k, job in enumerate(waiting):
        logger.info("run %d of %d: %s", k + 1, len(waiting), job.folder)
        codes.append(_run(job, start))
        found = write()
        if codes[-1] in _STOPPED:
            table_formats.show(found, names)
            logger.info("stopped; to go on: %s", command)
            return codes[-1]
    table_formats.show(write(), names)
    for job in jobs:
        if job.status == FAILED:
            logger.warning("%s failed: %s", job.folder, job.reason)
    logger.info(
        "files: %s/{%s,%s}", here.name, workdir_lib.TABLES, table_formats.MARKDOWN
    )
    return next((code for code in codes if code != cli.OK), cli.OK)


def _run(job: Job, start: Start) -> int:
    """Run it, note how it ended, and return the exit code that it is worth."""
    ended = start(job.flags)
    if ended.code == cli.OK:
        job.status, job.reason = DONE, None
        here = WorkDir.open(job.workdir)
        if not (here.local / workdir_lib.RESULTS).exists():
            job.status = FAILED
            job.reason = f"it left no {workdir_lib.RESULTS} that can be seen from here"
            return cli.MACHINE
    if ended.stopped or ended.code in _STOPPED:
        if job.status != DONE:
            job.reason = "stopped"
        return ended.code if ended.code in _STOPPED else cli.INTERRUPTED
    if ended.code != cli.OK:
        job.status = FAILED
        said = ended.reason.removeprefix("error: ").removeprefix("stopped: ")
        job.reason = said or f"exit code {ended.code}"
    return ended.code if ended.code >= 0 else cli.MACHINE


def _earlier(here: WorkDir) -> dict[str, Any]:
    """tables.json of an earlier call, whose other tables are kept; {} without one.

    UserError where a file of that name is somebody else's.
    """
    for name in (workdir_lib.TABLES, table_formats.MARKDOWN):
        output_files.check_ours(here.local / name, *MARKS, flag="workdir")
    if not (here.local / workdir_lib.TABLES).exists():
        return {}
    found = here.read_json(workdir_lib.TABLES)
    try:
        table_formats.with_earlier(found, found)
    except (KeyError, TypeError):
        raise UserError(
            f"{here.name}/{workdir_lib.TABLES} is damaged: take it away, the runs "
            "themselves are read again"
        ) from None
    return found


def _make(here: WorkDir) -> None:
    try:
        here.local.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"--workdir={here.name}: a file is in the way") from None
    except OSError as error:
        raise MachineError(f"{here.name} can't be made: {error.strerror}") from error


def _write(here: WorkDir, found: dict[str, Any]) -> None:
    here.write_json(workdir_lib.TABLES, found)
    text = table_formats.markdown(found)
    output_files.write_text(here.local / table_formats.MARKDOWN, text)
    here.sync()


def given(flags: Sequence[str]) -> dict[str, str]:
    """Flags as name -> value. UserError for those that the rows decide."""
    found: dict[str, str] = {}
    name = None
    for word in flags:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            name = key.replace("-", "_")
            found[name] = value
            name = None if equals else name
        elif name is not None:
            found[name], name = word, None
        else:
            raise UserError(f"{word}: a flag was expected, as in --data={word}")
    for name in _OWN:
        if name in found:
            raise UserError(f"--{name}: each row of a table decides that; leave it out")
    return found


def plan(
    config: TablesConfig, names: Sequence[str], flags: Mapping[str, str]
) -> list[Job]:
    """The runs behind these tables, each once, and what is done of them.

    Raises UserError for wrong flags, and where a work directory holds a run of another
    configuration.
    """
    flags = dict(flags)
    weights = weights_by_init(flags.pop("weights", ""))
    text = flags.pop("seed", "0")
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"--seed={text}: a whole number")
    runs = dict.fromkeys(
        row.run for name in names for row in published.TABLES[name].rows
    )
    return [
        _job(config, run, seed, flags, weights)
        for run in runs
        for seed in range(int(text), int(text) + config.seeds)
    ]


def weights_by_init(value: str) -> dict[str, str]:
    """{"imagenet" | "nyu": file} of --weights=A,B: each file says what it is for.

    Raises UserError where one can't be read, or both are for the same.
    """
    found: dict[str, str] = {}
    for name in filter(None, value.split(",")):
        init = files.read(name).init
        if init in found:
            raise UserError(f"--weights={value}: both are for --init={init}")
        found[init] = name
    return found


def _job(
    config: TablesConfig,
    run: str,
    seed: int,
    flags: Mapping[str, str],
    weights: Mapping[str, str],
) -> Job:
    about = published.RUNS[run]
    own = published.scaled(run, config.scale)
    for pair, more in _LENGTH:
        if pair & set(flags):
            own = {k: v for k, v in own.items() if k not in (*pair, *more)}
    folder = PurePosixPath(run) / f"seed-{seed}"
    name = f"{config.workdir.rstrip('/')}/{folder}"
    values = {"recipe": about.recipe} | own | dict(about.flags) | dict(flags)
    file = weights.get(about.init) or _weights_there(name)
    if about.init != "random" and file is not None:
        values["weights"] = file
    values |= {"seed": seed, "workdir": name}
    job = Job(run, seed, folder, name, [f"--{k}={v}" for k, v in values.items()])
    if about.init != "random" and file is None:
        job.status = ABSENT
        job.reason = f"no weights for --init={about.init} (--weights=FILE)"
        return job
    wanted = cli.parse_config(job.flags, prog=PROG)
    if finished(WorkDir.open(name), wanted):
        job.status = DONE
    else:
        job.reason = "not run yet"
    return job


def _weights_there(name: str) -> str | None:
    """The weights that a run there was made with: it need not be told them again."""
    here = WorkDir.open(name)
    if not here.used():
        return None
    return here.read_config()["config"].get("weights")


def finished(here: WorkDir, wanted: Config) -> bool:
    """Whether this work directory holds the run that `wanted` asks for, to its end.

    UserError where it holds another one, naming the flags that differ.
    """
    if not here.used():
        return False
    saved = here.read_config()
    try:
        before = config_lib.from_json(saved["config"])
        now = _settled_there(wanted, before, saved)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{here.name}/{workdir_lib.CONFIG} is damaged ({error!r}): take the folder "
            "away to run it again"
        ) from None
    # Another number of steps is another row.
    pairs = workdir_lib.differences(before, now, but=("steps",))
    if pairs:
        raise UserError(
            f"{here.name} holds a run with other flags ({'; '.join(pairs)}): name "
            "another --workdir, or give the same flags"
        )
    if not (here.local / workdir_lib.RESULTS).exists():
        return False
    results = here.read_json(workdir_lib.RESULTS)
    steps = [entry.get("step") for entry in results.get("evaluations", ())]
    return "command" in results and steps[-1:] == [now.train.steps]


def _settled_there(wanted: Config, before: Config, saved: Mapping[str, Any]) -> Config:
    """`wanted` with what platform and data settled when the run before began."""
    config = config_lib.resolve(wanted, platform=saved["devices"]["platform"])
    images = saved["data"]["train_images"]
    config = config_lib.resolve_steps(config, train_images=images)
    values: dict[str, Any] = {}
    words = shlex.split(saved["command"])
    if wanted.data.split == "auto" and flags_lib.value_of(words, "split") in (
        None,
        "auto",
    ):
        values["split"] = before.data.split
    # Data without the truth that is asked for train on the other one.
    recipe = recipe_named(before.output.recipe).flags
    asked = flags_lib.value_of(words, "depth") or recipe.get("depth", "filled")
    if asked == wanted.data.depth:
        values["depth"] = before.data.depth
    return config.replace(**values)


def command(argv: Sequence[str]) -> int:
    """Run and print the tables that the flags ask for; returns the exit code."""
    mine, theirs = split_flags(argv)
    config = flags_lib.parse(TablesConfig, mine, prog=PROG)
    cache = flags_lib.value_of(theirs, "cache_dir") or "~/.cache/jaxdepth"

    def start(flags: Sequence[str]) -> subprocesses.Completed:
        words = [sys.executable, "-m", "jaxdepth", "run", *flags]
        return subprocesses.run(words, environment=environment(cache))

    said = shlex.join([*PROG.split(), *argv])
    return run(config, theirs, command=said, start=start)


def environment(cache_dir: str) -> dict[str, str]:
    """Environment of the runs: this package on the path, one compilation cache."""
    root = str(Path(__file__).resolve().parents[3])
    compiled = str(Path(cache_dir).expanduser() / "xla")
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    defaults = {"JAX_COMPILATION_CACHE_DIR": compiled}
    return defaults | dict(os.environ) | {"PYTHONPATH": path}
