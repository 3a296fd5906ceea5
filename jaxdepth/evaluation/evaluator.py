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

from jaxdepth.config import training_frame
from jaxdepth.evaluation import breakdown, metrics, protocols
from jaxdepth.evaluation.protocols import Protocol, Size
from jaxdepth.ops import platform
from jaxdepth.runtime import hosts
from jaxdepth.runtime.errors import UserError

log = logging.getLogger(__name__)

PyTree = Any
# (variables, colours 0..255 (b, h, w, 3) float32) -> metres (b, h', w').
PredictFn = Callable[[PyTree, jax.Array], jax.Array]
# {"rgb": (H, W, 3) uint8, "depth": {"filled": (H, W) metres or None, "raw": ...},
#  "name": str}; or stacks of them, (N, H, W, 3), (N, H, W) and N names.
Frames = Iterable[Mapping[str, Any]]


@dataclasses.dataclass
class Scores:
    """Scores under one protocol: sums per image.

    Attributes:
      sums: one row per image.
      parts: the same for each of `breakdown.PARTS`, by name.
      names: names of the images, in the order of `sums`.
      scenes: scene of each image, None if unknown.
      truths: kinds of ground truth used, "filled" or "raw".
      sizes: frame sizes.
    """

    sums: metrics.Sums = dataclasses.field(default_factory=metrics.Sums)
    parts: dict[str, metrics.Sums] = dataclasses.field(
        default_factory=lambda: {name: metrics.Sums() for name in breakdown.PARTS}
    )
    names: list[str] = dataclasses.field(default_factory=list)
    scenes: list[str | None] = dataclasses.field(default_factory=list)
    truths: set[str] = dataclasses.field(default_factory=set)
    sizes: set[Size] = dataclasses.field(default_factory=set)

    def merge(self, other: "Scores") -> None:
        """Append the scores of another part of the set, such as another host's."""
        if len(other.sums):
            self.sums.merge(other.sums)
            for name, sums in self.parts.items():
                sums.merge(other.parts[name])
        self.names += other.names
        self.scenes += other.scenes
        self.truths |= other.truths
        self.sizes |= other.sizes

    def to_json(self) -> dict[str, Any]:
        """A JSON value that holds the scores exactly."""
        return {
            "sums": self.sums.to_json(),
            "parts": {name: sums.to_json() for name, sums in self.parts.items()},
            "names": self.names,
            "scenes": self.scenes,
            "truths": sorted(self.truths),
            "sizes": sorted(self.sizes),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Scores":
        """The inverse of `to_json`."""
        return cls(
            sums=metrics.Sums.from_json(values["sums"]),
            parts={k: metrics.Sums.from_json(x) for k, x in values["parts"].items()},
            names=list(values["names"]),
            scenes=list(values["scenes"]),
            truths=set(values["truths"]),
            sizes={(height, width) for height, width in values["sizes"]},
        )

    def select(self, order: Sequence[int] | np.ndarray) -> "Scores":
        """The scores of the images at these indices, in this order."""
        return dataclasses.replace(
            self,
            sums=self.sums.select(order),
            parts={name: sums.select(order) for name, sums in self.parts.items()},
            names=[self.names[i] for i in order],
            scenes=[self.scenes[i] for i in order],
        )

    def table(self) -> list[dict[str, Any]]:
        """One dict per image: `name`, `scene`, `pixels`, metrics, counted pixels."""
        rows = zip(self.names, self.scenes, self.sums.per_image(), strict=True)
        return [{"name": name, "scene": scene} | row for name, scene, row in rows]


def _merged(shares: Sequence[Mapping[str, Any]]) -> Scores:
    """The scores of the whole set from shares; share k of n has every n-th image."""
    merged = Scores()
    for share in shares:
        merged.merge(Scores.from_json(share))
    indices = [
        k + i * len(shares)
        for k, share in enumerate(shares)
        for i in range(len(share["names"]))
    ]
    return merged.select(np.argsort(indices))


@dataclasses.dataclass
class _Bucket:
    """Frames of one size, collected until a batch is full."""

    places: list[int] = dataclasses.field(default_factory=list)
    rgb: list[np.ndarray] = dataclasses.field(default_factory=list)
    truth: list[tuple[np.ndarray, ...]] = dataclasses.field(default_factory=list)


class Evaluator:
    """Scores networks on sets of frames; compiled once per frame size.

    Args:
      predict_fn: (variables, colours 0..255 float32) -> metres at any size; it must
        treat images apart. Traced, not called: variables must come in as argument.
      chosen: of `protocols.choose`; the first one is the run's own.
      image_size: (height, width) that the network was trained at.
      arch_fixed: the network takes inputs of `image_size` only.
      given_truth: what protocols with truth "given" are scored against.
      batch_size: images per call, over all devices; rounded up to a multiple of them.
      devices: this host's devices to spread a batch over; None: the default device.
      share: (k, n) where this is host k of n, all of which call alike, and its frames
        are every n-th of the set, from the k-th; what comes back is of the whole set.
    """

    def __init__(
        self,
        predict_fn: PredictFn,
        chosen: Sequence[Protocol],
        *,
        image_size: Size,
        arch_fixed: bool = False,
        given_truth: str = "filled",
        batch_size: int = 8,
        devices: Sequence[Any] | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.predict_fn = predict_fn
        self.chosen = tuple(chosen)
        self.image_size = image_size
        self.arch_fixed = arch_fixed
        self.given_truth = given_truth
        self.share = share
        count = len(devices) if devices else 1
        self.batch_size = -(-batch_size // count) * count
        self._along = self._whole = None
        if devices:
            mesh = Mesh(np.array(devices), ("batch",))
            self._along = NamedSharding(mesh, PartitionSpec("batch"))
            self._whole = NamedSharding(mesh, PartitionSpec())
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
          variables: for `predict_fn`.
          frames: see `Frames`; read once, one batch in memory at a time.
          progress: called after each batch with the number of images done.

        Returns: scores by protocol name, images in the order of `frames`.
        Raises: UserError if there are no frames, if none has ground truth, or if a
          protocol does not take their size.
        """
        variables = jax.device_put(variables, self._whole)
        scores = {p.name: Scores() for p in self.chosen}
        places: list[int] = []
        pending: tuple[Any, _Bucket] | None = None
        # One batch ahead, so that the device works while the host sums and loads.
        for bucket in self._batches(frames, scores):
            rows = self._compiled(variables, *self._arrays(bucket))
            if pending is not None:
                self._collect(*pending, scores, places, progress)
            pending = rows, bucket
        if pending is not None:
            self._collect(*pending, scores, places, progress)
        for found in scores.values():
            # Batches of several sizes come back out of order.
            order = np.argsort(places)
            found.sums = found.sums.select(order)
            found.parts = {k: x.select(order) for k, x in found.parts.items()}
        if self.share[1] > 1:
            told = hosts.gather({name: s.to_json() for name, s in scores.items()})
            scores = {name: _merged([host[name] for host in told]) for name in scores}
        self._check(scores)
        return scores

    def _rows(
        self, variables: PyTree, rgb: jax.Array, truth: tuple[jax.Array, ...]
    ) -> dict[str, dict[str, dict[str, jax.Array]]]:
        """Row sums of a batch, of each part by protocol name.

        `truth` is in the protocols' order.
        """
        outputs: dict[tuple[str, bool], jax.Array] = {}

        def predict(protocol: Protocol, mirrored: bool) -> jax.Array:
            key = protocol.input_rule, mirrored
            if key not in outputs:
                x = protocols.network_input(
                    protocol, rgb, self.image_size, arch_fixed=self.arch_fixed
                )
                if mirrored:
                    back = self.predict_fn(variables, protocols.mirror(x))
                    outputs[key] = protocols.mirror(back)
                else:
                    outputs[key] = self.predict_fn(variables, x)
            return outputs[key]

        rows = {}
        for protocol, target in zip(self.chosen, truth, strict=True):
            both = (False, True) if protocol.flip_average else (False,)
            raw = [predict(protocol, mirrored) for mirrored in both]
            outs = [protocols.network_output(protocol, pred) for pred in raw]
            pred = outs[0] if len(outs) == 1 else 0.5 * (outs[0] + outs[1])
            # A clamp hides these from the metrics, but not from the counts.
            lost = jnp.sum(~jnp.isfinite(jnp.stack(raw)), axis=(0, 3))
            found = protocols.score_parts(protocol, pred, target)
            found[protocols.WHOLE]["nonfinite_outputs"] = lost
            rows[protocol.name] = found
        return rows

    def _batches(
        self, frames: Frames, scores: Mapping[str, Scores]
    ) -> Iterator[_Bucket]:
        """Full batches of one frame size, then the remainders of each size."""
        buckets: dict[Size, _Bucket] = {}
        for place, frame in enumerate(_single(frames)):
            size = frame["rgb"].shape[:2]
            bucket = buckets.setdefault(size, _Bucket())
            bucket.places.append(place)
            bucket.rgb.append(frame["rgb"])
            bucket.truth.append(
                tuple(self._truth(p, frame, scores[p.name]) for p in self.chosen)
            )
            if len(bucket.places) == self.batch_size:
                yield buckets.pop(size)
        yield from buckets.values()

    def _truth(
        self, protocol: Protocol, frame: Mapping[str, Any], found: Scores
    ) -> np.ndarray:
        """The ground truth that this protocol uses, or else the other kind."""
        size = frame["rgb"].shape[:2]
        protocols.check_frame(protocol, size)
        found.names.append(frame["name"])
        found.scenes.append(frame.get("scene"))
        found.sizes.add(size)
        wanted = self._wanted(protocol)
        other = "raw" if wanted == "filled" else "filled"
        for kind in (wanted, other):
            depth = frame["depth"].get(kind)
            if depth is not None:
                found.truths.add(kind)
                return np.asarray(depth, np.float32)
        return np.zeros(size, np.float32)

    def _wanted(self, protocol: Protocol) -> str:
        return self.given_truth if protocol.truth == "given" else protocol.truth

    def _arrays(self, bucket: _Bucket) -> tuple[Any, tuple[Any, ...]]:
        """A batch on the devices, padded by repeating its last frame."""
        short = self.batch_size - len(bucket.places)
        rgb = np.stack(bucket.rgb + bucket.rgb[-1:] * short)
        rows = bucket.truth + bucket.truth[-1:] * short
        # Transfer ground truth that protocols share once.
        stacks: dict[tuple[int, ...], Any] = {}
        truth = []
        for column in zip(*rows, strict=True):
            key = tuple(id(depth) for depth in column)
            if key not in stacks:
                stacks[key] = jax.device_put(np.stack(column), self._along)
            truth.append(stacks[key])
        return jax.device_put(rgb, self._along), tuple(truth)

    def _collect(
        self,
        rows: Mapping[str, Any],
        bucket: _Bucket,
        scores: Mapping[str, Scores],
        places: list[int],
        progress: Callable[[int], None] | None,
    ) -> None:
        rows = jax.device_get(rows)
        counted = np.arange(self.batch_size) < len(bucket.places)
        for name, found in rows.items():
            scores[name].sums.update(found.pop(protocols.WHOLE), counted=counted)
            for part, sums in found.items():
                scores[name].parts[part].update(sums, counted=counted)
        places += bucket.places
        if progress is not None:
            progress(len(places))

    def _check(self, scores: Mapping[str, Scores]) -> None:
        if not any(found.sums.images for found in scores.values()):
            seen = max((len(found.sums) for found in scores.values()), default=0)
            what = f"none of its {seen} frames has depth" if seen else "it is empty"
            raise UserError(
                f"the evaluation set cannot be used: {what}; give other --eval_data "
                "or another --split"
            )

    def entries(
        self, scores: Mapping[str, Scores], *, data: str, split: str
    ) -> list[dict[str, Any]]:
        """Results for JSON, two per protocol, one for each averaging.

        Each has `protocol`, `averaging`, `truth` (filled, raw, or both), `data`,
        `split`, `size` (of the network's input), `frame_size`, `images` (with truth),
        `metrics` (None where undefined), `counts` (pixels and images that explain
        them), `flip_average`, `abs_rel_over`, `notes` for the reader, and `parts`: for
        each of `breakdown.PARTS`, its `pixels`, `images` and `metrics`.

        The very last entry is the first protocol's, in the averaging that it names. The
        caller adds the step.
        """
        found = []
        for protocol in reversed(self.chosen):
            entry = self._entry(protocol, scores[protocol.name])
            # Sort by a bool: the named averaging comes last.
            named = protocol.averaging
            for averaging in sorted(metrics.AVERAGINGS, key=lambda a, n=named: a == n):
                values = scores[protocol.name].sums.compute(averaging)
                parts_of = _parts(scores[protocol.name], averaging)
                found.append(
                    {"protocol": entry["protocol"], "averaging": averaging}
                    | {"data": data, "split": split}
                    | entry
                    | {"metrics": values, "parts": parts_of}
                )
        return found

    def _entry(self, protocol: Protocol, found: Scores) -> dict[str, Any]:
        counts = found.sums.counts
        notes = self._notes(protocol, found, counts)
        for note in notes:
            # A run evaluates the same set many times: log once.
            if (protocol.name, note) not in self._logged:
                self._logged.add((protocol.name, note))
                log.warning("protocol %s: %s", protocol.name, note)
        sizes = [f"{height}x{width}" for height, width in sorted(found.sizes)]
        return {
            "protocol": protocol.title(self.image_size),
            "truth": "+".join(sorted(found.truths)),
            "size": f"{self.image_size[0]}x{self.image_size[1]}",
            "frame_size": sizes[0] if len(sizes) == 1 else "mixed",
            "images": found.sums.images,
            "counts": counts,
            "flip_average": protocol.flip_average,
            "abs_rel_over": protocol.rel,
            "notes": notes,
        }

    def _notes(
        self, protocol: Protocol, found: Scores, counts: Mapping[str, int]
    ) -> list[str]:
        notes = []
        wanted = self._wanted(protocol)
        others = found.truths - {wanted}
        if others:
            share = "all" if wanted not in found.truths else "some"
            notes.append(
                f"uses {wanted} depth; {share} frames have {others.pop()} depth only"
            )
        if counts["images_without_truth"]:
            notes.append(
                f"frames without ground truth: {counts['images_without_truth']}"
            )
        if not protocol.masked and counts["unscored"]:
            notes.append(
                "defined for ground truth without holes; missing pixels left out: "
                f"{counts['unscored']}"
            )
        if counts["nonfinite_outputs"]:
            notes.append(
                "outputs of the network that are not finite: "
                f"{counts['nonfinite_outputs']}"
            )
        if counts["nonpositive"]:
            notes.append(
                "predictions that are not positive, so that metrics with logarithms "
                f"are null: {counts['nonpositive']}"
            )
        return notes


def _parts(found: Scores, averaging: metrics.Averaging) -> dict[str, Any]:
    """Results of each part, as entries hold them."""
    return {
        name: {
            "pixels": sums.counts["pixels"],
            "images": sums.images,
            "metrics": sums.compute(averaging),
        }
        for name, sums in found.parts.items()
    }


def map_variables(
    depth_map: float | np.ndarray, image_size: Size
) -> dict[str, np.ndarray]:
    """A fixed depth map as `variables` for `predict_map`.

    Args:
      depth_map: metres, (height, width) of the training frame, or one number.
      image_size: (height, width) of the network it is compared with; protocol `laina`
        shows that the central crop of the map.
    """
    frame = training_frame(image_size)
    whole = np.asarray(depth_map, np.float32)
    whole = np.full(frame, whole) if whole.ndim == 0 else whole
    if whole.shape != frame:
        raise ValueError(f"a map of {frame} was expected, not of {whole.shape}")
    top, left = ((a - b) // 2 for a, b in zip(frame, image_size, strict=True))
    crop = whole[top : top + image_size[0], left : left + image_size[1]]
    return {"whole": whole, "crop": crop}


def predict_map(
    variables: Mapping[str, jax.Array], rgb: Float[Array, "b h w 3"]
) -> Float[Array, "b i j"]:
    """A `PredictFn` that answers every image with the map of `map_variables`.

    Baselines go through a protocol by the same code as a network. What the network
    would see tells which part of the map is asked for.
    """
    whole, crop = variables["whole"], variables["crop"]
    chosen = crop if rgb.shape[1:3] == crop.shape else whole
    return jnp.broadcast_to(chosen, (rgb.shape[0], *chosen.shape))


def _single(frames: Frames) -> Iterator[Mapping[str, Any]]:
    """Frames one by one, from single frames or stacks."""
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
