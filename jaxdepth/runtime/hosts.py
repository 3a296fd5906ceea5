"""Multi-host training: connects the hosts and exchanges messages between them.

Each host runs the same command and connects by `jax.distributed`. The collectives of a
training step (gradients, statistics) live in the step; this module exchanges short
JSON values through the coordinator, at any time, and broadcasts the initial state. On
a single host every function is the identity and uses no network.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdepth.runtime.errors import MachineError, UserError

PyTree = Any
# Seconds until a host that does not connect or sends no heartbeat counts as lost.
TIMEOUT = "JAXDEPTH_HOST_TIMEOUT"
CONNECT_SECONDS, HEARTBEAT_SECONDS = 300, 100  # JAX's defaults
LAG = 4  # calls of the step between a request to stop and the stop
_PIECE = 2_000_000  # characters; the coordinator's messages are limited to 4 MiB
_round_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The arguments of `jax.distributed.initialize`; JAX detects those that are None.

    Attributes:
      coordinator: HOST:PORT of host 0.
      count, index: the number of hosts, and the index of this one.
      local_devices: indices of this process's GPUs; None for JAX's choice.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    local_devices: tuple[int, ...] | None = None


def detect_cluster(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """Detect the cluster from flags, else from the environment; None for one host.

    The environment is, in this order: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID; Slurm; Open MPI; a Cloud TPU machine. No network is used.

    Raises UserError if the values are incomplete or contradict each other.
    """
    slurm = _slurm(environ)
    mpi = _mpi(environ)
    coordinator = coordinator or environ.get("JAX_COORDINATOR_ADDRESS")
    count = _first_set(
        count, _number("JAX_NUM_PROCESSES", environ), slurm.count, mpi.count
    )
    index = _first_set(
        index, _number("JAX_PROCESS_ID", environ), slurm.index, mpi.index
    )
    if count is None and coordinator is None:
        return Cluster() if _on_cloud_tpu(environ) else None
    if count == 1:
        return None
    if count is None or index is None:
        raise UserError(
            "training on several hosts: give --coordinator, --hosts=N and, on each "
            "host, its own --host from 0 to N-1"
        )
    if not 0 <= index < count:
        raise UserError(
            f"--host={index}: expected 0 to {count - 1} with --hosts={count}"
        )
    if coordinator is None:
        if slurm.count or "OMPI_MCA_orte_hnp_uri" in environ:
            launcher = slurm if slurm.count else mpi
            gpus = _all_gpus(environ) if launcher.one_per_machine else None
            return Cluster(None, count, index, gpus)
        raise UserError(
            f"--hosts={count}: give --coordinator=HOST:PORT, an address of host 0 "
            "that all hosts can reach"
        )
    if not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(f"--coordinator={coordinator}: expected HOST:PORT")
    return Cluster(coordinator, count, index)


def _first_set(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


@dataclasses.dataclass(frozen=True)
class _Launcher:
    """Variables of Slurm or Open MPI; None if that did not start this process."""

    count: int | None = None
    index: int | None = None
    one_per_machine: bool = False


def _slurm(environ: Mapping[str, str]) -> _Launcher:
    """Read the variables of `srun`; a batch script outside it is a single process."""
    if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"} <= environ.keys():
        return _Launcher()
    tasks = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    count = _first_set(*(_number(name, environ) for name in tasks))
    tasks_per_node = environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    single = re.fullmatch(r"1(\(x\d+\))?(,1(\(x\d+\))?)*", tasks_per_node) is not None
    return _Launcher(count, _number("SLURM_PROCID", environ), single)


def _mpi(environ: Mapping[str, str]) -> _Launcher:
    return _Launcher(
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
        raise UserError(f"{name}={environ[name]}: expected a whole number") from None


def _on_cloud_tpu(environ: Mapping[str, str]) -> bool:
    """Whether JAX detected TPU chips and their libraries when it was imported.

    JAX then asks the metadata server for the other hosts; without such a server it
    sets the second variable.
    """
    platforms = environ.get("JAX_PLATFORMS", "")
    allowed = not platforms or "tpu" in platforms
    return (
        allowed and "TPU_ML_PLATFORM" in environ and "TPU_SKIP_MDS_QUERY" not in environ
    )


def _all_gpus(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the indices of this machine's GPUs, for the only process on it.

    JAX assigns a single GPU by default to a process that Slurm or Open MPI started.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([x for x in visible.split(",") if x.strip()])
    else:
        count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return tuple(range(count)) or None


def connect(cluster: Cluster) -> None:
    """Connect to the other hosts. Call it before JAX initializes its devices.

    If a host does not connect, or is lost later, JAX aborts the process;
    `host_process` turns that into a message.

    Raises:
      UserError: the hosts can't be determined, or have different numbers of devices.
      MachineError: the coordinator can't be reached.
    """
    # `StopConsensus` replaces it, and covers Ctrl-C as well.
    jax.config.update("jax_enable_preemption_service", False)
    seconds = _number(TIMEOUT, os.environ)
    try:
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator,
            num_processes=cluster.count,
            process_id=cluster.index,
            local_device_ids=cluster.local_devices,
            # Explicit hosts take precedence over those of the environment.
            cluster_detection_method="deactivate" if cluster.coordinator else None,
            initialization_timeout=seconds or CONNECT_SECONDS,
            heartbeat_timeout_seconds=seconds or HEARTBEAT_SECONDS,
        )
    except ValueError as error:
        if cluster.count is None:
            return  # TPU chips without metadata of other hosts: a single host
        raise UserError(f"the hosts can't connect: {error}") from None
    except Exception as error:
        coordinator = cluster.coordinator or "the coordinator"
        raise MachineError(
            f"the hosts can't connect at {coordinator}: {error}"
        ) from error
    _check_device_counts()


def _check_device_counts() -> None:
    per_host = collections.Counter(device.process_index for device in jax.devices())
    counts = sorted(set(per_host.values()))
    if len(counts) > 1:
        numbers = " and ".join(map(str, counts))
        raise UserError(f"the hosts have {numbers} devices: give each the same number")


def count() -> int:
    """Return the number of hosts."""
    return jax.process_count()


def index() -> int:
    """Return the index of this host, from 0."""
    return jax.process_index()


def is_multi_host() -> bool:
    """Whether hosts are connected; does not initialize JAX's devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first_host() -> bool:
    """Whether this is host 0, which alone writes files and logs."""
    return not is_multi_host() or index() == 0


def gather(value: Any) -> list[Any]:
    """Return the values of all hosts, by host: JSON values of any size.

    Waits for all hosts. Each must call it the same number of times, on its main thread.
    """
    if not is_multi_host():
        return [value]
    client = _coordination_client()
    number = next(_round_numbers)
    text = json.dumps(value)
    pieces = [text[k : k + _PIECE] for k in range(0, len(text), _PIECE)]
    prefix = f"jaxdepth/{number}/{index()}"
    for k, piece in enumerate(pieces):
        client.key_value_set(f"{prefix}/{k}", piece)
    client.key_value_set(f"{prefix}/count", str(len(pieces)))
    values = [
        json.loads(_read(client, f"jaxdepth/{number}/{host}"))
        for host in range(count())
    ]
    if number and index() == 0:
        # Every host has reached this round, so the previous one has been read.
        client.key_value_delete(f"jaxdepth/{number - 1}/")
    return values


def _coordination_client() -> Any:
    """Return the client of JAX's coordination service, a key-value store.

    Not a public API, but Orbax uses it, too: JAX has no public way to send messages
    between hosts without their devices.
    """
    from jax._src import distributed

    return distributed.global_state.client


def _read(client: Any, prefix: str) -> str:
    count = int(_wait_for(client, f"{prefix}/count"))
    return "".join(_wait_for(client, f"{prefix}/{k}") for k in range(count))


def _wait_for(client: Any, key: str) -> str:
    """Wait for a value; Ctrl-C is handled every 2 seconds."""
    while True:
        try:
            return client.blocking_key_value_get(key, 2000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise MachineError(f"lost peer: {error}") from error


def broadcast_json(value: Any) -> Any:
    """Return host 0's JSON value on all hosts."""
    return gather(value if is_first_host() else None)[0]


def check_equal_on_hosts(what: str, value: Mapping[str, Any]) -> None:
    """Raise UserError on all hosts if any host's values differ from host 0's."""
    first, *others = gather(value)
    for host, other in enumerate(others, 1):
        differing = [
            f"{key}={first.get(key)} on host 0, {other.get(key)} on host {host}"
            for key in first
            if first.get(key) != other.get(key)
        ]
        if differing:
            raise _everywhere(
                UserError(f"the hosts have different {what}: {'; '.join(differing)}")
            )


@contextlib.contextmanager
def raise_on_all_hosts() -> Iterator[None]:
    """Raise on all hosts the UserError or MachineError that the body raises on one.

    Waits for all hosts at the end. The body must not call other functions of this
    module that exchange messages.
    """
    failure: UserError | MachineError | None = None
    try:
        yield
    except (UserError, MachineError) as error:
        failure = error
        if not is_multi_host():
            raise
    if not is_multi_host():
        return
    kinds = {"UserError": UserError, "MachineError": MachineError}
    failures = gather(failure and [type(failure).__name__, str(failure)])
    for host, description in enumerate(failures):
        if description is None:
            continue
        kind, line = description
        local = failure is not None and host == index()
        raise _everywhere(
            kinds[kind](line if host == 0 else f"host {host}: {line}")
        ) from (failure if local else None)


def _everywhere(error: Any) -> Any:
    """Mark an error as raised on every host."""
    error.everywhere = True
    return error


def broadcast_state(state: PyTree) -> PyTree:
    """Return host 0's arrays on all hosts, so that the copies are equal."""
    if not is_multi_host():
        return state
    state = jax.tree.map(np.asarray, state)
    return multihost_utils.broadcast_one_to_all(state)


class StopConsensus:
    """Agrees across hosts on a common step to stop at.

    Each call starts an all-reduce of the hosts' reasons to stop, which the devices run
    after the step, and reads the result of the call `LAG` calls before. So no host
    waits for the step that is running.
    """

    def __init__(self) -> None:
        self._pending: collections.deque[jax.Array] = collections.deque()
        if is_multi_host():
            mesh = Mesh(np.array(ordered_devices()), ("all",))
            self._sharded = NamedSharding(mesh, PartitionSpec("all"))
            replicated = NamedSharding(mesh, PartitionSpec())
            self._max = jax.jit(lambda x: x.max(), out_shardings=replicated)

    def after_step(self, reason: str | None) -> str | None:
        """Return the reason why all hosts stop now, or None.

        Args:
          reason: this host's own: "preempted", "interrupted" or None.
        """
        if not is_multi_host():
            return reason
        local = np.full(jax.local_device_count(), _REASONS.index(reason), np.int32)
        placed = jax.make_array_from_process_local_data(self._sharded, local)
        self._pending.append(self._max(placed))
        if len(self._pending) <= LAG:
            return None
        return _REASONS[int(self._pending.popleft().addressable_data(0))]


# The maximum takes precedence: a scheduler restarts preempted runs only.
_REASONS = (None, "interrupted", "preempted")


def ordered_devices() -> list[Any]:
    """Return all devices by host, so that a host's part of a batch is contiguous."""
    return sorted(jax.devices(), key=lambda d: (d.process_index, d.id))


def is_lost_peer(error: BaseException) -> bool:
    """Whether JAX raised the error because another host was lost."""
    words = r"gloo|nccl|coordination service|UNAVAILABLE|heartbeat|closed by peer"
    return (
        is_multi_host()
        and isinstance(error, jax.errors.JaxRuntimeError)
        and re.search(words, str(error), re.IGNORECASE) is not None
    )
