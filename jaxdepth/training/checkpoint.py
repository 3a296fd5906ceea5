"""Checkpoints in a work directory: save, restore, verify, fall back.

Orbax writes them. Beside the arrays each holds a checksum of every one of them, so
that a damaged checkpoint is noticed and the one before it is taken.
"""

import logging
import re
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxdepth.runtime import hosts
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.training.state import PyTree, TrainState

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, in `folder` (local or gs://).

    Kept are the last two and the best one. "Best" is the lowest RMSE given to `save`.

    Attributes:
      damaged: steps that `restore_state` passed over.
    """

    def __init__(self, folder: str, *, read_only: bool = False):
        # Orbax tells of every save and of every option it derives, and of failures
        # before it raises them.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = epath.Path(folder)
        self.read_only = read_only
        self.damaged: list[int] = []
        self._saved_rmse: dict[int, float | None] = {}
        self._underway: int | None = None
        alone: dict[str, Any] = {"create": not read_only}
        if hosts.is_multi_host():
            # Every host has the whole state: one of them reads and writes it, and
            # Orbax is not to wait for the others.
            alone["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
                primary_host=hosts.index(),
                active_processes={hosts.index()},
                barrier_sync_key_prefix=f"host{hosts.index()}",
            )
            alone["create"] = False
            if not read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            read_only=read_only,
            enable_async_checkpointing=not read_only,
            **alone,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps that were saved whole, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of lowest RMSE; None where none was saved with one."""
        rmse = {step: self._rmse(step) for step in self.steps()}
        known = {step: value for step, value in rmse.items() if value is not None}
        return min(known, key=lambda step: known[step]) if known else None

    def save(self, step: int, state: TrainState, *, rmse: float | None = None) -> None:
        """Save the state of `step`, in the background. A step saved before is kept.

        Raises MachineError where storage fails, now or in the save before.
        """
        # First: a failure of the save before is that step's, not this one's.
        self.wait()
        if step in self._manager.all_steps():
            return
        # A copy: on CPU Orbax would read, in the background, memory that the next step
        # was given to reuse.
        state = jax.tree.map(np.array, state)
        model, optimizer = state.variables, _beside_model(state)
        checks = {
            "rmse": rmse,
            "model": checksums(model),
            "optimizer": checksums(optimizer),
        }
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    optimizer=ocp.args.StandardSave(optimizer),
                    checks=ocp.args.JsonSave(checks),
                ),
            )
        except Exception as error:
            raise self._failure(step, error) from error
        if not saved:  # Orbax saves nothing before the newest step that is there
            raise MachineError(
                f"checkpoint of step {step} was not written to {self.folder}, which "
                f"holds a later one; {self.last_good()}"
            )
        self._underway = step
        self._saved_rmse[step] = rmse
        self._prune()

    def drop(self, steps: Sequence[int]) -> None:
        """Delete the checkpoints of these steps.

        While a damaged one is there, no step before it is saved again.
        """
        for step in steps:
            self._manager.delete(step)
            self._saved_rmse.pop(step, None)

    def wait(self) -> None:
        """Until everything saved is on disk. Raises MachineError if it can't be."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(self._underway, error) from error

    def last_good(self, *, failed: int | None = None) -> str:
        """ "last good checkpoint: ...", the newest one that is whole on the disk.

        Args:
          failed: a step whose save is known to have failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception:  # it was raised before, or another failure comes first
            failed = self._underway
        good = [step for step in self.steps() if step != failed]
        last = f"step {good[-1]} in {self.folder}" if good else "none"
        return f"last good checkpoint: {last}"

    def close(self) -> None:
        self.wait()
        self._manager.close()

    def restore_state(self, target: TrainState) -> TrainState | None:
        """The newest state that is whole; None where nothing was saved.

        Args:
          target: a state of the same structure; its values are not used.

        Raises UserError where every checkpoint is damaged or of another network.
        """
        steps = self.steps()
        for step in reversed(steps):
            model, optimizer = target.variables, _beside_model(target)
            try:
                self._check_shapes(step, model)
                got = self._restore(step, {"model": model, "optimizer": optimizer})
            except Damaged as error:
                logger.warning("checkpoint of step %d is damaged: %s", step, error)
                self.damaged.append(step)
                continue
            opt_state = jax.tree.unflatten(
                jax.tree.structure(target.opt_state),
                jax.tree.leaves(got["optimizer"]["opt_state"]),
            )
            return TrainState(
                step=got["optimizer"]["step"],
                opt_state=opt_state,
                average=None if target.average is None else got["model"],
                **got["optimizer"].get("network", got["model"]),
            )
        if steps:
            raise UserError(f"every checkpoint in {self.folder} is damaged: start anew")
        return None

    def restore_model(self, target: PyTree, *, step: int) -> PyTree:
        """`{"params", "batch_stats"}` of one step, shaped as `target`.

        Raises UserError where it is damaged, or of another network.
        """
        try:
            self._check_shapes(step, target)
            return self._restore(step, {"model": target})["model"]
        except Damaged as error:
            others = [s for s in self.steps() if s != step]
            hint = f"; --step= one of {others} may be whole" if others else ""
            raise UserError(
                f"checkpoint of step {step} in {self.folder} is damaged ({error}){hint}"
            ) from None

    def _restore(self, step: int, items: dict[str, PyTree]) -> dict[str, PyTree]:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def abstract(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

        targets = jax.tree.map(abstract, items)
        args: dict[str, Any] = {
            k: ocp.args.StandardRestore(v) for k, v in targets.items()
        }
        args["checks"] = ocp.args.JsonRestore()
        try:
            got = self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:
            raise Damaged(_first_line(error)) from error
        for item in items:
            wrong = _differing(checksums(got[item]), got["checks"][item])
            if wrong:
                raise Damaged(f"checksum of {wrong} differs")
        return {item: got[item] for item in items}

    def _check_shapes(self, step: int, target: PyTree) -> None:
        """Raise UserError where the checkpoint is of another network."""
        try:
            # The manager knows no shapes before the item's first restore.
            handler = ocp.PyTreeCheckpointHandler()
            found = _shapes(handler.metadata(self.folder / str(step) / "model"))
        except Exception as error:
            raise Damaged(_first_line(error)) from error
        wanted = _shapes(target)
        if not found or found == wanted:
            return
        names = sorted(k for k in found | wanted if found.get(k) != wanted.get(k))
        first = names[0]
        raise UserError(
            f"the checkpoint in {self.folder} is of another network: {len(names)} "
            f"arrays differ, first {first} (there {found.get(first, 'absent')}, "
            f"here {wanted.get(first, 'absent')})"
        )

    def _rmse(self, step: int) -> float | None:
        if step not in self._saved_rmse:
            try:
                args = ocp.args.Composite(checks=ocp.args.JsonRestore())
                checks = self._manager.restore(step, args=args)["checks"]
                self._saved_rmse[step] = checks["rmse"]
            except Exception:  # a damaged one is never the best
                self._saved_rmse[step] = None
        return self._saved_rmse[step]

    def _prune(self) -> None:
        steps = self.steps()
        keep = {*steps[-2:], self.best_step()}
        for step in steps:
            if step not in keep:
                self._manager.delete(step)

    def _failure(self, step: int | None, error: Exception) -> MachineError:
        what = "checkpoint" if step is None else f"checkpoint of step {step}"
        return MachineError(
            f"{what} could not be written to {self.folder} ({_reason(error)}); "
            f"{self.last_good(failed=step)}"
        )


class Elsewhere(Checkpoints):
    """The checkpoints of a run that another host writes."""

    def __init__(self, folder: str):
        self.folder = epath.Path(folder)

    def save(self, step: int, state: TrainState, *, rmse: float | None = None) -> None:
        """Nothing: the other host does."""

    def drop(self, steps: Sequence[int]) -> None:
        """Nothing: the other host does."""

    def wait(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to close."""

    def last_good(self, *, failed: int | None = None) -> str:
        return describe_last(str(self.folder))


def describe_last(folder: str) -> str:
    """ "last good checkpoint: ...", as anybody sees it who looks into the folder."""
    path = epath.Path(folder)
    try:
        steps = [
            int(entry.name)
            for entry in path.iterdir()
            # In a bucket nothing is renamed: a file says that it is whole.
            if entry.name.isdigit()
            and ("://" not in folder or (entry / "commit_success.txt").exists())
        ]
    except OSError:
        return f"checkpoints are in {folder}, on host 0"
    last = f"step {max(steps)} in {folder}" if steps else "none"
    return f"last good checkpoint: {last}"


class Damaged(Exception):
    """A checkpoint that cannot be read, or that holds other bytes than were saved."""


def checksums(tree: PyTree) -> dict[str, int]:
    """CRC-32 of every array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(_host(leaf)).data)
        for path, leaf in leaves
    }


def _host(leaf: Any) -> np.ndarray:
    """One host's copy of an array that every device holds whole."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf)


def _beside_model(state: TrainState) -> dict[str, PyTree]:
    """What training needs beside the network to use.

    Where that is an average, this holds the network that the next step starts from.
    """
    beside = {"opt_state": _as_lists(state.opt_state), "step": state.step}
    return beside if state.average is None else beside | {"network": state.network}


def _as_lists(opt_state: PyTree) -> list:
    """Optax's states are named tuples whose names change: keep their leaves alone."""
    return jax.tree.leaves(opt_state)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    tree = getattr(tree, "tree", tree)
    if tree is None:
        return {}
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: hasattr(x, "shape")
    )
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}


def _differing(a: dict[str, int], b: dict[str, int]) -> str:
    names = sorted(k for k in a | b if a.get(k) != b.get(k))
    return names[0] if names else ""


def _reason(error: Exception) -> str:
    """What the operating system said, where an error of storage holds it."""
    found = re.search(r"([^:]+) \[os_error_code", str(error))
    return found[1].strip() if found else _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
