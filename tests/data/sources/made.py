"""Small image and depth files, and what is said of a source that refuses them."""

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
    """A picture of one stored value, or of the values given."""
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
    """Open and read all of it; the one line that says what is wrong."""
    with pytest.raises(UserError) as error:
        source = open_source(path, **more)
        for row in range(len(source.infos)):
            source.frame(row)
    said = str(error.value)
    assert "\n" not in said
    for part in parts:
        assert str(part) in said
    return said


def broken_rows(source: Source) -> dict[int, str]:
    """The rows that can't be read, and why; the others are read."""
    found = {}
    for row in range(len(source.infos)):
        try:
            source.frame(row)
        except BrokenFrame as error:
            assert "\n" not in str(error)
            found[row] = str(error)
    return found


def same_elsewhere(source: Source) -> None:
    """A pickled copy, whose own files are opened again, reads the same frames."""
    copy = pickle.loads(pickle.dumps(source))
    assert copy.infos == source.infos and copy.truths == source.truths
    for row in reversed(range(len(source.infos))):
        mine, its = source.frame(row), copy.frame(row)
        np.testing.assert_array_equal(mine.rgb, its.rgb)
        assert mine.depths.keys() == its.depths.keys()
        for kind, metres in mine.depths.items():
            np.testing.assert_array_equal(metres, its.depths[kind])
