import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.config import Config, ModelConfig
from jaxdepth.models import ARCHS, create, create_model, output_size
from jaxdepth.models.upproj import UpProj
from jaxdepth.runtime.errors import UserError

SIZE = (41, 50)
SMALL = {
    "upproj": {
        "stage_sizes": (1,),
        "width": 2,
        "decoder_in": 4,
        "decoder_features": (3,),
    },
    "cnn_fc": {"features": (2, 3, 3, 3, 2), "hidden": 4, "image_size": SIZE},
    "cnn": {"features": (2, 3, 3, 3, 3, 3, 4)},
    "cnn_trans": {"features": (2, 3, 3, 3, 3, 3, 4)},
}
VARIANTS = [("upproj", "fcrn"), *((arch, "torchvision") for arch in ARCHS)]


def small(arch, layout="torchvision", **fields):
    return create_model(arch, layout=layout, **(SMALL[arch] | fields))


@functools.cache
def initialized(arch, layout="torchvision"):
    """An image and the variables of a small network."""
    image = np.random.default_rng(0).normal(size=(4, *SIZE, 3)).astype(np.float32)
    return image, jax.jit(small(arch, layout).init)(jax.random.key(0), image)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("size", [(228, 304), (97, 131), (96, 128), (45, 62)])
def test_output_size_is_that_of_the_network(arch, size):
    model = create_model(arch, image_size=size)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    depth, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert depth.shape[1:] == output_size(arch, size)


def test_output_sizes_at_the_usual_input():
    sizes = {arch: output_size(arch, (228, 304)) for arch in ARCHS}
    assert sizes == {
        "cnn_fc": (55, 74),
        "cnn": (57, 76),
        "cnn_trans": (57, 76),
        "upproj": (128, 160),
    }


@pytest.mark.parametrize("arch, layout", VARIANTS)
def test_an_untrained_network_predicts_init_depth(arch, layout):
    image, variables = initialized(arch, layout)
    depth = jax.jit(small(arch, layout).apply)(variables, image)
    assert depth.dtype == jnp.float32
    np.testing.assert_allclose(depth, 2.7, atol=0.1)
    other = small(arch, layout, init_depth=1.3)
    variables = jax.jit(other.init)(jax.random.key(0), image)
    np.testing.assert_allclose(jax.jit(other.apply)(variables, image), 1.3, atol=0.1)


@pytest.mark.parametrize("arch, layout", VARIANTS)
def test_very_negative_raw_outputs_give_finite_depth_and_gradients(arch, layout):
    image, variables = initialized(arch, layout)
    params = dict(variables["params"])
    params["head"] = params["head"] | {
        "bias": jnp.full_like(params["head"]["bias"], -200.0)
    }
    model = small(arch, layout, dropout=0.0)

    def loss(params):
        depth, _ = model.apply(
            variables | {"params": params}, image, train=True, mutable=["batch_stats"]
        )
        # The scale-invariant loss clips predictions in the same way.
        return jnp.log(jnp.maximum(depth, 1e-3)).mean() + (depth**2).mean(), depth

    (_, depth), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert jnp.isfinite(depth).all() and (depth < 1e-3).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("arch", ARCHS)
def test_bfloat16_keeps_parameters_statistics_and_depth_in_float32(arch):
    model = small(arch, dtype=jnp.bfloat16, dropout=0.0)
    image = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    depth, changed = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]),
        variables,
        image,
    )
    for leaf in jax.tree.leaves((variables, depth, changed)):
        assert leaf.dtype == jnp.float32
    text = str(jax.make_jaxpr(model.apply)(*jax.tree.map(_zeros, (variables, image))))
    assert "bf16" in text


def _zeros(leaf):
    return jnp.zeros(leaf.shape, leaf.dtype)


@pytest.mark.parametrize("arch", ARCHS)
def test_collections_are_params_and_batch_stats(arch):
    _, variables = initialized(arch)
    assert set(variables) == {"params", "batch_stats"}
    assert {"encoder", "head"} <= set(variables["params"])


@pytest.mark.parametrize("arch", ["upproj", "cnn"])
@pytest.mark.parametrize(
    "freeze, frozen", [("encoder", ("encoder",)), ("bn_stats", ("encoder", "decoder"))]
)
def test_frozen_statistics_are_used_and_kept(arch, freeze, frozen):
    image, variables = initialized(arch)
    image = image[:2]
    model = small(arch, freeze=freeze)
    depth, changed = jax.jit(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])
    )(variables, image)
    before, after = variables["batch_stats"], changed.get("batch_stats", {})
    for part in before:
        same = jax.tree.map(np.array_equal, before[part], after.get(part, before[part]))
        assert all(jax.tree.leaves(same)) == (part in frozen)
    if freeze == "bn_stats":
        inference = jax.jit(small(arch).apply)(variables, image)
        np.testing.assert_allclose(depth, inference, rtol=5e-5)


def test_devices_with_shared_statistics_equal_one_batch():
    image, variables = initialized("cnn")

    def train(model, image):
        return model.apply(variables, image, train=True, mutable=["batch_stats"])

    expected, expected_stats = jax.jit(lambda x: train(small("cnn"), x))(image)
    model = small("cnn", bn_axis="data")
    got, stats = jax.pmap(lambda x: train(model, x), axis_name="data")(
        image.reshape(2, 2, *image.shape[1:])
    )
    np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=5e-5)
    for one, other in zip(
        jax.tree.leaves(stats), jax.tree.leaves(expected_stats), strict=True
    ):
        np.testing.assert_allclose(one[0], other, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(one[0], one[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"arch": "resnet"},
            "arch=resnet: expected one of cnn_fc, cnn, cnn_trans, u",
        ),
        ({"layout": "caffe"}, "layout=caffe: expected one of torchvision, fcrn"),
        ({"unpool": "max"}, "unpool=max: expected one of zero, average"),
        ({"upconv": "fast"}, "upconv=fast: expected one of auto, plain"),
        ({"freeze": "head"}, "freeze=head: expected one of none, encoder, bn_stats"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"arch": "cnn", "layout": "fcrn"}, "layout of upproj"),
        ({"arch": "cnn", "unpool": "average"}, "no unpooling"),
        ({"output_stride": 12}, "output_stride=12: expected one of 32, 16, 8"),
        ({"arch": "cnn", "output_stride": 8}, "output_stride=8: cnn has no ResNet"),
        ({"arch": "cnn_fc", "skips": True}, "skips: cnn_fc has no decoder"),
    ],
)
def test_wrong_arguments_are_reported(arguments, message):
    with pytest.raises(UserError, match=message):
        create_model(**arguments)


def test_output_size_of_an_unknown_arch_is_an_error():
    with pytest.raises(UserError, match="one of cnn_fc"):
        output_size("vgg", (228, 304))


def test_width_and_stage_sizes_of_a_configuration():
    config = ModelConfig(size="57x76", dropout=0.0, width=16, stage_sizes="2,1,1")
    model = create(config)
    assert isinstance(model, UpProj)
    assert (model.width, model.stage_sizes) == (16, (2, 1, 1))
    assert (model.decoder_in, model.decoder_features) == (256, (128, 64, 32, 16))
    other = create(dataclasses.replace(config, output_stride=8, skips=True))
    assert isinstance(other, UpProj)
    assert (other.output_stride, other.skips) == (8, True)
    default = create(ModelConfig(size="57x76", dropout=0.0))
    assert default == create_model("upproj", dropout=0.0, image_size=(57, 76))


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"stage_sizes": "3,4,"}, "stage_sizes=3,4,: expected the number of blocks"),
        ({"width": 32, "arch": "cnn"}, "cnn has no ResNet"),
        (
            {"width": 32, "init": "imagenet", "weights": "resnet.safetensors"},
            "init=imagenet: the weights are those of ResNet-50",
        ),
        ({"skips": True, "arch": "cnn"}, "skips: cnn has no decoder"),
        ({"output_stride": 4}, "output_stride=4"),
        ({"output_stride": 24}, "output_stride=24: expected one of 32, 16, 8"),
        ({"output_stride": 16, "arch": "cnn_fc"}, "cnn_fc has no ResNet"),
        (
            {
                "output_stride": 16,
                "layout": "fcrn",
                "init": "nyu",
                "weights": "fcrn.safetensors",
            },
            "init=nyu: .*output stride 32",
        ),
        (
            {
                "skips": True,
                "layout": "fcrn",
                "init": "nyu",
                "weights": "fcrn.safetensors",
            },
            "init=nyu: .*without skip connections",
        ),
    ],
)
def test_wrong_flags_of_the_network(flags, message):
    with pytest.raises(UserError, match=message):
        Config.of(**flags)
