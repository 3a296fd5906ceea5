"""Small image and depth files, and assertions on sources that read them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.sources import BrokenFrame, Source, open_source
from jaxdepth.runtime.errors import UserError

SIZE = (6, 8)


def image(root: Path, name: str, value: int = 0, size=SIZE) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def depth(
    root: Path, name: str, stored: Any = 2000, size=SIZE, dtype: Any = np.uint16
) -> Path:
    """Write an image of one stored value, or of the given values."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.asarray(stored, dtype), size).copy()).save(path)
    return path


def text(root: Path, name: str, content: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def refused(path: Path, *parts, **more) -> str:
    """Assert that the data fail with a one-line UserError; returns its text."""
    with pytest.raises(UserError) as error:
        source = open_source(path, **more)
        for row in range(len(source.infos)):
            source.frame(row)
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text
    return text


def notes(source: Source) -> list[str]:
    """The notes, without the one on depth of one value, which `depth` writes."""
    return [note for note in source.notes if "has one value in all pixels" not in note]


def camera_of(source: Source, row: int) -> tuple[float, float, float, float]:
    """The intrinsics of a frame, which must be known."""
    camera = source.frame(row).intrinsics
    assert camera is not None
    return camera


def broken_rows(source: Source) -> dict[int, str]:
    """Read all rows; returns the unreadable ones with their messages."""
    broken = {}
    for row in range(len(source.infos)):
        try:
            source.frame(row)
        except BrokenFrame as error:
            assert "\n" not in str(error)
            broken[row] = str(error)
    return broken


def same_elsewhere(source: Source) -> None:
    """Assert that a pickled copy, which opens the files anew, reads the same frames."""
    copy = pickle.loads(pickle.dumps(source))
    assert copy.infos == source.infos and copy.truths == source.truths
    for row in reversed(range(len(source.infos))):
        frame, copied = source.frame(row), copy.frame(row)
        np.testing.assert_array_equal(frame.rgb, copied.rgb)
        assert frame.depths.keys() == copied.depths.keys()
        for kind, metres in frame.depths.items():
            np.testing.assert_array_equal(metres, copied.depths[kind])
