"""PyTorch's training step and forward pass as workloads to time.

They do what ours do: frames of the same sizes and dtypes on the device, crop,
normalisation, target resized to the output size, loss, gradients, Adam with L2. Our
step also counts frames, sums over devices and computes the gradient norm for the log.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from jaxdepth.commands.benchmark import noise, peer_compile, peer_models
from jaxdepth.commands.benchmark.machine import is_out_of_memory
from jaxdepth.commands.benchmark.report import Report
from jaxdepth.commands.benchmark.settings import NetworkSettings, Size, TrainSettings
from jaxdepth.commands.benchmark.timing import Workload
from jaxdepth.config import Config
from jaxdepth.losses import MIN_PRED
from jaxdepth.models import LAYOUTS
from jaxdepth.models.layouts import Layout
from jaxdepth.ops.resize import area_matrix
from jaxdepth.runtime.errors import UserError
from jaxdepth.training.augment import crop_offsets

Tensor = torch.Tensor
POOL = 4  # batches of images that inference cycles through


@dataclasses.dataclass(frozen=True)
class Peer:
    """Variant of a PyTorch network.

    Attributes:
      name: label in tables.
      up: form of the up-convolution, of `peer_models.create`.
      channels_last: memory format of parameters and features.
      fused: use the fused optimizer.
    """

    name: str
    up: str
    channels_last: bool
    fused: bool


def peers(settings: NetworkSettings) -> list[Peer]:
    """The variants that --peers names."""
    known = {
        "plain": Peer("torch plain", "unpool", channels_last=False, fused=False),
        "tuned": Peer("torch tuned", settings.peer_up, channels_last=True, fused=True),
    }
    return [known[name] for name in settings.peers.split(",")]


def prepare(settings: NetworkSettings, report: Report) -> None:
    """Configure PyTorch and report its version and device.

    Raises: UserError if PyTorch cannot use the platform that JAX uses.
    """
    check_device()
    on = settings.tf32 == "on"
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cudnn.benchmark = True
    where = f"CPU, {torch.get_num_threads()} threads"
    if device().type == "cuda":
        where = (
            f"{torch.cuda.get_device_name()}, TF32 {settings.tf32} in PyTorch and JAX"
        )
    report.say(
        f"peers: PyTorch {torch.__version__} on {where}; cudnn.benchmark on, frames on "
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


class Batches:
    """Endless batches of random frames on the device."""

    def __init__(self, config: Config, count: int):
        frames = noise.frames(count, config.frame_size)
        self.rgb = torch.tensor(frames["rgb"], device=device())
        # PyTorch cannot index uint16.
        depth = frames["depth_mm"].astype(np.int32)
        self.depth = torch.tensor(depth, device=device())
        self.rows = noise.rows(count, int(config.train.batch_size))

    def next(self) -> tuple[Tensor, Tensor]:
        """Images (b,h,w,3) uint8 and depths (b,h,w) int32, millimetres."""
        rows = torch.from_numpy(next(self.rows)["rows"]).long().to(device())
        return self.rgb[rows], self.depth[rows]


class Inputs:
    """Crops and converts frames to the input of the network and of the loss."""

    def __init__(self, config: Config, peer: Peer, out: Size):
        self.size, self.max_depth = config.image_size, config.data.max_depth
        self.layout: Layout = LAYOUTS[config.model.layout]
        self.channels_last = peer.channels_last
        rows, columns = (
            torch.tensor(area_matrix(n, m), device=device())
            for n, m in zip(self.size, out, strict=True)
        )
        self.rows, self.columns = rows, columns.T.contiguous()
        shape = (1, 3, 1, 1)
        self.mean = torch.tensor(self.layout.rgb_mean, device=device()).view(shape)
        self.std = torch.tensor(self.layout.rgb_std, device=device()).view(shape)

    def crop(self, x: Tensor) -> Tensor:
        top, left = crop_offsets(tuple(x.shape[1:3]), self.size)
        return x[:, top : top + self.size[0], left : left + self.size[1]]

    def image(self, rgb: Tensor) -> Tensor:
        """(b,h,w,3) uint8 to normalised (b,3,h,w) float32."""
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        image = rgb.permute(0, 3, 1, 2).float()
        return ((image - self.mean) / self.std).contiguous(memory_format=form)

    def target(self, depth_mm: Tensor) -> tuple[Tensor, Tensor]:
        """Target in metres at the output size and its mask, as `masked_area`."""
        depth = depth_mm.float() / 1000
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
    if config.optimizer.name == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=0.9, **options)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[config.optimizer.name](model.parameters(), **options)


class _Runner(abc.ABC):
    """A network, and the function that calls it."""

    model: torch.nn.Module
    run: Callable[[Tensor], Tensor]

    @abc.abstractmethod
    def step(self) -> Tensor:
        """Process the next batch."""

    def calling(self, run: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        """`step` with `run` as the function that calls the network."""

        def call() -> Tensor:
            self.run = run
            return self.step()

        return call


class Trainer(_Runner):
    """Training step of a PyTorch network."""

    def __init__(self, settings: TrainSettings, batch_size: int, peer: Peer):
        config = settings.config(batch_size, settings.image_size)
        self.config, self.autocast = config, _autocast(config)
        self.model = _model(config, peer, settings.widths).train()
        out = _output_size(self.model, config, peer)
        self.inputs, self.batches = Inputs(config, peer, out), None
        self.frames = settings.frames
        self.optimizer = optimizer_of(config, self.model, peer.fused)
        self.run = self.model

    def loss(self, rgb: Tensor, depth_mm: Tensor) -> Tensor:
        """Loss of a batch of frames, differentiable."""
        image = self.inputs.image(self.inputs.crop(rgb))
        target, valid = self.inputs.target(self.inputs.crop(depth_mm))
        with self.autocast():
            pred = self.run(image)
        return loss_of(self.config.loss.name, pred, target, valid, self.config)

    def step(self) -> Tensor:
        if self.batches is None:
            self.batches = Batches(self.config, self.frames)
        loss = self.loss(*self.batches.next())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class Predictor(_Runner):
    """Forward pass of a PyTorch network."""

    def __init__(self, settings: NetworkSettings, batch_size: int, peer: Peer):
        config = settings.config(batch_size, settings.image_size)
        self.autocast = _autocast(config)
        self.model = _model(config, peer, settings.widths).eval()
        out = _output_size(self.model, config, peer)
        self.inputs = Inputs(config, peer, out)
        self.run = self.model
        shape = (POOL, batch_size, *config.image_size, 3)
        pool = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        self.images = [torch.tensor(batch, device=device()) for batch in pool]
        self.calls = 0

    def depth(self, rgb: Tensor) -> Tensor:
        """Depth in metres of images (b,h,w,3) uint8."""
        with torch.inference_mode(), self.autocast():
            return self.run(self.inputs.image(rgb))

    def step(self) -> Tensor:
        self.calls += 1
        return self.depth(self.images[self.calls % POOL])


def _model(config: Config, peer: Peer, widths: dict[str, Any]) -> torch.nn.Module:
    size = config.image_size
    model = peer_models.create(config.model.arch, size, up=peer.up, **widths).to(
        device()
    )
    if not peer.channels_last:
        return model
    return model.to(memory_format=torch.channels_last)  # pyright: ignore


def _output_size(model: torch.nn.Module, config: Config, peer: Peer) -> Size:
    image = torch.zeros(1, 3, *config.image_size, device=device())
    training = model.training
    with torch.inference_mode():
        height, width = model.eval()(image).shape[1:]
    model.train(training)
    return height, width


def _autocast(config: Config) -> Callable[[], Any]:
    if config.model.precision != "bf16":
        return contextlib.nullcontext
    return lambda: torch.autocast(device().type, dtype=torch.bfloat16)


def workloads(
    settings: NetworkSettings, batch_size: int, report: Report, parameters: int
) -> list[Workload]:
    """The PyTorch variants of a network, without those that do not fit into memory.

    Raises: RuntimeError if a network does not have `parameters` parameters.
    """
    prepare(settings, report)
    selected = []
    for peer in peers(settings):
        runner = (
            Trainer(settings, batch_size, peer)
            if isinstance(settings, TrainSettings)
            else Predictor(settings, batch_size, peer)
        )
        count = sum(p.numel() for p in runner.model.parameters())
        if count != parameters:
            raise RuntimeError(f"{peer.name} has {count} parameters, ours {parameters}")
        try:
            runner.step()
            synchronize()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            report.say(f"{peer.name}: skipped, it does not fit into memory")
            continue
        calls = {peer.name: runner.run}
        if settings.torch_compile:
            calls |= peer_compile.compiled(
                runner, peer.name, limit=settings.compile_limit, report=report
            )
        selected += [
            Workload(name, runner.calling(run), synchronize, batch_size)
            for name, run in calls.items()
        ]
    return selected
