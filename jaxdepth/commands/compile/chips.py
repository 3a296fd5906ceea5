"""Published figures of TPU generations, and bounds of a step that follow from them.

Peaks, bandwidths and sizes are from Google's Cloud TPU documentation (pages "TPU
v4", "TPU v5e", "TPU v5p", "TPU v6e"). Nothing here was measured on a TPU.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxdepth.runtime.errors import UserError

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
HOP = 1e-6  # seconds from a chip to its neighbour (an assumption)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU generation; figures are per chip.

    Attributes:
      peak: bf16 FLOP/s.
      bandwidth: of the chip's memory, bytes/s.
      memory: bytes available to a program, without the system's share.
      clock: Hz: the peak divided by the matrix units' FLOPs per cycle (v4, v5p: 8 units
        of 128x128; v5e: 4; v6e: 4 of 256x256, because the compiler's estimate of a
        large product is more than 2 can do).
      interconnect: bytes/s that a chip sends to its neighbours over all links: the
        documented all-reduce bandwidth of a pod divided by its chips (v5p: half of the
        bidirectional bandwidth, which equals it for the others).
      axes: number of axes of a pod's torus.
      topologies: slices that can be compiled for.
      options: further arguments of `get_topology_desc`.
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
# Both cores of a chip are one device, the default of JAX on a v4.
MEGACORE = {"chip_config_name": "megacore"}
CHIPS = {
    # peak, bandwidth, memory, clock, interconnect, axes, topologies, options
    "v4": Chip(275e12, 1200e9, 30.75 * GIB, 1.05e9, 268e9, 3, CUBES, MEGACORE),
    "v5e": Chip(197e12, 819e9, 15.75 * GIB, 1.5e9, 200e9, 2, FLAT),
    "v5p": Chip(459e12, 2765e9, 95.73 * GIB, 1.75e9, 600e9, 3, CUBES),
    "v6e": Chip(918e12, 1638e9, 31.24 * GIB, 1.75e9, 400e9, 2, FLAT),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of a pod, such as `v5e:2x2`."""

    chip_name: str
    sides: tuple[int, ...]

    @classmethod
    def named(cls, text: str) -> "Slice":
        """The slice of that name. Raises UserError for an unknown name."""
        name, _, shape = text.partition(":")
        if name not in CHIPS:
            examples = ", ".join(f"{n}:{c.topologies[1]}" for n, c in CHIPS.items())
            raise UserError(f"--topology={text}: expected CHIP:SHAPE, as in {examples}")
        if shape not in CHIPS[name].topologies:
            shapes = ", ".join(CHIPS[name].topologies)
            raise UserError(
                f"--topology={text}: expected one of the shapes of {name}: {shapes}"
            )
        return cls(name, tuple(int(side) for side in shape.split("x")))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.chip_name]

    @property
    def name(self) -> str:
        return f"{self.chip_name}:{'x'.join(map(str, self.sides))}"

    def options(self) -> dict[str, Any]:
        """Arguments of `get_topology_desc`: four chips per host, or one in all."""
        bounds = [min(2, side) for side in self.sides[:2]] + [1]
        return {"chips_per_host_bounds": bounds, **self.chip.options}


def roofline(
    chip: Chip, *, flops: float, bytes_accessed: float, cycles: float
) -> dict[str, Any]:
    """Images/s of a chip under each bound, from the costs of an image.

    compute: FLOPs at the peak. memory: bytes at the bandwidth. roofline: the lower of
    the two, an upper bound. cycles: the compiler's estimate at the clock, without
    overlap; it is pessimistic about memory (0.4 of the bandwidth for a sum of arrays).
    """
    rates = {
        "compute": chip.peak / flops,
        "memory": chip.bandwidth / bytes_accessed,
        "cycles": chip.clock / cycles,
    }
    bound = min(("compute", "memory"), key=rates.__getitem__)
    return {**rates, "roofline": rates[bound], "bound": bound}


def scaling(
    chip: Chip, collectives: Sequence[dict], *, seconds: float, chips: Sequence[int]
) -> list[dict[str, float]]:
    """Weak scaling: efficiency of a chip on slices of `chips`, with collectives.

        time = seconds + sum(count * hops * HOP + 2 bytes (n - 1) / n / interconnect)

    where hops is the sum of the sides of a square or cubic torus of n chips: once
    around in either direction and back. Pessimistic, because collectives do not
    overlap with computation; optimistic for slices smaller than a pod, which have no
    wrap-around links and take up to twice as long.

    Args:
      collectives: of one step, with `count` and `bytes`.
      seconds: of one step on one chip.
    """
    count = sum(e["count"] for e in collectives)
    size = sum(e["bytes"] for e in collectives)
    rows = []
    for n in chips:
        hops = chip.axes * n ** (1 / chip.axes) if n > 1 else 0.0
        latency = count * hops * HOP
        transfer = 2 * size * (n - 1) / n / chip.interconnect
        efficiency = seconds / (seconds + latency + transfer)
        rows.append(
            {
                "chips": n,
                "latency_ms": 1e3 * latency,
                "transfer_ms": 1e3 * transfer,
                "efficiency": efficiency,
            }
        )
    return rows
