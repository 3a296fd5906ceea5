"""The unit of depth: codes, summaries, candidates, hints at encodings."""

import re

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data import checks, units
from jaxdepth.data.sources import ReadOptions, any_unit, open_source
from jaxdepth.data.store import writer
from jaxdepth.runtime.errors import UserError


def room(rng, size=(60, 80)):
    """Millimetres of a floor, a wall and a box, with noise and holes."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    depth = 4200 - 40.0 * np.maximum(0, rows - 20) + 6.0 * columns
    depth[30:45, 20:40] = 1800 + 5 * rows[30:45, 20:40]
    depth = np.round(depth + rng.normal(0, 4, size))
    depth[:4, :7] = 0
    return depth.astype(np.uint16)


def write(folder, values, name="depth"):
    for part in ("rgb", name):
        (folder / part).mkdir(parents=True)
    for k, stored in enumerate(values):
        rgb = np.full((*stored.shape, 3), 20 * k, np.uint8)
        Image.fromarray(rgb).save(folder / "rgb" / f"{k}.png")
        Image.fromarray(stored).save(folder / name / f"{k}.png")
    return folder


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    return [room(rng) for _ in range(5)]


def encoded(values, code):
    """Encode pixel by pixel, by the definition of the code."""
    if code == "swapped":
        return np.array(
            [[int(v) % 256 * 256 + int(v) // 256 for v in r] for r in values]
        )
    bits = [[f"{int(v):016b}" for v in row] for row in values]
    return np.array([[int(text[3:] + text[:3], 2) for text in row] for row in bits])


@pytest.mark.parametrize("code", ["swapped", "sunrgbd"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_codes_are_undone(code, dtype):
    values = np.array([[0, 1, 255, 256], [4095, 8192, 9870, 65535]], np.uint16)
    stored = encoded(values, code).astype(dtype)
    decoded = units.decode(stored, code, where="x.png")
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize(
    "values", [np.ones((2, 2), np.uint8), np.ones((2, 2), np.float32),
               np.full((2, 2), 70000, np.int32), np.full((2, 2), -1, np.int32)]
)  # fmt: skip
def test_codes_are_of_16_bits(values):
    with pytest.raises(UserError, match=r"x\.png holds .*--depth_code=swapped is"):
        units.decode(values, "swapped", where="x.png")
    assert units.decode(values, "plain", where="x.png") is values


def test_a_real_sun_rgbd_frame_is_read(shared_data, tmp_path):
    folder = shared_data / "other_sensors" / "sunrgbd"
    (tmp_path / "rgb").mkdir()
    (tmp_path / "depth").mkdir()
    (tmp_path / "rgb" / "0.jpg").symlink_to(folder / "SUN_color.jpg")
    (tmp_path / "depth" / "0.png").symlink_to(folder / "SUN_depth.png")
    options = ReadOptions(depth_code="sunrgbd", allow_outside=True)
    source = open_source(tmp_path, options=options)
    (depth,) = source.frame(0).depths.values()
    # Of all pixels, as in the data's README; 0 where depth is missing.
    assert np.median(depth) == pytest.approx(2.35, abs=0.01)
    assert not [note for note in source.notes if "room" in note]
    plain = open_source(tmp_path, options=ReadOptions(allow_outside=True))
    (note,) = [note for note in plain.notes if "room" in note]
    assert "--depth_code=sunrgbd" in note and re.search(r"8000: 2\.6\d m \*", note)


@pytest.mark.parametrize("code", ["swapped", "sunrgbd"])
def test_encoded_folders_are_noticed_and_read(maps, code, tmp_path):
    stored = [encoded(values, code).astype(np.uint16) for values in maps]
    write(tmp_path, stored)
    (note,) = [n for n in open_source(tmp_path).notes if "--depth_code" in n]
    assert f"--depth_code={code}" in note
    source = open_source(tmp_path, options=ReadOptions(depth_code=code))
    assert not [n for n in source.notes if "--depth" in n]
    (depth,) = source.frame(2).depths.values()
    np.testing.assert_allclose(depth, maps[2] / 1000, rtol=1e-6)


@pytest.mark.parametrize("factor", [1, 8, 256])
def test_plain_depth_is_not_taken_for_a_code(maps, factor):
    """256: 8-bit depth in the upper byte; 8: multiples of the rotation."""
    for values in maps:
        stored = (values // 40 * factor).astype(np.uint16) if factor > 1 else values
        hints = units.EncodingHints.of((stored / 1000).astype(np.float32), scale=1000)
        assert not hints.swapped and not hints.rotated


def test_disparity_is_suspected_by_name_and_by_larger_values_below(maps, tmp_path):
    near = [(600 / np.maximum(m, 1) * (m > 0) * 1000).astype(np.uint16) for m in maps]
    write(tmp_path / "a", near)
    assert any("as in disparity" in n for n in open_source(tmp_path / "a").notes)
    write(tmp_path / "b", maps)
    assert not any("disparity" in n for n in open_source(tmp_path / "b").notes)
    assert (
        units.suspected_encoding(
            [units.EncodingHints(lower=1.0)], name="x/display/0.png"
        )
        is None
    )
    text = units.suspected_encoding(
        [units.EncodingHints(lower=1.0)], name="x/disp_0.png"
    )
    assert text and "disparity" in text


@pytest.mark.parametrize("scale", [1.0, 100.0, 256.0, 4000.0, 5000.0, 6553.5, 10000.0])
def test_candidates_hold_the_right_scale(maps, scale):
    metres = np.median(np.concatenate([m[m > 0] for m in maps])) / 1000
    summary = units.Summary()
    for values in maps:
        stored = values / 1000 * scale
        summary.add(units.Summary.of((stored / 1000).astype(np.float32)))
    text = units.candidates(summary, scale=1000.0)
    shown = re.search(rf"[ ,]{scale:g}: ([\d.]+) m \*", text)
    assert shown and float(shown[1]) == pytest.approx(metres, rel=0.01)
    assert "1000 (as read): " in text


def test_8_bit_codes_are_a_candidate_of_small_integers_only():
    depth = np.full((4, 4), 0.064, np.float32)
    summary = units.Summary.of(depth)
    assert "25.5: 2.51 m *" in units.candidates(summary, scale=1000.0, whole=True)
    assert "25.5" not in units.candidates(summary, scale=1000.0, whole=False)
    assert "25.5" not in units.candidates(summary, scale=10_000.0)


@pytest.mark.parametrize("scale", [10.0, 1_000_000.0])
def test_an_impossible_unit_is_an_error_with_the_candidates(maps, scale, tmp_path):
    write(tmp_path, maps)
    options = ReadOptions(depth_scale=scale)
    with pytest.raises(UserError, match=r"unit is wrong: .* 1000: [\d.]+ m \*"):
        open_source(tmp_path, options=options)
    with any_unit():
        assert open_source(tmp_path, options=options).notes == []


@pytest.mark.parametrize(
    ("metres", "odd"),
    [
        (np.linspace(0.6, 6, 99), None),
        (np.linspace(0.7, 0.9, 99), "no depth is above 0.9 m"),
        (np.linspace(0.1, 1.2, 199) ** 2 / 1.2, "the median is 0.35"),
        (np.linspace(7, 11, 99), "the median is 9"),
        (np.concatenate([np.linspace(1, 5, 95), np.full(5, 30)]), "1 % of the pixels"),
        (np.concatenate([np.linspace(1, 5, 10), np.zeros(90)]), "only 10.0%"),
    ],
)
def test_what_does_not_look_like_a_room(metres, odd):
    text = units.implausibility(units.Summary.of(metres[None].astype(np.float32)))
    assert text is None if odd is None else text is not None and odd in text


def test_a_summary_is_that_of_all_pixels(maps):
    total = units.Summary()
    for values in maps:
        total.add(units.Summary.of((values / 1000).astype(np.float32)))
    total = units.Summary.from_dict(total.to_dict())
    every = np.concatenate([m.ravel() for m in maps]) / 1000
    valid = every[every > 0]
    assert total.frames == 5 and total.share == pytest.approx(len(valid) / len(every))
    assert total.smallest == pytest.approx(valid.min())
    assert total.largest == pytest.approx(valid.max())
    assert total.median == pytest.approx(np.median(valid), rel=3e-3)
    assert total.percentile(0.99) == pytest.approx(np.percentile(valid, 99), rel=5e-3)
    assert len(total.counts) < 4000


def test_a_summary_without_depth():
    empty = units.Summary.of(np.zeros((3, 4), np.float32))
    total = units.Summary.of(np.full((3, 4), 2, np.float32))
    total.add(empty)
    assert str(empty) == "no valid depth in 1 frames"
    assert str(total) == "50.0% valid, 2 to 2 m, median 2 m"
    assert units.implausibility(empty) is None


def test_a_store_knows_the_depth_that_was_read(maps, tmp_path):
    write(tmp_path / "data", maps)
    source = open_source(tmp_path / "data")
    store = writer.write(source, tmp_path / "s", size=(24, 32), max_depth=3.0)
    valid = np.concatenate([m[m > 0] for m in maps]) / 1000
    share = len(valid) / sum(m.size for m in maps)
    line = checks.depth_line(store, "raw", where="data")
    assert line.startswith(f"raw depth: {share:.1%} valid, {valid.min():.3g} to ")
    assert f"{valid.max():.3g} m, median {np.median(valid):.3g} m (all 5 frames" in line
    del store.manifest["read"]
    assert "(5 of 5 stored frames)" in checks.depth_line(store, "raw", where="data")
    store.manifest["read"] = {"raw": {"frames": 5}}
    with pytest.raises(UserError, match="summary of raw depth"):
        checks.depth_line(store, "raw", where="data")


def test_a_line_on_odd_depth_names_the_command_that_shows_more():
    summary = units.Summary.of(np.full((2, 2), 21.3, np.float32))
    text = checks.line("raw", summary, "1 frame", where="my data")
    assert (
        "(the median is 21.3 m); to check it, run jaxdepth inspect-data 'my data'"
        in text
    )


def test_a_store_without_depth_in_range_lists_the_candidates(maps, tmp_path):
    write(tmp_path / "data", [m * np.uint16(10) for m in maps])
    source = open_source(tmp_path / "data")
    with pytest.raises(UserError, match=r"within --max_depth .* 10000: [\d.]+ m \*"):
        writer.write(source, tmp_path / "s", size=(24, 32), max_depth=3.0)


def test_distance_along_the_ray_becomes_planar(maps, tmp_path):
    """Every pixel by itself: d = z |(u, v, f)| / f."""
    height, width = maps[0].shape
    rays = []
    for values in maps:
        ray = np.zeros(values.shape, np.float32)
        for y in range(height):
            for x in range(width):
                u, v = x - (width - 1) / 2, y - (height - 1) / 2
                z = float(values[y, x]) / 1000
                ray[y, x] = z * (u * u + v * v + 70.0**2) ** 0.5 / 70.0
        rays.append(ray)
    write(tmp_path, maps)
    for k, ray in enumerate(rays):
        (tmp_path / "depth" / f"{k}.png").unlink()
        np.save(tmp_path / "depth" / f"{k}.npy", ray)
    options = ReadOptions(depth_kind="ray", depth_fx=70.0)
    (depth,) = open_source(tmp_path, options=options).frame(1).depths.values()
    np.testing.assert_allclose(depth, maps[1] / 1000, rtol=1e-5)


@pytest.mark.parametrize("doffs", [0.0, 12.5])
def test_disparity_becomes_depth(maps, doffs, tmp_path):
    """Disparity in 1/256 pixel, as KITTI stores it."""
    metres = maps[1] / 1000
    with np.errstate(divide="ignore"):
        disparity = np.where(metres > 0, 400 * 0.25 / metres - doffs, 0)
    stored = np.round(disparity * 256).astype(np.uint16)
    write(tmp_path, [stored] * 2, name="disparity")
    options = ReadOptions(
        depth_kind="disparity", depth_fx=400.0, baseline=0.25, doffs=doffs,
        depth_scale=256.0,
    )  # fmt: skip
    source = open_source(tmp_path, options=options)
    (depth,) = source.frame(1).depths.values()
    np.testing.assert_allclose(depth, metres, rtol=1e-3)
    assert (depth[maps[1] == 0] == 0).all()
    assert not any("disparity" in note for note in source.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth_kind": "ray"}, "--depth_kind=ray needs --depth_fx"),
        ({"depth_kind": "disparity", "depth_fx": 5.0}, "needs --baseline"),
        ({"depth_fx": 5.0}, "--depth_fx=5: --depth_kind=planar does not use it"),
        ({"depth_kind": "ray", "depth_fx": 5.0, "doffs": 1.0}, "--doffs=1: "),
    ],
)
def test_camera_values_that_are_missing_or_unused(options, message, maps, tmp_path):
    write(tmp_path, maps)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path, options=ReadOptions(**options))


def box(width, share):
    """Planar depth of the inside of a box, float64 metres, by ray casting."""
    height, f = width * 3 // 4, share * width
    v, u = np.mgrid[:height, :width].astype(float)
    x, y = (u - (width - 1) / 2) / f, (v - (height - 1) / 2) / f
    planes = [(0.3, 0, 1, 4.0), (1, 0, 0.2, 1.9), (-1, 0, 0.1, 2.1)]
    planes += [(0, 1, 0, 1.3), (0, -1, 0, 1.2)]
    depth = np.full((height, width), np.inf)
    for a, b, c, distance in planes:
        along = a * x + b * y + c
        depth = np.minimum(depth, np.where(along > 0.01, distance / along, np.inf))
    return depth


@pytest.mark.parametrize("share", [0.55, 0.81, 0.866, 1.0])
@pytest.mark.parametrize("width", [160, 640])
@pytest.mark.parametrize("step", [0, 0.001])
def test_distance_along_the_ray_is_noticed(share, width, step):
    planar = box(width, share)
    height, f = len(planar), share * width
    v, u = np.mgrid[:height, :width].astype(float)
    u, v = u - (width - 1) / 2, v - (height - 1) / 2
    ray = planar * np.sqrt(u**2 + v**2 + f**2) / f
    for depth, expected in ((planar, False), (ray, True)):
        stored = np.round(depth / step) * step if step else depth
        hints = units.EncodingHints.of(stored.astype(np.float32), scale=None)
        assert hints.ray is expected
        text = units.suspected_encoding([hints] * 3)
        assert ("--depth_kind=ray" in (text or "")) is expected


def test_real_sensors_are_planar(shared_data):
    files = sorted((shared_data / "sync_png16").glob("*/sync_depth_*.png"))
    files += sorted((shared_data / "tum_rgbd" / "depth").glob("*.png"))
    files += [shared_data / "other_sensors" / "arkit" / "arkit_depth.png"]
    assert len(files) == 8
    for file in files:
        with Image.open(file) as image:
            depth = np.asarray(image).astype(np.float32) / 1000
        hints = units.EncodingHints.of(depth, scale=1000.0)
        assert not (hints.ray or hints.swapped or hints.rotated), file


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (64, 64), (65, 2000), (2000, 70)])
def test_maps_of_any_size_have_hints(size):
    holes = np.ones(size, np.float32)
    holes[::2] = 0
    for depth in (np.zeros(size, np.float32), np.ones(size, np.float32), holes):
        hints = units.EncodingHints.of(depth, scale=1000.0)
        assert not (hints.ray or hints.swapped or hints.rotated)
