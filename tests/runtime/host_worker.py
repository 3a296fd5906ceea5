"""One of two hosts of `test_hosts.py`: connects once, then trains case after case.

python host_worker.py HOST PORT FOLDER: FOLDER/cases.json holds lists of flags; what
each of them returned goes to FOLDER/codes-HOST.json. A case named "stop" is sent
SIGTERM, on host 1 alone, once it has trained a step.
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
    """SIGTERM to this process when the run in `folder` has logged its first step."""

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
    if not hosts.first():
        terminal.only_errors_to_terminal()
    codes = {}
    for name, flags in json.loads((folder / "cases.json").read_text()).items():
        if name == "stop" and host == 1:
            stop_soon(folder / "stop")
        # Where the flags differ between hosts, there is a list for each.
        mine = flags[host] if isinstance(flags[0], list) else flags
        try:
            codes[name] = run.train(mine)
        except UserError as error:
            codes[name] = str(error)
    (folder / f"codes-{host}.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
