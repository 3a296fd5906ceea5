"""Views of a frame: geometry of image and depth against coordinates written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.ops import platform
from jaxdepth.training import augment as aug

FRAME, SIZE = (48, 64), (44, 60)
STILL = aug.AugmentPolicy(
    scale=(1.0, 1.0), rotation=0.0, colour=(1.0, 1.0), brightness=(1.0, 1.0), flip=0.0
)


def frames(count: int = 3, frame=FRAME, seed: int = 0):
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (count, *frame, 3), np.uint8)
    depth = rng.integers(500, 10000, (count, *frame)).astype(np.uint16)
    depth[rng.random(depth.shape) < 0.2] = 0
    return jnp.asarray(rgb), jnp.asarray(depth)


def keys(count: int, step: int = 0):
    return aug.example_keys(7, step, jnp.arange(count))


jitted = jax.jit(aug.augment, static_argnames=("size", "policy"))


def view(rgb, depth, k, **more):
    images, metres = jitted(rgb, depth, k, **{"size": SIZE, **more})
    return np.asarray(images), np.asarray(metres)


@pytest.mark.parametrize(
    ("frame", "size", "rows", "columns"),
    [
        ((240, 320), (228, 304), slice(6, 234), slice(8, 312)),
        ((120, 160), (114, 152), slice(3, 117), slice(4, 156)),
        ((51, 66), (48, 61), slice(1, 49), slice(2, 63)),
        ((40, 40), (40, 40), slice(0, 40), slice(0, 40)),
    ],
)
def test_without_augmentation_it_is_the_centre_crop(frame, size, rows, columns):
    rgb, depth = frames(2, frame)
    images, metres = view(rgb, depth, keys(2), size=size, policy="none")
    np.testing.assert_array_equal(images, np.asarray(rgb)[:, rows, columns])
    expected = np.asarray(depth)[:, rows, columns] / 1000.0
    np.testing.assert_allclose(metres, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("frame", "size"), [((240, 320), (228, 304)), ((51, 66), (48, 61))]
)
def test_the_identity_grid_is_the_centre_crop(frame, size):
    rows, columns = aug.sample_grid(
        frame, size, scale=1.0, angle=0.0, place=jnp.zeros(2), flip=False
    )
    top, left = (frame[0] - size[0]) // 2, (frame[1] - size[1]) // 2
    expected = np.mgrid[top : top + size[0], left : left + size[1]]
    np.testing.assert_array_equal(np.stack([rows, columns]), expected)


def test_a_view_without_turn_or_scale_never_leaves_the_frame():
    rgb, depth = frames(40)
    _, metres = view(rgb, jnp.full_like(depth, 2000), keys(40), policy=STILL)
    np.testing.assert_allclose(metres, 2.0)


def test_grid_against_a_rotation_written_out():
    s, angle, place = 1.3, 0.07, np.array([0.4, -0.7])
    rows, columns = aug.sample_grid(
        FRAME, SIZE, scale=s, angle=angle, place=jnp.asarray(place, jnp.float32),
        flip=True,
    )  # fmt: skip
    # Centre: between the ends that a view of SIZE / s has, half a pixel kept free.
    room = (np.array(FRAME) - np.array(SIZE) / s) / 2 - 0.5
    centre = (np.array(FRAME) - 1) / 2 + place * room
    i, j = 5, 50
    y, x = i - (SIZE[0] - 1) / 2, -(j - (SIZE[1] - 1) / 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    expected = centre + turn @ np.array([y, x]) / s
    np.testing.assert_allclose([rows[i, j], columns[i, j]], expected, atol=1e-4)


def test_image_and_depth_move_together():
    # Both carry their own column or row: colours 4 * x and 5 * y, depth 100 * x + y.
    y, x = np.mgrid[: FRAME[0], : FRAME[1]]
    rgb = np.stack([4 * x, 5 * y, 0 * x], -1).astype(np.uint8)[None].repeat(100, 0)
    depth = (1000 + 100 * x + y).astype(np.uint16)[None].repeat(100, 0)
    plain = dataclasses.replace(
        aug.AugmentPolicy(), colour=(1.0, 1.0), brightness=(1.0, 1.0)
    )
    k = keys(100)
    images, metres = view(jnp.asarray(rgb), jnp.asarray(depth), k, policy=plain)
    moved = 0
    for image, metre, key in zip(images, metres, k, strict=True):
        s = jax.random.uniform(jax.random.split(key, 6)[0], (), minval=1.0, maxval=1.5)
        code = np.round(metre * float(s) * 1000).astype(int)
        valid = code > 0
        column, row = np.divmod(code[valid] - 1000, 100)
        assert np.abs(column - image[..., 0][valid] / 4).max() < 0.51
        assert np.abs(row - image[..., 1][valid] / 5).max() < 0.51
        moved += np.ptp(column) > 0
    assert moved == 100


def test_depth_is_never_mixed_and_is_divided_by_the_scale():
    rgb, depth = frames(100)
    k = keys(100)
    _, metres = view(rgb, depth, k, policy="full")
    for i in range(0, 100, 9):
        before, after, key = np.asarray(depth[i]), metres[i], k[i]
        s = jax.random.uniform(jax.random.split(key, 6)[0], (), minval=1.0, maxval=1.5)
        allowed = np.append(np.unique(before), 0).astype(np.float32) / 1000 / float(s)
        gap = np.abs(after.reshape(-1, 1) - allowed[None]).min(1)
        assert gap.max() < 1e-5
        assert (after == 0).any()


def test_views_are_the_same_from_packed_words():
    # Noise: one pixel further the colour is any other.
    rgb, depth = frames(60, (120, 160))
    size = (114, 152)
    images, metres = view(rgb, depth, keys(60), size=size, policy="full")
    with platform.compiling_for("tpu"):
        packed = view(rgb, depth, keys(60), size=size, policy="full")
    np.testing.assert_allclose(packed[0], images, atol=0.02)
    np.testing.assert_array_equal(packed[1], metres)


def test_a_larger_scale_shows_less_and_nearer():
    rgb, depth = frames(1)
    flat = jnp.full_like(depth, 3000)
    twice = dataclasses.replace(STILL, scale=(2.0, 2.0))
    _, metres = view(rgb, flat, keys(1), policy=twice)
    np.testing.assert_allclose(metres, 1.5, rtol=1e-6)
    rows, columns = aug.sample_grid(
        FRAME, SIZE, scale=2.0, angle=0.0, place=jnp.zeros(2), flip=False
    )
    np.testing.assert_allclose(np.ptp(np.asarray(rows)), (SIZE[0] - 1) / 2)
    np.testing.assert_allclose(np.ptp(np.asarray(columns)), (SIZE[1] - 1) / 2)


def test_flip_mirrors_image_and_depth():
    rgb, depth = frames(40)
    still = view(rgb, depth, keys(40), policy=STILL)
    flipped = view(rgb, depth, keys(40), policy=dataclasses.replace(STILL, flip=1.0))
    # At fractional places the bilinear image agrees to rounding; depth takes the
    # nearest pixel, which a mirror may only change at exact halves.
    np.testing.assert_allclose(flipped[0], still[0][:, :, ::-1], atol=1e-2)
    assert (flipped[1] == still[1][:, :, ::-1]).mean() > 0.99


def test_flip_cuts_whole_pixels_out():
    rgb, depth = frames(1, (24, 30))
    n, size = 300, (20, 28)
    many = jnp.repeat(rgb, n, 0), jnp.repeat(depth, n, 0)
    still = dataclasses.replace(STILL, flip=0.5)
    images, metres = view(*many, keys(n), size=size, policy=still)
    crops = {}
    for top in range(5):
        for left in range(3):
            where = slice(top, top + 20), slice(left, left + 28)
            cut = np.asarray(rgb[0])[where], np.asarray(depth[0])[where]
            for mirrored in (False, True):
                image, mm = (x[:, ::-1] if mirrored else x for x in cut)
                crops[image.astype(np.float32).tobytes()] = mm, (top, left, mirrored)
    seen = set()
    for image, metre in zip(images, metres, strict=True):
        mm, place = crops[image.tobytes()]
        np.testing.assert_allclose(metre, mm / 1000, rtol=1e-6)
        seen.add(place)
    assert len(seen) == 5 * 3 * 2
    chosen, _ = view(*many, keys(n), size=size, policy="flip")
    factor = chosen[:, 5, 5] / np.maximum(images[:, 5, 5], 1)
    assert np.ptp(factor) > 0.2


def test_mild_views_are_as_often_nearer_as_farther():
    rgb, depth = frames(300)
    _, metres = view(rgb, jnp.full_like(depth, 3000), keys(300), policy="mild")
    factor = metres.max((1, 2)) / 3
    assert factor.min() > 1 / 1.121 and factor.max() < 1 / 0.899
    assert abs(np.log(factor).mean()) < 0.01
    assert (metres > 0).mean() > 0.97


def test_half_of_the_images_are_mirrored():
    ramp = jnp.arange(FRAME[1], dtype=jnp.uint8)[None, None, :, None]
    rgb = jnp.broadcast_to(ramp, (100, *FRAME, 3))
    images, _ = view(rgb, jnp.ones((100, *FRAME), jnp.uint16), keys(100), policy="full")
    mirrored = images[:, 20, 5, 0] > images[:, 20, -5, 0]
    assert 30 < mirrored.sum() < 70


def test_colour_factors_stay_in_their_range():
    rgb = jnp.full((100, *FRAME, 3), 100, jnp.uint8)
    images, _ = view(rgb, jnp.ones((100, *FRAME), jnp.uint16), keys(100), policy="full")
    factor = images[:, 0, 0] / 100
    assert factor.min() >= 0.64 - 1e-5 and factor.max() <= 1.44 + 1e-5
    assert factor.min() < 0.75 and factor.max() > 1.25
    even = np.broadcast_to(images[:, :1, :1], images.shape)
    np.testing.assert_allclose(images, even, rtol=1e-5)
    bright = jnp.full((100, *FRAME, 3), 255, jnp.uint8)
    images, _ = view(bright, jnp.ones((100, *FRAME), jnp.uint16), keys(100),
                     policy="full")  # fmt: skip
    assert images.max() <= 255


def test_views_stay_mostly_inside_the_frame():
    rgb, depth = frames(100)
    _, metres = view(rgb, jnp.full_like(depth, 2000), keys(100), policy="full")
    missing = (metres == 0).mean((1, 2))
    assert missing.mean() < 0.02 and missing.max() < 0.15


def test_a_view_does_not_depend_on_the_batch_around_it():
    rgb, depth = frames(100)
    k = keys(100)
    images, metres = view(rgb, depth, k, policy="full")
    for i in (0, 3, 99):
        alone = view(rgb[i : i + 1], depth[i : i + 1], k[i : i + 1], policy="full")
        np.testing.assert_allclose(alone[0][0], images[i], atol=1e-3)
        np.testing.assert_array_equal(alone[1][0], metres[i])


def test_the_same_keys_give_the_same_view_and_others_another():
    rgb, depth = frames(100)
    first, again = (view(rgb, depth, keys(100), policy="full") for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    later = view(rgb, depth, keys(100, step=1), policy="full")
    assert np.abs(later[0] - first[0]).mean() > 1


def test_keys_are_the_stated_function_of_seed_step_and_position():
    actual = aug.example_keys(3, 11, jnp.array([5, 0, 9]))
    for key, position in zip(actual, (5, 0, 9), strict=True):
        stated = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 11), position)
        assert (jax.random.key_data(key) == jax.random.key_data(stated)).all()
