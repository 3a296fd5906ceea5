"""Placement of steps and arrays: `jit` over a mesh of all devices, or `pmap`.

Both give the step the same axis to sum over, so both compute the same values. State is
replicated; batches are sharded over devices, and each host provides its own part.
"""

import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdepth.config import devices_per_statistics
from jaxdepth.ops import platform
from jaxdepth.ops.batch_norm import Groups
from jaxdepth.runtime import hosts
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import device_state
from jaxdepth.training.state import TrainState

logger = logging.getLogger(__name__)
AXIS = "data"
PyTree = Any
Device: TypeAlias = Any  # jax.Device is not a type to type checkers


def batch_spec(stacked: bool) -> P:
    """The sharded axis of a batch; `stacked`: axis 0 counts the steps of one call."""
    return P(None, AXIS) if stacked else P(AXIS)


@dataclasses.dataclass(frozen=True)
class Placement:
    """How arrays and steps are placed on devices.

    Attributes:
      kind: "jit" or "pmap".
      devices: all devices of all hosts.
    """

    kind: str
    devices: tuple[Device, ...]

    @classmethod
    def over(cls, kind: str, devices: Sequence[Device] | None = None) -> "Placement":
        """A placement over the given devices, or all devices in the order of hosts."""
        return cls(kind, tuple(devices or hosts.ordered_devices()))

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def local(self) -> list[Device]:
        """This host's devices."""
        host = jax.process_index()
        return [d for d in self.devices if d.process_index == host]

    def check_batch(self, batch_size: int, accumulate: int) -> None:
        """Raise UserError unless the global batch divides evenly."""
        parts = len(self.devices) * accumulate
        if batch_size % parts:
            raise UserError(
                f"--batch_size={batch_size} is not divisible by {len(self.devices)} "
                f"devices x --accumulate={accumulate}: use a multiple of {parts}"
            )

    def statistics(self, bn: str) -> tuple[str | None, Groups | None]:
        """The axis and the groups of devices over which batch statistics are shared.

        A group is N consecutive devices, so that it lies on one host where N divides
        the devices of a host. On one device all values of --bn are equal.

        Args:
          bn: value of --bn.

        Returns: (None, None) for statistics per device, (axis, None) for those of the
          global batch.
        Raises: UserError if N does not divide the number of devices.
        """
        devices = len(self.devices)
        size = devices_per_statistics(bn) or devices
        if size == 1 or devices == 1:
            return (None, None) if bn != "global" else (AXIS, None)
        if devices % size:
            raise UserError(
                f"--bn={bn}: {devices} devices are not divisible into groups of "
                f"{size}: use a divisor of {devices}"
            )
        starts = range(0, devices, size)
        groups = tuple(tuple(range(k, k + size)) for k in starts)
        return AXIS, None if len(groups) == 1 else groups

    def compile(
        self,
        step: Callable,
        *static: Any,
        table: PyTree | None = None,
        stacked: bool = False,
    ) -> "CompiledStep":
        """Compile `step(*static, state, batch)` as (state, batch) -> (state, logs).

        Arguments and results are placed. The state's buffers are donated. Logs are
        replicated.

        Args:
          step: the function to compile.
          *static: its first arguments, fixed for compilation.
          table: from `place_table`; each device's part is the step's last argument.
          stacked: scan over the batch's first axis, one step each, and return the logs
            of all steps.
        """
        table_args = () if table is None else (table,)
        run = self.mapped(step, *static, table=table is not None, stacked=stacked)
        if self.kind == "jit":
            run = jax.jit(
                run, donate_argnums=0, compiler_options=self.compiler_options()
            )
        return CompiledStep(run, table_args)

    def mapped(
        self, step: Callable, *static: Any, table: bool = False, stacked: bool = False
    ) -> Callable:
        """The function to compile: (state, batch, *table) -> (state, logs)."""
        bound = functools.partial(step, *static)
        if stacked:
            bound = functools.partial(_many, bound)
        if self.kind == "pmap":
            return jax.pmap(
                bound, axis_name=AXIS, donate_argnums=0, devices=self.devices
            )
        # Inside shard_map the step sees one device's part, as under pmap. Its own
        # psums make the results equal everywhere, which check_vma cannot see through
        # collectives in the differentiated batch normalisation.
        return jax.shard_map(
            bound,
            mesh=self.mesh,
            in_specs=(P(), batch_spec(stacked), *((P(AXIS),) if table else ())),
            out_specs=(P(), P()),
            check_vma=False,
        )

    @property
    def arranges(self) -> bool:
        """Whether the devices hold the training state as `device_state` arranges it.

        GPUs do. Compiled for an H100 (64 images), it takes the step of `upproj` from
        1,152 to 1,027 kernels, and from 0.667 to 0.651 GB an image.
        """
        return self.devices[0].platform not in ("cpu", "tpu")

    def compiler_options(self) -> dict[str, Any]:
        """Compiler options for these devices; empty under pmap, which takes none."""
        return {} if self.kind == "pmap" else platform.compiler_options(self.local[0])

    def place_state(self, state: PyTree) -> PyTree:
        """Copy a host's state to every device."""
        state = self._arranged(state)
        if self.kind == "pmap":
            n = len(self.local)
            stacked = jax.tree.map(lambda x: np.broadcast_to(x, (n, *x.shape)), state)
            return _split_over(stacked, self.local)
        sharding = NamedSharding(self.mesh, P())
        if not hosts.is_multi_host():
            return jax.device_put(state, sharding)

        # device_put would compare the hosts' copies, leaf by leaf.
        def place(x: Any) -> jax.Array:
            return jax.make_array_from_process_local_data(sharding, np.asarray(x))

        return jax.tree.map(place, state)

    def place_batch(
        self, batch: dict[str, np.ndarray], *, stacked: bool = False
    ) -> dict[str, jax.Array]:
        """Send this host's part of a batch to its devices.

        Args:
          batch: host arrays.
          stacked: the first axis counts the steps of one call.
        """
        if self.kind == "pmap":
            n = len(self.local)

            def split(x: np.ndarray) -> np.ndarray:
                if not stacked:
                    return x.reshape(n, -1, *x.shape[1:])
                return x.reshape(len(x), n, -1, *x.shape[2:]).swapaxes(0, 1)

            parts = {k: split(v) for k, v in batch.items()}
            return _split_over(parts, self.local)
        sharding = NamedSharding(self.mesh, batch_spec(stacked))
        return {
            k: jax.make_array_from_process_local_data(sharding, v)
            for k, v in batch.items()
        }

    def state_shapes(self, state: PyTree) -> PyTree:
        """Shapes of what `place_state` returns for a state of these shapes."""
        return self.shapes(jax.eval_shape(self._arranged, state), P())

    def shapes(self, tree: PyTree, spec: P) -> PyTree:
        """Shapes with the sharding that this placement gives such arrays.

        Args:
          tree: shapes of one copy, or of the whole of what is sharded.
          spec: the axes that are sharded: `batch_spec` for a batch.
        """
        devices = len(self.devices)

        def place(x: Any) -> jax.ShapeDtypeStruct:
            shape, axes = list(x.shape), spec
            if self.kind == "pmap":  # axis 0 counts devices
                if spec:
                    shape[len(spec) - 1] //= devices
                shape, axes = [devices, *shape], P(AXIS)
            sharded = NamedSharding(self.mesh, axes)
            return jax.ShapeDtypeStruct(tuple(shape), x.dtype, sharding=sharded)

        return jax.tree.map(place, tree)

    def place_table(self, part: Callable[[int], dict[str, np.ndarray]]) -> PyTree:
        """Shard a table over all devices: device k holds `part(k)`.

        All parts have the same shape. Each host reads the parts of its own devices, one
        at a time.
        """
        local = set(self.local)
        parts = [
            jax.device_put(part(k), device)
            for k, device in enumerate(self.devices)
            if device in local
        ]
        if self.kind == "pmap":
            stacked = [jax.tree.map(lambda x: x[None], p) for p in parts]
            return self._assembled(stacked, Mesh(np.array(self.local), (AXIS,)))
        return self._assembled(parts, self.mesh)

    @staticmethod
    def _assembled(parts: list[PyTree], mesh: Mesh) -> PyTree:
        """One array per leaf, its first axis sharded over the mesh."""

        def join(*leaves: jax.Array) -> jax.Array:
            rows, *shape = leaves[0].shape
            return jax.make_array_from_single_device_arrays(
                (rows * mesh.size, *shape), NamedSharding(mesh, P(AXIS)), list(leaves)
            )

        return jax.tree.map(join, *parts)

    def one(self, tree: PyTree) -> PyTree:
        """One copy of a replicated tree: the inverse of `place_state`."""
        if self.kind == "pmap":
            tree = jax.tree.map(
                lambda x: x.addressable_data(0).reshape(x.shape[1:]), tree
            )
        elif hosts.is_multi_host():
            tree = jax.tree.map(lambda x: x.addressable_data(0), tree)
        is_arranged = self.arranges and isinstance(tree, TrainState)
        return device_state.by_name(tree) if is_arranged else tree

    def _arranged(self, state: PyTree) -> PyTree:
        return device_state.arrange(state) if self.arranges else state


class CompiledStep:
    """A step that is compiled at its first call, or ahead of it in a thread.

    Args:
      run: (state, batch, *table) -> (state, logs), from `jax.jit` or `jax.pmap`.
      table: further arguments.
    """

    def __init__(self, run: Any, table: tuple[PyTree, ...] = ()):
        self._run, self._table = run, table
        self._ahead: threading.Thread | None = None

    def compile_ahead(self, state: PyTree, batch: PyTree) -> None:
        """Start to compile for arguments of these shapes.

        They are from `Placement.state_shapes` and `Placement.shapes`.

        The first call waits. It compiles if its arguments have other shapes, and raises
        the error if compilation fails.
        """

        def compile_for_shapes() -> None:
            try:
                self._run.lower(state, batch, *self._table).compile()
            except Exception as error:
                logger.debug("the step did not compile ahead: %r", error)

        self._ahead = threading.Thread(target=compile_for_shapes)
        self._ahead.start()

    def __call__(self, state: PyTree, batch: PyTree) -> tuple[PyTree, PyTree]:
        if self._ahead is not None:
            self._ahead.join()
            self._ahead = None
        return self._run(state, batch, *self._table)


def _many(step: Callable, state: PyTree, batches: PyTree, *table: PyTree):
    """Steps one after another on the device; the last state and the logs of all."""
    return jax.lax.scan(lambda s, batch: step(s, batch, *table), state, batches)


def _split_over(tree: PyTree, devices: list[Device]) -> PyTree:
    """Shard axis 0 over devices, as pmap expects its arguments."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), P(AXIS))
    return jax.device_put(tree, sharding)
