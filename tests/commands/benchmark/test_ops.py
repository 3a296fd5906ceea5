"""Benchmarks of operators and of the data path."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.commands.benchmark import command as benchmark
from jaxdepth.commands.benchmark import noise, timing, upconv
from jaxdepth.commands.benchmark.upconv import UpconvSettings

TINY = UpconvSettings(size="32x48", thin=64, batch_size=2, repeats=1, seconds=0)


@pytest.fixture(autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def all_cases():
    return [
        *upconv.up_cases(TINY),
        *upconv.pointwise_cases(TINY),
        *upconv.transposed_cases(TINY),
    ]


def test_cases_have_the_shapes_of_the_networks():
    cases = upconv.up_cases(UpconvSettings(unpool="zero", batch_size=4))
    assert [(case.x, case.kernel) for case in cases] == [
        ((4, 8, 10, 1024), (5, 5, 1024, 512)),
        ((4, 16, 20, 512), (5, 5, 512, 256)),
        ((4, 32, 40, 256), (5, 5, 256, 128)),
        ((4, 64, 80, 128), (5, 5, 128, 64)),
    ]
    names = ["auto", "plain", "four", "transposed"]
    assert list(cases[0].forms) == names
    (transposed,) = upconv.transposed_cases(UpconvSettings(batch_size=4))
    assert (transposed.x, transposed.kernel) == ((4, 29, 38, 256), (3, 3, 256, 1))
    shapes = [case.x for case in upconv.pointwise_cases(UpconvSettings(batch_size=4))]
    assert shapes[0] == (4, 57, 76, 64) and shapes[-1] == (4, 8, 10, 2048)


def inputs(case):
    rng = np.random.default_rng(0)
    return [rng.normal(size=s).astype(np.float32) for s in (case.x, case.kernel)]


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_forms_agree(case):
    arrays = [jnp.asarray(array) for array in inputs(case)]
    first, *others = (np.asarray(jax.jit(f)(*arrays)) for f in case.forms.values())
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "case", [c for c in all_cases() if c.torch], ids=lambda case: case.name
)
def test_pytorch_forms_agree(case):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from jaxdepth.commands.benchmark import peer_ops

    x, kernel = inputs(case)
    form = next(iter(case.forms.values()))
    expected = jax.jit(form)(jnp.asarray(x), jnp.asarray(kernel))
    for name in case.torch:
        weight = kernel.transpose(3, 2, 0, 1)
        if name == "transposed":
            weight = kernel[::-1, ::-1].transpose(2, 3, 0, 1)
        y = peer_ops.FORMS[name](
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(weight.copy())
        )
        actual = y.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_directions_return_output_and_gradients():
    (case, *_) = upconv.up_cases(TINY)
    form = case.forms["four"]
    workloads = {
        direction: upconv.form_workload("four", form, case, direction, np.float32)
        for direction in upconv.DIRECTIONS
    }
    b, h, w, _ = case.x
    forward = workloads["forward"].call()
    assert forward.shape == (b, 2 * h, 2 * w, case.kernel[-1])
    assert workloads["input gradient"].call().shape == case.x
    assert workloads["kernel gradient"].call().shape == case.kernel
    # The next call gets other inputs.
    assert not np.array_equal(forward, workloads["forward"].call())


def test_upconv_writes_a_table_for_each_direction(tmp_path, monkeypatch):
    # A slow form is skipped, and the others are measured.
    first_call = upconv.first_call
    monkeypatch.setattr(
        upconv,
        "first_call",
        lambda workload: 9.0 if "transposed" in workload.name else first_call(workload),
    )
    file = tmp_path / "u.json"
    words = ["upconv", "--size=32x48", "--thin=64", "--batch_size=2", "--repeats=2"]
    words += [
        "--seconds=0",
        "--unpool=average",
        "--blocks=4",
        "--forms=four,transposed",
    ]
    benchmark.command([*words, "--parts=upconv", f"--json={file}"])
    document = json.loads(file.read_text())
    name = "5x5 up-convolution 4, average unpooling, 8x16x2 -> 1"
    assert [t["title"] for t in document["tables"]] == [
        f"{name}, {direction}" for direction in upconv.DIRECTIONS
    ]
    for table in document["tables"]:
        assert [row["what"] for row in table["rows"]] == ["four"]
        assert len(table["rows"][0]["values"]) == 2
    skipped = [x for x in document["facts"]["notes"] if "is slow, skipped" in x]
    assert len(skipped) == 3


def test_pytorch_operators_run_in_all_directions():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from jaxdepth.commands.benchmark import peer_ops

    (case, *_) = upconv.up_cases(TINY)
    for direction, shape in (
        ("input gradient", (2, 16, 1, 2)),
        ("kernel gradient", (8, 16, 5, 5)),
    ):
        workloads = peer_ops.workloads(case, direction, np.float32)
        assert len(workloads) == 6
        assert workloads[0].call()[0].shape == shape
    times = timing.time_alternating(workloads, repeats=1)
    assert times.keys() == {workload.name for workload in workloads}


def test_data_rates(tmp_path):
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    file = tmp_path / "d.json"
    words = ["--frames=8", "--batch_size=2", "--seconds=0.01", "--repeats=1"]
    benchmark.command(["data", *words, f"--json={file}"])
    document = json.loads(file.read_text())
    assert [t["unit"] for t in document["tables"]] == ["frames/s", "images/s", "%"]
    names = [row["what"] for row in document["tables"][1]["rows"]]
    kinds = [(a, b) for a in ("tf", "threads") for b in ("none", "host")]
    assert names == [f"{backend}, cache {cache}" for backend, cache in kinds]
    assert all(r["median"] > 0 for t in document["tables"] for r in t["rows"])
    (waited,) = document["tables"][2]["rows"]
    assert waited["what"] == "cnn" and waited["median"] < 100


def test_random_frames_have_the_shapes_of_the_device_cache():
    part = noise.table_part(5, (2, 3), devices=2)
    assert part(0)["rgb"].shape == (3, 18) and part(1)["depth_codes"].shape == (3, 6)
    assert not np.array_equal(part(0)["rgb"], part(1)["rgb"])
    rows = noise.rows(5, 4)
    first, second = next(rows), next(rows)
    assert first["rows"].max() < 5 and not np.array_equal(first["rows"], second["rows"])
    depth = noise.frames(2, (40, 50))["depth_codes"]
    assert 0.05 < (depth == 0).mean() < 0.15
