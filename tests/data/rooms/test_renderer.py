"""Rendered rooms: determinism, geometry, and the distribution of depth."""

import numpy as np
import pytest

from jaxdepth.data.rooms import renderer
from jaxdepth.data.rooms import scene as scene_lib
from jaxdepth.data.sources.rooms import Rooms
from jaxdepth.runtime.errors import UserError

SIZE = (24, 32)


@pytest.fixture(scope="module")
def some():
    """The rgb and depth of 48 frames of seed 3."""
    return renderer.render(3, range(48), SIZE)


def test_a_frame_depends_only_on_seed_and_index(some):
    rgb, depth = renderer.render(3, [40, 5], SIZE)
    for array, expected in ((rgb, some[0]), (depth, some[1])):
        np.testing.assert_array_equal(array, expected[[40, 5]])
    other, _ = renderer.render(4, [5], SIZE)
    assert (other[0] != rgb[1]).mean() > 0.5


def test_frames_do_not_depend_on_the_batch_size(some):
    parts = list(renderer.generate(3, 7, SIZE, start=2, batch=3))
    assert [len(rgb) for rgb, _ in parts] == [3, 3, 1]
    rgb, depth = (np.concatenate(x) for x in zip(*parts, strict=True))
    np.testing.assert_array_equal(rgb, some[0][2:9])
    np.testing.assert_array_equal(depth, some[1][2:9])


def test_dtypes_and_ranges(some):
    rgb, depth = some
    assert rgb.dtype == np.uint8 and rgb.shape == (48, *SIZE, 3)
    assert depth.dtype == np.float32 and depth.shape == (48, *SIZE)
    valid = depth[depth > 0]
    assert valid.min() >= renderer.MIN_DEPTH and valid.max() <= renderer.MAX_DEPTH
    assert np.isfinite(depth).all()
    # No image is uniform, black or white.
    assert (rgb.std((1, 2, 3)) > 8).all()
    assert 30 < rgb.mean() < 200


def test_depth_is_distributed_as_in_photos_of_rooms(some):
    # NYU's labeled frames: medians near 2.6 m, standard deviation 0.31 in the log,
    # 1% below 0.84 m, 1% above 7.6 m.
    depth = np.where(some[1] > 0, some[1], np.nan)
    medians = np.nanmedian(depth, (1, 2))
    assert 2.0 < np.median(medians) < 3.2
    assert 0.2 < np.log(medians).std() < 0.42
    low, high = np.nanpercentile(depth, [1, 99])
    assert 0.7 < low < 1.3 and 5.0 < high < 9.0
    missing = np.isnan(depth).mean()
    assert 0.02 < missing < 0.25
    # NYU's frames: 0.45 is the mean logarithm of the upper third's median depth over
    # the lower third's.
    third = SIZE[0] // 3
    ends = depth[:, :third], depth[:, -third:]
    upper, lower = (np.nanmedian(part, (1, 2)) for part in ends)
    assert 0.3 < np.log(upper / lower).mean() < 0.6


def photographed(**settings):
    """One frame without noise; its scene's camera settings are replaced."""
    scene = scene_lib.describe(0, 4)
    photo = scene.photo.copy()
    photo[4] = 0.0  # vignetting
    for column, value in settings.items():
        photo[{"level": 0, "contrast": 8, "saturation": 9}[column]] = value
    rgb, _ = renderer.render_scene(scene._replace(photo=photo), SIZE, sensor=False)
    return np.asarray(rgb, float)


def test_brightness_contrast_and_saturation_of_photos():
    dark = photographed(level=0.05, contrast=1.0, saturation=1.0)
    bright = photographed(level=0.1, contrast=1.0, saturation=1.0)
    ordinary = (bright > 20) & (bright < 200)  # neither rounded nor compressed
    # Twice the light is 2^(1 / 2.2) times the level.
    ratio = bright[ordinary] / dark[ordinary]
    assert np.median(ratio) == pytest.approx(2 ** (1 / 2.2), rel=0.01)
    # The logarithms of grey levels spread by the contrast.
    grey = photographed(level=0.05, contrast=1.0, saturation=0.0)
    assert np.ptp(grey, axis=-1).max() == 0
    strong = photographed(level=0.05, contrast=2.0, saturation=0.0)
    seen = ((grey > 20) & (grey < 150) & (strong > 20) & (strong < 150))[..., 0]
    slope, _ = np.polyfit(
        np.log(grey[..., 0][seen]), np.log(strong[..., 0][seen]), deg=1
    )
    assert slope == pytest.approx(2.0, rel=0.03)


def walls_alone(scene):
    """The scene without furniture."""
    table = scene.surfaces.copy()
    table[:-6, 2], table[:-6, 3:6] = -100.0, 0.01
    return scene._replace(surfaces=table)


def test_depth_of_an_empty_room_equals_a_literal_loop():
    scene = walls_alone(scene_lib.describe(0, 1))
    depth = np.asarray(renderer.render_scene(scene, SIZE, sensor=False)[1], np.float64)
    half = scene.surfaces[-6, 3:6].astype(float)
    fx, fy, cx, cy = renderer.intrinsics(SIZE)
    for row in range(0, SIZE[0], 5):
        for column in range(0, SIZE[1], 7):
            ray = scene.rotation.astype(float) @ [
                (column - cx) / fx,
                (row - cy) / fy,
                1.0,
            ]
            hits = []
            for axis in range(3):
                for plane in (0.0, 2 * half[axis]):
                    t = (plane - scene.position[axis]) / ray[axis]
                    if t > 0:
                        hits.append(t)
            assert depth[row, column] == pytest.approx(min(hits), rel=2e-5)


def test_depth_of_one_box_equals_a_literal_loop():
    scene = walls_alone(scene_lib.describe(0, 1))
    table = scene.surfaces.copy()
    ahead = scene.position + 1.2 * scene.rotation[:, 2]
    yaw = 0.4
    table[0, :9] = [*ahead, 0.3, 0.2, 0.25, np.cos(yaw), np.sin(yaw), scene_lib.BOX]
    with_box = scene._replace(surfaces=table)
    empty = np.asarray(renderer.render_scene(scene, SIZE, sensor=False)[1])
    depth = np.asarray(
        renderer.render_scene(with_box, SIZE, sensor=False)[1], np.float64
    )
    fx, fy, cx, cy = renderer.intrinsics(SIZE)
    turn = np.array(
        [[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
    )
    start = turn @ (scene.position - ahead)
    seen = 0
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            ray = scene.rotation @ [(column - cx) / fx, (row - cy) / fy, 1.0]
            along = turn @ ray
            first = (-np.sign(along) * [0.3, 0.2, 0.25] - start) / along
            t = first.max()
            inside = np.abs(start + t * along) <= np.array([0.3, 0.2, 0.25]) + 1e-6
            expected = t if inside.all() and t > 0 else empty[row, column]
            seen += inside.all()
            assert depth[row, column] == pytest.approx(expected, rel=1e-4)
    assert seen > 20


def test_the_camera_is_inside_the_room_and_nearly_level():
    for index in range(40):
        scene = scene_lib.describe(5, index)
        size = 2 * scene.surfaces[-6, 3:6]
        assert (scene.position > 0).all() and (scene.position < size).all()
        assert 0.8 < scene.position[2] < 1.8
        r = scene.rotation.astype(float)
        np.testing.assert_allclose(r.T @ r, np.eye(3), atol=1e-5)
        assert np.linalg.det(r) == pytest.approx(1, abs=1e-5)
        assert r[2, 1] < -0.7  # image down is nearly -z


def test_intrinsics_scale_with_the_size():
    assert renderer.intrinsics((480, 640)) == pytest.approx(renderer.NYU_INTRINSICS)
    fx, fy, cx, cy = renderer.intrinsics((240, 320))
    assert (fx, fy) == pytest.approx((259.43, 259.735))
    # The centre of a 480x640 image is between pixels 239 and 240.
    assert (cx, cy) == pytest.approx(((325.58 - 0.5) / 2, (253.74 - 0.5) / 2))


def test_invalid_sizes_and_counts_are_rejected():
    with pytest.raises(UserError, match="use 8x8 or more"):
        renderer.render(0, [0], (4, 40))
    with pytest.raises(UserError, match="cannot render"):
        next(renderer.generate(0, -1, SIZE))


def test_the_source_reads_frames_in_any_order(some):
    source = Rooms(seed=3, train=4, evaluation=2, size=SIZE)
    for row in (0, 1, 4, 2, 3):
        frame = source.frame(row)
        np.testing.assert_array_equal(frame.rgb, some[0][row])
        np.testing.assert_array_equal(frame.raw, some[1][row])
    assert source.splits()["own"] == {"train": [0, 1, 2, 3], "eval": [4, 5]}
    assert source.fingerprint()["renderer"] == renderer.RENDERER_VERSION
