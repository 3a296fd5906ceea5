"""The flags of `train` and `infer`, and the project's configuration they stand for."""

import dataclasses
from typing import Any, Literal

import jax

from jaxdepth import config as config_lib
from jaxdepth.config import Config
from jaxdepth.models import create_model
from jaxdepth.runtime.errors import UserError

Size = tuple[int, int]
PEERS = ("plain", "tuned")
VARIED = ("upconv", "unpool", "precision", "layout")


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """Flags that training and inference share."""

    arch: Literal["cnn_fc", "cnn", "cnn_trans", "upproj"] = "upproj"
    """The network."""
    layout: Literal["torchvision", "fcrn", "fcrn_make3d"] = "torchvision"
    """Details of the network."""
    unpool: Literal["zero", "average"] = "zero"
    """What an up-projection puts between two entries."""
    upconv: str = "auto"
    """Form of the up-convolution, as for training."""
    size: str = "228x304"
    """Input of the network, HEIGHTxWIDTH."""
    batch_size: int | Literal["auto", "best"] = "auto"
    """Images a step over all devices. auto: 4 on CPU, 32 elsewhere; best: the one of
    most images per second, by doubling until memory is full."""
    max_batch: int = 1024
    """Where --batch_size=best stops doubling."""
    search_s: float = 240.0
    """Seconds after which --batch_size=best takes what it has."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Arithmetic; auto: bf16 on accelerators, f32 on CPU."""
    tf32: Literal["on", "off"] = "on"
    """On GPUs: products of float32 in 19 bits, here and in the peers alike."""
    devices: int | None = None
    """Use the first so many; default all. On CPU more are simulated as needed."""
    repeats: int = 5
    """Turns, after one that doesn't count."""
    seconds: float = 1.0
    """Each turn repeats its step until so many have passed."""
    peer: Literal["none", "torch"] = "none"
    """Measure PyTorch's networks in the same turns: the plain and the tuned one."""
    peers: str = "plain,tuned"
    """Which of them, by commas."""
    peer_up: Literal["transposed", "phases"] = "transposed"
    """How the tuned peer computes up-convolutions."""
    torch_compile: bool = False
    """Race the peers a second time, as torch.compile makes them."""
    compile_limit: float = 120.0
    """Seconds for torch.compile, each peer; what takes longer is left out."""
    beside: str = ""
    """The same with other flags in the same turns, as in upconv=dilated: several by
    commas, each of several flags by +, as in bn=local+cache=host,augment=full."""
    growth: Literal["none", "batch", "size", "devices"] = "none"
    """Instead of one point, a row of them, and how far from linear the times grow."""
    points: str = "auto"
    """The points of --growth, by commas: 1,2,4 or 120x160,240x320."""
    thin: int = 1
    """For trials: channels divided by this, and where it isn't 1 one block a stage."""
    compile_cache: str | None = None
    """A folder for compiled programs: compile times are those of reading it, then."""
    profile: str | None = None
    """A folder for a trace; the ten costliest operations are printed."""
    json: str | None = None
    """A file for everything that was measured; an existing one is not overwritten."""
    csv: str | None = None
    """A file for the tables; likewise."""

    def __post_init__(self) -> None:
        low = {"repeats": 1, "seconds": 0, "max_batch": 1, "search_s": 0}
        low |= {"compile_limit": 0, "devices": 1, "thin": 1}
        for name, least in low.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name}={value}: must be at least {least}")
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise UserError(f"--batch_size={self.batch_size}: must be at least 1")
        forms = config_lib.choices("upconv") or ()
        if self.upconv not in forms:
            raise UserError(f"--upconv={self.upconv}: one of {', '.join(forms)}")
        config_lib.parse_size(self.size)
        self._config(1, self.image_size)
        self._check_peer()
        self.variants()
        if self.growth != "none" and (self.profile is not None or self.beside):
            raise UserError("--profile and --beside are of one point, not of --growth")
        if self.points != "auto" and self.growth == "none":
            raise UserError("--points belongs to --growth=batch, size or devices")
        if self.growth == "batch" and self.batch_size != "auto":
            raise UserError("--growth=batch takes its batches from --points")

    def _check_peer(self) -> None:
        for name in self.peers.split(","):
            if name not in PEERS:
                raise UserError(f"--peers={self.peers}: of {', '.join(PEERS)}")
        if self.peer == "none":
            return
        if self.layout != "torchvision" or self.unpool != "zero":
            raise UserError(
                "--peer=torch has layout torchvision and zero unpooling, as public "
                "ports do: leave --layout and --unpool out"
            )
        if self.growth != "none":
            raise UserError("--peer=torch is of one point: leave --growth out")
        if self.devices not in (None, 1):
            raise UserError("--peer=torch runs on one device: --devices=1")

    @property
    def image_size(self) -> Size:
        return config_lib.parse_size(self.size)

    @property
    def widths(self) -> dict[str, Any]:
        """Fields of the network that --thin changes, by the name both sides have."""
        if self.thin == 1:
            return {}
        model = create_model(self.arch, image_size=self.image_size)
        names = ("width", "decoder_in", "decoder_features", "features", "hidden")
        found = {
            name: _thinner(getattr(model, name), self.thin)
            for name in names
            if hasattr(model, name)
        }
        if self.arch == "upproj":
            found["stage_sizes"] = (1, 1, 1, 1)
        return found

    def config(self, batch_size: int, image_size: Size) -> Config:
        """What a run with these flags would be configured as, on this platform."""
        config = self._config(batch_size, image_size)
        return config_lib.resolve(config, platform=jax.default_backend())

    def _config(self, batch_size: int, image_size: Size) -> Config:
        """The same before anything is asked of the platform, which JAX starts for."""
        return Config.of(
            arch=self.arch,
            layout=self.layout,
            unpool=self.unpool,
            upconv=self.upconv,  # pyright: ignore[reportArgumentType]
            size=f"{image_size[0]}x{image_size[1]}",
            batch_size=batch_size,
            precision=self.precision,
            # The rate is constant and nothing ends: the number of steps has no say.
            steps=10**6,
            **self._of_training(),
        )

    def _of_training(self) -> dict[str, Any]:
        return {}

    def variants(self) -> dict[str, Any]:
        """What --beside asks for: its own words, and these settings so changed."""
        words = self.beside.split(",") if self.beside else []
        return {word: self._changed(word) for word in words}

    def _changed(self, word: str) -> Any:
        values: dict[str, Any] = {}
        for flag in word.split("+"):
            name, _, value = flag.partition("=")
            if name not in self._of_training() and name not in VARIED:
                known = ", ".join((*VARIED, *self._of_training()))
                raise UserError(f"--beside={self.beside}: {name} is none of {known}")
            whole = isinstance(getattr(self, name), int)
            if whole and not value.isdecimal():
                raise UserError(f"--beside={self.beside}: {name} is a whole number")
            values[name] = int(value) if whole else value
        return dataclasses.replace(self, **values, beside="")

    def fixed_batch(self) -> int:
        """The batch, where it is not searched for."""
        if isinstance(self.batch_size, int):
            return self.batch_size
        return 4 if jax.default_backend() == "cpu" else 32

    def chosen_devices(self) -> list[Any]:
        """The devices asked for. UserError where there are fewer."""
        there = jax.devices()
        count = 1 if self.peer != "none" else self.devices or len(there)
        if count > len(there):
            raise UserError(f"--devices={count}: there are {len(there)}")
        return there[:count]


def _thinner(width: Any, thin: int) -> Any:
    if isinstance(width, tuple):
        return tuple(_thinner(w, thin) for w in width)
    return max(1, width // thin)


@dataclasses.dataclass(frozen=True)
class TrainSettings(NetworkSettings):
    """Training: images per second, FLOP/s, memory, beside what the device can do."""

    parallel: Literal["jit", "pmap"] = "jit"
    """How the step is placed on devices."""
    bn: Literal["global", "local"] = "global"
    """Batch statistics over all devices, or each its own."""
    accumulate: int = 1
    """Parts of a batch, one after another."""
    steps_per_call: int = 1
    """Steps in one call."""
    cache: Literal["device", "host", "none"] = "device"
    """Where frames lie: on the devices, in the host's memory, or on disk; from the
    last two they travel by the project's own pipeline."""
    frames: int = 256
    """How many random frames there are."""
    augment: Literal["none", "full"] = "none"
    """Random views in our step; the peers' have none."""
    loss: Literal["mse", "si", "berhu"] = "si"
    """The loss."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The optimizer, with L2 on all parameters as PyTorch has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("accumulate", "steps_per_call", "frames"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least 1")
        if self.peer != "none" and (self.accumulate, self.steps_per_call) != (1, 1):
            raise UserError(
                "--peer=torch takes one step a call: leave --accumulate and "
                "--steps_per_call out"
            )

    def _of_training(self) -> dict[str, Any]:
        names = ("parallel", "bn", "accumulate", "steps_per_call", "cache")
        names += ("augment", "loss", "optimizer")
        return {name: getattr(self, name) for name in names} | {"decay": "all"}


@dataclasses.dataclass(frozen=True)
class InferSettings(NetworkSettings):
    """Inference: images per second of a batch, and frames per second one by one."""
