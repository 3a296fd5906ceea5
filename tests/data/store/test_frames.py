"""Reading and packing frames: memory, worker processes, interruptions."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from jaxdepth.commands import cli
from jaxdepth.data.store import frames as frames_lib
from jaxdepth.data.store import writer as store_writer
from jaxdepth.data.store.reader import is_store
from tests.data.memory import SIZE, Memory, contents, frame, written

ROOT = Path(__file__).parents[3]


def test_few_frames_are_in_memory(tmp_path):
    class Counted(Memory):
        yielded = most = 0

        def frame(self, row):
            self.most = max(self.most, row - self.yielded)
            return super().frame(row)

    source = Counted([frame(k) for k in range(40)])
    packer = store_writer.Job(source, store_writer.Packing(SIZE))._packer()
    packed = frames_lib.in_order(packer, range(40), workers=0, scratch=tmp_path)
    for k, _ in enumerate(packed):
        source.yielded = k + 1
    assert source.most <= frames_lib.AHEAD + 1


def run(code: str, *argv) -> subprocess.Popen:
    # Processes that a shell starts in the background ignore SIGINT.
    handle_sigint = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", handle_sigint + textwrap.dedent(code), *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"},
        start_new_session=True,
    )


def alive(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


@pytest.mark.slow
def test_workers_write_the_same_store_and_a_kill_loses_one_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(store_writer, "SHARD", 4)
    more = {"broken": {6: "cut short"}, "wrong": (9,)}
    frames = [frame(k, (30, 44), ("filled", "raw")) for k in range(18)]
    complete = written(tmp_path, frames, out="complete", kinds=("filled", "raw"),
                       skip_wrong=True, **more)  # fmt: skip
    process = run(
        """
        import multiprocessing, os, sys
        from jaxdepth.data.store import writer
        from tests.data.memory import SIZE, Memory, frame

        def kill(what, done, total):
            if done == 11:
                print(*(p.pid for p in multiprocessing.active_children()), flush=True)
                os.kill(os.getpid(), 9)

        writer.SHARD = 4
        kinds = ("filled", "raw")
        source = Memory([frame(k, (30, 44), kinds) for k in range(18)], kinds,
                        broken={6: "cut short"}, wrong=(9,))
        writer.write(source, sys.argv[1], size=SIZE, skip_wrong=True, workers=2,
                     progress=kill)
        """,
        tmp_path / "s",
    )
    output, errors = process.communicate(timeout=90)
    assert process.returncode == -signal.SIGKILL, errors
    workers = [int(pid) for pid in output.split()]
    assert len(workers) == 2
    source = Memory(frames, ("filled", "raw"), **more)
    opened = store_writer.write(source, tmp_path / "s", size=SIZE, skip_wrong=True)
    # The workers wrote shards 0 and 1, this process the others.
    assert source.read == 18 - 8 - 1
    assert contents(opened.path) == contents(complete.path)
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_without_a_traceback(tmp_path):
    process = run(
        """
        import sys, time
        from jaxdepth.commands import cli
        from jaxdepth.data.store import writer
        from tests.data.memory import SIZE, Memory, frame

        def slow(what, done, total):  # so that the workers wait for work
            print(done, flush=True)
            time.sleep(0.02)

        def command(argv):
            writer.SHARD = 4
            source = Memory([frame(size=(600, 800))] * 500)
            writer.write(source, argv[0], size=SIZE, workers=2, progress=slow)

        cli.main(command)
        """,
        tmp_path / "s",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "20\n":
            break
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (cli.INTERRUPTED, "interrupted\n")
    assert "finished shards of" in output and not is_store(tmp_path / "s")
    (part,) = tmp_path.iterdir()
    assert len(list((part / "records").iterdir())) >= 5


@pytest.mark.slow
def test_a_worker_that_dies_is_a_machine_error(tmp_path):
    process = run(
        """
        import sys
        from jaxdepth.commands import cli
        from jaxdepth.data.store import writer
        from tests.data.memory import SIZE, Deadly, frame

        cli.main(lambda argv: writer.write(
            Deadly([frame(k) for k in range(8)]), argv[0], size=SIZE, workers=2))
        """,
        tmp_path / "s",
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == cli.MACHINE
    assert errors.startswith("stopped: a worker process that reads memory died")
    assert errors.count("\n") == 1
