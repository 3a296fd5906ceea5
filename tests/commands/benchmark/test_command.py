"""Benchmarks of networks: timing, search, settings and reports, at small sizes."""

import contextlib
import dataclasses
import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdepth.commands.benchmark import command as benchmark
from jaxdepth.commands.benchmark import (
    growth,
    machine,
    macs,
    networks,
    profiling,
    report,
    search,
    timing,
    workloads,
)
from jaxdepth.commands.benchmark.settings import InferSettings, TrainSettings
from jaxdepth.models import create_model, output_size
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.errors import UserError

TINY = ("--size=24x32", "--thin=16", "--seconds=0", "--devices=1")


@pytest.fixture(autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def train_settings(**options):
    defaults = {"arch": "cnn", "size": "24x32", "thin": 16, "frames": 8, "devices": 1}
    return TrainSettings(**(defaults | options))


def counting(name="it", log=None):
    """A workload that logs and counts its calls."""
    log = [] if log is None else log

    def call():
        log.append(name)
        return len(log)

    return timing.Workload(name, call, lambda last: log.append(f"wait {last}")), log


def test_turns_alternate_and_the_first_is_discarded():
    names, values = [], iter(range(100))

    def measure(name):
        names.append(name)
        return float(next(values))

    samples = timing.alternate(
        {"a": lambda: measure("a"), "b": lambda: measure("b")}, 2
    )
    assert names == ["a", "b"] * 3
    assert samples == {"a": [2.0, 4.0], "b": [3.0, 5.0]}


def test_only_the_last_call_is_awaited():
    workload, log = counting()
    assert timing.seconds_per_call(workload, 3) > 0
    assert log == ["it", "it", "it", "wait 3"]


def test_turns_have_a_minimum_length(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    first, log = counting("a")
    # One call takes half a second on this clock: four of them fill two.
    assert timing.calls_for(first, 2.0) == 4
    second, _ = counting("b", log)
    log.clear()
    samples = timing.time_alternating([first, second], repeats=2)
    turns = [name for name in log if name in ("a", "b")]
    assert turns == ["a", "a", "b", "b", "a", "b", "a", "b", "a", "b"]
    assert samples == {"a": [0.5, 0.5], "b": [0.5, 0.5]}


def test_ratios_are_taken_turn_by_turn():
    samples = {"ours": [1.0, 2.0], "slow": [4.0, 4.0], "fast": [1.5, 1.0]}
    assert timing.ratios(samples, "ours") == {
        "ours / slow": [4.0, 2.0],
        "ours / fast": [1.5, 0.5],
    }
    assert timing.fastest(samples, ["slow", "fast"]) == "fast"


def searched(measure, **options):
    defaults = {"start": 1, "multiple": 1, "limit": 64, "seconds": 60.0}
    return search.best_batch(measure, **(defaults | options))


def full_at(limit):
    """A measurement whose rate grows with the batch, out of memory from `limit` on."""
    tried = []

    def measure(batch):
        tried.append(batch)
        if batch >= limit:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 1 GiB")
        return 10.0 * batch

    return measure, tried


def test_the_search_tries_half_way_to_the_first_size_that_does_not_fit():
    measure, tried = full_at(8)
    result = searched(measure)
    assert tried == [1, 2, 4, 8, 6]
    assert (result.full, result.best) == (8, 6)
    assert result.reason() == "8 does not fit"
    # The size half way must be a multiple of devices and microbatches.
    measure, tried = full_at(8)
    assert searched(measure, start=4, multiple=4).best == 4
    assert tried == [4, 8]


def test_the_search_ends_without_a_gain_or_at_the_time_limit():
    tried = []

    def flat(batch):
        tried.append(batch)
        return 5.0 + batch / 1000

    result = searched(flat)
    assert tried == [1, 2, 4]
    assert result.best == 1
    measure, tried = full_at(10**9)
    assert searched(measure, seconds=0.0).late
    assert tried == [1]
    measure, tried = full_at(10**9)
    assert searched(measure, limit=8).best == 8


def test_the_search_raises_other_errors():
    def broken(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        searched(broken)
    measure, _ = full_at(1)
    with pytest.raises(UserError, match="a batch of 1 does not fit"):
        searched(measure)


def test_the_search_halves_a_first_size_that_does_not_fit():
    measure, tried = full_at(12)
    result = searched(measure, start=32)
    assert tried == [32, 16, 8, 12] and (result.best, result.full) == (8, 12)
    # 16 was tried on the way down, and is not tried again.
    measure, tried = full_at(20)
    assert searched(measure, start=64, multiple=4).best == 16
    assert tried == [64, 32, 16, 24]
    measure, tried = full_at(4)
    with pytest.raises(UserError, match="a batch of 4 does not fit"):
        searched(measure, start=8, multiple=4)


def test_out_of_memory_errors_are_recognised():
    assert machine.is_out_of_memory(MemoryError())
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    assert machine.is_out_of_memory(error)
    assert not machine.is_out_of_memory(RuntimeError("INTERNAL: no"))
    assert not machine.is_out_of_memory(ValueError("out of memory"))


def test_a_program_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "memory_limit", lambda: 1000)
    workloads.check_memory(workloads.Compiled(0.0, temporary=500, arguments=500))
    workloads.check_memory(workloads.Compiled(0.0))  # unknown
    with pytest.raises(MemoryError):
        workloads.check_memory(workloads.Compiled(0.0, temporary=600, arguments=500))


@pytest.mark.parametrize(
    ("options", "gmac"),
    # With average unpooling an up-convolution has 49 taps instead of 25.
    [
        ({"layout": "fcrn"}, 17.22),
        ({}, 17.54),
        ({"unpool": "average"}, 17.54 * 1.4591),
    ],
)
def test_macs_of_upproj(options, gmac):
    model = create_model("upproj", **options)
    assert macs.per_image(model, (228, 304)) / 1e9 == pytest.approx(gmac, rel=1e-3)


def test_macs_of_small_networks_counted_by_hand():
    # 16x24: 3x3 to 4 channels, pooled, 3x3 to 6 at 8x12, pooled to 4x6 and again to
    # 2x3; the transposed convolution has 9 taps per input entry.
    model = create_model("cnn_trans", features=(4, 6), pools=2)
    expected = 16 * 24 * 9 * 3 * 4 + 8 * 12 * 9 * 4 * 6 + 2 * 3 * 9 * 6
    assert macs.per_image(model, (16, 24)) == expected
    # The first convolution, 11x11 of stride 4, gives 8x8; pools give 4x4, 2x2 and 1x1.
    model = create_model("cnn_fc", image_size=(39, 39), features=(2, 3, 4), hidden=5)
    convolutions = 64 * 121 * 3 * 2 + 16 * 25 * 2 * 3 + 4 * 9 * 3 * 4
    assert macs.per_image(model, (39, 39)) == convolutions + 4 * 5 + 5 * 64


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "host", "steps_per_call": 2, "devices": 2},
        {"parallel": "pmap", "devices": 2, "accumulate": 2},
        {"bn": "group:2", "devices": 4},
        {"arch": "cnn_fc", "size": "40x48", "augment": "full", "optimizer": "sgd"},
    ],
)
def test_training_calls_take_steps_on_new_frames(options, monkeypatch):
    settings = train_settings(**options)
    devices, checked = settings.chosen_devices(), []
    monkeypatch.setattr(workloads, "check_memory", checked.append)
    with workloads.subject(settings, 4, settings.image_size, devices) as facts:
        assert facts.workload.images == 4 * settings.steps_per_call
        logs = [jax.tree.map(np.ravel, facts.workload.call()) for _ in range(3)]
    losses = np.concatenate([x["loss"] for x in logs])
    assert np.all(np.isfinite(losses)) and len(set(losses.tolist())) > 1
    assert all(np.all(x["images"] == 4) for x in logs)
    assert checked == [facts.compiled] and facts.compiled.seconds > 0
    image = jnp.zeros((1, *settings.image_size, 3))
    shapes = jax.eval_shape(facts.model.init, jax.random.key(0), image)
    assert facts.parameters == sum(x.size for x in jax.tree.leaves(shapes["params"]))


def test_inference_cycles_through_images():
    settings = InferSettings(arch="cnn", size="24x32", thin=16, devices=1)
    facts = workloads.predictor(settings, 2, (24, 32), jax.devices()[:1])
    depths = [np.asarray(facts.workload.call()) for _ in range(2)]
    assert depths[0].shape == (2, *output_size("cnn", (24, 32)))
    assert not np.array_equal(depths[0], depths[1])
    assert facts.compiled.temporary is not None


def test_train_writes_json(tmp_path):
    file = tmp_path / "train.json"
    words = ["--arch=cnn", *TINY, "--batch_size=2", "--repeats=3", "--frames=8"]
    words += [f"--json={file}"]
    assert benchmark.command(["train", *words]) == 0
    document = json.loads(file.read_text())
    assert (
        document["hardware"]["platform"] == "cpu"
        and document["hardware"]["devices"] == 8
    )
    assert document["versions"]["jax"] == jax.__version__
    assert re.match(r"\d{4}-\d\d-\d\dT", document["date"])
    assert document["settings"]["batch_size"] == 2
    assert "stopped" not in document
    tables = {(t["title"], t["unit"]): t["rows"] for t in document["tables"]}
    title = "training cnn at 24x32, batch 2"
    (times,), (rates,) = tables[title, "ms"], tables[title, "images/s"]
    assert len(times["values"]) == 3
    assert times["median"] == np.median(times["values"])
    assert rates["values"] == pytest.approx([2000 / t for t in times["values"]])
    shares = document["facts"]["rates and shares"]
    flops = 6 * shares["GMAC an image, forward"] * 1e9 * shares["images/s"]
    assert shares["TFLOP/s"] == pytest.approx(flops / 1e12)
    (peak,) = tables["this device at most", "TFLOP/s"]
    share = shares["share of the matrix product"]
    assert share == pytest.approx(shares["TFLOP/s"] / peak["median"])
    assert shares["images/s"] == pytest.approx(2000 / times["median"])
    assert shares["peak memory of the process (RSS) [MiB]"] > 100
    # An existing file is not overwritten.
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"train.json exists: name another file"):
        benchmark.command(["train", *words])
    assert file.read_bytes() == before


def test_variants_are_timed_in_the_same_turns(tmp_path):
    file = tmp_path / "v.json"
    words = ["--arch=cnn", *TINY, "--batch_size=2", "--repeats=2", "--frames=8"]
    words += ["--steps_per_call=2", f"--json={file}"]
    beside = "--beside=steps_per_call=1,augment=full+optimizer=sgd"
    benchmark.command(["train", *words, beside])
    tables = json.loads(file.read_text())["tables"]
    times, ratios = ([r for r in t["rows"]] for t in (tables[0], tables[2]))
    names = ["jaxdepth", "jaxdepth, steps_per_call=1"]
    names += ["jaxdepth, augment=full+optimizer=sgd"]
    assert [row["what"] for row in times] == names
    assert [r["what"] for r in ratios] == [f"jaxdepth / {name}" for name in names[1:]]
    pairs = zip(times[1]["values"], times[0]["values"], strict=True)
    assert ratios[0]["values"] == pytest.approx([a / b for a, b in pairs])


def test_variants_in_pairs_are_complete_one_after_another(tmp_path, monkeypatch):
    file, clock = tmp_path / "v.json", iter(range(0, 1000, 10))
    words = ["--arch=cnn", *TINY, "--batch_size=2", "--repeats=2", "--frames=8"]
    rejected, kept = "xla_gpu_nonsense=1", "xla_cpu_enable_fast_math=true"
    beside = f"augment=full,{rejected},optimization_level=O1+tf32=off,{kept}"
    words += [f"--beside={beside}", "--turns=pairs", "--peaks=off", f"--json={file}"]
    benchmark.command(["train", *words])
    document = json.loads(file.read_text())
    names = [
        (t["unit"], [row["what"] for row in t["rows"]]) for t in document["tables"]
    ]
    assert names[:2] == [("ms", ["jaxdepth"]), ("images/s", ["jaxdepth"])]
    assert names[2] == ("ms", ["jaxdepth", "jaxdepth, augment=full"])
    assert names[5] == ("ms", ["jaxdepth", "jaxdepth, optimization_level=O1+tf32=off"])
    skipped = document["facts"]["skipped"]
    assert "No such compile option" in skipped[rejected]
    assert "share of the matrix product" not in document["facts"]["rates and shares"]
    # Each loss is recorded, and equal numbers of steps are not taken.
    values = document["facts"]["values"]
    assert {"jaxdepth", "jaxdepth, augment=full"} <= values.keys()
    assert all(np.isfinite(value) for value in values.values())
    # A variant takes 10 s on this clock, so that only the first ends within 25 s.
    fake = types.SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr(networks, "time", fake)
    settings = train_settings(beside="bn=local,augment=full", turns="pairs")
    settings = dataclasses.replace(settings, limit_s=25.0, repeats=1, seconds=0.0)
    results = report.Report()
    with workloads.subject(settings, 2, (24, 32), jax.devices()[:1]) as main:
        networks._measure_pairs(settings, 2, main, results, began=0.0)
    assert list(results.facts["skipped"]) == ["augment=full"]
    assert len(results.tables) == 3


def jax_settings():
    names = ("jax_optimization_level", "jax_default_matmul_precision")
    return tuple(getattr(jax.config, name) for name in names)


def test_compiler_options_apply_to_one_program(monkeypatch):
    seen = []

    class Lowered:
        def compile(self, options):
            seen.append((options, *jax_settings()))
            return self

        def as_text(self):
            return ""

        __call__ = as_text

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jitted = type("Jitted", (), {"lower": lambda self, *_: Lowered()})()
    options = "xla_a=true+xla_b=2+optimization_level=O1"
    settings = train_settings(options=options, precision="f32", tf32="off")
    workloads._compile(jitted, settings=settings, options={"xla_c": "3"})
    expected = {"xla_c": "3", "xla_a": True, "xla_b": "2"}
    assert seen == [(expected, "O1", "highest")]
    assert jax_settings()[0] == "UNKNOWN"
    plain = train_settings(precision="bf16")
    workloads._compile(jitted, settings=plain, options={})
    assert seen[1] == ({}, "UNKNOWN", None)


def test_a_diverged_loss_is_noted():
    results = report.Report()
    diverged = timing.Workload("it", lambda: {"loss": np.float32(np.nan)}, id)
    networks._check_values([diverged], results)
    assert "it: loss or depth is not finite" in results.facts["notes"][0]


def test_variants_with_fewer_steps_per_call_repeat_it():
    single, log = counting()
    double = timing.Workload("two", int, int, images=4)
    variant = networks.as_variant(
        dataclasses.replace(single, images=2), double, "words"
    )
    assert (variant.name, variant.images) == ("it, words", 4)
    assert variant.call() == 2 and log == ["it", "it"]
    with pytest.raises(UserError, match="steps_per_call must be a divisor"):
        networks.as_variant(double, dataclasses.replace(single, images=2), "words")


def test_an_incomplete_report_is_written(tmp_path):
    file = tmp_path / "x.json"

    def run(settings, report):
        report.show("a table", {"a": [1.0]}, "ms")
        raise KeyboardInterrupt

    settings = train_settings(json=str(file))
    with pytest.raises(KeyboardInterrupt):
        benchmark.measure(settings, run)
    document = json.loads(file.read_text())
    assert document["tables"][0]["rows"][0]["median"] == 1.0
    assert document["stopped"].startswith("KeyboardInterrupt")


def test_a_killed_benchmark_leaves_its_tables(tmp_path):
    file, kept = tmp_path / "x.json", []

    def run(settings, report):
        report.show("a table", {"a": [1.0]}, "ms")
        kept.append(json.loads(file.read_text()))

    benchmark.measure(train_settings(json=str(file)), run)
    assert kept[0]["tables"][0]["title"] == "a table"
    assert kept[0]["stopped"] == "not complete"
    assert "stopped" not in json.loads(file.read_text())


def test_infer_measures_single_frames(tmp_path):
    file = tmp_path / "infer.json"
    words = ["--arch=cnn", *TINY, "--batch_size=best", "--max_batch=2", "--repeats=2"]
    assert benchmark.command(["infer", *words, f"--json={file}"]) == 0
    document = json.loads(file.read_text())
    assert document["facts"]["search"]["rates"].keys() == {"1", "2"}
    title = "inference cnn at 24x32, batch 1, one frame at a time"
    rows = [t["rows"] for t in document["tables"] if t["title"] == title]
    names = [row["what"] for row in rows[0]]
    assert names[0].startswith("jaxdepth, image and depth on the device")
    assert [t["unit"] for t in document["tables"] if t["title"] == title] == [
        "ms",
        "frames/s",
    ]
    assert rows[1][0]["values"] == pytest.approx(
        [1000 / ms for ms in rows[0][0]["values"]]
    )


def test_growth_is_relative_to_linear(monkeypatch):
    times = {1: 1.0, 2: 1.5, 8: 16.0}
    batches = iter((1, 2, 8))
    monkeypatch.setattr(
        timing,
        "time_alternating",
        lambda *_, **__: {workloads.NAME: [times[next(batches)]] * 2},
    )
    results = report.Report()
    settings = train_settings(growth="batch", points="1,2,4,8")

    @contextlib.contextmanager
    def subject(settings, batch, size, devices):
        if batch == 4:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        workload = timing.Workload(workloads.NAME, int, int, batch)
        compiled = workloads.Compiled(0.0, temporary=2**20)
        yield workloads.Subject(workload, compiled, nn.Module(), 0)

    monkeypatch.setattr(workloads, "subject", subject)
    growth.run(settings, results)
    rows = results.facts["growth"]
    assert {name: row["of linear"] for name, row in rows.items()} == {
        "1": 1.0,
        "2": 0.75,
        "8": 2.0,
    }
    assert rows["8"]["images/s"] == 0.5 and rows["8"]["ms a step"] == 16000
    assert rows["8"]["temporary MiB"] == 1
    assert results.facts["notes"] == ["4: does not fit into memory, skipped"]


def test_growth_over_sizes_and_devices():
    counts = growth.points(train_settings(growth="devices"))
    assert counts == [1, 2, 4, 8]
    settings = train_settings(growth="size", points="24x32,48x64")
    assert growth.points(settings) == [(24, 32), (48, 64)]
    devices = jax.devices()
    assert growth.place(settings, (24, 32), devices) == (4, (24, 32), devices[:1])
    settings = train_settings(growth="devices", batch_size=3)
    assert growth.place(settings, 4, devices) == (12, (24, 32), devices[:4])
    with pytest.raises(UserError, match="16 devices, but JAX has 8"):
        growth.place(settings, 16, devices)


def test_profile_lists_the_most_expensive_operations(tmp_path, capsys):
    file = tmp_path / "p.json"
    words = ["--arch=cnn", *TINY, "--batch_size=2", "--repeats=1", "--frames=8"]
    words += [f"--profile={tmp_path / 'trace'}", f"--json={file}"]
    assert benchmark.command(["train", *words]) == 0
    profile = json.loads(file.read_text())["facts"]["profile"]
    rows = profile["costliest"]
    assert profiling.TOP < len(rows) <= profiling.KEPT
    # Twenty rows follow the title and the column names.
    printed = capsys.readouterr().out
    table = printed[printed.index("the 20 most expensive") :].splitlines()
    assert [line.split()[0] for line in table[2:22]] == [
        row["operation"] for row in rows[:20]
    ]
    assert table[22].startswith("trace: ")
    shares = [row["share"] for row in rows]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    assert rows[0]["ms"] == pytest.approx(profile["ms in all"] * shares[0])
    assert any("encoder/block" in row["part"] for row in rows)
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_a_failing_profiler_is_reported(tmp_path, monkeypatch):
    def no(*_, **__):
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES")

    monkeypatch.setattr(jax.profiler, "trace", no)
    results = report.Report()
    profiling.show(tmp_path, counting()[0], workloads.Compiled(0.0), results)
    assert results.facts["notes"] == ["no profile: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"]


def test_load_of_other_processes_gives_a_warning(monkeypatch):
    ticks = iter([(100, 90), (200, 185), (200, 185), (300, 185)])
    monkeypatch.setattr(report, "_ticks", lambda: next(ticks))
    assert report.load_warning(0.0) is None
    assert "other processes use 100%" in (report.load_warning(0.0) or "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a benchmark: .* train|infer"),
        (["trian"], "did you mean train"),
        (["train", "--arch=resnet"], "--arch=resnet: expected one of"),
        (["train", "--batch_size=0"], "--batch_size=0: must be at least 1"),
        (
            ["train", "--batch_size=few"],
            "--batch_size=few: expected a whole number or auto",
        ),
        (["train", "--size=228"], "--size=228: expected HEIGHTxWIDTH"),
        (["train", "--upconv=five"], "--upconv=five: expected one of"),
        (
            ["train", "--json=/nowhere/x.json"],
            "--json=/nowhere/x.json: there is no folder",
        ),
        (["train", "--devices=9", *TINY[:2]], "--devices=9: JAX has 8"),
        (["train", "--batch_size=3", "--devices=2"], "--batch_size=3 is not divisible"),
        (
            ["train", "--growth=batch", "--points=1,b"],
            "--points=1,b: expected positive integers",
        ),
        (["train", "--points=1,2"], "--points needs --growth"),
        (["train", "--growth=batch", "--batch_size=2"], "set --points instead"),
        (["train", "--beside=upconv=five"], "--upconv=five: expected one of"),
        (["train", "--beside=size=3x4"], "size: expected one of upconv"),
        (["train", "--beside=bn=groups:2"], "--bn=groups:2: expected global, local"),
        (
            ["train", "--arch=cnn", *TINY[:2], "--devices=4", "--bn=group:3"],
            "--bn=group:3: 4 devices are not divisible into groups of 3",
        ),
        (["train", "--options=fast"], "--options=fast: fast: expected optimization_l"),
        (
            ["train", "--arch=cnn", *TINY, "--options=xla_no=1"],
            "--options=xla_no=1: .*No such compile option",
        ),
        (
            ["train", "--arch=cnn", *TINY, "--options=optimization_level=O9"],
            "--options=optimization_level=O9: .*must be in",
        ),
        (["train", "--beside=accumulate=x"], "--accumulate=x: expected a whole number"),
        (
            ["train", "--peer=torch", "--layout=fcrn"],
            "--peer=torch: --layout=fcrn: expected torchvision",
        ),
        (
            ["train", "--peer=torch", "--devices=2"],
            "--peer=torch: --devices=2: expected 1",
        ),
        (["train", "--peer=torch", "--accumulate=2"], "--accumulate=2: expected 1"),
        (
            ["infer", "--peer=torch", "--peers=slow"],
            "--peers=slow: expected names of plain, tuned",
        ),
        (["infer", "--accumulate=2"], "unknown flag --accumulate"),
        (
            ["upconv", "--forms=five"],
            "--forms=five: expected names of all, auto, plain",
        ),
        (
            ["gpu", "--out=x", "--only=nothing"],
            "--only=nothing: expected names of train",
        ),
    ],
)
def test_errors_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        benchmark.command(words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [("infer", "--arch=cnn", *TINY), ("upconv",)])
def test_peers_need_pytorch(words, monkeypatch):
    cls, run = benchmark.load(words[0])
    settings = flags_lib.parse(cls, [*words[1:], "--peer=torch"], prog="x")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'jaxdepth\[torch\]'"):
        benchmark.measure(settings, run)


def test_help_lists_the_benchmarks(capsys):
    assert benchmark.command(["--help"]) == 0
    assert "train|infer|upconv|data|cpu|gpu --help" in capsys.readouterr().out
