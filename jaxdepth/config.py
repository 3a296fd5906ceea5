"""One typed configuration that every command reads; validation; JSON.

Values may be `"auto"` until `resolve` has seen the platform. The choices written
here are those of the tables they name (`ARCHS`, `LOSSES`, ...); a test holds the two
together, so that this module needs the standard library alone.
"""

import dataclasses
import json
import math
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxdepth.recipes import RECIPES
from jaxdepth.runtime.errors import UserError, nearest

Auto = Literal["auto"]
Size = tuple[int, int]
# The formats of data.sources, and what their content says.
DataFormat = Literal[
    "auto", "nyu_labeled", "nyu_raw", "tfds", "fastdepth", "bts", "densedepth", "tum",
    "folder",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a depth network, evaluate it, save it and show what it learned.

    With no data at hand it trains on rendered rooms. Every flag is written
    --flag=value; flags given beside --recipe win over the recipe.
    """

    # What to train.
    arch: Literal["cnn_fc", "cnn", "cnn_trans", "upproj"] = "upproj"
    """The network: CNN with fully connected layers, pure CNN, CNN with a transposed
    convolution, or ResNet-50 with up-projection blocks."""
    loss: Literal["mse", "si", "berhu", "si_grad", "si_berhu"] = "si"
    """Mean squared, scale-invariant or berHu; scale-invariant with gradient matching,
    or with berHu."""
    layout: Literal["torchvision", "fcrn", "fcrn_make3d"] = "torchvision"
    """Details of the network: torchvision's ResNet-50, the published FCRN, or its
    Make3D variant."""
    unpool: Literal["zero", "average"] = "zero"
    """What an up-projection puts between two entries: zeros, or their average."""
    upconv: Literal["auto", "plain", "dilated", "four"] = "auto"
    """How the up-convolution is computed. Equal in value; auto: by platform."""
    dropout: float | Auto = "auto"
    """Dropped share before the last layer while training; auto: 0.5 for cnn_fc."""
    si_lambda: float = 0.5
    """Weight of the squared mean in the scale-invariant loss, 0 to 1."""
    berhu_scope: Literal["image", "batch"] = "image"
    """Over what the threshold of berHu is taken: the paper's image, or the batch."""

    # On what.
    data: str = "rooms"
    """rooms (rendered), or the path of a store, of nyu_depth_v2_labeled.mat, or of a
    folder of image and depth pairs."""
    data_format: DataFormat = "auto"
    """What --data is, where its content should not decide."""
    depth_scale: float | None = None
    """Stored units per metre in depth files; default 1000 for PNG, 1 for npy."""
    depth: Literal["filled", "raw"] = "filled"
    """Train on depth with its holes filled, or as measured."""
    mask_extremes: Literal["auto", "on", "off"] = "auto"
    """Leave out each image's own smallest and largest depth, as the paper does;
    auto: on for raw depth, off for filled."""
    max_depth: float = 10.0
    """Truth beyond this many metres does not count."""
    rooms: int | Auto = "auto"
    """How many rooms to render for training."""
    eval_data: str | None = None
    """Other data to evaluate on, by path."""
    split: Literal["auto", "official", "tune", "report", "all"] = "auto"
    """Which frames train and which evaluate. official: the 795/654 of NYU; tune and
    report: held-out scenes of the 795; all: train on everything; auto: official for
    NYU, the data's own split otherwise."""
    train_images: int | None = None
    """Train on the first so many images in the order of the seed."""
    size: str = "auto"
    """Input of the network, HEIGHTxWIDTH; auto: 228x304."""
    augment: Literal["none", "flip", "mild", "full"] = "full"
    """Random views while training. full: scale 1 to 1.5, rotation, crop, flip and
    colour; mild: scale about 1; flip: crop, flip and colour; or none."""
    cache: Literal["none", "host", "device"] = "none"
    """Keep the training frames in the host's memory, or on the accelerators, spread
    over them: no input from the host then, and the same batches."""
    cache_dir: str = "~/.cache/jaxdepth"
    """Where rendered rooms, prepared data and compiled programs are kept."""

    # How.
    steps: int | Auto = "auto"
    """Training steps; auto: from --epochs, or 20 epochs."""
    epochs: float | None = None
    """Passes over the training images, instead of --steps."""
    batch_size: int | Auto = "auto"
    """Images per step over all devices; auto: 32."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """adam adds L2 to the gradient as the paper does, adamw decays apart from it."""
    lr: float = 1e-3
    """Learning rate."""
    lr_batch: int | None = None
    """The batch size that --lr is for: the rate grows in proportion with
    --batch_size. Default: --lr is the rate."""
    schedule: Literal["constant", "step", "thirds", "cosine"] = "constant"
    """Course of the learning rate."""
    warmup_steps: int = 0
    """Steps of linear increase at the start."""
    warmup_epochs: float | None = None
    """The same in passes over the training images."""
    weight_decay: float = 1e-4
    """L2 penalty."""
    decay: Literal["kernels", "all"] = "kernels"
    """What is decayed: kernels alone, or all parameters as the paper had it."""
    clip_norm: float | None = None
    """Largest global norm of a gradient."""
    init: Literal["random", "imagenet", "nyu"] = "random"
    """Start from random weights, an ImageNet encoder, or a whole network (needs
    --weights)."""
    weights: str | None = None
    """Converted weights for --init."""
    freeze: Literal["none", "encoder", "bn_stats"] = "none"
    """What training leaves as it is: the encoder, or all batch statistics."""
    encoder_lr_factor: float = 1.0
    """Factor on the learning rate of the encoder."""
    average: float = 0.0
    """Decay of a running average of parameters and batch statistics, which then is
    what is evaluated, saved and used: 0.99 looks back 100 steps; 0: none."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    """Arithmetic of the network; auto: bf16 on accelerators, f32 on CPU."""
    parallel: Literal["jit", "pmap"] = "jit"
    """How the step is placed on several devices. Equal numbers."""
    bn: Literal["global", "local"] = "global"
    """Batch statistics over the whole batch, or per device."""
    accumulate: int = 1
    """Split each batch into so many parts, one after another, to save memory. Batch
    statistics, and berHu's batch scope, are then of each part."""
    steps_per_call: int = 1
    """Steps that the devices take in one call, without the host between them; logs,
    evaluations and checkpoints come after whole calls."""
    on_nan: Literal["stop", "skip"] = "stop"
    """A loss that is not finite stops the run, or the step is skipped."""
    seed: int = 0
    """Seed of everything random."""

    # Measured how.
    protocol: Literal["auto", "laina", "eigen", "densedepth", "plain", "all"] = "auto"
    """How predictions are scored; auto: laina for NYU, plain otherwise."""
    flip_average: Literal["auto", "on", "off"] = "auto"
    """Average with the mirrored image's prediction; auto: as the protocol says."""
    densedepth_rel: Literal["truth", "pred"] = "truth"
    """Denominator of abs_rel in protocol densedepth; pred: what its code did."""

    # What is left behind.
    workdir: str | None = None
    """Folder of the run (a gs:// path is fine); default runs/ARCH-LOSS-NNN."""
    resume: str = "auto"
    """auto: go on where --workdir stopped; never: refuse a used folder; or the path
    of another run to go on from, whose steps count: give more --steps than it has."""
    log_every: int | Auto = "auto"
    """Steps between log lines; auto: about 50 a run, at most 50 steps apart."""
    eval_every: int | Auto = "auto"
    """Steps between evaluations; auto: five a run."""
    save_every: int | Auto = "auto"
    """Steps between checkpoints; auto: at every evaluation."""
    recipe: str = "default"
    """A named set of flags: see --recipe=help."""

    # Several hosts, each with the same command. Cloud TPU, Slurm and Open MPI need none
    # of these.
    coordinator: str | None = None
    """HOST:PORT of host 0, by which the hosts meet."""
    hosts: int | None = None
    """How many hosts train together."""
    host: int | None = None
    """Which one of them this is, from 0."""

    def __post_init__(self):
        validate(self)

    @property
    def image_size(self) -> Size:
        """(height, width) of the network's input; only once `size` is resolved."""
        return parse_size(self.size)

    @property
    def peak_lr(self) -> float:
        """The learning rate at its highest; only once `batch_size` is resolved."""
        return self.lr * int(self.batch_size) / (self.lr_batch or int(self.batch_size))

    @property
    def frame_size(self) -> Size:
        """(height, width) of the training frame that `image_size` is cropped from."""
        return training_frame(self.image_size)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Score a trained network on a data set, under one protocol or all."""

    checkpoint: str
    """Work directory of the run."""
    step: str = "best"
    """best, last or the number of a step."""
    data: str | None = None
    """rooms, or a path as for training; default: what the run evaluated on."""
    data_format: DataFormat = "auto"
    """What --data is, where its content should not decide."""
    depth_scale: float | None = None
    """Stored units per metre in depth files; default 1000 for PNG, 1 for npy."""
    split: Literal["auto", "official", "tune", "report", "all"] = "auto"
    """Whose evaluation frames to take; all: every frame; auto: as the run did, or
    what the data offer."""
    protocol: Literal["auto", "laina", "eigen", "densedepth", "plain", "all"] = "auto"
    """How predictions are scored; auto: as the run did on its own data, else laina
    for NYU and plain otherwise."""
    flip_average: Literal["auto", "on", "off"] = "auto"
    """Average with the mirrored image's prediction; auto: as the run did, which is
    as the protocol says unless it was told otherwise."""
    densedepth_rel: Literal["auto", "truth", "pred"] = "auto"
    """Denominator of abs_rel in protocol densedepth; pred: what its code did; auto:
    as the run did."""
    max_depth: float | None = None
    """Truth beyond this many metres does not count under plain; default: as the run
    did."""
    batch_size: int = 8
    """Images at a time."""
    cache_dir: str = "~/.cache/jaxdepth"
    """Where prepared data and compiled programs are kept."""
    out: str | None = None
    """A JSON file for the numbers; an existing one is not overwritten."""
    per_image: str | None = None
    """A CSV file for the numbers of every image; likewise."""

    def __post_init__(self):
        validate_bounds(self)


def training_frame(image_size: Size) -> Size:
    """The frame that is shrunk to, then cropped: 20/19 of the input, rounded half up.

    228x304 -> 240x320, as Laina et al. 2016 crop 6 and 8 pixels from each side.
    """
    height, width = image_size
    return (40 * height + 19) // 38, (40 * width + 19) // 38


def parse_size(text: str) -> Size:
    """`"228x304"` -> (228, 304). Raises UserError on anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not match:
        raise UserError(f"--size={text}: give HEIGHTxWIDTH in pixels, as in 228x304")
    return int(match[1]), int(match[2])


def choices(name: str) -> tuple[str, ...] | None:
    """The values that a flag of named choices takes; None for other flags."""
    hint = get_type_hints(Config)[name]
    return get_args(hint) if get_origin(hint) is Literal else None


# Lower bounds: (flag, smallest, whether it itself is allowed).
_BOUNDS: tuple[tuple[str, float, bool], ...] = (
    ("steps", 1, True),
    ("epochs", 0, False),
    ("batch_size", 1, True),
    ("rooms", 1, True),
    ("train_images", 1, True),
    ("accumulate", 1, True),
    ("steps_per_call", 1, True),
    ("lr", 0, False),
    ("weight_decay", 0, True),
    ("lr_batch", 1, True),
    ("warmup_steps", 0, True),
    ("warmup_epochs", 0, True),
    ("average", 0, True),
    ("clip_norm", 0, False),
    ("encoder_lr_factor", 0, True),
    ("depth_scale", 0, False),
    ("max_depth", 0, False),
    ("every", 1, True),
    ("max_gap", 0, False),
    ("workers", 0, True),
    ("log_every", 1, True),
    ("eval_every", 0, True),
    ("save_every", 0, True),
    ("si_lambda", 0, True),
    ("dropout", 0, True),
    ("seed", 0, True),
    ("hosts", 1, True),
    ("host", 0, True),
    ("fx", 0, False),
    ("fy", 0, False),
)


def validate(config: Config) -> None:
    """Raise UserError for the first value, or pair of values, that makes no sense."""
    for name in get_type_hints(Config):
        value, allowed = getattr(config, name), choices(name)
        if allowed and value not in allowed:
            hint = nearest(str(value), allowed)
            raise UserError(f"--{name}={value}: one of {', '.join(allowed)}{hint}")
    validate_bounds(config)
    _validate_pairs(config)


def validate_bounds(config: Any) -> None:
    """Raise UserError for the first number that is out of its range."""
    for name, low, included in _BOUNDS:
        value = getattr(config, name, None)
        if value is None or value == "auto":
            continue
        inside = value >= low if included else value > low
        if not math.isfinite(value):
            raise UserError(f"--{name}={value}: must be a finite number")
        if not inside:
            word = "at least" if included else "above"
            raise UserError(f"--{name}={value}: must be {word} {low:g}")
    if (seed := getattr(config, "seed", 0)) >= 2**32:
        raise UserError(f"--seed={seed}: must be below 2^32")


def _validate_pairs(config: Config) -> None:
    if config.size != "auto":
        parse_size(config.size)
    if config.workdir == "":
        raise UserError("--workdir= is empty: name a folder, or leave the flag out")
    if config.si_lambda > 1:
        raise UserError(f"--si_lambda={config.si_lambda}: must be at most 1")
    if config.dropout != "auto" and config.dropout >= 1:
        raise UserError(f"--dropout={config.dropout}: must be below 1")
    if config.average >= 1:
        raise UserError(f"--average={config.average}: must be below 1")
    if config.max_depth > 65.535:
        raise UserError(
            f"--max_depth={config.max_depth}: at most 65.535 m, what uint16 mm hold"
        )
    if config.steps != "auto" and config.epochs is not None:
        raise UserError("--steps and --epochs: give one of the two")
    if config.warmup_steps and config.warmup_epochs is not None:
        raise UserError("--warmup_steps and --warmup_epochs: give one of the two")
    if config.init != "random" and not config.weights:
        raise UserError(
            f"--init={config.init} needs --weights=FILE, the converted weights "
            "(jaxdepth convert-resnet for imagenet, jaxdepth convert-fcrn for nyu)"
        )
    if config.weights and config.init == "random":
        raise UserError("--weights without --init: say --init=imagenet or --init=nyu")
    if config.init != "random" and config.arch != "upproj":
        raise UserError(
            f"--init={config.init}: weights for upproj, {config.arch} has no ResNet-50"
        )
    if config.layout != "torchvision" and config.arch != "upproj":
        raise UserError(
            f"--layout={config.layout} is a layout of upproj, not of {config.arch}"
        )
    if config.unpool == "average" and config.arch != "upproj":
        raise UserError(f"--unpool=average belongs to upproj: {config.arch} has none")
    if config.split == "all" and config.data == "rooms":
        raise UserError("--split=all: rooms have their own split; leave --split out")


def resolve(config: Config, *, platform: str) -> Config:
    """Fill in what `auto` leaves to the platform ("cpu", "gpu" or "tpu").

    What depends on the data (steps, protocol, split) is settled when they are open.
    Where the hosts met is left out: it says nothing of the run.
    """
    accelerated = platform != "cpu"
    config = dataclasses.replace(config, coordinator=None, hosts=None, host=None)
    values: dict[str, Any] = {}
    if config.data == "rooms" and not accelerated:
        demo = RECIPES["demo"].flags
        names = ["size", "batch_size", "rooms"]
        names += ["steps"] if config.epochs is None else []
        values = {k: demo[k] for k in names if getattr(config, k) == "auto"}
        config = dataclasses.replace(config, **values)
    if config.size == "auto":
        values["size"] = "228x304"
    if config.batch_size == "auto":
        values["batch_size"] = 32
    if config.rooms == "auto":
        values["rooms"] = 4000
    if config.precision == "auto":
        values["precision"] = "bf16" if accelerated else "f32"
    if config.dropout == "auto":
        values["dropout"] = 0.5 if config.arch == "cnn_fc" else 0.0
    return dataclasses.replace(config, **values)


def settle_steps(config: Config, *, train_images: int) -> Config:
    """Fill in what `auto`, and epochs, leave to the number of training images."""
    steps, warmup_steps = config.steps, config.warmup_steps
    assert config.batch_size != "auto"
    if steps == "auto":
        epochs = 20.0 if config.epochs is None else config.epochs
        steps = max(1, math.ceil(epochs * train_images / config.batch_size))
    if config.warmup_epochs is not None:
        warmup_steps = math.ceil(
            config.warmup_epochs * train_images / config.batch_size
        )
    at_once = config.steps_per_call

    def whole_calls(count: int) -> int:
        return at_once * math.ceil(count / at_once)

    if config.steps == "auto":
        steps = whole_calls(steps)
    values: dict[str, Any] = {"steps": steps, "epochs": None}
    values |= {"warmup_steps": warmup_steps, "warmup_epochs": None}
    if config.eval_every == "auto":
        values["eval_every"] = max(1, math.ceil(steps / 5))
    if config.log_every == "auto":
        values["log_every"] = max(1, min(50, steps // 50))
    evaluations = values.get("eval_every", config.eval_every)
    if config.save_every == "auto":
        values["save_every"] = evaluations
    for name in ("log_every", "eval_every", "save_every"):
        values[name] = whole_calls(values.get(name, getattr(config, name)))
    if steps % at_once:
        raise UserError(
            f"--steps={steps} is no multiple of --steps_per_call={at_once}: give "
            f"--steps={whole_calls(steps)}"
        )
    return dataclasses.replace(config, **values)


def to_json(config: Config) -> dict[str, Any]:
    """A dict that JSON holds and `from_json` reads."""
    return dataclasses.asdict(config)


def from_json(values: dict[str, Any]) -> Config:
    """The configuration that `to_json` wrote. Fields unknown here are an error."""
    known = {field.name for field in dataclasses.fields(Config)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(
            f"config.json holds {', '.join(unknown)}, which this version of jaxdepth "
            "does not know: use the version that wrote it"
        )
    try:
        return Config(**values)
    except TypeError as error:  # a number where a word should stand, or the reverse
        raise UserError(f"config.json is damaged: {error}") from None


def loads(text: str, *, where: str) -> dict[str, Any]:
    """Parse JSON text, naming the file in the error."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error}): the file is damaged") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: a JSON object was expected")
    return values
