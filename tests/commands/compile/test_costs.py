"""Kernels, traffic and cycles of compiled modules."""

from pathlib import Path

import pytest

from jaxdepth.commands.compile import costs, hlo
from jaxdepth.commands.compile.chips import Slice
from tests.commands.compile.gpu_modules import IMAGES, VERSIONS, gpu_module, module_of

FOLDER = Path(__file__).parent


def module(name: str) -> hlo.Module:
    """A small module in the text format of the TPU compiler."""
    return hlo.parse((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def work():
    return costs.work(module("step.hlo"), count=2)


def test_cycles_are_summed_over_iterations(work):
    assert work.cost == 1000 + 30 + 20 + 10 + 4 * 100


def test_cycles_by_group(work):
    cycles = {k: (g["forward"], g["gradient"]) for k, g in work.groups.items()}
    assert cycles == {
        "stage1": (1000, 0),
        "up4": (0, 400),
        "head": (30, 0),  # from the fused instructions, because it has no op_name
        "loss": (20, 0),  # from its source file
        "optimizer": (10, 0),
        "augment": (0, 0),
        "other": (0, 0),
    }
    assert list(work.groups)[:2] == ["stage1", "up4"]


def test_costliest_instructions(work):
    first, second = work.costliest
    assert first["module"] == "encoder/stage1_block2/conv1"
    assert (first["pass"], first["primitive"]) == ("forward", "conv_general_dilated")
    assert (second["cost"], second["times"]) == (400, 4)
    assert (second["module"], second["pass"]) == ("decoder/up4/conv", "gradient")


def test_instructions_without_estimate(work):
    (gather,) = work.unestimated
    assert (gather["module"], gather["primitive"]) == ("augment", "gather")
    assert gather["traffic"] == 4 * (512 * 1024 + 128)


def test_traffic_is_padded_to_tiles_and_excludes_vector_memory():
    moved = costs.traffic(module("step.hlo"))
    # bf16 (2, 4, 64) in tiles of (8, 128) twice, and 64 floats in a tile of 128 once;
    # the other 64 floats are in vector memory.
    assert moved["f.1"] == 2 * (2 * 8 * 128 * 2) + 128 * 4
    assert "w" not in moved and "a" not in moved


def kernels(work: costs.Work) -> dict[str, int]:
    return {kind: entry["kernels"] for kind, entry in work.kinds.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_of_a_convolution_with_normalisation(version):
    work = costs.work(gpu_module("block2", version))
    counted = kernels(work)
    assert counted["cuDNN forward"] == 1
    assert counted["cuDNN input gradient"] == 1
    assert counted["cuDNN filter gradient"] == 1
    # The kernel, from JAX's order to cuDNN's and back.
    assert counted["transposes"] == 2
    assert sum(counted.values()) == work.kernels == 16
    # Each call of cuDNN reads or writes input, kernel and output once, in bf16.
    x, y = (2 * IMAGES * 114 * 152 * channels for channels in (32, 64))
    kernel = 2 * 3 * 3 * 32 * 64
    for kind in ("forward", "input gradient", "filter gradient"):
        assert work.kinds[f"cuDNN {kind}"]["traffic"] == x + kernel + y
    assert sum(entry["traffic"] for entry in work.kinds.values()) == work.traffic


@pytest.mark.parametrize("version", VERSIONS)
def test_kernels_of_an_up_convolution_of_four_phases(version):
    work = costs.work(gpu_module("up4-four", version))
    counted = kernels(work)
    # Two branches of four phases, and the convolution after them.
    for kind in ("forward", "input gradient", "filter gradient"):
        assert counted[f"cuDNN {kind}"] == 2 * 4 + 1
    # Four kernels of two branches, gathered from 5x5, and two interleaved outputs.
    assert counted["concatenations"] == 2 * 4 + 2
    assert counted["pads"] >= 3
    assert list(work.groups) == ["up4"]
    assert work.groups["up4"]["kernels"] == work.kernels


def test_kernels_in_loops_count_in_every_iteration():
    work = costs.work(gpu_module("loops"))
    counted = kernels(work)
    # Eight convolutions in three steps of four microbatches; the image has no gradient.
    products = counted["cuDNN forward"] + counted["cuDNN input gradient"]
    assert products == 12 * (8 + 7)
    assert counted["cuDNN filter gradient"] == 12 * 8
    assert counted["scatter"] == 12 * 2  # two poolings


def test_the_costliest_kernels_take_the_longer_of_bytes_and_flops():
    chip = Slice.named("h100").chip
    unit, cost = chip.cost
    work = costs.work(gpu_module("up4-four"), cost=cost)
    assert unit == "seconds" and len(work.costliest) == 20
    first = work.costliest[0]
    assert first["module"] == "decoder/up4/up_main" and first["pass"] == "gradient"
    assert first["cost"] == pytest.approx(first["traffic"] / 3.35e12)
    seconds = [row["cost"] for row in work.costliest]
    assert seconds == sorted(seconds, reverse=True)
    assert sum(g["forward"] + g["gradient"] for g in work.groups.values()) == (
        pytest.approx(work.cost)
    )


def test_a_pad_without_scope_belongs_to_its_convolution():
    block = gpu_module("up4-four")
    pads = [i for i, _ in block.executed() if costs.kind_of(block, i) == "pads"]
    assert {costs.place_of(block, i).group for i in pads} == {"up4"}


FUSED = """
%moves (p.0: bf16[64,8]) -> bf16[8,64] {
  %p.0 = bf16[64,8]{1,0} parameter(0)
  ROOT %t.0 = bf16[8,64]{1,0} transpose(%p.0), dimensions={1,0}
}

%adds (p.1: bf16[64,8]) -> bf16[64,8] {
  %p.1 = bf16[64,8]{1,0} parameter(0)
  ROOT %a.1 = bf16[64,8]{1,0} add(%p.1, %p.1)
}

%sums (p.2: f32[64,8]) -> f32[8] {
  %p.2 = f32[64,8]{1,0} parameter(0)
  %m.2 = f32[64,8]{1,0} multiply(%p.2, %p.2)
  %z.2 = f32[] constant(0)
  ROOT %r.2 = f32[8]{0} reduce(%m.2, %z.2), dimensions={0}, to_apply=%add
}

%rows (p.3: f32[64,8], q.3: s32[]) -> f32[2,8] {
  %p.3 = f32[64,8]{1,0} parameter(0)
  %q.3 = s32[] parameter(1)
  %z.3 = s32[] constant(0)
  %i.3 = s32[] add(%q.3, %q.3)
  ROOT %d.3 = f32[2,8]{1,0} dynamic-slice(%p.3, %i.3, %z.3), dynamic_slice_sizes={2,8}
}

%update (p.4: f32[64,8], q.4: f32[2,8], s.4: s32[]) -> f32[64,8] {
  %p.4 = f32[64,8]{1,0} parameter(0)
  %q.4 = f32[2,8]{1,0} parameter(1)
  %s.4 = s32[] parameter(2)
  ROOT %u.4 = f32[64,8]{1,0} dynamic-update-slice(%p.4, %q.4, %s.4, %s.4)
}

%zeros () -> f32[64,8] {
  %z.5 = f32[] constant(0)
  ROOT %b.5 = f32[64,8]{1,0} broadcast(%z.5), dimensions={}
}
"""
X = "%x = bf16[64,8]{1,0} parameter(0)\n%y = f32[64,8]{1,0} parameter(1)\n"
X += "%i = s32[] parameter(2)\n%v = f32[2,8]{1,0} parameter(3)\n"
BF16, F32 = 64 * 8 * 2, 64 * 8 * 4


@pytest.mark.parametrize(
    "line, kind, traffic",
    [
        (
            "bf16[8,64]{1,0} fusion(%x), kind=kInput, calls=%moves",
            "transposes",
            2 * BF16,
        ),
        ("bf16[64,8]{1,0} fusion(%x), calls=%adds", "element-wise", 2 * BF16),
        ("f32[8]{0} fusion(%y), kind=kInput, calls=%sums", "reductions", F32 + 32),
        # Only two rows are read, or written in place.
        ("f32[2,8]{1,0} fusion(%y, %i), calls=%rows", "copies", 2 * 64 + 4),
        (
            "((f32[64,8]{1,0}, s32[]), f32[2,8]{1,0}, u32[]) fusion-start(%y, %i), "
            "calls=%rows",
            "copies",
            2 * 64 + 4,
        ),
        ("f32[64,8]{1,0} fusion(%y, %v, %i), calls=%update", "copies", 2 * 64 + 4),
        ("f32[64,8]{1,0} fusion(), calls=%zeros", "memory set", F32),
        ("f32[64,8]{1,0} copy(%y)", "copies", 2 * F32),
        ("f32[64,8]{0,1} copy(%y)", "transposes", 2 * F32),
        ("f32[64,8]{1,0} sort(%y), dimensions={0}, to_apply=%less", "sort", 2 * F32),
        ("f32[64,8]{1,0} all-reduce-start(%y), to_apply=%add", "collectives", 2 * F32),
        (
            "(f32[64,8]{1,0}, f32[128,8]{1,0}) all-gather-start(%y), dimensions={0}",
            "collectives",
            3 * F32,
        ),
        (
            "(bf16[64,64]{1,0}, s8[33554432]{0}) custom-call(%x, %x), "
            'custom_call_target="__cublas$gemm"',
            "cuBLAS",
            2 * BF16 + 2 * 64 * 64,  # without the workspace
        ),
        (
            "(bf16[64,8]{1,0}, u8[0]{0}) custom-call(%x, %x), "
            'custom_call_target="__cudnn$convBiasActivationForward"',
            "cuDNN forward",
            3 * BF16,
        ),
        (
            "bf16[64,64]{1,0} fusion(%x), kind=kCustom, calls=%adds, "
            'backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}',
            "Triton",
            BF16 + 2 * 64 * 64,
        ),
        (
            'f32[64,8]{1,0} custom-call(%y), custom_call_target="__gpu$xla.gpu.triton"',
            "Triton",
            2 * F32,
        ),
    ],
)
def test_kind_and_traffic_of_a_kernel(line, kind, traffic):
    small = module_of(f"{X}%k = {line}", FUSED)
    kernel = small.by_name["k"]
    assert costs.kind_of(small, kernel) == kind
    assert costs.traffic_of(small, kernel) == traffic


@pytest.mark.parametrize(
    "line",
    [
        "f32[64,8]{1,0} all-reduce-done(%y)",
        "f32[2,8]{1,0} fusion-done(%y)",
        "f32[512]{0} bitcast(%y)",
        'f32[64,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"',
    ],
)
def test_what_is_no_kernel(line):
    small = module_of(f"{X}%k = {line}", FUSED)
    assert costs.kind_of(small, small.by_name["k"]) is None
