"""Depth prediction for photos of any size, in metres."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxdepth import config as config_lib
from jaxdepth import images as images_lib
from jaxdepth import models, workdir
from jaxdepth.camera import Camera, covering_scale, depth_factor
from jaxdepth.config import Config
from jaxdepth.evaluation import protocols
from jaxdepth.ops import platform, resize
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import step as step_lib
from jaxdepth.training.checkpoint import Checkpoints
from jaxdepth.training.state import PyTree

# Photos of a more extreme aspect are squeezed to this one, which bounds the input size.
MAX_ASPECT = 8


class Predictor:
    """A trained network that predicts the depth of photos.

    Attributes:
      config: configuration that it was trained with.
      camera: median camera of its training frames, at the size `config.frame_size`;
        None if it is unknown.
      step: training step of its parameters; None if unknown.
      variables: parameters and batch statistics.
      forward: (variables, colours 0 to 255 (b, h, w, 3)) -> depth in metres, at the
        output size of the network.
    """

    def __init__(
        self,
        config: Config,
        variables: PyTree,
        *,
        camera: Camera | None = None,
        step: int | None = None,
    ):
        self.config = config
        self.camera = camera
        self.step = step
        model = models.create(config.model)
        self.variables = jax.device_put(variables)

        def forward(variables, rgb):
            return step_lib.predict(model, variables, rgb, layout=config.model.layout)

        # The variables are an argument because constants would be compiled in.
        self.forward = forward
        self._compiled = jax.jit(forward, compiler_options=platform.compiler_options())

    def network(self, rgb: Float[Any, "b h w 3"]) -> Float[jax.Array, "b i j"]:
        """Depth in metres at the output size, for inputs in colours 0 to 255."""
        return self._compiled(self.variables, jnp.asarray(rgb, jnp.float32))

    def input_size(self, photo: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the network's input for a photo of (height, width).

        The photo is scaled until it covers the training frame, with its aspect kept up
        to 8 to 1. A network with a fixed input size, such as `cnn_fc`, gets that size.
        """
        if models.arch_named(self.config.model.arch).fixed_size:
            return self.config.image_size
        height, width = protocols.whole_frame_size(photo, self.config.image_size)
        return min(height, MAX_ASPECT * width), min(width, MAX_ASPECT * height)

    def depth_factor(self, photo: tuple[int, int], fx: float | None) -> float:
        """The factor that corrects predicted metres for a photo's focal length.

        Args:
          photo: (height, width).
          fx: focal length in pixels at that size; None if it is unknown.

        Returns: `camera.depth_factor`; 1 if `fx` or the training camera is unknown.
        """
        return depth_factor(
            fx,
            photo,
            trained_fx=None if self.camera is None else self.camera.fx,
            frame=self.config.frame_size,
        )

    def assumed_fx(self, photo: tuple[int, int]) -> float | None:
        """The focal length in pixels of a photo for which `depth_factor` is 1.

        None if the training camera is unknown.
        """
        if self.camera is None:
            return None
        return self.camera.fx / covering_scale(photo, self.config.frame_size)

    def predict(
        self, image: Any, *, fx: float | Literal["auto"] | None = "auto"
    ) -> Float[np.ndarray, "h w"]:
        """Predict the depth of one photo.

        The metres are corrected for the focal length of the photo, if it and the camera
        of the training frames are known.

        Args:
          image: a path, a PIL image, or an array (H, W, 3) uint8.
          fx: focal length in pixels of the photo; "auto": from its EXIF data, if it is
            given as a path or a PIL image; None: no correction.

        Returns: (H, W) float32, metres, at the photo's size, or at the reduced size of
          a file of more than 33 megapixels.
        Raises: UserError for a file that is not an image.
        """
        return next(iter(self.predict_many([image], fx=fx)))

    def predict_frame(self, frame: Mapping[str, Any]) -> Float[np.ndarray, "h w"]:
        """Predict the depth of a frame of `Store.full_frames`, for its camera."""
        camera = frame["camera"]
        return self.predict(frame["rgb"], fx=None if camera is None else camera.fx)

    def predict_many(
        self,
        images: Iterable[Any],
        *,
        fx: float | Literal["auto"] | None = "auto",
        batch_size: int = 8,
    ) -> Iterator[Float[np.ndarray, "h w"]]:
        """Predict the depth of many photos, in their order.

        Consecutive photos of one size share a batch.

        Args:
          images: as in `predict`, or as an `images.Photo`; read as needed.
          fx: as in `predict`, of every photo.
          batch_size: photos per batch.

        Returns: an iterator over (H, W) float32 arrays, metres, at the photos' sizes.
        """
        waiting: list[tuple[tuple[int, int], np.ndarray, float]] = []
        for image in images:
            rgb, reduced, own_fx = images_lib.as_photo(image)
            small, size = self._shrink(rgb), (rgb.shape[0], rgb.shape[1])
            focal = own_fx if fx == "auto" else fx
            factor = self.depth_factor(size, None if focal is None else focal / reduced)
            if waiting and (
                waiting[0][1].shape != small.shape or len(waiting) == batch_size
            ):
                yield from self._batch(waiting, batch_size)
                waiting = []
            waiting.append((size, small, factor))
        if waiting:
            yield from self._batch(waiting, batch_size)

    def _shrink(self, rgb: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
        size = self.input_size((rgb.shape[0], rgb.shape[1]))
        return np.asarray(protocols.resize_input(rgb[None].astype(np.float32), size)[0])

    def _batch(self, waiting: Sequence, batch_size: int) -> Iterator[np.ndarray]:
        inputs = np.stack([small for _, small, _ in waiting])
        # Pad the last batch so that it needs no compilation of its own; a single photo
        # is not padded, because that would cost a full batch.
        if 1 < len(inputs) < batch_size:
            fill = np.zeros((batch_size - len(inputs), *inputs.shape[1:]), np.float32)
            inputs = np.concatenate([inputs, fill])
        depth = np.asarray(self.network(inputs), np.float32)
        for (size, _, factor), one in zip(waiting, depth, strict=False):
            full = resize.resize_bilinear(one[None] * np.float32(factor), size)[0]
            yield np.asarray(full, np.float32)


def load(name: str | Path, *, step: str | int = "best") -> Predictor:
    """Load the trained network of a run.

        depth = jaxdepth.load("runs/upproj-si-001").predict("photo.jpg")

    Args:
      name: work directory of the run.
      step: "best", "last" or a number. "best" has the lowest RMSE; after training with
        --split=report or --split=official it is the last one, because choosing by a
        test set would be cheating.

    Returns: a `Predictor`.
    Raises: UserError if there is no complete checkpoint of that step.
    """
    folder = workdir.WorkDir.open(name)
    if not folder.local.is_dir():
        raise UserError(f"{name}: there is no such work directory")
    saved = folder.read_config()
    config = config_lib.from_json(saved["config"])
    checkpoints = Checkpoints(folder.checkpoints, read_only=True)
    split = saved.get("data", {}).get("eval_split", config.data.split)
    chosen = choose_step(checkpoints, split, step)
    model = models.create(config.model)
    image = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
    target = jax.eval_shape(model.init, jax.random.key(0), image)
    target = {"batch_stats": {}, **target}
    return Predictor(
        config,
        checkpoints.restore_model(target, step=chosen),
        camera=_training_camera(saved, where=f"{name}/{workdir.CONFIG}"),
        step=chosen,
    )


def _training_camera(saved: dict[str, Any], *, where: str) -> Camera | None:
    """The camera in a run's config.json; None if it has none.

    Raises: UserError if it is damaged.
    """
    recorded = saved.get("data", {}).get("camera")
    if recorded is None:
        return None
    try:
        camera = Camera(*(float(recorded[name]) for name in Camera._fields))
        if not (np.isfinite(camera).all() and camera.fx > 0 and camera.fy > 0):
            raise ValueError(recorded)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: invalid camera ({error})") from None
    return camera


def choose_step(checkpoints: Checkpoints, eval_split: str, step: str | int) -> int:
    """The step of the checkpoint that "best", "last" or a number stands for.

    Args:
      eval_split: evaluation split of the run; see `load` for its effect on "best".

    Raises: UserError if there is no such checkpoint.
    """
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{checkpoints.folder} holds no checkpoint yet")
    if step == "last" or (step == "best" and eval_split in ("official", "report")):
        return steps[-1]
    if step == "best":
        best = checkpoints.best_step()
        return steps[-1] if best is None else best
    try:
        number = int(step)
    except ValueError:
        raise UserError(f"--step={step}: expected best, last or a number") from None
    if number not in steps:
        have = ", ".join(map(str, steps))
        raise UserError(f"--step={step}: the run has checkpoints of steps {have}")
    return number
