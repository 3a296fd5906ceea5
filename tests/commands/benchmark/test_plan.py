"""The lists of benchmarks, their time limits and their summary."""

import importlib.util
import json
import sys
import textwrap

import pytest

from jaxdepth.commands.benchmark import command as benchmark
from jaxdepth.commands.benchmark import plan, summary
from jaxdepth.commands.benchmark.plan import CpuSettings, GpuSettings, Part
from jaxdepth.ops.upconv import FORMS, default_form
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.errors import UserError


@pytest.mark.parametrize("kind", [GpuSettings, CpuSettings])
@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("peer", ["none", "torch"])
def test_every_part_has_valid_arguments(kind, dry_run, peer, tmp_path):
    settings = kind(out="x", dry_run=dry_run, peer=peer, only="all,extra")
    assert len(settings.parts()) == len(plan.PARTS[kind.kind])
    for part in settings.parts():
        documents = {"train": {"facts": {"search": {"best": 96}}}}
        words = plan.part_arguments(part, settings, documents, tmp_path, 70.0)
        cls, _ = benchmark.load(words[0])
        parsed = flags_lib.parse(cls, words[1:], prog="x")
        assert parsed.peer == ("none" if peer == "none" else parsed.peer)
        assert (parsed.thin > 1) == dry_run
        own = "--batch_size=64" in part.command
        if "{best}" in part.command and not (dry_run or own):
            assert parsed.batch_size == 96
        if "--turns=pairs" in part.command:
            assert parsed.limit_s == 70


def test_the_parts_of_a_gpu_take_less_than_nine_minutes():
    settings = GpuSettings(out="x")
    seconds = sum(part.seconds for part in settings.parts())
    assert seconds + 5 <= 60 * settings.minutes <= 540 - plan.GRACE_SECONDS
    # All forms of the up-convolution are measured.
    (forms,) = [p.command for p in plan.GPU_PARTS if p.name == "train_forms"]
    assert all(f"upconv={f}" in forms for f in FORMS if f != default_form("gpu"))


FAKE = """
import json, signal, sys, time
words = dict(w.lstrip("-").partition("=")[::2] for w in sys.argv[2:])
table = {"title": "t", "unit": "images/s", "rows": [
    {"what": "jaxdepth", "median": 12.5, "min": 12.0, "max": 13.0}]}
if sys.argv[1] == "infer":
    print("error: no such thing")
    sys.exit(2)
facts = {"search": {"best": 48, "rates": {"48": 12.5}}}
with open(words["json"], "w") as file:
    json.dump({"tables": [table], "facts": facts, "words": sys.argv}, file)
if sys.argv[1] == "upconv":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the middle of a compilation
    time.sleep(60)
"""


def no_device(monkeypatch):
    monkeypatch.setattr(plan, "check_device", lambda settings: "")
    monkeypatch.setattr(plan, "GRACE_SECONDS", 0.2)


def test_results_are_written_after_each_part(tmp_path, monkeypatch, capsys):
    script = tmp_path / "benchmark.py"
    script.write_text(textwrap.dedent(FAKE))
    no_device(monkeypatch)
    monkeypatch.setattr(plan, "COMMAND", (sys.executable, str(script)))
    monkeypatch.setitem(plan.PARTS, "gpu", PARTS)
    # The folder may hold other results.
    out = tmp_path / "out"
    out.mkdir()
    (out / "h100.json").write_text("{}")
    # In 8 seconds the first three end, the fourth is stopped, the last never starts.
    settings = GpuSettings(out=str(out), minutes=8 / 60)
    plan.run(settings)
    parts = json.loads((out / "gpu.json").read_text())["parts"]
    assert "stopped" not in parts["train"]
    assert "--batch_size=48" in parts["train_peers"]["words"]
    assert parts["infer"] == {"stopped": "exit code 2: error: no such thing"}
    # It was killed; its tables had been written.
    assert parts["upconv"]["stopped"].startswith("stopped after")
    assert parts["upconv"]["tables"]
    assert parts["late"] == {"stopped": "not started: the time limit was reached"}
    printed = capsys.readouterr().out
    assert "train: jaxdepth" in printed and "12.5" in printed
    assert "infer: incomplete, exit code 2: error: no such thing" in printed
    assert "late: incomplete, not started" in printed
    assert (out / "h100.json").read_text() == "{}"
    with pytest.raises(UserError, match="exists: name another folder"):
        plan.run(settings)


def test_parts_may_use_the_time_that_earlier_parts_left(tmp_path, monkeypatch):
    now, limits = [100.0], []
    durations = {"train": 1.0, "train_peers": 5.0, "infer": 2.0, "upconv": 4.0}

    def run(words, limit, *_, **__):
        limits.append(limit)
        now[0] += list(durations.values())[len(limits) - 1]
        return {}

    no_device(monkeypatch)
    monkeypatch.setattr(plan.time, "monotonic", lambda: now[0])
    monkeypatch.setitem(plan.PARTS, "gpu", PARTS)
    monkeypatch.setattr(plan, "run_part", run)
    plan.run(GpuSettings(out=str(tmp_path), minutes=13 / 60))
    # 3; 2 and 2 left; 2, of which 1 is used; 4, of which 1 is used; 1 is left, which is
    # too little for a part of 60.
    assert limits == pytest.approx([3.0, 4.0, 1.0, 3.0])
    late = json.loads((tmp_path / "gpu.json").read_text())["parts"]["late"]
    assert late == {"stopped": "not started: the time limit was reached"}


PARTS = (
    Part("train", "train --batch_size=best", 3.0),
    Part("train_peers", "train --batch_size={best}", 2.0, peers=True),
    Part("infer", "infer", 2.0),
    Part("upconv", "upconv", 4.0),
    Part("late", "train", 60.0),
)


def test_only_selects_parts():
    def names(only):
        return [part.name for part in GpuSettings(out="x", only=only).parts()]

    assert names("upconv,train") == ["train", "upconv"]
    assert "upconv" not in names("all") and "train_forms" in names("extra")
    assert names("all") + names("extra") == [part.name for part in plan.GPU_PARTS]


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ("print('cpu\tEPYC')", r"JAX runs on cpu \(EPYC\): install jax\[cuda12\]"),
        ("raise RuntimeError('no driver')", "JAX does not start: RuntimeError: no dri"),
    ],
)
def test_a_machine_without_gpu_is_refused(probe, message, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "PROBE", probe)
    with pytest.raises(UserError, match=message):
        plan.run(GpuSettings(out=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_the_device_is_named(monkeypatch, capsys):
    monkeypatch.setattr(plan, "PROBE", "print('gpu\tNVIDIA H200'); print()")
    assert plan.check_device(GpuSettings(out="x")) == ""
    monkeypatch.setattr(plan, "PROBE", "print('cpu\tEPYC'); print('no torch')")
    assert plan.check_device(GpuSettings(out="x", dry_run=True)) == "no torch"
    assert plan.check_device(CpuSettings(out="x", peer="none")) == ""
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["device: NVIDIA H200 (gpu)", *["device: EPYC (cpu)"] * 2]


def test_the_probe_names_this_machine(capsys):
    reason = plan.check_device(CpuSettings(out="x"))
    assert (reason == "") == (importlib.util.find_spec("torch") is not None)
    assert capsys.readouterr().out.startswith("device: cpu (cpu)")


def test_without_pytorch_the_other_parts_run(tmp_path, monkeypatch, capsys):
    started = []
    probe = "print('gpu\tNVIDIA H200'); import sys; sys.exit('cuDNN error')"
    monkeypatch.setattr(plan, "PROBE", probe)
    monkeypatch.setitem(plan.PARTS, "gpu", PARTS)
    monkeypatch.setattr(plan, "run_part", lambda words, *_: started.append(words) or {})
    plan.run(GpuSettings(out=str(tmp_path)))
    assert all("--peer=none" in words for words in started) and len(started) == 4
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    reason = "it does not start beside JAX: cuDNN error"
    assert parts["train_peers"] == {"stopped": f"not started: {reason}"}
    assert f"no comparison with PyTorch: {reason}" in capsys.readouterr().out


def test_a_long_log_is_shortened(tmp_path, monkeypatch):
    log = tmp_path / "x.log"
    log.write_text("first line\n" + "x" * 1000 + "\nlast line\n")
    plan.shorten(log)
    assert len(log.read_text()) == 1022
    monkeypatch.setattr(plan, "LOG_BYTES", 200)
    plan.shorten(log)
    text = log.read_text()
    assert len(text) < 250 and "... shortened ..." in text
    assert text.startswith("first line") and text.endswith("last line\n")


def document(rate, device="NVIDIA H200", ratios=(), **facts):
    """What `benchmark train` writes."""
    rows = [{"what": "jaxdepth", "median": rate, "min": rate, "max": rate}]
    names = [f"jaxdepth / {name}" for name, _ in ratios]
    pairs = zip(names, (value for _, value in ratios), strict=True)
    more = [{"what": n, "median": v, "min": v, "max": v} for n, v in pairs]
    return {
        "hardware": {"device": device, "devices": 1},
        "versions": {"python": "3.12.3", "jax": "0.11.2"},
        "settings": {"thin": 1, "turns": "together"},
        "facts": {"rates and shares": {"images/s": rate}, **facts},
        "tables": [
            {"title": "training", "unit": "images/s", "rows": rows},
            {"title": "training", "unit": "ratio", "rows": more},
        ],
    }


def test_the_summary_compares_with_references_and_peers():
    peers = [("torch plain", 2.0), ("torch tuned", 1.25)]
    compiled = [("torch tuned, compiled (default)", 1.1)]
    documents = {
        "train": document(1512.0),
        "train_peers": document(1512.0, ratios=peers),
        "train_compiled": document(1512.0, ratios=compiled),
    }
    lines = summary.text(documents, "d/gpu").splitlines()
    assert lines[0] == "1 x NVIDIA H200: python 3.12.3, jax 0.11.2"
    # 1512 / 1890 = 0.8; 1512 / 2400 = 0.63; 1512 / 4000 = 0.378.
    assert lines[-4].startswith("training upproj: 1512 images/s, 0.80 times the ref")
    assert "of 1,890 (MLPerf's tuned ResNet-50 on one H200" in lines[-4]
    assert lines[-3] == "goal of 2,400 images/s: 0.63 of it"
    assert lines[-2] == "moonshot of 4,000 images/s: 0.38 of it"
    assert lines[-1].endswith(
        "compiled (default)): 1.10; goal of at least 1.2: not reached"
    )
    documents = {"train": document(1700.0, "NVIDIA H100 80GB HBM3")}
    last = summary.text(documents, "d/gpu").splitlines()[-1]
    assert "1.00 times the reference of 1,700" in last
    assert "reference" not in summary.text({"train": document(9.0, "cpu")}, "d/gpu")
    documents = {"train_peers": document(1.0, ratios=[("torch tuned", 1.2)])}
    assert summary.text(documents, "d/gpu").endswith(
        "1.20; goal of at least 1.2: reached"
    )


def test_the_summary_names_kernels_processes_and_what_is_missing():
    rows = [
        {"operation": f"fusion.{k}", "part": f"decoder/up{k}", "ms": 2.0, "share": 0.1}
        for k in range(40)
    ]
    profile = {"ms in all": 20.0, "kernels": 900.0, "costliest": rows}
    profile |= {"ms by kind": {"reduction": 20.0}, "ms by block": {"up4": 20.0}}
    note = "note: other processes use the GPU (python3): times are unreliable"
    facts = {"profile": profile, "notes": [note, "torch plain: skipped, full"]}
    facts["skipped"] = {"xla_gpu_x=1": "No such compile option"}
    documents = {"train": document(5.0, **facts), "late": {"stopped": "not started"}}
    text = summary.text(documents, "d/gpu")
    assert "20.00 in 900 kernels" in text.replace("20 in", "20.00 in")
    assert sum("fusion." in line for line in text.splitlines()) == 20
    for words in (
        f"train: {note}",
        "train: torch plain: skipped, full",
        "train: xla_gpu_x=1: No such compile option",
        "late: incomplete, not started",
        "by block: up4 20",
    ):
        assert words in text


def test_a_long_summary_keeps_its_first_rates_and_its_end():
    ratios = [(f"a variant with a long name {k}", 1.0) for k in range(500)]
    documents = {"train": document(1512.0, ratios=ratios)}
    text = summary.text(documents, "d/gpu")
    assert len(text) <= summary.LENGTH
    assert "train: jaxdepth: 1512" in text and "more in d/gpu.json" in text
    assert text.splitlines()[-1].startswith("moonshot")
