"""Figures of chips, and what follows from them."""

import numpy as np
import pytest

from jaxdepth.commands.compile import chips as chips_lib
from jaxdepth.commands.compile.chips import CHIPS, Slice
from jaxdepth.runtime.errors import UserError


def test_slices_are_known_by_name():
    wanted = Slice.named("v5p:2x2x4")
    assert (wanted.chip, wanted.sides) == (CHIPS["v5p"], (2, 2, 4))
    assert wanted.name == "v5p:2x2x4"
    assert wanted.options()["chips_per_host_bounds"] == [2, 2, 1]
    assert Slice.named("v5e:1x1").options()["chips_per_host_bounds"] == [1, 1, 1]
    # Both cores of a v4 chip as one device, as there.
    assert Slice.named("v4:2x2x1").options()["chip_config_name"] == "megacore"


@pytest.mark.parametrize("name", ["v7:2x2", "v5e", "", "v5e:", "V5E:1x1"])
def test_unknown_chips_name_the_known_ones(name):
    with pytest.raises(UserError, match=r"v4:2x2x1, v5e:2x2, v5p|comes as"):
        Slice.named(name)


def test_unknown_shapes_name_the_known_ones():
    with pytest.raises(UserError, match="v5e comes as 1x1, 2x2, 2x4"):
        Slice.named("v5e:3x3")


@pytest.mark.parametrize("name, units", [("v4", 8), ("v5e", 4), ("v5p", 8)])
def test_clocks_are_those_at_which_the_peak_is_reached(name, units):
    chip = CHIPS[name]
    assert chip.clock * units * 128 * 128 * 2 == pytest.approx(chip.peak, rel=0.01)


def test_the_roofline_is_the_lower_of_compute_and_memory():
    chip = CHIPS["v5e"]
    rates = chips_lib.roofline(
        chip, flops=100e9, bytes_accessed=0.7e9, cycles=2e6, images=1
    )
    assert rates["compute"] == pytest.approx(1970)
    assert rates["memory"] == pytest.approx(1170)
    assert rates["cycles"] == pytest.approx(750)
    assert (rates["roofline"], rates["bound"]) == (rates["memory"], "memory")


def test_scaling_adds_latency_and_transfer():
    chip = CHIPS["v5e"]
    exchanges = [{"count": 100, "bytes": 200e6}, {"count": 1, "bytes": 0}]
    one, many = chips_lib.scaling(chip, exchanges, seconds=0.1, chips=(1, 256))
    assert one == {"chips": 1, "latency_ms": 0, "transfer_ms": 0, "efficiency": 1}
    assert many["latency_ms"] == pytest.approx(101 * 32 * 1e-3)
    assert many["transfer_ms"] == pytest.approx(2.0 * 255 / 256)
    lost = (many["latency_ms"] + many["transfer_ms"]) / 1e3
    np.testing.assert_allclose(many["efficiency"], 0.1 / (0.1 + lost))
