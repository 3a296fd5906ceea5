"""Several hosts that train as one: how they meet, what they tell each other.

Each host runs the same command. They meet by `jax.distributed`; what travels over the
devices (gradients, statistics) is the step's own affair, here are the words between
hosts: short values through the coordinator, which may come hours apart, and the state.
On one host everything here is the identity, and nothing is asked of any network.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdepth.runtime.errors import MachineError, UserError

PyTree = Any
TIMEOUT = "JAXDEPTH_HOST_TIMEOUT"  # seconds that a host may be silent, or late to meet
MEET_SECONDS, SILENT_SECONDS = 300, 100  # JAX's own
LAG = 4  # calls of the step between a wish and its being granted
_PIECE = 2_000_000  # characters; the coordinator's messages are limited to 4 MiB
_rounds = itertools.count()


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the hosts meet. What is None, JAX finds out.

    Attributes:
      coordinator: HOST:PORT of host 0.
      count, index: how many hosts, and which one this is.
      local_devices: GPUs of this process, None for JAX's choice.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    local_devices: tuple[int, ...] | None = None


def find(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The hosts that flags, or else the surroundings, speak of; None for one alone.

    Surroundings are JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID,
    Slurm, Open MPI, and the machine of a Cloud TPU, in this order. No network is asked.

    Raises UserError where they don't fit together.
    """
    slurm = _slurm(environ)
    mpi = _mpi(environ)
    coordinator = coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
    given = (count, _number("JAX_NUM_PROCESSES", environ), slurm[0], mpi[0])
    count = next((n for n in given if n is not None), None)
    given = (index, _number("JAX_PROCESS_ID", environ), slurm[1], mpi[1])
    index = next((n for n in given if n is not None), None)
    if count is None and coordinator is None:
        return Cluster() if _on_cloud_tpu(environ) else None
    if count == 1:
        return None
    if count is None or index is None:
        raise UserError(
            "several hosts: give --hosts=N and --host=0 to N-1 beside --coordinator"
        )
    if not 0 <= index < count:
        raise UserError(f"--host={index}: with --hosts={count} it is 0 to {count - 1}")
    if coordinator is None:
        if slurm[0] or "OMPI_MCA_orte_hnp_uri" in environ:
            alone = slurm[2] if slurm[0] else mpi[2]
            return Cluster(None, count, index, _all_gpus(environ) if alone else None)
        raise UserError(
            f"--hosts={count}: give --coordinator=HOST:PORT, an address of host 0 "
            "that all of them reach"
        )
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(f"--coordinator={coordinator}: give HOST:PORT")
    return Cluster(coordinator, count, index)


# (tasks, this one's number, whether it has its machine to itself)
_Launched = tuple[int | None, int | None, bool]


def _slurm(environ: Mapping[str, str]) -> _Launched:
    """Of `srun`; not of the batch script around it, which is one process."""
    if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= environ.keys():
        return None, None, False
    count = _number("SLURM_STEP_NUM_TASKS", environ)
    if count is None:
        count = _number("SLURM_NTASKS", environ)
    each = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    alone = re.fullmatch(r"1(\(x\d+\))?(,1(\(x\d+\))?)*", each) is not None
    return count, _number("SLURM_PROCID", environ), alone


def _mpi(environ: Mapping[str, str]) -> _Launched:
    return (
        _number("OMPI_COMM_WORLD_SIZE", environ),
        _number("OMPI_COMM_WORLD_RANK", environ),
        environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1",
    )


def _number(name: str, environ: Mapping[str, str]) -> int | None:
    try:
        return int(environ[name])
    except KeyError:
        return None
    except ValueError:
        raise UserError(f"{name}={environ[name]}: a whole number") from None


def _on_cloud_tpu(environ: Mapping[str, str]) -> bool:
    """Whether JAX, on import, saw TPU chips and the libraries for them.

    It asks the machine's metadata for the other hosts then; where there are no such
    metadata it says so itself, by the second variable.
    """
    platforms = environ.get("JAX_PLATFORMS", "")
    wanted = not platforms or "tpu" in platforms
    return (
        wanted and "TPU_ML_PLATFORM" in environ and "TPU_SKIP_MDS_QUERY" not in environ
    )


def _all_gpus(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Numbers of this machine's GPUs, for a process that has them to itself.

    JAX gives a process that Slurm or Open MPI started one GPU, whatever there are.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([x for x in visible.split(",") if x.strip()])
    else:
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return tuple(range(count)) or None


def connect(cluster: Cluster) -> None:
    """Meet the other hosts; before anything asks JAX for devices.

    JAX ends the process where they don't come, or where one is lost later on:
    `supervise` turns that into one line.
    """
    # Stopping is agreed on by `Wishes`, for Ctrl-C as well.
    jax.config.update("jax_enable_preemption_service", False)
    seconds = _number(TIMEOUT, os.environ)
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator,
            num_processes=cluster.count,
            process_id=cluster.index,
            local_device_ids=cluster.local_devices,
            # Named hosts are these, whatever else the surroundings say.
            cluster_detection_method="deactivate" if cluster.coordinator else None,
            initialization_timeout=seconds or MEET_SECONDS,
            heartbeat_timeout_seconds=seconds or SILENT_SECONDS,
        )
    except ValueError as error:
        if cluster.count is None:
            return  # TPU chips without metadata of other hosts: one host
        raise UserError(f"the hosts can't meet: {error}") from None
    except Exception as error:
        where = cluster.coordinator or "the coordinator"
        raise MachineError(f"the hosts can't meet at {where}: {error}") from error
    _check_devices()


def _check_devices() -> None:
    here = {len(group) for group in _by_host().values()}
    if len(here) > 1:
        numbers = " and ".join(map(str, sorted(here)))
        raise UserError(f"the hosts have {numbers} devices: each must have as many")


def _by_host() -> dict[int, list[Any]]:
    groups: dict[int, list[Any]] = {}
    for device in jax.devices():
        groups.setdefault(device.process_index, []).append(device)
    return groups


def count() -> int:
    """How many hosts train together."""
    return jax.process_count()


def index() -> int:
    """Which one this is, from 0."""
    return jax.process_index()


def several() -> bool:
    """Whether hosts were connected; asks for no devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this host writes and speaks for all."""
    return not several() or index() == 0


def gather(value: Any) -> list[Any]:
    """What each host gave, by host: JSON values, of any size, whenever they come.

    All hosts call it equally often, on the main thread.
    """
    if not several():
        return [value]
    client = _client()
    number = next(_rounds)
    text = json.dumps(value)
    pieces = [text[k : k + _PIECE] for k in range(0, len(text), _PIECE)]
    mine = f"jaxdepth/{number}/{index()}"
    for k, piece in enumerate(pieces):
        client.key_value_set(f"{mine}/{k}", piece)
    client.key_value_set(f"{mine}/count", str(len(pieces)))
    found = [
        json.loads(_read(client, f"jaxdepth/{number}/{h}")) for h in range(count())
    ]
    if number and index() == 0:
        # All are in this round, so nobody reads the one before any more.
        client.key_value_delete(f"jaxdepth/{number - 1}/")
    return found


def _client() -> Any:
    # Not public, but what Orbax uses, too: JAX has no other way to send words between
    # hosts that does not need their devices.
    from jax._src import distributed

    return distributed.global_state.client


def _read(client: Any, place: str) -> str:
    count = int(_wait_for(client, f"{place}/count"))
    return "".join(_wait_for(client, f"{place}/{k}") for k in range(count))


def _wait_for(client: Any, key: str) -> str:
    """A value as soon as it is there; in between, Ctrl-C is heard."""
    while True:
        try:
            return client.blocking_key_value_get(key, 2000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise MachineError(f"lost peer: {error}") from error


def from_first(value: Any) -> Any:
    """Host 0's value, on all hosts; a JSON value."""
    return gather(value if first() else None)[0]


def check_equal(what: str, value: Mapping[str, Any]) -> None:
    """UserError, on all hosts, where one of them has other values than host 0."""
    for host, other in enumerate(told := gather(value)):
        differing = [
            f"{k}={told[0].get(k)} on host 0, {other.get(k)} on host {host}"
            for k in told[0]
            if told[0].get(k) != other.get(k)
        ]
        if differing:
            raise _everywhere(
                UserError(f"the hosts have different {what}: {'; '.join(differing)}")
            )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails on one host fails on all of them, with the same line.

    Inside, no other words are exchanged.
    """
    failed: UserError | MachineError | None = None
    try:
        yield
    except (UserError, MachineError) as error:
        failed = error
        if not several():
            raise
    if not several():
        return
    kinds = {"UserError": UserError, "MachineError": MachineError}
    told = gather(failed and [type(failed).__name__, str(failed)])
    for host, words in enumerate(told):
        if words is None:
            continue
        kind, line = words
        own = failed is not None and host == index()
        raise _everywhere(
            kinds[kind](line if host == 0 else f"host {host}: {line}")
        ) from (failed if own else None)


def _everywhere(error: Any) -> Any:
    """The error marked as one that ends all hosts alike."""
    error.everywhere = True
    return error


def same_state(state: PyTree) -> PyTree:
    """Host 0's arrays on every host, so that the copies can't differ."""
    if not several():
        return state
    state = jax.tree.map(np.asarray, state)
    return multihost_utils.broadcast_one_to_all(state)


class Wishes:
    """A host's wish to stop, granted on all hosts after the same call of the step.

    Each call sends the hosts' wishes over the devices, behind the step, and reads
    those of `LAG` calls before: nobody waits for the step that is under way.
    """

    def __init__(self) -> None:
        self._underway: collections.deque[jax.Array] = collections.deque()
        if several():
            mesh = Mesh(np.array(ordered_devices()), ("all",))
            self._along = NamedSharding(mesh, PartitionSpec("all"))
            whole = NamedSharding(mesh, PartitionSpec())
            self._largest = jax.jit(lambda x: x.max(), out_shardings=whole)

    def after_call(self, wish: str | None) -> str | None:
        """What all hosts stop for now: "preempted", "interrupted", or None."""
        if not several():
            return wish
        mine = np.full(jax.local_device_count(), _WISHES.index(wish), np.int32)
        sent = jax.make_array_from_process_local_data(self._along, mine)
        self._underway.append(self._largest(sent))
        if len(self._underway) <= LAG:
            return None
        return _WISHES[int(self._underway.popleft().addressable_data(0))]


# The later one wins: who is preempted must be started again by the machine.
_WISHES = (None, "interrupted", "preempted")


def ordered_devices() -> list[Any]:
    """All devices, host by host, so that a host's part of a batch is one piece."""
    return sorted(jax.devices(), key=lambda d: (d.process_index, d.id))


def is_lost(error: BaseException) -> bool:
    """Whether an error of JAX says that another host has gone."""
    words = r"gloo|nccl|coordination service|UNAVAILABLE|heartbeat|closed by peer"
    return (
        several()
        and isinstance(error, jax.errors.JaxRuntimeError)
        and re.search(words, str(error), re.IGNORECASE) is not None
    )


def on_each(make: Callable[[], Any]) -> Any:
    """`make()` on host 0, and its JSON value on all; its failure fails all."""
    value = None
    with together():
        if first():
            value = make()
    return from_first(value)
