"""Figures of TPU chips and GPUs, rooflines and scaling."""

import numpy as np
import pytest

from jaxdepth.commands.compile import chips as chips_lib
from jaxdepth.commands.compile.chips import CHIPS, Slice
from jaxdepth.runtime.errors import UserError


def test_slice_from_its_name():
    tpu_slice = Slice.named("v5p:2x2x4")
    assert (tpu_slice.chip, tpu_slice.sides) == (CHIPS["v5p"], (2, 2, 4))
    assert tpu_slice.name == "v5p:2x2x4"
    assert tpu_slice.options()["chips_per_host_bounds"] == [2, 2, 1]
    assert Slice.named("v5e:1x1").options()["chips_per_host_bounds"] == [1, 1, 1]
    # Both cores of a v4 chip are one device.
    assert Slice.named("v4:2x2x1").options()["chip_config_name"] == "megacore"


@pytest.mark.parametrize("name", ["v7:2x2", "", "v5e:", "V5E:1x1", "h100:1x1"])
def test_unknown_chips_are_an_error(name):
    with pytest.raises(UserError, match=r"v4:2x2x1, v5e:2x2, v5p|one of the shapes of"):
        Slice.named(name)


def test_unknown_shapes_are_an_error():
    with pytest.raises(UserError, match="the shapes of v5e: 1x1, 2x2, 2x4"):
        Slice.named("v5e:3x3")


@pytest.mark.parametrize("name, units", [("v4", 8), ("v5e", 4), ("v5p", 8)])
def test_clock_times_flops_per_cycle_is_the_peak(name, units):
    chip = CHIPS[name]
    assert chip.clock * units * 128 * 128 * 2 == pytest.approx(
        chip.peaks["bf16"], rel=0.01
    )


def test_a_slice_without_a_shape_is_one_chip():
    assert Slice.named("h100") == Slice.named("h100:1")
    assert Slice.named("v4").sides == (1, 1, 1)


def test_gpus_of_a_host():
    gpus = Slice.named("h100:8")
    assert gpus.chip.platform == "gpu" and gpus.name == "h100:8"
    options = gpus.options()
    assert options["topology"] == "1x1x8"
    assert 'device_description_str: "NVIDIA H100 80GB HBM3"' in options["target_config"]
    assert "device_memory_size: 84929347584\n" in options["target_config"]
    assert "{{" not in options["target_config"]


def test_the_roofline_is_the_lower_of_compute_and_memory():
    flops = {"bf16": 100e9}
    rates = chips_lib.roofline(
        CHIPS["v5e"], flops=flops, bytes_accessed=0.7e9, cost=2e6, kernels=9
    )
    assert rates["compute"] == pytest.approx(1970)
    assert rates["memory"] == pytest.approx(1170)
    assert rates["serial"] == pytest.approx(750)  # cycles
    assert (rates["roofline"], rates["bound"]) == (rates["memory"], "memory")
    assert "launch" not in rates


def test_the_roofline_of_a_gpu_adds_products_of_each_precision():
    flops = {"bf16": 98.94e9, "tf32": 49.47e9, "f32": 6.69e9}
    rates = chips_lib.roofline(
        CHIPS["h100"], flops=flops, bytes_accessed=0.335e9, cost=1 / 2500, kernels=25
    )
    assert rates["compute"] == pytest.approx(1 / 3e-4)
    assert rates["memory"] == pytest.approx(1e4)
    assert (rates["roofline"], rates["bound"]) == (rates["compute"], "compute")
    assert rates["serial"] == pytest.approx(2500)  # seconds
    assert rates["launch"] == pytest.approx(1 / (25 * 3e-6))


def test_bounds_without_costs_are_left_out():
    rates = chips_lib.roofline(CHIPS["h200"], flops={}, bytes_accessed=4.8e9, cost=0)
    assert rates == {
        "memory": pytest.approx(1000),
        "roofline": pytest.approx(1000),
        "bound": "memory",
    }


def test_a_kernel_takes_the_longer_of_bytes_and_products():
    chip = CHIPS["h100"]
    assert chip.seconds(3.35e9, {}) == pytest.approx(1e-3)
    assert chip.seconds(3.35e9, {"f32": 66.9e9, "bf16": 989.4e9}) == pytest.approx(2e-3)


def test_scaling_adds_latency_and_transfer():
    chip = CHIPS["v5e"]
    collectives = [{"count": 100, "bytes": 200e6}, {"count": 1, "bytes": 0}]
    one, many = chips_lib.scaling(chip, collectives, seconds=0.1, chips=(1, 256))
    assert one == {"devices": 1, "latency_ms": 0, "transfer_ms": 0, "efficiency": 1}
    assert many["latency_ms"] == pytest.approx(101 * 32 * 1e-3)
    assert many["transfer_ms"] == pytest.approx(2.0 * 255 / 256)
    lost = (many["latency_ms"] + many["transfer_ms"]) / 1e3
    np.testing.assert_allclose(many["efficiency"], 0.1 / (0.1 + lost))
