"""The residual network and the up-projections in PyTorch, with Flax's parameters.

Written from the papers with torch.nn.functional, in NCHW. It shares only the names of
parameters with the package.
"""

from typing import Any

import numpy as np

Tree = dict[str, Any]


def variables(model: Any, image: np.ndarray, seed: int = 0) -> Tree:
    """Random parameters and statistics of a network, all with an effect on the output.

    No bias, scale or statistic is 0 or 1, and the head's kernel is not small, unlike in
    an untrained network.
    """
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            deviation = (2 / np.prod(leaf.shape[:-1])) ** 0.5
            values = rng.normal(scale=deviation, size=leaf.shape)
        elif name in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values = rng.normal(scale=0.3, size=leaf.shape)
        return jnp.asarray(values, jnp.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return jax.tree_util.tree_map_with_path(fill, shapes)


def tensor(array) -> Any:
    import torch

    return torch.from_numpy(np.array(array))


def conv(x, params: Tree, stride: int = 1):
    import torch

    kernel = tensor(params["kernel"]).permute(3, 2, 0, 1)
    bias = tensor(params["bias"]) if "bias" in params else None
    pad = (kernel.shape[2] - 1) // 2
    return torch.nn.functional.conv2d(x, kernel, bias, stride, pad)


def bn(x, params: Tree, stats: Tree, epsilon: float):
    import torch

    return torch.nn.functional.batch_norm(
        x,
        tensor(stats["mean"]),
        tensor(stats["var"]),
        tensor(params["scale"]),
        tensor(params["bias"]),
        eps=epsilon,
    )


def bottleneck(x, p: Tree, s: Tree, *, stride: int, first: bool, epsilon: float):
    """Bottleneck; `first`: the stride is in the first 1x1 (v1), not the 3x3 (v1.5)."""
    strides = (stride, 1) if first else (1, stride)
    y = bn(conv(x, p["conv1"], strides[0]), p["bn1"], s["bn1"], epsilon).relu()
    y = bn(conv(y, p["conv2"], strides[1]), p["bn2"], s["bn2"], epsilon).relu()
    y = bn(conv(y, p["conv3"]), p["bn3"], s["bn3"], epsilon)
    if "conv_proj" in p:
        x = bn(conv(x, p["conv_proj"], stride), p["bn_proj"], s["bn_proj"], epsilon)
    return (x + y).relu()


def resnet(image, p: Tree, s: Tree, *, stages, first: bool, same: bool, epsilon: float):
    """Encoder; `same`: the pool is padded at the end only, not on all sides."""
    import torch

    x = tensor(image).permute(0, 3, 1, 2)
    x = bn(conv(x, p["conv_init"], 2), p["bn_init"], s["bn_init"], epsilon).relu()
    if same:
        assert x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        x = torch.nn.functional.pad(x, (0, 1, 0, 1), value=-float("inf"))
        x = torch.nn.functional.max_pool2d(x, 3, 2)
    else:
        x = torch.nn.functional.max_pool2d(x, 3, 2, padding=1)
    for i, blocks in enumerate(stages):
        for j in range(blocks):
            name = f"stage{i + 1}_block{j + 1}"
            stride = 2 if i > 0 and j == 0 else 1
            x = bottleneck(
                x, p[name], s[name], stride=stride, first=first, epsilon=epsilon
            )
    return x


def up_dense(x, params: Tree):
    """Zero unpooling and 5x5 convolution, as PyTorch's transposed convolution."""
    import torch

    rotated = np.array(params["kernel"])[::-1, ::-1].copy()
    return torch.nn.functional.conv_transpose2d(
        x,
        tensor(rotated).permute(2, 3, 0, 1),
        stride=2,
        padding=2,
        output_padding=1,
    )


def up_published(x, params: Tree):
    """Four convolutions with biases, padded at the top and left, interleaved."""
    import torch

    kernel, bias = np.array(params["kernel"]), np.array(params["bias"])
    b, _, h, w = x.shape
    out = torch.zeros(b, kernel.shape[3], 2 * h, 2 * w)
    for r in (0, 1):
        for s in (0, 1):
            part = tensor(kernel[r::2, s::2].copy()).permute(3, 2, 0, 1)
            # left, right, top, bottom
            padded = torch.nn.functional.pad(x, (1, 1 - s, 1, 1 - r))
            y = torch.nn.functional.conv2d(padded, part, tensor(bias[r, s]))
            out[:, :, r::2, s::2] = y
    return out


def decoder(x, p: Tree, s: Tree, *, up, blocks: int, epsilon: float):
    x = bn(conv(x, p["conv_in"]), p["bn_in"], s["bn_in"], epsilon)
    for k in range(blocks):
        q, t = p[f"up{k + 1}"], s[f"up{k + 1}"]
        main = bn(up(x, q["up_main"]), q["bn_main"], t["bn_main"], epsilon).relu()
        main = bn(conv(main, q["conv"]), q["bn"], t["bn"], epsilon)
        side = bn(up(x, q["up_side"]), q["bn_side"], t["bn_side"], epsilon)
        x = (main + side).relu()
    return x
