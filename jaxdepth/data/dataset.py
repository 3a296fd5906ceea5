"""Open data sets from the data flags: frames to train on and to evaluate on."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxdepth import camera as camera_lib
from jaxdepth.camera import Camera, covering_scale
from jaxdepth.config import Config, DataConfig, ReadConfig
from jaxdepth.data import order, units
from jaxdepth.data.sources import ReadOptions, takes
from jaxdepth.data.sources import rooms as rooms_source
from jaxdepth.data.split import HELD_OUT
from jaxdepth.data.store import recorded
from jaxdepth.data.store.reader import FullSizeStore, Store, is_store
from jaxdepth.data.store.remote import is_remote
from jaxdepth.data.store.writer import Job, Packing, prepare
from jaxdepth.runtime.errors import UserError

logger = logging.getLogger(__name__)
MAX_SQUEEZE = 0.05  # largest relative change of aspect ratio; sizes are rounded
CHUNK = 64  # frames per call of `gather` when all frames are read


@dataclasses.dataclass(frozen=True)
class Data:
    """The open data sets of a run.

    Attributes:
      name: the name of the evaluation data in results.
      train, train_rows: the training store, and the rows to train on.
      evaluation, eval_rows: likewise for evaluation; often the same store.
      split: the training split: "official", "tune", "report", "all", "own" or
        "held_out".
      eval_split: the evaluation split; may differ if another data set is evaluated on.
      nyu: whether official NYU frames are evaluated.
      depth: the kind of depth to train on, "filled" or "raw".
      notes: lines to show to the user.
    """

    name: str
    train: Store
    train_rows: np.ndarray
    evaluation: Store
    eval_rows: np.ndarray
    split: str
    eval_split: str
    nyu: bool
    depth: str
    notes: tuple[str, ...] = ()

    def frames(self) -> Iterator[dict[str, Any]]:
        """Read the evaluation frames at full size."""
        return self.evaluation.full_frames(self.eval_rows)

    def camera(self, size: tuple[int, int]) -> Camera | None:
        """The median camera of the training frames; None if it is unknown.

        Args:
          size: (height, width) of the training frame of the run.
        """
        cameras = (self.train.camera(row) for row in self.train_rows.tolist())
        median = camera_lib.median([camera for camera in cameras if camera is not None])
        scale = covering_scale(self.train.size, size)
        return median and median.scaled(scale, scale)


def open_store(
    config: Config,
    path: str,
    *,
    keep_full: str = "auto",
    progress: Callable | None = None,
) -> Store:
    """Open the store at `path`, or prepare one from it in the cache folder.

    `keep_full` selects the frames that can be evaluated at full size; see `Packing`.

    Raises: UserError if the data can't be read, or flags can't apply to a store.
    """
    store = _prepared(config, path, keep_full=keep_full, progress=progress)
    if is_packed(path):
        recorded.check_flags(store, _given_for_files(config), where=path)
    return store


def _given_for_files(config: Config) -> dict[str, Any]:
    """The flags for reading training data from files: name -> value, if not default.

    Flags that apply to the files of --eval_data are not among them.
    """
    data, other = config.data, config.eval.eval_data
    flags = {"data_format": data.data_format, **recorded.given(data.reading)}
    flags |= {"eval_fraction": data.eval_fraction, "test_scenes": data.test_scenes}
    usual = Config().flat()
    if other is not None and not is_packed(other):
        usual |= {name: flags[name] for name in flags if takes(other, name)}
    return {name: value for name, value in flags.items() if value != usual[name]}


def _prepared(
    config: Config, path: str, *, keep_full: str, progress: Callable | None
) -> Store:
    data = config.data
    store = prepare(
        path,
        _packing(config, data.mask_extremes, keep_full=keep_full),
        cache_dir=Path(data.cache_dir).expanduser(),
        data_format=data.data_format,
        options=ReadOptions(**dataclasses.asdict(data.reading)),
        progress=progress,
    )
    _check_max_depth(config, store, units.FARTHEST_CODE / store.depth_unit)
    return store


def is_packed(path: str) -> bool:
    """Whether `path` is a store, in a folder or at a URL."""
    return is_remote(path) or is_store(path)


def _packing(config: Config, mask_extremes: str, *, keep_full: str = "auto") -> Packing:
    return Packing(
        size=config.frame_size,
        mask_extremes=mask_extremes,
        max_depth=config.data.max_depth,
        keep_full=keep_full,
        eval_fraction=config.data.eval_fraction,
        test_scenes=config.data.test_scenes,
    )


def open_other(config: Config, path: str, *, progress: Callable | None = None) -> Store:
    """Open data that are used for evaluation only, with all frames at full size.

    The `data_format` of `config` does not apply to them. Read options, such as the
    scale, apply if the format of these data uses them.
    """
    packed = is_packed(path)
    unused = {
        name: default
        for name, default in dataclasses.asdict(ReadConfig()).items()
        if packed or not takes(path, name)
    }
    config = config.replace(data_format="auto", **unused)
    return _prepared(config, path, keep_full="all", progress=progress)


def open_rooms(
    config: Config, *, training: bool = True, progress: Callable | None = None
) -> Store:
    """Open rendered rooms: --rooms=N to train on, max(32, N/10) to evaluate on.

    Args:
      training: False to render rooms to evaluate on only; a store that has all of them
        is used if there is one.
    """
    count = int(config.data.rooms)
    rooms = functools.partial(
        rooms_source.Rooms,
        seed=config.train.seed,
        train=count,
        evaluation=max(32, count // 10),
        size=config.frame_size,
    )
    packing, source = _packing(config, "off"), rooms()
    cache = Path(config.data.cache_dir).expanduser()
    if not training:
        job = Job(source, packing)
        if job.finished(job.folder(cache)) is None:
            source = rooms(training=False)
    return prepare(source, packing, cache_dir=cache, progress=progress)


def open_data(
    config: Config, *, training: bool = True, progress: Callable | None = None
) -> Data:
    """Open the data sets that the data flags name; prepare stores where needed.

    Args:
      training: False if the caller reads evaluation frames only: rooms to train on are
        not rendered, and `train_rows` may be empty.

    Raises UserError if data can't be read, a split does not exist, the training or
    evaluation set is empty, or a frame is in both.
    """
    if config.data.path == "rooms":
        if unused := _given_for_files(config):
            name, value = next(iter(unused.items()))
            raise UserError(
                f"--{name}={value}: rooms are rendered, not read from files; leave it "
                "out, or give --data=PATH"
            )
        train = open_rooms(config, training=training, progress=progress)
    else:
        train = open_store(config, config.data.path, progress=progress)
        train = _at_training_size(config, train)
        packing = train.manifest.get("options", {}).get("packing", {})
        _check_max_depth(config, train, packing.get("max_depth", math.inf))
    split = own_split(config, train)
    train_rows = np.asarray(train.splits[split]["train"])
    notes = [*train.notes, *_limit_notes(config, train), *_mask_notes(config, train)]
    if config.eval.eval_data is None:
        evaluation, eval_split = train, split
        eval_rows = np.asarray(train.splits[split]["eval"])
    else:
        evaluation = open_other(config, config.eval.eval_data, progress=progress)
        eval_rows, eval_split = evaluation_rows(evaluation)
        notes += [f"{evaluation.name}: {line}" for line in evaluation.notes]
    if len(eval_rows) == 0:
        raise UserError(
            f"--split={split} leaves no frame to evaluate on: give --eval_data=PATH"
        )
    if training and len(train_rows) == 0:
        raise UserError(f"--split={split} leaves no frame to train on in {train.name}")
    _check_apart(train, train_rows, evaluation, eval_rows)
    if training and config.data.train_images is not None:
        wanted, available = config.data.train_images, len(train_rows)
        if wanted > available:
            raise UserError(
                f"--train_images={wanted}: only {available} training frames exist"
            )
        train_rows = train_rows[
            order.first_in_seed_order(config.train.seed, available, wanted)
        ]
    depth, more = _depth(config, train)
    return Data(
        name=evaluation.name,
        train=train,
        train_rows=train_rows,
        evaluation=evaluation,
        eval_rows=eval_rows,
        split=split,
        eval_split=eval_split,
        nyu="official" in evaluation.splits,
        depth=depth,
        notes=(*notes, *more),
    )


def _limit_notes(config: Config, train: Store) -> list[str]:
    """Return a note if the default of --max_depth cuts off what a store holds."""
    packing = train.manifest.get("options", {}).get("packing", {})
    kept, used = packing.get("max_depth", 0.0), config.data.max_depth
    if kept <= used or used != DataConfig().max_depth:
        return []
    return [
        f"{train.name} holds depth up to {kept:g} m, and depth beyond --max_depth="
        f"{used:g} is not used: give --max_depth={kept:g} to use it"
    ]


def _mask_notes(config: Config, train: Store) -> list[str]:
    """Return a note if --mask_extremes asks for what the store was not prepared with.

    It is no error: recipes have this flag.
    """
    packing = train.manifest.get("options", {}).get("packing", {})
    kept, asked = packing.get("mask_extremes"), config.data.mask_extremes
    if asked == "auto" or kept in (None, asked) or config.data.path == "rooms":
        return []
    if list(train.manifest["mask_extremes"]) == (
        list(train.depths) if asked == "on" else []
    ):
        return []
    return [
        f"--mask_extremes={asked} does not change a store: {train.name} was prepared "
        f"with --mask_extremes={kept}"
    ]


def _check_max_depth(config: Config, store: Store, kept: float) -> None:
    """Raise UserError if --max_depth exceeds the metres that a store kept."""
    if config.data.max_depth > kept:
        raise UserError(
            f"--max_depth={config.data.max_depth:g}: {store.name} holds depth up to "
            f"{kept:.5g} m; prepare it again with that --max_depth"
        )


def _check_apart(
    train: Store, train_rows: np.ndarray, evaluation: Store, eval_rows: np.ndarray
) -> None:
    """Raise UserError if an image is in both sets, by the digests of the stores.

    Stores with different frame sizes are not compared: their digests differ.
    """
    if train.manifest["size"] != evaluation.manifest["size"]:
        return
    frames = train.manifest["frames"]
    trained = {frames[row].get("digest"): frames[row]["name"] for row in train_rows}
    trained.pop(None, None)  # stores of earlier versions have no digests
    both = [
        (trained[frame["digest"]], frame["name"])
        for frame in (evaluation.manifest["frames"][row] for row in eval_rows)
        if frame.get("digest") in trained
    ]
    if both:
        raise UserError(
            f"{len(both)} of {len(eval_rows)} evaluation frames are training frames, "
            f"too; the first is {both[0][1]} of {evaluation.name}, equal to "
            f"{both[0][0]} of {train.name}: remove them from one of the sets"
        )


def _at_training_size(config: Config, train: Store) -> Store:
    """The store, or its full-size copies if its training frames are too small.

    Larger frames are shrunk in the step.

    Raises: UserError if they are too small, too, or are not all kept, or if stored
      frames have another aspect ratio.
    """
    (height, width), (rows, columns) = train.size, config.frame_size
    ways = (
        f"train with --size={19 * height // 20}x{19 * width // 20}, or prepare it "
        f"again with --size={rows}x{columns}"
    )
    if height < rows or width < columns:
        if FullSizeStore.covers(train, config.frame_size):
            return FullSizeStore(train, config.frame_size)
        if not all(map(train.has_full, range(len(train)))):
            ways += ", or with --keep_full=all (jaxdepth prepare-data)"
        raise UserError(
            f"{train.name} holds frames of {height}x{width}, smaller than the "
            f"{rows}x{columns} that --size={config.model.size} is cropped from: {ways}"
        )
    if abs(height * columns / (width * rows) - 1) > MAX_SQUEEZE:
        raise UserError(
            f"{train.name} holds frames of {height}x{width}, whose aspect ratio is not "
            f"that of --size={config.model.size}: {ways}"
        )
    return train


def own_split(config: Config, train: Store) -> str:
    """Resolve --split for the training data. Raises UserError if it is missing."""
    if config.data.split != "auto":
        split = config.data.split
    elif "official" in train.splits and "own" not in train.splits:
        split = "official"
    elif "own" in train.splits:
        split = "own"
    else:
        split = "all" if config.eval.eval_data is not None else HELD_OUT
    if split in train.splits:
        return split
    if split == HELD_OUT:
        raise UserError(
            f"{train.name} has no split of its own, and no frames to hold out: give "
            "--eval_data=PATH, the frames to evaluate on"
        )
    if train.splits.keys() == {"own"}:
        raise UserError(
            f"--split={split}: {train.name} has its own split; leave --split out"
        )
    have = ", ".join(sorted(set(train.splits) - {"own", HELD_OUT}))
    raise UserError(
        f"--split={split}: {train.name} has the splits {have}; --split=all needs "
        "--eval_data=PATH"
    )


def evaluation_rows(opened: Store) -> tuple[np.ndarray, str]:
    """Evaluation frames of a store and the name of their split, or else all frames."""
    for split in ("own", "official"):
        rows = opened.splits.get(split)
        if rows is not None and len(rows["eval"]):
            return np.asarray(rows["eval"]), split
    return np.arange(len(opened)), "all"


def _depth(config: Config, train: Store) -> tuple[str, list[str]]:
    """The kind of depth to train on; the other kind, with a note, if it is missing."""
    if config.data.depth in train.depths:
        return config.data.depth, []
    other = train.depths[0]
    if other == "raw" and config.data.path == "rooms":
        return other, []
    return other, [
        f"{train.name} has no {config.data.depth} depth: training on {other}"
    ]


def chunks(
    data: Store, rows: np.ndarray, depth: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rgb, depth codes) of all rows, in chunks."""
    for k in range(0, len(rows), CHUNK):
        yield data.gather(rows[k : k + CHUNK], depth=depth)
