from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.models import create_model
from jaxdepth.models.cnn import CNNFC, max_pool_up
from jaxdepth.runtime.errors import UserError

from . import reference

SMALL_CNN: dict[str, Any] = {"features": (2, 3, 4, 4, 4, 4, 5)}
SMALL_FC = {"features": (4, 5, 3, 3, 4), "hidden": 8}


def kernels(params) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(leaf.size for path, leaf in leaves if path[-1].key == "kernel")


def shapes(model, size=(228, 304)):
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), image)


def test_cnn_fc_has_the_counts_of_eigens_coarse_network():
    depth, variables = shapes(create_model("cnn_fc"))
    assert depth.shape == (2, 55, 74)
    params = variables["params"]
    assert kernels(params["encoder"]) == 3_745_824
    assert kernels((params["decoder"], params["head"])) == 73_293_824
    assert params["decoder"]["kernel"].shape == (6 * 9 * 256, 4096)


def test_cnn_fc_sizes_its_layers_by_image_size():
    model = create_model("cnn_fc", image_size=(96, 128), **SMALL_FC)
    depth, variables = shapes(model, (96, 128))
    assert depth.shape == (2, 22, 30)
    assert variables["params"]["head"]["kernel"].shape == (8, 22 * 30)


def test_cnn_fc_rejects_another_size():
    with pytest.raises(UserError, match="built for 96x128 and got 95x128"):
        shapes(CNNFC(image_size=(96, 128), **SMALL_FC), (95, 128))


def test_cnn_fc_rejects_sizes_below_39():
    smallest = create_model("cnn_fc", image_size=(39, 39), **SMALL_FC)
    assert shapes(smallest, (39, 39))[0].shape == (2, 8, 8)
    with pytest.raises(UserError, match="at least 39x39"):
        create_model("cnn_fc", image_size=(38, 100))


@pytest.mark.parametrize("arch", ["cnn", "cnn_trans"])
def test_cnn_has_eight_convolutions_of_3x3(arch):
    depth, variables = shapes(create_model(arch))
    assert depth.shape == (2, 57, 76)
    kernel_shapes = [
        leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[-1].key == "kernel"
    ]
    assert len(kernel_shapes) == 8
    assert {shape[:2] for shape in kernel_shapes} == {(3, 3)}
    assert set(variables["params"]) == {"encoder", "head"}


def pooled(x):
    """2x2 maxima of (h, w); an odd last row or column is kept."""
    h, w = x.shape
    return np.array(
        [
            [x[i : i + 2, j : j + 2].max() for j in range(0, w, 2)]
            for i in range(0, h, 2)
        ]
    )


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 3)])
def test_pool_rounds_up(size):
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    got = max_pool_up(jnp.array(x)[None, :, :, None])[0, :, :, 0]
    np.testing.assert_array_equal(got, pooled(x))


def torch_block(x, params, stats, stride=1, padding=None):
    import torch

    kernel = reference.tensor(params["conv"]["kernel"]).permute(3, 2, 0, 1)
    pad = (kernel.shape[2] - 1) // 2 if padding is None else padding
    y = torch.nn.functional.conv2d(x, kernel, None, stride, pad)
    return reference.bn(y, params["bn"], stats["bn"], 1e-5).relu()


def torch_softplus(raw):
    import torch

    return torch.nn.functional.softplus(raw).numpy()


def variables_and_image(model, size):
    """Random variables and a random image."""
    image = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    return reference.variables(model, image), image


@pytest.mark.parametrize("arch", ["cnn", "cnn_trans"])
def test_cnn_equals_the_same_network_in_pytorch(arch):
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    functional = torch.nn.functional
    model = create_model(arch, **SMALL_CNN)
    variables, image = variables_and_image(model, (18, 27))
    params, stats = variables["params"], variables["batch_stats"]["encoder"]
    x = reference.tensor(image).permute(0, 3, 1, 2)
    for k in range(7):
        name = f"block{k + 1}"
        x = torch_block(x, params["encoder"][name], stats[name])
        if k < 2:
            x = functional.max_pool2d(x, 2, ceil_mode=True)
    assert x.shape[2:] == (5, 7)
    if arch == "cnn":
        raw = reference.conv(x, params["head"]["conv"])
    else:
        x = functional.max_pool2d(x, 2, ceil_mode=True)
        rotated = params["head"]["kernel"][::-1, ::-1].copy()
        raw = functional.conv_transpose2d(
            x,
            reference.tensor(rotated).permute(2, 3, 0, 1),
            stride=2,
            padding=1,
            output_padding=1,
        )[:, :, :5, :7]
    expected = torch_softplus(raw[:, 0] + float(params["head"]["bias"][0]))
    got = jax.jit(model.apply)(variables, image)
    assert np.std(got) > 0.05
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_cnn_fc_equals_the_same_network_in_pytorch():
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    size = (44, 60)
    model = create_model("cnn_fc", image_size=size, **SMALL_FC)
    variables, image = variables_and_image(model, size)
    params, stats = variables["params"], variables["batch_stats"]["encoder"]
    x = reference.tensor(image).permute(0, 3, 1, 2)
    for k in range(5):
        name = f"block{k + 1}"
        stride, padding = (4, 0) if k == 0 else (1, None)
        x = torch_block(x, params["encoder"][name], stats[name], stride, padding)
        if k in (0, 1, 4):
            x = torch.nn.functional.max_pool2d(x, 2)
    # Flax flattens NHWC: rows, columns, channels.
    flat = x.permute(0, 2, 3, 1).reshape(2, -1).numpy()
    dense, head = params["decoder"], params["head"]
    hidden = np.maximum(flat @ dense["kernel"] + dense["bias"][None], 0)
    raw = hidden @ head["kernel"] + head["bias"][None]
    expected = np.log1p(np.exp(raw)).reshape(2, 9, 13)
    got = jax.jit(model.apply)(variables, image)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_cnn_fc_uses_dropout_in_training_by_default():
    size = (40, 40)
    model = create_model("cnn_fc", image_size=size, **SMALL_FC)
    variables, image = variables_and_image(model, size)

    @jax.jit
    def apply(keys):
        return model.apply(
            variables, image, train=True, keys=keys, mutable=["batch_stats"]
        )[0]

    one, other = (apply(jax.random.split(jax.random.key(k), 2)) for k in (0, 1))
    assert not np.allclose(one, other)
    with pytest.raises(UserError, match="keys="):
        apply(None)
