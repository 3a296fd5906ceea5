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


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_groups_have_the_collectives_of_global_statistics(parallel):
    config = collectives.CollectivesConfig(arch="cnn", size="32x48")
    counts, bytes_moved = {}, {}
    for bn in ("global", "group:4"):
        entries = collectives.collectives(config, parallel, bn)
        counts[bn] = {e["purpose"]: e["count"] for e in entries}
        bytes_moved[bn] = sum(e["bytes"] for e in entries)
    assert counts["group:4"]["batch statistics"] == 7
    assert bytes_moved["group:4"] == bytes_moved["global"]


@pytest.mark.parametrize(
    ("bn", "message"),
    [
        ("group:3", "--bn=group:3: 8 devices are not divisible"),
        ("groups:2", "--bn=groups:2: expected global, local or group:N"),
    ],
)
def test_impossible_groups_are_errors(bn, message):
    config = collectives.CollectivesConfig(arch="cnn", size="32x48")
    with pytest.raises(UserError, match=message):
        collectives.collectives(config, "jit", bn)


def test_one_device_is_an_error():
    with pytest.raises(UserError, match="at least 2"):
        collectives.command(["--devices=1"])
