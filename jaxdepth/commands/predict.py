"""`jaxdepth predict`: predict depth for photo files and write it to files."""

import dataclasses
import errno
import hashlib
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxdepth import images as images_lib
from jaxdepth import predictor as predictor_lib
from jaxdepth.camera import Camera
from jaxdepth.depth import WRITERS, Depth
from jaxdepth.images import Photo
from jaxdepth.predictor import Predictor
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import jax_setup
from jaxdepth.runtime.errors import MachineError, UserError, printable
from jaxdepth.runtime.flags import flag
from jaxdepth.weights import packed

logger = logging.getLogger(__name__)
SUFFIXES = (".npy", ".png", "_color.png")
# File in --out with one name per line: photos whose outputs this command wrote. It
# protects the user's a.npy, such as measured depth, from a prediction for a.jpg.
PREDICTED = ".predicted"
LONGEST = 255  # bytes of a file name, on most file systems


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Predict the depth of photos of any size, in metres.

    Writes NAME.npy (float32 metres), NAME.png (16-bit millimetres) and NAME_color.png
    for each photo NAME, at the photo's size.
    """

    images: tuple[str, ...] = flag(positional=True)
    """Photos, or folders of photos."""
    checkpoint: str = packed.DEFAULT
    """Work directory of a run, a packed network (jaxdepth pack), or the name of a
    network that this package includes."""
    step: str = "best"
    """best, last or the number of a step."""
    out: str = "predictions"
    """Folder for the outputs; created if it does not exist."""
    batch_size: int = flag(8, at_least=1)
    """Photos per batch; a batch holds photos of one size."""
    ply: bool = False
    """Also write NAME.ply, a coloured point cloud."""
    fx: float | Literal["auto"] | None = flag("auto", above=0)
    """Horizontal focal length, pixels of the photos: metres are multiplied by its ratio
    to that of the training data; auto: from the EXIF data of each photo; none: metres
    are not corrected."""
    fy: float | None = flag(None, above=0)
    """Vertical focal length for --ply, pixels; default: the horizontal one."""
    cx: float | None = None
    """Column of the principal point for --ply, pixels; default: the centre."""
    cy: float | None = None
    """Row of the principal point for --ply, pixels; default: the centre."""
    cache_dir: str = "~/.cache/jaxdepth"
    """Folder for compiled programs."""

    def __post_init__(self):
        flags_lib.validate(self)


def run(config: PredictConfig) -> int:
    """Predict every photo. Returns the exit code: 2 if a photo could not be read.

    Photos with equal names, and outputs that would replace a photo, are refused before
    anything is computed. A photo that can't be decoded is skipped and named at the end.
    """
    paths, notes = images_lib.find(config.images)
    out = Path(config.out).expanduser()
    if not paths:
        raise UserError("no photo given: name photos or folders of photos")
    predicted = _predicted(out)
    _refuse_clashes(paths, out, predicted, _suffixes(config))
    for note in notes:
        logger.info("note: %s", note)
    jax_setup.enable_compilation_cache(config.cache_dir)
    predictor = predictor_lib.load(config.checkpoint, step=config.step)
    if (card := packed.card(config.checkpoint)) is not None:
        logger.info("%s: accuracy, limits and terms are in %s", config.checkpoint, card)
    if config.ply and config.fx is None and predictor.camera is None:
        raise UserError(
            "--ply needs --fx=PIXELS, the focal length of the photos: that of the "
            "training data is unknown, too"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={config.out}: {error.strerror}") from None
    broken: list[str] = []
    unknown: list[Path] = []
    began, done = time.perf_counter(), 0
    for path, depth in _predictions(predictor, paths, config, broken):
        try:
            if config.ply:
                depth = dataclasses.replace(depth, camera=_camera(config, path, depth))
            new = _record(path) not in predicted
            _write(out, path, depth, _suffixes(config), new=new)
        except UserError as error:
            broken.append(str(error))
            continue
        done += 1
        focal = ""
        if depth.fx is not None and depth.fx_source in ("exif", "given"):
            focal = f", fx {depth.fx * depth.reduced:.5g} pixels"
        else:
            unknown.append(path)
        metres = depth.metres
        logger.info(
            "%s  %dx%d  %.2f to %.2f m, median %.2f m%s", printable(path, None),
            *depth.shape, metres.min(), metres.max(), np.median(metres), focal,
        )  # fmt: skip
    seconds = time.perf_counter() - began
    logger.info("%d of %d photos in %.1f s, in %s", done, len(paths), seconds, out)
    if config.fx is not None and done:
        _note_cameras(predictor, unknown, done)
    for line in broken:
        logger.error("error: %s", " ".join(line.split()))
    return 2 if broken else 0


def _note_cameras(predictor: Predictor, unknown: Sequence[Path], count: int) -> None:
    """Log why metres are not corrected for the focal length, if they are not.

    Args:
      unknown: the photos of unknown focal length.
      count: the number of all photos.
    """
    if predictor.camera is None:
        logger.info(
            "note: metres are not corrected for the focal lengths of the photos, "
            "because that of the training data is unknown"
        )
    elif unknown:
        height, width = predictor.config.frame_size
        logger.info(
            "note: the focal length of %d of %d photos is unknown, first %s: their "
            "metres assume the one of the training data (%.4g pixels at %dx%d); give "
            "--fx=PIXELS",
            len(unknown), count, printable(unknown[0], None),
            predictor.camera.fx, height, width,
        )  # fmt: skip


def _suffixes(config: PredictConfig) -> tuple[str, ...]:
    """Ends of the names of a photo's outputs."""
    return (*SUFFIXES, ".ply") if config.ply else SUFFIXES


def _camera(config: PredictConfig, path: Path, depth: Depth) -> Camera:
    """The camera of a depth map, with the intrinsics of the flags.

    Raises: UserError if its focal length and that of the training data are unknown.
    """
    if depth.camera is None:
        raise UserError(
            f"{printable(path, None)}: the focal length is unknown; --ply needs "
            "--fx=PIXELS"
        )
    # The flags are in pixels of the photo, which may have been read at reduced size.
    camera = depth.camera.scaled(depth.reduced, depth.reduced)
    given = {"fy": config.fy, "cx": config.cx, "cy": config.cy}
    camera = camera._replace(**{k: v for k, v in given.items() if v is not None})
    return camera.scaled(1 / depth.reduced, 1 / depth.reduced)


def _predictions(
    predictor: Predictor,
    paths: Sequence[Path],
    config: PredictConfig,
    broken: list[str],
) -> Iterator[tuple[Path, Depth]]:
    """Yield the depths of photos; append the errors of others to `broken`."""
    waiting: list[Path] = []

    def readable() -> Iterator[Photo]:
        for path in paths:
            try:
                photo = images_lib.read_photo(path)
            except UserError as error:
                broken.append(str(error))
                continue
            waiting.append(path)
            yield photo

    # Photos are kept for point clouds only: a batch of large ones needs much memory.
    for depth in predictor.predict_many(
        readable(), fx=config.fx, batch_size=config.batch_size, keep_photos=config.ply
    ):
        yield waiting.pop(0), depth


def _refuse_clashes(
    paths: Sequence[Path],
    out: Path,
    predicted: Collection[bytes],
    suffixes: Sequence[str],
) -> None:
    """Raise UserError if an output would replace another output or a foreign file.

    Args:
      paths: photos.
      predicted: records of photos whose existing outputs may be replaced.
      suffixes: ends of the names of a photo's outputs.
    """
    sources = {path.resolve() for path in paths}
    owner: dict[Path, Path] = {}
    for path in paths:
        for suffix in suffixes:
            result = (out / f"{_name(path)}{suffix}").resolve()
            foreign = _record(path) not in predicted and _exists(result)
            if result in sources or foreign:
                raise UserError(
                    f"--out={out}: {result.name} would replace {result}, which this "
                    "command did not write; name another folder"
                )
            if result in owner:
                raise UserError(
                    f"--out={out}: {owner[result]} and {path} would both become "
                    f"{result}; predict them into two folders"
                )
            owner[result] = path


def _exists(result: Path) -> bool:
    try:
        return result.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # a limit below LONGEST: `_write` reports
            return False
        raise UserError(f"{result}: {error.strerror}") from None


def _name(path: Path) -> str:
    """The name of a photo's outputs, without suffix: the stem of the photo.

    A name that is too long with the suffixes is cut; a digest keeps names distinct.
    """
    stem = os.fsencode(path.stem)
    room = LONGEST - max(map(len, SUFFIXES))
    if len(stem) <= room:
        return path.stem
    digest = "-" + hashlib.sha256(stem).hexdigest()[:8]
    return stem[: room - len(digest)].decode(errors="ignore") + digest


def _record(path: Path) -> bytes:
    """The line of a photo in `PREDICTED`: its stem, with line breaks escaped."""
    return os.fsencode(path.stem).replace(b"\\", b"\\\\").replace(b"\n", b"\\n")


def _predicted(out: Path) -> set[bytes]:
    """Records of photos with outputs that earlier calls wrote to this folder."""
    try:
        return set((out / PREDICTED).read_bytes().split(b"\n"))
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise UserError(f"{out / PREDICTED}: {error.strerror}") from None


def _write(
    out: Path, path: Path, depth: Depth, suffixes: Sequence[str], *, new: bool
) -> None:
    """Write the outputs of one photo.

    Args:
      new: no earlier call wrote them.

    Raises: UserError if their names are too long for the file system, MachineError for
      other failures.
    """
    name = _name(path)
    try:
        # Before the outputs, so that an interrupted call can be repeated.
        if new:
            with open(out / PREDICTED, "ab") as file:
                file.write(_record(path) + b"\n")
        for suffix in suffixes:
            WRITERS[suffix](depth, out / f"{name}{suffix}")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(
                f"{path}: its name is too long for the outputs; rename it"
            ) from None
        raise MachineError(
            f"--out={out}: the outputs of {path} can't be written: {error.strerror}"
        ) from error


def _with_dashed_names(argv: Sequence[str]) -> list[str]:
    """The words with names of files such as -a.jpg, which look like flags, as ./-a.jpg.

    These are the words after --, and existing files with a single dash.
    """
    end = list(argv).index("--") if "--" in argv else len(argv)
    words = [
        f"./{word}" if word[:1] == "-" != word[1:2] and os.path.lexists(word) else word
        for word in argv[:end]
    ]
    return words + [
        f"./{word}" if word.startswith("-") else word for word in argv[end + 1 :]
    ]


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags. Returns the exit code."""
    words = _with_dashed_names(argv)
    return run(flags_lib.parse(PredictConfig, words, prog="jaxdepth predict"))
