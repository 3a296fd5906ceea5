"""TPU generations: published figures, and what they allow a step at best.

Peaks, bandwidths and sizes are those of Google's Cloud TPU documentation (pages "TPU
v4", "TPU v5e", "TPU v5p", "TPU v6e"). Nothing here was measured on a TPU.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jaxdepth.runtime.errors import UserError

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
HOP = 1e-6  # seconds from a chip to the next one: our assumption


@dataclasses.dataclass(frozen=True)
class Chip:
    """One generation, per chip.

    Attributes:
      peak: bf16 FLOP/s.
      bandwidth: of its memory, bytes/s.
      memory: bytes that the compiler lets a program use; a little is the system's.
      clock: Hz: the peak over the FLOPs that the matrix units take a cycle (v4, v5p:
        8 units of 128x128; v5e: 4; v6e: 4 of 256x256, for the compiler's estimate of a
        large product exceeds what 2 can do).
      interconnect: bytes/s that a chip sends to its neighbours over all links: the
        documented all-reduce bandwidth of a pod over its chips (v5p: half of the
        bidirectional bandwidth, which is the same in the others).
      axes: of the torus that a pod is.
      topologies: slices that can be compiled for.
      options: what the description of a slice needs besides.
    """

    peak: float
    bandwidth: float
    memory: float
    clock: float
    interconnect: float
    axes: int
    topologies: Sequence[str]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


GIB = 2.0**30
CHIPS = {
    # Megacore: both cores of a chip are one device, as JAX has it on a v4 by default.
    "v4": Chip(
        peak=275e12,
        bandwidth=1200e9,
        memory=30.75 * GIB,
        clock=1.05e9,
        interconnect=268e9,
        axes=3,
        topologies=CUBES,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        peak=197e12,
        bandwidth=819e9,
        memory=15.75 * GIB,
        clock=1.5e9,
        interconnect=200e9,
        axes=2,
        topologies=FLAT,
    ),
    "v5p": Chip(
        peak=459e12,
        bandwidth=2765e9,
        memory=95.73 * GIB,
        clock=1.75e9,
        interconnect=600e9,
        axes=3,
        topologies=CUBES,
    ),
    "v6e": Chip(
        peak=918e12,
        bandwidth=1638e9,
        memory=31.24 * GIB,
        clock=1.75e9,
        interconnect=400e9,
        axes=2,
        topologies=FLAT,
    ),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of a pod, by name: `v5e:2x2`."""

    chip_name: str
    sides: tuple[int, ...]

    @classmethod
    def named(cls, text: str) -> "Slice":
        """Raises UserError with the known ones for any other name."""
        name, _, shape = text.partition(":")
        if name not in CHIPS:
            known = ", ".join(f"{n}:{c.topologies[1]}" for n, c in CHIPS.items())
            raise UserError(f"--topology={text}: CHIP:SHAPE, as in {known}")
        if shape not in CHIPS[name].topologies:
            known = ", ".join(CHIPS[name].topologies)
            raise UserError(f"--topology={text}: {name} comes as {known}")
        return cls(name, tuple(int(side) for side in shape.split("x")))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.chip_name]

    @property
    def name(self) -> str:
        return f"{self.chip_name}:{'x'.join(map(str, self.sides))}"

    def options(self) -> dict[str, Any]:
        """Arguments of JAX's `get_topology_desc`. Four chips a host, or one in all."""
        bounds = [min(2, side) for side in self.sides[:2]] + [1]
        return {"chips_per_host_bounds": bounds, **self.chip.options}


def roofline(
    chip: Chip, *, flops: float, bytes_accessed: float, cycles: float, images: int
) -> dict[str, Any]:
    """Images/s of a chip by each bound of a step of `images` on it.

    compute: FLOPs at the peak; memory: bytes at the bandwidth; the lower of the two is
    the roofline, which nothing exceeds. cycles: the compiler's estimate at the clock,
    one instruction after another; it is a pessimist about memory (a plain sum of
    arrays is estimated at 0.4 of the bandwidth).
    """
    rates = {
        "compute": images * chip.peak / flops,
        "memory": images * chip.bandwidth / bytes_accessed,
        "cycles": images * chip.clock / cycles,
    }
    bound = min(("compute", "memory"), key=rates.__getitem__)
    return {**rates, "roofline": rates[bound], "bound": bound}


def scaling(
    chip: Chip, exchanges: Sequence[dict], *, seconds: float, chips: Sequence[int]
) -> list[dict[str, float]]:
    """Weak scaling: what is left of a chip's rate among `chips`, exchanges counted.

        time = seconds + sum(count * hops * HOP + 2 bytes (n - 1) / n / interconnect)

    with hops = the sum of the sides of a square or cubic torus of n chips: once around
    in either direction and back. Nothing overlaps with computing here, in which it is a
    pessimist; a slice that is smaller than the pod has no links around its ends and
    takes up to twice as long.
    """
    count = sum(e["count"] for e in exchanges)
    size = sum(e["bytes"] for e in exchanges)
    rows = []
    for n in chips:
        hops = chip.axes * n ** (1 / chip.axes) if n > 1 else 0.0
        waits = count * hops * HOP
        moves = 2 * size * (n - 1) / n / chip.interconnect
        total = seconds + waits + moves
        rows.append(
            {
                "chips": n,
                "latency_ms": 1e3 * waits,
                "transfer_ms": 1e3 * moves,
                "efficiency": seconds / total if math.isfinite(total) else math.nan,
            }
        )
    return rows
