"""FLOPs of convolutions and matrix products, against literal counting."""

import itertools

import pytest

from jaxdepth.commands.compile import costs, flops
from tests.commands.compile.gpu_modules import IMAGES, VERSIONS, gpu_module, module_of


def of_module(body: str) -> dict[str, float]:
    return costs.work(module_of(body)).flops


@pytest.mark.parametrize(
    "name, precision", [("block2", "bf16"), ("block2-f32", "tf32")]
)
def test_convolution_and_both_gradients_by_cudnn(name, precision):
    # 3x3 from 32 to 64 channels; a row of 114 outputs has 3 taps, at its ends 2.
    taps = (3 * 114 - 2) * (3 * 152 - 2)
    counted = costs.work(gpu_module(name)).flops
    assert counted == {precision: 3 * 2 * IMAGES * 32 * 64 * taps}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_up_projection(version):
    """Two branches of unpooling and 5x5 from 128 to 64 channels, and a 3x3."""

    def taps(n: int, outputs: int) -> int:
        pairs = itertools.product(range(outputs), range(-2, 3))
        return sum((o + t) % 2 == 0 and 0 <= o + t < 2 * n for o, t in pairs)

    branch = 128 * taps(64, 128) * taps(80, 160)
    after = 64 * (3 * 128 - 2) * (3 * 160 - 2)
    products = 3 * 2 * IMAGES * 64 * (2 * branch + after)
    counted = costs.work(gpu_module("up4-four", version)).flops["bf16"]
    # Edges that a kernel of their own has padded are counted as taps.
    assert products <= counted <= 1.01 * products


def test_zeros_written_before_a_convolution_are_counted():
    four, dilated = (
        costs.work(gpu_module(f"up4-{form}")).flops["bf16"]
        for form in ("four", "dilated")
    )
    assert dilated > 2 * four


CONVOLUTION = """
%x = bf16[2,9,11,3]{3,2,1,0} parameter(0)
%k = bf16[5,3,4,3]{3,2,1,0} parameter(1)
%y = bf16[2,5,6,5]{3,2,1,0} parameter(2)
"""
WINDOW = "window={size=3x4 stride=2x2 pad=1_1x1_2}, dim_labels=b01f_o01i->b01f"


def literal(stride: int = 2) -> float:
    """FLOPs of the convolution above by visiting every product."""
    count = 0
    for i, j in itertools.product(range(5), range(6)):
        for u, v in itertools.product(range(3), range(4)):
            inside = 0 <= i * stride - 1 + u < 9 and 0 <= j * stride - 1 + v < 11
            count += inside * 2 * 2 * 3 * 5  # images, channels
    return float(count)


@pytest.mark.parametrize(
    "target, shape, operands",
    [
        ("Forward", "bf16[2,5,6,5]{3,2,1,0}", "%x, %k"),
        ("BackwardInput", "bf16[2,9,11,3]{3,2,1,0}", "%y, %k"),
        ("BackwardFilter", "bf16[5,3,4,3]{3,2,1,0}", "%x, %y"),
    ],
)
def test_strided_convolutions_of_cudnn(target, shape, operands):
    call = f"%c = ({shape}, u8[0]{{0}}) custom-call({operands}), {WINDOW}, "
    call += f'custom_call_target="__cudnn$conv{target}"'
    assert of_module(CONVOLUTION + call) == {"bf16": literal()}


def test_a_convolution_with_base_dilation_and_groups():
    body = """
    %x = f32[2,4,6]{2,1,0} parameter(0)
    %k = f32[3,3,4]{2,1,0} parameter(1)
    %c = f32[2,7,4]{2,1,0} convolution(%x, %k), window={size=3 pad=1_1 lhs_dilate=2},
    """.rstrip().rstrip(",")
    body += ", dim_labels=b0f_0io->b0f, feature_group_count=2"
    pairs = itertools.product(range(7), range(3))
    # The dilated input is x0 0 x1 0 x2 0 x3.
    taps = sum((o - 1 + t) % 2 == 0 and 0 <= o - 1 + t < 7 for o, t in pairs)
    assert of_module(body) == {"tf32": 2.0 * 2 * 4 * 3 * taps}


@pytest.mark.parametrize(
    "dtype, attributes, precision",
    [
        ("bf16", "", "bf16"),
        ("f32", "", "tf32"),
        ("f32", ", operand_precision={highest,highest}", "f32"),
        ("f64", "", "f32"),
    ],
)
def test_matrix_products(dtype, attributes, precision):
    body = f"""
    %a = {dtype}[2,7,5]{{2,1,0}} parameter(0)
    %b = {dtype}[2,5,3]{{2,1,0}} parameter(1)
    %d = {dtype}[2,7,3]{{2,1,0}} dot(%a, %b), lhs_batch_dims={{0}},"""
    body += " lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}"
    assert of_module(body + attributes) == {precision: 2.0 * 2 * 7 * 3 * 5}


def test_matrix_products_of_cublas():
    body = """
    %a = bf16[7,5]{1,0} parameter(0)
    %b = bf16[5,3]{1,0} parameter(1)
    """
    body += "%d = (bf16[7,3]{1,0}, s8[4096]{0}) custom-call(%a, %b), "
    body += 'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
    body += '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
    body += '"rhs_contracting_dimensions":["0"]}}}'
    assert of_module(body) == {"bf16": 2.0 * 7 * 3 * 5}


@pytest.mark.parametrize("size, stride, before, dilation", [(3, 1, 1, 1), (5, 2, 0, 2)])
def test_taps_of_an_axis(size, stride, before, dilation):
    reach = range(-before, 9 - before)
    literal = sum(
        k * stride - before + t * dilation in range(9)
        for k in range(4)
        for t in range(size)
    )
    window = {"size": size, "stride": stride, "before": before, "rhs_dilate": dilation}
    assert flops.taps(9, 4, **window) == literal and len(reach) == 9
