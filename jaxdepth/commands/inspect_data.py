"""Inspect data before training: units, alignment, copies, splits, broken frames.

    jaxdepth inspect-data nyu_depth_v2_labeled.mat
    jaxdepth inspect-data FOLDER --depth_scale=5000 --frames=0 --json=findings.json
    jaxdepth inspect-data STORE --export=FOLDER

Reads a store, or data of any format. Prints findings and writes two images to --out:
a contact sheet of sample frames, and statistics.
"""

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxdepth import plots
from jaxdepth.commands import cli
from jaxdepth.config import ReadConfig
from jaxdepth.data.doctor import alignment, export, findings, measurements
from jaxdepth.data.sources import ReadOptions, Source
from jaxdepth.data.store import staging
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime import output_files, storage, terminal
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag
from jaxdepth.workdir import write_json

logger = logging.getLogger("jaxdepth.tools")
PROG = "jaxdepth inspect-data"
CONTACT_SHEET, STATISTICS = "contact_sheet.png", "statistics.png"


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """Check data before training; print the findings and draw images of the data."""

    data: str = flag(positional=True)
    """A store, or data of any format."""
    out: str | None = None
    """Folder for the images; default: inspections/NAME."""
    frames: int = flag(measurements.FRAMES, at_least=0)
    """Number of frames to inspect, evenly spaced; 0: all."""
    data_format: str = flag("auto", choices="auto|jaxdepth.data.sources:SOURCES")
    """Format of the data; auto: recognised by content."""
    reading: ReadConfig = ReadConfig()
    json: str | None = None
    """New JSON file for the findings and all measurements."""
    export: str | None = None
    """New or empty folder for all frames: rgb/NAME.png, and depth/NAME.png in
    millimetres."""
    depth: Literal["filled", "raw"] | None = None
    """Kind of depth to export; default: filled if available."""

    def __post_init__(self):
        flags_lib.validate(self)
        if self.depth is not None and self.export is None:
            raise UserError("--depth needs --export=FOLDER: give both")


def command(argv: Sequence[str]) -> int:
    """Run the command; returns the exit code. Findings do not change it."""
    config = flags_lib.parse(InspectConfig, argv, prog=PROG)
    options = ReadOptions(**dataclasses.asdict(config.reading))
    opened = measurements.open_data(
        config.data, data_format=config.data_format, options=options
    )
    name = re.sub(r"[^\w.-]+", "_", opened.source.name)
    out = Path(config.out or Path("inspections") / name).expanduser()
    _check_outputs(config, out, opened.source)
    progress = terminal.Counter()
    inspection = measurements.inspect(opened, frames=config.frames, progress=progress)
    numbers, lines = measurements.numbers(inspection), findings.of(inspection)
    _print(numbers, lines)
    logger.info("%s", _depth_line(inspection))
    if config.json:
        listed = [dataclasses.asdict(line) for line in lines]
        write_json(config.json, {"findings": listed, **numbers})
    with storage.write_errors(out):
        _draw(out, inspection)
    if config.export:
        _export(opened.source, Path(config.export), config.depth)
    return cli.OK


def _check_outputs(config: InspectConfig, out: Path, source: Source) -> None:
    """Raise UserError if an output can't be written or would overwrite other files."""
    if config.json:
        output_files.check_new_file(config.json, flag="json")
        output_files.check_apart(json=config.json, out=out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: name a folder")
    staging.check_parents(out, what="--out")
    for name in (CONTACT_SHEET, STATISTICS):
        output_files.check_ours(out / name, plots.MAKER, flag="out")
    if config.export:
        export.check(source, Path(config.export), config.depth)


def _depth_line(inspection: measurements.Inspection) -> str:
    frames = f"{len(inspection.frames)} of {len(inspection.source.infos)} frames"
    return f"\n{inspection.source.truths[0]} depth: {inspection.read} ({frames})"


def _print(numbers: dict[str, Any], lines: Sequence[findings.Finding]) -> None:
    for note in numbers["notes"]:
        logger.info("note: %s", note)
    _print_counts(numbers)
    if histogram := numbers["depth"]["histogram"]:
        _print_histogram(**histogram)
    logger.info("\nfindings")
    for line in lines:
        logger.info("%s", line)


def _print_counts(numbers: dict[str, Any]) -> None:
    depth, scores = numbers["depth"], numbers["alignment"]
    rows = [["frames", f"{numbers['frames']}, inspected {numbers['looked_at']}"]]
    rows.append(["scenes", numbers["scenes"]])
    for name, parts in numbers["splits"].items():
        counts = f"{parts['train']} train, {parts['eval']} evaluate"
        rows.append([f"split {name}", counts])
    rows += [[f"frames of {size}", n] for size, n in numbers["sizes"].items()]
    rows += [[f"depth, {k} [m]", depth[k]] for k in ("min", "median", "max")]
    for kind, missing in numbers["missing"].items():
        shares = f"mean {missing['mean']:.1%}, worst {missing['worst']:.1%}"
        rows.append([f"missing, {kind}", shares])
    if scores:
        weakest = scores["weakest"][0]
        rows.append(["weakest pair", f"{weakest['name']} ({weakest['score']:.2f})"])
    terminal.print_table(f"{numbers['name']} ({numbers['format']})", ["", ""], rows)


def _print_histogram(edges: Sequence[float], shares: Sequence[float]) -> None:
    rows = [
        [f"{low:6.2f} to {high:6.2f}  {'#' * round(30 * n / max(shares))}", f"{n:.1%}"]
        for low, high, n in zip(edges[:-1], edges[1:], shares, strict=True)
    ]
    terminal.print_table("", ["depth as read [m]", "pixels"], rows)


def _draw(out: Path, inspection: measurements.Inspection) -> None:
    out.mkdir(parents=True, exist_ok=True)
    name, sheet = inspection.source.name, inspection.sheet
    if sheet:
        plots.contact_sheet(
            out / CONTACT_SHEET,
            rgb=[frame.rgb for frame in sheet],
            depth=[frame.depth for frame in sheet],
            names=[frame.title for frame in sheet],
            title=f"{name}: {len(sheet)} of {len(inspection.source.infos)} frames",
        )
    verdict = inspection.verdict
    plots.statistics(
        out / STATISTICS,
        depth=inspection.values,
        missing=inspection.missing,
        surface=None if verdict is None else verdict.surface,
        reach=alignment.REACH * (verdict.cell if verdict else 1),
        title=f"{name}: {len(inspection.frames)} frames",
    )
    logger.info("\nimages: %s", out)


def _export(source: Source, out: Path, depth: str | None) -> None:
    exported = export.export(source, out, depth=depth, progress=terminal.Counter())
    for name, reason in exported.broken:
        logger.warning("left out: %s (%s)", name, reason)
    logger.info("exported to %s: %s", out, exported.text)
