"""Networks, batches and states that compile in seconds, for several test modules."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdepth.config import Config
from jaxdepth.models import create_model
from jaxdepth.runtime.flags import flags_of
from jaxdepth.training.step import StepSpec, init_state

SIZE = (19, 38)  # the network's input
FRAME = (20, 40)  # the training frame that belongs to it
WIDTHS: dict[str, dict[str, Any]] = {
    "upproj": {
        "stage_sizes": (1,),
        "width": 4,
        "decoder_in": 8,
        "decoder_features": (4,),
    },
    "cnn": {"features": (4, 6), "pools": 2},
    "cnn_fc": {"features": (4, 4), "hidden": 8},
}


def environment(*, devices: int = 1, tensorflow: bool = True) -> dict[str, str]:
    """The environment of a process with that many simulated devices.

    It imports jaxdepth from this repository. Without `tensorflow`, which takes longer
    to start than all the rest, threads read the data.
    """
    count = f" --xla_force_host_platform_device_count={devices}"
    tests = Path(__file__).parent
    path = [] if tensorflow else [str(tests / "without_tensorflow")]
    return {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + count,
        "PYTHONPATH": os.pathsep.join([*path, str(tests.parent), str(tests)]),
    }


def model(arch: str = "cnn", **options: Any):
    """A network of some thousand weights."""
    return create_model(arch, image_size=SIZE, **(WIDTHS[arch] | options))


def keep_gradient() -> optax.GradientTransformation:
    """Changes nothing; its state is the gradient that passed last."""

    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(updates, state, params=None):
        return updates, updates

    return optax.GradientTransformation(init, update)


def spec(arch: str = "cnn", **options: Any) -> StepSpec:
    """A step of SGD on the mean squared error.

    Options are fields of `StepSpec`, flags of training or fields of the network.
    """
    fields = {field.name for field in dataclasses.fields(StepSpec)}
    flags = set(flags_of(Config)) - {"optimizer", "freeze", "dropout"}
    flags -= {"width", "stage_sizes", "output_stride", "skips"}
    of_step = {k: v for k, v in options.items() if k in fields}
    of_config = {k: v for k, v in options.items() if k in flags - fields}
    of_model = {k: v for k, v in options.items() if k not in fields | flags}
    defaults: dict[str, Any] = {"loss": "mse", "augment": "none"}
    config = Config.of(size=f"{SIZE[0]}x{SIZE[1]}", **(defaults | of_config))
    usual: dict[str, Any] = {
        "model": model(arch, **of_model),
        "optimizer": optax.chain(keep_gradient(), optax.sgd(0.01, momentum=0.9)),
        "config": config,
    }
    return StepSpec(**(usual | of_step))


def changed(spec: StepSpec, **flags: Any) -> StepSpec:
    """The same step with other flags of training."""
    return dataclasses.replace(spec, config=spec.config.replace(**flags))


def state(spec: StepSpec, *, seed: int = 0):
    """A fresh state, as NumPy arrays: none of it can be donated by accident."""
    fresh = init_state(spec.model, spec.optimizer, image_size=SIZE, seed=seed)
    return jax.tree.map(np.asarray, fresh)


def batch(count: int, *, seed: int = 0, frame=FRAME, empty: tuple[int, ...] = ()):
    """Random frames with holes, with truth beyond 10 m, and `empty` ones without any.

    Truth is a smooth slope that differs between images, so that there is something to
    learn and gradients are no mere noise.
    """
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (count, *frame, 3)).astype(np.uint8)
    near, far = rng.uniform(600, 3000, (2, count, 1, 1))
    depth = near + far * np.linspace(0, 1, frame[0])[None, :, None]
    depth = np.round(depth * rng.uniform(0.9, 1.1, (count, *frame))).astype(np.uint16)
    depth[rng.random(depth.shape) < 0.3] = 0
    depth[rng.random(depth.shape) < 0.05] = 20000
    depth[list(empty)] = 0
    return {
        "rgb": rgb,
        "depth_codes": depth,
        "position": np.arange(count, dtype=np.int32),
    }
