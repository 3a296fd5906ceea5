"""Evaluation of a network, or of a fixed depth map, under several protocols.

Frames of one size fill batches of one size, so that each size compiles once. Forward
passes that protocols share run once. The result is sums per image; averages are taken
on the host in float64.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from jaxdepth.camera import Camera, depth_factor
from jaxdepth.config import training_frame
from jaxdepth.evaluation import metrics, protocols
from jaxdepth.evaluation import scores as scores_lib
from jaxdepth.evaluation.protocols import Protocol, Size
from jaxdepth.evaluation.scores import Scores
from jaxdepth.ops import platform
from jaxdepth.runtime import hosts
from jaxdepth.runtime.errors import UserError

log = logging.getLogger(__name__)

PyTree = Any
# (variables, colours 0..255 (b, h, w, 3) float32) -> metres (b, h', w').
PredictFn = Callable[[PyTree, jax.Array], jax.Array]
# {"rgb": (H, W, 3) uint8, "depth": {"filled": (H, W) metres or None, "raw": ...},
#  "name": str, "camera": a Camera at (H, W), or None}; "camera" may be missing. Or
# stacks of them without cameras, (N, H, W, 3), (N, H, W) and N names.
Frames = Iterable[Mapping[str, Any]]


@dataclasses.dataclass
class _Bucket:
    """Frames of one size, collected until a batch is full."""

    indices: list[int] = dataclasses.field(default_factory=list)
    rgb: list[np.ndarray] = dataclasses.field(default_factory=list)
    truth: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)
    factors: list[float] = dataclasses.field(default_factory=list)


class Evaluator:
    """Scores networks on sets of frames; compiled once per frame size.

    Args:
      predict_fn: (variables, colours 0..255 float32) -> depth in metres at any size. It
        is traced, and must process the images of a batch independently.
      chosen: protocols, see `protocols.choose`; results show the first one first.
      image_size: (height, width) that the network was trained at.
      arch_fixed: the network accepts inputs of `image_size` only.
      given_truth: kind of ground truth for protocols with truth "given".
      camera: camera of the training frames, at their size; predictions for frames of
        other focal lengths are corrected by `camera.depth_factor`. None: unknown, no
        correction.
      batch_size: images per call over all devices; rounded up to a multiple of them.
      devices: devices of this host, over which batches are sharded; default: the
        default device only.
      share: (k, n) on host k of n. All n hosts call the evaluator in the same way, each
        with every n-th frame from its k-th; all get the scores of the whole set.
    """

    def __init__(
        self,
        predict_fn: PredictFn,
        chosen: Sequence[Protocol],
        *,
        image_size: Size,
        arch_fixed: bool = False,
        given_truth: str = "filled",
        camera: Camera | None = None,
        batch_size: int = 8,
        devices: Sequence[Any] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.predict_fn = predict_fn
        self.chosen = tuple(chosen)
        self.image_size = image_size
        self.arch_fixed = arch_fixed
        self.given_truth = given_truth
        self.camera = camera
        self.share = share
        count = len(devices) if devices else 1
        self.batch_size = -(-batch_size // count) * count
        self._sharded = self._replicated = None
        if devices:
            mesh = Mesh(np.array(devices), ("batch",))
            self._sharded = NamedSharding(mesh, PartitionSpec("batch"))
            self._replicated = NamedSharding(mesh, PartitionSpec())
        self._compiled = jax.jit(
            self._rows, compiler_options=platform.compiler_options()
        )
        self._logged: set[tuple[str, str]] = set()

    def __call__(
        self,
        variables: PyTree,
        frames: Frames,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> dict[str, Scores]:
        """Score a set of frames.

        Args:
          variables: first argument of `predict_fn`.
          frames: see `Frames`; read once, one batch in memory at a time.
          progress: called after each batch with the number of images done.

        Returns: scores by protocol name, images in the order of `frames`.
        Raises: UserError if there are no frames, if none has ground truth, or if a
          protocol does not accept their size.
        """
        variables = jax.device_put(variables, self._replicated)
        scores = {p.name: Scores() for p in self.chosen}
        indices: list[int] = []
        pending: tuple[Any, _Bucket] | None = None
        # Stay one batch ahead: the device computes while the host loads and sums.
        for bucket in self._batches(frames, scores):
            rows = self._compiled(variables, *self._arrays(bucket))
            if pending is not None:
                self._collect(*pending, scores, indices, progress)
            pending = rows, bucket
        if pending is not None:
            self._collect(*pending, scores, indices, progress)
        # Batches of several sizes finish out of order; names and scenes are in order.
        order = np.argsort(indices)
        for of_protocol in scores.values():
            of_protocol.sums = of_protocol.sums.select(order)
            of_protocol.parts = {
                name: sums.select(order) for name, sums in of_protocol.parts.items()
            }
        if self.share[1] > 1:
            shares = hosts.gather({name: s.to_json() for name, s in scores.items()})
            scores = {
                name: scores_lib.merged([x[name] for x in shares]) for name in scores
            }
        self._check(scores)
        return scores

    def _rows(
        self,
        variables: PyTree,
        rgb: jax.Array,
        truth: tuple[jax.Array, ...],
        factors: jax.Array,
    ) -> dict[str, dict[str, dict[str, jax.Array]]]:
        """Row sums of a batch by protocol name, then by part.

        Args:
          truth: ground truth for each protocol.
          factors: of each image, a factor for its prediction.
        """
        outputs: dict[tuple[str, bool], jax.Array] = {}

        def predict(protocol: Protocol, flip: bool) -> jax.Array:
            key = protocol.input_rule, flip
            if key not in outputs:
                x = protocols.network_input(
                    protocol, rgb, self.image_size, arch_fixed=self.arch_fixed
                )
                if flip:
                    flipped = self.predict_fn(variables, protocols.mirror(x))
                    outputs[key] = protocols.mirror(flipped)
                else:
                    outputs[key] = self.predict_fn(variables, x)
                outputs[key] = outputs[key].astype(jnp.float32) * factors[:, None, None]
            return outputs[key]

        rows = {}
        for protocol, target in zip(self.chosen, truth, strict=True):
            flips = (False, True) if protocol.flip_average else (False,)
            raw = [predict(protocol, flip) for flip in flips]
            outs = [protocols.network_output(protocol, pred) for pred in raw]
            pred = outs[0] if len(outs) == 1 else 0.5 * (outs[0] + outs[1])
            # Counted before the clamp, which may replace them by finite values.
            nonfinite = jnp.sum(~jnp.isfinite(jnp.stack(raw)), axis=(0, 3))
            parts = protocols.score_parts(protocol, pred, target)
            parts[protocols.ALL_PIXELS]["nonfinite_outputs"] = nonfinite
            rows[protocol.name] = parts
        return rows

    def _batches(
        self, frames: Frames, scores: Mapping[str, Scores]
    ) -> Iterator[_Bucket]:
        """Yield full batches of one frame size, then the remainder of each size."""
        buckets: dict[Size, _Bucket] = {}
        for index, frame in enumerate(_single(frames)):
            size = frame["rgb"].shape[:2]
            bucket = buckets.setdefault(size, _Bucket())
            bucket.indices.append(index)
            bucket.rgb.append(frame["rgb"])
            factor = self._factor(frame)
            bucket.factors.append(1.0 if factor is None else factor)
            for of_protocol in scores.values():
                of_protocol.factors.append(factor)
            bucket.truth.append(
                tuple(self._truth(p, frame, scores[p.name]) for p in self.chosen)
            )
            if len(bucket.indices) == self.batch_size:
                yield buckets.pop(size)
        yield from buckets.values()

    def _truth(
        self, protocol: Protocol, frame: Mapping[str, Any], scores: Scores
    ) -> np.ndarray:
        """The ground truth of a frame for a protocol; zeros without any.

        Falls back to the other kind of ground truth. Records the frame in `scores`.
        """
        size = frame["rgb"].shape[:2]
        protocols.check_frame(protocol, size)
        scores.names.append(frame["name"])
        scores.scenes.append(frame.get("scene"))
        scores.sizes.add(size)
        wanted = self._truth_kind(protocol)
        other = "raw" if wanted == "filled" else "filled"
        for kind in (wanted, other):
            if (depth := frame["depth"].get(kind)) is not None:
                scores.truths.add(kind)
                return np.asarray(depth, np.float32)
        return np.zeros(size, np.float32)

    def _factor(self, frame: Mapping[str, Any]) -> float | None:
        """The factor for the prediction of a frame; None if a camera is unknown."""
        camera = frame.get("camera")
        if camera is None or self.camera is None:
            return None
        return depth_factor(
            camera.fx,
            frame["rgb"].shape[:2],
            trained_fx=self.camera.fx,
            frame=training_frame(self.image_size),
        )

    def _truth_kind(self, protocol: Protocol) -> str:
        """The kind of ground truth of a protocol: "filled" or "raw"."""
        return self.given_truth if protocol.truth == "given" else protocol.truth

    def _arrays(self, bucket: _Bucket) -> tuple[Any, tuple[Any, ...], Any]:
        """A batch on the devices, padded by repeating its last frame."""
        short = self.batch_size - len(bucket.indices)
        rgb = np.stack(bucket.rgb + bucket.rgb[-1:] * short)
        rows = bucket.truth + bucket.truth[-1:] * short
        # Ground truth that protocols share is transferred once.
        stacks: dict[tuple[int, ...], Any] = {}
        truth = []
        for column in zip(*rows, strict=True):
            key = tuple(id(depth) for depth in column)
            if key not in stacks:
                stacks[key] = jax.device_put(np.stack(column), self._sharded)
            truth.append(stacks[key])
        factors = bucket.factors + bucket.factors[-1:] * short
        return (
            jax.device_put(rgb, self._sharded),
            tuple(truth),
            jax.device_put(np.asarray(factors, np.float32), self._sharded),
        )

    def _collect(
        self,
        rows: Mapping[str, Any],
        bucket: _Bucket,
        scores: Mapping[str, Scores],
        indices: list[int],
        progress: Callable[[int], None] | None,
    ) -> None:
        """Add the row sums of a batch to the scores."""
        rows = jax.device_get(rows)
        counted = np.arange(self.batch_size) < len(bucket.indices)
        for name, parts in rows.items():
            scores[name].sums.update(parts.pop(protocols.ALL_PIXELS), counted=counted)
            for part, sums in parts.items():
                scores[name].parts[part].update(sums, counted=counted)
        indices += bucket.indices
        if progress is not None:
            progress(len(indices))

    def _check(self, scores: Mapping[str, Scores]) -> None:
        """Raise UserError if no frame has ground truth."""
        if not any(x.sums.images for x in scores.values()):
            frames = max((len(x.sums) for x in scores.values()), default=0)
            reason = (
                f"none of its {frames} frames has depth" if frames else "it is empty"
            )
            raise UserError(
                f"the evaluation set can't be used: {reason}; give other --eval_data "
                "or another --split"
            )

    def entries(
        self, scores: Mapping[str, Scores], *, data: str, split: str
    ) -> list[dict[str, Any]]:
        """Results for JSON, two per protocol, one for each averaging.

        Each has `protocol`, `averaging`, `truth` (filled, raw, or both), `data`,
        `split`, `size` (of the network's input), `frame_size`, `images` (with ground
        truth), `metrics` (None if undefined), `counts` (see `Sums.counts`),
        `flip_average`, `abs_rel_over`, `camera_factor` (smallest and largest factor by
        which predictions were multiplied for the focal length, and the number of
        images where it is `unknown`), `notes` for the reader, and `parts`: for each of
        `breakdown.PARTS`, its `pixels`, `images` and `metrics`.

        Protocols are in reverse order, each with its named averaging second, so that
        the last entry is the one to show first. The caller adds the step.
        """
        entries = []
        for protocol in reversed(self.chosen):
            entry = self._entry(protocol, scores[protocol.name])
            # Sort by a bool: the named averaging comes last.
            named = protocol.averaging
            for averaging in sorted(metrics.AVERAGINGS, key=lambda a, n=named: a == n):
                values = scores[protocol.name].sums.compute(averaging)
                parts = scores[protocol.name].by_part(averaging)
                entries.append(
                    {"protocol": entry["protocol"], "averaging": averaging}
                    | {"data": data, "split": split}
                    | entry
                    | {"metrics": values, "parts": parts}
                )
        return entries

    def _entry(self, protocol: Protocol, scores: Scores) -> dict[str, Any]:
        """The part of an entry that does not depend on the averaging."""
        counts = scores.sums.counts
        notes = self._notes(protocol, scores, counts)
        for note in notes:
            # A run evaluates the same set many times: log once.
            if (protocol.name, note) not in self._logged:
                self._logged.add((protocol.name, note))
                log.warning("protocol %s: %s", protocol.name, note)
        sizes = [f"{height}x{width}" for height, width in sorted(scores.sizes)]
        return {
            "protocol": protocol.title(self.image_size),
            "truth": "+".join(sorted(scores.truths)),
            "size": f"{self.image_size[0]}x{self.image_size[1]}",
            "frame_size": sizes[0] if len(sizes) == 1 else "mixed",
            "images": scores.sums.images,
            "counts": counts,
            "flip_average": protocol.flip_average,
            "abs_rel_over": protocol.rel,
            "camera_factor": scores.camera_factor,
            "notes": notes,
        }

    def _notes(
        self, protocol: Protocol, scores: Scores, counts: Mapping[str, int]
    ) -> list[str]:
        """Notes for the reader of the metrics."""
        notes = []
        wanted = self._truth_kind(protocol)
        if others := scores.truths - {wanted}:
            share = "all" if wanted not in scores.truths else "some"
            notes.append(
                f"uses {wanted} depth, but {share} frames have only {others.pop()} "
                "depth"
            )
        known = [factor for factor in scores.factors if factor is not None]
        if any(factor != 1 for factor in known):
            low, high = f"{min(known):.3g}", f"{max(known):.3g}"
            factors = low if low == high else f"{low} to {high}"
            notes.append(
                f"predictions multiplied by {factors}, the focal length of the frame "
                "over that of the training data"
            )
        numbers = {
            "frames without ground truth": counts["images_without_truth"],
            "expects ground truth without holes; missing pixels, not scored": (
                0 if protocol.masked else counts["unscored"]
            ),
            "outputs of the network that are not finite": counts["nonfinite_outputs"],
            "predictions that are not positive, so that metrics with logarithms are "
            "null": counts["nonpositive"],
        }
        return notes + [f"{text}: {n}" for text, n in numbers.items() if n]


def map_variables(
    depth_map: float | np.ndarray, image_size: Size
) -> dict[str, np.ndarray]:
    """A fixed depth map as `variables` for `predict_map`.

    Args:
      depth_map: metres, (height, width) of the training frame, or one number.
      image_size: (height, width) that a network to compare with was trained at;
        protocol `laina` uses the central crop of this size.

    Raises: ValueError for a map of another size.
    """
    frame_size = training_frame(image_size)
    frame = np.asarray(depth_map, np.float32)
    frame = np.full(frame_size, frame) if frame.ndim == 0 else frame
    if frame.shape != frame_size:
        raise ValueError(f"a map of {frame.shape}: expected {frame_size}")
    top, left = ((a - b) // 2 for a, b in zip(frame_size, image_size, strict=True))
    crop = frame[top : top + image_size[0], left : left + image_size[1]]
    return {"frame": frame, "crop": crop}


def predict_map(
    variables: Mapping[str, jax.Array], rgb: Float[Array, "b h w 3"]
) -> Float[Array, "b i j"]:
    """A `PredictFn` that returns the map of `map_variables` for every image.

    Baselines are thus scored by the same code as networks. The size of the input
    decides between the map and its crop.
    """
    frame, crop = variables["frame"], variables["crop"]
    depth = crop if rgb.shape[1:3] == crop.shape else frame
    return jnp.broadcast_to(depth, (rgb.shape[0], *depth.shape))


def _single(frames: Frames) -> Iterator[Mapping[str, Any]]:
    """Yield single frames from frames or stacks of frames."""
    for frame in frames:
        if np.ndim(frame["rgb"]) == 3:
            yield frame
            continue
        for k, rgb in enumerate(frame["rgb"]):
            depth = {
                kind: None if stack is None else stack[k]
                for kind, stack in frame["depth"].items()
            }
            yield {"rgb": rgb, "depth": depth, "name": frame["name"][k]}
