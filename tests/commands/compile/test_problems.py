"""Warnings of known problems of a step on a GPU."""

import pytest

from jaxdepth.commands.compile import hlo, problems
from tests.commands.compile.gpu_modules import IMAGES, VERSIONS, gpu_module, module_of

LAUNCH = 10_050_000  # bytes in 3 us at 3.35 TB/s
BETWEEN = "zeros written between the pixels of a convolution's input"
EDGES = "edges padded by a kernel before a convolution"
WIDE = "a convolution window as large as the map"
TRANSPOSED = "a transposition between channels and pixels"
CHANNELS_FIRST = "a convolution with channels before pixels (NCHW)"
COPIED = "a result copied as a whole"
TINY = "a copy, pad or transposition of less than 64 KiB"
SHORT = "a kernel that takes less time than its launch"
FLOAT32 = "a float32 map in a bf16 step"


def found(module: hlo.Module, *, bf16: bool = True) -> dict[str, dict]:
    entries = problems.problems(module, images=IMAGES, bf16=bf16, launch=LAUNCH)
    return {entry["problem"]: entry for entry in entries}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_clean_block_has_none(version):
    assert found(gpu_module("block2", version)) == {}


def test_the_dilated_form_writes_zeros_and_has_wide_windows():
    entries = found(gpu_module("up4-dilated"))
    assert entries[BETWEEN]["kernels"] == 2  # forward and input gradient
    # 64x80 becomes 131x163, written once and read by the convolutions of two branches.
    assert entries[BETWEEN]["traffic"] > 2 * IMAGES * 127 * 159 * 128
    assert entries[WIDE]["kernels"] == 2  # kernel gradients of both branches
    assert set(entries[WIDE]["where"]) == {
        "decoder/up4/up_main (gradient)",
        "decoder/up4/up_side (gradient)",
    }
    assert entries[TRANSPOSED]["kernels"] == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_the_four_phases_pad_edges_only(version):
    entries = found(gpu_module("up4-four", version))
    assert EDGES in entries
    assert not {BETWEEN, WIDE, TRANSPOSED, FLOAT32, COPIED} & entries.keys()


def test_a_small_step_has_many_tiny_copies_and_short_kernels():
    entries = found(gpu_module("loops"))
    assert entries[TINY]["kernels"] >= 32 and entries[SHORT]["kernels"] > 900
    # A copy in a loop counts as often as it runs.
    assert entries[TINY]["kernels"] > len(entries[TINY]["where"])


MAP = "bf16[64,64,80,128]{3,2,1,0}"
FUSED = """
%pads (p.0: bf16[64,64,80,128]) -> bf16[64,PADDED,128] {
  %p.0 = bf16[64,64,80,128]{3,2,1,0} parameter(0)
  %z.0 = bf16[] constant(0)
  ROOT %q.0 = bf16[64,PADDED,128]{3,2,1,0} pad(%p.0, %z.0), padding=0_0xPADDING
}

%turns (p.1: bf16[64,64,80,128]) -> bf16[64,128,64,80] {
  %p.1 = bf16[64,64,80,128]{3,2,1,0} parameter(0)
  ROOT %t.1 = bf16[64,128,64,80]{3,2,1,0} transpose(%p.1), dimensions={0,3,1,2}
}

%swaps (p.2: bf16[64,64,80,128]) -> bf16[64,80,64,128] {
  %p.2 = bf16[64,64,80,128]{3,2,1,0} parameter(0)
  ROOT %t.2 = bf16[64,80,64,128]{3,2,1,0} transpose(%p.2), dimensions={0,2,1,3}
}

%adds (p.3: bf16[64,64,80,128]) -> bf16[64,64,80,128] {
  %p.3 = bf16[64,64,80,128]{3,2,1,0} parameter(0)
  ROOT %a.3 = bf16[64,64,80,128]{3,2,1,0} add(%p.3, %p.3)
}
"""
ENTRY = f"%x = {MAP} parameter(0)\n%w = bf16[64,3,3,128]{{3,2,1,0}} parameter(1)\n"
CALL = 'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"'
PAD = "%p = bf16[64,{size},128]{{3,2,1,0}} fusion(%x), kind=kLoop, calls=%pads\n"
CONVOLVED = "%c = (bf16[64,64,80,64]{3,2,1,0}, u8[0]{0}) custom-call(%p, %w), "
CONVOLVED += "window={size=3x3}, " + CALL


@pytest.mark.parametrize(
    "size, padding, problem",
    [
        ("127,159", "0_0_1x0_0_1x0_0", BETWEEN),
        ("66,82", "1_1x1_1x0_0", EDGES),
    ],
)
def test_a_pad_before_a_convolution(size, padding, problem):
    fused = FUSED.replace("PADDED", size).replace("PADDING", padding)
    padded = ENTRY + PAD.format(size=size)
    entries = found(module_of(padded + CONVOLVED, fused))
    assert set(entries) == {problem} and entries[problem]["kernels"] == 1
    # What no convolution reads is no problem of this kind.
    copied = f"%c = bf16[64,{size},128]{{3,2,1,0}} add(%p, %p)"
    assert found(module_of(padded + copied, fused)) == {}


@pytest.mark.parametrize(
    "window, size, wide",
    [("31x39", "35,43", True), ("7x7", "35,43", False), ("5x5", "8,10", False)],
)
def test_a_wide_window(window, size, wide):
    call = "%c = (bf16[64,34,42,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), "
    call += f"window={{size={window}}}, {CALL}"
    x = ENTRY.replace("64,80,128]", f"{size},128]")
    assert (WIDE in found(module_of(x + call))) == wide


@pytest.mark.parametrize(
    "line, problem",
    [
        (
            "bf16[64,128,64,80]{3,2,1,0} fusion(%x), kind=kInput, calls=%turns",
            TRANSPOSED,
        ),
        ("bf16[64,64,80,128]{1,3,2,0} copy(%x)", TRANSPOSED),
        ("bf16[64,80,64,128]{3,2,1,0} fusion(%x), kind=kLoop, calls=%swaps", None),
        ("f32[64,64,80,128]{3,2,1,0} fusion(%x), kind=kLoop, calls=%adds", FLOAT32),
        ("bf16[64,64,80,128]{3,2,1,0} fusion(%x), kind=kLoop, calls=%adds", None),
        # Gradients of kernels in the orders of JAX and cuDNN, and a depth map.
        ("f32[64,3,3,2048]{3,2,1,0} fusion(%x), kind=kLoop, calls=%adds", None),
        ("f32[3,3,2048,1024]{3,2,1,0} fusion(%x), kind=kLoop, calls=%adds", None),
        ("f32[64,128,160,1]{3,2,1,0} fusion(%x), kind=kLoop, calls=%adds", None),
        (
            "(bf16[64,64,64,80]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={"
            "size=3x3 pad=1_1x1_1}, dim_labels=bf01_oi01->bf01, "
            'custom_call_target="__cudnn$convForward"',
            CHANNELS_FIRST,
        ),
    ],
)
def test_a_map_in_the_wrong_order_or_precision(line, problem):
    small = module_of(f"{ENTRY}%k = {line}", FUSED)
    assert list(found(small)) == ([problem] if problem else [])


def test_float32_maps_are_right_in_a_float32_step():
    line = "%k = f32[64,64,80,128]{3,2,1,0} fusion(%x), kind=kLoop, calls=%adds"
    assert found(module_of(ENTRY + line, FUSED), bf16=False) == {}


@pytest.mark.parametrize(
    "shape, copied", [("f32[5,5,512,256]", True), ("f32[9]", False)]
)
def test_a_copied_result(shape, copied):
    body = f"""
    %w = {shape} parameter(0)
    %c = {shape} copy(%w)
    ROOT %t = ({shape}) tuple(%c)
    """
    assert (COPIED in found(module_of(body))) == copied
    inner = body.replace("tuple(%c)", "tuple(%d)").replace(
        "ROOT", f"%d = {shape} negate(%c)\n    ROOT"
    )
    assert COPIED not in found(module_of(inner))


@pytest.mark.parametrize("count, warned", [(31, False), (32, True)])
def test_many_tiny_copies(count, warned):
    lines = ["%w = f32[64]{0} parameter(0)"]
    lines += [f"%c.{k} = f32[64]{{0}} copy(%w)" for k in range(count)]
    entries = found(module_of("\n".join(lines)))
    assert (TINY in entries) == warned
    # So short are all of them.
    assert entries.get(SHORT, {}).get("kernels", 0) == (count if warned else 0)


@pytest.mark.parametrize("long", [31, 32])
def test_short_kernels_are_a_problem_if_they_are_most(long):
    lines = ["%w = f32[64]{0} parameter(0)", "%x = f32[2000000]{0} parameter(1)"]
    lines += [f"%s.{k} = f32[64]{{0}} negate(%w)" for k in range(32)]
    lines += [f"%l.{k} = f32[2000000]{{0}} negate(%x)" for k in range(long)]
    entries = found(module_of("\n".join(lines)))
    assert list(entries) == ([SHORT] if long == 31 else [])
