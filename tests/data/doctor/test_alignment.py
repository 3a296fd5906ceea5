"""Alignment of image and depth: aligned, turned, shifted and unrelated pairs."""

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.doctor import alignment
from tests.data import painted

TURNED = {
    "mirrored": np.s_[:, ::-1],
    "upside down": np.s_[::-1],
    "rotated by 180 degrees": np.s_[::-1, ::-1],
}


def edges(rgb, depth) -> alignment.Edges:
    maps = alignment.edges_of(rgb, depth)
    assert maps is not None
    return maps


def scored(pairs):
    """The pairs, each compared with the depth of the others, and their verdict."""
    every = [edges(rgb, depth) for rgb, depth in pairs]
    pool, compared = alignment.Pool(), []
    for k, maps in enumerate(every):
        others = every[:k][-4:] + every[k + 1 :][:4]
        compared.append(alignment.compare(maps, others))
        pool.add(compared[-1])
    verdict = pool.verdict()
    assert verdict is not None
    return compared, verdict


def scenes(count=12, first=0):
    return [painted.scene(seed) for seed in range(first, first + count)]


def test_an_edge_map_has_twice_the_angle_and_magnitude_one_half():
    # Brighter to the lower right: a gradient of 45 degrees, 6 grey levels per axis over
    # two cells.
    y, x = np.mgrid[:40, :40]
    grey = 3.0 * (x + y)
    valid = np.ones((40, 40), bool)
    edge = alignment._edges(grey, np.hypot(6, 6), valid)[20, 20]
    assert edge == pytest.approx(0.5j, abs=1e-6)
    dark_to_light, light_to_dark = (
        alignment._edges(sign * grey, 1.0, valid)[20, 20] for sign in (1, -1)
    )
    assert dark_to_light == light_to_dark


def test_scores_equal_plain_sums():
    first, other = (edges(*painted.scene(seed)) for seed in (1, 2))
    pair = alignment.compare(first, [other])
    h, w = first.image.shape

    def score(dy, dx, depth):
        total = 0.0
        for r in range(h):
            for c in range(w):
                # Depth that is dy down is compared dy further up.
                shifted = depth[(r + dy) % h, (c + dx) % w]
                total += (np.conj(first.image[r, c]) * shifted).real
        return total

    centre = alignment.REACH
    surface = pair.surfaces["as is"]
    for dy, dx in ((0, 0), (-3, 5), (8, -8)):
        expected = score(dy, dx, first.depth)
        assert surface[centre + dy, centre + dx] == pytest.approx(expected, abs=1e-4)
    assert pair.others == (pytest.approx(score(0, 0, other.depth), abs=1e-4),)


@pytest.mark.parametrize("how", TURNED)
def test_turned_maps_equal_maps_of_turned_depth(how):
    rgb, depth = painted.scene(3)
    turned = edges(rgb, depth[TURNED[how]].copy()).depth
    np.testing.assert_allclose(
        alignment.ORIENTATIONS[how](turned), edges(rgb, depth).depth, atol=1e-5
    )


def test_matching_pairs_are_aligned():
    compared, verdict = scored(scenes())
    assert verdict.kind == alignment.ALIGNED == verdict.text
    assert verdict.scores["as is"] > 4 * abs(verdict.scores["mirrored"])
    assert {pair.verdict for pair in compared} == {alignment.ALIGNED}
    assert not any(verdict.misfit(pair) for pair in compared)


@pytest.mark.parametrize("how", TURNED)
def test_turned_depth_is_detected_in_all_or_some_frames(how):
    def turn(depth):
        return depth[TURNED[how]].copy()

    compared, verdict = scored([(rgb, turn(d)) for rgb, d in scenes()])
    assert verdict.kind == how and [p.verdict for p in compared] == [how] * 12
    assert not any(verdict.misfit(pair) for pair in compared)
    some = [(rgb, turn(d) if k in (4, 7) else d) for k, (rgb, d) in enumerate(scenes())]
    compared, verdict = scored(some)
    assert verdict.kind == alignment.ALIGNED
    assert [k for k, pair in enumerate(compared) if verdict.misfit(pair)] == [4, 7]
    assert verdict.misfit(compared[4]) == how


@pytest.mark.parametrize("shift", [(0, 6), (-5, 0), (4, -7)])
def test_a_shift_is_detected_with_its_direction(shift):
    moved = [(rgb, np.roll(d, shift, (0, 1))) for rgb, d in scenes()]
    compared, verdict = scored(moved)
    assert verdict.kind == alignment.SHIFTED and verdict.shift == shift
    assert verdict.text == f"shifted by {shift} pixels"
    assert sum(pair.verdict == alignment.SHIFTED for pair in compared) >= 10


def test_a_shift_of_one_pixel_is_aligned():
    _, verdict = scored([(rgb, np.roll(d, 1, 1)) for rgb, d in scenes()])
    assert verdict.kind == alignment.ALIGNED


def test_depth_of_other_frames_is_unrelated():
    pairs = scenes(24)
    mixed = [(rgb, pairs[(k + 7) % 24][1]) for k, (rgb, _) in enumerate(pairs)]
    compared, verdict = scored(mixed)
    assert verdict.kind == alignment.UNRELATED
    assert sum(pair.verdict == alignment.UNRELATED for pair in compared) > 12


def test_one_wrong_pair_is_a_misfit():
    pairs = scenes()
    pairs[5] = pairs[5][0], painted.scene(99)[1]
    compared, verdict = scored(pairs)
    assert verdict.kind == alignment.ALIGNED
    assert [k for k, pair in enumerate(compared) if verdict.misfit(pair)] == [5]


def test_frames_of_a_static_camera_are_not_other_frames():
    rgb, depth = painted.scene(0)
    compared, verdict = scored([(rgb, depth)] * 5)
    assert compared[0].others == () and verdict.kind == alignment.ALIGNED


def test_cells_are_larger_in_larger_frames():
    rgb, depth = painted.scene(0, size=(480, 640), boxes=30)
    pair = alignment.compare(edges(rgb, np.roll(depth, (6, -12), (0, 1))))
    assert pair.cell == 2 and pair.shift == (6, -12)


def test_pixels_beside_missing_depth_are_not_edges():
    rgb, depth = painted.scene(0)
    wall = np.full_like(depth, 3.0)
    wall[30:60, 30:60] = 0
    assert alignment.edges_of(rgb, wall) is None
    depth[:, 40:60] = 0
    assert edges(rgb, depth).depth[:, 39:61].any() == np.False_


@pytest.mark.parametrize("flat", ["image", "depth", "no depth"])
def test_frames_without_edges_are_not_compared(flat):
    rgb, depth = painted.scene(0)
    rgb = np.full_like(rgb, 90) if flat == "image" else rgb
    depth = {"depth": np.full_like(depth, 2), "no depth": 0 * depth}.get(flat, depth)
    assert alignment.edges_of(rgb, depth) is None
    assert alignment.Pool().verdict() is None


def read(image, depth):
    with Image.open(image) as rgb, Image.open(depth) as stored:
        return np.asarray(rgb), np.asarray(stored).astype(np.float32)


def nyu(folder, names):
    return [read(folder / f"rgb/{n}.jpg", folder / f"depth8/{n}.png") for n in names]


def mirrored(pairs):
    return [(rgb, depth[:, ::-1].copy()) for rgb, depth in pairs]


@pytest.mark.slow
def test_real_pairs_are_aligned_and_mirrored_ones_are_detected(shared_data):
    folder = shared_data / "nyu_train"
    names = sorted(file.stem for file in (folder / "rgb").iterdir())[::12]
    pairs = nyu(folder, names)
    compared, verdict = scored(pairs)
    assert len(pairs) == 67 and verdict.text == alignment.ALIGNED
    assert verdict.scores["as is"] == pytest.approx(0.3, abs=0.03)
    assert abs(verdict.scores["mirrored"]) < 0.05
    assert not any(verdict.misfit(pair) for pair in compared)
    compared, verdict = scored(mirrored(pairs))
    assert verdict.text == "mirrored" and {p.verdict for p in compared} == {"mirrored"}
    assert not any(verdict.misfit(pair) for pair in compared)


def test_misaligned_official_frames_are_misfits(shared_data):
    # Checked by eye: depth of 150 is 12 pixels left; that of 452 shows another place.
    names = ("0003", "0150", "0452", "0007", "0012", "0700", "0931", "1440")
    compared, verdict = scored(nyu(shared_data / "nyu_train", names))
    how = {
        name: verdict.misfit(pair) for name, pair in zip(names, compared, strict=True)
    }
    assert how["0150"].startswith("shifted by (0, -1")
    assert how["0931"].startswith("shifted by (0, -1")
    assert how["0452"].startswith("low score")
    assert [name for name in names if how[name]] == ["0150", "0452", "0931"]


def test_real_raw_depth_is_aligned(shared_data):
    folder = shared_data / "sync_png16" / "basement_0001a"
    pairs = [
        read(folder / f"rgb_{n}.jpg", folder / f"sync_depth_{n}.png")
        for n in ("00000", "00050", "00100")
    ]
    compared, verdict = scored(pairs)
    assert verdict.text == alignment.ALIGNED
    assert {pair.verdict for pair in compared} == {alignment.ALIGNED}
    compared, verdict = scored(mirrored(pairs))
    assert verdict.text == "mirrored" and {p.verdict for p in compared} == {"mirrored"}
