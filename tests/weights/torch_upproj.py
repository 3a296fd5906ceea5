"""`upproj` in plain PyTorch, for loading exported weights."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(cin, out, k, stride=1, *, bias=False):
    return nn.Conv2d(cin, out, k, stride, (k - 1) // 2, bias=bias)


class Bottleneck(nn.Module):
    def __init__(self, cin, width, stride, layout, *, project):
        super().__init__()
        first, middle = (stride, 1) if layout.stride_in == "1x1" else (1, stride)
        eps = layout.bn_epsilon
        self.conv1 = conv(cin, width, 1, first)
        self.bn1 = nn.BatchNorm2d(width, eps)
        self.conv2 = conv(width, width, 3, middle)
        self.bn2 = nn.BatchNorm2d(width, eps)
        self.conv3 = conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width, eps)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(
                conv(cin, 4 * width, 1, stride), nn.BatchNorm2d(4 * width, eps)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class UpConv(nn.Module):
    """Zero unpooling and a 5x5 convolution, with a bias per output phase."""

    bias: nn.Parameter | None

    def __init__(self, cin, out, layout):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, cin, 5, 5))
        self.top_left = layout.padding_side == "top_left"
        bias = nn.Parameter(torch.empty(out, 2, 2)) if layout.up_bias else None
        self.register_parameter("bias", bias)

    def forward(self, x):
        b, c, h, w = x.shape
        u = x.new_zeros(b, c, 2 * h, 2 * w)
        u[:, :, ::2, ::2] = x
        if self.top_left:  # two more rows and columns, from -2 on
            more = F.conv2d(u, self.weight, padding=4)[:, :, :-2, :-2]
            y = torch.empty(b, more.shape[1], 2 * h, 2 * w)
            for i in (0, 1):
                for j in (0, 1):
                    rows, columns = more[:, :, 2 - i :: 2], slice(2 - j, None, 2)
                    y[:, :, i::2, j::2] = rows[:, :, :h, columns][..., :w]
        else:
            y = F.conv2d(u, self.weight, padding=2)
        return y if self.bias is None else y + self.bias.repeat(1, h, w)


class UpProjection(nn.Module):
    def __init__(self, cin, out, layout):
        super().__init__()
        self.up_main = UpConv(cin, out, layout)
        self.bn_main = nn.BatchNorm2d(out, layout.bn_epsilon)
        self.conv = conv(out, out, 3, bias=layout.up_bias)
        self.bn = nn.BatchNorm2d(out, layout.bn_epsilon)
        self.up_side = UpConv(cin, out, layout)
        self.bn_side = nn.BatchNorm2d(out, layout.bn_epsilon)

    def forward(self, x):
        main = F.relu(self.bn_main(self.up_main(x)))
        return F.relu(self.bn(self.conv(main)) + self.bn_side(self.up_side(x)))


class Decoder(nn.Module):
    def __init__(self, cin, first, features, layout):
        super().__init__()
        self.conv_in = conv(cin, first, 1, bias=layout.up_bias)
        self.bn_in = nn.BatchNorm2d(first, layout.bn_epsilon)
        for n, out in enumerate(features, start=1):
            self.add_module(f"up{n}", UpProjection(first, out, layout))
            first = out
        self.ups = len(features)

    def forward(self, x):
        x = self.bn_in(self.conv_in(x))
        for n in range(1, self.ups + 1):
            x = getattr(self, f"up{n}")(x)
        return x


class UpProj(nn.Module):
    def __init__(
        self,
        layout,
        *,
        stage_sizes=(3, 4, 6, 3),
        width=64,
        decoder_in=1024,
        decoder_features=(512, 256, 128, 64),
    ):
        super().__init__()
        self.layout, self.stages = layout, len(stage_sizes)
        self.conv1 = conv(3, width, 7, 2, bias=layout.stem_bias)
        self.bn1 = nn.BatchNorm2d(width, layout.bn_epsilon)
        cin = width
        for stage, blocks in enumerate(stage_sizes):
            inner = width * 2**stage
            layers = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(
                    Bottleneck(cin, inner, stride, layout, project=block == 0)
                )
                cin = 4 * inner
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.decoder = Decoder(cin, decoder_in, decoder_features, layout)
        self.head = conv(decoder_features[-1], 1, 3, bias=True)

    def forward(self, image):
        x = F.relu(self.bn1(self.conv1(image)))
        if self.layout.pool_padding == "torch":
            x = F.max_pool2d(x, 3, 2, 1)
        else:  # TensorFlow's SAME: even sizes are padded at the end
            h, w = x.shape[2] % 2, x.shape[3] % 2
            x = F.max_pool2d(F.pad(x, (w, 1, h, 1), value=float("-inf")), 3, 2)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        raw = self.head(self.decoder(x))[:, 0]
        return F.softplus(raw) if self.layout.head == "softplus" else F.relu(raw)
