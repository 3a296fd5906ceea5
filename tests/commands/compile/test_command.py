"""Compiling the training step for a GPU or TPU that is not attached."""

import dataclasses
import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from jaxdepth.commands import cli
from jaxdepth.commands.compile import chips as chips_lib
from jaxdepth.commands.compile import command as compile_command
from jaxdepth.commands.compile import lower
from jaxdepth.commands.compile.report import show
from jaxdepth.ops import platform
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.training import sharding

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["--arch=cnn", "--size=24x32", "--batch_size=8"]
TARGET = compile_command.Target(
    chips_lib.Slice.named("v5e:1x1"), [SimpleNamespace(process_index=0)]
)
GIB = 2**30


def resolved(*flags: str) -> compile_command.CompileConfig:
    return compile_command.resolve(compile_command.parse(flags), 1, 128)


def test_flags_of_training_and_a_recipe():
    config = compile_command.parse(["--recipe=table4_nyu", "--target=v6e:2x2"])
    # Without weights, which do not change the compiled step.
    assert (config.model.layout, config.optimizer.decay, config.model.init) == (
        "fcrn",
        "all",
        "random",
    )
    config = compile_command.resolve(config, chips=4, per_chip=128)
    assert (config.train.batch_size, config.model.precision, config.model.size) == (
        8,
        "bf16",
        "228x304",
    )


@pytest.mark.parametrize("size", ["auto", "best"])
def test_default_batch_is_128_images_per_device(size):
    config = compile_command.parse([f"--batch_size={size}"])
    assert (
        compile_command.resolve(config, chips=4, per_chip=128).train.batch_size == 512
    )


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--batch_size=0", "batch_size=0: must be at least 1"),
        ("--batch_size=most", "a whole number or auto"),
        ("--target=v9:1x1", "--target=v9:1x1: expected CHIP or CHIP:SHAPE"),
        ("--target=v5e:5x5", "the shapes of v5e: 1x1"),
        ("--target=h100:3", "the shapes of h100: 1, 2, 4, 8"),
        ("--recipe=table5", "one of"),
        ("--blok=up4", "did you mean --block"),
        ("--layout=fcrn --arch=cnn", "is a layout of upproj"),
        (f"--json={__file__}", "exists: name another file"),
        (f"--hlo={__file__}", "exists: name another file"),
    ],
)
def test_wrong_flags(flag, message):
    with pytest.raises(UserError, match=message):
        compile_command.command(flag.split())


def test_missing_libtpu_is_an_error(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tpu\]'"):
        compile_command.describe(TARGET.slice)


def test_missing_plugin_of_the_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[compile-gpu\]'"):
        compile_command.describe(chips_lib.Slice.named("h100"))


def test_descriptions_of_gpus(monkeypatch):
    asked = {}

    def describe(name, **options: Any):
        asked.update(options, name=name)
        return SimpleNamespace(devices=["gpu"] * 8)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compile_command.topologies, "get_topology_desc", describe)
    devices = compile_command.describe(chips_lib.Slice.named("h200:8"))
    assert len(devices) == 8 and asked["platform"] == "cuda"
    assert asked["topology"] == "1x1x8" and asked["name"] == ""
    assert 'device_description_str: "NVIDIA H200"' in asked["target_config"]
    assert "memory_bandwidth: 4800000000000\n" in asked["target_config"]


def test_the_platform_of_a_gpu():
    config = compile_command.parse(["--target=h100:8", "--arch=cnn"])
    config = compile_command.resolve(config, 8, 128)
    assert (config.model.precision, config.train.batch_size) == ("bf16", 1024)
    options = compile_command.OPTIONS["gpu"]
    assert options == {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@pytest.mark.parametrize(
    "libtpu_message, kind, message",
    [
        ("ABORTED: ... libtpu multi-process lockfile.", MachineError, "uses libtpu"),
        ("INVALID_ARGUMENT: no such thing", UserError, ": INVALID_ARGUMENT"),
    ],
)
def test_errors_of_libtpu_are_one_line(libtpu_message, kind, message, monkeypatch):
    def refuse(*_: Any, **__: Any):
        raise jax.errors.JaxRuntimeError(libtpu_message)

    monkeypatch.setenv("TPU_LIBRARY_PATH", "/libtpu.so")
    for name in compile_command.ENVIRONMENT:
        monkeypatch.setenv(name, "kept")
    monkeypatch.setattr(compile_command.topologies, "get_topology_desc", refuse)
    with pytest.raises(kind, match=message):
        compile_command.describe(TARGET.slice)


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--accumulate=2"],
        ["--steps_per_call=3"],
        ["--cache=device"],
        ["--parallel=pmap"],
        ["--parallel=pmap", "--steps_per_call=3", "--cache=device"],
    ],
)
def test_the_lowered_step_returns_a_state_of_the_same_shapes(flags):
    config = resolved(*SMALL, *flags)
    placement = sharding.Placement.over(config.train.parallel, jax.devices()[:2])
    with platform.compiling_for("tpu"):
        lowered = lower.lower_step(config, placement, frames=9)
    (state, batch, *table), _ = lowered.args_info
    new, logs = lowered.out_info
    equal_shapes = jax.tree.map(lambda a, b: a.shape == b.shape, state, new)
    assert all(jax.tree.leaves(equal_shapes))
    # The state is donated, the batch is not.
    assert all(info.donated for info in jax.tree.leaves(state))
    assert not any(info.donated for info in jax.tree.leaves((batch, table)))
    assert len(table) == ("--cache=device" in flags)
    steps = (3,) if "--steps_per_call=3" in flags else ()
    assert logs["loss"].shape == (
        *((2,) if config.train.parallel == "pmap" else ()),
        *steps,
    )


def test_blocks_have_the_shapes_of_their_inputs():
    parts = lower.parts_of(resolved("--size=64x96", "--batch_size=4"))
    (up4,) = lower.select(parts, "up4")
    assert up4.path == ("decoder", "up4")
    assert (up4.x.shape, str(up4.x.dtype)) == ((4, 16, 24, 128), "bfloat16")
    stage = lower.select(parts, "stage1")
    assert [part.path[-1] for part in stage] == [f"stage1_block{k}" for k in (1, 2, 3)]
    (deep,) = lower.select(parts, "encoder/stage2_block1/conv2")
    assert deep.x.shape == (4, 16, 24, 128)
    (stem,) = lower.select(parts, "stem")
    assert stem.x.shape == (4, 64, 96, 3)
    with pytest.raises(UserError, match=r"one of augment, stem, .*stage4, .*up4, head"):
        lower.select(parts, "up5")


def test_blocks_return_gradients_of_parameters_and_input():
    config = resolved(*SMALL)
    placement = sharding.Placement.over("jit", jax.devices()[:2])
    lowered = lower.lower_block(config, placement, block="block2")
    (grads, statistics), input_gradient = lowered.out_info
    assert grads[0]["conv"]["kernel"].shape == (3, 3, 32, 64)
    assert statistics[0]["batch_stats"]["bn"]["mean"].shape == (64,)
    assert input_gradient.shape == (8, 12, 16, 32)
    block1 = lower.lower_block(config, placement, block="block1")
    assert block1.out_info[1] == ()  # no gradient of the image


@pytest.mark.parametrize("block", ["stem", "encoder", "stage4", "up2"])
def test_blocks_of_a_network_with_skips(block):
    network = ["--arch=upproj", "--width=4", "--stage_sizes=1,1,1,1"]
    network += ["--skips", "--output_stride=8"]
    config = resolved(*network, "--size=57x76", "--batch_size=4")
    placement = sharding.Placement.over("jit", jax.devices()[:2])
    with platform.compiling_for("tpu"):
        lowered = lower.lower_block(config, placement, block=block)
    (_, statistics), input_gradient = lowered.out_info
    assert len(statistics) == 1
    shapes = {
        "stem": (),  # no gradient of the image
        "encoder": (),
        "stage4": (4, 8, 10, 64),
        "up2": (4, 15, 19, 8),
    }
    assert getattr(input_gradient, "shape", ()) == shapes[block]


def test_augmentation_is_a_block():
    placement = sharding.Placement.over("jit", jax.devices()[:2])
    lowered = lower.lower_block(resolved(*SMALL), placement, block="augment")
    image, depth = lowered.out_info
    assert (image.shape, depth.shape) == ((8, 24, 32, 3), (8, 24, 32))
    (batch,), _ = lowered.args_info
    assert batch["rgb"].shape == (8, 25, 34, 3)  # the frame before the crop


def test_options_of_the_compiler():
    assert compile_command.parse_options(None) == {}
    assert compile_command.parse_options("--a=1,b=x") == {"a": "1", "b": "x"}
    assert compile_command.parse_options("a=true,b=false") == {"a": True, "b": False}
    with pytest.raises(UserError, match="NAME=VALUE"):
        compile_command.parse_options("a")


def report_of(per_chip: int, *, used: float, flops: float = 1e9) -> dict[str, Any]:
    """The entries of a report that the search reads."""
    temporaries = used - 1 * GIB
    memory = {"temporaries": temporaries, "used": used, "available": 16.0 * GIB}
    return {
        "target": "v5e:1x1",
        "images_per_device": per_chip,
        "flops_per_image": flops,
        "bytes_per_image": 1e6,
        "cost_unit": "cycles",
        "cost_per_image": 1e6,
        "kernels": 100,
        "compile_seconds": 1.0,
        "memory": memory,
    }


def searched(
    gib_per_image: float, recomputed_from: int = 10**9
) -> tuple[int, list[int]]:
    """Images per chip that the search selects, and all that it compiled."""

    def measure(config, target):
        images = int(config.train.batch_size)
        used = GIB * (1 + gib_per_image * images)
        if used > 16 * GIB:
            raise compile_command.TooLarge("too large")
        flops = 1.1e9 if images >= recomputed_from else 1e9
        return report_of(images, used=used, flops=flops)

    config = compile_command.parse(["--batch_size=best"])
    best, tried = compile_command.search(config, TARGET, measure)
    return best["images_per_device"], [entry["images_per_device"] for entry in tried]


@pytest.mark.parametrize(
    "gib_per_image, recomputed_from, best, tried",
    [
        (0.07, 10**9, 192, [128, 192]),  # 214 would fit
        (0.1, 10**9, 128, [128]),  # 150 would
        (0.2, 10**9, 64, [64]),  # 128 does not
        (3.0, 10**9, 4, [4]),
        # 1500 would fit, but the larger sizes only with recomputation.
        (0.01, 1450, 1408, [128, 1472, 1408]),
        (0.01, 1400, 128, [128, 1472, 1408]),
    ],
)
def test_the_search_needs_few_compilations(gib_per_image, recomputed_from, best, tried):
    assert searched(gib_per_image, recomputed_from) == (best, tried)


def test_the_search_tries_at_most_16_times_the_images():
    assert searched(0.0) == (16 * 128, [128, 16 * 128])


def test_the_search_raises_if_one_image_does_not_fit():
    with pytest.raises(UserError, match="one image does not fit"):
        searched(17.0)


def test_a_batch_that_does_not_fit_is_an_error(monkeypatch):
    class Lowered:
        def compile(self, options):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory "
                "required (40.00G) exceeds available HBM (15.75G)."
            )

    monkeypatch.setattr(compile_command.lower, "lower_step", lambda *_, **__: Lowered())
    with pytest.raises(compile_command.TooLarge, match=r"40\.00G of 15\.75G memory"):
        compile_command.compiled(resolved("--batch_size=512"), TARGET)
    config: Any = resolved().replace(batch_size=6)
    with pytest.raises(UserError, match="is not divisible by 4 devices"):
        four = dataclasses.replace(TARGET, devices=[*TARGET.devices] * 4)
        compile_command.compiled(config, four)


class Compiled:
    """A compiled module of a GPU, as JAX describes it."""

    def __init__(self, name: str, temporaries: float):
        self.name, self.temporaries = name, temporaries

    def as_text(self) -> str:
        path = Path(__file__).parent / f"h100-{self.name}-jax0.12.hlo.gz"
        return gzip.decompress(path.read_bytes()).decode()

    def cost_analysis(self) -> None:
        return None

    def memory_analysis(self) -> Any:
        return SimpleNamespace(
            argument_size_in_bytes=GIB,
            temp_size_in_bytes=self.temporaries,
            output_size_in_bytes=GIB,
            alias_size_in_bytes=GIB,
            generated_code_size_in_bytes=0,
        )


def gpu_report(
    monkeypatch, *flags: str, name: str = "block2", temporaries: float = GIB
) -> dict[str, Any]:
    module = Compiled(name, temporaries), {"xla_gpu_autotune_level": 0}, 1.0
    monkeypatch.setattr(compile_command, "compiled", lambda *_: module)
    flags = flags or ("--block=block2", "--batch_size=64")
    flags = ("--target=h100", *flags)
    h100 = compile_command.Target(chips_lib.Slice.named("h100"), TARGET.devices)
    return compile_command.measure(
        compile_command.resolve(compile_command.parse(flags), 1, 128), h100
    )


def test_the_report_of_a_gpu(monkeypatch, caplog):
    report = gpu_report(monkeypatch)
    flops = 3 * 2 * 32 * 64 * (3 * 114 - 2) * (3 * 152 - 2)
    assert report["flops_by_precision"] == {"bf16": flops}
    assert report["bytes_per_image"] == report["traffic_per_image"] > 0
    assert report["memory"]["used"] == 2 * GIB
    assert report["images_per_s"]["compute"] == pytest.approx(989.4e12 / flops)
    assert report["images_per_s"]["launch"] == pytest.approx(64 / (16 * 3e-6))
    assert report["kinds"]["cuDNN forward"]["kernels"] == 1
    assert report["problems"] == []
    report["problems"] = [
        {"problem": "dust", "kernels": 2, "traffic": 128e6, "where": ["a", "b"]}
    ]
    with caplog.at_level("INFO", logger="jaxdepth.tools"):
        show(report)
    assert (
        "warning: dust; kernels: 2, MB an image: 2.0, most in a, b" in caplog.messages
    )
    assert "16 kernels, 2.0 of 59.3 GiB, compiled in 1 s" in caplog.text


def test_the_report_of_microbatches(monkeypatch):
    # Three steps of four microbatches; the maps of the warnings have 64 images.
    flags = ("--batch_size=256", "--accumulate=4", "--steps_per_call=3")
    report = gpu_report(monkeypatch, *flags, name="up4-dilated")
    assert report["images_per_call"] == 3 * 256
    assert report["problems"][0]["problem"].startswith("zeros written between")
    block = (*flags[1:], "--batch_size=64", "--block=up4")
    report = gpu_report(monkeypatch, *block, name="up4-dilated")
    assert report["images_per_call"] == 64
    assert report["problems"][0]["problem"].startswith("zeros written between")


def test_the_record_states_its_assumptions(monkeypatch):
    report = gpu_report(monkeypatch)
    config = compile_command.parse(["--target=h100"])
    record = compile_command.record(config, report, [report], ["--target=h100"])
    assumed = json.loads(json.dumps(record))["assumed"]
    assert assumed["peaks"] == {"bf16": 989.4e12, "tf32": 494.7e12, "f32": 66.9e12}
    assert assumed["launch_seconds"] == 3e-6 and assumed["bandwidth"] == 3.35e12
    assert record["command"] == "jaxdepth compile-for --target=h100"


def test_a_step_that_does_not_fit_into_a_gpu_is_an_error(monkeypatch):
    # XLA compiles it: 79.1 GiB of the device times JAX's share of three quarters.
    with pytest.raises(
        compile_command.TooLarge, match=r"\(61\.00G of 59\.32G memory\)"
    ):
        gpu_report(monkeypatch, temporaries=60 * GIB)


@pytest.mark.slow
def test_a_block_is_compiled_for_gpus_and_reported(tmp_path):
    if not any(map(importlib.util.find_spec, compile_command.GPU_PLUGINS)):
        pytest.skip("JAX's CUDA plugin is not installed")
    numbers = tmp_path / "block.json"
    flags = ["--target=h100:8", "--arch=cnn", "--block=block2", "--size=24x32"]
    flags += ["--batch_size=64", f"--json={numbers}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "compile_for.py"), *flags],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == cli.OK, done.stderr
    report = json.loads(numbers.read_text())
    products = 3 * 2 * 32 * 64 * (3 * 12 - 2) * (3 * 16 - 2)
    assert report["flops_by_precision"] == {"bf16": products}
    assert report["devices"] == 8 and report["kinds"]["cuDNN forward"]["kernels"] == 1
    purposes = {e["purpose"]: e["bytes"] for e in report["exchanges"]}
    # XLA:GPU joins the gradients of the statistics to those of the parameters.
    statistics, gradients = 2 * 64 * 4, (9 * 32 * 64 + 2 * 64) * 4
    assert sum(purposes.values()) == 2 * statistics + gradients
    assert purposes["batch statistics"] == statistics


@pytest.mark.slow
def test_a_block_is_compiled_and_reported(tmp_path):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    numbers, text = tmp_path / "block.json", tmp_path / "block.hlo"
    flags = ["--target=v5e:2x2", "--arch=cnn", "--block=block2", "--size=24x32"]
    flags += ["--batch_size=32", f"--json={numbers}", f"--hlo={text}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "compile_for.py"), *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
        timeout=600,
    )
    assert done.returncode == cli.OK, done.stderr
    assert "block2 for v5e:2x2 (devices: 4, hosts: 1), 32 images in all" in done.stdout
    assert "encoder/block2/conv" in done.stdout
    report = json.loads(numbers.read_text())
    # Forward and two gradients of a 3x3 convolution from 32 to 64 channels. Batch
    # normalisation adds some, outputs at the edge have fewer taps.
    products = 3 * 2 * 9 * 32 * 64 * 12 * 16
    assert 0.8 * products < report["flops_per_image"] < 1.2 * products
    assert report["cost_per_image"] > 0 and report["cost_unit"] == "cycles"
    assert report["images_per_device"] == 8 and report["versions"]["libtpu"]
    purposes = {e["purpose"]: e["bytes"] for e in report["exchanges"]}
    # Mean and mean square of 64 channels, and their gradients.
    assert purposes["batch statistics"] == 2 * 64 * 4
    assert purposes["statistics' gradients"] == 2 * 64 * 4
    assert purposes["gradients, running statistics"] == (9 * 32 * 64 + 2 * 64) * 4
    assert text.read_text().startswith("HloModule")
