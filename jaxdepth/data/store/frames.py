"""A source's frames read and packed one after another: here, or by other processes."""

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
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from jaxdepth.data.sources import BrokenFrame, Frame, Source
from jaxdepth.data.store import resample
from jaxdepth.runtime.errors import MachineError, UserError

T = typing.TypeVar("T")
Arrays = dict[str, np.ndarray]
AHEAD = 4  # frames per worker that wait, packed, for their turn


@dataclasses.dataclass(frozen=True)
class Packed:
    """A frame as a store keeps it.

    Attributes:
      small: "rgb" and each kind of truth at the training size; None where the frame
        has no truth or can't be used.
      full: the same at the frame's own size; None where that is not kept.
      camera: fx, fy, cx, cy at the training size, pixels.
      unmasked: kinds whose extremes stayed, as there was no other depth.
      broken: why the frame can't be used.
    """

    small: Arrays | None = None
    full: Arrays | None = None
    camera: tuple[float, ...] | None = None
    unmasked: int = 0
    broken: str | None = None


@dataclasses.dataclass(frozen=True)
class Packer:
    """Reads and packs frames of a source; travels to other processes.

    Attributes:
      size: (height, width) of the training frames.
      masked: kinds of truth that lose each frame's extremes.
      max_mm: farther truth is no truth for those.
      full_rows: whose full-size frames are wanted.
      skip_wrong: a frame that the source refuses is a broken one.
    """

    source: Source
    size: tuple[int, int]
    masked: tuple[str, ...]
    max_mm: int
    full_rows: frozenset[int]
    skip_wrong: bool

    def read(self, row: int) -> Frame | str:
        """The frame, or why it can't be used.

        Raises: UserError where the source refuses it, unless that is skipped;
          MachineError where storage fails.
        """
        try:
            return self.source.frame(row)
        except UserError as error:
            if not self.skip_wrong and not isinstance(error, BrokenFrame):
                raise
            return " ".join(str(error).split())
        except OSError as error:
            name = self.source.infos[row].name
            raise MachineError(
                f"{name} of {self.source.name} could not be read: {error}"
            ) from error

    def pack(self, row: int, frame: Frame | str) -> Packed:
        """The arrays of a frame that was read."""
        if isinstance(frame, str):
            return Packed(broken=frame)
        depths = {k: resample.millimetres(d) for k, d in frame.depths.items()}
        if not any(depth.any() for depth in depths.values()):
            return Packed()
        full, unmasked = {"rgb": frame.rgb, **depths}, 0
        for kind in self.masked:
            masked = resample.without_extremes(
                frame.depths[kind], unit=frame.unit, max_mm=self.max_mm
            )
            unmasked += masked is None
            full[kind] = full[kind] if masked is None else masked
        return Packed(
            small={kind: resample.to_size(x, self.size) for kind, x in full.items()},
            full=full if row in self.full_rows else None,
            camera=resample.intrinsics(frame, self.size),
            unmasked=unmasked,
        )


def in_order(
    packer: Packer, rows: Iterable[int], *, workers: int, scratch: Path
) -> Generator[Packed, None, None]:
    """The packed frames of `rows`, one after another; few of them wait in memory.

    Args:
      workers: processes that read and pack. With less than two, frames are read here,
        one after another, and packed on threads.
      scratch: a folder for what processes have packed.

    Raises what `Packer.read` does, and MachineError where a process dies.
    """
    if workers < 2:
        with ThreadPoolExecutor(2) as pool:
            here = (pool.submit(packer.pack, k, packer.read(k)) for k in rows)
            yield from _windowed(here, AHEAD)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(packer,)
    )
    try:
        with _one_thread_each():
            there = (pool.submit(_work, row, scratch) for row in rows)
            for file in _windowed(there, AHEAD * workers):
                yield _taken(file)
    except BrokenProcessPool:
        # A worker that Ctrl-C found while it still imported is gone before our own
        # interrupt comes, which is what to say then.
        time.sleep(0.2)
        raise MachineError(
            f"a process that reads {packer.source.name} died, perhaps for want of "
            f"memory: use fewer than {workers} workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        for file in scratch.glob(".packed-*"):
            file.unlink(missing_ok=True)


def _windowed(futures: Iterable[Future[T]], ahead: int) -> Iterator[T]:
    """Results in order; no more than `ahead` futures are taken before their turn."""
    waiting: collections.deque[Future[T]] = collections.deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """New processes multiply matrices on one thread: there is one process per core."""
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


_packer: Packer | None = None  # of a worker


def _start_worker(packer: Packer) -> None:
    global _packer
    import jax

    # Its accelerator is the training run's, here or on a neighbour's terminal.
    jax.config.update("jax_platforms", "cpu")
    # Ctrl-C reaches all processes of a terminal: the parent ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _packer = packer


def _end_with_parent() -> None:
    """Leave when the parent is gone, killed without a chance to say so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(row: int, scratch: Path) -> Path:
    """Pack a frame into a file.

    A worker that is killed while megabytes of it are in a pipe would leave its reader
    waiting for the rest for ever.
    """
    assert _packer is not None
    file = scratch / f".packed-{row}"
    with open(file, "wb") as stream:
        pickle.dump(_packer.pack(row, _packer.read(row)), stream, protocol=5)
    return file


def _taken(file: Path) -> Packed:
    with open(file, "rb") as stream:
        packed = pickle.load(stream)
    file.unlink()
    return packed
