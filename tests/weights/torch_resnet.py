"""torchvision's ResNet-50 in PyTorch's functional ops, and random weights for it."""

import numpy as np

STAGES = (3, 4, 6, 3)


def random_state_dict(seed: int, *, classes: int = 1000) -> dict[str, np.ndarray]:
    """Random weights and statistics with torchvision's names and shapes."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}

    def conv(name, out, cin, k):
        scale = np.sqrt(2 / (cin * k * k))
        arrays[f"{name}.weight"] = (rng.normal(size=(out, cin, k, k)) * scale).astype(
            "f4"
        )

    def norm(name, width, gain=1.0):
        arrays[f"{name}.weight"] = (gain * rng.uniform(0.5, 1.5, width)).astype("f4")
        arrays[f"{name}.bias"] = rng.normal(0, 0.1, width).astype("f4")
        arrays[f"{name}.running_mean"] = rng.normal(0, 0.1, width).astype("f4")
        arrays[f"{name}.running_var"] = rng.uniform(0.5, 2, width).astype("f4")
        arrays[f"{name}.num_batches_tracked"] = np.array(3, np.int64)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    width = 64
    for stage, blocks in enumerate(STAGES, start=1):
        inner = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for k, (out, cin, size) in enumerate(
                ((inner, width, 1), (inner, inner, 3), (4 * inner, inner, 1)), start=1
            ):
                conv(f"{name}.conv{k}", out, cin, size)
                norm(f"{name}.bn{k}", out, 0.3 if k == 3 else 1.0)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * inner, width, 1)
                norm(f"{name}.downsample.1", 4 * inner)
            width = 4 * inner
    arrays["fc.weight"] = (rng.normal(size=(classes, 2048)) * 0.02).astype("f4")
    arrays["fc.bias"] = rng.normal(0, 0.1, classes).astype("f4")
    return arrays


def forward(state_dict, image: np.ndarray, *, train: bool = False):
    """Outputs of every stage (NHWC), logits, and the updated statistics.

    image: (b, 3, h, w). Statistics are biased, as in our networks: the factor
    n / (n - 1) that PyTorch applies to the variance of a batch is removed.
    """
    import torch
    import torch.nn.functional as F

    w = {k: torch.tensor(np.asarray(v)) for k, v in state_dict.items()}
    stats: dict[str, np.ndarray] = {}
    outputs: list[np.ndarray] = []

    def norm(x, name):
        mean, var = w[f"{name}.running_mean"].clone(), w[f"{name}.running_var"].clone()
        before = var.clone()
        y = F.batch_norm(
            x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], train, 0.1, 1e-5
        )
        if train:
            n = x.numel() // x.shape[1]
            var = 0.9 * before + (var - 0.9 * before) * (n - 1) / n
        stats[f"{name}.running_mean"] = mean.numpy()
        stats[f"{name}.running_var"] = var.numpy()
        return y

    def conv(x, name, stride=1, padding=0):
        return F.conv2d(x, w[f"{name}.weight"], stride=stride, padding=padding)

    with torch.no_grad():
        x = torch.tensor(image)
        x = F.relu(norm(conv(x, "conv1", 2, 3), "bn1"))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage, blocks in enumerate(STAGES, start=1):
            for block in range(blocks):
                name = f"layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = F.relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
                y = F.relu(norm(conv(y, f"{name}.conv2", stride, 1), f"{name}.bn2"))
                y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
                if block == 0:
                    x = norm(
                        conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1"
                    )
                x = F.relu(x + y)
            outputs.append(x.permute(0, 2, 3, 1).numpy())
        logits = F.linear(x.mean((2, 3)), w["fc.weight"], w["fc.bias"]).numpy()
    return outputs, logits, stats
