"""The configuration: nested dataclasses behind flat flags, validation and JSON.

Values may be "auto" until `resolve` and `resolve_steps` know platform and data. Choices
are the names in the registries, which are imported when a choice is looked up, so that
importing this module imports no JAX.
"""

import dataclasses
import json
import math
import re
from typing import Any, Literal

from jaxdepth.recipes import RECIPES
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag

Auto = Literal["auto"]
Size = tuple[int, int]
MAX_DEPTH = 255.99  # metres; the limit of --max_depth: uint16 at 256 codes per metre


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Network."""

    arch: str = flag("upproj", choices="jaxdepth.models:ARCHS")
    """Network: CNN with fully connected layers, CNN, CNN with a transposed convolution,
    or ResNet-50 with up-projection blocks."""
    size: str = "auto"
    """Input size of the network, HEIGHTxWIDTH; auto: 228x304."""
    layout: str = flag("torchvision", choices="jaxdepth.models:LAYOUTS")
    """Variant of the network: torchvision's ResNet-50, the published FCRN, or its
    Make3D variant."""
    unpool: str = flag("zero", choices="jaxdepth.ops.upconv:UNPOOLS")
    """Values that unpooling inserts between two entries: zeros or their average."""
    upconv: str = flag("auto", choices="auto|jaxdepth.ops.upconv:FORMS")
    """Algorithm of the up-convolution; all give the same values. auto: by platform."""
    width: int = flag(64, at_least=1)
    """Channels of the first stage of the ResNet. All widths of upproj are in proportion
    to it: half of it takes a quarter of the weights."""
    stage_sizes: str = "3,4,6,3"
    """Blocks in each stage of the ResNet; 3,4,6,3 is ResNet-50."""
    output_stride: int = flag(32, at_least=8, at_most=32)
    """Stride of the ResNet of upproj: 32, 16 or 8. Below 32, its last stages have
    dilation instead of a stride, and the decoder has fewer up-projections."""
    skips: bool = False
    """Skip connections: add features of upproj's encoder to the maps of the decoder of
    the same size."""
    dropout: float | Auto = flag("auto", at_least=0, below=1)
    """Dropout rate before the last layer; auto: 0.5 for cnn_fc, 0 for the others."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Arithmetic of the network; auto: bf16 on accelerators, f32 on CPU."""
    bn: str = "global"
    """Batch statistics over the global batch (global), per device (local), or over
    groups of N devices (group:N)."""
    freeze: Literal["none", "encoder", "bn_stats"] = "none"
    """Keep the encoder fixed, or all batch statistics."""
    init: Literal["random", "imagenet", "nyu"] = "random"
    """Initialisation: random, an ImageNet encoder, or a whole network trained on NYU;
    the last two need --weights."""
    weights: str | None = None
    """Converted weights for --init."""

    @property
    def image_size(self) -> Size:
        """(height, width) of the network's input. `size` must be resolved."""
        return parse_size(self.size)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks in each stage. Raises UserError if `stage_sizes` is not a list."""
        match = re.fullmatch(r"[1-9]\d?(,[1-9]\d?)*", self.stage_sizes)
        if not match:
            raise UserError(
                f"--stage_sizes={self.stage_sizes}: expected the number of blocks of "
                "each stage, as in 3,4,6,3"
            )
        return tuple(map(int, self.stage_sizes.split(",")))

    @property
    def is_resnet50(self) -> bool:
        """Whether the ResNet has the stages and widths of ResNet-50."""
        default = type(self)()
        return (self.width, self.blocks) == (default.width, default.blocks)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Loss."""

    name: str = flag("si", name="loss", choices="jaxdepth.losses:LOSSES")
    """Training loss: mean squared, scale-invariant, berHu; scale-invariant with
    gradient matching or with berHu; mean absolute, also with gradient matching; that of
    Hu et al. (log errors of depth and gradient, normals)."""
    si_lambda: float = flag(0.5, at_least=0, at_most=1)
    """Weight of the squared mean in the scale-invariant loss."""
    berhu_scope: Literal["image", "batch"] = "image"
    """Scope of berHu's threshold: each image (the paper) or the batch (Laina et
    al.)."""


@dataclasses.dataclass(frozen=True)
class ReadConfig:
    """Reading of depth files."""

    depth_scale: float | None = flag(None, above=0)
    """Stored units per metre in depth files; default 1000 for PNG, 1 for npy."""
    depth_code: Literal["plain", "sunrgbd", "swapped"] = "plain"
    """How 16-bit depth is encoded: plain integers, SUN RGB-D's rotated bits, or swapped
    bytes."""
    depth_kind: Literal["planar", "ray", "disparity"] = "planar"
    """What depth files measure: distance from the plane of the camera, or along the ray
    (needs --depth_fx), or disparity in pixels (needs --depth_fx and --baseline)."""
    depth_fx: float | None = flag(None, above=0)
    """Focal length for --depth_kind, in pixels of the depth maps."""
    baseline: float | None = flag(None, above=0)
    """Distance between the cameras of --depth_kind=disparity, metres."""
    doffs: float = 0.0
    """Difference of their principal points, pixels: depth = depth_fx * baseline /
    (disparity + doffs)."""
    allow_outside: bool = False
    """Read files outside the data's folder that its lists or links name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Contents of a store: the flags that training and prepare-data share.

    Classes inherit the fields, which are keyword-only, so that they follow their own.
    """

    mask_extremes: Literal["auto", "on", "off"] = "auto"
    """Mask each image's own smallest and largest depth, as the paper does; auto: on for
    raw depth, off for filled."""
    max_depth: float = flag(10.0, above=0)
    """Ground truth beyond this many metres is masked; at most 255.99. Above 65.535 it
    is stored in steps of 1/256 m instead of 1 mm."""
    eval_fraction: float = flag(0.1, at_least=0, below=1)
    """Share of the frames, in whole scenes, to hold out for evaluation where the data
    have no split; 0: none."""
    test_scenes: Literal["drop", "keep"] = "drop"
    """Frames of scenes of NYU's official test set in training data."""


@dataclasses.dataclass(frozen=True)
class DataConfig(StoreConfig):
    """Training data."""

    path: str = flag("rooms", name="data")
    """rooms (rendered), or the path of a store, of nyu_depth_v2_labeled.mat, or of a
    folder of image and depth pairs."""
    data_format: str = flag("auto", choices="auto|jaxdepth.data.sources:SOURCES")
    """Format of --data; auto: detected from its content."""
    reading: ReadConfig = ReadConfig()
    depth: Literal["filled", "raw"] = "filled"
    """Ground truth with holes filled, or as measured."""
    rooms: int | Auto = flag("auto", at_least=1)
    """Number of rooms to render for training."""
    split: Literal["auto", "official", "tune", "report", "all"] = "auto"
    """Training and evaluation frames. official: the 795/654 of NYU; tune and report:
    held-out scenes of the 795; all: train on everything; auto: official for NYU, the
    data's own split otherwise."""
    train_images: int | None = flag(None, at_least=1)
    """Train on the first N images in the order of the seed."""
    augment: str = flag("full", choices="jaxdepth.training.augment:POLICIES")
    """Data augmentation. full: scale 1 to 1.5, rotation, crop, flip and colour; mild:
    scale about 1; flip: crop, flip and colour; scales: scale 1, 1.2 or 1.5, crop and
    flip; jitter: mild with stronger colour; cutout: mild with a hidden rectangle;
    strong: all of them, for few images without pretrained weights."""
    cache: Literal["none", "host", "device"] = "none"
    """Cache training frames in host memory, or sharded over the devices, which then
    need no input from the host. The batches are the same."""
    cache_dir: str = "~/.cache/jaxdepth"
    """Folder for rendered rooms, prepared data and compiled programs."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning rate."""

    name: str = flag(
        "adam", name="optimizer", choices="jaxdepth.training.optimizer:OPTIMIZERS"
    )
    """adam adds L2 to the gradient as the paper does, adamw decouples weight decay."""
    lr: float = flag(1e-3, above=0)
    """Learning rate."""
    lr_batch: int | None = flag(None, at_least=1)
    """Batch size that --lr applies to: the learning rate scales with --batch_size.
    Default: no scaling."""
    schedule: str = flag("constant", choices="jaxdepth.training.optimizer:SCHEDULES")
    """Learning rate schedule; poly: from --lr to 0 with the power 0.9, as DeepLab."""
    warmup_steps: int = flag(0, at_least=0)
    """Steps of linear warm-up."""
    warmup_epochs: float | None = flag(None, at_least=0)
    """Linear warm-up in epochs, instead of --warmup_steps."""
    weight_decay: float = flag(1e-4, at_least=0)
    """L2 penalty."""
    decay: Literal["kernels", "all"] = "kernels"
    """Parameters with weight decay: kernels, or all as in the paper."""
    clip_norm: float | None = flag(None, above=0)
    """Largest global norm of the gradient."""
    encoder_lr_factor: float = flag(1.0, at_least=0)
    """Factor on the learning rate of the encoder."""
    stage_lr_decay: float = flag(1.0, above=0, at_most=1)
    """Factor on the learning rate of each encoder stage for each stage after it: the
    last stage has 1, the stem the smallest."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training."""

    steps: int | Auto = flag("auto", at_least=1)
    """Training steps; auto: from --epochs, or 20 epochs."""
    epochs: float | None = flag(None, above=0)
    """Passes over the training images, instead of --steps."""
    batch_size: int | Auto = flag("auto", at_least=1)
    """Images per step over all devices; auto: 32."""
    ema: float = flag(0.0, at_least=0, below=1)
    """Decay of an exponential moving average of parameters and batch statistics, which
    is evaluated, saved and used in place of them; 0.99 averages about 100 steps; 0:
    off."""
    parallel: Literal["jit", "pmap"] = "jit"
    """Parallelism over devices; the results are equal."""
    accumulate: int = flag(1, at_least=1)
    """Microbatches per step, to save memory. Batch statistics, and berHu's batch scope,
    are then per microbatch."""
    steps_per_call: int = flag(1, at_least=1)
    """Training steps per call of the compiled function; logs, evaluations and
    checkpoints come after whole calls."""
    on_nan: Literal["stop", "skip"] = "stop"
    """On a loss that is not finite: stop the run, or skip the step."""
    seed: int = flag(0, at_least=0, below=2**32)
    """Random seed."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation."""

    eval_data: str | None = None
    """Path of other data to evaluate on."""
    eval_every: int | Auto = flag("auto", at_least=0)
    """Steps between evaluations, 0: at the end only; auto: five per run."""
    protocol: str = flag(
        "auto", choices="auto|all|jaxdepth.evaluation.protocols:PROTOCOLS"
    )
    """Evaluation protocol; auto: laina for NYU, plain otherwise."""
    flip_average: Literal["auto", "on", "off"] = "auto"
    """Flip test-time augmentation; auto: as the protocol says."""
    densedepth_rel: Literal["truth", "pred"] = "truth"
    """Denominator of abs_rel in protocol densedepth; pred: as its code did."""


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """Output."""

    workdir: str | None = None
    """Work directory of the run, a gs:// path too; default runs/ARCH-LOSS-NNN."""
    resume: str = "auto"
    """auto: resume the run in --workdir; never: refuse a folder with a run; or another
    run to continue, or a packed network: --steps then includes the steps of that run.
    """
    log_every: int | Auto = flag("auto", at_least=1)
    """Steps between log lines; auto: about 50 per run, at most 50 steps apart."""
    save_every: int | Auto = flag("auto", at_least=0)
    """Steps between checkpoints, 0: at the end only; auto: at every evaluation."""
    keep_optimizer: bool = True
    """Keep the optimizer state of the last checkpoint after the last step, for a longer
    run. Without it, the run is a third as large: its last and its best network."""
    recipe: str = "default"
    """Named set of flags; --recipe=help lists them."""
    plugin: str | None = None
    """Python file to import first: it registers networks, losses, metrics, protocols,
    data formats, optimizers or learning rate schedules."""


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Several hosts (not needed on Cloud TPU, Slurm and Open MPI)."""

    coordinator: str | None = None
    """HOST:PORT of host 0."""
    hosts: int | None = flag(None, at_least=1)
    """Number of hosts."""
    host: int | None = flag(None, at_least=0)
    """Index of this host, from 0."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a depth network, evaluate it, save it and show its predictions.

    Without --data it trains on rendered rooms. Flags beside --recipe override it.
    """

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    output: OutputConfig = OutputConfig()
    cluster: ClusterConfig = ClusterConfig()

    def __post_init__(self):
        validate(self)

    @classmethod
    def of(cls, **flags: Any) -> "Config":
        """Create a configuration from flags: `Config.of(arch="cnn", lr=1e-4)`.

        Raises: TypeError for an unknown flag, UserError for a value that is not
          allowed.
        """
        return flags_lib.from_flat(cls, flags)

    def replace(self, **flags: Any) -> "Config":
        """Return a copy with other values, by flag name."""
        return flags_lib.from_flat(type(self), self.flat() | flags)

    def flat(self) -> dict[str, Any]:
        """Return all values by flag name."""
        return flags_lib.as_flat(self)

    @property
    def image_size(self) -> Size:
        """(height, width) of the network's input. `size` must be resolved."""
        return self.model.image_size

    @property
    def frame_size(self) -> Size:
        """(height, width) of the training frame that `image_size` is cropped from."""
        return training_frame(self.image_size)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate. `batch_size` must be resolved."""
        batch_size = int(self.train.batch_size)
        return self.optimizer.lr * batch_size / (self.optimizer.lr_batch or batch_size)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Score a trained network on a data set, under one protocol or all."""

    checkpoint: str
    """Work directory of a run, or a packed network (jaxdepth pack)."""
    step: str = "best"
    """best, last or the number of a step."""
    data: str | None = None
    """rooms, or a path as for training; default: what the run evaluated on."""
    data_format: str = flag("auto", choices="auto|jaxdepth.data.sources:SOURCES")
    """Format of --data; auto: detected from its content."""
    depth_scale: float | None = flag(None, above=0)
    """Stored units per metre in depth files; default 1000 for PNG, 1 for npy."""
    depth_code: Literal["plain", "sunrgbd", "swapped"] | None = None
    """How 16-bit depth is encoded, see jaxdepth run; default: as the run read its data,
    plain for other data."""
    split: Literal["auto", "official", "tune", "report", "all"] = "auto"
    """Split whose evaluation frames are scored; all: every frame; auto: the split of
    the run, or the data's own."""
    protocol: str = flag(
        "auto", choices="auto|all|jaxdepth.evaluation.protocols:PROTOCOLS"
    )
    """Evaluation protocol; auto: that of the run on its own data, else laina for NYU
    and plain otherwise."""
    flip_average: Literal["auto", "on", "off"] = "auto"
    """Flip test-time augmentation; auto: as in the run."""
    densedepth_rel: Literal["auto", "truth", "pred"] = "auto"
    """Denominator of abs_rel in protocol densedepth; pred: as its code did; auto: as in
    the run."""
    max_depth: float | None = flag(None, above=0)
    """Ground truth beyond this many metres is masked in protocol plain; default: as in
    the run."""
    fx: float | Literal["auto"] | None = flag("auto", above=0)
    """Horizontal focal length, pixels of the frames: predictions are multiplied by its
    ratio to that of the training data; auto: as the data say; none: predictions are not
    corrected."""
    batch_size: int = flag(8, at_least=1)
    """Images per batch."""
    cache_dir: str = "~/.cache/jaxdepth"
    """Folder for prepared data and compiled programs."""
    out: str | None = None
    """JSON file for the metrics; it must not exist."""
    per_image: str | None = None
    """CSV file for the metrics of each image; it must not exist."""

    def __post_init__(self):
        flags_lib.validate(self)


def training_frame(image_size: Size) -> Size:
    """Return the frame size before the crop: 20/19 of the input, rounded half up.

    228x304 -> 240x320: Laina et al. 2016 crop 6 and 8 pixels from each side.
    """
    height, width = image_size
    return (40 * height + 19) // 38, (40 * width + 19) // 38


def parse_size(text: str) -> Size:
    """Parse a size: `"228x304"` -> (228, 304). Raises UserError for other formats."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise UserError(
            f"--size={text}: expected HEIGHTxWIDTH in pixels, as in 228x304"
        )
    return int(match[1]), int(match[2])


def devices_per_statistics(bn: str) -> int | None:
    """Number of devices that share batch statistics; None: all devices.

    1 for "local", N for "group:N". Raises UserError for other values than these and
    "global".
    """
    if bn in ("global", "local"):
        return None if bn == "global" else 1
    match = re.fullmatch(r"group:([1-9]\d{0,5})", bn)
    if not match:
        raise UserError(
            f"--bn={bn}: expected global, local or group:N with a number of devices, "
            "as in group:4"
        )
    return int(match[1])


def check_max_depth(metres: float) -> None:
    """Raise UserError for a --max_depth that a store can't hold."""
    if metres > MAX_DEPTH:
        raise UserError(
            f"--max_depth={metres:g}: at most {MAX_DEPTH} m, the limit of 16 bits at "
            "256 codes per metre"
        )


def choices(name: str) -> tuple[str, ...] | None:
    """Return the choices of a flag; None for a flag without a list of choices."""
    return flags_lib.flags_of(Config)[name].choices


def validate(config: Config) -> None:
    """Raise UserError for the first value, or pair of values, that is not allowed."""
    flags_lib.validate(config)
    _validate_pairs(config)


def _validate_pairs(config: Config) -> None:
    from jaxdepth.models import arch_named  # a registry, imported on use

    model, data, train = config.model, config.data, config.train
    if model.size != "auto":
        parse_size(model.size)
    devices_per_statistics(model.bn)
    if config.output.workdir == "":
        raise UserError("--workdir= is empty: name a folder, or leave the flag out")
    check_max_depth(data.max_depth)
    if train.steps != "auto" and train.epochs is not None:
        raise UserError("--steps and --epochs: give one of the two")
    if config.optimizer.warmup_steps and config.optimizer.warmup_epochs is not None:
        raise UserError("--warmup_steps and --warmup_epochs: give one of the two")
    if model.init != "random" and not model.weights:
        raise UserError(
            f"--init={model.init} needs --weights=FILE, the converted weights "
            "(jaxdepth convert-resnet for imagenet, jaxdepth convert-fcrn for nyu)"
        )
    if model.weights and model.init == "random":
        raise UserError("--weights without --init: give --init=imagenet or --init=nyu")
    arch = arch_named(model.arch)
    arch.check(model)
    if config.optimizer.stage_lr_decay != 1 and "stage_sizes" not in arch.fields:
        raise UserError(
            f"--stage_lr_decay={config.optimizer.stage_lr_decay:g}: {model.arch} has "
            "no encoder stages; give --arch=upproj, or leave the flag out"
        )
    if data.split == "all" and data.path == "rooms":
        raise UserError("--split=all: rooms have their own split; leave --split out")


def resolve(config: Config, *, platform: str) -> Config:
    """Resolve the "auto" values that depend on the platform, "cpu", "gpu" or "tpu".

    Values that depend on the data (steps, protocol, split) are resolved once it is
    open. The cluster flags are reset: they do not describe the run.
    """
    from jaxdepth.models import arch_named

    accelerated = platform != "cpu"
    config = config.replace(coordinator=None, hosts=None, host=None)
    if config.data.path == "rooms" and not accelerated:
        config = _resolve_demo(config)
    model, values = config.model, {}
    if model.size == "auto":
        values["size"] = "228x304"
    if config.train.batch_size == "auto":
        values["batch_size"] = 32
    if config.data.rooms == "auto":
        values["rooms"] = 4000
    if model.precision == "auto":
        values["precision"] = "bf16" if accelerated else "f32"
    if model.dropout == "auto":
        values["dropout"] = arch_named(model.arch).dropout
    return config.replace(**values)


def _resolve_demo(config: Config) -> Config:
    """Resolve "auto" values from the recipe `demo`, for rooms on a CPU."""
    names = ["size", "batch_size", "rooms"]
    names += ["steps"] if config.train.epochs is None else []
    flat, demo = config.flat(), RECIPES["demo"].flags
    return config.replace(**{k: demo[k] for k in names if flat[k] == "auto"})


def resolve_steps(config: Config, *, train_images: int) -> Config:
    """Resolve steps, epochs and intervals from the number of training images."""
    train, optimizer = config.train, config.optimizer
    assert train.batch_size != "auto"
    steps_per_epoch = train_images / train.batch_size
    steps, warmup_steps = train.steps, optimizer.warmup_steps
    per_call = train.steps_per_call

    def whole_calls(count: int) -> int:
        return per_call * math.ceil(count / per_call)

    if steps == "auto":
        epochs = 20.0 if train.epochs is None else train.epochs
        steps = whole_calls(max(1, math.ceil(epochs * steps_per_epoch)))
    if optimizer.warmup_epochs is not None:
        warmup_steps = math.ceil(optimizer.warmup_epochs * steps_per_epoch)
    eval_every: int | str = config.eval.eval_every
    log_every, save_every = config.output.log_every, config.output.save_every
    if eval_every == "auto":
        eval_every = max(1, math.ceil(steps / 5))
    if log_every == "auto":
        log_every = max(1, min(50, steps // 50))
    if save_every == "auto":
        save_every = eval_every
    if steps % per_call:
        raise UserError(
            f"--steps={steps} is not a multiple of --steps_per_call={per_call}: give "
            f"--steps={whole_calls(steps)}"
        )
    return config.replace(
        steps=steps,
        epochs=None,
        warmup_steps=warmup_steps,
        warmup_epochs=None,
        eval_every=whole_calls(int(eval_every)),
        log_every=whole_calls(int(log_every)),
        save_every=whole_calls(int(save_every)),
    )


# Removed values, and those that replace them: up-convolution forms differ in cost only.
_REPLACED = {("upconv", form): "auto" for form in ("packed", "rows", "dilated")}


def to_json(config: Config) -> dict[str, Any]:
    """Return the values by flag name, for JSON; `from_json` reads them."""
    return config.flat()


def from_json(values: dict[str, Any]) -> Config:
    """Read the values of `to_json`, of this version or an earlier one.

    Raises: UserError for unknown flags and values.
    """
    values = {
        flags_lib.RENAMED.get(name, name): value for name, value in values.items()
    }
    values = {k: _REPLACED.get((k, str(v)), v) for k, v in values.items()}
    unknown = sorted(set(values) - set(flags_lib.flags_of(Config)))
    if unknown:
        raise UserError(
            f"config.json has unknown flags ({', '.join(map(repr, unknown))}): use the "
            "version of jaxdepth that wrote it"
        )
    try:
        return Config.of(**values)
    except TypeError as error:  # a number instead of a string, or the reverse
        raise UserError(f"config.json is damaged: {error}") from None
    except UserError as error:
        if plugin := values.get("plugin"):
            raise UserError(
                f"{error}; the run was trained with --plugin={plugin}: pass it as well"
            ) from None
        raise


def loads(text: str, *, where: str) -> dict[str, Any]:
    """Parse a JSON object. Raises UserError, with the file name, for other text."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # or numbers of thousands of digits
        raise UserError(f"{where} is not JSON ({error}): the file is damaged") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object")
    return values
