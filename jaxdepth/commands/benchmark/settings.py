"""Flags of the benchmarks, and the `Config` that they stand for."""

import dataclasses
from fractions import Fraction
from typing import Any, ClassVar, Literal

import jax

from jaxdepth import config as config_lib
from jaxdepth.config import Config
from jaxdepth.models import create_model, scaled_widths
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag

Size = tuple[int, int]
# Flags with the name, the choices and the checks of a field of `Config`. All but
# --arch may differ in --beside.
CONFIG_FLAGS = ("arch", "upconv", "unpool", "precision", "layout", "parallel", "bn")
CONFIG_FLAGS += ("accumulate", "steps_per_call", "cache", "augment", "loss")
CONFIG_FLAGS += ("optimizer",)
# What --peer=torch implements.
PEER_CHOICES: dict[str, tuple[Any, ...]] = {
    "arch": ("cnn_fc", "cnn", "cnn_trans", "upproj"),
    "layout": ("torchvision",),
    "unpool": ("zero",),
    "loss": ("mse", "si", "berhu"),
    "accumulate": (1,),
    "steps_per_call": (1,),
    "growth": ("none",),
    "devices": (1, None),
}
LEVEL = "optimization_level"  # jax_optimization_level, an option of JAX, not of XLA


def check_names(flag: str, text: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless `text` is a comma-separated list of the choices."""
    if not set(text.split(",")) <= set(choices):
        raise UserError(f"--{flag}={text}: expected names of {', '.join(choices)}")


class RejectedOption(UserError):
    """The compiler does not know an option, or not its value."""


def is_compiler_option(name: str) -> bool:
    """Whether a name is one of XLA's options or JAX's optimization level."""
    return name.startswith("xla_") or name == LEVEL


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """Flags of training and inference."""

    arch: str = "upproj"
    """Architecture, as for training."""
    layout: str = "torchvision"
    """Layout of the network, as for training."""
    unpool: str = "zero"
    """Unpooling of an up-projection, as for training."""
    upconv: str = "auto"
    """Form of the up-convolution, as for training."""
    size: str = "228x304"
    """Input size of the network, HEIGHTxWIDTH."""
    batch_size: int | Literal["auto", "best"] = flag("auto", at_least=1)
    """Images per step on all devices. auto: 4 on CPU, 32 elsewhere; best: the size with
    the most images per second, searched by doubling until memory is full."""
    first_batch: int | Literal["auto"] = flag("auto", at_least=1)
    """First size that --batch_size=best tries. auto: 1 on CPU, 32 elsewhere."""
    max_batch: int = flag(1024, at_least=1)
    """Largest size that --batch_size=best tries."""
    search_s: float = flag(240.0, at_least=0)
    """Time limit of --batch_size=best, seconds."""
    precision: str = "auto"
    """Arithmetic: f32 or bf16; auto: bf16 on accelerators, f32 on CPU."""
    tf32: Literal["on", "off"] = "on"
    """Use TF32 for float32 products on GPUs, in JAX and in PyTorch."""
    options: str = ""
    """Options of XLA's compiler, separated by +, as in
    xla_gpu_enable_triton_gemm=false; optimization_level=O1 is JAX's own."""
    devices: int | None = flag(None, at_least=1)
    """Number of devices; default: all. CPU devices are simulated as needed."""
    repeats: int = flag(5, at_least=1)
    """Number of turns after the discarded first one."""
    seconds: float = flag(1.0, at_least=0)
    """Minimum length of a turn, seconds."""
    peer: Literal["none", "torch"] = "none"
    """torch: time PyTorch networks in the same turns."""
    peers: str = "plain,tuned"
    """PyTorch networks to time, comma-separated: plain, tuned."""
    torch_compile: bool = False
    """Also time the PyTorch networks after torch.compile."""
    compile_limit: float = flag(120.0, at_least=0)
    """Time limit of torch.compile for each network, seconds."""
    beside: str = ""
    """Variants to time in the same turns: flags that differ, as in upconv=plain.
    Variants are separated by commas, flags of one variant by +, as in
    bn=local+cache=host,augment=full."""
    turns: Literal["together", "pairs"] = "together"
    """together: time all variants of --beside in the same turns. pairs: one variant
    after another, each in turns with the network."""
    limit_s: float | None = flag(None, at_least=0)
    """With pairs, start no variant that would end later than this, seconds."""
    peaks: Literal["on", "off"] = "on"
    """Measure the peaks of the device."""
    growth: Literal["none", "batch", "size", "devices"] = "none"
    """Measure how the time grows with the batch size, image size or devices."""
    points: str = "auto"
    """Points of --growth, comma-separated, as in 1,2,4 or 120x160,240x320."""
    thin: int = flag(1, at_least=1)
    """Divide all channel counts by this, for trials; above 1, one block per stage."""
    compile_cache: str | None = None
    """Folder of JAX's compilation cache; compile times then measure reading it."""
    profile: str | None = None
    """Folder for a profiler trace; the most expensive operations are printed."""
    json: str | None = None
    """New file for all results as JSON."""

    trains: ClassVar[bool] = False  # whether training steps are measured

    def __post_init__(self) -> None:
        flags_lib.validate(self)
        batch_size = self.batch_size if isinstance(self.batch_size, int) else 1
        self._unresolved_config(batch_size, self.image_size)
        check_names("peers", self.peers, ("plain", "tuned"))
        if self.peer == "torch":
            self._check_peer()
        self.compiler_options()
        self.variants()
        if self.growth != "none" and (self.profile is not None or self.beside):
            raise UserError(
                f"--growth={self.growth} excludes --profile and --beside: leave "
                "them out"
            )
        if self.points != "auto" and self.growth == "none":
            raise UserError("--points needs --growth=batch, size or devices")
        if self.growth == "batch" and self.batch_size != "auto":
            raise UserError("--growth=batch: set --points instead of --batch_size")

    def _check_peer(self) -> None:
        for name, allowed in PEER_CHOICES.items():
            value = getattr(self, name, allowed[0])
            if value not in allowed:
                choices = " or ".join(str(v) for v in allowed if v is not None)
                raise UserError(f"--peer=torch: --{name}={value}: expected {choices}")

    @property
    def image_size(self) -> Size:
        """(height, width) of the network's input."""
        return config_lib.parse_size(self.size)

    @property
    def title(self) -> str:
        """The first words of a table's title."""
        return f"{'training' if self.trains else 'inference'} {self.arch}"

    @property
    def widths(self) -> dict[str, Any]:
        """Fields of the networks, JAX and PyTorch, divided by --thin."""
        model = create_model(self.arch, image_size=self.image_size)
        fields = scaled_widths(model, Fraction(1, self.thin))
        if hasattr(model, "stage_sizes"):
            fields["stage_sizes"] = model.stage_sizes if self.thin == 1 else (1,) * 4
        return fields

    def config(self, batch_size: int, image_size: Size) -> Config:
        """The configuration of a run with these flags, resolved for this platform."""
        config = self._unresolved_config(batch_size, image_size)
        return config_lib.resolve(config, platform=jax.default_backend())

    def _unresolved_config(self, batch_size: int, image_size: Size) -> Config:
        """The configuration, without asking JAX for the platform, which starts it."""
        return Config.of(
            size=f"{image_size[0]}x{image_size[1]}",
            batch_size=batch_size,
            steps=10**6,  # more than are measured; the learning rate is constant
            decay="all",  # weight decay of all parameters, as in PyTorch
            **{name: getattr(self, name) for name in self.config_flags()},
        )

    def config_flags(self) -> list[str]:
        """The names in `CONFIG_FLAGS` that this benchmark has."""
        return [name for name in CONFIG_FLAGS if hasattr(self, name)]

    def variants(self) -> dict[str, Any]:
        """Text of each variant in --beside -> the settings of that variant."""
        words = self.beside.split(",") if self.beside else []
        return {word: self._variant(word) for word in words}

    def _variant(self, word: str) -> Any:
        names, flags = self.config_flags()[1:], flags_lib.flags_of(type(self))
        names.append("tf32")
        values: dict[str, Any] = {}
        options = [self.options] if self.options else []
        for change in word.split("+"):
            name, _, value = change.partition("=")
            if is_compiler_option(name):
                options.append(change)
            elif name in names:
                values[name] = flags[name].convert(value)
            else:
                raise UserError(
                    f"--beside={self.beside}: {name}: expected one of "
                    f"{', '.join(names)}, optimization_level, or an option xla_..."
                )
        values |= {"options": "+".join(options), "beside": ""}
        return dataclasses.replace(self, **values)

    def compiler_options(self) -> dict[str, str | bool]:
        """The options of --options. Raises UserError if they are malformed."""
        options: dict[str, str | bool] = {}
        for word in self.options.split("+") if self.options else ():
            name, equals, value = word.partition("=")
            if not (equals and is_compiler_option(name)):
                raise UserError(
                    f"--options={self.options}: {word}: expected optimization_level=O1 "
                    "or xla_NAME=VALUE"
                )
            # XLA refuses words as the value of a boolean option.
            options[name] = {"true": True, "false": False}.get(value, value)
        return options

    def fixed_batch(self) -> int:
        """The batch size without a search."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        return 4 if jax.default_backend() == "cpu" else 32

    def chosen_devices(self) -> list[Any]:
        """The devices of --devices. Raises UserError if there are fewer."""
        devices = jax.devices()
        count = 1 if self.peer != "none" else self.devices or len(devices)
        if count > len(devices):
            raise UserError(f"--devices={count}: JAX has {len(devices)}")
        return devices[:count]


@dataclasses.dataclass(frozen=True)
class TrainSettings(NetworkSettings):
    """Measure training: images per second, FLOP/s and memory, compared with peaks."""

    parallel: str = "jit"
    """Placement of the step, as for training: jit or pmap."""
    bn: str = "global"
    """Batch statistics, as for training: global, local or group:N."""
    accumulate: int = 1
    """Number of microbatches per step."""
    steps_per_call: int = 1
    """Steps per call."""
    cache: str = "device"
    """Location of the frames: device, host (memory) or none (disk). With host and
    none, the training input pipeline loads them."""
    frames: int = flag(256, at_least=1)
    """Number of random frames."""
    augment: str = "none"
    """Augmentation of jaxdepth's step, as for training; PyTorch networks have none."""
    loss: str = "si"
    """Loss, as for training."""
    optimizer: str = "adam"
    """Optimizer, as for training, with weight decay of all parameters."""

    trains: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class InferSettings(NetworkSettings):
    """Measure inference: images per second of batches, and of single frames."""
