"""PyTorch's training step and forward pass as workloads to time.

They do the same as jaxdepth's: frames of the same sizes and dtypes on the device, crop,
normalisation, target resized to the output size, loss, gradients, Adam with L2. The
step of jaxdepth also counts frames, sums over devices and computes the gradient norm.
"""

import contextlib
import functools
import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch

from jaxdepth.commands.benchmark import noise, peer_compile, peer_models
from jaxdepth.commands.benchmark.machine import is_out_of_memory
from jaxdepth.commands.benchmark.report import Report
from jaxdepth.commands.benchmark.settings import NetworkSettings, TrainSettings
from jaxdepth.commands.benchmark.timing import Workload
from jaxdepth.config import Config
from jaxdepth.losses import MIN_PRED
from jaxdepth.models import LAYOUTS, output_size
from jaxdepth.ops.resize import area_matrix
from jaxdepth.runtime.errors import UserError, one_line
from jaxdepth.training.augment import crop_offsets

Tensor = torch.Tensor
Network = Callable[[Tensor], Tensor]


def prepare(settings: NetworkSettings, report: Report) -> None:
    """Configure PyTorch and report its version and device.

    Raises: UserError if PyTorch cannot use the platform that JAX uses.
    """
    check_device()
    on = settings.tf32 == "on"
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cudnn.benchmark = True
    name = f"CPU, {torch.get_num_threads()} threads"
    if device().type == "cuda":
        name = torch.cuda.get_device_name()
        name += (
            f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
            f"TF32 {settings.tf32} in PyTorch and JAX"
        )
    report.note(
        f"peers: PyTorch {torch.__version__} on {name}; cudnn.benchmark on, frames on "
        "the device, no augmentation"
    )


def device() -> torch.device:
    """The device that JAX uses."""
    return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def check_device() -> None:
    """Raise UserError if PyTorch cannot use the platform that JAX uses."""
    platform = jax.default_backend()
    if platform != "cpu" and not (platform == "gpu" and torch.cuda.is_available()):
        raise UserError(
            f"--peer=torch: JAX runs on a {platform.upper()}, which this PyTorch "
            f"({torch.__version__}) can't use"
        )


def synchronize(_: Any = None) -> None:
    """Wait until the device has finished."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def free_memory() -> None:
    """Return the memory of deleted tensors to the driver, for JAX and for others."""
    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()


def batches(config: Config, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches of `count` random frames on the device.

    Images (b,h,w,3) are uint8, depths (b,h,w) int32, millimetres.
    """
    frames = noise.frames(count, config.frame_size)
    rgb = torch.tensor(frames["rgb"], device=device())
    # PyTorch cannot index uint16.
    depth = torch.tensor(frames["depth_codes"].astype(np.int32), device=device())
    for batch in noise.rows(count, int(config.train.batch_size)):
        rows = torch.from_numpy(batch["rows"]).long().to(device())
        yield rgb[rows], depth[rows]


class Inputs:
    """Crops and converts frames to the input of the network and of the loss."""

    def __init__(self, config: Config, channels_last: bool):
        self.size, self.max_depth = config.image_size, config.data.max_depth
        self.form = torch.channels_last if channels_last else torch.contiguous_format
        out, layout = output_size(config.model.arch, self.size), LAYOUTS["torchvision"]
        rows, columns = (
            torch.tensor(area_matrix(n, m), device=device())
            for n, m in zip(self.size, out, strict=True)
        )
        self.rows, self.columns = rows, columns.T.contiguous()
        self.mean, self.std = (
            torch.tensor(values, device=device()).view(1, 3, 1, 1)
            for values in (layout.rgb_mean, layout.rgb_std)
        )

    def crop(self, x: Tensor) -> Tensor:
        top, left = crop_offsets(tuple(x.shape[1:3]), self.size)
        return x[:, top : top + self.size[0], left : left + self.size[1]]

    def image(self, rgb: Tensor) -> Tensor:
        """(b,h,w,3) uint8 to normalised (b,3,h,w) float32."""
        image = rgb.permute(0, 3, 1, 2).float()
        return ((image - self.mean) / self.std).contiguous(memory_format=self.form)

    def target(self, depth_codes: Tensor) -> tuple[Tensor, Tensor]:
        """Target in metres at the output size and its mask, as `masked_area`."""
        depth = depth_codes.float() / 1000
        valid = (depth > 0) & (depth <= self.max_depth)
        share = valid.float()
        area = self.rows @ share @ self.columns
        total = self.rows @ (depth * share) @ self.columns
        return total / area.clamp(min=1e-12), area > 0


def loss_of(name: str, pred: Tensor, target: Tensor, valid: Tensor, config: Config):
    """The loss of `jaxdepth.losses`, with the berHu threshold of each image."""
    weight = valid.float()
    count = weight.sum((1, 2)).clamp(min=1)

    def mean(x: Tensor) -> Tensor:
        return (x * weight).sum((1, 2)) / count

    pred, target = torch.where(valid, pred, 1.0), torch.where(valid, target, 1.0)
    if name == "mse":
        images = mean((pred - target) ** 2)
    elif name == "si":
        d = pred.clamp(min=MIN_PRED).log() - target.log()
        images = mean(d**2) - config.loss.si_lambda * mean(d) ** 2
    else:
        error = (pred - target).abs()
        c = 0.2 * (error.detach() * weight).amax((1, 2), keepdim=True)
        c = c.clamp(min=1e-12)
        images = mean(torch.where(error <= c, error, (error**2 + c**2) / (2 * c)))
    return images.sum() / valid.any(2).any(1).sum().clamp(min=1)


def optimizer_of(config: Config, model: torch.nn.Module, fused: bool):
    """The optimizer of the configuration, with weight decay of all parameters."""
    options: dict[str, Any] = {
        "lr": config.optimizer.lr,
        "weight_decay": config.optimizer.weight_decay,
        "fused": fused,
    }
    kinds = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    }
    return kinds[config.optimizer.name](model.parameters(), **options)


class Trainer:
    """Training step of a PyTorch network."""

    def __init__(self, settings: TrainSettings, batch_size: int, tuned: bool):
        self.config = settings.config(batch_size, settings.image_size)
        self.autocast = _autocast(self.config)
        self.model = _model(self.config, tuned, settings.widths).train()
        self.inputs = Inputs(self.config, channels_last=tuned)
        self.batches = batches(self.config, settings.frames)
        self.optimizer = optimizer_of(self.config, self.model, fused=tuned)

    def loss(self, network: Network, rgb: Tensor, depth_codes: Tensor) -> Tensor:
        """Loss of a batch of frames, differentiable."""
        image = self.inputs.image(self.inputs.crop(rgb))
        target, valid = self.inputs.target(self.inputs.crop(depth_codes))
        with self.autocast():
            pred = network(image)
        return loss_of(self.config.loss.name, pred, target, valid, self.config)

    def step(self, network: Network) -> Tensor:
        """Train on the next batch; `network` is `model`, or `model` compiled."""
        loss = self.loss(network, *next(self.batches))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Predictor:
    """Forward pass of a PyTorch network."""

    def __init__(self, settings: NetworkSettings, batch_size: int, tuned: bool):
        config = settings.config(batch_size, settings.image_size)
        self.autocast = _autocast(config)
        self.model = _model(config, tuned, settings.widths).eval()
        self.inputs = Inputs(config, channels_last=tuned)
        pool = noise.images(batch_size, config.image_size)
        images = [torch.tensor(batch, device=device()) for batch in pool]
        self.images = itertools.cycle(images)

    def depth(self, network: Network, rgb: Tensor) -> Tensor:
        """Depth in metres of images (b,h,w,3) uint8."""
        with torch.inference_mode(), self.autocast():
            return network(self.inputs.image(rgb))

    def step(self, network: Network) -> Tensor:
        """Predict the next batch; `network` is `model`, or `model` compiled."""
        return self.depth(network, next(self.images))


def _model(config: Config, tuned: bool, widths: dict[str, Any]) -> torch.nn.Module:
    size = config.image_size
    model = peer_models.create(config.model.arch, size, tuned=tuned, **widths)
    form = torch.channels_last if tuned else torch.preserve_format
    return model.to(device(), memory_format=form)  # pyright: ignore[reportCallIssue]


def _autocast(config: Config) -> Callable[[], Any]:
    if config.model.precision != "bf16":
        return contextlib.nullcontext
    return lambda: torch.autocast(device().type, dtype=torch.bfloat16)


def _first_step(runner: Trainer | Predictor) -> str | None:
    """Take a step; returns why it failed, else None.

    On a GPU it may also fail because cuDNN or cuBLAS cannot run beside those of JAX.
    """
    try:
        runner.step(runner.model)
        synchronize()
    except RuntimeError as error:
        full = is_out_of_memory(error)
        return "it does not fit into memory" if full else one_line(error)[:200]
    return None


def workloads(
    settings: NetworkSettings, batch_size: int, report: Report, parameters: int
) -> list[Workload]:
    """The PyTorch variants of a network, without those whose first step fails.

    "plain" is the network as public ports write it; "tuned" has transposed
    convolutions, the memory format channels_last and the fused optimizer.

    Raises: RuntimeError if a network does not have `parameters` parameters.
    """
    prepare(settings, report)
    selected = []
    for kind in settings.peers.split(","):
        name, tuned = f"torch {kind}", kind == "tuned"
        runner = (
            Trainer(settings, batch_size, tuned)
            if isinstance(settings, TrainSettings)
            else Predictor(settings, batch_size, tuned)
        )
        count = sum(p.numel() for p in runner.model.parameters())
        if count != parameters:
            raise RuntimeError(f"{name} has {count} parameters, jaxdepth {parameters}")
        if (failure := _first_step(runner)) is not None:
            report.note(f"{name}: skipped, {failure}")
            del runner
            free_memory()
            continue
        networks = {name: runner.model}
        if settings.torch_compile:
            networks |= peer_compile.compiled(
                runner, name, limit=settings.compile_limit, report=report
            )
        selected += [
            Workload(
                name, functools.partial(runner.step, network), synchronize, batch_size
            )
            for name, network in networks.items()
        ]
    return selected
