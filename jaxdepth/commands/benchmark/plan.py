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
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from jaxdepth import workdir
from jaxdepth.commands.benchmark import summary
from jaxdepth.ops.upconv import FORMS, default_form
from jaxdepth.runtime import subprocesses
from jaxdepth.runtime.errors import UserError

COMMAND = (sys.executable, "-m", "jaxdepth", "benchmark")
# Prints platform and device, and why PyTorch cannot be used: "" if it can.
PROBE = """
import jax
device = jax.devices()[0]
print(device.platform, device.device_kind, sep="\\t", flush=True)
try:
    import torch
    works = device.platform == "cpu" or torch.cuda.is_available()
    print("" if works else f"PyTorch {torch.__version__} cannot use this device")
except ImportError as error:
    print("PyTorch is not installed:", error)
"""
PROBE_SECONDS = 120.0  # a first start reads gigabytes of CUDA libraries
MIN_SECONDS = 20.0  # a part starts if this much time, or half of its own, is left
GRACE_SECONDS = 10.0  # for a part to write its results after it was interrupted
LOG_BYTES = 8 * 2**20  # of a log that is longer, the middle is removed


class Part(NamedTuple):
    """A benchmark: its name, its command line, and the seconds it should take.

    In the command line, `{best}` is the batch size that the part `train` selected,
    `{scratch}` a temporary folder, and `{limit}` the seconds that the part has.

    Attributes:
      extra: runs only if --only names it.
      peers: has no purpose without PyTorch.
    """

    name: str
    command: str
    seconds: float
    extra: bool = False
    peers: bool = False


# Options of XLA, one at a time, the most promising first. Those that the compiler
# rejects are recorded.
OPTIONS = (
    "optimization_level=O1",
    "xla_gpu_enable_command_buffer=",  # none; the default is several kinds of kernels
    "xla_gpu_experimental_enable_conv_fusion=true",
    "xla_gpu_enable_latency_hiding_scheduler=true",
    "xla_gpu_enable_triton_gemm=false",
)
MORE_OPTIONS = (
    "xla_gpu_cudnn_gemm_fusion_level=2",
    "xla_gpu_experimental_enable_fusion_autotuner=true",
    "xla_gpu_unsupported_enable_triton_multi_output_fusion=true",
    "xla_gpu_force_conv_nhwc=true",
    "xla_gpu_enable_cublaslt=true",
    "xla_gpu_exhaustive_tiling_search=true",
    "optimization_level=O3",
)
# All forms but the one that a GPU uses anyway, the slow reference last.
_OTHER_FORMS = [f for f in FORMS if f not in (default_form("gpu"), "plain")]
_FORMS = [f"upconv={form}" for form in (*_OTHER_FORMS, "plain")]
_GPU = "--size=228x304 --precision=bf16 --repeats=5 --seconds=0.5"
_UPPROJ = f"train --arch=upproj {_GPU} --frames=512"
# At most 256, so that PyTorch fits beside JAX, which keeps the memory that it used.
_SEARCH = "--batch_size=best --first_batch=128 --max_batch=256"
_BEST = f"{_UPPROJ} --batch_size={{best}} --peaks=off"
_PAIRS = "--turns=pairs --limit_s={limit} --beside="
_COMPILED = "--peer=torch --peers=tuned --torch_compile --compile_limit=60"
_F32 = "--precision=f32 --batch_size=64 --tf32=on"
_SMALL = f"{_GPU} --batch_size=128 --frames=512 --peer=torch --peaks=off"
_UPCONV = "upconv --precision=bf16 --batch_size=64 --unpool=zero --repeats=3"
_INFER = f"infer --arch=upproj {_GPU} --repeats=3 --seconds=0.3"


def _pairs(*words: str) -> str:
    return _PAIRS + ",".join(words)


# In order of value; together less than 9 minutes. A program takes 30 to 60 s to
# compile for a GPU; later parts read the first one from the compilation cache.
GPU_PARTS = (
    Part(
        "train", f"{_UPPROJ} {_SEARCH} --search_s=35 --profile={{scratch}}/trace", 130
    ),
    Part("train_peers", f"{_BEST} --peer=torch", 50, peers=True),
    Part("infer", f"{_INFER} {_SEARCH} --search_s=15 --peer=torch", 70),
    Part("train_compiled", f"{_BEST} {_COMPILED}", 65, peers=True),
    Part(
        "train_variants",
        f"{_BEST} {_pairs(*_FORMS[:1], *OPTIONS[:3], 'cache=host', *OPTIONS[3:])}",
        90,
    ),
    Part("train_f32", f"{_BEST} {_F32} {_pairs('tf32=off')}", 60),
    Part("train_cnn", f"train --arch=cnn {_SMALL}", 18),
    Part("train_cnn_trans", f"train --arch=cnn_trans {_SMALL}", 18),
    Part("train_cnn_fc", f"train --arch=cnn_fc {_SMALL}", 18),
    Part("train_forms", f"{_BEST} {_pairs(*_FORMS)}", 180, extra=True),
    Part("train_options", f"{_BEST} {_pairs(*MORE_OPTIONS)}", 400, extra=True),
    Part("train_f32_peers", f"{_BEST} {_F32} --peer=torch", 120, True, peers=True),
    Part(
        "infer_compiled",
        f"{_INFER} --batch_size=128 {_COMPILED}",
        180,
        True,
        peers=True,
    ),
    Part("upconv", f"{_UPCONV} --parts=upconv --peer=torch", 180, extra=True),
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
    "train": "--size=48x64 --thin=16 --frames=8 --first_batch=1 --max_batch=2 "
    "--repeats=2 --seconds=0",
    "infer": "--size=32x48 --thin=16 --first_batch=1 --max_batch=2 --repeats=2 "
    "--seconds=0",
    "upconv": "--size=32x48 --thin=64 --batch_size=2 --repeats=1 --seconds=0",
}
DRY_POINTS = {"size": "24x32,32x48", "devices": "1,2", "batch": "1,2"}


@dataclasses.dataclass(frozen=True)
class GpuSettings:
    """All benchmarks of a GPU in one call."""

    out: str
    """Folder for the results and the log; created if missing."""
    minutes: float = 8.75
    """Time limit."""
    only: str = "all"
    """Names of parts, comma-separated; extra: those that all leaves out."""
    peer: Literal["none", "torch"] = "torch"
    """torch: compare with PyTorch, where it is installed."""
    compile_cache: str | None = None
    """Folder of JAX's compilation cache; default: a temporary one."""
    dry_run: bool = False
    """Run every part with small networks and images, on any device."""

    kind: ClassVar[str] = "gpu"

    def parts(self) -> list[Part]:
        """The parts that --only names. Raises UserError for an unknown name."""
        parts = PARTS[self.kind]
        words = self.only.split(",")
        names = [part.name for part in parts]
        if not {*names, "all", "extra"} >= set(words):
            raise UserError(f"--only={self.only}: expected names of {', '.join(names)}")
        return [
            part
            for part in parts
            if part.name in words or ("extra" if part.extra else "all") in words
        ]


@dataclasses.dataclass(frozen=True)
class CpuSettings(GpuSettings):
    """All benchmarks of a CPU: float32, batch size 4, compared with PyTorch."""

    minutes: float = 45.0
    """Time limit."""
    kind: ClassVar[str] = "cpu"


def run(settings: GpuSettings, _: Any = None) -> None:
    """Run the parts in order; a part may use the time that earlier parts left."""
    start = time.monotonic()
    end, part_end = start + 60 * settings.minutes, start
    parts, folder = settings.parts(), Path(settings.out)
    results, log = _new_files(folder, settings.kind)
    no_peer = check_device(settings)
    if no_peer:
        print(f"no comparison with PyTorch: {no_peer}")
        settings = dataclasses.replace(settings, peer="none")
    part_end = time.monotonic()
    documents: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            part_end = min(part_end + part.seconds, end)
            limit = part_end - time.monotonic()
            if part.peers and settings.peer == "none":
                document = {"stopped": f"not started: {no_peer or '--peer=none'}"}
            elif limit < min(MIN_SECONDS, part.seconds / 2):
                document = {"stopped": "not started: the time limit was reached"}
            else:
                arguments = part_arguments(
                    part, settings, documents, Path(scratch), limit
                )
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
    print(summary.text(documents, f"{settings.out}/{settings.kind}"), flush=True)


def _new_files(folder: Path, kind: str) -> tuple[Path, Path]:
    """The files of results and log. Raises UserError if they can't be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={folder}: {error.strerror}") from None
    results, log = folder / f"{kind}.json", folder / f"{kind}.log"
    for path in (results, log):
        if path.exists():
            raise UserError(f"--out={folder}: {path} exists: name another folder")
    return results, log


def check_device(settings: GpuSettings) -> str:
    """Print the device; returns why PyTorch cannot be used, "" if it can.

    A process asks JAX and PyTorch, because the GPU's memory must be free for the parts.

    Raises: UserError if JAX does not start, or if `gpu` has no GPU and is no dry run.
    """
    with tempfile.TemporaryFile("w+") as file:
        completed = subprocesses.run(
            [sys.executable, "-c", PROBE],
            environment=os.environ,
            log=file,
            timeout=PROBE_SECONDS,
        )
        file.seek(0)
        lines = file.read().splitlines() or [""]
    if completed.stopped:
        raise KeyboardInterrupt
    failed = completed.timed_out or completed.code != 0
    devices = [k for k, line in enumerate(lines) if "\t" in line]
    if not devices:
        raise UserError(f"benchmark {settings.kind}: JAX does not start: {lines[-1]}")
    platform, _, name = lines[devices[0]].partition("\t")
    if settings.kind == "gpu" and platform != "gpu" and not settings.dry_run:
        raise UserError(
            f"benchmark gpu: JAX runs on {platform} ({name}): install jax[cuda12] or "
            "jax[cuda13] on a machine with a GPU, or give --dry_run"
        )
    print(f"device: {name} ({platform})", flush=True)
    if settings.peer == "none":
        return ""
    return f"it does not start beside JAX: {lines[-1]}" if failed else lines[-1]


def part_arguments(
    part: Part,
    settings: GpuSettings,
    documents: dict[str, Any],
    scratch: Path,
    limit: float,
) -> list[str]:
    """The arguments of `jaxdepth benchmark` for a part that has `limit` seconds."""
    search = documents.get("train", {}).get("facts", {}).get("search", {})
    best = search.get("best", 2 if settings.dry_run else 128)
    words = shlex.split(
        part.command.format(best=best, scratch=scratch, limit=f"{limit:.0f}")
    )
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
        cache = settings.compile_cache or scratch / "cache"
        words.append(f"--compile_cache={cache}")
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
    shorten(log)
    document = json.loads(result.read_text()) if result.exists() else {}
    return document | ({"stopped": stopped} if stopped else {})


def shorten(log: Path) -> None:
    """Remove the middle of a log that is longer than `LOG_BYTES`."""
    content = log.read_bytes()
    if len(content) > LOG_BYTES:
        half = LOG_BYTES // 2
        log.write_bytes(content[:half] + b"\n... shortened ...\n" + content[-half:])
