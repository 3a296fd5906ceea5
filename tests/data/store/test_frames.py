"""Frames one after another: few in memory, and by processes that may be stopped."""

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


def test_few_frames_wait_in_memory(tmp_path):
    class Counted(Memory):
        given = most = 0

        def frame(self, row):
            self.most = max(self.most, row - self.given)
            return super().frame(row)

    source = Counted([frame(k) for k in range(40)])
    packer = store_writer.Job(source, store_writer.Packing(SIZE))._packer()
    packed = frames_lib.in_order(packer, range(40), workers=0, scratch=tmp_path)
    for k, _ in enumerate(packed):
        source.given = k + 1
    assert source.most <= frames_lib.AHEAD + 1


def run(code: str, *argv) -> subprocess.Popen:
    # What a shell starts in the background ignores SIGINT, and so would this.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    return subprocess.Popen(
        [sys.executable, "-c", heard + textwrap.dedent(code), *map(str, argv)],
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
def test_processes_write_what_one_writes_and_a_kill_costs_a_shard(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(store_writer, "SHARD", 4)
    more = {"broken": {6: "cut short"}, "wrong": (9,)}
    frames = [frame(k, (30, 44), ("filled", "raw")) for k in range(18)]
    whole = written(tmp_path, frames, out="whole", kinds=("filled", "raw"),
                    skip_wrong=True, **more)  # fmt: skip
    process = run(
        """
        import multiprocessing, os, sys
        from jaxdepth.data.store import writer as packing
        from tests.data.memory import SIZE, Memory, frame

        def kill(what, done, total):
            if done == 11:
                print(*(p.pid for p in multiprocessing.active_children()), flush=True)
                os.kill(os.getpid(), 9)

        packing.SHARD = 4
        kinds = ("filled", "raw")
        source = Memory([frame(k, (30, 44), kinds) for k in range(18)], kinds,
                        broken={6: "cut short"}, wrong=(9,))
        packing.write(source, sys.argv[1], size=SIZE, skip_wrong=True, workers=2,
                      progress=kill)
        """,
        tmp_path / "s",
    )
    said, errors = process.communicate(timeout=90)
    assert process.returncode == -signal.SIGKILL, errors
    workers = [int(pid) for pid in said.split()]
    assert len(workers) == 2
    source = Memory(frames, ("filled", "raw"), **more)
    opened = store_writer.write(source, tmp_path / "s", size=SIZE, skip_wrong=True)
    # Shards 0 and 1 are the processes', the others this one's.
    assert source.read == 18 - 8 - 1
    assert contents(opened.path) == contents(whole.path)
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_without_a_word(tmp_path):
    process = run(
        """
        import sys, time
        from jaxdepth.commands import cli
        from jaxdepth.data.store import writer as packing
        from tests.data.memory import SIZE, Memory, frame

        def slowly(what, done, total):  # so that the others wait for work
            print(done, flush=True)
            time.sleep(0.02)

        def command(argv):
            packing.SHARD = 4
            source = Memory([frame(size=(600, 800))] * 500)
            packing.write(source, argv[0], size=SIZE, workers=2, progress=slowly)

        cli.main(command)
        """,
        tmp_path / "s",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "20\n":
            break
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (cli.INTERRUPTED, "interrupted\n")
    assert "finished shards of" in said and not is_store(tmp_path / "s")
    (part,) = tmp_path.iterdir()
    assert len(list((part / "records").iterdir())) >= 5


@pytest.mark.slow
def test_a_process_that_dies_is_the_machines_fault(tmp_path):
    process = run(
        """
        import sys
        from jaxdepth.commands import cli
        from jaxdepth.data.store import writer as packing
        from tests.data.memory import SIZE, Deadly, frame

        cli.main(lambda argv: packing.write(
            Deadly([frame(k) for k in range(8)]), argv[0], size=SIZE, workers=2))
        """,
        tmp_path / "s",
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode == cli.MACHINE
    assert errors.startswith("stopped: a process that reads memory died")
    assert errors.count("\n") == 1
