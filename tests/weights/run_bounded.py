"""Run converters on files in processes with limited memory; a program for a test.

Argument: a folder for outputs. Standard input: a line `name TAB command TAB path` for
every file. Standard output: a line of JSON for every file: name, message, exit code
(negative: ended by that signal), seconds of processor time, peak memory in MB.
"""

import json
import os
import resource
import signal
import sys
import time

from jaxdepth.commands import convert_fcrn, convert_resnet
from jaxdepth.runtime.errors import UserError
from jaxdepth.weights import fcrn, resnet

MEMORY = 1 << 30
TIMEOUT = 20  # seconds; the machine may be busy
COMMANDS = {
    "resnet": (convert_resnet, ()),
    "fcrn": (convert_fcrn, ()),
    "reverse": (convert_resnet, ("--reverse",)),
}


def pages(index: int) -> int:
    """Virtual (0) or resident (1) memory of this process, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[index]) * resource.getpagesize()


def convert(command: str, path: str, out: str) -> tuple[str, int]:
    """Message and exit code."""
    module, flags = COMMANDS[command]
    try:
        return "converted", module.command([path, out, *flags])
    except UserError as error:
        return str(error), 2
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}", 1


def child(pipe: int, command: str, path: str, out: str) -> None:
    limit = pages(0) + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before, start = pages(1), time.process_time()
    message, code = convert(command, path, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    result = {"message": message, "code": code, "seconds": time.process_time() - start}
    os.write(pipe, json.dumps(result | {"mb": peak >> 20}).encode())
    os._exit(0)


def run(name: str, command: str, path: str) -> dict:
    readable, writable = os.pipe()
    suffix = "pth" if command == "reverse" else "safetensors"
    pid = os.fork()
    if pid == 0:
        child(writable, command, path, f"{sys.argv[1]}/out-{os.getpid()}.{suffix}")
    os.close(writable)
    deadline = time.monotonic() + TIMEOUT
    ended, status = 0, 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    with open(readable, "rb") as file:
        content = file.read()
    result = json.loads(content or b"{}")
    return {"name": name, "code": os.waitstatus_to_exitcode(status), **result}


if __name__ == "__main__":
    # So that the children don't measure JAX's start.
    resnet.shapes()
    fcrn.shapes()
    for line in sys.stdin.read().splitlines():
        print(json.dumps(run(*line.split("\t"))), flush=True)
