"""One of the two hosts of `test_hosts.py`: connects once, then trains case by case.

python host_worker.py HOST PORT FOLDER: FOLDER/cases.json holds a list of flags per
case; the exit codes or error messages go to FOLDER/codes-HOST.json. In the case "stop",
host 1 sends SIGTERM to itself after its first step.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from jaxdepth.commands import cli, run
from jaxdepth.runtime import hosts, terminal
from jaxdepth.runtime.errors import UserError


def stop_soon(folder: Path) -> None:
    """Send SIGTERM to this process when the run in `folder` has logged a step."""

    def wait() -> None:
        while not (folder / "metrics.jsonl").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(host: int, port: str, folder: Path) -> None:
    terminal.log_to_terminal()
    cli.quiet_libraries()
    hosts.connect(hosts.Cluster(f"localhost:{port}", 2, host))
    if not hosts.is_first_host():
        terminal.only_errors_to_terminal()
    codes = {}
    for name, flags in json.loads((folder / "cases.json").read_text()).items():
        if name == "stop" and host == 1:
            stop_soon(folder / "stop")
        # A list per host, if the flags differ between hosts.
        host_flags = flags[host] if isinstance(flags[0], list) else flags
        try:
            codes[name] = run.train(host_flags)
        except UserError as error:
            codes[name] = str(error)
    (folder / f"codes-{host}.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
