import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.ops import platform
from jaxdepth.ops import upconv as ops
from jaxdepth.runtime.errors import UserError

SIZES = [(5, 7), (1, 1), (1, 4), (3, 2)]
CIN, COUT = 3, 2


def literal_unpool(x, kind, p, q):
    """Entry (p, q) of the unpooled map of x (b, h, w, c), at any p and q."""

    def entry(i, j):
        inside = 0 <= i < x.shape[1] and 0 <= j < x.shape[2]
        return x[:, i, j] if inside else np.zeros_like(x[:, 0, 0])

    i, j = p // 2, q // 2
    if p % 2 == 0 and q % 2 == 0:
        return entry(i, j)
    if kind == "zero":
        return np.zeros_like(x[:, 0, 0])
    if p % 2 == 0:
        return (entry(i, j) + entry(i, j + 1)) / 2
    if q % 2 == 0:
        return (entry(i, j) + entry(i + 1, j)) / 2
    four = entry(i, j) + entry(i, j + 1) + entry(i + 1, j) + entry(i + 1, j + 1)
    return four / 4


def source(p, padding_side):
    """The output index that gives output p: two earlier for odd p and "top_left"."""
    return p - 2 if padding_side == "top_left" and p % 2 else p


def literal_patches(x, kind, padding_side):
    """The patch that every output multiplies by the kernel: (b, 2h, 2w, 5, 5, c)."""
    b, h, w, c = x.shape
    patches = np.zeros((b, 2 * h, 2 * w, 5, 5, c))
    for p in range(2 * h):
        for q in range(2 * w):
            for a in range(5):
                for k in range(5):
                    patches[:, p, q, a, k] = literal_unpool(
                        x,
                        kind,
                        source(p, padding_side) + a - 2,
                        source(q, padding_side) + k - 2,
                    )
    return patches


@functools.cache
def case(size, kind, padding_side):
    """Input, kernel, cotangent, expected output and both gradients, in float64."""
    rng = np.random.default_rng(0)
    h, w = size
    x = rng.normal(size=(2, h, w, CIN))
    kernel = rng.normal(size=(5, 5, CIN, COUT))
    g = rng.normal(size=(2, 2 * h, 2 * w, COUT))
    patches = literal_patches(x, kind, padding_side)
    y = np.einsum("bpqakc,akcd->bpqd", patches, kernel)
    kernel_grad = np.einsum("bpqakc,bpqd->akcd", patches, g)
    # Linear in x: the gradient at (i, j) follows from a unit input at (i, j).
    ones = np.eye(h * w).reshape(h * w, h, w, 1)
    spread = literal_patches(ones, kind, padding_side)[..., 0]
    x_grad = np.einsum("npqak,akcd,bpqd->bnc", spread, kernel, g)
    return x, kernel, g, y, x_grad.reshape(x.shape), kernel_grad


def value_and_gradients(form, kind, padding_side):
    """(input, kernel, cotangent) -> output and both gradients, of one form."""

    def function(x, kernel, g):
        y, back = jax.vjp(
            functools.partial(
                ops.upconv, unpool=kind, padding_side=padding_side, form=form
            ),
            x,
            kernel,
        )
        return y, *back(g)

    return function


@pytest.mark.parametrize("padding_side", ops.PADDING_SIDES)
@pytest.mark.parametrize("kind", ops.UNPOOLS)
@pytest.mark.parametrize("size", SIZES)
def test_forms_equal_the_literal_loop_in_value_and_gradients(size, kind, padding_side):
    x, kernel, g, *expected = case(size, kind, padding_side)
    with jax.enable_x64(True):
        for form in ops.FORMS:
            got = jax.jit(value_and_gradients(form, kind, padding_side))(x, kernel, g)
            for name, one, other in zip(["y", "x", "k"], got, expected, strict=True):
                message = f"{form} {name}"
                np.testing.assert_allclose(one, other, atol=1e-12, err_msg=message)


@pytest.mark.parametrize("kind", ops.UNPOOLS)
def test_unpool(kind):
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 2)).astype(np.float32)
    expected = np.zeros((2, 6, 8, 2))
    for p in range(6):
        for q in range(8):
            expected[:, p, q] = literal_unpool(x, kind, p, q)
    np.testing.assert_allclose(ops.unpool(jnp.array(x), kind), expected, atol=1e-6)


def test_average_unpooling_by_hand():
    x = jnp.array([[2.0, 4.0], [6.0, 8.0]])[None, :, :, None]
    expected = [[2, 3, 4, 2], [4, 5, 6, 3], [6, 7, 8, 4], [3, 3.5, 4, 2]]
    np.testing.assert_array_equal(ops.unpool(x, "average")[0, :, :, 0], expected)


def test_equals_pytorchs_transposed_convolution():
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
    kernel = rng.normal(size=(5, 5, 6, 3)).astype(np.float32)
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        # torch 2.13: (cin, cout, kh, kw), rotated by 180 degrees.
        torch.from_numpy(kernel[::-1, ::-1].copy()).permute(2, 3, 0, 1),
        stride=2,
        padding=2,
        output_padding=1,
    ).permute(0, 2, 3, 1)
    got = ops.upconv(jnp.array(x), jnp.array(kernel))
    np.testing.assert_allclose(got, expected.numpy(), atol=5e-5)


@pytest.mark.parametrize("padding_side", ops.PADDING_SIDES)
def test_equals_the_four_convolutions_of_the_published_network(padding_side):
    # fcrn.py of the published code: A 3x3, B 2x3, C 3x2, D 2x2. An axis with two taps
    # is padded by one on one side. A and C give rows 2i, A and B columns 2j.
    rng = np.random.default_rng(3)
    h, w = 3, 4
    x = rng.normal(size=(1, h, w, 2))
    kernel = rng.normal(size=(5, 5, 2, 1))
    before = 1 if padding_side == "top_left" else 0
    expected = np.zeros((1, 2 * h, 2 * w, 1))
    for r, s in np.ndindex(2, 2):
        part = kernel[r::2, s::2]
        pads = [(1, 1) if phase == 0 else (before, 1 - before) for phase in (r, s)]
        padded = np.pad(x, [(0, 0), *pads, (0, 0)])
        for i, j in np.ndindex(h, w):
            window = padded[0, i : i + part.shape[0], j : j + part.shape[1]]
            expected[0, 2 * i + r, 2 * j + s] = np.einsum("abc,abcd->d", window, part)
    with jax.enable_x64(True):
        got = ops.upconv(jnp.array(x), jnp.array(kernel), padding_side=padding_side)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_phase_bias():
    y = jnp.arange(2.0 * 4 * 6 * 2).reshape(2, 4, 6, 2)
    bias = np.random.default_rng(4).normal(size=(2, 2, 2)).astype(np.float32)
    got = ops.add_phase_bias(y, jnp.array(bias))
    for p, q in np.ndindex(4, 6):
        expected = y[:, p, q] + bias[p % 2, q % 2][None]
        np.testing.assert_array_equal(got[:, p, q], expected)


def test_phase_bias_keeps_the_dtype():
    y = jnp.zeros((1, 2, 2, 3), jnp.bfloat16)
    assert ops.add_phase_bias(y, jnp.ones((2, 2, 3))).dtype == jnp.bfloat16


@pytest.mark.parametrize("form", ("auto", *ops.FORMS))
@pytest.mark.parametrize("kind", ops.UNPOOLS)
def test_dtype_is_kept_and_size_doubled(form, kind):
    x = jax.ShapeDtypeStruct((2, 3, 5, 4), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((5, 5, 4, 7), jnp.bfloat16)
    y = jax.eval_shape(functools.partial(ops.upconv, unpool=kind, form=form), x, kernel)
    assert (y.shape, y.dtype) == ((2, 6, 10, 7), jnp.bfloat16)


def test_default_forms():
    forms = {p: ops.default_form(p) for p in ("tpu", "gpu", "cpu", "other")}
    assert forms == dict.fromkeys(("tpu", "gpu"), "transposed") | dict.fromkeys(
        ("cpu", "other"), "four"
    )


def test_both_gradients_of_transposed_are_convolutions_of_stride_2():
    # JAX's own rule gives a kernel gradient whose window is as large as the map.
    x, kernel = jnp.zeros((2, 8, 9, 3)), jnp.zeros((5, 5, 3, 4))

    def loss(x, kernel):
        return jnp.sum(ops.upconv(x, kernel, form="transposed"))

    text = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, kernel))
    strides = re.findall(r"window_strides=\((\d), \d\)", text)
    dilations = re.findall(r"[lr]hs_dilation=\((\d), \d\)", text)
    assert sorted(strides) == ["1", "1", "2"]  # value, kernel and input gradient
    assert sorted(dilations) == ["1", "1", "1", "1", "2", "2"]


# Only channels that fill the lanes.
@pytest.mark.parametrize("features, expected_order", [(128, True), (64, False)])
def test_on_tpu_the_kernel_gradient_has_the_order_of_the_stored_kernel(
    features, expected_order
):
    rng = np.random.default_rng(0)
    shapes = (2, 4, 5, 3), (5, 5, 3, features)

    def gradients(form, backend):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(ops.upconv(x, kernel, form=form)))

        with platform.compiling_for(backend):
            compiled = jax.jit(jax.grad(loss, (0, 1)))
            text = compiled.lower(*arrays).as_text()
            return compiled(*arrays), "LayoutConstraint" in text

    with jax.enable_x64():
        arrays = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        expected, _ = gradients("plain", "cpu")
        got, is_ordered = gradients("transposed", "tpu")
        _, is_ordered_on_gpu = gradients("transposed", "gpu")
    assert is_ordered == expected_order and not is_ordered_on_gpu
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_auto_is_the_default_form_of_the_backend(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    shapes = jnp.zeros((1, 2, 2, 1)), jnp.zeros((5, 5, 1, 1))
    form = ops.default_form(backend)
    auto, named = (
        str(jax.make_jaxpr(functools.partial(ops.upconv, form=f))(*shapes))
        for f in ("auto", form)
    )
    assert auto == named


@pytest.mark.parametrize("padding_side", ops.PADDING_SIDES)
@pytest.mark.parametrize("kind", ops.UNPOOLS)
# Kernel gradient as a convolution of stride 2 and by taps; larger maps with more
# channels than entries also have output and input gradient by taps.
@pytest.mark.parametrize(
    "size, cin", [((3, 2), 11), ((3, 2), 25), ((5, 4), 2), ((5, 4), 55)]
)
def test_auto_on_cpu_equals_plain_in_value_and_gradients(size, cin, kind, padding_side):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, cin)), rng.normal(size=(5, 5, cin, 4))
    g = rng.normal(size=(2, 2 * size[0], 2 * size[1], 4))
    with jax.enable_x64(True):
        plain, auto = (
            jax.jit(value_and_gradients(form, kind, padding_side))(x, kernel, g)
            for form in ("plain", "auto")
        )
        for a, b in zip(plain, auto, strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-12)


def test_auto_computes_large_kernels_by_taps():
    def products(cin):
        x, kernel = jnp.zeros((2, 5, 7, cin)), jnp.zeros((5, 5, cin, 9))
        gradient = jax.grad(lambda kernel: jnp.sum(ops.upconv(x, kernel)))
        return str(jax.make_jaxpr(gradient)(kernel)).count(" dot_general[")

    # Of the kernel gradient, the output and the input gradient.
    assert [products(cin) for cin in (69, 70)] == [0, 75]


@pytest.mark.parametrize(
    "wrong", [{"form": "fast"}, {"unpool": "nearest"}, {"padding_side": "left"}]
)
def test_unknown_names_are_refused(wrong):
    with pytest.raises(UserError, match="one of"):
        ops.upconv(jnp.zeros((1, 2, 2, 1)), jnp.zeros((5, 5, 1, 1)), **wrong)
