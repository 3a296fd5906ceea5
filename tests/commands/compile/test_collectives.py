"""Collectives of a training step with global and with local batch statistics."""

import pytest

from jaxdepth.commands.compile import collectives
from jaxdepth.runtime.errors import UserError


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_local_statistics_need_no_collectives(parallel):
    config = collectives.CollectivesConfig(arch="cnn", size="32x48")
    counts = {}
    for bn in ("global", "local"):
        entries = collectives.collectives(config, parallel, bn)
        assert {e["kind"] for e in entries} == {"all-reduce"}
        counts[bn] = {e["purpose"]: (e["count"], e["bytes"]) for e in entries}
    # Seven of the eight convolutions have batch statistics.
    assert counts["global"]["batch statistics"][0] == 7
    assert "batch statistics" not in counts["local"]
    purpose = "gradients, running statistics"
    assert counts["global"][purpose][1] == counts["local"][purpose][1] > 3e6


def test_one_device_is_an_error():
    with pytest.raises(UserError, match="at least 2"):
        collectives.command(["--devices=1"])
