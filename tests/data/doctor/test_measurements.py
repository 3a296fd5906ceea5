"""Measurements and findings on clean data and on data with known faults."""

import dataclasses
import re

import h5py
import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.doctor import findings, measurements
from jaxdepth.data.sources import Frame, FrameInfo, ReadOptions, open_source
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import UserError
from tests.data import painted
from tests.data.memory import Memory


def of(inspection, what=None, level=None):
    """The findings with this `what` and level, as text."""
    return [
        str(line)
        for line in findings.of(inspection)
        if what in (None, line.what) and level in (None, line.level)
    ]


def only(inspection, what, level="problem"):
    """The only finding with this `what` and level, as text."""
    (line,) = of(inspection, what, level)
    assert "\n" not in line
    return line


def inspected(path, *, frames=0, **options):
    opened = measurements.open_data(path, options=ReadOptions(**options))
    return measurements.inspect(opened, frames=frames)


# Tests on real frames, at half size for speed: a folder of JPEG and 16-bit PNG.


@dataclasses.dataclass
class Real:
    names: list[str]
    rgb: list[np.ndarray]
    metres: list[np.ndarray]

    def write(self, root, edit=None, *, scale=1000, dtype=np.uint16, folder=""):
        """Write all frames to rgb/ and depth/, with depth edit(number, metres)."""
        for what in ("rgb", "depth"):
            (root / folder / what).mkdir(parents=True)
        for k, name in enumerate(self.names):
            metres = self.metres[k] if edit is None else edit(k, self.metres[k])
            stored = np.round(metres * scale).clip(0, np.iinfo(dtype).max)
            image = Image.fromarray(self.rgb[k])
            image.save(root / folder / f"rgb/{name}.jpg", quality=92)
            depth = Image.fromarray(stored.astype(dtype))
            depth.save(root / folder / f"depth/{name}.png", compress_level=1)
        return root


@pytest.fixture(scope="module")
def real(shared_data):
    """24 training frames; noise replaces the precision lost in 8-bit depth."""
    rng, frames = np.random.default_rng(0), Real([], [], [])
    folder = shared_data / "nyu_train"
    for file in sorted((folder / "rgb").iterdir())[::33][:24]:
        with (
            Image.open(file) as rgb,
            Image.open(folder / "depth8" / f"{file.stem}.png") as codes,
        ):
            frames.names.append(file.stem)
            frames.rgb.append(np.asarray(rgb)[::2, ::2])
            code = np.asarray(codes)[::2, ::2] + rng.random((240, 320))
            frames.metres.append(code / 255 * 9.99547)
    return frames


def test_clean_real_frames_have_no_problem(real, tmp_path):
    inspection = inspected(real.write(tmp_path))
    assert {line.level for line in findings.of(inspection)} == {"ok"}
    assert "plausible for rooms" in only(inspection, "unit", "ok")
    assert "depth matches its image" in only(inspection, "alignment", "ok")
    assert "in each of 24" in only(inspection, "ground truth", "ok")
    assert "none among 24" in only(inspection, "copies", "ok")
    assert "filled" in only(inspection, "filled depth", "ok")
    assert inspection.verdict is not None and inspection.verdict.shift == (0, 0)


def test_centimetres_in_a_png_are_detected(real, tmp_path):
    real.write(tmp_path, scale=100)
    inspection = inspected(tmp_path)
    line = only(inspection, "unit")
    assert re.search(r"[ ,]100: 2\.\d+ m \*", line) and "--depth_scale" in line
    assert re.search(r"1000 \(as read\): 0\.2\d+ m,", line)
    assert inspection.opened.scale == 1000
    right = inspected(tmp_path, depth_scale=100.0)
    assert "at 100 per metre" in only(right, "unit", "ok")
    assert "steps of 10.0 mm" in only(right, "steps", "ok")
    assert not of(right, level="problem") + of(right, level="warning")


def test_8_bit_depth_is_detected(real, tmp_path):
    real.write(tmp_path, scale=25.5, dtype=np.uint8)
    line = only(inspected(tmp_path, depth_scale=25.5), "8-bit depth", "warning")
    assert "even steps of 39.2 mm" in line
    unknown = inspected(tmp_path)
    assert "8-bit depth of unknown unit" in only(unknown, "unit")
    assert only(unknown, "8-bit depth", "warning") == line
    wrong = inspected(tmp_path, depth_scale=1.0)
    assert re.search(r"[ ,]25\.5: 2\.\d+ m \*", only(wrong, "unit", "warning"))


def test_resized_8_bit_depth_in_16_bits_is_detected(real, tmp_path):
    def coarse(_, metres):
        return np.floor(metres / 9.99547 * 255) / 25.5

    real.write(tmp_path / "a", coarse)
    line = only(inspected(tmp_path / "a"), "8-bit depth", "warning")
    assert "even steps of 39.2 mm" in line
    store_writer.write(open_source(tmp_path / "a"), tmp_path / "s", size=(120, 160))
    opened = measurements.open_data(tmp_path / "s")
    opened.source.store._full_indices.clear()  # type: ignore
    inspection = measurements.inspect(opened)
    assert {frame.size for frame in inspection.frames} == {(120, 160)}
    assert "8-bit depth that was resized" in only(inspection, "8-bit depth", "warning")


def test_copies_and_scenes_in_both_parts_are_detected(real, tmp_path):
    real.write(tmp_path, folder="train/kitchen_0001a")
    some = Real(real.names[3:6], real.rgb[3:6], real.metres[3:6])
    some.write(tmp_path, folder="test/kitchen_0001b")
    other = Real(real.names[6:7], [x[:, ::-1] for x in real.rgb[6:7]], real.metres[:1])
    other.write(tmp_path, folder="test/study_0002")
    inspection = inspected(tmp_path)
    split = of(inspection, "split own", "problem")
    assert any("3 evaluation images are copies" in line for line in split)
    assert any("1 scenes are in both parts: kitchen_0001:" in line for line in split)
    first = f"test/kitchen_0001b/rgb/{real.names[3]}.jpg"
    assert any(f"{first} = train/kitchen" in line for line in split)


def test_mirrored_depth_is_detected(real, tmp_path):
    inspection = inspected(real.write(tmp_path, lambda k, metres: metres[:, ::-1]))
    assert "depth is mirrored relative to its image" in only(inspection, "alignment")
    assert not inspection.misfits


def test_single_mirrored_frames_are_detected(real, tmp_path):
    wrong = (3, 20)
    inspection = inspected(
        real.write(tmp_path, lambda k, m: m[:, ::-1] if k in wrong else m)
    )
    assert only(inspection, "alignment", "ok")
    line = only(inspection, "misaligned frames")
    assert "2 of 24" in line
    for k in wrong:
        assert f"rgb/{real.names[k]}.jpg (mirrored)" in line
    names = [frame.title for frame in inspection.sheet]
    assert [name[:9] for name in names[:3]].count("mirrored:") == 2
    assert len({name.split(": ")[-1] for name in names}) == 2 + measurements.SHEET


def test_shifted_depth_is_detected(real, tmp_path):
    inspection = inspected(
        real.write(tmp_path, lambda k, m: np.roll(m, (0, 8), (0, 1)))
    )
    line = only(inspection, "alignment")
    assert "shifted by (0, 8) pixels, down and right" in line


def test_depth_of_other_frames_is_detected(real, tmp_path):
    inspection = inspected(
        real.write(tmp_path, lambda k, m: real.metres[(k + 11) % len(real.metres)])
    )
    assert "does not match its image" in only(inspection, "alignment")


def test_frames_without_depth_are_listed(real, tmp_path):
    inspection = inspected(
        real.write(tmp_path, lambda k, m: m * (k % 2 > 0 or k >= 20))
    )
    line = only(inspection, "frames without ground truth")
    assert "10 of 24: rgb/" in line and "and 5 more" in line
    assert inspection.empty == [f"rgb/{name}.jpg" for name in real.names[:20:2]]
    assert inspection.sheet[0].title == f"no depth: {inspection.empty[0]}"
    assert measurements.numbers(inspection)["no_truth"] == inspection.empty


def test_broken_files_are_listed(real, tmp_path):
    real.write(tmp_path)
    for k, folder, suffix in ((4, "rgb", "jpg"), (9, "depth", "png")):
        file = tmp_path / folder / f"{real.names[k]}.{suffix}"
        file.write_bytes(file.read_bytes()[:3000])
    inspection = inspected(tmp_path)
    line = only(inspection, "frames that can't be read")
    assert "2 of 24" in line
    assert [name for name, _ in inspection.broken] == [
        f"rgb/{real.names[k]}.jpg" for k in (4, 9)
    ]
    assert len(inspection.frames) == 22 and only(inspection, "alignment", "ok")


def test_real_8_bit_frames(shared_data):
    inspection = inspected(shared_data / "nyu_train", depth_scale=25.5, frames=24)
    assert "on even steps of 39.2 mm" in only(inspection, "8-bit depth", "warning")
    assert "a median of 2." in only(inspection, "unit", "ok")
    assert not of(inspection, level="problem") and len(inspection.frames) == 24


def test_real_raw_frames(shared_data):
    inspection = inspected(shared_data / "sync_png16")
    assert not of(inspection, level="problem")
    assert only(inspection, "alignment", "ok")
    assert "28.2% of the pixels missing" in only(inspection, "raw depth", "ok")


# Tests on synthetic frames.


def painted_source(count=20, *, kind="filled", **more) -> Memory:
    source = Memory(painted.frames(count, kind=kind), truths=(kind,), **more)
    source.infos = [FrameInfo(f"frame {k}", f"room_{k:04d}") for k in range(count)]
    return source


def inspect(source, *, scale=None, frames=0):
    return measurements.inspect(measurements.Opened(source, scale), frames=frames)


def changed(source: Memory, edit) -> Memory:
    """The source with depth replaced by edit(number, depth)."""
    frames = [
        dataclasses.replace(
            f, **{kind: edit(k, d).astype(np.float32) for kind, d in f.depths.items()}
        )
        for k, f in enumerate(source.frames)
    ]
    return dataclasses.replace(source, frames=frames)


def test_painted_scenes_have_no_problem():
    inspection = inspect(painted_source(split=halves()))
    assert {line.level for line in findings.of(inspection)} == {"ok"}
    assert (
        inspection.verdict is not None and "other frames" in inspection.verdict.scores
    )
    numbers = measurements.numbers(inspection)
    assert numbers["splits"] == {"own": {"train": 10, "eval": 10}}
    assert numbers["sizes"] == {"96x128": 20} and numbers["looked_at"] == 20
    depth = np.stack([f.depths["filled"] for f in painted.frames(20)])
    assert numbers["depth"]["min"] == pytest.approx(depth.min())
    assert numbers["depth"]["max"] == pytest.approx(depth.max())
    assert numbers["depth"]["median"] == pytest.approx(np.median(depth), rel=0.02)
    shares, edges = (numbers["depth"]["histogram"][k] for k in ("shares", "edges"))
    expected = np.histogram(depth, bins=np.array(edges))[0] / depth.size
    np.testing.assert_allclose(shares, expected, atol=0.02)
    assert numbers["missing"]["filled"]["mean"] == 0


def halves(count=20):
    half = count // 2
    return {"own": {"train": list(range(half)), "eval": list(range(half, count))}}


def test_a_sample_is_evenly_spaced():
    inspection = inspect(painted_source(), frames=5)
    assert inspection.rows == [0, 4, 9, 14, 19] and len(inspection.frames) == 5
    assert measurements.numbers(inspection)["looked_at"] == 5


@pytest.mark.parametrize(
    ("stored_as", "read_as"),
    [
        (100, 1), (1000, 1), (1, 1000), (100, 1000), (5000, 1000), (1000, 5000),
        (6553.5, 1000), (4000, 256), (10000, 1000),
    ],
)  # fmt: skip
def test_the_right_unit_is_among_the_candidates(stored_as, read_as):
    source = changed(painted_source(6), lambda k, d: d * 0.7 * stored_as / read_as)
    inspection = inspect(source, scale=read_as)
    (line,) = [x for x in of(inspection, "unit") if "ok" not in x[:7]]
    median = np.median(np.concatenate([f.depths["filled"] for f in painted.frames(6)]))
    shown = re.search(rf"[ ,]{stored_as:g}: ([\d.]+) m \*", line)
    assert shown and float(shown[1]) == pytest.approx(0.7 * median, rel=0.02)
    assert not of(inspection, "unit", "ok")


@pytest.mark.parametrize("median", [0.7, 2.5, 7.5])
def test_plausible_depth_is_metres(median):
    source = changed(painted_source(6), lambda k, d: d / np.median(d) * median)
    assert only(inspect(source, scale=1000), "unit", "ok")


def test_an_unknown_unit_is_a_problem():
    line = only(inspect(changed(painted_source(6), lambda k, d: d * 1e7)), "unit")
    assert "expects metres: convert the depth" in line


def test_data_of_a_rejected_unit_can_be_inspected(tmp_path):
    for k, frame in enumerate(painted.frames(6)):
        Image.fromarray(frame.rgb).save(tmp_path / f"{k}.jpg")
        np.save(tmp_path / f"{k}.npy", frame.depths["filled"] * 100)
    with pytest.raises(UserError, match="unit"):
        open_source(tmp_path)
    line = only(inspected(tmp_path), "unit")
    assert re.search(r"[ ,]100: \d\.\d+ m \*", line)
    with pytest.raises(UserError, match="unit"):  # still rejected
        open_source(tmp_path)


def test_candidate_units_of_a_labeled_file(tmp_path):
    frames = painted.frames(4)
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file["images"] = np.stack([f.rgb.transpose(2, 1, 0) for f in frames])
        file["depths"] = np.stack([f.depths["filled"].T * 1000 for f in frames])
    inspection = inspected(tmp_path / "x.mat")
    line = only(inspection, "unit")
    assert re.search(r"[ ,]1000: \d\.\d+ m \*", line) and "convert the depth" in line
    assert inspection.opened.scale is None


def test_other_errors_are_raised(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        measurements.open_data(tmp_path / "gone")
    with pytest.raises(UserError, match="no pair"):
        measurements.open_data(tmp_path)


def values(count=200_000, seed=0):
    return np.random.default_rng(seed).gamma(4, 0.6, count).clip(0.5, 9.9)


@pytest.mark.parametrize(
    ("step", "offset"),
    [(10 / 255, 0), (9.99547 / 255, 0.5), (0.01, 0), (80 / 255, 0.3)],
)
def test_even_steps_are_measured(step, offset):
    depth = (np.round(values() / step) + offset) * step
    steps = findings.steps_of(depth.astype(np.float32))
    assert steps.step == pytest.approx(step, rel=0.005)
    assert steps.strength > 0.9
    assert steps.distinct == len(np.unique(depth.astype(np.float32)))


def test_steps_are_measured_after_averaging():
    depth = np.round(np.sort(values()) * 25.5) / 25.5
    depth[::5] = (depth[::5] + depth[-1::-5]) / 2
    steps = findings.steps_of(depth.astype(np.float32))
    assert steps.distinct > 256 and steps.step == pytest.approx(1 / 25.5, rel=0.005)


@pytest.mark.parametrize("kind", ["smooth", "millimetres", "disparity", "one wall"])
def test_other_depth_has_no_even_steps(kind):
    depth = {
        "smooth": values(),
        "millimetres": values().round(3),
        "disparity": 351.3 / np.round(351.3 / values()),
        "one wall": np.random.default_rng(0).normal(2, 0.05, 100_000),
    }[kind]
    assert findings.steps_of(depth.astype(np.float32)).step is None
    assert findings.steps_of(np.full(1000, 2.5, np.float32)).step is None


def test_8_bit_codes_with_uneven_steps_are_detected():
    source = changed(
        painted_source(20), lambda k, d: 255 / np.round(255 / d.astype(float))
    )
    line = only(inspect(source), "8-bit depth", "warning")
    assert "uneven steps" in line


def test_scenes_in_both_parts_are_detected():
    source = painted_source(split=halves())
    source.infos[3] = FrameInfo("frame 3", "kitchen_0001a")
    source.infos[15] = FrameInfo("frame 15", "kitchen_0001c")
    line = only(inspect(source), "split own")
    assert "1 scenes are in both parts: kitchen_0001:" in line


def test_frames_in_both_parts_are_detected():
    split = halves()
    split["own"]["eval"] += [2, 4]
    lines = of(inspect(painted_source(split=split)), "split own", "problem")
    assert any(
        "2 frames are for training and evaluation: frame 2, frame 4:" in x
        for x in lines
    )


def test_copies_in_both_parts_and_within_are_detected():
    source = painted_source(split=halves())
    source.frames[12] = source.frames[1]
    source.frames[8] = source.frames[5]
    inspection = inspect(source)
    line = only(inspection, "split own")
    assert "1 evaluation images are copies" in line and "frame 12 = frame 1" in line
    within = only(inspection, "copies", "warning")
    assert "2 of 20" in within and "frame 8 = frame 5" in within


@pytest.mark.parametrize(
    ("first", "level"),
    [("bookstore_0001d", "problem"), ("train/bookstore_0001d", "problem"), ("", "")],
)
def test_official_test_scenes_in_training_are_detected(first, level):
    source = painted_source(4)
    scenes = [first or "kitchen_0052", "kitchen_0052", "kitchen_0053", None]
    source.infos = [FrameInfo(f"f{k}", scene) for k, scene in enumerate(scenes)]
    lines = of(inspect(source), "official test scenes")
    if not level:
        assert lines == []
        return
    (line,) = lines
    assert line.startswith(level) and f"{first}:" in line


def test_data_with_test_scenes_only_are_a_warning():
    source = painted_source(2)
    source.infos = [FrameInfo(f"f{k}", "bookstore_0001d") for k in range(2)]
    assert only(inspect(source), "official test scenes", "warning")
    source.infos = [FrameInfo(f"f{k}", "bookstore_0001", 84 + k) for k in range(2)]
    assert not of(inspect(source), "official test scenes")


def test_raw_depth_that_is_filled_depth_with_holes_is_detected():
    frames = []
    for f in painted.frames(6):
        raw = f.depths["filled"].copy()
        raw[:, :20] = 0
        frames.append(Frame(f.rgb, filled=f.filled, raw=raw))
    source = Memory(frames, truths=("filled", "raw"))
    line = only(inspect(source), "raw depth", "warning")
    assert "equals filled depth" in line
    source.frames[2].depths["raw"][50, 50] += 0.01
    assert not of(inspect(source), "raw depth", "warning")
    assert "15.6% of the pixels missing" in only(inspect(source), "raw depth", "ok")


def holed(share):
    def cut(k, depth):
        columns = round(depth.shape[1] * share)
        return np.where(np.arange(depth.shape[1]) < columns, 0, depth)

    return cut


def test_holes_are_measured():
    raw = changed(painted_source(6, kind="raw"), holed(0.25))
    assert "25.0% of the pixels missing" in only(inspect(raw), "raw depth", "ok")
    most = changed(painted_source(6, kind="raw"), holed(0.75))
    assert only(inspect(most), "raw depth", "warning")
    filled = changed(painted_source(6), holed(0.25))
    assert only(inspect(filled), "filled depth has holes", "warning")


def test_far_depth_is_a_warning():
    source = changed(painted_source(6), lambda k, d: np.where(d > 5, 15, d))
    line = only(inspect(source), "far depth", "warning")
    share = np.mean([d.depths["filled"] > 10 for d in source.frames])
    assert f"{share:.0%}"[:-1] in line and "beyond 10 m" in line


@pytest.mark.parametrize(("max_depth", "beyond"), [(12.0, "beyond 12 m"), (80.0, "")])
def test_depth_is_far_beyond_the_limit_of_the_store(tmp_path, max_depth, beyond):
    source = changed(painted_source(6), lambda k, d: np.where(d > 5, 14, d))
    out = tmp_path / "s"
    store_writer.write(source, out, size=(48, 64), max_depth=max_depth)
    inspection = inspect(measurements.open_data(out).source)
    lines = of(inspection, "far depth", "warning")
    assert len(lines) == bool(beyond) and all(beyond in line for line in lines)
    assert inspection.read.largest == 14


def test_several_aspect_ratios_are_a_warning():
    source = painted_source(4)
    rgb, depth = painted.scene(9, size=(96, 96))
    source.frames[2] = Frame(rgb, filled=depth)
    assert "1 to 1.33" in only(inspect(source), "sizes", "warning")
    assert not of(inspect(painted_source(4)), "sizes")


def test_broken_and_wrong_frames_are_listed():
    source = painted_source(broken={3: "cut\nshort"}, wrong=(0, 5))
    inspection = inspect(source)
    line = only(inspection, "frames that can't be read")
    assert "3 of 20: frame 0 (frame 0 is wrong), frame 3 (cut short)" in line
    assert len(inspection.frames) == 17
    unreadable = inspect(painted_source(2, wrong=(0, 1)))
    assert of(unreadable, level="problem") and not unreadable.frames


def test_images_without_edges_are_a_warning():
    grey = [dataclasses.replace(f, rgb=f.rgb * 0) for f in painted.frames(3)]
    assert only(inspect(Memory(grey)), "alignment", "warning")


def test_progress_is_reported():
    calls = []
    measurements.inspect(
        measurements.Opened(painted_source(3)), progress=lambda *x: calls.append(x)
    )
    assert [x for x in calls if x[0] == "inspecting memory"] == [
        ("inspecting memory", k, 3) for k in (1, 2, 3)
    ]


def store_of(source, out, **more):
    return measurements.open_data(
        store_writer.write(source, out, size=(48, 64), **more).path
    )


def test_a_store_is_inspected_at_full_size_if_kept(tmp_path):
    source = painted_source(split=halves())
    opened = store_of(source, tmp_path / "s")
    inspection = measurements.inspect(opened)
    assert measurements.numbers(inspection)["sizes"] == {"48x64": 10, "96x128": 10}
    full, small = opened.source.frame(12), opened.source.frame(3)
    np.testing.assert_array_equal(full.rgb, source.frames[12].rgb)
    target = source.frames[12].depths["filled"]
    np.testing.assert_allclose(full.depths["filled"], target, atol=5.1e-4)
    rgb, millimetres = opened.source.store.gather([3], depth="filled")  # type: ignore
    np.testing.assert_array_equal(small.rgb, rgb[0])
    np.testing.assert_allclose(small.depths["filled"] * 1000, millimetres[0], rtol=1e-6)
    assert not of(inspection, level="problem")


def test_every_image_of_a_store_is_compared(tmp_path):
    source = painted_source(split=halves())
    source.frames[13] = source.frames[2]
    inspection = measurements.inspect(store_of(source, tmp_path / "s"), frames=4)
    assert len(inspection.frames) == 4 and inspection.compared == 20
    assert "frame 13 = frame 2" in only(inspection, "split own")


def test_frames_left_out_of_a_store_are_listed(tmp_path):
    source = changed(painted_source(), lambda k, d: d * (k not in (4, 8)))
    source.broken = {6: "cut short"}
    inspection = measurements.inspect(store_of(source, tmp_path / "s"))
    assert "2 were left out" in only(
        inspection, "frames without ground truth", "warning"
    )
    line = only(inspection, "frames that can't be read", "warning")
    assert "frame 6 (cut short)" in line


def test_read_options_are_rejected_for_a_store(tmp_path):
    store_writer.write(painted_source(2), tmp_path / "s", size=(48, 64))
    with pytest.raises(UserError, match="is a store"):
        measurements.open_data(tmp_path / "s", options=ReadOptions(depth_scale=5.0))


def test_a_store_of_a_wrong_unit_is_to_be_prepared_again(tmp_path):
    source = changed(painted_source(6), lambda k, d: d / 10)
    line = only(measurements.inspect(store_of(source, tmp_path / "s")), "unit")
    assert "prepare the store again with another --depth_scale" in line


def test_the_most_severe_findings_come_first():
    inspection = inspect(changed(painted_source(8), lambda k, d: d[:, ::-1] * (k != 3)))
    levels = [line.level for line in findings.of(inspection)]
    assert levels == sorted(levels, key=["problem", "warning", "ok"].index)
    assert levels[0] == "problem" and "ok" in levels


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda k, d: d, None),
        (lambda k, d: d[:, ::-1], "depth is mirrored relative to its image"),
        (lambda k, d: np.roll(d, (4, 8), (0, 1)), "depth is shifted by "),
    ],
)
def test_misalignment_of_a_sample_is_one_line(change, problem):
    line = findings.misalignment(changed(painted_source(20), change), where="my data")
    if problem is None:
        assert line is None
    else:
        assert line is not None and f"alignment: {problem}" in line
        assert "over 16 frames" in line
        assert line.endswith("; to check it, run jaxdepth inspect-data 'my data'")
