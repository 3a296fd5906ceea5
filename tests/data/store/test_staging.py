"""Atomic writes of a store's files, and its lock."""

import errno
import json
import logging
import resource
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxdepth.data.store import staging
from jaxdepth.runtime import atomic


def test_a_limit_on_the_file_size_is_reported(tmp_path):
    # In a process of its own, because the limit holds for all its files.
    code = f"""
import resource
import numpy as np
from pathlib import Path
from jaxdepth.data.store import staging
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))
try:
    staging.save_npy(Path({str(tmp_path / "x.npy")!r}), np.zeros(9999, np.uint16))
except OSError as error:
    print(error.errno)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) == errno.EFBIG


def test_save_npy_writes_the_bytes_of_np_save(tmp_path):
    array = np.arange(24, dtype=np.uint16).reshape(2, 3, 4).transpose(0, 2, 1)
    entry = staging.save_npy(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    np.save(tmp_path / "b.npy", array)
    both = [(tmp_path / name).read_bytes() for name in ("a.npy", "b.npy")]
    assert both[0] == both[1] and entry["bytes"] == len(both[0])
    assert json.dumps(entry)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a"
    staging.write_file(file, b"old")
    with (
        pytest.raises(KeyboardInterrupt),
        atomic.atomic_write(file, durable=True) as stream,
    ):
        stream.write(b"new")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_a_second_process_waits_for_the_lock_and_logs_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out, entered = tmp_path / "new" / "s", []

    def work():
        with staging.locked(out):
            entered.append(1)

    with staging.locked(out):
        thread = threading.Thread(target=work)
        thread.start()
        deadline = time.monotonic() + 60
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not entered
    thread.join()
    assert entered == [1]
    assert "is being prepared by another process: waiting for it" in caplog.text
    assert list((tmp_path / "new").iterdir()) == []
