"""One-line summaries of depth as read, for the first lines of a command's output."""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxdepth.data import units
from jaxdepth.data.store.reader import Store
from jaxdepth.runtime.errors import UserError

FRAMES = 16  # sampled from a store that has no summary of its source


def depth_line(store: Store, kind: str, *, where: str) -> str:
    """Summarise one kind of depth: valid share; minimum, median, maximum in metres.

    The manifest has the values of all frames of the source, as they were read. For
    stores of earlier versions, they are computed from a sample of the stored frames.

    Args:
      where: path of the data, for the suggested inspect-data command.

    Raises: UserError if the manifest is damaged.
    """
    if "read" in store.manifest:
        return read_line(store.manifest, kind, where=where)
    rows, summary = spread(len(store), FRAMES), units.Summary()
    for row in rows:
        _, codes = store.gather([row], depth=kind)
        summary.add(units.Summary.of(store.metres(codes[0])))
    frames = f"{len(rows)} of {len(store)} stored frames"
    return line(kind, summary, frames, where=where)


def read_line(manifest: dict[str, Any], kind: str, *, where: str) -> str:
    """`depth_line` for a manifest without its store."""
    try:
        summary = units.Summary.from_dict(manifest["read"][kind])
    except (ValueError, TypeError, KeyError) as error:
        what = f"the summary of {kind} depth in its manifest is damaged ({error})"
        raise UserError(f"{where}: {what}: prepare the store again") from None
    frames = f"all {summary.frames} frames, as read"
    return line(kind, summary, frames, where=where)


def line(kind: str, summary: units.Summary, frames: str, *, where: str) -> str:
    """Format a summary as one line; suggest inspect-data if depth looks wrong."""
    text = f"{kind} depth: {summary} ({frames})"
    if (implausible := units.implausibility(summary)) is not None:
        text += (
            f"; this is unusual for a room ({implausible}); to check it, run jaxdepth "
            f"inspect-data {shlex.quote(where)}"
        )
    return text


def spread(total: int, count: int) -> Sequence[int]:
    """At most `count` evenly spaced indices below `total`, from first to last."""
    if count >= total:
        return range(total)
    return sorted({int(k) for k in np.linspace(0, total - 1, count)})
