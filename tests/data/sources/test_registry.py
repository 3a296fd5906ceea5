"""The registry of formats: names, recognition, and formats registered by a user."""

import dataclasses
import json
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest

from jaxdepth.data.sources import (
    SOURCES,
    Frame,
    FrameInfo,
    ReadOptions,
    Source,
    files,
    open_source,
    register_source,
    takes,
)
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import UserError
from tests.data.sources import made


class Arrays:
    """A user's format: mine.json with a scale, and one npz file per frame."""

    format = "arrays"
    OPTIONS: ClassVar = frozenset({"every"})

    @staticmethod
    def recognises(path):
        return (path / "mine.json").is_file()

    def __init__(self, path, options):
        self.path, self.name, self.notes = path, path.name, []
        self.truths, self.eight_bit = ("raw",), False
        self.files = sorted(path.glob("*.npz"))[:: options.every]
        self.infos = [FrameInfo(file.stem) for file in self.files]
        self.scale = json.loads((path / "mine.json").read_text())["scale"]

    def frame(self, row):
        with np.load(self.files[row]) as arrays:
            metres = files.to_metres(arrays["depth"], self.scale)
            return Frame(arrays["rgb"], raw=metres)

    def fingerprint(self):
        return {"path": str(self.path), **files.stamp(self.files)}

    def splits(self):
        return {"own": {"train": list(range(len(self.files) - 1)), "eval": [0]}}


@pytest.fixture
def arrays():
    register_source("arrays", Arrays)
    yield
    SOURCES.unregister("arrays")


def write(root, count=3):
    made.text(root, "mine.json", '{"scale": 100}')
    for k in range(count):
        depth = np.full((6, 8), 100 * (k + 1))
        depth[0, 0] = 0
        np.savez(root / f"{k}.npz", rgb=np.full((6, 8, 3), k, np.uint8), depth=depth)
    return root


def test_names_are_in_the_order_of_recognition():
    assert list(SOURCES) == [
        "nyu_labeled", "nyu_raw", "tfds", "fastdepth", "hypersim", "bts", "densedepth",
        "tum", "kitti", "folder",
    ]  # fmt: skip


def test_every_format_is_complete():
    fields = {field.name for field in dataclasses.fields(ReadOptions)}
    for name, entry in SOURCES.items():
        assert fields >= entry.OPTIONS, name
        assert entry.recognises(made.Path("/nowhere")) is False, name


def test_names_are_listed_without_importing_the_formats():
    code = (
        "import sys\nfrom jaxdepth.data.sources import SOURCES\nassert len(SOURCES) > 7"
        "\nassert not {'h5py', 'scipy', 'jax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("arrays")
def test_a_registered_format_is_recognised_before_the_built_in_ones(tmp_path):
    source = open_source(write(tmp_path))
    assert isinstance(source, Arrays) and isinstance(source, Source)
    np.testing.assert_array_equal(source.frame(1).depths["raw"][1:], 2)
    made.same_elsewhere(source)
    assert takes(tmp_path, "every") and not takes(tmp_path, "depth_scale")


@pytest.mark.usefixtures("arrays")
def test_a_registered_format_can_be_named_and_uses_its_options(tmp_path):
    options = ReadOptions(every=2)
    source = open_source(write(tmp_path), data_format="arrays", options=options)
    assert len(source.infos) == 2
    made.refused(tmp_path, "does not use it", options=ReadOptions(depth_scale=2.0))


@pytest.mark.usefixtures("arrays")
def test_a_store_is_written_from_a_registered_format(tmp_path):
    source = open_source(write(tmp_path))
    store = store_writer.write(source, tmp_path / "s", size=(6, 8), mask_extremes="off")
    assert len(store) == 3 and store.splits["own"]["eval"] == [0]
    assert store.gather([2], depth="raw")[1].max() == 3000


def test_an_unknown_format_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"--data_format=foldr.*did you mean folder"):
        open_source(tmp_path, data_format="foldr")
