"""Where a step runs: `jit` over a mesh of all devices, or `pmap`. No arithmetic.

Both give the step the same axis to sum over, so both compute the same numbers. State
is replicated; batches are split over devices, and over hosts each brings its own part.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdepth.ops import platform
from jaxdepth.runtime import hosts
from jaxdepth.runtime.errors import UserError

AXIS = "data"
PyTree = Any
Device: TypeAlias = Any  # jax.Device, which type checkers don't know as a type


@dataclasses.dataclass(frozen=True)
class Placement:
    """How arrays and steps are laid over devices.

    Attributes:
      kind: "jit" or "pmap".
      devices: all devices of all hosts.
    """

    kind: str
    devices: tuple[Device, ...]

    @classmethod
    def over(cls, kind: str, devices: Sequence[Device] | None = None) -> "Placement":
        """Over the given devices, or all there are, host by host."""
        return cls(kind, tuple(devices or hosts.ordered_devices()))

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def local(self) -> list[Device]:
        """This host's devices."""
        here = jax.process_index()
        return [d for d in self.devices if d.process_index == here]

    def check_batch(self, batch_size: int, accumulate: int) -> None:
        """Raise UserError unless the global batch divides evenly."""
        parts = len(self.devices) * accumulate
        if batch_size % parts:
            raise UserError(
                f"--batch_size={batch_size} does not divide over {len(self.devices)} "
                f"devices x --accumulate={accumulate}: use a multiple of {parts}"
            )

    def compile(
        self,
        step: Callable,
        *settled: Any,
        table: PyTree | None = None,
        stacked: bool = False,
    ) -> Callable:
        """`step(*settled, state, batch)` as (placed state, placed batch) -> the same.

        The state's memory is reused. Logs come back replicated.

        Args:
          table: of `place_table`; each device's part of it is the step's last argument.
          stacked: take as many steps as the batch's first axis is long, in one call,
            and return the logs of all of them.
        """
        more = () if table is None else (table,)
        run = self.mapped(step, *settled, table=table is not None, stacked=stacked)
        if self.kind == "jit":
            run = jax.jit(
                run, donate_argnums=0, compiler_options=self.compiler_options()
            )
        return lambda state, batch: run(state, batch, *more)

    def mapped(
        self, step: Callable, *settled: Any, table: bool = False, stacked: bool = False
    ) -> Callable:
        """What `compile` compiles: (state, batch, *table) -> (state, logs)."""
        bound = functools.partial(step, *settled)
        if stacked:
            bound = functools.partial(_many, bound)
        if self.kind == "pmap":
            return jax.pmap(
                bound, axis_name=AXIS, donate_argnums=0, devices=self.devices
            )
        batches = P(None, AXIS) if stacked else P(AXIS)
        # Inside shard_map the step sees one device's part, as under pmap. Its own
        # psums make the results equal everywhere, which check_vma cannot see through
        # collectives in the differentiated batch normalisation.
        return jax.shard_map(
            bound,
            mesh=self.mesh,
            in_specs=(P(), batches, *((P(AXIS),) if table else ())),
            out_specs=(P(), P()),
            check_vma=False,
        )

    def compiler_options(self) -> dict[str, Any]:
        """Those for these devices. None under pmap, which takes no options."""
        # The compiler asked is the one for this host's own devices.
        return {} if self.kind == "pmap" else platform.compiler_options(self.local[0])

    def place_state(self, state: PyTree) -> PyTree:
        """Copy a host's state to every device."""
        if self.kind == "pmap":
            stacked = jax.tree.map(
                lambda x: np.broadcast_to(
                    np.asarray(x)[None], (len(self.local), *x.shape)
                ),
                state,
            )
            return _split_over(stacked, self.local)
        sharding = NamedSharding(self.mesh, P())
        if (
            hosts.is_multi_host()
        ):  # device_put would compare the hosts' copies, leaf by leaf
            return jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(
                    sharding, np.asarray(x)
                ),
                state,
            )
        return jax.device_put(state, sharding)

    def place_batch(
        self, batch: dict[str, np.ndarray], *, stacked: bool = False
    ) -> dict[str, jax.Array]:
        """Send this host's part of a batch to its devices.

        `stacked`: its first axis counts the steps of one call.
        """
        if self.kind == "pmap":
            n = len(self.local)

            def split(x: np.ndarray) -> np.ndarray:
                if not stacked:
                    return x.reshape(n, -1, *x.shape[1:])
                return x.reshape(len(x), n, -1, *x.shape[2:]).swapaxes(0, 1)

            parts = {k: split(v) for k, v in batch.items()}
            return _split_over(parts, self.local)
        sharding = NamedSharding(self.mesh, P(None, AXIS) if stacked else P(AXIS))
        return {
            k: jax.make_array_from_process_local_data(sharding, v)
            for k, v in batch.items()
        }

    def place_table(self, part: Callable[[int], dict[str, np.ndarray]]) -> PyTree:
        """Lay a table over all devices: `part(k)` is what device number k holds.

        Parts have one shape. Each host makes those of its own devices, one at a time.
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
        """One array of each leaf, whose first axis runs over the mesh."""

        def join(*leaves: jax.Array) -> jax.Array:
            rows, *shape = leaves[0].shape
            return jax.make_array_from_single_device_arrays(
                (rows * mesh.size, *shape), NamedSharding(mesh, P(AXIS)), list(leaves)
            )

        return jax.tree.map(join, *parts)

    def one(self, tree: PyTree) -> PyTree:
        """One copy of what every device holds: the state as `place_state` took it."""
        if self.kind == "pmap":
            return jax.tree.map(
                lambda x: x.addressable_data(0).reshape(x.shape[1:]), tree
            )
        if hosts.is_multi_host():
            return jax.tree.map(lambda x: x.addressable_data(0), tree)
        return tree


def _many(step: Callable, state: PyTree, batches: PyTree, *table: PyTree):
    """One step after another on the device; the last state, and all logs."""
    return jax.lax.scan(lambda s, batch: step(s, batch, *table), state, batches)


def _split_over(tree: PyTree, devices: list[Device]) -> PyTree:
    """Axis 0 over devices, as pmap wants its arguments."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), P(AXIS))
    return jax.device_put(tree, sharding)
