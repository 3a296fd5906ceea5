import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable

from jaxdepth.ops import conv as ops
from jaxdepth.ops import platform


def literal_conv(x, kernel, stride, padding):
    """Cross-correlation, output by output, in float64."""
    x = np.pad(x, [(0, 0), *padding, (0, 0)])
    kh, kw = kernel.shape[:2]
    height = (x.shape[1] - kh) // stride + 1
    width = (x.shape[2] - kw) // stride + 1
    y = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i, j in np.ndindex(height, width):
        window = x[:, stride * i : stride * i + kh, stride * j : stride * j + kw]
        y[:, i, j] = np.einsum("nabc,abcd->nd", window, kernel)
    return y


CASES = [
    # kernel size, stride, padding argument, resulting padding
    ((1, 1), 1, None, ((0, 0), (0, 0))),
    ((1, 1), 2, None, ((0, 0), (0, 0))),
    ((3, 3), 1, None, ((1, 1), (1, 1))),
    ((3, 3), 2, None, ((1, 1), (1, 1))),
    ((7, 7), 2, None, ((3, 3), (3, 3))),
    ((3, 3), 2, ((0, 1), (2, 0)), ((0, 1), (2, 0))),
    ((1, 1), 1, ((1, 0), (0, 1)), ((1, 0), (0, 1))),
    ((2, 3), 1, ((0, 1), (1, 1)), ((0, 1), (1, 1))),
]


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
@pytest.mark.parametrize("size, stride, argument, padding", CASES)
def test_conv2d_equals_the_literal_loop(
    size, stride, argument, padding, backend, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 8, 3)).astype(np.float32)
    kernel = rng.normal(size=(*size, 3, 4)).astype(np.float32)
    expected = literal_conv(x, kernel, stride, padding)
    convolve = functools.partial(ops.conv2d, stride=stride, padding=argument)
    got = jax.jit(convolve)(x, kernel)
    np.testing.assert_allclose(got, expected, atol=1e-4)


DILATED = [
    # kernel size, stride, dilation, padding argument, resulting padding
    ((3, 3), 1, 2, None, ((2, 2), (2, 2))),
    ((3, 3), 1, 4, None, ((4, 4), (4, 4))),  # reaches beyond the map
    ((3, 3), 2, 2, None, ((2, 2), (2, 2))),
    ((2, 3), 1, 2, ((0, 1), (3, 4)), ((0, 1), (3, 4))),
    ((3, 3), 1, 2, ((5, 0), (1, 1)), ((5, 0), (1, 1))),  # more than its reach
]


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
@pytest.mark.parametrize("size, stride, dilation, argument, padding", DILATED)
def test_dilated_convolution_and_gradients_equal_those_of_the_literal_loop(
    size, stride, dilation, argument, padding, backend
):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 7, 8, 3)).astype(np.float32)
    kernel = rng.normal(size=(*size, 3, 4)).astype(np.float32)
    # The same taps, with zeros between them.
    spread = np.zeros((*(dilation * (k - 1) + 1 for k in size), 3, 4))
    spread[::dilation, ::dilation] = kernel
    expected = literal_conv(x, spread, stride, padding)
    weights = rng.normal(size=expected.shape)

    def outputs(x, kernel):
        y = ops.conv2d(x, kernel, stride=stride, dilation=dilation, padding=argument)
        return jnp.sum(y * weights), y

    with platform.compiling_for(backend):
        gradients, y = jax.jit(jax.grad(outputs, (0, 1), has_aux=True))(x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    # The convolution is linear in each: a gradient is the loss of one entry alone.
    for index in [(0, 0, 0, 1), (1, 3, 4, 2), (1, 6, 7, 0)]:
        one = np.zeros_like(x)
        one[index] = 1
        loss = (literal_conv(one, spread, stride, padding) * weights).sum()
        np.testing.assert_allclose(gradients[0][index], loss, atol=1e-4)
    for index in np.ndindex(*size):
        one = np.zeros_like(spread)
        tap = tuple(dilation * k for k in index)
        one[(*tap, 1, 2)] = 1
        loss = (literal_conv(x, one, stride, padding) * weights).sum()
        np.testing.assert_allclose(gradients[1][(*index, 1, 2)], loss, atol=1e-4)


def test_dilated_convolution_in_bfloat16():
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(2, 7, 8, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.bfloat16)
    y = jax.jit(functools.partial(ops.conv2d, dilation=2))(x, kernel)
    exact = ops.conv2d(x.astype(jnp.float32), kernel.astype(jnp.float32), dilation=2)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.01 * 27)


@pytest.mark.parametrize("padding", [None, ((2, 0), (0, 1))])
def test_one_output_channel_is_computed_by_taps_with_equal_results(
    padding, monkeypatch
):
    rng = np.random.default_rng(2)
    x = jnp.array(rng.normal(size=(2, 7, 8, 5)), jnp.float32)
    kernel = jnp.array(rng.normal(size=(3, 3, 5, 1)), jnp.float32)

    def value_and_gradients():
        def both(x, kernel):
            y, back = jax.vjp(functools.partial(ops.conv2d, padding=padding), x, kernel)
            return y, *back(jnp.sin(jnp.arange(y.size).reshape(y.shape)))

        convolve = functools.partial(ops.conv2d, padding=padding)
        jaxpr = str(jax.make_jaxpr(convolve)(x, kernel))
        return " conv_general_dilated[" in jaxpr, jax.jit(both)(x, kernel)

    is_convolution, by_taps = value_and_gradients()
    assert not is_convolution
    monkeypatch.setattr(ops, "FEW_PRODUCTS", 0)
    is_convolution, expected = value_and_gradients()
    assert is_convolution
    for a, b in zip(by_taps, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_gradients_equal_those_of_the_convolution(stride, monkeypatch):
    rng = np.random.default_rng(1)
    x = jnp.array(rng.normal(size=(2, 5, 6, 3)), jnp.float32)
    kernel = jnp.array(rng.normal(size=(1, 1, 3, 4)), jnp.float32)

    def gradients():
        def loss(x, kernel):
            return jnp.sum(jnp.sin(ops.conv2d(x, kernel, stride=stride)))

        return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)

    as_dot = gradients()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    for one, other in zip(as_dot, gradients(), strict=True):
        np.testing.assert_allclose(one, other, atol=5e-5)


@pytest.mark.parametrize(
    "backend, primitive", [("cpu", "dot_general"), ("tpu", "conv_general_dilated")]
)
def test_pointwise_is_a_dot_product_on_cpu_only(backend, primitive, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 1, 2, 3))
    # A new function each time, because JAX caches traces by function.
    jaxpr = jax.make_jaxpr(lambda x, kernel: ops.conv2d(x, kernel))(x, kernel)
    assert f" {primitive}[" in str(jaxpr)


def test_transposed_conv_equals_the_literal_loop():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 2)).astype(np.float32)
    # Every entry is added to the 3x3 outputs around its own, weighted by the kernel
    # rotated by 180 degrees; outputs outside the map are cropped.
    expected = np.zeros((2, 8, 12, 2))
    for i, j, a, b in np.ndindex(3, 5, 3, 3):
        expected[:, 2 * i + a, 2 * j + b] += x[:, i, j] @ kernel[2 - a, 2 - b]
    got = ops.transposed_conv2x(jnp.array(x), jnp.array(kernel))
    np.testing.assert_allclose(got, expected[:, 1:7, 1:11], atol=5e-5)


def test_transposed_conv_equals_pytorch():
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 4, 3, 2)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 2, 1)).astype(np.float32)
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(kernel[::-1, ::-1].copy()).permute(2, 3, 0, 1),
        stride=2,
        padding=1,
        output_padding=1,
    ).permute(0, 2, 3, 1)
    got = ops.transposed_conv2x(jnp.array(x), jnp.array(kernel))
    np.testing.assert_allclose(got, expected.numpy(), atol=5e-5)


def test_layer_stores_kernel_and_bias_in_float32_and_computes_in_its_dtype():
    layer = ops.Conv(5, (3, 2), use_bias=True, dtype=jnp.bfloat16)
    x = jnp.ones((1, 6, 6, 4))
    variables = layer.init(jax.random.key(0), x)
    shapes = jax.tree.map(lambda p: (p.shape, str(p.dtype)), variables["params"])
    assert shapes == {"kernel": ((3, 2, 4, 5), "float32"), "bias": ((5,), "float32")}
    assert jnp.asarray(layer.apply(variables, x)).dtype == jnp.bfloat16


def test_layer_adds_its_bias():
    layer = ops.Conv(2, (1, 1), use_bias=True)
    params = {"kernel": jnp.zeros((1, 1, 3, 2)), "bias": jnp.array([1.0, -2.0])}
    y = layer.apply({"params": params}, jnp.ones((1, 2, 2, 3)))
    np.testing.assert_array_equal(y, np.broadcast_to([1.0, -2.0], (1, 2, 2, 2)))


def test_layer_starts_from_he_normal_over_the_fan_out():
    layer = ops.Conv(64, (3, 3))
    variables = layer.init(jax.random.key(0), jnp.ones((1, 4, 4, 32)))
    deviation = np.std(np.asarray(variables["params"]["kernel"]))
    assert abs(deviation / (2 / (9 * 64)) ** 0.5 - 1) < 0.02


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(convolve, x, kernel):
    """The output, and the gradients for a cotangent that varies from pixel to pixel."""
    y, back = jax.vjp(convolve, x, kernel)
    return y, *back(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (3, 6)])
@pytest.mark.parametrize("stride", [1, 2])
def test_small_maps_as_matrix_products_equal_the_convolution(size, stride):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(2, *size, 3)))
        for shape, pads in (((3, 3), ((1, 1), (1, 1))), ((2, 3), ((0, 1), (1, 1)))):
            kernel = jnp.asarray(rng.normal(size=(*shape, 3, 4)))

            def plain(x, kernel, pads=pads):
                return jax.lax.conv_general_dilated(
                    x,
                    kernel,
                    (stride, stride),
                    pads,
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )

            def ours(x, kernel, pads=pads):
                return ops.conv2d(x, kernel, stride=stride, padding=pads)

            expected = value_and_gradients(plain, x, kernel)
            got = value_and_gradients(ours, x, kernel)
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-12)


# With the forms of `_cheap_gradients`: (shape of x, kernel size, features, stride,
# padding, form of the kernel gradient). "window": as a convolution with a window of the
# size of the output; if that is larger than the map, without zeros added to it.
FORMS = [
    ((1, 12, 13, 9), 3, 16, 1, ((1, 1), (1, 1)), "window"),
    ((2, 7, 9, 9), 3, 10, 1, ((0, 1), (2, 0)), "window"),
    ((2, 9, 8, 9), 5, 5, 1, ((0, 0), (0, 0)), "window"),
    ((2, 5, 6, 4), 3, 32, 1, ((2, 2), (1, 1)), "window"),
    ((1, 5, 16, 4), 2, 7, 1, ((1, 0), (0, 1)), "window"),
    ((1, 5, 6, 40), 2, 70, 1, ((3, 0), (2, 3)), "window"),
    ((2, 7, 8, 9), 3, 10, 2, ((1, 1), (1, 1)), "taps"),
    ((1, 9, 8, 3), 3, 5, 1, ((1, 1), (1, 1)), "window"),
    ((1, 9, 8, 3), 7, 5, 2, ((3, 3), (3, 3)), "rows"),
]


@pytest.mark.parametrize("shape, size, features, stride, padding, form", FORMS)
def test_gradients_chosen_on_cpu_equal_those_of_the_convolution(
    shape, size, features, stride, padding, form, monkeypatch
):
    used = {
        "_kernel_gradient_by_taps": 0,
        "_kernel_gradient_by_rows": 0,
        "kernel_gradient": 0,
    }

    def counted(name, function, *args, **kwargs):
        used[name] += 1
        return function(*args, **kwargs)

    for name in used:
        function = functools.partial(counted, name, getattr(ops, name))
        monkeypatch.setattr(ops, name, function)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=shape))
        kernel = jnp.asarray(rng.normal(size=(size, size, shape[3], features)))

        (expected, *expected_gradients), (got, *gradients) = (
            value_and_gradients(
                lambda x, k, convolve=convolve: convolve(x, k, stride, padding, None),
                x,
                kernel,
            )
            for convolve in (ops._convolve, ops._cheap_gradients)
        )
        np.testing.assert_allclose(got, expected, atol=1e-11)
        for a, b in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-11)
    assert used == {
        "_kernel_gradient_by_taps": form == "taps",
        "_kernel_gradient_by_rows": form == "rows",
        "kernel_gradient": form == "window",
    }


@pytest.mark.parametrize("features", [5, 32])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_flipped_reverses_taps_and_exchanges_channels(features, backend):
    kernel = np.random.default_rng(0).normal(size=(3, 2, 7, features))
    with platform.compiling_for(backend):
        got = ops.flipped(jnp.asarray(kernel, jnp.float32))
    expected = kernel[::-1, ::-1].swapaxes(2, 3).astype(np.float32)
    np.testing.assert_array_equal(got, expected)


# Fewer entries per channel than MANY_ENTRIES, and more.
@pytest.mark.parametrize("size, parts", [((4, 5), 1), ((9, 10), 2)])
def test_pointwise_kernel_gradient_is_summed_over_images_of_large_maps(size, parts):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 6)), rng.normal(size=(1, 1, 6, 20))
    gradient = rng.normal(size=(2, *size, 20))
    with jax.enable_x64(True):
        _, vjp = jax.vjp(ops.conv2d, jnp.asarray(x), jnp.asarray(kernel))
        x_grad, kernel_grad = vjp(jnp.asarray(gradient))
        shapes = str(jax.make_jaxpr(vjp)(jnp.asarray(gradient)))
    np.testing.assert_allclose(x_grad, gradient @ kernel[0, 0].T, atol=1e-12)
    expected = np.einsum("bijc,bijd->cd", x, gradient)
    np.testing.assert_allclose(kernel_grad[0, 0], expected, atol=1e-12)
    assert f"f64[{parts},6,20]" in shapes


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 2), (3, 4))])
def test_sum_over_taps_equals_the_literal_loop(padding):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, 5, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 2, 3, 4)).astype(np.float32)
    got = ops.sum_over_taps(jnp.array(x), jnp.array(kernel), padding, None)
    np.testing.assert_allclose(got, literal_conv(x, kernel, 1, padding), atol=1e-4)


@pytest.mark.parametrize("dtype, chosen", [(jnp.float32, True), (jnp.bfloat16, False)])
def test_gradients_are_chosen_for_float32(dtype, chosen):
    x, kernel = jnp.zeros((1, 9, 9, 4), dtype), jnp.zeros((3, 3, 4, 8), dtype)
    jaxpr = jax.make_jaxpr(lambda x, kernel: ops.conv2d(x, kernel))(x, kernel)
    assert ("custom_vjp_call" in str(jaxpr)) == chosen


def compiled(function, *arguments):
    """The function as compiled for this CPU with our options."""
    jitted = jax.jit(function, compiler_options=platform.compiler_options())
    return jitted.lower(*arguments).compile()


def convolutions(program):
    """Convolutions of a program by YNNPACK and by Eigen."""
    text = str(program.as_text())
    by_eigen = text[text.index("\nENTRY ") :].count(" convolution(")
    return text.count(" convolution(") - by_eigen, by_eigen


# Same size, no padding.
@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 0), (0, 0))])
def test_ynnpack_computes_output_and_input_gradient_and_eigen_the_kernel_gradient(
    padding,
):
    x, kernel = jnp.ones((2, 24, 25, 32)), jnp.ones((3, 3, 32, 32))

    def loss(x, kernel):
        return jnp.sum(jnp.sin(ops.conv2d(x, kernel, padding=padding)))

    # XLA's YNNPACK has no output that is larger than the map.
    expected = [(1, 0), (2, 0) if padding[0][0] else (1, 1), (1, 1)]
    if not platform.YNNPACK_CONVOLVES:
        expected = [(0, 1), (0, 2), (0, 2)]
    programs = ops.conv2d, jax.grad(loss, 0), jax.grad(loss, 1)
    assert [convolutions(compiled(f, x, kernel)) for f in programs] == expected


def test_programs_for_cpu_can_be_serialised():
    x, kernel = jnp.ones((1, 24, 25, 32)), jnp.ones((3, 3, 32, 32))
    program = compiled(jax.grad(lambda x, k: jnp.sum(ops.conv2d(x, k)), 1), x, kernel)
    payload, _, _ = serialize_executable.serialize(program)
    assert payload


def test_layer_applies_scale_and_offset_of_a_normalisation():
    layer = ops.Conv(2, (1, 1), use_bias=True)
    params = {"kernel": jnp.ones((1, 1, 3, 2)), "bias": jnp.array([1.0, -2.0])}
    affine = jnp.array([2.0, 3.0]), jnp.array([0.5, 0.25])
    y = jnp.asarray(layer.apply({"params": params}, jnp.ones((1, 2, 2, 3)), affine))
    expected = np.broadcast_to([2 * (3 + 1) + 0.5, 3 * (3 - 2) + 0.25], (1, 2, 2, 2))
    np.testing.assert_allclose(y, expected)
