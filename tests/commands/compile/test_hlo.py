"""The reader of compiled modules."""

from pathlib import Path

import pytest

from jaxdepth.commands.compile import hlo

HERE = Path(__file__).parent


def module(name: str) -> hlo.Module:
    """A small one, in the compiler's own words."""
    return hlo.parse((HERE / name).read_text())


@pytest.fixture(scope="module")
def work():
    return hlo.work(module("step.hlo"), count=2)


def test_cycles_add_up_and_loops_count_as_often_as_they_turn(work):
    assert work.cycles == 1000 + 30 + 20 + 10 + 4 * 100


def test_cycles_belong_to_parts_of_the_network(work):
    cycles = {k: (g["forward"], g["gradient"]) for k, g in work.groups.items()}
    assert cycles == {
        "stage1": (1000, 0),
        "up4": (0, 400),
        "head": (30, 0),  # by what is fused, for it has no name of its own
        "loss": (20, 0),  # outside the modules by its source file
        "optimizer": (10, 0),
        "augment": (0, 0),
        "other": (0, 0),
    }
    assert list(work.groups)[:2] == ["stage1", "up4"]


def test_the_costliest_are_named(work):
    first, second = work.costliest
    assert first["module"] == "encoder/stage1_block2/conv1"
    assert (first["pass"], first["primitive"]) == ("forward", "conv_general_dilated")
    assert (second["cycles"], second["times"]) == (400, 4)
    assert (second["module"], second["pass"]) == ("decoder/up4/conv", "gradient")


def test_what_has_no_estimate_is_told(work):
    (silent,) = work.unestimated
    assert (silent["module"], silent["primitive"]) == ("augment", "gather")
    assert silent["traffic"] == 4 * (512 * 1024 + 128)


def test_traffic_fills_tiles_and_leaves_out_what_is_on_the_core():
    moved = hlo.traffic(module("step.hlo"))
    # bf16 (2, 4, 64) in tiles of (8, 128) twice, and 64 floats in a tile of 128 once:
    # the other 64 lie on the core.
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
def test_arrays_fill_tiles_in_their_layout(shape, padded):
    (array,) = hlo.arrays_of(shape)
    assert array.traffic == padded


def test_exchanges_are_counted_by_purpose():
    found = {e["purpose"]: e for e in hlo.collectives(module("collectives.hlo"))}
    sums = {k: (e["kind"], e["count"], e["bytes"]) for k, e in found.items()}
    assert sums == {
        "gradients, running statistics": ("all-reduce", 1, 5 * 5 * 8 * 4 * 4),
        "batch statistics": ("all-reduce", 1, 2 * 2 * 64 * 4),
        "statistics' gradients": ("all-reduce", 1, 2 * 64 * 4),
        "loss and counts": ("all-reduce", 0, 4),  # travels with the gradients
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
def test_places(op_name, module, gradient, group):
    place = hlo.place_of(op_name)
    assert (place.module, place.gradient, place.group) == (module, gradient, group)


def test_a_module_without_any_metadata_is_read():
    text = (
        "ENTRY %main (a: f32[2]) -> f32[2] {\n  ROOT %a = f32[2]{0} parameter(0)\n}\n"
    )
    bare = hlo.parse(text)
    assert hlo.work(bare).cycles == 0 and hlo.collectives(bare) == []
