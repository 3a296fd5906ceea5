"""The format tum: real frames, the matching rule of associate.py, and wrong lists."""

import shutil

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.sources import BrokenFrame, ReadOptions, open_source, tum
from jaxdepth.runtime.errors import UserError
from tests.data.sources import made


@pytest.fixture
def real(shared_data, tmp_path):
    """A copy of the real sequence."""
    return shutil.copytree(
        shared_data / "tum_rgbd", tmp_path / "desk", copy_function=shutil.copy
    )


def pairs_of(root):
    """(image, depth) of the association list of the real frames."""
    lines = (root / "associations.txt").read_text().splitlines()
    return [tuple(line.split()[1::2]) for line in lines]


def test_real_frames_are_read(shared_data):
    root = shared_data / "tum_rgbd"
    source = open_source(root)
    assert source.format == "tum" and source.truths == ("raw",)
    camera = "camera as published for this data set: fx, fy, cx, cy 517.306, 516.469, "
    assert made.notes(source) == [
        "associations.txt gives the pairs of image and depth",
        f"{camera}318.643, 255.314",
    ]
    assert [info.name for info in source.infos] == [rgb for rgb, _ in pairs_of(root)]
    for row, (rgb, metres) in enumerate(pairs_of(root)):
        frame = source.frame(row)
        with Image.open(root / rgb) as image, Image.open(root / metres) as stored:
            np.testing.assert_array_equal(frame.rgb, np.asarray(image))
            expected = np.asarray(stored) / 5000
        assert frame.raw is not None
        np.testing.assert_allclose(frame.raw, expected, rtol=1e-6)
        valid = frame.raw[frame.raw > 0]
        assert 0.7 < valid.min() < valid.max() < 2.1
        # From the lists' comments: the file of freiburg1_desk.
        assert frame.intrinsics == (517.306408, 516.469215, 318.643040, 255.313989)
    assert source.splits() == {"all": {"train": [0, 1, 2, 3], "eval": []}}
    made.same_elsewhere(source)


def test_association_of_the_real_lists_equals_their_associations_file(real):
    listed = pairs_of(real)
    (real / "associations.txt").unlink()
    source = open_source(real)
    assert isinstance(source, tum.Tum)
    assert [note[:19] for note in made.notes(source)] == ["camera as published"]
    assert source.matches == listed


def test_every_keeps_some_of_the_frames(real):
    source = open_source(real, options=ReadOptions(every=3))
    assert [i.name for i in source.infos] == [pairs_of(real)[k][0] for k in (0, 3)]
    assert source.fingerprint() != open_source(real).fingerprint()
    with pytest.raises(UserError, match="--every=0"):
        open_source(real, options=ReadOptions(every=0))


@pytest.mark.parametrize(
    ("name", "comment", "fx"),
    [
        ("rgbd_dataset_freiburg1_desk", "", 517.306408),
        ("rgbd_dataset_freiburg2_xyz", "", 520.908620),
        ("rgbd_dataset_freiburg3_long_office_household", "", 535.4),
        ("fr2_desk", "", 520.908620),
        ("desk", "# file: 'rgbd_dataset_freiburg3_sitting.bag'", 535.4),
        ("rgbd_dataset_freiburg4_x", "", None),
        ("desk", "", None),
        ("fr22", "# no number", None),
    ],
)
def test_the_camera_is_identified_by_the_freiburg_number(tmp_path, name, comment, fx):
    root = tmp_path / name
    made.image(root, "rgb/1.png", size=(480, 640))
    made.depth(root, "depth/1.png", 5000, size=(480, 640))
    made.text(root, "rgb.txt", f"{comment}\n1.0 rgb/1.png\n")
    made.text(root, "depth.txt", "1.0 depth/1.png\n")
    camera = open_source(root).frame(0).intrinsics
    assert (camera and camera[0]) == fx


def literal_association(first, second, max_gap):
    """The rule of associate.py, literally, over all pairs."""
    every = [(abs(a - b), a, b) for a in first for b in second if abs(a - b) < max_gap]
    unmatched_a, unmatched_b, taken = set(first), set(second), []
    for _, a, b in sorted(every):
        if a in unmatched_a and b in unmatched_b:
            unmatched_a.remove(a)
            unmatched_b.remove(b)
            taken.append((a, b))
    return sorted(taken)


def test_association_follows_the_rule_of_the_tool():
    rng = np.random.default_rng(0)
    for _ in range(50):
        first = np.cumsum(rng.exponential(0.02, 40)).round(4)
        second = np.cumsum(rng.exponential(0.02, 40)).round(4)
        a, b = (np.unique(times).tolist() for times in (first, second))
        rng.shuffle(a)
        matched = [(a[i], b[j]) for i, j in tum.associate(a, b)]
        assert matched == literal_association(a, b, 0.02)


def test_association_takes_the_closest_first():
    # 0.010 is within the gap of both. It is matched with the closer 0.012, although
    # 0.000 comes first.
    assert tum.associate([0.0, 0.012], [0.010]) == [(1, 0)]
    assert tum.associate([0.0], [0.02]) == []
    assert tum.associate([], []) == []


def write(root, rgb="1.0 rgb/1.png", metres="1.0 depth/1.png"):
    made.image(root, "rgb/1.png", 7)
    made.depth(root, "depth/1.png", 10000)
    made.text(root, "rgb.txt", f"# color\n{rgb}\n")
    made.text(root, "depth.txt", f"# depth\n{metres}\n")
    return root


def test_depth_is_the_stored_value_divided_by_the_scale(tmp_path):
    root = write(tmp_path)
    np.testing.assert_array_equal(open_source(root).frame(0).raw, np.float32(2))
    scaled = open_source(root, options=ReadOptions(depth_scale=1000.0))
    np.testing.assert_array_equal(scaled.frame(0).raw, np.float32(10))
    made.depth(root, "depth/1.png", 60000)
    made.refused(root, root, "--depth_scale", options=ReadOptions(depth_scale=100.0))
    made.depth(root, "depth/1.png", 200, dtype=np.uint8)
    made.refused(root, "8-bit depth")


def test_images_without_depth_are_counted(tmp_path):
    root = write(tmp_path, rgb="1.0 rgb/1.png\n1.5 rgb/2.png")
    assert made.notes(open_source(root)) == [
        "left out 1 of 2 images: no depth within 0.02 s"
    ]
    write(tmp_path, rgb="9.0 rgb/1.png")
    made.refused(root, "no image of rgb.txt is within 0.02 s")


def test_an_unreadable_frame_does_not_affect_the_others(real):
    pairs = pairs_of(real)
    (real / pairs[1][1]).unlink()
    content = (real / pairs[2][0]).read_bytes()
    (real / pairs[2][0]).write_bytes(content[: len(content) // 2])
    broken = made.broken_rows(open_source(real))
    assert broken.keys() == {1, 2}
    assert pairs[1][1] in broken[1] and "Truncated" in broken[2]


def test_different_sizes_are_not_a_broken_frame(tmp_path):
    root = write(tmp_path)
    made.depth(root, "depth/1.png", 10000, size=(7, 8))
    with pytest.raises(UserError, match="the same size") as error:
        open_source(root).frame(0)
    assert not isinstance(error.value, BrokenFrame)


@pytest.mark.parametrize("line", ["x rgb/1.png", "nan rgb/1.png", "1.0", "1.0 a b"])
def test_wrong_lists_are_rejected(tmp_path, line):
    root = write(tmp_path, rgb=f"1.0 rgb/1.png\n{line}")
    made.refused(root, "rgb.txt, line 3", data_format="tum")


def test_missing_and_empty_lists_are_errors(tmp_path):
    made.refused(tmp_path, tmp_path / "rgb.txt", data_format="tum")
    root = write(tmp_path)
    (root / "rgb.txt").write_text("# nothing\n")
    made.refused(root, "rgb.txt names no files", data_format="tum")
    (root / "associations.txt").write_text("1.0 rgb/1.png 1.0\n")
    made.refused(root, "associations.txt, line 1", data_format="tum")


def test_associations_may_have_depth_first(tmp_path):
    # As in ICL-NUIM.
    for name in ("rgb", "depth"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "rgb" / "0.png")
    Image.fromarray(np.full((6, 8), 5000, np.uint16)).save(tmp_path / "depth" / "0.png")
    (tmp_path / "associations.txt").write_text("\ufeff0 depth/0.png 0 rgb/0.png\n")
    source = open_source(tmp_path)
    assert source.format == "tum" and source.infos[0].name == "rgb/0.png"
    raw = source.frame(0).raw
    assert raw is not None and raw.max() == 1
