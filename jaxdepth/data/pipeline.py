"""Batches from a store in the order of `order`: by tf.data, or threads without it."""

import collections
import concurrent.futures
import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from jaxdepth.data import order
from jaxdepth.data.store.reader import Store

Batch = dict[str, np.ndarray]
AHEAD = 4  # batches prepared beforehand


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
    """The batches of steps `start_step` to `stop_step` - 1, this host's part of each.

    Args:
      rows: the store's rows that train.
      depth: "filled" or "raw".
      batch_size: global; `host` of `hosts` gets its slice.
      cache: "host" reads all rows into memory first; with "device" the frames lie on
        the accelerators (`data.table`), and batches name them alone.
      backend: "tf", "threads", or "auto": tf.data where TensorFlow can be imported.

    Yields an iterator of `rgb` (b,h,w,3) uint8, `depth_mm` (b,h,w) uint16 and
    `position` (b,) int32, each image's place in the global batch. With
    cache="device": `rows` (b,) int32, places in `rows`, and `position`.
    """
    part = order.host_slice(batch_size, host, hosts)
    position = np.arange(batch_size, dtype=np.int32)[part]

    def places_of(step: int) -> np.ndarray:
        return order.rows_of_step(seed, step, batch_size, len(rows))[part]

    if cache == "device":
        yield (
            {"rows": places_of(step).astype(np.int32), "position": position}
            for step in range(start_step, stop_step)
        )
        return
    held = store.gather(rows, depth=depth) if cache == "host" else None

    def make(step: int) -> tuple[np.ndarray, np.ndarray]:
        places = places_of(step)
        if held is not None:
            return held[0][places], held[1][places]
        return store.gather(rows[places], depth=depth)

    use_tf = backend == "tf" or (backend == "auto" and _has_tensorflow())
    source = _by_tf(make, start_step, stop_step, threads) if use_tf else None
    if source is not None:
        try:
            yield ({"rgb": a, "depth_mm": b, "position": position} for a, b in source)
        finally:
            # Its threads call Python: left to the interpreter's end, they wait for it
            # and it for them.
            source.close()
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        made = _by_threads(make, start_step, stop_step, pool)
        try:
            yield ({"rgb": a, "depth_mm": b, "position": position} for a, b in made)
        finally:
            pool.shutdown(cancel_futures=True)


def _has_tensorflow() -> bool:
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        return False
    return True


def _by_tf(
    make: Callable, start: int, stop: int, threads: int
) -> Generator[Any, None, None]:
    """One gather per step, several at a time, in order.

    What `make` raises is raised here as it was, not as TensorFlow's wrapping of it.
    """
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # TensorFlow has begun: too late to hide
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")

    failed: list[BaseException] = []

    def noted(step):
        try:
            return make(int(step))
        except BaseException as error:
            failed.append(error)
            raise

    def gather(step):
        return tf.numpy_function(noted, [step], (tf.uint8, tf.uint16), stateful=False)

    steps = tf.data.Dataset.range(start, stop)
    batches = steps.map(gather, num_parallel_calls=threads, deterministic=True)
    try:
        yield from batches.prefetch(AHEAD).as_numpy_iterator()
    except tf.errors.OpError:
        if failed:
            raise failed[0] from None
        raise


def _by_threads(make: Callable, start: int, stop: int, pool: Any) -> Iterator[Any]:
    waiting: collections.deque = collections.deque()
    for step in range(start, stop):
        waiting.append(pool.submit(make, step))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
