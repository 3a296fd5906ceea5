"""Lines of text about evaluations, as in results.json, and about trained networks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxdepth import models
from jaxdepth.camera import Camera
from jaxdepth.config import Config
from jaxdepth.runtime.errors import printable
from jaxdepth.runtime.trees import PyTree


def summary(entry: Mapping[str, Any]) -> str:
    """One line: the main metrics of an evaluation, with its conditions."""
    return f"{main_metrics(entry)} ({conditions(entry)})"


def main_metrics(entry: Mapping[str, Any]) -> str:
    """The main metrics of an evaluation; RMSE in metres."""
    metrics = entry["metrics"]
    return ", ".join(
        f"{name} {metrics[name]:.3f}"
        if metrics[name] is not None
        else f"{name} undefined"
        for name in ("delta1", "abs_rel", "rmse")
    )


def conditions(entry: Mapping[str, Any]) -> str:
    """How an evaluation was measured: protocol, averaging, truth, data, split, size."""
    return f"{scoring(entry)}, trained at {entry['size']}"


def scoring(entry: Mapping[str, Any]) -> str:
    """`conditions` without the size that the network was trained at."""
    return (
        f"{averaging(entry)}, {entry['truth']} truth, {entry['data']}, split "
        f"{entry['split']}"
    )


def averaging(entry: Mapping[str, Any]) -> str:
    """Protocol and averaging."""
    flip = ", flip TTA" if entry.get("flip_average") else ""
    return f"{entry['protocol']}, {entry['averaging']}{flip}"


def score(evaluations: Sequence[Any], step: int | None) -> str:
    """The last evaluation of a step; "unknown" if there is none, or it is damaged."""
    try:
        last = [entry for entry in evaluations if entry["step"] == step][-1]
        text = f"{main_metrics(last)} ({scoring(last)})"
    except (LookupError, TypeError, ValueError, AttributeError):
        text = "unknown"
    return f"score: {printable(text, 300)}"


def network(config: Config, params: PyTree, step: int | None) -> str:
    """Architecture, number of parameters and training step."""
    count = sum(np.size(x) for x in jax.tree.leaves(params)) / 1e6
    when = "unknown" if step is None else step
    return f"network: {config.model.arch}, {count:.2f} M parameters, step {when}"


def input_size(config: Config) -> str:
    """The size that a network was trained at, and the scale of its input."""
    (rows, columns), (height, width) = config.image_size, config.frame_size
    if models.arch_named(config.model.arch).fixed_size:
        return f"size: {rows}x{columns}; photos are stretched to it"
    return f"size: {rows}x{columns}; photos are scaled to cover {height}x{width}"


def camera(camera: Camera | None, size: tuple[int, int]) -> str:
    """Focal length and horizontal field of view of the training frames."""
    if camera is None:
        return "camera: unknown; metres are not corrected for the focal length"
    angle = math.degrees(2 * math.atan(size[1] / (2 * camera.fx)))
    return (
        f"camera: fx {camera.fx:.5g} pixels at {size[0]}x{size[1]}, {angle:.0f} degrees"
    )


def training_data(data: Mapping[str, Any]) -> str:
    """Training data, by `data` in config.json."""
    if not data.get("train_name"):
        return "training data: unknown"
    text = f"{data['train_name']}, split {data.get('split', 'unknown')}"
    if data.get("train_images"):
        text += f", {data['train_images']} images"
    return f"training data: {printable(text)}"
