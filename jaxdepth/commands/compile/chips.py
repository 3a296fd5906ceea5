"""Published figures of TPU chips and GPUs, and bounds of a step that follow from them.

TPUs: Google's Cloud TPU documentation (pages "TPU v4", "TPU v5e", "TPU v5p", "TPU
v6e"), compared on 2026-11-28: one version of the v5e page gives the bandwidth as 800
GiB/s, the others as 819 GB/s, and the v6e page names 2 matrix units. GPUs: NVIDIA's
data sheets of H100 SXM and H200 SXM, peaks of dense products. Nothing here was
measured.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxdepth.runtime.errors import UserError

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")
NODE = ("1", "2", "4", "8")
HOP = 1e-6  # seconds from a chip to its neighbour (an assumption)
LAUNCH = 3e-6  # seconds from a GPU's kernel to the next (an assumption)
# Part of a GPU's memory that JAX allocates: the default of
# XLA_PYTHON_CLIENT_MEM_FRACTION.
JAX_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU generation or a GPU; figures are per chip.

    Attributes:
      platform: of JAX, "tpu" or "gpu".
      peaks: FLOP/s by the precision of products: "bf16"; on GPU also "tf32", which is
        JAX's default for float32, and "f32".
      bandwidth: of the chip's memory, bytes/s.
      memory: bytes available to a program, without the system's share.
      interconnect: bytes/s that a chip sends to its neighbours over all links: for TPU
        the documented all-reduce bandwidth of a pod divided by its chips (v5p: half of
        the bidirectional bandwidth, which equals it for the others), for GPU half of
        NVLink's bidirectional bandwidth.
      axes: number of axes of a pod's torus, 1 for the GPUs of a host.
      topologies: slices that can be compiled for.
      clock: Hz; 0 where the compiler estimates no cycles: the peak divided by the
        matrix units' FLOPs per cycle (v4, v5p: 8 units of 128x128; v5e: 4; v6e: 4 of
        256x256, because the compiler's estimate of a large product is more than 2 can
        do).
      options: further arguments of `get_topology_desc`.
    """

    platform: str
    peaks: Mapping[str, float]
    bandwidth: float
    memory: float
    interconnect: float
    axes: int
    topologies: Sequence[str]
    clock: float = 0.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def scaling(self) -> Sequence[int]:
        """Numbers of devices of the estimate of weak scaling."""
        return (1, 2, 4, 8) if self.platform == "gpu" else (1, 4, 16, 64, 256)

    def seconds(self, size: float, flops: Mapping[str, float]) -> float:
        """The longer of moving `size` bytes, and of FLOPs by precision at the peaks."""
        products = sum(count / self.peaks[kind] for kind, count in flops.items())
        return max(size / self.bandwidth, products)

    @property
    def cost(self) -> tuple[str, Callable[[float, Mapping[str, float]], float] | None]:
        """Unit and function of a kernel's cost; None for the compiler's cycles."""
        return ("cycles", None) if self.clock else ("seconds", self.seconds)


def _tpu(peak, bandwidth, gib, clock, interconnect, axes, **options: Any) -> Chip:
    return Chip(
        "tpu",
        {"bf16": peak},
        bandwidth,
        gib * 2.0**30,
        interconnect,
        axes,
        FLAT if axes == 2 else CUBES,
        clock,
        options,
    )


# What XLA has to know of a GPU: the text format of its GpuTargetConfigProto.
TARGET_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f}
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: {memory:.0f}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""


def _hopper(name: str, bandwidth: float, memory: float) -> Chip:
    """A GPU with 132 multiprocessors of compute capability 9.0."""
    text = TARGET_CONFIG.format(name=name, bandwidth=bandwidth, memory=memory)
    return Chip(
        platform="gpu",
        peaks={"bf16": 989.4e12, "tf32": 494.7e12, "f32": 66.9e12},
        bandwidth=bandwidth,
        memory=JAX_FRACTION * memory,
        interconnect=450e9,
        axes=1,
        topologies=NODE,
        options={"target_config": text},
    )


# Both cores of a v4 chip are one device, the default of JAX.
MEGACORE = {"chip_config_name": "megacore"}
CHIPS = {
    # peak, bandwidth, GiB, clock, interconnect, axes
    "v4": _tpu(275e12, 1200e9, 30.75, 1.05e9, 268e9, 3, **MEGACORE),
    "v5e": _tpu(197e12, 819e9, 15.75, 1.5e9, 200e9, 2),
    "v5p": _tpu(459e12, 2765e9, 95.73, 1.75e9, 600e9, 3),
    "v6e": _tpu(918e12, 1638e9, 31.24, 1.75e9, 400e9, 2),
    "h100": _hopper("NVIDIA H100 80GB HBM3", 3.35e12, 84_929_347_584),
    "h200": _hopper("NVIDIA H200", 4.8e12, 141e9),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips to compile for: a slice of a pod such as `v5e:2x2`, or GPUs: `h100:8`."""

    chip_name: str
    sides: tuple[int, ...]

    @classmethod
    def named(cls, text: str) -> "Slice":
        """The slice of that name; without a shape, the smallest.

        Raises: UserError for an unknown name.
        """
        name, _, shape = text.partition(":")
        if name not in CHIPS:
            examples = ", ".join(f"{n}:{c.topologies[1]}" for n, c in CHIPS.items())
            raise UserError(
                f"--target={text}: expected CHIP or CHIP:SHAPE, as in {examples}"
            )
        shapes = CHIPS[name].topologies
        if text != name and shape not in shapes:
            raise UserError(
                f"--target={text}: expected one of the shapes of {name}: "
                f"{', '.join(shapes)}"
            )
        sides = (shape or shapes[0]).split("x")
        return cls(name, tuple(int(side) for side in sides))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.chip_name]

    @property
    def name(self) -> str:
        return f"{self.chip_name}:{'x'.join(map(str, self.sides))}"

    def options(self) -> dict[str, Any]:
        """Arguments of `get_topology_desc`; TPU: four chips per host, or one in all."""
        if self.chip.platform == "gpu":
            shape = {"topology": f"1x1x{self.sides[0]}"}  # slices, hosts, GPUs a host
        else:
            bounds = [min(2, side) for side in self.sides[:2]] + [1]
            shape = {"chips_per_host_bounds": bounds}
        return {**shape, **self.chip.options}


def roofline(
    chip: Chip,
    *,
    flops: Mapping[str, float],
    bytes_accessed: float,
    cost: float,
    kernels: float = 0.0,
) -> dict[str, Any]:
    """Images/s of a chip under each bound, from the costs of an image.

    compute: FLOPs at the peaks of their precisions. memory: bytes at the bandwidth.
    roofline: the lower of the two, an upper bound. serial: the sum of the costs of all
    kernels, one after another; the compiler's cycles of a TPU are pessimistic about
    memory (0.4 of the bandwidth for a sum of arrays). launch (GPU): `LAUNCH` for each
    kernel, as if the kernels took no time. Bounds without costs are left out.

    Args:
      flops: by the precision of products, a key of `Chip.peaks`.
      cost: in the unit of `Chip.cost`.
      kernels: launches divided by the images of a call.
    """
    seconds = {
        "compute": chip.seconds(0, flops),
        "memory": chip.seconds(bytes_accessed, {}),
    }
    bound = max(seconds, key=seconds.__getitem__)
    seconds["serial"] = cost / (chip.clock or 1)
    if chip.platform == "gpu":
        seconds["launch"] = LAUNCH * kernels
    rates = {name: 1 / value for name, value in seconds.items() if value}
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
                "devices": n,
                "latency_ms": 1e3 * latency,
                "transfer_ms": 1e3 * transfer,
                "efficiency": efficiency,
            }
        )
    return rows
