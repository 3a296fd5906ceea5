"""Reads and packs the frames of a source in order, in this process or in workers."""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import threading
import time
import typing
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from jaxdepth.camera import Camera
from jaxdepth.data import units
from jaxdepth.data.sources import BrokenFrame, Frame, Source
from jaxdepth.data.store import resample
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.errors import MachineError, UserError, one_line

T = typing.TypeVar("T")
Arrays = dict[str, np.ndarray]
AHEAD = 4  # frames per worker that are packed in advance


@dataclasses.dataclass(frozen=True)
class Packed:
    """A frame in the format of a store.

    Attributes:
      small: "rgb" and each kind of depth at the training size; None if the frame has
        no depth within `Packer.last_code` or can't be used.
      full: the same at full size, with all depth, since evaluation protocols have their
        own limits; None if no full-size copy is kept.
      camera: at the training size; None if it is unknown.
      size: (height, width) of the frame.
      unmasked: number of depth maps whose extremes were kept, because there is no
        other depth in them.
      broken: the reason why the frame can't be used.
      read: a summary of each kind of depth as it was read.
    """

    small: Arrays | None = None
    full: Arrays | None = None
    camera: Camera | None = None
    size: tuple[int, int] = (0, 0)
    unmasked: int = 0
    broken: str | None = None
    read: dict[str, units.Summary] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Packer:
    """Reads and packs frames of a source. Workers get a pickled copy.

    Attributes:
      size: (height, width) of the training frames.
      masked: kinds of depth whose extremes are removed from each frame.
      depth_unit: codes per metre.
      last_code: depth beyond this code is missing: it is not an extreme, and is removed
        before resizing, which would average it into its neighbours.
      full_rows: rows of which full-size copies are kept.
      skip_wrong: mark a frame as broken if the source raises UserError for it.
    """

    source: Source
    size: tuple[int, int]
    masked: tuple[str, ...]
    depth_unit: int
    last_code: int
    full_rows: frozenset[int]
    skip_wrong: bool

    def read(self, row: int) -> Frame | str:
        """Read a frame; return the reason instead if it can't be used.

        Raises: UserError if the source does, unless `skip_wrong`; MachineError if
          storage fails.
        """
        try:
            return self.source.frame(row)
        except UserError as error:
            if not self.skip_wrong and not isinstance(error, BrokenFrame):
                raise
            return one_line(error)
        except OSError as error:
            name = self.source.infos[row].name
            raise MachineError(
                f"{name} of {self.source.name} could not be read: {error}"
            ) from error

    def pack(self, row: int, frame: Frame | str) -> Packed:
        """Pack what `read` returned."""
        if isinstance(frame, str):
            return Packed(broken=frame)
        read = {k: units.Summary.of(depth) for k, depth in frame.depths.items()}
        unit, last = self.depth_unit, self.last_code
        depths = {k: resample.to_codes(d, unit) for k, d in frame.depths.items()}
        if not any(resample.within(x, last).any() for x in depths.values()):
            return Packed(read=read)
        full, unmasked = {"rgb": frame.rgb, **depths}, 0
        for kind in self.masked:
            masked = resample.without_extremes(
                frame.depths[kind], unit=frame.unit, last_code=last, depth_unit=unit
            )
            unmasked += masked is None
            full[kind] = full[kind] if masked is None else masked
        return Packed(
            small=resample.training_frame(full, self.size, last_code=last),
            full=full if row in self.full_rows else None,
            camera=resample.camera_at(frame, self.size),
            size=(frame.rgb.shape[0], frame.rgb.shape[1]),
            unmasked=unmasked,
            read=read,
        )


def in_order(
    packer: Packer, rows: Iterable[int], *, workers: int, scratch: Path
) -> Generator[Packed, None, None]:
    """Yield the packed frames of `rows` in order; few of them are in memory at a time.

    Args:
      workers: the number of worker processes. With fewer than two, this process reads
        the frames and packs them on threads.
      scratch: a folder in which workers store packed frames.

    Raises what `Packer.read` raises, and MachineError if a worker dies.
    """
    if workers < 2:
        with ThreadPoolExecutor(2) as pool:
            futures = (pool.submit(packer.pack, k, packer.read(k)) for k in rows)
            yield from _windowed(futures, AHEAD)
        return
    context = multiprocessing.get_context("spawn")
    # Pickled here and not by the pool: a source may be defined in a plugin, which the
    # worker must import first.
    arguments = (flags_lib.loaded_plugins(), pickle.dumps(packer))
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=arguments
    )
    try:
        with _single_threaded_workers():
            futures = (pool.submit(_work, row, scratch) for row in rows)
            for file in _windowed(futures, AHEAD * workers):
                yield _load_and_delete(file)
    except BrokenProcessPool:
        # On Ctrl-C, workers that are still importing die first. Wait for the
        # KeyboardInterrupt in this process, which is the cause to report.
        time.sleep(0.2)
        raise MachineError(
            f"a worker process that reads {packer.source.name} died, perhaps because "
            f"memory ran out: use fewer than {workers} workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        for file in scratch.glob(".packed-*"):
            file.unlink(missing_ok=True)


def _windowed(futures: Iterable[Future[T]], ahead: int) -> Iterator[T]:
    """Yield results in order; start at most `ahead` futures in advance."""
    pending: collections.deque[Future[T]] = collections.deque()
    for future in futures:
        pending.append(future)
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextlib.contextmanager
def _single_threaded_workers() -> Iterator[None]:
    """Limit new workers to one BLAS thread each: there is one worker per core."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_packer: Packer | None = None  # set in workers


def _start_worker(plugins: Sequence[str], packer: bytes) -> None:
    global _packer
    import jax

    # Leave accelerators to training runs on the same machine.
    jax.config.update("jax_platforms", "cpu")
    # Ctrl-C reaches all processes of a terminal; the parent stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for path in plugins:
        flags_lib.load_plugin(path)
    _packer = pickle.loads(packer)


def _end_with_parent() -> None:
    """Exit when the parent process ends, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(row: int, scratch: Path) -> Path:
    """Pack a frame into a file, and return its path.

    Frames are not sent through a pipe: if a worker is killed while it sends a frame,
    the parent waits forever for the rest.
    """
    assert _packer is not None
    file = scratch / f".packed-{row}"
    with open(file, "wb") as stream:
        pickle.dump(_packer.pack(row, _packer.read(row)), stream, protocol=5)
    return file


def _load_and_delete(file: Path) -> Packed:
    with open(file, "rb") as stream:
        packed = pickle.load(stream)
    file.unlink()
    return packed
