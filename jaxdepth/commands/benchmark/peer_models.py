"""The networks in PyTorch, for comparison. NCHW, with the module names of the JAX ones.

Written from the papers in the style of public ports: torch.nn modules, eager, in-place
ReLUs. The up-convolution is zero unpooling and a dense 5x5 convolution, as in public
ports, or, in tuned networks, one transposed convolution.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxdepth.models import output_size
from jaxdepth.training.state import PyTree, flatten

Size = tuple[int, int]


def _sequential(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


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


def _resnet(stage_sizes: Sequence[int], width: int) -> nn.Sequential:
    """ResNet without average pooling and classifier."""
    modules: dict[str, nn.Module] = {
        "conv_init": _conv(3, width, 7, 2),
        "bn_init": nn.BatchNorm2d(width),
        "relu": nn.ReLU(inplace=True),
        "pool": nn.MaxPool2d(3, 2, padding=1),
    }
    cin = width
    for stage, blocks in enumerate(stage_sizes):
        inner = width * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            name = f"stage{stage + 1}_block{block + 1}"
            modules[name] = Bottleneck(cin, inner, stride, project=block == 0)
            cin = 4 * inner
    return _sequential(**modules)


def unpool(x: Tensor) -> Tensor:
    """Zero unpooling: each entry becomes the upper left of a 2x2 cell of zeros."""
    b, c, h, w = x.shape
    y = x.new_zeros(b, c, 2 * h, 2 * w)
    y[:, :, ::2, ::2] = x
    return y


class UpProjection(nn.Module):
    """Up-projection; both branches share the unpooled input."""

    def __init__(self, cin: int, cout: int, transposed: bool):
        super().__init__()
        self.transposed = transposed
        self.up_main, self.bn_main = self._up(cin, cout), nn.BatchNorm2d(cout)
        self.conv, self.bn = _conv(cout, cout, 3), nn.BatchNorm2d(cout)
        self.up_side, self.bn_side = self._up(cin, cout), nn.BatchNorm2d(cout)

    def _up(self, cin: int, cout: int) -> nn.Module:
        if self.transposed:
            return nn.ConvTranspose2d(cin, cout, 5, 2, 2, output_padding=1, bias=False)
        return _conv(cin, cout, 5)

    def forward(self, x: Tensor) -> Tensor:
        if not self.transposed:
            x = unpool(x)
        main = F.relu(self.bn_main(self.up_main(x)), inplace=True)
        main = self.bn(self.conv(main))
        return F.relu(main + self.bn_side(self.up_side(x)), inplace=True)


def _upproj(
    tuned: bool,
    stage_sizes: Sequence[int],
    width: int,
    decoder_in: int,
    decoder_features: Sequence[int],
) -> nn.Sequential:
    """The network `upproj`: ResNet-50 and up-projections."""
    conv = _conv(width * 2 ** (len(stage_sizes) + 1), decoder_in, 1)
    widths = itertools.pairwise((decoder_in, *decoder_features))
    ups = {
        f"up{k}": UpProjection(*w, transposed=tuned) for k, w in enumerate(widths, 1)
    }
    return _sequential(
        encoder=_resnet(stage_sizes, width),
        decoder=_sequential(conv_in=conv, bn_in=nn.BatchNorm2d(decoder_in), **ups),
        head=nn.Conv2d(decoder_features[-1], 1, 3, padding=1),
    )


def _encoder(
    convs: Sequence[nn.Conv2d], pools: Sequence[int], *, ceil_mode: bool
) -> nn.Sequential:
    """Convolutions with batch normalisation and ReLU; pools after some of them."""
    modules: dict[str, nn.Module] = {}
    for k, conv in enumerate(convs, 1):
        bn, relu = nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)
        modules[f"block{k}"] = _sequential(conv=conv, bn=bn, relu=relu)
        if k in pools:
            modules[f"pool{k}"] = nn.MaxPool2d(2, ceil_mode=ceil_mode)
    return _sequential(**modules)


def _cnn(transposed: bool, features: Sequence[int]) -> nn.Sequential:
    """The networks `cnn` and `cnn_trans`, whose last convolution is transposed."""
    convs = [_conv(cin, cout, 3) for cin, cout in itertools.pairwise((3, *features))]
    encoder = _encoder(convs, (1, 2), ceil_mode=True)
    if not transposed:
        head = nn.Conv2d(features[-1], 1, 3, padding=1)
        return _sequential(encoder=encoder, head=head)
    pool = nn.MaxPool2d(2, ceil_mode=True)
    head = nn.ConvTranspose2d(features[-1], 1, 3, 2, 1, output_padding=1)
    return _sequential(encoder=encoder, pool=pool, head=head)


def _cnn_fc(
    image_size: Size, out: Size, features: Sequence[int], hidden: int
) -> nn.Sequential:
    """The network `cnn_fc` for one input size."""
    first, second, *others = itertools.pairwise((3, *features))
    convs = [nn.Conv2d(*first, 11, stride=4, bias=False), _conv(*second, 5)]
    convs += [_conv(*widths, 3) for widths in others]
    encoder = _encoder(convs, (1, 2, len(features)), ceil_mode=False)
    with torch.no_grad():  # eval, because the image is a single one
        values = encoder.eval()(torch.zeros(1, 3, *image_size)).numel()
    return _sequential(
        encoder=encoder.train(),
        flatten=nn.Flatten(),
        decoder=nn.Linear(values, hidden),
        relu=nn.ReLU(inplace=True),
        drop=nn.Dropout(0.5),
        head=nn.Linear(hidden, out[0] * out[1]),
        unflatten=nn.Unflatten(1, (1, *out)),
    )


class Depth(nn.Module):
    """Normalised images to metres, (b, *out) float32, with softplus."""

    def __init__(self, network: nn.Module, out: Size):
        super().__init__()
        self.network, self.out = network, out

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.out
        return F.softplus(self.network(x)[:, 0, :height, :width].float())


def create(arch: str, image_size: Size, *, tuned: bool, **widths: Any) -> nn.Module:
    """The counterpart of `jaxdepth.models.create_model`.

    Args:
      tuned: use transposed convolutions in `upproj`.
      **widths: fields of the JAX network, see `NetworkSettings.widths`.
    """
    out = output_size(arch, image_size)
    if arch == "upproj":
        network = _upproj(tuned, **widths)
    elif arch == "cnn_fc":
        network = _cnn_fc(image_size, out, **widths)
    else:
        network = _cnn(arch == "cnn_trans", **widths)
    return Depth(network, out)


def load(model: nn.Module, variables: PyTree) -> None:
    """Copy JAX parameters and batch statistics into a PyTorch network.

    Raises: AttributeError, KeyError or RuntimeError unless the names correspond.
    """
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    names |= {"mean": "running_mean", "var": "running_var"}
    state = {}
    for collection in ("params", "batch_stats"):
        for path, value in flatten(variables.get(collection, {})).items():
            path = path.replace("head/conv/", "head/").replace("/", ".")
            owner, _, leaf = f"network.{path}".rpartition(".")
            module, array = model.get_submodule(owner), np.asarray(value)
            if leaf == "kernel":
                if owner == "network.decoder":
                    array = _flattened_as_chw(array, model)
                array = _weight(module, array)
            state[f"{owner}.{names[leaf]}"] = torch.tensor(np.ascontiguousarray(array))
    counters = [k for k in model.state_dict() if k.endswith("num_batches_tracked")]
    model.load_state_dict(state | {k: torch.tensor(0) for k in counters})


def _weight(module: nn.Module, kernel: np.ndarray) -> np.ndarray:
    """The module's weight from a kernel (h, w, cin, cout) or (cin, cout)."""
    if isinstance(module, nn.Linear):
        return kernel.T
    if isinstance(module, nn.ConvTranspose2d):
        return kernel[::-1, ::-1].transpose(2, 3, 0, 1)
    return kernel.transpose(3, 2, 0, 1)


def _flattened_as_chw(kernel: np.ndarray, model: nn.Module) -> np.ndarray:
    """Reorder a kernel's inputs: JAX flattens (h, w, c), PyTorch (c, h, w)."""
    *_, last = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    cin, cout = kernel.shape
    return kernel.reshape(-1, last.num_features, cout).swapaxes(0, 1).reshape(cin, cout)
