"""A process of its own: its exit code, its last words, and signals that go on to it."""

import os
import signal
import sys
import threading
import time

import pytest

from jaxdepth.runtime.subprocesses import launch


def python(code):
    return launch([sys.executable, "-u", "-c", code], environment=os.environ)


def test_code_and_last_words(capfd):
    ended = python("import sys; print('out'); sys.exit(0)")
    assert (ended.code, ended.reason, ended.stopped) == (0, "", False)
    ended = python(
        "import sys; print('first\\nlast \\n', file=sys.stderr); sys.exit(2)"
    )
    assert (ended.code, ended.reason) == (2, "last")
    out, err = capfd.readouterr()
    assert out == "out\n" and err == "first\nlast \n\n"


def test_what_was_killed_says_by_what():
    ended = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (ended.code, ended.reason, ended.stopped) == (-9, "killed by SIGKILL", False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_go_on_to_it_once(number, tmp_path):
    ready = tmp_path / "ready"
    code = f"""
import pathlib, signal, sys, time
got = []
signal.signal({int(number)}, lambda *_: got.append(1))
pathlib.Path({str(ready)!r}).touch()
while not got:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(70 + len(got))
"""

    def stop():
        deadline = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=stop).start()
    ended = python(code)
    assert (ended.code, ended.stopped) == (71, True)
    assert signal.getsignal(number) == before
