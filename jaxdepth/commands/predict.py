"""Photos in files to depth in files: what `jaxdepth predict` does."""

import dataclasses
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxdepth import images as images_lib
from jaxdepth import plots
from jaxdepth import predictor as predictor_lib
from jaxdepth.predictor import Predictor
from jaxdepth.runtime import atomic, jax_setup
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.runtime.flags import flag

logger = logging.getLogger(__name__)
SUFFIXES = (".npy", ".png", "_color.png")
# In --out: whose results lie there, a name a line. A pair a.jpg + a.npy has depth of
# the user's own where a prediction of a.jpg would go.
OURS = ".predicted"


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Turn photos of any size into depth in metres.

    For each photo NAME: NAME.npy (float32 metres), NAME.png (16-bit millimetres) and
    NAME_color.png, at the photo's own size.
    """

    images: tuple[str, ...] = flag(positional=True)
    """Photos, or folders of photos."""
    checkpoint: str = flag()
    """Work directory of the run."""
    step: str = "best"
    """best, last or the number of a step."""
    out: str = "predictions"
    """Folder for the results; made where it is missing."""
    batch_size: int = flag(8, at_least=1)
    """Photos of one size at a time."""
    ply: bool = False
    """Also write NAME.ply, a coloured point cloud; needs --fx."""
    fx: float | None = flag(None, above=0)
    """Focal length of the photos, pixels, across."""
    fy: float | None = flag(None, above=0)
    """Focal length, pixels, down; default: --fx."""
    cache_dir: str = "~/.cache/jaxdepth"
    """Where compiled programs are kept."""

    def __post_init__(self):
        flags_lib.validate(self)
        if self.ply and self.fx is None:
            raise UserError(
                "--ply needs --fx=PIXELS, the focal length at the photo's size"
            )


def run(config: PredictConfig) -> int:
    """Predict every photo; returns the exit code: 2 where one could not be read.

    Photos are checked before anything is computed; equal names and results that would
    replace a photo are refused. A photo that turns out to be broken is skipped and
    named at the end.
    """
    paths, notes = images_lib.find(config.images)
    out = Path(config.out).expanduser()
    if not paths:
        raise UserError("no image given: name photos or folders of photos")
    ours = _predicted(out)
    _refuse_clashes(paths, out, ours, ply=config.ply)
    for note in notes:
        logger.info("note: %s", note)
    jax_setup.enable_compilation_cache(config.cache_dir)
    predictor = predictor_lib.load(config.checkpoint, step=config.step)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out={config.out}: {error.strerror}") from None
    broken: list[str] = []
    began, done = time.perf_counter(), 0
    for path, rgb, depth in _predictions(predictor, paths, config.batch_size, broken):
        _write(out, path, rgb, depth, config, new=path.stem not in ours)
        done += 1
        logger.info(
            "%s  %dx%d  %.2f to %.2f m, median %.2f m",
            path, *depth.shape, depth.min(), depth.max(), np.median(depth),
        )  # fmt: skip
    seconds = time.perf_counter() - began
    logger.info("%d of %d photos in %.1f s, in %s", done, len(paths), seconds, out)
    for line in broken:
        logger.error("error: %s", line)
    return 2 if broken else 0


def _predictions(
    predictor: Predictor,
    paths: Sequence[Path],
    batch_size: int,
    broken: list[str],
) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """(path, rgb, depth) of every photo that can be read; the others go to `broken`."""
    waiting: list[tuple[Path, np.ndarray]] = []

    def readable() -> Iterator[np.ndarray]:
        for path in paths:
            try:
                rgb = images_lib.read(path)
            except UserError as error:
                reason = str(error)
                broken.append(reason if str(path) in reason else f"{path}: {reason}")
                continue
            waiting.append((path, rgb))
            yield rgb

    for depth in predictor.predict_many(readable(), batch_size=batch_size):
        yield *waiting.pop(0), depth


def _refuse_clashes(
    paths: Sequence[Path], out: Path, ours: Collection[str], *, ply: bool
) -> None:
    """UserError where two results, or a result and a photo, would be one file, or one
    is there whose name is not among `ours`."""
    suffixes = (*SUFFIXES, ".ply") if ply else SUFFIXES
    sources = {path.resolve() for path in paths}
    owner: dict[Path, Path] = {}
    for path in paths:
        for suffix in suffixes:
            result = (out / f"{path.stem}{suffix}").resolve()
            foreign = path.stem not in ours and _exists(result)
            if result in sources or foreign:
                raise UserError(
                    f"{result.name} would replace {result}, which no prediction "
                    "left there: name another --out"
                )
            if result in owner:
                raise UserError(
                    f"{owner[result]} and {path} would both become {result.name} in "
                    f"{out}: predict them apart"
                )
            owner[result] = path


def _exists(result: Path) -> bool:
    try:
        return result.exists()
    except OSError as error:  # a name too long, a folder that may not be read
        raise UserError(f"{result}: {error.strerror}") from None


def _predicted(out: Path) -> set[str]:
    """Names of the photos whose results, by earlier calls, lie in a folder."""
    try:
        return set(os.fsdecode((out / OURS).read_bytes()).splitlines())
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise UserError(f"{out / OURS}: {error.strerror}") from None


def _write(
    out: Path,
    path: Path,
    rgb: np.ndarray,
    depth: np.ndarray,
    config: PredictConfig,
    *,
    new: bool,
) -> None:
    target = out / path.stem
    try:
        # Before the results: a call that is cut short may be made again.
        if new:
            with open(out / OURS, "ab") as file:
                file.write(os.fsencode(path.stem) + b"\n")
        with atomic.atomic_write(target.with_name(path.stem + ".npy")) as part:
            np.save(part, depth)
        plots.save_depth_png16(target.with_name(path.stem + ".png"), depth)
        plots.save_color_png(target.with_name(path.stem + "_color.png"), depth)
        if config.ply:
            height, width = depth.shape
            assert config.fx is not None
            plots.write_ply(
                target.with_name(path.stem + ".ply"),
                depth,
                rgb,
                fx=config.fx,
                fy=config.fy or config.fx,
                cx=(width - 1) / 2,
                cy=(height - 1) / 2,
            )
    except OSError as error:
        raise MachineError(
            f"results of {path} can't be written to {out}: {error.strerror}"
        ) from error


def command(argv: Sequence[str]) -> int:
    """Run the command with these flags; returns the exit code."""
    return run(flags_lib.parse(PredictConfig, argv, prog="jaxdepth predict"))
