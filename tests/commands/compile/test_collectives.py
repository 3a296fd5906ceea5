"""Exchanges of a step: what global statistics cost, and local ones do not."""

import pytest

from jaxdepth.commands.compile import collectives
from jaxdepth.runtime.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_local_statistics_exchange_gradients_alone(parallel):
    config = collectives.ExchangesConfig(arch="cnn", size="32x48")
    counts = {}
    for bn in ("global", "local"):
        found = collectives.exchanges(config, parallel, bn)
        assert {e["kind"] for e in found} == {"all-reduce"}
        counts[bn] = {e["purpose"]: (e["count"], e["bytes"]) for e in found}
    # Seven of the eight convolutions have batch statistics.
    assert counts["global"]["batch statistics"][0] == 7
    assert "batch statistics" not in counts["local"]
    same = "gradients, running statistics"
    assert counts["global"][same][1] == counts["local"][same][1] > 3e6


def test_one_device_has_nobody_to_exchange_with():
    with pytest.raises(UserError, match="at least 2"):
        collectives.command(["--devices=1"])
