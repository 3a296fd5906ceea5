"""Cameras of scaled frames, and the factor for a focal length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth import camera as camera_lib
from jaxdepth.camera import Camera, depth_factor
from jaxdepth.runtime.errors import UserError

FRAME = (240, 320)
sides = st.integers(20, 4000)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_scaling_keeps_the_ray_of_every_pixel(scale):
    camera = Camera(500.0, 520.0, 310.0, 250.5)
    scaled = camera.scaled(scale, 2 * scale)
    # A point of the image, in pixels from its corner, before and after.
    x, y = 120.0, 33.0
    ray = (x - 0.5 - camera.cx) / camera.fx, (y - 0.5 - camera.cy) / camera.fy
    assert ray == pytest.approx(
        (
            (x * 2 * scale - 0.5 - scaled.cx) / scaled.fx,
            (y * scale - 0.5 - scaled.cy) / scaled.fy,
        )
    )


def test_the_centre_of_a_frame():
    assert camera_lib.centred(5.0, 6.0, (3, 4)) == (5.0, 6.0, 1.5, 1.0)


def test_the_median_is_that_of_each_number():
    cameras = [Camera(1.0, 9.0, 3.0, 0.0), Camera(2.0, 8.0, 3.0, 1.0)]
    cameras += [Camera(7.0, 1.0, 3.0, 5.0)]
    assert camera_lib.median(cameras) == (2.0, 8.0, 3.0, 1.0)
    assert camera_lib.median([]) is None


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        ((480, 640), 0.5),
        ((640, 480), 320 / 480),  # portrait: the width decides
        ((1080, 1920), 240 / 1080),
        ((375, 1242), 240 / 375),
        ((500, 500), 320 / 500),
        ((60, 80), 4.0),
    ],
)
def test_the_scale_covers_the_training_frame(size, scale):
    assert camera_lib.covering_scale(size, FRAME) == pytest.approx(scale)


@given(sides, sides, st.floats(0.2, 5), st.floats(0.1, 10))
def test_the_factor_does_not_depend_on_the_resolution(height, width, field, times):
    fx = field * width
    factor = depth_factor(fx, (height, width), trained_fx=260.0, frame=FRAME)
    # The same photo with more pixels, and a lens with a longer focal length.
    large = depth_factor(3 * fx, (3 * height, 3 * width), trained_fx=260.0, frame=FRAME)
    longer = depth_factor(times * fx, (height, width), trained_fx=260.0, frame=FRAME)
    assert large == pytest.approx(factor)
    assert longer == pytest.approx(times * factor, rel=2e-6)


def test_a_depth_seen_by_two_cameras():
    # A pole of 1 m at 3 m has fx / 3 pixels. At the scale of the network, the training
    # camera sees as many pixels of it at the predicted distance.
    trained_fx, fx, size = 260.0, 1500.0, (2000, 3000)
    pixels = fx / 3 * (240 / 2000)
    predicted = trained_fx / pixels
    factor = depth_factor(fx, size, trained_fx=trained_fx, frame=FRAME)
    assert factor * predicted == pytest.approx(3.0)


def test_the_training_camera_and_unknown_ones_have_factor_1():
    fx = 518.857901
    # Rounding of the training camera.
    trained = float(np.float32(fx / 2))
    assert depth_factor(fx, (480, 640), trained_fx=trained, frame=FRAME) == 1.0
    assert depth_factor(None, (480, 640), trained_fx=trained, frame=FRAME) == 1.0
    assert depth_factor(fx, (480, 640), trained_fx=None, frame=FRAME) == 1.0


@pytest.mark.parametrize("fx", ["auto", None, 1, 520.5, np.float32(3)])
def test_focal_lengths_that_are_accepted(fx):
    assert camera_lib.checked_fx(fx) == fx


@pytest.mark.parametrize("fx", [0, -1.0, np.nan, np.inf, "520", True, [500], b"auto"])
def test_other_focal_lengths_are_errors(fx):
    with pytest.raises(UserError, match=r'^fx=.*: expected "auto" .* or None'):
        camera_lib.checked_fx(fx)
