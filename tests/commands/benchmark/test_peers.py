"""The PyTorch networks compute what the JAX networks do."""

import dataclasses
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdepth import models
from jaxdepth.commands.benchmark import command as benchmark
from jaxdepth.commands.benchmark import machine
from jaxdepth.commands.benchmark.report import Report
from jaxdepth.commands.benchmark.settings import InferSettings, TrainSettings
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import optimizer as optimizer_lib
from jaxdepth.training import step as step_lib
from jaxdepth.training.state import flatten
from jaxdepth.training.step import StepSpec
from tests import tiny
from tests.models import reference

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from jaxdepth.commands.benchmark import peer_models, peer_runs  # noqa: E402

SIZE = (45, 62)  # odd at every pool of cnn
# Large enough for several entries at the fully connected layer.
SIZES = {"upproj": SIZE, "cnn": SIZE, "cnn_trans": SIZE, "cnn_fc": (75, 91)}


@pytest.fixture(autouse=True)
def compile_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def settings_of(kind, arch, **options):
    size = "{}x{}".format(*SIZES[arch])
    return kind(arch=arch, size=size, thin=16, peer="torch", **options)


def network_of(settings):
    """The JAX network, and variables that all change its output."""
    config = settings.config(1, settings.image_size)
    model = models.create(config.model).clone(**settings.widths)
    image = np.zeros((1, *config.image_size, 3), np.float32)
    return model, reference.variables(model, image)


@pytest.mark.parametrize("arch", SIZES)
def test_peers_predict_the_same_depth(arch):
    settings = settings_of(InferSettings, arch)
    model, variables = network_of(settings)
    shape = (2, *settings.image_size, 3)
    rgb = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image = jnp.asarray(rgb, jnp.float32)
    predict = jax.jit(lambda v, x: models.predict(model, v, x, layout="torchvision"))
    depth = predict(variables, image)
    for tuned in (False, True):
        one = peer_runs.Predictor(settings, 2, tuned)
        peer_models.load(one.model, variables)
        count = sum(p.numel() for p in one.model.parameters())
        assert count == sum(x.size for x in jax.tree.leaves(variables["params"]))
        peer_depth = one.depth(one.model, torch.tensor(rgb)).numpy()
        np.testing.assert_allclose(peer_depth, depth, rtol=2e-4, atol=2e-5)


def jax_gradients(settings, variables, batch):
    """Loss, gradients and statistics of the JAX step at `variables`."""
    config = settings.config(len(batch["rgb"]), settings.image_size)
    model = models.create(config.model).clone(**settings.widths, dropout=0.0)
    spec = StepSpec(model, tiny.keep_gradient(), config, None)
    state = step_lib.TrainState(step=np.int32(0), opt_state=None, **variables)
    return jax.jit(step_lib.gradients, static_argnums=0)(spec, state, batch)


@pytest.mark.parametrize(
    ("arch", "loss", "tuned"),
    [
        pytest.param("upproj", "si", True, marks=pytest.mark.slow),
        ("cnn", "mse", False),
        ("cnn_trans", "berhu", True),
        ("cnn_fc", "si", False),
    ],
)
def test_peers_have_the_same_loss_and_gradients(arch, loss, tuned):
    settings = settings_of(TrainSettings, arch, loss=loss, frames=4)
    _, variables = network_of(settings)
    frame = settings.config(4, settings.image_size).frame_size
    batch = tiny.batch(4, frame=frame)
    grads, value, _, batch_stats = jax_gradients(settings, variables, batch)
    one = peer_runs.Trainer(settings, 4, tuned)
    if arch == "cnn_fc":
        one.model.get_submodule("network.drop").eval()
    peer_models.load(one.model, variables)
    depth = torch.tensor(batch["depth_codes"].astype(np.int32))
    peer_loss = one.loss(one.model, torch.tensor(batch["rgb"]), depth)
    peer_loss.backward()
    np.testing.assert_allclose(peer_loss.item(), value, rtol=1e-4)
    # Loading the JAX gradients as parameters gives them PyTorch's shapes.
    shadow = peer_runs.Trainer(settings, 4, tuned).model
    peer_models.load(shadow, {"params": grads, "batch_stats": batch_stats})
    wanted = dict(shadow.named_parameters())
    for path, parameter in one.model.named_parameters():
        expected = wanted[path].detach().numpy()
        scale = np.abs(expected).max()
        assert parameter.grad is not None
        difference = np.abs(parameter.grad.numpy() - expected).max()
        assert difference <= 2e-3 * scale + 1e-6, path
    # Running statistics were updated from the batch.
    for path, buffer in shadow.named_buffers():
        if path.endswith("running_mean"):
            peer_buffer = dict(one.model.named_buffers())[path]
            np.testing.assert_allclose(peer_buffer, buffer, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_peers_take_the_same_optimizer_steps(optimizer):
    settings = settings_of(TrainSettings, "cnn", optimizer=optimizer)
    config = settings.config(2, SIZE)
    # Large enough for weight decay to matter.
    config = config.replace(weight_decay=0.1, lr=0.1)
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}
    grads = [{"kernel": rng.normal(size=(3, 4)).astype(np.float32)} for _ in range(3)]
    rule = optimizer_lib.create(config)
    state: Any = rule.init(start)
    params: Any = start
    layer = torch.nn.Linear(3, 4, bias=False)
    layer.weight.data = torch.tensor(start["kernel"].T.copy())
    optimizer_of = peer_runs.optimizer_of(config, layer, fused=False)
    for grad in grads:
        updates, state = rule.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        layer.weight.grad = torch.tensor(grad["kernel"].T.copy())
        optimizer_of.step()
    after = layer.weight.detach().numpy().T
    np.testing.assert_allclose(after, params["kernel"], rtol=2e-5, atol=1e-7)


def test_load_raises_for_missing_and_unknown_names():
    settings = settings_of(InferSettings, "cnn")
    _, variables = network_of(settings)
    model = peer_runs.Predictor(settings, 1, tuned=False).model
    fewer = {**variables, "batch_stats": {}}
    with pytest.raises(RuntimeError, match="Missing key"):
        peer_models.load(model, fewer)
    more = {"extra": {"kernel": np.zeros((1, 1, 1, 1))}}
    with pytest.raises(AttributeError, match="extra"):
        peer_models.load(model, {**variables, "params": variables["params"] | more})


def test_peers_are_timed_in_the_same_turns(tmp_path):
    file = tmp_path / "race.json"
    words = ["train", "--arch=cnn", "--size=24x32", "--thin=16", "--batch_size=2"]
    words += ["--seconds=0", "--repeats=3", "--frames=4", "--peer=torch"]
    benchmark.command([*words, f"--json={file}"])
    document = json.loads(file.read_text())
    tables = {t["unit"]: t["rows"] for t in document["tables"] if "turn" in t["title"]}
    tables |= {t["unit"]: t["rows"] for t in document["tables"] if t["unit"] == "ms"}
    times = {row["what"]: row for row in tables["ms"]}
    assert list(times) == ["jaxdepth", "torch plain", "torch tuned"]
    for row in tables["ratio"]:
        peer_times = times[row["what"].removeprefix("jaxdepth / ")]["values"]
        pairs = zip(times["jaxdepth"]["values"], peer_times, strict=True)
        assert row["values"] == pytest.approx([b / a for a, b in pairs])
    medians = {name: row["median"] for name, row in times.items() if "torch" in name}
    assert document["facts"]["faster peer"] == min(medians, key=medians.__getitem__)


def test_a_peer_that_does_not_fit_is_skipped(monkeypatch):
    def full(self, _):
        if self.model.get_submodule("network").head.weight.is_contiguous(
            memory_format=torch.contiguous_format
        ):
            raise torch.OutOfMemoryError("CUDA out of memory")

    settings = settings_of(InferSettings, "cnn")
    count = sum(x.size for x in jax.tree.leaves(network_of(settings)[1]["params"]))
    report = Report()
    monkeypatch.setattr(peer_runs.Predictor, "step", full)
    names = [c.name for c in peer_runs.workloads(settings, 1, report, count)]
    assert names == ["torch tuned"]
    assert any("torch plain: skipped" in line for line in report.facts["notes"])
    with pytest.raises(RuntimeError, match=f"parameters, jaxdepth {count + 1}"):
        peer_runs.workloads(settings, 1, report, count + 1)


def test_out_of_memory_errors_of_pytorch_are_recognised():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    assert machine.is_out_of_memory(error)


def test_torch_compile_is_stopped_at_its_time_limit(monkeypatch):
    settings = settings_of(InferSettings, "cnn", peers="plain", torch_compile=True)
    settings = dataclasses.replace(settings, compile_limit=0.2)
    count = sum(x.size for x in jax.tree.leaves(network_of(settings)[1]["params"]))
    monkeypatch.setattr(torch, "compile", lambda model, mode: lambda x: time.sleep(60))
    report, began = Report(), time.monotonic()
    (eager,) = peer_runs.workloads(settings, 1, report, count)
    assert time.monotonic() - began < 30
    assert report.facts["notes"][-1] == (
        "torch plain: not compiled (took more than 0.2 s)"
    )
    assert eager.name == "torch plain" and eager.call().shape == (1, 12, 16)


def test_compiled_peers_are_timed_with_eager_ones(monkeypatch):
    settings = settings_of(InferSettings, "cnn", peers="plain", torch_compile=True)
    count = sum(x.size for x in jax.tree.leaves(network_of(settings)[1]["params"]))
    monkeypatch.setattr(
        torch, "compile", lambda model, mode: lambda x: model(x) + 100.0
    )
    entries = peer_runs.workloads(settings, 1, Report(), count)
    assert [c.name for c in entries] == [
        "torch plain",
        "torch plain, compiled (default)",
    ]
    eager, compiled, eager_again = (
        entries[0].call(),
        entries[1].call(),
        entries[0].call(),
    )
    assert compiled.min() >= 100 > max(eager.max(), eager_again.max())


def test_peers_use_the_device_of_jax(monkeypatch):
    assert peer_runs.device().type == "cpu"
    peer_runs.check_device()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(UserError, match="JAX runs on a TPU, which this PyTorch"):
        peer_runs.check_device()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="JAX runs on a GPU"):
        peer_runs.check_device()
    assert peer_runs.device().type == "cuda"


def test_peers_get_random_training_frames():
    settings = settings_of(TrainSettings, "cnn", frames=4)
    config = settings.config(2, SIZE)
    batches = peer_runs.batches(config, 4)
    rgb, depth = next(batches)
    assert rgb.shape == (2, *config.frame_size, 3) and rgb.dtype == torch.uint8
    assert depth.shape == (2, *config.frame_size)
    several = [next(batches)[0] for _ in range(6)]
    assert any(not torch.equal(rgb, other) for other in several)


def test_peers_have_the_same_module_names():
    settings = settings_of(InferSettings, "upproj")
    _, variables = network_of(settings)
    paths = {p.rpartition("/")[0] for p in flatten(variables["params"])}
    model = peer_runs.Predictor(settings, 1, tuned=False).model
    modules = dict(model.named_modules())
    for path in paths:
        name = path.replace("/", ".").replace("head.conv", "head")
        assert f"network.{name}" in modules
