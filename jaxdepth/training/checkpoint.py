"""Checkpoints of a run: save, restore, verify, fall back.

Orbax writes them. Each one is a folder with three items:

    model       parameters and batch statistics; with an EMA, the averaged ones
    optimizer   what only training needs: step, optimizer state, and with an EMA the
                trained parameters and batch statistics
    checks      RMSE, and a checksum of every array: a damaged checkpoint is detected,
                and the one before it is restored

A checkpoint without the item `optimizer` is complete: it is a network, from which
training continues with a new optimizer state.
"""

import dataclasses
import logging
import math
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from jaxdepth.runtime import hosts
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.training.state import PyTree, TrainState

logger = logging.getLogger(__name__)
OPTIMIZER = "optimizer"
# File in a checkpoint whose optimizer state is deleted, or was. It is written first, so
# that an interrupted deletion leaves no half of an optimizer state. A rename would not
# do: buckets have no atomic one.
_REMOVED = "optimizer_removed"


class Checkpoints:
    """The checkpoints of one run, in `folder` (local or gs://).

    The last two and the best one are kept. The best one has the lowest RMSE that was
    passed to `save`. Only the last two keep their optimizer state: if the last one is
    damaged, the one before it is resumed.

    Attributes:
      damaged: steps that `restore_state` skipped.
      starts_anew: whether the checkpoint that `restore_state` restored has no optimizer
        state.
    """

    def __init__(self, folder: str, *, read_only: bool = False):
        # Orbax logs every save, every derived option, and errors before raising them.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = epath.Path(folder)
        self.read_only = read_only
        self.damaged: list[int] = []
        self.starts_anew = False
        self._saved_rmse: dict[int, float | None] = {}
        self._saving: int | None = None
        self._manager = self._create_manager()

    def _create_manager(self) -> ocp.CheckpointManager:
        multi_host: dict[str, Any] = {}
        if hosts.is_multi_host():
            # Every host holds the complete state. One of them reads or writes it, and
            # Orbax must not wait for the others.
            multi_host["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
                primary_host=hosts.index(),
                active_processes={hosts.index()},
                barrier_sync_key_prefix=f"host{hosts.index()}",
            )
        if not self.read_only:  # Orbax creates no folder if only some hosts save
            self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            read_only=self.read_only,
            create=False,
            enable_async_checkpointing=not self.read_only,
            # Times and metrics are not used, and damaged ones are errors here.
            lightweight_initialize=True,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(2), _PreserveBest(self._rmse)]
            ),
            **multi_host,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Return the step of lowest RMSE; None if none was saved with an RMSE."""
        return _lowest(self.steps(), self._rmse)

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        rmse: float | None = None,
        optimizer: bool = True,
    ) -> None:
        """Save the state of `step` in the background. No-op if the step is saved.

        Args:
          rmse: RMSE that the best checkpoint is chosen by; None: it is never the best.
          optimizer: whether to save the optimizer state.

        Raises MachineError if storage fails, in this save or the previous one.
        """
        # First, so that the error of a failed previous save names that save's step.
        self.wait()
        if step in self._manager.all_steps():
            return
        self.remove_optimizer(self.steps()[:-2])
        # Read the RMSE of earlier checkpoints before the save: the preservation policy
        # needs them during it.
        self.best_step()
        self._saved_rmse[step] = rmse
        # Copy: the next step donates the buffers, which Orbax reads in the background.
        state = jax.tree.map(np.array, state)
        items: dict[str, PyTree] = {"model": state.variables}
        if optimizer:
            items[OPTIMIZER] = _optimizer_item(state)
        checks = {"rmse": rmse} | {name: checksums(x) for name, x in items.items()}
        args: dict[str, Any] = {k: ocp.args.StandardSave(x) for k, x in items.items()}
        args["checks"] = ocp.args.JsonSave(checks)
        try:
            saved = self._manager.save(step, args=ocp.args.Composite(**args))
        except Exception as error:
            raise self._failure(step, error) from error
        if not saved:  # Orbax refuses steps before the newest checkpoint
            raise MachineError(
                f"checkpoint of step {step} was not written to {self.folder}, which "
                f"holds a later one; {self.last_good()}"
            )
        self._saving = step

    def drop(self, steps: Sequence[int]) -> None:
        """Delete the checkpoints of these steps.

        Orbax saves no step before a damaged checkpoint until that one is deleted.
        """
        for step in steps:
            self._manager.delete(step)
            self._saved_rmse.pop(step, None)

    def has_optimizer(self, step: int) -> bool:
        """Whether the checkpoint of `step` holds the optimizer state."""
        folder = self.folder / str(step)
        return (folder / OPTIMIZER).exists() and not (folder / _REMOVED).exists()

    def remove_optimizer(self, steps: Sequence[int]) -> int:
        """Delete the optimizer state of the checkpoints of these steps.

        Training can't continue from them bit for bit afterwards. If the process is
        killed meanwhile, the rest is deleted by the next call.

        Returns: the size of the deleted files, bytes.
        Raises: MachineError if storage fails.
        """
        freed = 0
        for step in steps:
            folder = self.folder / str(step)
            item = folder / OPTIMIZER
            try:
                if item.exists():
                    freed += _size(item)
                    (folder / _REMOVED).touch()
                    item.rmtree()
            except Exception as error:  # of the file system or of a bucket
                raise MachineError(
                    f"{item} could not be deleted ({_reason(error)})"
                ) from error
        return freed

    def finish(self, *, keep_optimizer: bool) -> None:
        """Delete what a finished run does not need, after its last save is complete.

        The last checkpoint alone keeps its optimizer state. Without `keep_optimizer`,
        none does, and only the last and the best checkpoint are kept.

        Raises: MachineError if storage fails.
        """
        self.wait()
        steps = self.steps()
        if not keep_optimizer:
            needed = {self.best_step(), *steps[-1:]}
            self.drop([step for step in steps if step not in needed])
            steps = self.steps()
        self.remove_optimizer(steps[:-1] if keep_optimizer else steps)

    def wait(self) -> None:
        """Wait until the last save is complete. Raises MachineError if it failed."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failure(self._saving, error) from error

    def last_good(self, *, failed: int | None = None) -> str:
        """Return "last good checkpoint: ...", the newest complete one.

        Args:
          failed: a step whose save is known to have failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception:  # raised before, or less important than the current error
            failed = self._saving
        good = [step for step in self.steps() if step != failed]
        last = f"step {good[-1]} in {self.folder}" if good else "none"
        return f"last good checkpoint: {last}"

    def close(self) -> None:
        """Wait for the last save and release Orbax's resources."""
        self.wait()
        self._manager.close()

    def restore_state(self, target: TrainState) -> TrainState | None:
        """Restore the newest undamaged state; None if there are no checkpoints.

        Args:
          target: a fresh state of the same structure. Of its values, only those of the
            optimizer state are used, for a checkpoint without one.

        Raises UserError if all checkpoints are damaged, or one has another network.
        """
        steps = self.steps()
        for step in reversed(steps):
            complete = self.has_optimizer(step)
            restore = self._restore_all if complete else self._restore_network
            try:
                saved = self._saved_shapes(step)
                check_shapes(saved, target.variables, where=self._name)
                state = restore(step, target)
            except DamagedCheckpoint as error:
                logger.warning("checkpoint of step %d is damaged: %s", step, error)
                self.damaged.append(step)
                continue
            self.starts_anew = not complete
            return state
        if steps:
            raise UserError(
                f"{self.folder}: every checkpoint is damaged; start a new run"
            )
        return None

    def _restore_all(self, step: int, target: TrainState) -> TrainState:
        items = {"model": target.variables, OPTIMIZER: _optimizer_item(target)}
        items = self._restore(step, items)
        opt_state = jax.tree.unflatten(
            jax.tree.structure(target.opt_state),
            jax.tree.leaves(items[OPTIMIZER]["opt_state"]),
        )
        return TrainState(
            step=items[OPTIMIZER]["step"],
            opt_state=opt_state,
            average=None if target.average is None else items["model"],
            **items[OPTIMIZER].get("network", items["model"]),
        )

    def _restore_network(self, step: int, target: TrainState) -> TrainState:
        network = self._restore(step, {"model": target.variables})["model"]
        return starting_from(network, target, step=step)

    def restore_model(self, expected: Callable[[], PyTree], *, step: int) -> PyTree:
        """Restore `{"params", "batch_stats"}` of one step.

        Args:
          expected: returns the shapes that the network has, as a tree of arrays or of
            `jax.ShapeDtypeStruct`. It is called while the arrays are read.
          step: a step of `steps`.

        Raises UserError if the checkpoint is damaged, or has another network.
        """
        try:
            saved = self._saved_shapes(step)
            with futures.ThreadPoolExecutor(1) as pool:
                reading = pool.submit(self._restore, step, {"model": saved})
                target = expected()
                check_shapes(saved, target, where=self._name)
                leaves = jax.tree.leaves(reading.result()["model"])
            # Empty subtrees are not saved.
            return jax.tree.unflatten(jax.tree.structure(target), leaves)
        except DamagedCheckpoint as error:
            others = [s for s in self.steps() if s != step]
            hint = f"; --step= one of {others} may be undamaged" if others else ""
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
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:
            raise DamagedCheckpoint(_first_line(error)) from error
        for item in items:
            saved = _entry(restored["checks"], item)
            if not isinstance(saved, dict):
                raise DamagedCheckpoint(f"it has no checksums of item {item}")
            if wrong := _first_difference(checksums(restored[item]), saved):
                raise DamagedCheckpoint(f"checksum of {wrong} differs")
        return {item: restored[item] for item in items}

    def _saved_shapes(self, step: int) -> PyTree:
        """The arrays of the item "model", as a tree of `jax.ShapeDtypeStruct`."""
        try:
            # The manager returns no shapes before the first restore of an item.
            handler = ocp.PyTreeCheckpointHandler()
            tree = handler.metadata(self.folder / str(step) / "model").tree
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                tree,
                is_leaf=lambda leaf: hasattr(leaf, "shape"),
            )
        except Exception as error:
            raise DamagedCheckpoint(_first_line(error)) from error

    @property
    def _name(self) -> str:
        return f"the checkpoint in {self.folder}"

    def _rmse(self, step: int) -> float | None:
        if step not in self._saved_rmse:
            try:
                args = ocp.args.Composite(checks=ocp.args.JsonRestore())
                rmse = _entry(self._manager.restore(step, args=args)["checks"], "rmse")
            except Exception:  # a damaged checkpoint is never the best
                rmse = None
            is_number = isinstance(rmse, int | float) and math.isfinite(rmse)
            self._saved_rmse[step] = rmse if is_number else None
        return self._saved_rmse[step]

    def _failure(self, step: int | None, error: Exception) -> MachineError:
        what = "checkpoint" if step is None else f"checkpoint of step {step}"
        return MachineError(
            f"{what} could not be written to {self.folder} ({_reason(error)}); "
            f"{self.last_good(failed=step)}"
        )


@dataclasses.dataclass(frozen=True)
class _PreserveBest(checkpoint_managers.PreservationPolicy):
    """Preserves the checkpoint of lowest RMSE.

    Orbax's `BestN` requires the RMSE in an item of its own. Here it is in `checks`.
    """

    rmse: Callable[[int], float | None]

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = _lowest(steps, self.rmse)
        return [step == best for step in steps]


def _lowest(steps: Sequence[int], rmse: Callable[[int], float | None]) -> int | None:
    """The step of lowest RMSE; the first of several."""
    values = {step: value for step in steps if (value := rmse(step)) is not None}
    return min(values, key=lambda step: values[step], default=None)


def check_shapes(saved_tree: PyTree, target: PyTree, *, where: str) -> None:
    """Raise UserError if the arrays of a saved network differ from those of `target`.

    Args:
      where: what holds the saved network, for the message.
    """
    saved, expected = _shapes(saved_tree), _shapes(target)
    if saved == expected:
        return
    names = sorted(k for k in saved | expected if saved.get(k) != expected.get(k))
    first = names[0]
    raise UserError(
        f"{where} is of another network: {len(names)} arrays differ, first {first} "
        f"(saved {saved.get(first, 'absent')}, expected "
        f"{expected.get(first, 'absent')})"
    )


def starting_from(network: PyTree, fresh: TrainState, *, step: int) -> TrainState:
    """The state after `step` steps of which only the network is known.

    Args:
      network: parameters and batch statistics.
      fresh: a state of the same structure, for the optimizer state. An EMA starts from
        the network.
      step: number of steps taken; the learning rate schedule continues from it.
    """
    # On use, because prediction does not need Optax.
    from jaxdepth.training import optimizer as optimizer_lib

    state = TrainState(
        step=np.full_like(fresh.step, step),
        opt_state=optimizer_lib.at_step(fresh.opt_state, step),
        **network,
    )
    return state if fresh.average is None else state.start_ema()


class NullCheckpoints(Checkpoints):
    """Saves nothing: host 0 writes the checkpoints in `folder`."""

    def __init__(self, folder: str):
        self.folder = epath.Path(folder)

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        rmse: float | None = None,
        optimizer: bool = True,
    ) -> None:
        """No-op; host 0 saves."""

    def remove_optimizer(self, steps: Sequence[int]) -> int:
        """No-op; host 0 deletes."""
        return 0

    def finish(self, *, keep_optimizer: bool) -> None:
        """No-op; host 0 deletes."""

    def drop(self, steps: Sequence[int]) -> None:
        """No-op; host 0 saves."""

    def wait(self) -> None:
        """No-op; host 0 waits."""

    def close(self) -> None:
        """No-op."""

    def last_good(self, *, failed: int | None = None) -> str:
        return describe_last(str(self.folder))


def describe_last(folder: str) -> str:
    """Return "last good checkpoint: ...", found by listing `folder` without Orbax."""
    path = epath.Path(folder)
    try:
        steps = [
            int(entry.name)
            for entry in path.iterdir()
            # Buckets have no atomic rename: Orbax marks complete checkpoints by a file.
            if entry.name.isdigit()
            and ("://" not in folder or (entry / "commit_success.txt").exists())
        ]
    except OSError:
        return f"checkpoints are in {folder}, on host 0"
    last = f"step {max(steps)} in {folder}" if steps else "none"
    return f"last good checkpoint: {last}"


class DamagedCheckpoint(Exception):
    """A checkpoint can't be read, or its arrays differ from their checksums."""


def checksums(tree: PyTree) -> dict[str, int]:
    """Return the CRC-32 of every array, by its path in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): zlib.crc32(
            np.ascontiguousarray(_to_numpy(leaf)).data
        )
        for path, leaf in leaves
    }


def _to_numpy(leaf: Any) -> np.ndarray:
    """Copy an array that is replicated over all devices, of this and other hosts."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf)


def _size(folder: epath.Path) -> int:
    """The size of all files in a folder, bytes."""
    return sum(
        _size(path) if path.is_dir() else path.stat().length
        for path in folder.iterdir()
    )


def _optimizer_item(state: TrainState) -> dict[str, PyTree]:
    """The item "optimizer": what training needs in addition to the item "model".

    With an EMA, "model" holds the averaged network, and "optimizer" the trained one.
    """
    # Only the leaves, because Optax's named tuples change between versions.
    item = {"opt_state": jax.tree.leaves(state.opt_state), "step": state.step}
    return item if state.average is None else item | {"network": state.network}


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}


def _entry(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _first_difference(a: dict[str, int], b: dict[str, int]) -> str:
    return min((k for k in a | b if a.get(k) != b.get(k)), default="")


def _reason(error: Exception) -> str:
    """The message of the operating system, if the error contains one."""
    match = re.search(r"([^:]+) \[os_error_code", str(error))
    return match[1].strip() if match else _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
