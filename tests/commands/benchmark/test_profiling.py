"""Traces of GPUs, written byte by byte as the profiler's protocol buffers."""

import jax
import pytest

from jaxdepth.commands.benchmark import profiling, report, workloads
from jaxdepth.commands.benchmark.timing import Workload
from jaxdepth.commands.compile import hlo

PICO = 10**6  # picoseconds in a microsecond
HLO = """
%fused (p: f32[2]) -> f32[2] {
  ROOT %n = f32[2] negate(%p), metadata={op_name="jit(f)/jvp(Net)/decoder/up4/bn/neg"}
}

ENTRY %main (a: f32[2]) -> f32[2] {
  %loop_add_fusion.3 = f32[2] fusion(%a), calls=%fused
  %cudnn-conv-bw-filter.7 = (f32[2], u8[64]) custom-call(%a), metadata={op_name="jit(f)/transpose(jvp(Net))/encoder/stage1_block2/conv2/conv_general_dilated"}
  %forward = f32[2] dot(%a), metadata={op_name="jit(f)/Net/head/conv/dot_general"}
  ROOT %plain.1 = f32[2] add(%a, %b)
}
"""  # noqa: E501


def number(field, value):
    """A field of a protocol buffer that holds an integer."""
    return varint(field << 3) + varint(value)


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def nested(field, *parts):
    """A field that holds a message or text."""
    data = b"".join(p.encode() if isinstance(p, str) else p for p in parts)
    return varint(field << 3 | 2) + varint(len(data)) + data


def plane(name, lines, refs=True):
    """An XPlane: lines of (kernel, operation or None, start, microseconds).

    Operations are references to names, as CUPTI's events have them, or else texts.
    """
    names = {}

    def key(text):
        return names.setdefault(text, len(names) + 1)

    written = []
    for line_name, events in lines.items():
        content = [nested(2, line_name), number(3, 1000)]
        for kernel, operation, start, length in events:
            stats = []
            if operation is not None:
                value = number(7, key(operation)) if refs else nested(5, operation)
                stats.append(nested(4, number(1, key("hlo_op")), value))
            fields = [number(1, key(kernel)), number(2, start * PICO)]
            fields.append(number(3, length * PICO))
            content.append(nested(4, *fields, *stats))
        written.append(nested(3, *content))
    for field in (4, 5):  # names of events and of stats
        for text, k in names.items():
            entry = nested(2, number(1, k), nested(2, text))
            written.append(nested(field, number(1, k), entry))
    return nested(1, nested(2, name), *written)


EVENTS = {
    "Stream #17(Compute)": [
        ("loop_add_fusion_3", "loop_add_fusion.3", 0, 30),
        ("cudnn::wgrad_kernel", "cudnn-conv-bw-filter.7", 40, 50),
        ("cudnn::reorder", "cudnn-conv-bw-filter.7", 90, 10),
        # In a CUDA graph, kernels may lack the name of their operation.
        ("loop_add_fusion_3", None, 100, 30),
    ],
    "Stream #18(MemcpyH2D)": [("MemcpyH2D", None, 20, 15)],
    "Steps": [("0", None, 0, 130)],
}


def read(tmp_path, *planes):
    file = tmp_path / "t.xplane.pb"
    file.write_bytes(b"".join(planes))
    return profiling.read(file)


@pytest.mark.parametrize("refs", [True, False])
def test_kernels_of_a_gpu_get_the_names_of_modules(tmp_path, refs):
    host = plane("/host:CPU", {"main": [("call", "loop_add_fusion.3", 0, 500)]})
    traced = read(tmp_path, host, plane("/device:GPU:0", EVENTS, refs))
    assert traced.seconds == pytest.approx(135e-6)
    # Busy from 0 to 35 and from 40 to 130 microseconds.
    assert (traced.busy, traced.span) == pytest.approx((125e-6, 130e-6))
    profile = profiling.summary(traced, hlo.parse(HLO))
    rows = profile["costliest"]
    assert [(row["operation"], row["part"]) for row in rows] == [
        ("cudnn-conv-bw-filter.7", "encoder/stage1_block2/conv2 (gradient)"),
        ("loop_add_fusion.3", "decoder/up4/bn"),
        ("loop_add_fusion_3", "decoder/up4/bn"),
        ("MemcpyH2D", "-"),
    ]
    milliseconds = [0.06, 0.03, 0.03, 0.015]
    assert [row["ms"] * profiling.CALLS for row in rows] == pytest.approx(milliseconds)
    assert rows[0]["launches"] == pytest.approx(2 / profiling.CALLS)
    assert rows[0]["kernel"].startswith("cudnn::")
    kinds = {k: v * profiling.CALLS for k, v in profile["ms by kind"].items()}
    assert kinds == pytest.approx(
        {"convolution, kernel gradient": 0.06, "element-wise": 0.06, "copy": 0.015}
    )
    blocks = {k: v * profiling.CALLS for k, v in profile["ms by block"].items()}
    assert blocks == pytest.approx({"stage1": 0.06, "up4": 0.06, "other": 0.015})
    share = profile["share of the time with a kernel running"]
    assert share == pytest.approx(125 / 130)
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_modules_without_gradients_and_unknown_operations(tmp_path):
    events = {"Stream #1": [("k", "forward", 0, 2), ("k", "plain.1", 2, 1)]}
    traced = read(tmp_path, plane("/device:GPU:0", events))
    rows = profiling.summary(traced, hlo.parse(HLO))["costliest"]
    assert [row["part"] for row in rows] == ["head/conv", "-"]
    rows = profiling.summary(traced, hlo.parse(""))["costliest"]
    assert [row["part"] for row in rows] == ["-", "-"]


def test_a_gpu_without_events_has_no_profile(tmp_path, monkeypatch):
    # Without CUPTI there is no plane of the device, or an empty one; events of the host
    # are not operations of the GPU.
    host = plane("/host:CPU", {"main": [("call", "loop_add_fusion.3", 0, 500)]})
    traced = read(tmp_path, host, plane("/device:GPU:0", {}))
    assert traced.operations == {}
    file = tmp_path / "t.xplane.pb"
    monkeypatch.setattr(profiling, "trace", lambda *_: file)
    results = report.Report()
    profiling.show(tmp_path, Workload("it", int, int), workloads.Compiled(0.0), results)
    assert results.facts["notes"] == [f"no profile: {file} contains no operations"]


def test_without_a_plane_of_a_gpu_the_host_counts_on_cpu_only(tmp_path, monkeypatch):
    host = plane("/host:CPU", {"main": [("call", "fusion.3", 0, 500)]})
    assert read(tmp_path, host).operations["fusion.3"].seconds == pytest.approx(5e-4)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert read(tmp_path, host).operations == {}


def test_a_tpu_has_one_line_of_operations(tmp_path):
    lines = {"XLA Ops": [("fusion.1", None, 0, 5)], "Steps": [("0", None, 0, 9)]}
    traced = read(tmp_path, plane("/device:TPU:0", lines))
    assert traced.seconds == pytest.approx(5e-6) and traced.busy == traced.seconds


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn-conv-bw-input.12", "convolution, input gradient"),
        ("cudnn-conv-bias-activation.1", "convolution, forward"),
        ("loop_convert_fusion.5", "element-wise"),
        ("gemm_fusion_dot.7", "matrix product"),
        ("input_reduce_fusion.9", "reduction"),
        ("input_transpose_fusion", "transpose"),
        ("wrapped_copy.3", "copy"),
        ("loop_pad_fusion.2", "pad, slice, gather"),
        ("rng", "other"),
    ],
)
def test_kinds_of_operations(name, kind):
    assert profiling.kind_of(name) == kind


def test_bytes_of_kernels_are_operands_and_results():
    text = """
%body (t: (f32[4])) -> (f32[4]) {
  %t = (f32[4]) parameter(0)
  %g = f32[4] get-tuple-element(%t), index=0
  ROOT %fusion.1 = f32[4] fusion(%g, %g), kind=kLoop, calls=%f
}

ENTRY %main (a: bf16[8]) -> f32[4] {
  %a = bf16[8] parameter(0)
  %conv = (bf16[16], u8[1000]) custom-call(%a), custom_call_target="__cudnn$conv"
  %g.2 = bf16[16] get-tuple-element(%conv), index=0
  %call = (f32[4]) call(%g.2), to_apply=%body
  ROOT %copy = bf16[16] copy(%g.2)
}
"""
    compiled = workloads.Compiled(0.0, text=lambda: text)
    # 16 + 32 of the convolution, 3 x 16 of the fusion, 2 x 32 of the copy.
    assert compiled.kernel_bytes() == 48 + 48 + 64
    assert workloads.Compiled(0.0).kernel_bytes() == 0
    assert workloads.Compiled(0.0, text=lambda: str(1 / 0)).hlo() == ""
