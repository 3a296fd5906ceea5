"""Lock files: mutual exclusion, clean-up, file systems without locks."""

import errno
import fcntl
import multiprocessing
import threading
import time
from pathlib import Path

import pytest

from jaxdepth.runtime.locks import file_lock


def ignore() -> None:
    """Wait for the lock."""


def refuse() -> None:
    raise RuntimeError("held")


def test_one_thread_at_a_time_holds_the_lock(tmp_path):
    active, counts, calls = [], [], []
    barrier = threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(5):
            with file_lock(tmp_path / "lock", if_held=lambda: calls.append(1)):
                active.append(1)
                counts.append(len(active))
                time.sleep(0.002)
                active.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1] * 20
    assert calls
    assert list(tmp_path.iterdir()) == []


def _increment(lock: Path, counter: Path) -> None:
    for _ in range(20):
        with file_lock(lock, if_held=ignore):
            counter.write_text(str(int(counter.read_text()) + 1))


def test_processes_exclude_each_other(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("spawn")
    args = (tmp_path / "lock", counter)
    processes = [context.Process(target=_increment, args=args) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "60"
    assert list(tmp_path.iterdir()) == [counter]


def test_if_held_may_raise(tmp_path):
    with (
        file_lock(tmp_path / "lock", if_held=refuse),
        pytest.raises(RuntimeError, match="held"),
        file_lock(tmp_path / "lock", if_held=refuse),
    ):
        pass
    with file_lock(tmp_path / "lock", if_held=refuse):
        pass


def test_an_error_in_the_body_releases_the_lock(tmp_path):
    with (
        pytest.raises(OSError, match="disk"),
        file_lock(tmp_path / "lock", if_held=refuse),
    ):
        raise OSError("disk")
    with file_lock(tmp_path / "lock", if_held=refuse):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_in_the_file_system_the_body_runs(tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        file_lock(tmp_path / "lock", if_held=refuse),
        file_lock(tmp_path / "lock", if_held=refuse),
    ):
        pass


def test_without_the_folder_the_body_runs(tmp_path):
    with file_lock(tmp_path / "none" / "lock", if_held=refuse):
        pass
