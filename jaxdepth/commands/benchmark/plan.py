"""`benchmark.py cpu` and `gpu`: a list of measurements within so many minutes.

Each is a process of its own, so that one that fails, or takes too long, costs the
others nothing. What is found is written after each of them; what isn't reached is said.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxdepth.commands.benchmark import report as report_lib
from jaxdepth.commands.benchmark.report import number
from jaxdepth.runtime import atomic, terminal
from jaxdepth.runtime.errors import MachineError, UserError

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
LEAST = 20.0  # seconds without which a part isn't begun, or half of what it should take
GRACE = 15.0  # seconds that a part has to write what it found, once its time is up
SHOWN = ("images/s", "frames/s", "ratio")
FACTS = ("TFLOP/s", "share of the matrix product", "share of the copy, by XLA's bytes")
BEST = "{best}"  # the batch that the part named `train` found
SCRATCH = "{scratch}"  # a folder that is taken away at the end


class Part(NamedTuple):
    """A measurement: its name, the command's words, and seconds it should take."""

    name: str
    words: str
    seconds: float


_GPU = "--arch=upproj --size=228x304 --precision=bf16"
# The first is a search over batches, each of which compiles; later ones find most of
# their programs compiled.
GPU_PARTS = (
    Part("train", f"train {_GPU} --batch_size=best --search_s=90 --frames=1024", 140),
    Part(
        "train_peers",
        f"train {_GPU} --batch_size={BEST} --peer=torch --profile={SCRATCH}/trace",
        90,
    ),
    Part("infer", f"infer {_GPU} --batch_size=128 --peer=torch", 80),
    Part("train_host", f"train {_GPU} --batch_size={BEST} --beside=cache=host", 60),
    Part(
        "upconv",
        "upconv --precision=bf16 --batch_size=32 --unpool=zero --repeats=3 "
        "--peer=torch",
        90,
    ),
    Part(
        "train_forms",
        f"train {_GPU} --batch_size={BEST} --beside=upconv=dilated",
        150,
    ),
    Part("infer_best", f"infer {_GPU} --batch_size=best --search_s=40", 60),
    Part(
        "train_compiled",
        f"train {_GPU} --batch_size={BEST} --peer=torch --peers=tuned --torch_compile "
        "--compile_limit=90",
        150,
    ),
    Part(
        "train_f32",
        "train --arch=upproj --precision=f32 --batch_size=64 --peer=torch --tf32=on",
        90,
    ),
)
_GROWTH = "--precision=f32 --devices=1 --repeats=2"
_CPU = "--size=228x304 --precision=f32 --batch_size=4 --devices=1 --peer=torch"
CPU_PARTS = (
    *(
        Part(f"{what}_{arch}", f"{what} --arch={arch} {_CPU}", seconds)
        for arch, seconds in (
            ("upproj", 240),
            ("cnn", 120),
            ("cnn_trans", 120),
            ("cnn_fc", 120),
        )
        for what in ("train", "infer")
    ),
    Part("upconv", "upconv --batch_size=4 --peer=torch", 700),
    Part("growth_size", f"train {_GROWTH} --growth=size --batch_size=4", 240),
    Part("growth_devices", "train --growth=devices --batch_size=1 --repeats=2", 200),
    Part("growth_batch", f"train {_GROWTH} --growth=batch", 240),
)
_DRY = {
    "train": "--size=32x48 --thin=16 --frames=8 --max_batch=2 --repeats=2 --seconds=0",
    "infer": "--size=32x48 --thin=16 --max_batch=2 --repeats=2 --seconds=0",
    "upconv": "--size=32x48 --thin=64 --repeats=1 --seconds=0",
}
_DRY_POINTS = {"size": "24x32,32x48", "devices": "1,2", "batch": "1,2"}


@dataclasses.dataclass(frozen=True)
class GpuSettings:
    """Everything that is asked of a GPU, in one call."""

    out: str
    """A folder for results and the log; made where there is none."""
    minutes: float = 8.5
    """After which nothing goes on."""
    only: str = "all"
    """Names of parts, by commas."""
    peer: Literal["none", "torch"] = "torch"
    """Beside PyTorch's networks, or ours alone."""
    dry_run: bool = False
    """Small networks and images: whether everything runs, anywhere."""

    @property
    def kind(self) -> str:
        return "gpu"

    def parts(self) -> list[Part]:
        """Those asked for. UserError for a name that is none."""
        known = {"gpu": GPU_PARTS, "cpu": CPU_PARTS}[self.kind]
        names = [part.name for part in known]
        wanted = names if self.only == "all" else self.only.split(",")
        for name in wanted:
            if name not in names:
                raise UserError(f"--only={self.only}: of {', '.join(names)}")
        return [part for part in known if part.name in wanted]


@dataclasses.dataclass(frozen=True)
class CpuSettings(GpuSettings):
    """The four networks in float32, batch 4, beside PyTorch's, on this processor."""

    minutes: float = 45.0
    """After which nothing goes on."""

    @property
    def kind(self) -> str:
        return "cpu"


def run(settings: GpuSettings, _: Any = None) -> None:
    """Run the parts one after the other; each may use what earlier ones left over."""
    parts = settings.parts()
    out = Path(settings.out)
    files = [out / f"{settings.kind}.{suffix}" for suffix in ("json", "log")]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={out}: {error.strerror}") from None
    report_lib.check_free(*map(str, files))
    began = time.monotonic()
    end, planned = began + 60 * settings.minutes, began
    documents: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            planned = min(planned + part.seconds, end)
            limit = planned - time.monotonic()
            words = _words(part, settings, documents, Path(scratch))
            if limit < min(LEAST, part.seconds / 2):
                documents[part.name] = {"stopped": "not reached: time was up"}
            else:
                documents[part.name] = _run(
                    words, limit, files[1], Path(scratch), dry=settings.dry_run
                )
            _tell(part.name, documents[part.name], time.monotonic() - began)
            _write(files[0], settings, documents)
    _summary(documents, settings)


def _words(
    part: Part, settings: GpuSettings, documents: dict[str, Any], scratch: Path
) -> list[str]:
    """The words of a part's command."""
    found = documents.get("train", {}).get("facts", {}).get("search", {})
    best = str(found.get("best", 2 if settings.dry_run else 128))
    text = part.words.replace(BEST, best).replace(SCRATCH, str(scratch))
    words = shlex.split(text)
    if settings.peer == "none":
        words = [word for word in words if not word.startswith(("--peer", "--torch"))]
    if settings.dry_run:
        words = _dry(words)
    if words[0] != "upconv":
        words.append(f"--compile_cache={scratch / 'cache'}")
    return words


def _dry(words: list[str]) -> list[str]:
    """The same measurement of next to nothing."""
    dry = shlex.split(_DRY[words[0]])
    grown = [w.removeprefix("--growth=") for w in words if w.startswith("--growth=")]
    dry += [f"--points={_DRY_POINTS[by]}" for by in grown]
    batch = [w for w in words if w == "--batch_size=best"] or ["--batch_size=2"]
    if "batch" in grown:
        batch = []
    replaced = {word.partition("=")[0] for word in [*dry, *batch]}
    words = [w for w in words if w.partition("=")[0] not in replaced]
    return [*words, *dry, *batch]


def _run(
    words: list[str], limit: float, log: Path, scratch: Path, *, dry: bool
) -> dict[str, Any]:
    """One part: what it wrote, with `stopped` where it did not come to its end."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if dry:  # each program runs a few times: compiling it well would cost the most
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    result = scratch / f"{time.monotonic_ns()}.json"
    command = [sys.executable, str(SCRIPT), *words, f"--json={result}"]
    with open(log, "a") as file:
        print(f"+ {shlex.join(command)}", file=file, flush=True)
        with _hearing_interrupts():
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        reason = None
        try:
            code = process.wait(limit)
            reason = f"exit code {code}: {_last_line(log)}" if code else None
        except subprocess.TimeoutExpired:
            reason = f"stopped after {limit:.0f} s"
            _stop(process)
        except BaseException:
            _stop(process)
            raise
    document = json.loads(result.read_text()) if result.exists() else {}
    return document | ({"stopped": reason} if reason else {})


@contextlib.contextmanager
def _hearing_interrupts() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and so would its parts."""
    before = signal.getsignal(signal.SIGINT)
    ignored = before is signal.SIG_IGN
    if ignored and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
    else:
        yield


def _stop(process: subprocess.Popen) -> None:
    """Ask a part to write what it has; end it, and all it started, if it doesn't."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1][:200] if lines else ""


def _tell(name: str, document: dict[str, Any], seconds: float) -> None:
    print(f"{name}: {document.get('stopped', 'done')} ({seconds:.0f} s)", flush=True)


def _write(path: Path, settings: GpuSettings, documents: dict[str, Any]) -> None:
    merged = {
        "command": shlex.join(["python", *sys.argv]),
        "settings": dataclasses.asdict(settings),
        "parts": documents,
    }
    try:
        with atomic.replacing(path) as file:
            file.write(report_lib.dumps(merged).encode())
    except OSError as error:
        raise MachineError(f"{path} could not be written: {error.strerror}") from None


def _summary(documents: dict[str, Any], settings: GpuSettings) -> None:
    """The rates and ratios of all parts, and what was not reached."""
    rows: list[Sequence[Any]] = []
    for name, document in documents.items():
        for table in document.get("tables", ()):
            if table["unit"] in SHOWN:
                for row in table["rows"]:
                    values = (number(row[k]) for k in ("median", "min", "max"))
                    rows.append((f"{name}: {row['what']}", table["unit"], *values))
        facts = document.get("facts", {}).get("rates and shares", {})
        for key in FACTS:
            if facts.get(key) is not None:
                rows.append((f"{name}: {key}", "", number(facts[key]), None, None))
    title = f"everything measured, in {settings.out}/{settings.kind}.json"
    terminal.print_table(title, ("part", "unit", "median", "min", "max"), rows)
    missing = [name for name, d in documents.items() if "stopped" in d]
    if missing:
        print(f"not complete: {', '.join(missing)} (see {settings.kind}.log)")
