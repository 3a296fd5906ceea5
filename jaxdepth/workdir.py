"""The work directory of a run: its name, its configuration, its results.

A run writes to a local folder. Where --workdir is remote (gs://, memory://, ...) that
folder is a mirror: `sync` copies what changed, and checkpoints go there directly.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import platform as platform_module
import re
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import jax

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from jaxdepth import config as config_lib
from jaxdepth.config import Config
from jaxdepth.data.store.remote import told
from jaxdepth.runtime import atomic, hosts, versions
from jaxdepth.runtime.errors import MachineError, UserError

CONFIG, RESULTS, METRICS = "config.json", "results.json", "metrics.jsonl"
logger = logging.getLogger(__name__)
TABLES = "tables.json"  # in a folder of tables, of which runs are rows


@dataclasses.dataclass(frozen=True)
class WorkDir:
    """Where a run leaves things.

    Attributes:
      name: as the user knows it.
      local: the folder that files are written to.
      remote: the URL that `local` mirrors, or None.
    """

    name: str
    local: Path
    remote: str | None = None

    @classmethod
    def open(cls, name: str | Path) -> "WorkDir":
        """The work directory of that name; nothing is created for a local one.

        The mirror of a remote one is gone when nobody holds this object any more.
        Raises UserError or MachineError where the place can't be read.
        """
        name = str(name)
        if "://" not in name:
            return cls(name, Path(name).expanduser())
        local = Path(tempfile.mkdtemp(prefix="jaxdepth-"))
        here = cls(name, local, name.rstrip("/"))
        weakref.finalize(here, shutil.rmtree, local, ignore_errors=True)
        here._fetch()
        return here

    @property
    def checkpoints(self) -> str:
        """Where Orbax reads and writes: always the place itself, never the mirror."""
        if self.remote is not None:
            return f"{self.remote}/checkpoints"
        return str((self.local / "checkpoints").absolute())

    @property
    def where_checkpoints_are(self) -> str:
        """The same place as another host knows it, whose folder is a scratch one."""
        if "://" in self.name:
            return f"{self.name.rstrip('/')}/checkpoints"
        return str((Path(self.name).expanduser() / "checkpoints").absolute())

    def used(self) -> bool:
        """Whether a run was started here."""
        return (self.local / CONFIG).exists()

    def create(self) -> None:
        """Make the folder. MachineError where the file system refuses."""
        try:
            (self.local / "panels").mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UserError(
                f"--workdir={self.name}: a file of that name is in the way"
            ) from None
        except NotADirectoryError:
            raise UserError(
                f"--workdir={self.name}: a part of the path is a file"
            ) from None
        except OSError as error:
            raise MachineError(
                f"{self.name} can't be made: {error.strerror}"
            ) from error

    def sync(self) -> None:
        """Copy what is local to the remote place; nothing to do for a local one."""
        if self.remote is None:
            return
        with told(self.remote):
            system, root = fsspec.core.url_to_fs(self.remote)
            for path in self.local.rglob("*"):
                if path.is_file():
                    there = f"{root}/{path.relative_to(self.local).as_posix()}"
                    system.makedirs(os.path.dirname(there), exist_ok=True)
                    system.put_file(str(path), there)

    def _fetch(self) -> None:
        assert self.remote is not None
        with told(self.remote):
            system, root = fsspec.core.url_to_fs(self.remote)
            for name in (CONFIG, RESULTS, METRICS, TABLES, "run.log"):
                if system.exists(f"{root}/{name}"):
                    system.get_file(f"{root}/{name}", str(self.local / name))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """UserError while another process of this machine has this folder locked.

        Of a remote place nothing is known; nor where the file system has no locks.
        """
        with contextlib.ExitStack() as stack:
            if self.remote is None and fcntl is not None:
                place = os.open(self.local, os.O_RDONLY)
                stack.callback(os.close, place)
                try:
                    fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UserError(
                        f"{self.name} is in use by another run: wait for its end, or "
                        "name another --workdir"
                    ) from None
                except OSError as error:
                    logger.debug("%s can't be locked: %s", self.name, error)
            yield

    def read_config(self) -> dict[str, Any]:
        """What config.json holds. UserError where it is not of a run of jaxdepth."""
        saved = self.read_json(CONFIG)
        if not isinstance(saved.get("config"), dict):
            raise UserError(
                f"{self.name}/{CONFIG} was not written by jaxdepth run: give the "
                "work directory of a run"
            )
        return saved

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file whole or not at all. Non-finite numbers become null."""
        write_json(self.local / name, values)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of this run; UserError where it is absent or damaged."""
        path = self.local / name
        try:
            text = path.read_text("utf-8", "replace")
        except FileNotFoundError:
            raise UserError(
                f"{self.name} is not the work directory of a run: it has no {name}"
            ) from None
        return config_lib.loads(text, where=f"{self.name}/{name}")


def choose(config: Config) -> WorkDir:
    """The work directory that the flags ask for: named, or the next free one.

    Raises UserError where --resume=never meets a folder with a run.
    """
    if config.output.workdir is not None:
        here = WorkDir.open(config.output.workdir)
        if config.output.resume == "never" and here.used():
            raise UserError(
                f"--resume=never, but {here.name} holds a run: name another "
                "--workdir, or leave --resume=never out to go on"
            )
        if here.local.exists() and not here.local.is_dir():
            raise UserError(
                f"--workdir={config.output.workdir}: a file of that name is in the way"
            )
        return here
    runs = Path("runs")
    stem = f"{config.model.arch}-{config.loss.name}"
    taken = [
        int(match[1])
        for path in (runs.iterdir() if runs.is_dir() else ())
        if (match := re.fullmatch(re.escape(stem) + r"-(\d{3,})", path.name))
    ]
    number = max(taken, default=0) + 1
    while True:  # two runs that start together take two numbers
        name = runs / f"{stem}-{number:03d}"
        try:
            name.mkdir(parents=True)
            return WorkDir.open(str(name))
        except FileExistsError:
            number += 1
        except OSError as error:
            raise MachineError(f"{name} can't be made: {error.strerror}") from error


@contextlib.contextmanager
def shared(config: Config) -> Iterator[WorkDir]:
    """`choose`, once for all hosts.

    Host 0 has the work directory. The others have a scratch folder of that name, with
    what says where the run stands, and whatever they write there goes at the end.
    """
    here: WorkDir | None = None
    with hosts.together():
        if hosts.first():
            here = choose(config)
    if here is not None:
        files = [here.local / name for name in (CONFIG, RESULTS)]
        told = {file.name: file.read_text() for file in files if file.exists()}
        hosts.from_first({"name": here.name, "files": told})
        yield here
        return
    there = hosts.from_first(None)
    with tempfile.TemporaryDirectory(prefix="jaxdepth-") as scratch:
        for name, text in there["files"].items():
            (Path(scratch) / name).write_text(text)
        yield WorkDir(there["name"], Path(scratch))


def discard_if_empty(workdir: WorkDir) -> None:
    """Take back a folder that `choose` made for a run that never started."""
    if hosts.first() and workdir.remote is None and workdir.local.is_dir():
        try:
            workdir.local.rmdir()
            workdir.local.parent.rmdir()
        except OSError:
            return  # not empty: somebody's


# What may differ between the run that stopped and the one that goes on.
_FREE = {
    "steps", "epochs", "log_every", "eval_every", "save_every", "workdir", "resume",
    "on_nan", "parallel", "accumulate", "steps_per_call", "upconv", "cache",
    "cache_dir", "recipe", "precision", "plugin",
}  # fmt: skip


def differences(before: Config, now: Config, *, but: Collection[str] = ()) -> list[str]:
    """ "--lr=0.1 there, 0.2 here" for each flag that makes another experiment.

    `but` names flags that a run may change when it goes on, but not here.
    """
    old, new = before.flat(), now.flat()
    return [
        f"--{name}={old[name]} there, {new[name]} here"
        for name in old
        if (name not in _FREE or name in but) and old[name] != new[name]
    ]


def refuse_changes(before: Config, now: Config, *, where: str) -> None:
    """UserError where a resumed run would not be the same experiment."""
    pairs = differences(before, now)
    if pairs:
        raise UserError(
            f"{where} holds a run with other flags ({'; '.join(pairs)}): name another "
            "--workdir, or give the same flags to go on"
        )


def refuse_other_network(before: Config, now: Config, *, where: str) -> None:
    """UserError where a run to go on from holds the state of something else."""
    for name in ("arch", "layout", "unpool"):
        there, here = getattr(before.model, name), getattr(now.model, name)
        if there != here:
            raise UserError(
                f"--resume={where} is of --{name}={there}, this is --{name}={here}"
            )
    if bool(before.train.ema) != bool(now.train.ema):
        raise UserError(
            f"--resume={where} is of --ema={before.train.ema:g}, this is "
            f"--ema={now.train.ema:g}: both keep an average, or neither"
        )
    # What an optimizer remembers of each parameter.
    remembers = {
        "optimizer": lambda config: config.optimizer.name == "sgd",
        "freeze": lambda config: config.model.freeze == "encoder",
        "encoder_lr_factor": lambda config: config.optimizer.encoder_lr_factor == 1.0,
    }
    for name, what in remembers.items():
        if what(before) != what(now):
            raise UserError(
                f"--resume={where} is of --{name}={before.flat()[name]}, this is "
                f"--{name}={now.flat()[name]}, whose optimizer remembers other things"
            )


def environment() -> dict[str, Any]:
    """Versions and devices, as results and configurations carry them."""
    names = ("jaxdepth", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    devices = jax.devices()
    return {
        "versions": {"python": platform_module.python_version()}
        | versions.installed(names),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "hosts": jax.process_count(),
        },
    }


def plain(value: Any) -> Any:
    """A value that JSON holds: non-finite numbers are None, arrays are lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: str | Path, values: Any) -> None:
    """Write JSON whole or not at all. MachineError where storage fails."""
    path = Path(path).expanduser()
    text = json.dumps(plain(values), indent=1)
    try:
        with atomic.replacing(path, durable=True) as file:
            file.write(f"{text}\n".encode())
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error.strerror}") from error
