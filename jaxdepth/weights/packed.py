"""Packed networks: one safetensors file with all that prediction needs, and its origin.

The arrays are the parameters and batch statistics, by their paths in the network:
kernels in bfloat16 or float32, everything else in float32. The metadata are JSON texts:

    format       "jaxdepth network 1"
    config       the flags that the network was trained with
    data         data set, split and camera, as in config.json of the run
    step         training step
    rgb_mean, rgb_std   normalisation of colours of 0 to 255
    evaluations  scores, as in results.json
    command      command of the training
    versions     of packages
    licence      terms of the weights

`SHIPPED` are the networks in this package, which are loaded by name. Each has a model
card beside it, NAME.md.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxdepth import camera as camera_lib
from jaxdepth import config as config_lib
from jaxdepth import models
from jaxdepth.config import Config
from jaxdepth.models.layouts import layout_named
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.trees import PyTree, flatten
from jaxdepth.weights import files, name_tables

FORMAT = "jaxdepth network 1"
SUFFIX = ".safetensors"
DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
# Flags that name files or folders of the machine that trained the network: only the
# last part of these is kept, and the others take their default.
_FILES = ("data", "eval_data", "weights", "plugin", "resume")
_PLACES = ("workdir", "cache_dir")
_FOLDER = Path(__file__).parents[1] / "networks"
DEFAULT = "nyu-small"  # of jaxdepth predict
SHIPPED = tuple(sorted(path.stem for path in _FOLDER.glob(f"*{SUFFIX}")))


@dataclasses.dataclass(frozen=True)
class PackedNetwork:
    """The contents of a packed file.

    Attributes:
      variables: `params` and `batch_stats`, float32.
      config: configuration that it was trained with.
      step: training step; None if unknown.
      data: data set, split and camera, as in config.json of a run.
      evaluations: scores, as in results.json of a run.
      command: command of the training.
      versions: versions of packages in the training.
      licence: terms of the weights.
    """

    variables: PyTree
    config: Config
    step: int | None
    data: dict[str, Any]
    evaluations: list[dict[str, Any]]
    command: str
    versions: dict[str, str]
    licence: str


def find(name: str | Path) -> Path | None:
    """The packed file that a name stands for; None if it is not one.

    It is one if it is in `SHIPPED`, or ends in `.safetensors`, or is a file.
    """
    if str(name) in SHIPPED:
        return _FOLDER / f"{name}{SUFFIX}"
    if "://" in str(name):
        return None
    path = files.expanded(name)
    return path if path.suffix == SUFFIX or path.is_file() else None


def card(name: str | Path) -> Path | None:
    """The model card of a network in this package; None for another network."""
    return _FOLDER / f"{name}.md" if str(name) in SHIPPED else None


def is_packed(path: str | Path) -> bool:
    """Whether a file has the metadata of a packed network. Raises as `read`."""
    _, metadata = files.read_safetensors(files.expanded(path))
    return metadata.get("format") == FORMAT


def write(path: str | Path, network: PackedNetwork, *, dtype: str = "bfloat16") -> None:
    """Write a packed file.

    Args:
      path: a new file that ends in `.safetensors`.
      dtype: of the kernels, a name in `DTYPES`.

    Raises: UserError if the file exists or can't be created, or the network has
      values that are not finite; MachineError if storage fails.
    """
    path = files.output(str(path), SUFFIX)
    arrays = {k: np.asarray(x) for k, x in flatten(network.variables).items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} has values that are not finite: not packed")
        if name.endswith("/kernel"):
            arrays[name] = array.astype(DTYPES[dtype])
    layout = layout_named(network.config.model.layout)
    metadata = {
        "config": portable(network.config),
        "data": network.data,
        "step": network.step,
        "rgb_mean": layout.rgb_mean,
        "rgb_std": layout.rgb_std,
        "evaluations": network.evaluations,
        "command": network.command,
        "versions": network.versions,
        "licence": network.licence,
    }
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    files.write_safetensors(path, arrays, texts | {"format": FORMAT})


def portable(config: Config) -> dict[str, Any]:
    """The flags of a configuration, without the paths of the machine it is from."""
    flags, default = config_lib.to_json(config), config_lib.to_json(Config())
    for name in _FILES:
        if flags[name] is not None:
            flags[name] = os.path.basename(flags[name].rstrip("/")) or default[name]
    return flags | {name: default[name] for name in _PLACES}


def read(path: str | Path) -> PackedNetwork:
    """Read a packed file, or converted weights of the published FCRN.

    Raises: UserError if it is another file, damaged, or of another network than its
      configuration describes.
    """
    path = files.expanded(path)
    arrays, metadata = files.read_safetensors(path)
    if metadata.get("format") == files.FORMAT:
        return _converted(files.from_arrays(arrays, metadata, path), path)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a packed network of jaxdepth; if it holds a ResNet-50 of "
            f"torchvision, convert it with jaxdepth convert-resnet {path} "
            "OUT.safetensors"
        )
    values = _metadata(metadata, path)
    config = _config(values["config"], path)
    _check_normalisation(config, values["rgb_mean"], values["rgb_std"], path)
    try:
        arrays = {k: name_tables.as_weights(x, k, name=k) for k, x in arrays.items()}
    except UserError as error:
        raise UserError(f"{path}: {error}: it is damaged") from None
    _check_arrays(arrays, config, path)
    variables = {"batch_stats": {}, **traverse_util.unflatten_dict(arrays, sep="/")}
    others = ("step", "data", "evaluations", "command", "versions", "licence")
    return PackedNetwork(variables, config, **{name: values[name] for name in others})


def _converted(weights: files.Weights, path: Path) -> PackedNetwork:
    """The network of converted weights, if they are those of a complete one."""
    if weights.init != "nyu":
        raise UserError(
            f"{path} holds weights of an encoder, not a complete network: train one "
            f"from them with jaxdepth run --arch=upproj --init={weights.init} "
            f"--weights={path}"
        )
    # The published network predicts with the size and data of Laina et al. 2016.
    config = Config.of(
        arch="upproj", layout=weights.layout, size="228x304", loss="berhu",
        dropout=0.5, precision="f32", init="nyu", weights=path.name,
        data=weights.origin,
    )  # fmt: skip
    _check_normalisation(config, list(weights.rgb_mean), list(weights.rgb_std), path)
    _check_arrays(weights.arrays, config, path)
    data: dict[str, Any] = {"train_name": weights.origin, "train_nyu": False}
    if weights.layout == "fcrn":  # the other one is of Make3D
        height, width = config.frame_size
        camera = camera_lib.NYU.scaled(height / 480, width / 640)
        size = {"size": [height, width]}
        data |= {"train_nyu": True, "camera": size | camera._asdict()}
    return PackedNetwork(
        variables={
            "batch_stats": {},
            **traverse_util.unflatten_dict(dict(weights.arrays), sep="/"),
        },
        config=config,
        step=None,
        data=data,
        evaluations=[],
        command="",
        versions={},
        licence=weights.licence,
    )


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "config": dict,
    "data": dict,
    "step": (int, type(None)),
    "rgb_mean": list,
    "rgb_std": list,
    "evaluations": list,
    "command": str,
    "versions": dict,
    "licence": str,
}


def _metadata(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The values of the metadata. Raises UserError if they are damaged."""
    values = {}
    for name, kind in _TYPES.items():
        try:
            values[name] = json.loads(metadata[name])
        except (KeyError, ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: its metadata are damaged: {name} is missing or not JSON "
                f"({type(error).__name__})"
            ) from None
        if not isinstance(values[name], kind):
            raise UserError(f"{path}: its metadata are damaged: {name}")
    return values


def _config(flags: dict[str, Any], path: Path) -> Config:
    """The configuration. Raises UserError if it is damaged or not resolved."""
    try:
        config = config_lib.from_json(flags)
    except UserError as error:
        raise UserError(f"{path}: its configuration is damaged: {error}") from None
    model = config.model
    if "auto" in (model.size, model.dropout, model.precision):
        raise UserError(f"{path}: its configuration is damaged: it is not resolved")
    return config


def _check_normalisation(config: Config, mean: list, std: list, path: Path) -> None:
    """Raise UserError unless the normalisation of the input is that of the layout."""
    layout = layout_named(config.model.layout)
    if [mean, std] != [list(layout.rgb_mean), list(layout.rgb_std)]:
        raise UserError(
            f"{path}: its input normalisation is not that of --layout="
            f"{config.model.layout}; use the version of jaxdepth that wrote it"
        )


def expected_shapes(config: Config) -> PyTree:
    """`params` and `batch_stats` of a network, as shapes."""
    model = models.create(config.model)
    image = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return {"batch_stats": {}, **shapes}


def _check_arrays(arrays: Mapping[str, np.ndarray], config: Config, path: Path) -> None:
    """Raise UserError unless the arrays are those of the network."""
    expected = {k: x.shape for k, x in flatten(expected_shapes(config)).items()}
    names = sorted(set(expected) ^ set(arrays))
    if names:
        kind = "lacks" if names[0] in expected else "has an unknown array"
        raise UserError(
            f"{path} {kind} {names[0]}: it is damaged, or of another version"
        )
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise UserError(
                f"{path}: {name} has shape {array.shape}, expected {expected[name]}"
            )


def check_step(network: PackedNetwork, step: str | int, *, name: str | Path) -> None:
    """Raise UserError for a step that a packed file does not hold."""
    if str(step) not in ("best", "last", str(network.step)):
        raise UserError(
            f"--step={step}: {name} is a packed network and holds step {network.step} "
            "only"
        )
