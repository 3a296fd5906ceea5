"""Child processes: exit codes, stderr, signals, time limits."""

import os
import signal
import sys
import threading
import time

import pytest

from jaxdepth.runtime.subprocesses import Completed, run


def python(code, **options):
    return run([sys.executable, "-u", "-c", code], environment=os.environ, **options)


def test_exit_code_and_last_line_of_stderr(capfd):
    assert python("import sys; print('out'); sys.exit(0)") == Completed(0, "", False)
    failed = python(
        "import sys; print('first\\nlast \\n', file=sys.stderr); sys.exit(2)"
    )
    assert (failed.code, failed.reason) == (2, "last")
    out, err = capfd.readouterr()
    assert out == "out\n" and err == "first\nlast \n\n"


def test_the_reason_names_the_signal_that_killed_the_process():
    killed = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert killed == Completed(-9, "killed by SIGKILL", False)


def test_stderr_goes_to_the_callback(capfd):
    lines = []
    python("import sys; print('a\\nb', file=sys.stderr)", on_stderr=lines.append)
    assert lines == ["a\n", "b\n"] and capfd.readouterr().err == ""


def test_a_log_gets_stdout_and_stderr(tmp_path):
    with open(tmp_path / "log", "w") as log:
        python("import sys; print('a'); print('b', file=sys.stderr)", log=log)
    assert (tmp_path / "log").read_text() == "a\nb\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_forwarded_once(number, tmp_path):
    ready = tmp_path / "ready"
    code = f"""
import pathlib, signal, sys, time
received = []
signal.signal({int(number)}, lambda *_: received.append(1))
pathlib.Path({str(ready)!r}).touch()
deadline = time.monotonic() + 60
while not received and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(70 + len(received))
"""
    # A shell or nohup may have started the tests with this signal ignored.
    before = signal.signal(number, signal.default_int_handler)
    try:
        threading.Thread(target=kill_when, args=(ready, number)).start()
        completed = python(code)
        assert (completed.code, completed.stopped) == (71, True)
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)


def kill_when(ready, number):
    """Send this process a signal as soon as a file exists."""
    deadline = time.monotonic() + 60
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(os.getpid(), number)


def test_an_ignored_hangup_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        completed = python("import os, signal; os.kill(os.getppid(), signal.SIGHUP)")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert completed == Completed(0, "", False)


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGINT, {handler})
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("handler", "code"),
    [("lambda *_: sys.exit(5)", 5), ("signal.SIG_IGN", -signal.SIGKILL)],
)
def test_a_timeout_interrupts_the_process_then_kills_it(tmp_path, handler, code):
    with open(tmp_path / "log", "w") as log:
        completed = python(
            STUBBORN.format(handler=handler), log=log, timeout=2.0, grace=1.0
        )
    assert (completed.code, completed.timed_out) == (code, True)
