"""The work directory of a run: its name, its configuration, its results.

A run writes to a local folder. If --workdir is remote (gs://, memory://, ...), that
folder is a mirror: `sync` uploads it, and checkpoints are written to the remote URL
directly.
"""

import contextlib
import dataclasses
import json
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

from jaxdepth import config as config_lib
from jaxdepth.config import Config
from jaxdepth.runtime import atomic, hosts, locks, storage, versions
from jaxdepth.runtime.errors import MachineError, UserError

CONFIG, RESULTS, METRICS = "config.json", "results.json", "metrics.jsonl"
TABLES = "tables.json"  # in the folder of a table, which holds one run per row
_LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class WorkDir:
    """A work directory.

    Attributes:
      name: the path or URL that the user gave.
      local: the folder that files are written to.
      remote: the URL that `local` mirrors, or None.
    """

    name: str
    local: Path
    remote: str | None = None

    @classmethod
    def open(cls, name: str | Path) -> "WorkDir":
        """Open a work directory; a local folder is not created.

        The mirror of a remote one is deleted with this object.
        Raises UserError or MachineError if a remote one can't be read.
        """
        name = str(name)
        if "://" not in name:
            return cls(name, Path(name).expanduser())
        local = Path(tempfile.mkdtemp(prefix="jaxdepth-"))
        workdir = cls(name, local, name.rstrip("/"))
        weakref.finalize(workdir, shutil.rmtree, local, ignore_errors=True)
        workdir._fetch()
        return workdir

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints, at the remote URL if there is one."""
        if self.remote is not None:
            return f"{self.remote}/checkpoints"
        return str((self.local / "checkpoints").absolute())

    @property
    def checkpoints_on_host_0(self) -> str:
        """The folder of host 0's checkpoints; on other hosts `local` is temporary."""
        if "://" in self.name:
            return f"{self.name.rstrip('/')}/checkpoints"
        return str((Path(self.name).expanduser() / "checkpoints").absolute())

    def used(self) -> bool:
        """Whether the folder holds a run."""
        return (self.local / CONFIG).exists()

    def create(self) -> None:
        """Create the folder.

        Raises: UserError if a file has its name; MachineError if it can't be created.
        """
        try:
            (self.local / "panels").mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise _file_instead_of_folder(self.name) from None
        except OSError as error:
            raise _not_created(self.name, error) from error

    def sync(self) -> None:
        """Upload the files to the remote work directory; no-op for a local one."""
        if self.remote is None:
            return
        with storage.storage_errors(self.remote):
            system, root = fsspec.core.url_to_fs(self.remote)
            for path in self.local.rglob("*"):
                if path.is_file():
                    target = f"{root}/{path.relative_to(self.local).as_posix()}"
                    system.makedirs(os.path.dirname(target), exist_ok=True)
                    system.put_file(str(path), target)

    def _fetch(self) -> None:
        assert self.remote is not None
        with storage.storage_errors(self.remote):
            system, root = fsspec.core.url_to_fs(self.remote)
            for name in (CONFIG, RESULTS, METRICS, TABLES, "run.log"):
                if system.exists(f"{root}/{name}"):
                    system.get_file(f"{root}/{name}", str(self.local / name))

    @contextlib.contextmanager
    def locked(self, *, instead: str = ", or name another --workdir") -> Iterator[None]:
        """Lock the folder. Raises UserError if another process has locked it.

        A remote work directory is not locked.

        Args:
          instead: what to do rather than wait, for the message.
        """

        if self.remote is not None:
            yield
            return

        def refuse() -> None:
            raise UserError(
                f"{self.name} is in use by another run: wait for its end{instead}"
            )

        with locks.file_lock(self.local / _LOCK, if_held=refuse):
            yield

    def read_config(self) -> dict[str, Any]:
        """Read config.json. Raises UserError if jaxdepth did not write it."""
        saved = self.read_json(CONFIG)
        if not isinstance(saved.get("config"), dict):
            raise UserError(
                f"{self.name}/{CONFIG} was not written by jaxdepth run: give the "
                "work directory of a run"
            )
        return saved

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file atomically. Non-finite numbers become null."""
        write_json(self.local / name, values)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of this run; UserError if it is missing or damaged.

        Undecodable bytes become U+FFFD.
        """
        path = self.local / name
        try:
            text = path.read_text("utf-8", "replace")
        except FileNotFoundError:
            raise UserError(
                f"{self.name} is not the work directory of a run: it has no {name}"
            ) from None
        except OSError as error:
            raise UserError(
                f"{self.name}/{name} can't be read: {error.strerror}"
            ) from None
        return config_lib.loads(text, where=f"{self.name}/{name}")


def choose(config: Config) -> WorkDir:
    """Open the work directory of --workdir, or create the next free one in `runs`.

    Raises UserError if --resume=never is given and the folder holds a run.
    """
    if config.output.workdir is not None:
        workdir = WorkDir.open(config.output.workdir)
        if config.output.resume == "never" and workdir.used():
            raise UserError(
                f"--resume=never, but {workdir.name} contains a run: name another "
                "--workdir, or leave --resume=never out to resume it"
            )
        if workdir.local.exists() and not workdir.local.is_dir():
            raise _file_instead_of_folder(workdir.name)
        return workdir
    return _create_numbered(f"{config.model.arch}-{config.loss.name}")


def _create_numbered(stem: str) -> WorkDir:
    """Create runs/STEM-NNN with the number after the highest one in use."""
    runs = Path("runs")
    numbers = [
        int(match[1])
        for path in (runs.iterdir() if runs.is_dir() else ())
        if (match := re.fullmatch(re.escape(stem) + r"-(\d{3,})", path.name))
    ]
    number = max(numbers, default=0) + 1
    while True:  # another run may create the same folder concurrently
        name = runs / f"{stem}-{number:03d}"
        try:
            name.mkdir(parents=True)
            return WorkDir.open(str(name))
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _not_created(str(name), error) from error


def _file_instead_of_folder(name: str) -> UserError:
    return UserError(f"--workdir={name}: this path, or a part of it, is a file")


def _not_created(name: str, error: OSError) -> MachineError:
    return MachineError(f"{name} can't be created: {error.strerror}")


@contextlib.contextmanager
def shared(config: Config) -> Iterator[WorkDir]:
    """Open the work directory by `choose` on host 0, for all hosts.

    The other hosts get a temporary folder under that name, with copies of config.json
    and results.json.
    """
    workdir: WorkDir | None = None
    with hosts.raise_on_all_hosts():
        if hosts.is_first_host():
            workdir = choose(config)
    if workdir is not None:
        paths = [workdir.local / name for name in (CONFIG, RESULTS)]
        files = {
            path.name: path.read_text("utf-8", "replace")
            for path in paths
            if path.is_file()
        }
        hosts.broadcast_json({"name": workdir.name, "files": files})
        yield workdir
        return
    message = hosts.broadcast_json(None)
    with tempfile.TemporaryDirectory(prefix="jaxdepth-") as scratch:
        for name, text in message["files"].items():
            (Path(scratch) / name).write_text(text)
        yield WorkDir(message["name"], Path(scratch))


def discard_if_empty(workdir: WorkDir) -> None:
    """Remove the folder that `choose` created for a run that did not start."""
    if hosts.is_first_host() and workdir.remote is None and workdir.local.is_dir():
        with contextlib.suppress(OSError):  # if a folder is not empty
            (workdir.local / _LOCK).unlink(missing_ok=True)
            workdir.local.rmdir()
            workdir.local.parent.rmdir()


# Flags that a resumed run may change.
_CHANGEABLE = {
    "steps", "epochs", "log_every", "eval_every", "save_every", "workdir", "resume",
    "on_nan", "parallel", "accumulate", "steps_per_call", "upconv", "cache",
    "cache_dir", "recipe", "precision", "plugin", "keep_optimizer",
}  # fmt: skip


def differences(before: Config, now: Config, *, but: Collection[str] = ()) -> list[str]:
    """Return "--lr=0.1 before, 0.2 now" for each flag that a resumed run can't change.

    Args:
      but: flags to compare as well, although a resumed run may change them.
    """
    old, new = before.flat(), now.flat()
    return [
        f"--{name}={old[name]} before, {new[name]} now"
        for name in old
        if (name not in _CHANGEABLE or name in but) and old[name] != new[name]
    ]


def refuse_changes(before: Config, now: Config, *, where: str) -> None:
    """Raise UserError if a flag changed that a resumed run can't change."""
    if changes := differences(before, now):
        raise UserError(
            f"{where} contains a run with other flags ({'; '.join(changes)}): name "
            "another --workdir, or give the same flags to resume it"
        )


def refuse_other_network(
    before: Config, now: Config, *, where: str, optimizer: bool = True
) -> None:
    """Raise UserError if `before` has another network or optimizer state.

    Args:
      where: value of --resume.
      optimizer: whether the optimizer state of `before` is used.
    """
    old, new = before.flat(), now.flat()

    def refuse(name: str, reason: str) -> None:
        raise UserError(
            f"--resume={where} has --{name}={old[name]}, this run has "
            f"--{name}={new[name]}{reason}"
        )

    for name in ("arch", "layout", "unpool"):
        if old[name] != new[name]:
            refuse(name, "")
    if not optimizer:
        return
    if bool(before.train.ema) != bool(now.train.ema):
        refuse("ema", ": give --ema in both runs or in neither")
    # Properties that determine the arrays of the optimizer state.
    same_state = {
        "optimizer": lambda config: config.optimizer.name == "sgd",
        "freeze": lambda config: config.model.freeze == "encoder",
        "encoder_lr_factor": lambda config: config.optimizer.encoder_lr_factor == 1.0,
    }
    for name, kind in same_state.items():
        if kind(before) != kind(now):
            refuse(name, ", which needs another optimizer state")


def environment() -> dict[str, Any]:
    """Return versions and devices, for results.json and config.json."""
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
    """Convert to a JSON value: non-finite numbers to None, arrays to lists."""
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
    """Write JSON atomically. Raises MachineError if storage fails."""
    path = Path(path).expanduser()
    text = json.dumps(plain(values), indent=1)
    with storage.write_errors(path), atomic.atomic_write(path, durable=True) as file:
        file.write(f"{text}\n".encode())
