"""PyTorch operators with the shapes of `upconv`, forward and both gradients."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import torch
import torch.nn.functional as F

from jaxdepth.commands.benchmark.peer_models import unpool
from jaxdepth.commands.benchmark.peer_runs import device, synchronize
from jaxdepth.commands.benchmark.timing import Workload

Tensor = torch.Tensor


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[2] // 2)


def _unpool(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(unpool(x), weight, padding=2)


def _transposed(x: Tensor, weight: Tensor) -> Tensor:
    pad = weight.shape[2] // 2
    return F.conv_transpose2d(x, weight, stride=2, padding=pad, output_padding=1)


def _phases(x: Tensor, weight: Tensor) -> Tensor:
    """Zero unpooling and 5x5 convolution as four convolutions, outputs interleaved."""
    # Padding is left, right, top, bottom: even outputs read one more input before.
    parts = [
        F.conv2d(F.pad(x, (1 - s, 1, 1 - r, 1)), weight[:, :, r::2, s::2])
        for r in (0, 1)
        for s in (0, 1)
    ]
    return F.pixel_shuffle(torch.stack(parts, dim=2).flatten(1, 2), 2)


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "conv": _conv,
    "unpool": _unpool,
    "transposed": _transposed,
    "phases": _phases,
}


def workloads(case: Any, direction: str, dtype: Any) -> list[Workload]:
    """The PyTorch forms of an `upconv.Case`, in both memory formats."""
    return [
        _workload(name, case, direction, dtype, channels_last)
        for name in case.torch
        for channels_last in (False, True)
    ]


def _workload(
    name: str, case: Any, direction: str, dtype: Any, channels_last: bool
) -> Workload:
    b, h, w, cin = case.x
    kh, kw, _, cout = case.kernel
    kind = torch.bfloat16 if dtype == jnp.bfloat16 else torch.float32
    form = torch.channels_last if channels_last else torch.contiguous_format
    shape = (cin, cout, kh, kw) if name == "transposed" else (cout, cin, kh, kw)

    def random(*shape: int) -> Tensor:
        values = torch.randn(shape, dtype=kind, device=device())
        return values.contiguous(memory_format=form).requires_grad_()

    x, weight = random(b, cin, h, w), random(*shape)
    function = FORMS[name]
    y = function(x, weight)
    cotangent = random(*y.shape).detach()

    def forward():
        with torch.no_grad():
            return function(x, weight)

    def gradient():
        variable = x if direction == "input gradient" else weight
        return torch.autograd.grad(y, variable, cotangent, retain_graph=True)

    label = f"torch {name}, {'channels_last' if channels_last else 'NCHW'}"
    call = forward if direction == "forward" else gradient
    return Workload(label, call, synchronize)
