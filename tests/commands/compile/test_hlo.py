"""The parser of compiled modules."""

from pathlib import Path

import pytest

import jaxdepth
from jaxdepth.commands.compile import hlo

FOLDER = Path(__file__).parent


def module(name: str) -> hlo.Module:
    """A small module in the text format of the TPU compiler."""
    return hlo.parse((FOLDER / name).read_text())


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
    assert next(iter(bare.executed()))[1] == 1 and hlo.collectives(bare) == []


LOOP = """
%body (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = (s32[], f32[8]{0}) parameter(0)
  %v = f32[8]{0} get-tuple-element(%a), index=1
  %k = f32[8]{0} kernel-start(%v), calls=%fused
  ROOT %t = (s32[], f32[8]{0}) tuple(%v, %k)
}

%outer (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[], f32[8]{0}) parameter(0)
  ROOT %inner = (s32[], f32[8]{0}) while(%b), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"4"}}
}

ENTRY %main (x: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = (s32[], f32[8]{0}) parameter(0)
  %w = (s32[], f32[8]{0}) while(%x), condition=%cond, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
  %buffer = (s32[], f32[8]{0}) call(%w), to_apply=%body
  ROOT %later = ((f32[8]{0}), f32[8]{0}, u32[]) async-start(%buffer), calls=%body
}
"""  # noqa: E501


def test_loops_calls_and_asynchronous_computations_run_their_bodies():
    times = [n for i, n in hlo.parse(LOOP).executed() if i.name == "k"]
    assert times == [3 * 4, 1, 1]


@pytest.mark.parametrize(
    "shape, opcode",
    [
        ("f32[8]{0}", "all-reduce"),
        ("f32[8]{0}", "all-reduce-start"),
        ("((f32[8]{0}), f32[8]{0})", "all-reduce-start"),
        ("((f32[8]{0}), f32[8]{0}, u32[])", "all-reduce-start"),
        ("(f32[8]{0}, f32[8]{0})", "all-gather-start"),
    ],
)
def test_operands_in_the_tuple_of_a_collective_do_not_count(shape, opcode):
    text = f"""
ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  ROOT %r = {shape} {opcode}(%x), to_apply=%add
}}
"""
    (entry,) = hlo.collectives(hlo.parse(text))
    assert (entry["count"], entry["bytes"]) == (1, 8 * 4)


def test_the_source_and_the_consumers_of_a_value():
    looped = hlo.parse(LOOP)
    assert looped.source("v") == "a"
    assert [user.name for user, _ in looped.consumers("v")] == ["k", "t"]
    assert [user.name for user, _ in looped.consumers("a")] == ["k", "t"]
    assert looped.by_name["k"].base == "kernel"


def test_sources_name_existing_modules():
    package = Path(jaxdepth.__file__).parent
    paths = [key for key in hlo.SOURCES if key.endswith(".py")]
    assert all((package / path.lstrip("/")).is_file() for path in paths)
