"""The networks in PyTorch, for comparison. NCHW, with the module names of the JAX ones.

Written from the papers in the style of public ports: torch.nn modules, eager, in-place
ReLUs. `up` is the form of the up-convolution: "unpool", zero unpooling and a dense 5x5
convolution, as in published ports; "transposed", one transposed convolution; "phases",
four small convolutions with interleaved outputs.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxdepth.models import output_size
from jaxdepth.training.state import PyTree, flatten


def _conv(cin: int, cout: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, size, stride, (size - 1) // 2, bias=False)


class Bottleneck(nn.Module):
    """Bottleneck block of ResNet v1.5, with the stride in the 3x3 convolution."""

    def __init__(self, cin: int, width: int, stride: int, project: bool):
        super().__init__()
        self.conv1, self.bn1 = _conv(cin, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.project = project
        if project:
            self.conv_proj = _conv(cin, 4 * width, 1, stride)
            self.bn_proj = nn.BatchNorm2d(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        if self.project:
            x = self.bn_proj(self.conv_proj(x))
        return F.relu(x + y, inplace=True)


class ResNet(nn.Module):
    """ResNet without average pooling and classifier."""

    def __init__(self, stage_sizes: tuple[int, ...], width: int):
        super().__init__()
        self.conv_init, self.bn_init = _conv(3, width, 7, 2), nn.BatchNorm2d(width)
        self.names: list[str] = []
        channels = width
        for stage, blocks in enumerate(stage_sizes):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                inner = width * 2**stage
                name = f"stage{stage + 1}_block{block + 1}"
                part = Bottleneck(channels, inner, stride, block == 0)
                self.add_module(name, part)
                self.names.append(name)
                channels = 4 * inner
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_init(self.conv_init(x)), inplace=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x


class Phases(nn.Module):
    """Up-convolution as four phases."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cout, cin, 5, 5))
        nn.init.kaiming_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return phases(x, self.weight)


def phases(x: Tensor, weight: Tensor) -> Tensor:
    """Zero unpooling and 5x5 convolution as four convolutions.

    Args:
      weight: (cout, cin, 5, 5).
    """
    # Padding is left, right, top, bottom: even outputs read one more input before.
    parts = [
        F.conv2d(F.pad(x, (1 - s, 1, 1 - r, 1)), weight[:, :, r::2, s::2])
        for r in (0, 1)
        for s in (0, 1)
    ]
    return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), 2)


def _up(kind: str, cin: int, cout: int) -> nn.Module:
    if kind == "unpool":
        return _conv(cin, cout, 5)
    if kind == "phases":
        return Phases(cin, cout)
    return nn.ConvTranspose2d(
        cin, cout, 5, stride=2, padding=2, output_padding=1, bias=False
    )


def unpool(x: Tensor) -> Tensor:
    """Zero unpooling: each entry becomes the upper left of a 2x2 cell of zeros."""
    b, c, h, w = x.shape
    y = x.new_zeros(b, c, 2 * h, 2 * w)
    y[:, :, ::2, ::2] = x
    return y


class UpProjection(nn.Module):
    """Up-projection; both branches share the unpooled input."""

    def __init__(self, kind: str, cin: int, cout: int):
        super().__init__()
        self.kind = kind
        self.up_main, self.bn_main = _up(kind, cin, cout), nn.BatchNorm2d(cout)
        self.conv, self.bn = _conv(cout, cout, 3), nn.BatchNorm2d(cout)
        self.up_side, self.bn_side = _up(kind, cin, cout), nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "unpool":
            x = unpool(x)
        main = F.relu(self.bn_main(self.up_main(x)), inplace=True)
        main = self.bn(self.conv(main))
        return F.relu(main + self.bn_side(self.up_side(x)), inplace=True)


class Decoder(nn.Module):
    """1x1 convolution and up-projections."""

    def __init__(self, kind: str, cin: int, inner: int, features: tuple[int, ...]):
        super().__init__()
        self.conv_in, self.bn_in = _conv(cin, inner, 1), nn.BatchNorm2d(inner)
        self.names: list[str] = []
        for k, cout in enumerate(features):
            self.names.append(f"up{k + 1}")
            self.add_module(self.names[-1], UpProjection(kind, inner, cout))
            inner = cout

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn_in(self.conv_in(x))
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, cin: int, cout: int, size: int = 3, **options: Any):
        super().__init__()
        options = {"padding": (size - 1) // 2} | options
        self.conv = nn.Conv2d(cin, cout, size, bias=False, **options)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Blocks(nn.Module):
    """Convolutions `block1`, ..., some followed by 2x2 max-pooling."""

    def __init__(
        self, features: tuple[int, ...], pooled: set[int], *, ceil: bool, fc: bool
    ):
        super().__init__()
        self.pooled, self.ceil, self.names = pooled, ceil, []
        cin = 3
        for k, cout in enumerate(features):
            size = (11 if k == 0 else 5 if k == 1 else 3) if fc else 3
            options = {"stride": 4, "padding": 0} if fc and k == 0 else {}
            self.names.append(f"block{k + 1}")
            self.add_module(self.names[-1], ConvBlock(cin, cout, size, **options))
            cin = cout

    def forward(self, x: Tensor) -> Tensor:
        for k, name in enumerate(self.names):
            x = self.get_submodule(name)(x)
            if k in self.pooled:
                x = F.max_pool2d(x, 2, ceil_mode=self.ceil)
        return x


class UpProj(nn.Module):
    """The network `upproj`: ResNet-50 and up-projections."""

    def __init__(
        self,
        up: str,
        *,
        stage_sizes: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        decoder_in: int = 1024,
        decoder_features: tuple[int, ...] = (512, 256, 128, 64),
    ):
        super().__init__()
        self.encoder = ResNet(stage_sizes, width)
        channels = self.encoder.channels
        self.decoder = Decoder(up, channels, decoder_in, decoder_features)
        self.head = nn.Conv2d(decoder_features[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder(self.encoder(x)))


class CNN(nn.Module):
    """The networks `cnn` and `cnn_trans`, whose last convolution is transposed."""

    def __init__(
        self,
        *,
        transposed: bool,
        features: tuple[int, ...] = (32, 64, 128, 128, 128, 128, 256),
        pools: int = 2,
    ):
        super().__init__()
        self.encoder = Blocks(features, set(range(pools)), ceil=True, fc=False)
        self.transposed = transposed
        if transposed:
            self.head = nn.ConvTranspose2d(features[-1], 1, 3, 2, 1, output_padding=1)
        else:
            self.head = nn.Conv2d(features[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        height, width = x.shape[2:]
        if self.transposed:
            x = F.max_pool2d(x, 2, ceil_mode=True)
        return self.head(x)[:, :, :height, :width]


class CNNFC(nn.Module):
    """The network `cnn_fc` for one input size."""

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        features: tuple[int, ...] = (96, 256, 384, 384, 256),
        hidden: int = 4096,
        dropout: float = 0.5,
    ):
        super().__init__()
        last = len(features) - 1
        self.encoder = Blocks(features, {0, 1, last}, ceil=False, fc=True)
        self.out = output_size("cnn_fc", image_size)
        with torch.no_grad():
            # Shape after the last pool; eval, because the image is a single one.
            grid = self.encoder.eval()(torch.zeros(1, 3, *image_size)).shape[1:]
        self.encoder.train()
        self.grid: tuple[int, ...] = tuple(grid)
        self.decoder = nn.Linear(int(np.prod(grid)), hidden)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, self.out[0] * self.out[1])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.decoder(self.encoder(x).flatten(1)), inplace=True)
        return self.head(self.drop(x)).unflatten(1, (1, *self.out))


class Depth(nn.Module):
    """Normalised images to metres, (b, i, j) float32, with softplus."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.network(x)[:, 0].float())


def create(
    arch: str, image_size: tuple[int, int], *, up: str = "unpool", **widths: Any
) -> nn.Module:
    """The counterpart of `jaxdepth.models.create_model`."""
    if arch == "upproj":
        network = UpProj(up, **widths)
    elif arch == "cnn_fc":
        network = CNNFC(image_size, **widths)
    else:
        network = CNN(transposed=arch == "cnn_trans", **widths)
    return Depth(network)


def load(model: nn.Module, variables: PyTree) -> None:
    """Copy JAX parameters and batch statistics into a PyTorch network.

    Raises: AttributeError, KeyError or RuntimeError unless the names correspond.
    """
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    names |= {"mean": "running_mean", "var": "running_var"}
    network = model.get_submodule("network")
    state = {}
    for collection in ("params", "batch_stats"):
        for path, value in flatten(variables.get(collection, {})).items():
            owner, _, leaf = path.replace("head/conv/", "head/").rpartition("/")
            module = network.get_submodule(owner.replace("/", "."))
            array = np.asarray(value)
            if leaf == "kernel":
                grid = getattr(network, "grid", None) if owner == "decoder" else None
                array = _weight(module, array, grid)
            key = f"network.{owner.replace('/', '.')}.{names[leaf]}"
            state[key] = torch.tensor(np.ascontiguousarray(array))
    counters = [k for k in model.state_dict() if k.endswith("num_batches_tracked")]
    model.load_state_dict(state | {k: torch.tensor(0) for k in counters})


def _weight(module: nn.Module, kernel: np.ndarray, grid: tuple[int, ...] | None):
    """The module's weight from a kernel (h, w, cin, cout) or (cin, cout)."""
    if isinstance(module, nn.Linear):
        if grid is not None:  # JAX flattens (h, w, c), PyTorch (c, h, w)
            c, h, w = grid
            kernel = kernel.reshape(h, w, c, -1).transpose(2, 0, 1, 3)
            kernel = kernel.reshape(c * h * w, -1)
        return kernel.T
    if isinstance(module, nn.ConvTranspose2d):
        return kernel[::-1, ::-1].transpose(2, 3, 0, 1)
    return kernel.transpose(3, 2, 0, 1)
