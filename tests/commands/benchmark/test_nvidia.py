"""The state of GPUs, from the answers of nvidia-smi."""

import subprocess

import pytest

from jaxdepth.commands.benchmark import command as benchmark
from jaxdepth.commands.benchmark import nvidia, report

IDLE = (
    "NVIDIA H100 80GB HBM3, 580.159.04, 81559, 0, 0, 345, 1980, 68.45, 29\n",
    "",
)
BUSY = (
    "NVIDIA H200, 580.159.04, 143771, 9000, 97, 1980, 1980, [N/A], 61\n",
    "4711, /usr/bin/python3, 8900\n",
)


def answers(monkeypatch, gpus, processes):
    def run(words, **_):
        text = gpus if words[1].startswith("--query-gpu") else processes
        return subprocess.CompletedProcess(words, 0, stdout=text)

    monkeypatch.setattr(nvidia.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(nvidia.subprocess, "run", run)


def test_an_idle_gpu(monkeypatch):
    answers(monkeypatch, *IDLE)
    state = nvidia.state()
    (gpu,) = state["gpus"]
    assert gpu["name"] == "NVIDIA H100 80GB HBM3" and gpu["driver"] == "580.159.04"
    assert gpu["memory [MiB]"] == 81559.0 and gpu["power [W]"] == 68.45
    assert state["processes"] == [] and nvidia.warning(state) is None


def test_other_processes_give_a_warning(monkeypatch, tmp_path, capsys):
    answers(monkeypatch, *BUSY)
    state = nvidia.state()
    assert state["gpus"][0]["power [W]"] is None
    assert state["processes"] == [
        {"pid": 4711.0, "name": "/usr/bin/python3", "memory [MiB]": 8900.0}
    ]
    warning = nvidia.warning(state) or ""
    assert "/usr/bin/python3" in warning and "97 % load, 9000 MiB used" in warning
    monkeypatch.setattr(report, "load_warning", lambda: None)
    seen = []
    benchmark.measure(object(), lambda _, results: seen.append(results))
    assert seen[0].facts["nvidia-smi before"] == state
    assert seen[0].facts["nvidia-smi after"] == state
    assert warning in capsys.readouterr().out


@pytest.mark.parametrize("failure", [FileNotFoundError, subprocess.TimeoutExpired])
def test_no_answer_is_no_state(monkeypatch, failure):
    def run(words, **_):
        raise failure(words, 10)

    monkeypatch.setattr(nvidia.shutil, "which", lambda name: name)
    monkeypatch.setattr(nvidia.subprocess, "run", run)
    assert nvidia.state() == {} and nvidia.warning({}) is None
    monkeypatch.setattr(nvidia.shutil, "which", lambda name: None)
    assert nvidia.state() == {}
