"""Single operators in their forms, the data path, and the lists of measurements."""

import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.commands import cli
from jaxdepth.commands.benchmark import command as benchmark
from jaxdepth.commands.benchmark import noise, plan, timing, upconv
from jaxdepth.commands.benchmark.plan import CpuSettings, GpuSettings, Part
from jaxdepth.commands.benchmark.upconv import UpconvSettings
from jaxdepth.runtime.errors import UserError

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


def test_the_cases_are_those_of_the_networks():
    cases = upconv.up_cases(UpconvSettings(unpool="zero", batch_size=4))
    assert [(case.x, case.kernel) for case in cases] == [
        ((4, 8, 10, 1024), (5, 5, 1024, 512)),
        ((4, 16, 20, 512), (5, 5, 512, 256)),
        ((4, 32, 40, 256), (5, 5, 256, 128)),
        ((4, 64, 80, 128), (5, 5, 128, 64)),
    ]
    assert list(cases[0].forms) == ["auto", "a plain", "b dilated", "c four"]
    (transposed,) = upconv.transposed_cases(UpconvSettings(batch_size=4))
    assert (transposed.x, transposed.kernel) == ((4, 29, 38, 256), (3, 3, 256, 1))
    shapes = [case.x for case in upconv.pointwise_cases(UpconvSettings(batch_size=4))]
    assert shapes[0] == (4, 57, 76, 64) and shapes[-1] == (4, 8, 10, 2048)


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_what_competes_is_equal(case):
    """Ours by every form, and PyTorch's where it takes part."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=s).astype(np.float32) for s in (case.x, case.kernel))
    both = jnp.asarray(x), jnp.asarray(kernel)
    first, *others = (np.asarray(jax.jit(f)(*both)) for f in case.forms.values())
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-4)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from jaxdepth.commands.benchmark import peer_ops

    for name in case.torch:
        weight = kernel.transpose(3, 2, 0, 1)
        if name == "transposed":
            weight = kernel[::-1, ::-1].transpose(2, 3, 0, 1)
        y = peer_ops.FORMS[name](
            torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(weight.copy())
        )
        theirs = y.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(theirs, first, rtol=1e-4, atol=1e-4)


def test_each_direction_is_what_it_says():
    (case, *_) = upconv.up_cases(TINY)
    form = case.forms["c four"]
    made = {
        direction: upconv._contestant("c four", form, case, direction, np.float32)
        for direction in upconv.DIRECTIONS
    }
    b, h, w, _ = case.x
    forward = made["forward"].call()
    assert forward.shape == (b, 2 * h, 2 * w, case.kernel[-1])
    assert made["input gradient"].call().shape == case.x
    assert made["kernel gradient"].call().shape == case.kernel
    # Fresh inputs: the next call is of others.
    assert not np.array_equal(forward, made["forward"].call())


def test_upconv_writes_a_table_for_each_direction(tmp_path, monkeypatch):
    # One form is slow: it is given up, and the others are measured.
    seconds = upconv._seconds
    monkeypatch.setattr(
        upconv, "_seconds", lambda one: 9.0 if "dilated" in one.name else seconds(one)
    )
    file = tmp_path / "u.json"
    words = ["upconv", "--size=32x48", "--thin=64", "--batch_size=2", "--repeats=2"]
    words += ["--seconds=0", "--unpool=average", "--blocks=4", "--forms=four,dilated"]
    benchmark.command([*words, "--parts=upconv", f"--json={file}"])
    found = json.loads(file.read_text())
    name = "5x5 up-convolution 4, average unpooling, 8x16x2 -> 1"
    assert [t["title"] for t in found["tables"]] == [
        f"{name}, {direction}" for direction in upconv.DIRECTIONS
    ]
    for table in found["tables"]:
        assert [row["what"] for row in table["rows"]] == ["c four"]
        assert len(table["rows"][0]["values"]) == 2
    given_up = [x for x in found["facts"]["notes"] if "too slow, given up" in x]
    assert len(given_up) == 3


def test_peers_of_operators_run_in_all_directions():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from jaxdepth.commands.benchmark import peer_ops

    (case, *_) = upconv.up_cases(TINY)
    for direction, shape in (
        ("input gradient", (2, 16, 1, 2)),
        ("kernel gradient", (8, 16, 5, 5)),
    ):
        made = peer_ops.contestants(case, direction, np.float32)
        assert len(made) == 6
        assert made[0].call()[0].shape == shape
    assert timing.race(made, repeats=1).keys() == {one.name for one in made}


def test_data_rates(tmp_path):
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    file = tmp_path / "d.json"
    words = ["--frames=8", "--batch_size=2", "--seconds=0.01", "--repeats=1"]
    benchmark.command(["data", *words, f"--json={file}"])
    found = json.loads(file.read_text())
    assert [t["unit"] for t in found["tables"]] == ["frames/s", "images/s", "%"]
    names = [row["what"] for row in found["tables"][1]["rows"]]
    kinds = [(a, b) for a in ("tf", "threads") for b in ("none", "host")]
    assert names == [f"{backend}, cache {cache}" for backend, cache in kinds]
    assert all(r["median"] > 0 for t in found["tables"] for r in t["rows"])
    (waited,) = found["tables"][2]["rows"]
    assert waited["what"] == "cnn" and waited["median"] < 100


def test_random_frames_lie_as_tables_do():
    part = noise.table_part(5, (2, 3), devices=2)
    assert part(0)["rgb"].shape == (3, 18) and part(1)["depth_mm"].shape == (3, 6)
    assert not np.array_equal(part(0)["rgb"], part(1)["rgb"])
    rows = noise.rows(5, 4)
    first, second = next(rows), next(rows)
    assert first["rows"].max() < 5 and not np.array_equal(first["rows"], second["rows"])
    depth = noise.frames(2, (40, 50))["depth_mm"]
    assert 0.05 < (depth == 0).mean() < 0.15


@pytest.mark.parametrize("kind", [GpuSettings, CpuSettings])
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("peer", ["none", "torch"])
def test_every_part_is_a_command_that_can_be_read(kind, dry_run, peer, tmp_path):
    settings = kind(out="x", dry_run=dry_run, peer=peer)
    for part in settings.parts():
        documents = {"train": {"facts": {"search": {"best": 96}}}}
        words = plan._words(part, settings, documents, tmp_path)
        read = benchmark.found(benchmark.COMMANDS[words[0]].settings)
        found = cli.parse(read, words[1:], prog="x")
        assert found.peer == ("none" if peer == "none" else found.peer)
        assert (found.thin > 1) == dry_run
        if plan.BEST in part.words and not dry_run:
            assert found.batch_size == 96
    # Unspent seconds are passed on, but the plan as such is to fit.
    if kind is GpuSettings:
        first = settings.parts()[:5]
        assert sum(part.seconds for part in first) < 60 * settings.minutes < 540


FAKE = """
import json, sys, time
words = dict(w.lstrip("-").partition("=")[::2] for w in sys.argv[2:])
table = {"title": "t", "unit": "images/s", "rows": [
    {"what": "jaxdepth", "median": 12.5, "min": 12.0, "max": 13.0}]}
if sys.argv[1] == "infer":
    print("error: no such thing")
    sys.exit(2)
try:
    if sys.argv[1] == "upconv":
        time.sleep(60)
finally:
    facts = {"search": {"best": 48}}
    with open(words["json"], "w") as file:
        json.dump({"tables": [table], "facts": facts, "words": sys.argv}, file)
"""


def test_a_plan_keeps_what_was_reached_in_time(tmp_path, monkeypatch, capsys):
    script = tmp_path / "benchmark.py"
    script.write_text(textwrap.dedent(FAKE))
    monkeypatch.setattr(plan, "SCRIPT", script)
    monkeypatch.setattr(plan, "GPU_PARTS", PARTS)
    out = tmp_path / "out"
    # 8 seconds: the first three end at once, the fourth is stopped, the last waits.
    settings = GpuSettings(out=str(out), minutes=8 / 60)
    plan.run(settings)
    found = json.loads((out / "gpu.json").read_text())["parts"]
    assert "stopped" not in found["train"]
    assert "--batch_size=48" in found["train_peers"]["words"]
    assert found["infer"] == {"stopped": "exit code 2: error: no such thing"}
    # It was asked to stop, and wrote what it had.
    assert found["upconv"]["stopped"].startswith("stopped after")
    assert found["upconv"]["tables"]
    assert found["late"] == {"stopped": "not reached: time was up"}
    printed = capsys.readouterr().out
    assert "train: jaxdepth" in printed and "12.5" in printed
    assert "not complete: infer, upconv, late" in printed
    with pytest.raises(UserError, match="exists: name another file"):
        plan.run(settings)


def test_parts_may_use_what_earlier_ones_left(tmp_path, monkeypatch):
    now, limits = [100.0], []
    takes = {"train": 1.0, "train_peers": 5.0, "infer": 2.0, "upconv": 4.0}

    def run(words, limit, *_, **__):
        limits.append(limit)
        now[0] += list(takes.values())[len(limits) - 1]
        return {}

    monkeypatch.setattr(plan.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(plan, "GPU_PARTS", PARTS)
    monkeypatch.setattr(plan, "_run", run)
    plan.run(GpuSettings(out=str(tmp_path), minutes=13 / 60))
    # 3; 2 and the 2 left over; 2, of which 1 is gone already; 4 and 1 more; then 1,
    # which is too little for a part of 60.
    assert limits == pytest.approx([3.0, 4.0, 1.0, 3.0])
    late = json.loads((tmp_path / "gpu.json").read_text())["parts"]["late"]
    assert late == {"stopped": "not reached: time was up"}


PARTS = (
    Part("train", "train --batch_size=best", 3.0),
    Part("train_peers", "train --batch_size={best}", 2.0),
    Part("infer", "infer", 2.0),
    Part("upconv", "upconv", 4.0),
    Part("late", "train", 60.0),
)


def test_parts_can_be_chosen():
    names = [part.name for part in GpuSettings(out="x", only="upconv,train").parts()]
    assert names == ["train", "upconv"]
