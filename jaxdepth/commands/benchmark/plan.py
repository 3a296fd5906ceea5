"""`jaxdepth benchmark cpu` and `gpu`: a list of benchmarks within a time limit.

Each part is a process, so a part that fails or runs out of time does not affect the
others. The results are written after each part.
"""

import dataclasses
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from jaxdepth import workdir
from jaxdepth.commands.benchmark.report import number
from jaxdepth.runtime import subprocesses, terminal
from jaxdepth.runtime.errors import UserError

COMMAND = (sys.executable, "-m", "jaxdepth", "benchmark")
MIN_SECONDS = 20.0  # a part starts if this much time, or half of its own, is left
GRACE_SECONDS = 15.0  # for a part to write its results after it was interrupted
SHOWN_UNITS = ("images/s", "frames/s", "ratio")
SHOWN_FACTS = ("TFLOP/s", "share of the matrix product")
SHOWN_FACTS += ("share of the copy, by XLA's bytes",)


class Part(NamedTuple):
    """A benchmark: its name, its command line, and the seconds it should take.

    In the command line, `{best}` is the batch size that the part `train` selected, and
    `{scratch}` a temporary folder.
    """

    name: str
    command: str
    seconds: float


_GPU = "--arch=upproj --size=228x304 --precision=bf16"
_BEST = f"train {_GPU} --batch_size={{best}}"
_UPCONV = "upconv --precision=bf16 --batch_size=32 --unpool=zero --repeats=3"
_COMPILED = "--peer=torch --peers=tuned --torch_compile --compile_limit=90"
_F32 = "train --arch=upproj --precision=f32 --batch_size=64 --tf32=on"
# The first part compiles a program for each batch size; later parts read most of their
# programs from the compilation cache.
GPU_PARTS = (
    Part("train", f"train {_GPU} --batch_size=best --search_s=90 --frames=1024", 140),
    Part("train_peers", f"{_BEST} --peer=torch --profile={{scratch}}/trace", 90),
    Part("infer", f"infer {_GPU} --batch_size=128 --peer=torch", 80),
    Part("train_host", f"{_BEST} --beside=cache=host", 60),
    Part("upconv", f"{_UPCONV} --peer=torch", 90),
    Part("train_forms", f"{_BEST} --beside=upconv=four,upconv=plain", 150),
    Part("infer_best", f"infer {_GPU} --batch_size=best --search_s=40", 60),
    Part("train_compiled", f"{_BEST} {_COMPILED}", 150),
    Part("train_f32", f"{_F32} --peer=torch", 90),
)
_CPU = "--size=228x304 --precision=f32 --batch_size=4 --devices=1 --peer=torch"
_CPU_SECONDS = {"upproj": 240, "cnn": 120, "cnn_trans": 120, "cnn_fc": 120}
_GROWTH = "train --precision=f32 --devices=1 --repeats=2"
CPU_PARTS = (
    *(
        Part(f"{mode}_{arch}", f"{mode} --arch={arch} {_CPU}", seconds)
        for arch, seconds in _CPU_SECONDS.items()
        for mode in ("train", "infer")
    ),
    Part("upconv", "upconv --batch_size=4 --peer=torch", 700),
    Part("growth_size", f"{_GROWTH} --growth=size --batch_size=4", 240),
    Part("growth_devices", "train --growth=devices --batch_size=1 --repeats=2", 200),
    Part("growth_batch", f"{_GROWTH} --growth=batch", 240),
)
PARTS = {"gpu": GPU_PARTS, "cpu": CPU_PARTS}
# Flags of --dry_run. They follow the part's own flags, and the last value counts.
DRY_FLAGS = {
    "train": "--size=32x48 --thin=16 --frames=8 --max_batch=2 --repeats=2 --seconds=0",
    "infer": "--size=32x48 --thin=16 --max_batch=2 --repeats=2 --seconds=0",
    "upconv": "--size=32x48 --thin=64 --batch_size=2 --repeats=1 --seconds=0",
}
DRY_POINTS = {"size": "24x32,32x48", "devices": "1,2", "batch": "1,2"}


@dataclasses.dataclass(frozen=True)
class GpuSettings:
    """All benchmarks of a GPU in one call."""

    out: str
    """Folder for the results and the log; created if missing."""
    minutes: float = 8.5
    """Time limit."""
    only: str = "all"
    """Names of parts, comma-separated."""
    peer: Literal["none", "torch"] = "torch"
    """torch: compare with PyTorch."""
    dry_run: bool = False
    """Run every part with small networks and images, on any device."""

    kind: ClassVar[str] = "gpu"

    def parts(self) -> list[Part]:
        """The parts that --only names. Raises UserError for an unknown name."""
        parts = {part.name: part for part in PARTS[self.kind]}
        selected = list(parts) if self.only == "all" else self.only.split(",")
        if not parts.keys() >= set(selected):
            raise UserError(f"--only={self.only}: expected names of {', '.join(parts)}")
        return [part for part in parts.values() if part.name in selected]


@dataclasses.dataclass(frozen=True)
class CpuSettings(GpuSettings):
    """All benchmarks of a CPU: float32, batch size 4, compared with PyTorch."""

    minutes: float = 45.0
    """Time limit."""
    kind: ClassVar[str] = "cpu"


def run(settings: GpuSettings, _: Any = None) -> None:
    """Run the parts in order; a part may use the time that earlier parts left."""
    parts, folder = settings.parts(), Path(settings.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={folder}: {error.strerror}") from None
    results, log = (folder / f"{settings.kind}.{suffix}" for suffix in ("json", "log"))
    for path in (results, log):
        if path.exists():
            raise UserError(f"--out={folder}: {path} exists: name another folder")
    start = time.monotonic()
    end, part_end = start + 60 * settings.minutes, start
    documents: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            part_end = min(part_end + part.seconds, end)
            limit = part_end - time.monotonic()
            if limit < min(MIN_SECONDS, part.seconds / 2):
                document = {"stopped": "not started: the time limit was reached"}
            else:
                arguments = part_arguments(part, settings, documents, Path(scratch))
                document = run_part(arguments, limit, log, Path(scratch))
            documents[part.name] = document
            status, seconds = document.get("stopped", "done"), time.monotonic() - start
            print(f"{part.name}: {status} ({seconds:.0f} s)", flush=True)
            merged = {
                "command": shlex.join(["python", *sys.argv]),
                "settings": dataclasses.asdict(settings),
                "parts": documents,
            }
            workdir.write_json(results, merged)
    print_summary(documents, settings)


def part_arguments(
    part: Part, settings: GpuSettings, documents: dict[str, Any], scratch: Path
) -> list[str]:
    """The arguments of `jaxdepth benchmark` for a part."""
    search = documents.get("train", {}).get("facts", {}).get("search", {})
    best = search.get("best", 2 if settings.dry_run else 128)
    words = shlex.split(part.command.format(best=best, scratch=scratch))
    if settings.peer == "none":
        words.append("--peer=none")
    if settings.dry_run:
        words += shlex.split(DRY_FLAGS[words[0]])
        growth = part.name.partition("growth_")[2]
        if growth:
            words.append(f"--points={DRY_POINTS[growth]}")
        if growth != "batch" and "--batch_size=best" not in words:
            words.append("--batch_size=2")
    if words[0] != "upconv":
        words.append(f"--compile_cache={scratch / 'cache'}")
    return words


def run_part(
    arguments: list[str], limit: float, log: Path, scratch: Path
) -> dict[str, Any]:
    """Run a part; returns the document that it wrote.

    `stopped` in the document is the reason why the part is incomplete.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if any(word.startswith("--thin") for word in arguments):
        # The programs of a dry run are called few times: compile them quickly.
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    result = scratch / f"{time.monotonic_ns()}.json"
    command = [*COMMAND, *arguments, f"--json={result}"]
    stopped = None
    with open(log, "a") as file:
        print(f"+ {shlex.join(command)}", file=file, flush=True)
        completed = subprocesses.run(
            command,
            environment=environment,
            log=file,
            timeout=limit,
            grace=GRACE_SECONDS,
        )
    if completed.stopped:
        raise KeyboardInterrupt
    if completed.timed_out:
        stopped = f"stopped after {limit:.0f} s"
    elif completed.code:
        last_line = log.read_text(errors="replace").splitlines()[-1]
        stopped = f"exit code {completed.code}: {last_line[:200]}"
    document = json.loads(result.read_text()) if result.exists() else {}
    return document | ({"stopped": stopped} if stopped else {})


def print_summary(documents: dict[str, Any], settings: GpuSettings) -> None:
    """Print the rates and ratios of all parts, and the names of incomplete parts."""
    rows: list[Sequence[Any]] = []
    for name, document in documents.items():
        for table in document.get("tables", ()):
            if table["unit"] in SHOWN_UNITS:
                for row in table["rows"]:
                    values = (number(row[k]) for k in ("median", "min", "max"))
                    rows.append((f"{name}: {row['what']}", table["unit"], *values))
        facts = document.get("facts", {}).get("rates and shares", {})
        for key in SHOWN_FACTS:
            if facts.get(key) is not None:
                rows.append((f"{name}: {key}", "", number(facts[key]), None, None))
    title = f"results in {settings.out}/{settings.kind}.json"
    terminal.print_table(title, ("part", "unit", "median", "min", "max"), rows)
    incomplete = [name for name, d in documents.items() if "stopped" in d]
    if incomplete:
        print(f"incomplete: {', '.join(incomplete)} (see {settings.kind}.log)")
