"""The parser of compiled modules."""

from pathlib import Path

import pytest

import jaxdepth
from jaxdepth.commands.compile import hlo

FOLDER = Path(__file__).parent


def module(name: str) -> hlo.Module:
    """A small module in the text format of the TPU compiler."""
    return hlo.parse((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def work():
    return hlo.work(module("step.hlo"), count=2)


def test_cycles_are_summed_over_iterations(work):
    assert work.cycles == 1000 + 30 + 20 + 10 + 4 * 100


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
    assert (second["cycles"], second["times"]) == (400, 4)
    assert (second["module"], second["pass"]) == ("decoder/up4/conv", "gradient")


def test_instructions_without_estimate(work):
    (gather,) = work.unestimated
    assert (gather["module"], gather["primitive"]) == ("augment", "gather")
    assert gather["traffic"] == 4 * (512 * 1024 + 128)


def test_traffic_is_padded_to_tiles_and_excludes_vector_memory():
    moved = hlo.traffic(module("step.hlo"))
    # bf16 (2, 4, 64) in tiles of (8, 128) twice, and 64 floats in a tile of 128 once;
    # the other 64 floats are in vector memory.
    assert moved["f.1"] == 2 * (2 * 8 * 128 * 2) + 128 * 4
    assert "w" not in moved and "a" not in moved


@pytest.mark.parametrize(
    "shape, padded",
    [
        ("bf16[128,160,64]{2,1,0:T(8,128)(2,1)}", 128 * 160 * 128 * 2),
        ("bf16[128,160,64]{0,2,1:T(8,128)(2,1)}", 128 * 160 * 64 * 2),
        ("f32[5,3]{0,1:T(4,128)}", 4 * 128 * 4),
        ("f32[5,3]{0,1:T(4,128)S(1)}", 0),
        ("pred[]", 1),
        ("u8[7]", 7),
    ],
)
def test_array_traffic_is_padded_to_tiles(shape, padded):
    (array,) = hlo.arrays_of(shape)
    assert array.traffic == padded


def test_collectives_are_counted_by_purpose():
    entries = {e["purpose"]: e for e in hlo.collectives(module("collectives.hlo"))}
    sums = {k: (e["kind"], e["count"], e["bytes"]) for k, e in entries.items()}
    assert sums == {
        "gradients, running statistics": ("all-reduce", 1, 5 * 5 * 8 * 4 * 4),
        "batch statistics": ("all-reduce", 1, 2 * 2 * 64 * 4),
        "statistics' gradients": ("all-reduce", 1, 2 * 64 * 4),
        "loss and counts": ("all-reduce", 0, 4),  # combined with the gradients
    }


@pytest.mark.parametrize(
    "op_name, module, gradient, group",
    [
        ("jit(s)/jvp(UpProj)/encoder/bn_init/mul", "encoder/bn_init", False, "stem"),
        (
            "jit(s)/jvp(UpProj)/encoder/jit(relu)/max",
            "encoder",
            False,
            "pool",
        ),
        (
            "jit(s)/transpose(jvp(UpProj))/encoder/stage2_block1/bn3/reduce_sum",
            "encoder/stage2_block1/bn3",
            True,
            "stage2",
        ),
        ("a/jvp(UpProj)/decoder/conv_in/dot", "decoder/conv_in", False, "decoder in"),
        ("a/jvp(CNN)/encoder/block3/bn/sub", "encoder/block3/bn", False, "block3"),
        ("a/jvp(CNNFC)/decoder/dot_general", "decoder", False, "decoder"),
        ("a/jvp(part)/decoder/up4/up_main/mul", "decoder/up4/up_main", False, "up4"),
        ("jit(s)/shard_map/jvp()/exp", "", False, "other"),
        ("jit(s)/add", "", False, "other"),
        ("", "", False, "other"),
    ],
)
def test_place_of_an_op_name(op_name, module, gradient, group):
    place = hlo.place_of(op_name)
    assert (place.module, place.gradient, place.group) == (module, gradient, group)


def test_a_module_without_metadata():
    text = (
        "ENTRY %main (a: f32[2]) -> f32[2] {\n  ROOT %a = f32[2]{0} parameter(0)\n}\n"
    )
    bare = hlo.parse(text)
    assert hlo.work(bare).cycles == 0 and hlo.collectives(bare) == []


def test_sources_name_existing_modules():
    package = Path(jaxdepth.__file__).parent
    paths = [key for key in hlo.SOURCES if key.endswith(".py")]
    assert all((package / path.lstrip("/")).is_file() for path in paths)
