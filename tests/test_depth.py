"""Depth of a photo: conversion to arrays, files by suffix, points, picture."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import jaxdepth
from jaxdepth.camera import Camera, centred
from jaxdepth.depth import WRITERS, Depth
from jaxdepth.runtime.errors import MachineError, UserError


def example(height=6, width=8, *, fx: float | None = 20.0, rgb=True):
    rng = np.random.default_rng(0)
    return Depth(
        rng.uniform(0.5, 9, (height, width)).astype(np.float32),
        rng.integers(0, 256, (height, width, 3), np.uint8) if rgb else None,
        None if fx is None else centred(fx, fx, (height, width)),
        None if fx is None else "exif",
    )


def test_it_is_an_array_as_numpy_2_defines():
    depth = example()
    assert np.asarray(depth) is depth.metres  # not copied
    assert np.array(depth) is not depth.metres
    assert np.array(depth, copy=None) is depth.metres
    np.testing.assert_array_equal(np.asarray(depth, np.float64), depth.metres)
    assert np.asarray(depth, np.float64).dtype == np.float64
    copied = np.array(depth, copy=True)
    copied[0, 0] = -1
    assert depth.metres[0, 0] > 0
    with pytest.raises(ValueError, match="copy"):
        np.asarray(depth, np.float64, copy=False)
    assert np.max(depth) == depth.metres.max()
    assert depth.shape == (6, 8)


def test_repr_states_size_range_and_focal_length():
    metres = np.array([[1, 2, 4], [0, np.nan, 9]], np.float32)
    camera = centred(577.0, 577.0, (2, 3))
    text = repr(Depth(metres, camera=camera, fx_source="given"))
    assert text == (
        "Depth(2x3, 1.00 to 9.00 m, median 3.00 m, fx 577 pixels (as given))"
    )
    assert repr(Depth(np.zeros((2, 2), np.float32))) == "Depth(2x2, no depth)"


@given(
    fx=st.floats(5, 500),
    fy=st.floats(5, 500),
    cx=st.floats(-5, 20),
    cy=st.floats(-5, 20),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_points_project_to_their_pixels(fx, fy, cx, cy, size):
    depth = dataclasses.replace(example(*size), camera=Camera(fx, fy, cx, cy))
    points, colours = depth.point_cloud()
    x, y, z = points.astype(np.float64).T
    rows, columns = np.mgrid[: size[0], : size[1]].reshape(2, -1)
    # Of (column - cx), the projection cancels all but rounding in float32.
    np.testing.assert_allclose(x / z * fx, columns - cx, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(y / z * fy, rows - cy, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(z, depth.metres.ravel())
    assert colours is not None and depth.rgb is not None
    np.testing.assert_array_equal(colours, depth.rgb.reshape(-1, 3))


def test_only_pixels_with_depth_are_points():
    depth = example(rgb=False)
    depth.metres[0, :4] = 0, -1, np.nan, np.inf
    points, colours = depth.point_cloud()
    assert points.shape == (6 * 8 - 4, 3) and points.dtype == np.float32
    assert colours is None and np.isfinite(points).all()


def test_files_by_suffix(tmp_path):
    depth = example()
    for suffix in WRITERS:
        depth.save(tmp_path / f"a{suffix}")
    depth.save(str(tmp_path / "B.PNG"))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), depth.metres)
    millimetres = np.asarray(Image.open(tmp_path / "a.png"))
    assert millimetres.dtype == np.uint16
    np.testing.assert_array_equal(millimetres, np.round(depth.metres * 1000.0))
    with Image.open(tmp_path / "a_color.png") as image:
        assert image.mode == "RGB" and image.size == (8, 6)
    assert b"element vertex 48" in (tmp_path / "a.ply").read_bytes()[:200]
    assert (tmp_path / "B.PNG").read_bytes() == (tmp_path / "a.png").read_bytes()
    depth.save(tmp_path / "a.npy")  # replaces
    assert len(list(tmp_path.iterdir())) == len(WRITERS) + 1


def test_files_that_are_not_written(tmp_path, monkeypatch):
    depth = example(fx=None)
    (tmp_path / "folder.npy").mkdir()
    for name, words in (
        ("a.jpg", "a.jpg: expected a suffix of .npy, .png, _color.png, .ply"),
        ("a", "expected a suffix"),
        ("none/a.npy", "there is no folder .*none: create it"),
        ("folder.npy", "folder.npy is a folder: name a file in it"),
        ("a.ply", "the focal length is unknown: predict with fx=PIXELS"),
    ):
        with pytest.raises(UserError, match=words):
            depth.save(tmp_path / name)
    with pytest.raises(UserError, match="the photo was not kept"):
        example(rgb=False).save(tmp_path / "a.ply")
    with pytest.raises(UserError, match="fx=PIXELS"):
        depth.point_cloud()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, ".npy", full)
    with pytest.raises(MachineError, match=r"a\.npy could not be written: No space"):
        depth.save(tmp_path / "a.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npy"]


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (1, 1), (2000, 3), (3, 2000)])
def test_notebooks_show_a_picture(size):
    rows, columns = np.mgrid[: size[0], : size[1]]
    depth = Depth((1 + rows / 16 + columns / 16).astype(np.float32))
    with Image.open(io.BytesIO(depth._repr_png_())) as image:
        assert image.format == "PNG" and max(image.size) < 1200
        rgb = np.asarray(image.convert("RGB")).astype(int)
    # The colour map is not grey, and the page around it is white.
    assert (np.ptp(rgb, axis=-1) > 50).mean() > 0.005
    assert rgb[0, 0].tolist() == [255, 255, 255]


def test_the_bar_of_the_picture_has_the_range_in_metres(monkeypatch):
    drawn = []
    monkeypatch.setattr(jaxdepth.depth.plots, "colour_bar", lambda *x: drawn.append(x))
    metres = np.linspace(2, 6, 101, dtype=np.float32)[None]
    Depth(metres)._repr_png_()
    ((_, _, _, low, high, label),) = drawn
    assert (low, high) == (pytest.approx(2.04), pytest.approx(5.96))
    assert label == "depth [m]"
