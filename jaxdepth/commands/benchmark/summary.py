"""Summary of `jaxdepth benchmark cpu` and `gpu`: short enough for the end of a log."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdepth.commands.benchmark import profiling
from jaxdepth.commands.benchmark.report import number

LENGTH = 11_000  # characters of the whole summary
WIDTH = 96  # characters of the first column
UNITS = ("images/s", "frames/s", "ratio")
SHARES = ("TFLOP/s", "share of the matrix product")
SHARES += ("share of the copy, by XLA's bytes",)
SHARES += ("share of the copy, by the kernels' operands",)
GOAL_PEER = 1.2  # times as fast as the faster PyTorch network


class Reference(NamedTuple):
    """Training of `upproj` at 228x304, images/s, on one device.

    Attributes:
      device: part of JAX's name of the device.
      rate: MLPerf's tuned ResNet-50, scaled by the FLOPs of both networks.
      source: where `rate` comes from.
      goals: name -> images/s that this project aims at.
    """

    device: str
    rate: float
    source: str
    goals: dict[str, float]


_MLPERF = "MLPerf's tuned ResNet-50 on one H200, 7,950 images/s, scaled by FLOPs"
REFERENCES = (
    Reference("H200", 1890.0, _MLPERF, {"goal": 2400.0, "moonshot": 4000.0}),
    Reference("H100", 1700.0, f"{_MLPERF} and to an H100", {}),
)


def text(documents: dict[str, Any], path: str) -> str:
    """The summary of the documents of all parts.

    Of too many rates, the last ones are left out and counted.

    Args:
      documents: part -> the document that it wrote.
      path: of the results without suffix.
    """
    head = [*_devices(documents), *_profile(documents)]
    tail = [*_skipped(documents, path), *_references(documents)]
    title = [f"results in {path}.json: median (lowest to highest)"]
    rates = list(_rates(documents))
    room = LENGTH - sum(len(line) + 1 for line in [*head, *title, *tail]) - 60
    kept = 0
    for line in rates:
        room -= len(line) + 1
        if room < 0:
            break
        kept += 1
    if kept < len(rates):
        rates[kept:] = [f"and {len(rates) - kept} more in {path}.json"]
    return "\n".join([*head, *title, *rates, *tail])


def _devices(documents: dict[str, Any]) -> list[str]:
    """The device, its driver, the versions and other processes on the GPU."""
    measured = [d for d in documents.values() if "hardware" in d]
    if not measured:
        return []
    hardware, versions = measured[0]["hardware"], measured[0]["versions"]
    names = ", ".join(f"{k} {v}" for k, v in versions.items() if k != "runtime")
    lines = [f"{hardware['devices']} x {hardware['device']}: {names}"[:600]]
    state = measured[0].get("facts", {}).get("nvidia-smi before", {})
    for gpu in state.get("gpus", ()):
        lines.append(", ".join(f"{k} {number(v)}" for k, v in gpu.items()))
    busy = [
        f"{name}: {note}"
        for name, document in documents.items()
        for note in document.get("facts", {}).get("notes", ())
        if note.startswith("note: other processes")
    ]
    return [*lines, *(line[:200] for line in busy[:5])]


def _profile(documents: dict[str, Any]) -> list[str]:
    """The most expensive operations of the part `train`, by kind and one by one."""
    profile = documents.get("train", {}).get("facts", {}).get("profile")
    if profile is None:
        return []
    kinds = {k: v for k, v in profile["ms by kind"].items() if v > 0}
    busy = profile.get("share of the time with a kernel running")
    words = [f"{kind} {number(ms)}" for kind, ms in kinds.items()]
    lines = [
        f"profile of a step, ms: {number(profile['ms in all'])} in "
        f"{profile['kernels']:.0f} kernels, "
        + (f"a kernel runs {busy:.0%} of the time; " if busy else "")
        + ", ".join(words)
    ]
    blocks = list(profile["ms by block"].items())[:16]
    lines.append("by block: " + ", ".join(f"{k} {number(v)}" for k, v in blocks))
    lines.append(f"the {profiling.TOP} most expensive: ms, share, operation, part")
    for row in profile["costliest"][: profiling.TOP]:
        lines.append(
            f"{row['ms']:8.3f} {row['share']:5.1%} {row['operation'][:44]}  "
            f"{row['part'][:60]}"
        )
    return lines


def _rates(documents: dict[str, Any]) -> list[str]:
    """One line for each rate, ratio and share."""
    lines = []
    for name, document in documents.items():
        for table in document.get("tables", ()):
            if table["unit"] not in UNITS or table["title"].startswith("search"):
                continue
            for row in table["rows"]:
                if len(table["rows"]) > 1 and _is_repeated(row, table, document):
                    continue
                values = [number(row[k]) for k in ("median", "min", "max")]
                what = f"{name}: {row['what']}"
                if table["title"].endswith("one frame at a time"):
                    what = f"{name}, batch 1: {row['what']}"
                lines.append(f"{what[:WIDTH]}: {_spread(values)} {table['unit']}")
        facts = document.get("facts", {})
        shares = facts.get("rates and shares", {})
        known = {k: shares[k] for k in SHARES if shares.get(k) is not None}
        if len(known) > 1:
            words = ", ".join(f"{k} {number(v)}" for k, v in known.items())
            lines.append(f"{name}: {words}")
        if "search" in facts:
            found = facts["search"]
            words = ", ".join(f"{b}: {number(v)}" for b, v in found["rates"].items())
            lines.append(f"{name}: best batch {found['best']} (images/s: {words})")
    return lines


def _is_repeated(row: Any, table: Any, document: dict[str, Any]) -> bool:
    """Whether a pair of --turns=pairs repeats the network itself."""
    first = next(t for t in document["tables"] if t["unit"] == table["unit"])
    pairs = document.get("settings", {}).get("turns") == "pairs"
    return pairs and first is not table and row["what"] == first["rows"][0]["what"]


def _spread(values: Sequence[Any]) -> str:
    median, low, high = values
    return f"{median} ({low} to {high})"


def _skipped(documents: dict[str, Any], path: str) -> list[str]:
    """What was not measured, and why."""
    lines = []
    for name, document in documents.items():
        facts = document.get("facts", {})
        for words, reason in facts.get("skipped", {}).items():
            lines.append(f"{name}: {words}: {reason}"[:240])
        for note in facts.get("notes", ()):
            if note.startswith(("torch", "no profile")) or "not finite" in note:
                lines.append(f"{name}: {note}"[:240])
        if "stopped" in document:
            lines.append(f"{name}: incomplete, {document['stopped']}"[:240])
    return [*lines, f"log: {path}.log"] if lines else []


def _references(documents: dict[str, Any]) -> list[str]:
    """The measured rate of training `upproj` against the references and the goals."""
    document = documents.get("train", {})
    rate = document.get("facts", {}).get("rates and shares", {}).get("images/s")
    device = str(document.get("hardware", {}).get("device", ""))
    full_size = document.get("settings", {}).get("thin") == 1
    lines = []
    for reference in REFERENCES if rate and full_size else ():
        if reference.device in device:
            lines.append(
                f"training upproj: {number(rate)} images/s, "
                f"{rate / reference.rate:.2f} times the reference of "
                f"{reference.rate:,.0f} ({reference.source})"
            )
            for name, goal in reference.goals.items():
                share = rate / goal
                lines.append(f"{name} of {goal:,.0f} images/s: {share:.2f} of it")
    ratios = [
        row
        for name in ("train_peers", "train_compiled")
        for table in documents.get(name, {}).get("tables", ())
        if table["unit"] == "ratio"
        for row in table["rows"]
    ]
    if ratios:
        row = min(ratios, key=lambda row: row["median"])
        met = "reached" if row["median"] >= GOAL_PEER else "not reached"
        lines.append(
            f"times as fast as the fastest PyTorch network ({row['what']}): "
            f"{row['median']:.2f}; goal of at least {GOAL_PEER}: {met}"
        )
    return lines
