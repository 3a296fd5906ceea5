"""State of the NVIDIA GPUs of this machine, from nvidia-smi: driver, clocks, load."""

import shutil
import subprocess
from typing import Any

# Names of nvidia-smi's fields and of ours.
GPU_FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "memory.total": "memory [MiB]",
    "memory.used": "memory used [MiB]",
    "utilization.gpu": "utilization [%]",
    "clocks.sm": "SM clock [MHz]",
    "clocks.max.sm": "highest SM clock [MHz]",
    "power.draw": "power [W]",
    "temperature.gpu": "temperature [C]",
}
PROCESS_FIELDS = {"pid": "pid", "process_name": "name", "used_memory": "memory [MiB]"}
TIMEOUT = 10.0  # seconds; some drivers take 2 s
# A GPU without processes uses up to 1 GiB for its driver.
IDLE_PERCENT, IDLE_MIB = 10, 2048


def state() -> dict[str, Any]:
    """`gpus` and the `processes` on them, each a list of dicts; {} without nvidia-smi.

    Call it before JAX starts: afterwards this process is one of the processes.
    """
    gpus = query("gpu", GPU_FIELDS)
    if not gpus:
        return {}
    return {"gpus": gpus, "processes": query("compute-apps", PROCESS_FIELDS)}


def query(kind: str, fields: dict[str, str]) -> list[dict[str, Any]]:
    """The answer of `nvidia-smi --query-KIND`; [] if it gives none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    options = [f"--query-{kind}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            [program, *options], capture_output=True, text=True, timeout=TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse(answer.stdout, fields) if answer.returncode == 0 else []


def parse(text: str, fields: dict[str, str]) -> list[dict[str, Any]]:
    """Rows of comma-separated values; numbers as float, missing values as None."""
    rows = [line.split(", ") for line in text.splitlines()]
    return [
        dict(zip(fields.values(), map(_value, row), strict=True))
        for row in rows
        if len(row) == len(fields)
    ]


def _value(word: str) -> Any:
    try:
        return float(word)
    except ValueError:
        return None if word.startswith("[") else word.strip()  # [N/A]


def warning(state: dict[str, Any]) -> str | None:
    """A warning if other processes use the GPUs, else None."""
    names = [str(process["name"]) for process in state.get("processes", ())]
    for gpu in state.get("gpus", ()):
        percent, used = gpu["utilization [%]"] or 0.0, gpu["memory used [MiB]"] or 0.0
        if percent > IDLE_PERCENT or used > IDLE_MIB:
            names.append(f"{percent:.0f} % load, {used:.0f} MiB used")
    if not names:
        return None
    words = ", ".join(dict.fromkeys(names))
    return f"note: other processes use the GPU ({words}): times are unreliable"
