import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.models import create_model
from jaxdepth.ops.upconv import FORMS

from . import reference

SMALL = {
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


TINY = {"stage_sizes": (1, 1, 1, 1), "width": 2, "decoder_in": 12}
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
