"""Depth prediction for photos of any size, in metres."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from jaxdepth import config as config_lib
from jaxdepth import images as images_lib
from jaxdepth import models, workdir
from jaxdepth.camera import (
    Camera,
    Fx,
    centred,
    checked_fx,
    covering_scale,
    depth_factor,
)
from jaxdepth.config import Config
from jaxdepth.depth import Depth, FxSource
from jaxdepth.evaluation import describe, protocols
from jaxdepth.images import Photo
from jaxdepth.ops import platform, resize
from jaxdepth.runtime import garbage, jax_setup
from jaxdepth.runtime.errors import UserError, printable
from jaxdepth.training.checkpoint import Checkpoints
from jaxdepth.training.state import PyTree
from jaxdepth.weights import foreign, packed

# Photos of a more extreme aspect are squeezed to this one, which bounds the input size.
MAX_ASPECT = 8
# Inputs are extended to a multiple of this, so that photos of many sizes share a few
# compiled programs.
INPUT_MULTIPLE = 32


class Predictor:
    """A trained network that predicts the depth of photos.

    Threads may share it. Its `repr` states network, size, camera, training data and
    score.

    Attributes:
      config: configuration that it was trained with.
      camera: median camera of its training frames, at the size `config.frame_size`;
        None if it is unknown.
      step: training step of its parameters; None if unknown.
      data: training data, as in config.json of a run; empty if unknown.
      evaluations: scores, as in results.json of a run; empty if unknown.
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
        data: Mapping[str, Any] | None = None,
        evaluations: Sequence[Mapping[str, Any]] = (),
    ):
        self.config = config
        self.camera = camera
        self.step = step
        self.data = data or {}
        self.evaluations = evaluations
        model = models.create(config.model)
        self._output_size = model.output_size
        self.variables = jax.device_put(variables)

        def forward(variables, rgb):
            return models.predict(model, variables, rgb, layout=config.model.layout)

        # The variables are an argument because constants would be compiled in.
        self.forward = forward
        self._compiled = jax.jit(forward, compiler_options=platform.compiler_options())
        self._full_batches: set[tuple[int, ...]] = set()  # shapes that were compiled

    def __repr__(self) -> str:
        """Network, size, camera, training data and score, one per line."""
        return "\n  ".join(
            [
                "Predictor",
                describe.network(self.config, self.variables["params"], self.step),
                describe.input_size(self.config),
                describe.camera(self.camera, self.config.frame_size),
                describe.training_data(self.data),
                describe.score(self.evaluations, self.step),
            ]
        )

    def network(self, rgb: Float[Any, "b h w 3"]) -> Float[jax.Array, "b i j"]:
        """Depth in metres at the output size, for inputs in colours 0 to 255."""
        with garbage.paused():  # in the first call of a size, JAX traces
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

    def extended_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that an input of (height, width) is extended to.

        The next multiples of 32. The size of the training frame, which evaluation
        uses, is not extended, and neither is a fixed input size.
        """
        fixed = models.arch_named(self.config.model.arch).fixed_size
        if fixed or size == self.config.frame_size:
            return size
        height, width = (-(-side // INPUT_MULTIPLE) * INPUT_MULTIPLE for side in size)
        return height, width

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

    @overload
    def predict(
        self, x: Photo | str | os.PathLike[str] | bytes | IO[bytes] | Image.Image,
        fx: Fx = "auto",
    ) -> Depth: ...  # fmt: skip

    @overload
    def predict(
        self, x: list[Any] | tuple[Any, ...], fx: Fx = "auto"
    ) -> list[Depth]: ...

    @overload
    def predict(self, x: Any, fx: Fx = "auto") -> Any: ...

    def predict(self, x: Any, fx: Fx = "auto") -> Depth | list[Depth]:
        """Predict the depth of one photo, or of a list of photos.

        The metres are corrected for the focal length of the photo, if it and the camera
        of the training frames are known.

        Args:
          x: a photo, as a path, the bytes of an image file, a file open in binary mode,
            a PIL image, or an array of NumPy, JAX or PyTorch (on any device): (H, W),
            (H, W, C) or (C, H, W) with C = 1, 3 or 4, in the order RGB, of type uint8,
            uint16 or floating-point from 0 to 1. An array whose first and last axis are
            both 1, 3 or 4 long is read as (H, W, C). Several photos, as a list or a
            tuple of these, of any sizes, or an array (B, H, W, C) or (B, C, H, W).
          fx: focal length in pixels of the photo; "auto": from its EXIF data, which
            arrays don't have; None: no correction. It applies to every photo.

        Returns: `Depth` at the photo's size, or at the reduced size of a file of more
          than 33 megapixels; a list of them for several photos.
        Raises: UserError, with the problem and the fix, for anything else, and for a
          file that is not an image or is damaged.
        """
        several = images_lib.several(x)
        if several is None:
            return next(self.predict_many([x], fx=fx))
        return list(self.predict_many(images_lib.as_photos(several), fx=fx))

    def predict_frame(self, frame: Mapping[str, Any]) -> Float[np.ndarray, "h w"]:
        """Predict the depth of a frame of `Store.full_frames`, as evaluation does.

        For the frame's camera, and without extending the input.
        """
        camera = frame["camera"]
        fx = None if camera is None else camera.fx
        (depth,) = self._predictions([frame["rgb"]], fx=fx, extend=False)
        return depth.metres

    def predict_many(
        self,
        images: Iterable[Any],
        *,
        fx: Fx = "auto",
        batch_size: int = 8,
        keep_photos: bool = True,
    ) -> Iterator[Depth]:
        """Predict the depth of a stream of photos, in their order.

        Consecutive photos of similar sizes share a batch. Inputs are extended at the
        right and at the bottom to `extended_size` by repeating the edge, and the
        output is cut.

        Args:
          images: an iterable of photos, each as in `predict` or an `images.Photo`; read
            as needed.
          fx: as in `predict`, of every photo.
          batch_size: photos per batch.
          keep_photos: set `Depth.rgb`; a batch of large photos needs much memory.

        Returns: an iterator over `Depth`, at the photos' sizes.
        Raises: UserError as `predict`; that of a photo when it is read.
        """
        if isinstance(images, str | bytes | os.PathLike) or not hasattr(
            images, "__iter__"
        ):
            raise UserError(
                f"predict_many takes a list or another iterable of photos, not "
                f"{printable(repr(images), 60)}: use predict for one photo"
            )
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: expected at least 1")
        return self._predictions(
            images, fx=checked_fx(fx), batch_size=batch_size, keep_photos=keep_photos
        )

    def _predictions(
        self,
        images: Iterable[Any],
        *,
        fx: Fx,
        batch_size: int = 8,
        keep_photos: bool = False,
        extend: bool = True,
    ) -> Iterator[Depth]:
        """`predict_many`, without extending the inputs if `extend` is False."""
        waiting: list[_Waiting] = []
        for image in images:
            photo = images_lib.as_photo(image)
            one = self._prepare(photo, fx, keep_photo=keep_photos, extend=extend)
            if waiting and (
                waiting[0].rgb.shape != one.rgb.shape or len(waiting) == batch_size
            ):
                yield from self._batch(waiting, batch_size)
                waiting = []
            waiting.append(one)
        if waiting:
            yield from self._batch(waiting, batch_size)

    def _prepare(
        self, photo: Photo, fx: Fx, *, keep_photo: bool, extend: bool
    ) -> "_Waiting":
        """The network's input for a photo, and how its output becomes a `Depth`."""
        size = photo.rgb.shape[0], photo.rgb.shape[1]
        source: FxSource | None = "exif" if fx == "auto" else "given"
        focal = photo.fx if fx == "auto" else fx
        if focal is not None:
            focal /= photo.reduced
        factor = self.depth_factor(size, focal)
        if focal is None:
            focal = self.assumed_fx(size)
            source = None if focal is None else "training"
        small = self._shrink(photo.rgb)
        input_size = small.shape[0], small.shape[1]
        return _Waiting(
            size,
            _extend(small, self.extended_size(input_size)) if extend else small,
            self._output_size(input_size),
            factor,
            {
                # A copy, because callers may reuse their array for the next frame.
                "rgb": photo.rgb.copy() if keep_photo else None,
                "camera": None if focal is None else centred(focal, focal, size),
                "fx_source": source,
                "reduced": photo.reduced,
            },
        )

    def _shrink(self, rgb: UInt8[np.ndarray, "h w 3"]) -> np.ndarray:
        size = self.input_size((rgb.shape[0], rgb.shape[1]))
        return np.asarray(protocols.resize_input(rgb[None].astype(np.float32), size)[0])

    def _batch(self, waiting: Sequence["_Waiting"], batch_size: int) -> Iterator[Depth]:
        inputs = np.stack([one.rgb for one in waiting])
        for one, depth in zip(waiting, self._outputs(inputs, batch_size), strict=False):
            height, width = one.output_size
            cut = depth[None, :height, :width] * np.float32(one.factor)
            full = resize.resize_bilinear(cut, one.size)[0]
            yield Depth(np.ascontiguousarray(full, np.float32), **one.attributes)

    def _outputs(self, inputs: np.ndarray, batch_size: int) -> np.ndarray:
        """The outputs for a batch, by programs for 1 and for `batch_size` inputs.

        A batch that is not full needs no program of its own: it is padded, or taken one
        by one if that is less work and the program for full batches is not compiled.
        """
        count, shape = len(inputs), (batch_size, *inputs.shape[1:])
        if 2 * count <= batch_size and shape not in self._full_batches:
            single = [np.asarray(self.network(x[None]), np.float32) for x in inputs]
            return np.concatenate(single)
        if 1 < count < batch_size:
            inputs = np.pad(inputs, [(0, batch_size - count), (0, 0), (0, 0), (0, 0)])
        if count > 1:
            self._full_batches.add(shape)
        return np.asarray(self.network(inputs), np.float32)


class _Waiting(NamedTuple):
    """A photo that waits for its batch.

    Attributes:
      size: (height, width) of the photo.
      rgb: the network's input, extended.
      output_size: (height, width) of the output for the input before it was extended.
      factor: of `Predictor.depth_factor`.
      attributes: those of its `Depth`, without the metres.
    """

    size: tuple[int, int]
    rgb: np.ndarray
    output_size: tuple[int, int]
    factor: float
    attributes: dict[str, Any]


def _extend(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Extend (h, w, 3) at the right and at the bottom by repeating the edge."""
    bottom, right = (new - old for new, old in zip(size, rgb.shape[:2], strict=True))
    return np.pad(rgb, [(0, bottom), (0, right), (0, 0)], mode="edge")


@garbage.paused()
def load(
    name: str | Path,
    *,
    step: str | int = "best",
    cache_dir: str | Path | None = "~/.cache/jaxdepth",
) -> Predictor:
    """Load a trained network.

        depth = jaxdepth.load("nyu-small").predict("photo.jpg")
        depth.metres  # (H, W) float32

    Args:
      name: work directory of a run, a packed file (`jaxdepth pack`), or the name of a
        network that this package includes: "nyu-small".
      step: "best", "last" or a number. "best" has the lowest RMSE; after training with
        --split=report or --split=official it is the last one, because choosing by a
        test set would be cheating. A packed file holds one step.
      cache_dir: folder for compiled programs, which later processes reuse: enables
        JAX's persistent compilation cache for the whole process
        (`jax_setup.enable_compilation_cache`), unless a cache is set already, such as
        by JAX_COMPILATION_CACHE_DIR. None: no JAX setting is changed.

    Returns: a `Predictor`.
    Raises: UserError if there is no such network, if it is damaged, or if there is no
      complete checkpoint of that step.
    """
    if cache_dir is not None and not jax_setup.has_compilation_cache():
        jax_setup.enable_compilation_cache(str(cache_dir))
    if (file := packed.find(name)) is not None:
        return _load_packed(file, step=step, name=name)
    foreign.refuse(name)
    folder = workdir.WorkDir.open(name)
    if not folder.local.is_dir():
        raise UserError(f"{name}: there is no such work directory{_known(name)}")
    saved = folder.read_config()
    config = config_lib.from_json(saved["config"])
    checkpoints = Checkpoints(folder.checkpoints, read_only=True)
    split = saved.get("data", {}).get("eval_split", config.data.split)
    chosen = choose_step(checkpoints, split, step)
    return Predictor(
        config,
        checkpoints.restore_model(lambda: packed.expected_shapes(config), step=chosen),
        camera=_training_camera(saved, where=f"{name}/{workdir.CONFIG}"),
        step=chosen,
        data=saved.get("data"),
        evaluations=_evaluations(folder),
    )


def _evaluations(folder: workdir.WorkDir) -> list[dict[str, Any]]:
    """The evaluations in results.json; none if it is absent or damaged."""
    try:
        evaluations = folder.read_json(workdir.RESULTS).get("evaluations")
    except UserError:
        return []
    return evaluations if isinstance(evaluations, list) else []


def _load_packed(file: Path, *, step: str | int, name: str | Path) -> Predictor:
    network = packed.read(file)
    packed.check_step(network, step, name=name)
    camera = _training_camera({"data": network.data}, where=str(file))
    return Predictor(
        network.config,
        network.variables,
        camera=camera,
        step=network.step,
        data=network.data,
        evaluations=network.evaluations,
    )


def _known(name: str | Path) -> str:
    """The names of networks in this package, if `name` could be meant as one."""
    if "/" in str(name) or not packed.SHIPPED:
        return ""
    return f", and no network of that name (there is {', '.join(packed.SHIPPED)})"


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
