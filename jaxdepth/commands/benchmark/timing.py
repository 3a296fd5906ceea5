"""Timing of functions in alternating turns: medians, spreads, ratios turn by turn.

Because turns alternate, other load on the machine affects all functions alike. The
first turn warms up caches and compiles, and is discarded.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Samples = dict[str, list[float]]  # name -> one value per turn
MAX_CALLS = 2000


def alternate(measurements: dict[str, Callable[[], float]], repeats: int) -> Samples:
    """Call each function in turn, `repeats` times after a discarded first turn."""
    samples: Samples = {name: [] for name in measurements}
    for turn in range(repeats + 1):
        for name, measure in measurements.items():
            value = measure()
            if turn:
                samples[name].append(value)
    return samples


def rate(call: Callable[[], Any], *, per_call: int, seconds: float) -> float:
    """Items per second of a function that processes `per_call` items per call."""
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        call()
        calls += 1
    return calls * per_call / (time.perf_counter() - start)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A function to time, which takes new inputs at each call.

    Attributes:
      name: label in tables.
      call: starts the computation and returns its result.
      wait: blocks until a result is ready; results become ready in order.
      images: images per call.
    """

    name: str
    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    images: int = 1


def seconds_per_call(workload: Workload, calls: int) -> float:
    """Mean seconds of consecutive calls; only the last result is waited for."""
    start = time.perf_counter()
    last = None
    for _ in range(calls):
        last = workload.call()
    workload.wait(last)
    return (time.perf_counter() - start) / calls


def calls_for(workload: Workload, seconds: float) -> int:
    """Number of calls that take `seconds`, from one call after a warm-up call."""
    seconds_per_call(workload, 1)
    once = seconds_per_call(workload, 1)
    return max(1, min(MAX_CALLS, math.ceil(seconds / max(once, 1e-9))))


def time_alternating(
    workloads: Sequence[Workload], *, repeats: int, seconds: float = 0.0
) -> Samples:
    """Seconds per call of each workload, in alternating turns of `seconds` each."""
    calls = [calls_for(workload, seconds) for workload in workloads]
    return alternate(
        {
            workload.name: lambda workload=workload, n=n: seconds_per_call(workload, n)
            for workload, n in zip(workloads, calls, strict=True)
        },
        repeats,
    )


def ratios(times: Samples, reference: str) -> Samples:
    """How many times faster `reference` is than each other workload, turn by turn."""
    return {
        f"{reference} / {name}": [
            other / own for own, other in zip(times[reference], values, strict=True)
        ]
        for name, values in times.items()
        if name != reference
    }


def fastest(times: Samples, names: Sequence[str]) -> str:
    """The name with the lowest median time."""
    return min(names, key=lambda name: float(np.median(times[name])))
