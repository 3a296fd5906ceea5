"""Input pipeline: batches of a store's frames, by tf.data or by threads."""

import collections
import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxdepth.data import order
from jaxdepth.data.store.reader import Store

Batch = dict[str, np.ndarray]
Load = Callable[[int], tuple[np.ndarray, np.ndarray]]
AHEAD = 4  # batches prepared in advance


@contextlib.contextmanager
def batches(
    store: Store,
    rows: np.ndarray,
    *,
    depth: str,
    seed: int,
    batch_size: int,
    start_step: int,
    stop_step: int,
    host: int = 0,
    hosts: int = 1,
    cache: str = "none",
    threads: int = 2,
    backend: str = "auto",
) -> Iterator[Iterator[Batch]]:
    """Open the batches of steps `start_step` to `stop_step` - 1, in `order`'s order.

    Args:
      rows: the rows of the store to train on.
      depth: "filled" or "raw".
      batch_size: the global one; host `host` of `hosts` gets its slice.
      cache: "host" loads all rows into memory first; "device" expects all frames in
        the device cache (`training.device_cache`), so batches hold only indices.
      backend: "tf", "threads", or "auto": tf.data if TensorFlow can be imported.

    Yields:
      An iterator of batches: `rgb` (b, h, w, 3) uint8; `depth_codes` (b, h, w) uint16,
      the codes of the store: metres = `depth_codes` / `store.depth_unit`, which is 1000
      (millimetres) unless --max_depth exceeds 65.535 m, 0 = missing; `position` (b,)
      int32, the index of each image in the global batch. With cache="device": `rows`
      (b,) int32, indices into `rows`, and `position`.
    """
    local = order.host_slice(batch_size, host, hosts)
    position = np.arange(batch_size, dtype=np.int32)[local]

    def indices(step: int) -> np.ndarray:
        return order.rows_of_step(seed, step, batch_size, len(rows))[local]

    steps = range(start_step, stop_step)
    if cache == "device":
        yield (
            {"rows": indices(step).astype(np.int32), "position": position}
            for step in steps
        )
        return
    gather = _gather_from(store, rows, depth=depth, in_memory=cache == "host")
    use_tf = backend == "tf" or (backend == "auto" and _has_tensorflow())
    prefetch = _prefetch_by_tf if use_tf else _prefetch_by_threads
    with prefetch(lambda step: gather(indices(step)), steps, threads) as frames:
        yield (
            {"rgb": rgb, "depth_codes": depth_codes, "position": position}
            for rgb, depth_codes in frames
        )


def _gather_from(
    store: Store, rows: np.ndarray, *, depth: str, in_memory: bool
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return a function that gathers the frames of indices into `rows`."""
    if not in_memory:
        return lambda indices: store.gather(rows[indices], depth=depth)
    rgb, depth_codes = store.gather(rows, depth=depth)
    return lambda indices: (rgb[indices], depth_codes[indices])


def _has_tensorflow() -> bool:
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        return False
    return True


@contextlib.contextmanager
def _prefetch_by_tf(load: Load, steps: range, threads: int) -> Iterator[Iterator[Any]]:
    """Call `load` for each step in parallel; yield the results in order.

    An exception of `load` is raised unchanged, not as TensorFlow's wrapper of it.
    """
    results = _iterate_tf(load, steps, threads)
    try:
        yield results
    finally:
        # The threads of tf.data call Python: if they still run when the interpreter
        # exits, both deadlock.
        results.close()


def _iterate_tf(load: Load, steps: range, threads: int) -> Any:
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow is initialized already
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")

    errors: list[BaseException] = []

    def load_recording_errors(step):
        try:
            return load(int(step))
        except BaseException as error:
            errors.append(error)
            raise

    @tf.autograph.experimental.do_not_convert  # it has nothing to convert
    def load_tf(step):
        return tf.numpy_function(
            load_recording_errors, [step], (tf.uint8, tf.uint16), stateful=False
        )

    dataset = tf.data.Dataset.range(steps.start, steps.stop)
    dataset = dataset.map(load_tf, num_parallel_calls=threads, deterministic=True)
    try:
        yield from dataset.prefetch(AHEAD).as_numpy_iterator()
    except tf.errors.OpError:
        if errors:
            raise errors[0] from None
        raise


@contextlib.contextmanager
def _prefetch_by_threads(
    load: Load, steps: range, threads: int
) -> Iterator[Iterator[Any]]:
    """Call `load` for each step in parallel; yield the results in order."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        try:
            yield _iterate_threads(load, steps, pool)
        finally:
            pool.shutdown(cancel_futures=True)


def _iterate_threads(
    load: Load, steps: range, pool: concurrent.futures.Executor
) -> Iterator[Any]:
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for step in steps:
        pending.append(pool.submit(load, step))
        if len(pending) > AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
