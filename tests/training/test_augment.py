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
    # On some CPUs, the two programs round a coordinate at a pixel's edge differently.
    differ = np.abs(np.asarray(packed[0]) - np.asarray(images)) > 0.02
    assert np.mean(differ) < 1e-5
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


def test_discrete_scales_divide_depth_and_show_less():
    count, frame, size = 300, (48, 64), (40, 56)
    # Depth by column, so that the columns that a view shows are known.
    columns = np.broadcast_to(1000 + np.arange(64, dtype=np.uint16), (count, *frame))
    rgb = jnp.full((count, *frame, 3), 100, jnp.uint8)
    images, metres = view(
        rgb, jnp.asarray(columns), keys(count), size=size, policy="scales"
    )
    np.testing.assert_array_equal(images, 100.0)  # colours are left as they are
    seen = []
    for metre in metres:
        # Without rotation, all rows are equal, and nothing is beyond the frame.
        assert (metre == metre[:1]).all() and (metre > 0).all()
        row = metre[0]
        fits = []
        for scale in (1.0, 1.2, 1.5):
            column = row * scale * 1000 - 1000
            whole = np.abs(column - np.round(column)).max() < 0.01
            shown = abs(np.ptp(column) - 55 / scale) <= 1
            fits += [scale] if whole and shown else []
        assert len(fits) == 1
        seen.append((fits[0], row[0] < row[-1]))
    for scale in (1.0, 1.2, 1.5):
        assert 70 < sum(s == scale for s, _ in seen) < 130
    assert 120 < sum(direct for _, direct in seen) < 180


GREY = np.array([0.299, 0.587, 0.114])


def policy_named(name) -> aug.AugmentPolicy:
    policy = aug.POLICIES[name]
    assert policy is not None
    return policy


def colours_of(policy, count=200, **options):
    """Views of one random image without geometry, and the image's centre crop."""
    rng = np.random.default_rng(1)
    image = rng.integers(60, 160, (1, *SIZE, 3)).astype(np.uint8)
    still = dataclasses.replace(policy, scale=(1.0, 1.0), rotation=0.0, flip=0.0)
    still = dataclasses.replace(still, **options)
    rgb = jnp.asarray(image.repeat(count, 0))
    depth = jnp.full(rgb.shape[:3], 2500, jnp.uint16)
    images, metres = view(rgb, depth, keys(count), policy=still)
    np.testing.assert_allclose(metres, 2.5)  # of colour alone
    return images.astype(np.float64), image[0].astype(np.float64)


def test_jitter_is_brightness_contrast_and_saturation():
    policy = policy_named("jitter")
    # Ranges in which no colour is clipped.
    narrow = {"brightness": (0.7, 1.1), "contrast": (0.8, 1.2)}
    images, image = colours_of(
        policy, 400, colour=(1.0, 1.0), saturation=(0.8, 1.2), **narrow
    )
    grey = image @ GREY
    factors = []
    for seen in images:
        # Brightness from the mean of grey, contrast and saturation by least squares.
        bright = (seen @ GREY).mean() / grey.mean()
        centred = grey - grey.mean()
        contrast = (centred * (seen @ GREY)).sum() / (centred**2).sum() / bright
        colour = image - grey[..., None]
        saturation = (colour * (seen - (seen @ GREY)[..., None])).sum()
        saturation /= (colour**2).sum() * bright * contrast
        expected = bright * image
        expected = bright * grey.mean() + contrast * (expected - bright * grey.mean())
        its_grey = expected @ GREY
        expected = its_grey[..., None] + saturation * (expected - its_grey[..., None])
        np.testing.assert_allclose(seen, expected, atol=1e-2)
        factors.append((bright, contrast, saturation))
    factors = np.array(factors)
    ranges = ((0.7, 1.1), (0.8, 1.2), (0.8, 1.2))
    for (low, high), values in zip(ranges, factors.T, strict=True):
        assert low - 1e-3 < values.min() < low + 0.05
        assert high - 0.05 < values.max() < high + 1e-3
    # The three are drawn independently.
    correlation = np.corrcoef(factors.T) - np.eye(3)
    assert np.abs(correlation).max() < 0.25


def test_jitter_has_the_published_ranges_and_clips():
    policy = policy_named("jitter")
    for limits in (policy.brightness, policy.contrast, policy.saturation):
        assert limits == (0.6, 1.4)
    images, _ = colours_of(policy)
    assert images.min() >= 0 and images.max() == 255


def test_cutout_hides_a_rectangle_and_keeps_its_depth():
    plain = {"colour": (1.0, 1.0), "brightness": (1.0, 1.0)}
    images, image = colours_of(policy_named("cutout"), 300, **plain)
    mean = image.mean((0, 1))
    heights, widths, clipped = [], [], 0
    for seen in images:
        hidden = (np.abs(seen - mean) < 1e-2).all(-1)
        np.testing.assert_array_equal(seen[~hidden], image[~hidden])
        if not hidden.any():
            continue
        rows, columns = (np.flatnonzero(hidden.any(axis)) for axis in (1, 0))
        assert hidden.sum() == len(rows) * len(columns)  # one rectangle
        assert np.ptp(rows) + 1 == len(rows) and np.ptp(columns) + 1 == len(columns)
        edge = rows[0] == 0 or rows[-1] == SIZE[0] - 1
        edge |= columns[0] == 0 or columns[-1] == SIZE[1] - 1
        clipped += edge
        if not edge:
            heights.append(len(rows))
            widths.append(len(columns))
    # Sides of 0.1 to 0.5 of the view; the centre may be near its edge.
    for sides, full in ((heights, SIZE[0]), (widths, SIZE[1])):
        assert 0.1 * full - 1 <= min(sides) and max(sides) <= 0.5 * full + 1
        assert np.std(sides) > 0.05 * full
    assert 30 < clipped < 270


def test_jitter_and_cutout_have_the_geometry_of_mild():
    rgb, depth = frames(20)
    _, mild = view(rgb, depth, keys(20), policy="mild")
    for policy in ("jitter", "cutout"):
        _, metres = view(rgb, depth, keys(20), policy=policy)
        np.testing.assert_array_equal(metres, mild)


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


@pytest.mark.parametrize("policy", ["full", "scales", "jitter", "cutout", "strong"])
def test_a_view_does_not_depend_on_the_batch_around_it(policy):
    rgb, depth = frames(100)
    k = keys(100)
    images, metres = view(rgb, depth, k, policy=policy)
    for i in (0, 3, 99):
        alone = view(rgb[i : i + 1], depth[i : i + 1], k[i : i + 1], policy=policy)
        np.testing.assert_allclose(alone[0][0], images[i], atol=1e-3)
        np.testing.assert_array_equal(alone[1][0], metres[i])


@pytest.mark.parametrize("policy", ["full", "scales", "jitter", "cutout", "strong"])
def test_the_same_keys_give_the_same_view_and_others_another(policy):
    rgb, depth = frames(100)
    first, again = (view(rgb, depth, keys(100), policy=policy) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    later = view(rgb, depth, keys(100, step=1), policy=policy)
    assert np.abs(later[0] - first[0]).mean() > 1


def test_keys_are_the_stated_function_of_seed_step_and_position():
    actual = aug.example_keys(3, 11, jnp.array([5, 0, 9]))
    for key, position in zip(actual, (5, 0, 9), strict=True):
        stated = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 11), position)
        assert (jax.random.key_data(key) == jax.random.key_data(stated)).all()
