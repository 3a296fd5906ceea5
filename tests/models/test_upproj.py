import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxdepth.models import create_model
from jaxdepth.ops import platform
from jaxdepth.ops.upconv import FORMS

from . import reference

SMALL: dict[str, Any] = {
    "stage_sizes": (1, 1),
    "width": 4,
    "decoder_in": 6,
    "decoder_features": (5, 3),
}
IMAGE = np.random.default_rng(0).normal(size=(2, 36, 44, 3)).astype(np.float32)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "layout, parameters, statistics",
    [
        # Laina et al.'s published network: 63,572,737 trainable, 63,633,665 in all.
        ("fcrn", 63_572_737, 60_928),
        # Without the biases of convolutions before a batch normalisation.
        ("torchvision", 63_563_008 + 1, 60_928),
    ],
)
def test_counts_and_output_size_of_the_published_network(
    layout, parameters, statistics
):
    model = create_model("upproj", layout=layout)
    image = jax.ShapeDtypeStruct((2, 228, 304, 3), jnp.float32)
    depth, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert count(variables["params"]) == parameters
    assert count(variables["batch_stats"]) == statistics
    assert (depth.shape, depth.dtype) == ((2, 128, 160), jnp.float32)


@pytest.mark.parametrize("layout", ["torchvision", "fcrn"])
def test_parameter_names_and_shapes(layout):
    model = create_model("upproj", layout=layout, **SMALL)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert set(params) == {"encoder", "decoder", "head"}
    assert set(params["decoder"]) == {"conv_in", "bn_in", "up1", "up2"}
    block = jax.tree.map(lambda p: p.shape, params["decoder"]["up2"])
    bn = {"scale": (3,), "bias": (3,)}
    up, conv = {"kernel": (5, 5, 5, 3)}, {"kernel": (3, 3, 3, 3)}
    if layout == "fcrn":
        up, conv = up | {"bias": (2, 2, 3)}, conv | {"bias": (3,)}
    assert block == {
        "up_main": up,
        "bn_main": bn,
        "conv": conv,
        "bn": bn,
        "up_side": up,
        "bn_side": bn,
    }
    assert ("bias" in params["decoder"]["conv_in"]) == (layout == "fcrn")
    head = jax.tree.map(lambda p: p.shape, params["head"])
    assert head == {"conv": {"kernel": (3, 3, 3, 1)}, "bias": (1,)}


@pytest.mark.parametrize("layout", ["torchvision", "fcrn"])
def test_equals_the_same_network_in_pytorch(layout):
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    model = create_model("upproj", layout=layout, **SMALL)
    variables = reference.variables(model, IMAGE)
    published = layout == "fcrn"
    epsilon = 1e-4 if published else 1e-5
    params, stats = variables["params"], variables["batch_stats"]
    x = reference.resnet(
        IMAGE,
        params["encoder"],
        stats["encoder"],
        stages=SMALL["stage_sizes"],
        first=published,
        same=published,
        epsilon=epsilon,
    )
    x = reference.decoder(
        x,
        params["decoder"],
        stats["decoder"],
        up=reference.up_published if published else reference.up_dense,
        blocks=2,
        epsilon=epsilon,
    )
    head = params["head"]
    raw = reference.conv(x, head["conv"])[:, 0] + float(head["bias"][0])
    expected = raw.relu() if published else torch.nn.functional.softplus(raw)
    got = jax.jit(model.apply)(variables, IMAGE)
    assert np.std(got) > 0.1
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("unpool", ["zero", "average"])
def test_forms_of_the_up_convolution_share_parameters_and_values(unpool):
    models = [
        create_model("upproj", layout="fcrn", upconv=form, unpool=unpool, **SMALL)
        for form in ("auto", *FORMS)
    ]
    variables = reference.variables(models[0], IMAGE)
    first, *others = (np.asarray(jax.jit(m.apply)(variables, IMAGE)) for m in models)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-4)


def test_zero_and_average_unpooling_differ():
    zero, average = (
        create_model("upproj", unpool=unpool, **SMALL) for unpool in ("zero", "average")
    )
    variables = reference.variables(zero, IMAGE)
    one, other = (jax.jit(model.apply)(variables, IMAGE) for model in (zero, average))
    assert not np.allclose(one, other)


def test_dropout_is_off_by_default():
    keys = jax.random.split(jax.random.key(1), 2)

    def training_output(**fields):
        model = create_model("upproj", **fields, **SMALL)
        apply = jax.jit(
            lambda v, x: model.apply(
                v, x, train=True, keys=keys, mutable=["batch_stats"]
            )[0]
        )
        return apply(reference.variables(model, IMAGE), IMAGE)

    assert create_model("upproj").dropout == 0
    assert not np.allclose(training_output(), training_output(dropout=0.5))


TINY: dict[str, Any] = {"stage_sizes": (1, 1, 1, 1), "width": 2, "decoder_in": 12}
FEATURES = (10, 8, 6, 4)


@pytest.mark.parametrize(
    "output_stride, shrink, grow, widths",
    [
        (32, 32, 16, (12, 10, 8, 6, 4)),
        (16, 16, 8, (10, 8, 6, 4)),
        (8, 8, 4, (8, 6, 4)),
    ],
)
@pytest.mark.parametrize("size", [(228, 304), (57, 76), (41, 50), (33, 31), (1, 2)])
def test_output_stride_leaves_out_the_first_widths_of_the_decoder(
    size, output_stride, shrink, grow, widths
):
    model = create_model(
        "upproj", output_stride=output_stride, decoder_features=FEATURES, **TINY
    )
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    depth, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    expected = tuple(grow * math.ceil(n / shrink) for n in size)
    assert depth.shape[1:] == model.output_size(size) == expected
    decoder = variables["params"]["decoder"]
    ups = [f"up{k}" for k in range(1, len(widths))]
    assert set(decoder) == {"conv_in", "bn_in", *ups}
    last = decoder["conv_in"]["kernel"].shape[3]
    assert last == widths[0]
    for name, before, after in zip(ups, widths, widths[1:], strict=False):
        assert decoder[name]["up_main"]["kernel"].shape == (5, 5, before, after)


@pytest.mark.parametrize("layout", ["torchvision", "fcrn"])
def test_the_encoder_of_every_output_stride_has_the_same_parameters(layout):
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)

    def encoder(output_stride):
        model = create_model("upproj", layout=layout, output_stride=output_stride)
        return jax.eval_shape(model.init, jax.random.key(0), image)["params"]["encoder"]

    assert encoder(32) == encoder(16) == encoder(8)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
@pytest.mark.parametrize("size", [(57, 76), (228, 304), (41, 50), (33, 31), (1, 2)])
def test_with_skips_every_map_has_the_size_of_the_encoders(size, output_stride):
    model = create_model(
        "upproj",
        output_stride=output_stride,
        skips=True,
        decoder_features=FEATURES,
        **TINY,
    )
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    depth, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert depth.shape[1:] == model.output_size(size)
    assert model.output_size(size) == tuple(math.ceil(n / 2) for n in size)
    decoder = variables["params"]["decoder"]
    # Channels of the encoder at strides 16, 8, 4 (four times 8, 4 and 2) and 2 (2).
    channels = {32: (32, 16, 8, 2), 16: (16, 8, 2), 8: (8, 2)}[output_stride]
    widths = FEATURES[-len(channels) :]
    for k, shape in enumerate(zip(channels, widths, strict=True), start=1):
        skip = jax.tree.map(lambda p: p.shape, decoder[f"skip{k}"])
        norm = {"scale": shape[1:], "bias": shape[1:]}
        assert skip == {"conv": {"kernel": (1, 1, *shape)}, "bn": norm}
    assert f"skip{len(channels) + 1}" not in decoder


def test_an_up_projection_larger_than_all_maps_of_the_encoder_has_no_skip():
    # Stride 4, then three up-projections: to strides 2, 1 and 1/2.
    fields: dict[str, Any] = {"stage_sizes": (1,), "width": 2, "decoder_in": 4}
    model = create_model("upproj", skips=True, decoder_features=(3, 3, 3), **fields)
    image = jax.ShapeDtypeStruct((1, 9, 14, 3), jnp.float32)
    depth, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert depth.shape[1:] == model.output_size((9, 14)) == (4 * 5, 4 * 7)
    decoder = variables["params"]["decoder"]
    assert {name for name in decoder if "skip" in name} == {"skip1"}


@pytest.mark.parametrize("unpool", ["zero", "average"])
@pytest.mark.parametrize("layout", ["torchvision", "fcrn"])
def test_skips_add_the_normalised_convolution_of_the_encoders_map(layout, unpool):
    """The network equals its modules, called one by one, with sums in NumPy."""
    size = (57, 76) if layout == "torchvision" else (36, 44)
    image = np.random.default_rng(3).normal(size=(2, *size, 3)).astype(np.float32)
    fields: dict[str, Any] = {
        "layout": layout,
        "unpool": unpool,
        "skips": True,
        **SMALL,
    }
    model = create_model("upproj", **fields)
    variables = reference.variables(model, image)
    outputs: dict[str, Any] = {}

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            outputs["/".join(context.module.path)] = result
        return result

    with nn.intercept_methods(record):
        depth: Any = model.apply(variables, image)
    epsilon = {"torchvision": 1e-5, "fcrn": 1e-4}[layout]
    # Strides of `SMALL`: 2 (stem), 4 and 8.
    half, quarter, _ = map(np.float64, outputs["encoder"])
    np.testing.assert_array_equal(quarter, outputs["encoder/stage1_block1"])
    assert half.shape == (2, math.ceil(size[0] / 2), math.ceil(size[1] / 2), 4)
    for k, features in ((1, quarter), (2, half)):
        p, stats = (
            jax.tree.map(np.float64, variables[c]["decoder"][f"skip{k}"])
            for c in ("params", "batch_stats")
        )
        y: Any = features @ p["conv"]["kernel"][0, 0] + p["conv"].get("bias", 0)
        y = (y - stats["bn"]["mean"]) / np.sqrt(stats["bn"]["var"] + epsilon)
        y = y * p["bn"]["scale"] + p["bn"]["bias"]
        up = np.asarray(outputs[f"decoder/up{k}"], np.float64)
        up = up[:, : y.shape[1], : y.shape[2]]
        np.testing.assert_allclose(outputs[f"decoder/skip{k}"], up + y, atol=1e-4)
    # The sum is what the next layer reads.
    assert depth.shape == (2, *half.shape[1:3])
    head = create_model("upproj", **fields).bind(variables).head
    raw = head(outputs["decoder/skip2"])
    np.testing.assert_array_equal(raw, outputs["head"])


def test_skips_are_aligned_with_the_image():
    """A network that moves its input by one cell moves its output likewise."""
    model = create_model("upproj", skips=True, output_stride=8, **SMALL)
    image = np.zeros((1, 177, 194, 3), np.float32)
    variables = reference.variables(model, image)
    images = []
    for shift in (0, 8):
        moved = image.copy()
        moved[:, 80 + shift : 85 + shift, 88 + shift : 92 + shift] = 1
        images.append(moved)
    run: Any = jax.jit(model.apply)
    before, after = (run(variables, one)[0] for one in images)
    # All but the margin, which the edges of the image have an effect on.
    center = before[30:-34, 30:-34]
    np.testing.assert_allclose(after[34:-30, 34:-30], center, atol=1e-4)
    assert np.ptp(center) > 0.1


def test_with_skips_a_frozen_encoder_has_no_gradient():
    model = create_model("upproj", skips=True, freeze="encoder", **SMALL)
    variables = reference.variables(model, IMAGE)

    def loss(params):
        full = variables | {"params": params}
        depth, changed = model.apply(full, IMAGE, train=True, mutable=["batch_stats"])
        return depth.sum(), changed

    gradient, changed = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert not any(jnp.any(g) for g in jax.tree.leaves(gradient["encoder"]))
    assert all(jnp.any(g) for g in jax.tree.leaves(gradient["decoder"]["skip2"]))
    before, after = variables["batch_stats"], changed["batch_stats"]
    same = jax.tree.map(np.array_equal, before, after)
    assert all(jax.tree.leaves(same["encoder"]))
    assert not any(jax.tree.leaves(same["decoder"]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_training_with_skips_in_the_forms_of_accelerators_equals_that_on_cpu(dtype):
    model = create_model("upproj", skips=True, output_stride=8, dtype=dtype, **SMALL)
    variables = reference.variables(model, IMAGE)

    def run():
        return jax.jit(
            lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])
        )(variables, IMAGE)

    expected = run()
    for backend in ("gpu", "tpu"):
        with platform.compiling_for(backend):
            got = run()
        tolerance = 1e-4 if dtype == jnp.float32 else 0.1
        for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def test_the_default_network_is_that_of_the_paper():
    """Names, shapes and initial values, from the version before the options."""
    fields: dict[str, Any] = SMALL | {"stage_sizes": (1, 1, 1, 1)}
    model = create_model("upproj", **fields)
    assert model == create_model("upproj", output_stride=32, skips=False, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGE)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    values = {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in leaves}
    assert len(values) == 74
    sums = {
        "encoder/conv_init/kernel": 47.29714584350586,
        "encoder/stage4_block1/conv2/kernel": 606.702392578125,
        "decoder/conv_in/kernel": 351.86376953125,
        "decoder/up2/up_side/kernel": 49.314334869384766,
        "head/conv/kernel": 0.026047663763165474,
    }
    for name, total in sums.items():
        np.testing.assert_allclose(jnp.sum(jnp.abs(values[name])), total, rtol=1e-5)
