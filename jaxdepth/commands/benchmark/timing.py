"""Times of things that take turns: medians, spreads and ratios turn by turn.

Whatever slows the machine down for a while then hits all of them alike. A turn before
the first, in which caches fill and what is left to compile is compiled, doesn't count.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Found = dict[str, list[float]]
MAX_CALLS = 2000


def alternate(things: dict[str, Callable[[], float]], repeats: int) -> Found:
    """Measure each in turn, `repeats` times over, after one turn that doesn't count."""
    found: Found = {name: [] for name in things}
    for turn in range(repeats + 1):
        for name, measure in things.items():
            value = measure()
            if turn:
                found[name].append(value)
    return found


def rate(make: Callable[[], Any], *, per_call: int, seconds: float) -> float:
    """`per_call` things a call, for some seconds: things per second."""
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        make()
        calls += 1
    return calls * per_call / (time.perf_counter() - began)


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Something that can be called again and again, each time on other inputs.

    Attributes:
      name: as tables call it.
      call: starts the work and returns what to wait for.
      wait: until what calls returned is there. Calls of one contestant end in order.
      images: that a call works through.
    """

    name: str
    call: Callable[[], Any]
    wait: Callable[[Any], Any]
    images: int = 1


def seconds_per_call(contestant: Contestant, calls: int) -> float:
    """Mean time of so many calls, one after another, waited for at the end alone."""
    began = time.perf_counter()
    last = None
    for _ in range(calls):
        last = contestant.call()
    contestant.wait(last)
    return (time.perf_counter() - began) / calls


def calls_for(contestant: Contestant, seconds: float) -> int:
    """How many calls fill so many seconds: of one call, after one that warms up."""
    seconds_per_call(contestant, 1)
    once = seconds_per_call(contestant, 1)
    return max(1, min(MAX_CALLS, math.ceil(seconds / max(once, 1e-9))))


def race(
    contestants: Sequence[Contestant], *, repeats: int, seconds: float = 0.0
) -> Found:
    """Seconds per call of each, in alternating turns of at least `seconds` each."""
    calls = [calls_for(one, seconds) for one in contestants]
    return alternate(
        {
            one.name: lambda one=one, n=n: seconds_per_call(one, n)
            for one, n in zip(contestants, calls, strict=True)
        },
        repeats,
    )


def ratios(found: Found, ours: str) -> Found:
    """How many times faster `ours` was than each other, turn by turn (found: times)."""
    return {
        f"{ours} / {name}": [
            theirs / own for own, theirs in zip(found[ours], values, strict=True)
        ]
        for name, values in found.items()
        if name != ours
    }


def fastest(found: Found, among: Sequence[str]) -> str:
    """The name of the lowest median."""
    return min(among, key=lambda name: float(np.median(found[name])))
