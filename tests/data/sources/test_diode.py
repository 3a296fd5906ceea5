"""DIODE through the format folder: masks, scenes, and depth beyond 65 m."""

import numpy as np
import pytest

from jaxdepth.data.sources import open_source
from jaxdepth.data.store import writer as store_writer
from tests.data.sources import made

SIZE = (12, 16)


def scan(root, part, kind, scene, number, *, count=2):
    """Write frames of a scan as published: npy (h, w, 1) metres, and masks."""
    folder = f"{part}/{kind}/scene_{scene:05d}/scan_{number:05d}"
    for k in range(count):
        stem = f"{folder}/{scene:05d}_{number:05d}_{kind}_{10 * k:03d}_010"
        made.image(root, f"{stem}.png", k, SIZE)
        np.save(root / f"{stem}_depth.npy", depth(scene)[..., None])
        np.save(root / f"{stem}_depth_mask.npy", mask(scene))


def depth(scene):
    rng = np.random.default_rng(scene)
    return np.exp(rng.uniform(0, np.log(300), SIZE)).astype(np.float32)


def mask(scene):
    return (np.random.default_rng(scene + 1).random(SIZE) < 0.7).astype(np.float32)


@pytest.fixture
def data(tmp_path):
    for number in (183, 184):
        scan(tmp_path / "d", "train", "indoors", 19, number)
    scan(tmp_path / "d", "train", "outdoor", 0, 1)
    scan(tmp_path / "d", "val", "outdoor", 22, 193)
    return tmp_path / "d"


def test_masks_scenes_and_split(data):
    source = open_source(data)
    assert (source.format, source.truths) == ("folder", ("raw",))
    assert source.splits()["own"] == {"train": [0, 1, 2, 3, 4, 5], "eval": [6, 7]}
    scenes = [info.scene for info in source.infos]
    assert scenes == [
        *["train/indoors/scene_00019"] * 4,
        *["train/outdoor/scene_00000"] * 2,
        *["val/outdoor/scene_00022"] * 2,
    ]
    for row, scene in ((0, 19), (3, 19), (5, 0), (7, 22)):
        metres = source.frame(row).depths["raw"]
        np.testing.assert_array_equal(metres, np.where(mask(scene), depth(scene), 0))


@pytest.mark.parametrize(
    ("max_depth", "unit"), [(65.535, 1000), (200.0, 256), (255.99, 256)]
)
def test_depth_is_kept_to_max_depth(data, tmp_path, max_depth, unit):
    opened = store_writer.write(
        open_source(data), tmp_path / "s", size=SIZE, max_depth=max_depth,
        mask_extremes="off",
    )  # fmt: skip
    assert opened.depth_unit == unit
    stored = opened.metres(opened.gather([6], depth="raw")[1][0])
    expected = np.where(mask(22) > 0, depth(22), 0)
    expected[expected > max_depth] = 0
    assert (expected > 50).any()
    assert np.abs(stored - expected).max() <= 0.5 / unit + 1e-5
