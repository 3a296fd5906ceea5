"""Lists of pairs, unusual depth files, and sources in other processes."""

import pickle

import h5py
import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.nyu import splits
from jaxdepth.data.sources import (
    BrokenFrame,
    ReadOptions,
    files,
    labeled,
    open_source,
)
from jaxdepth.runtime.errors import UserError
from tests.data.sources import made

RGB = np.full((12, 16, 3), 9, np.uint8)
MM = np.full((12, 16), 2500, np.uint16)


def save(root, files):
    for name, value in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, str):
            file.write_text(value)
        else:
            Image.fromarray(value).save(file)
    return root


def error_of(act) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "line", ["k/a one.jpg,k/b.png", "/k/a one.jpg , /k/b.png"], ids=["plain", "slash"]
)
def test_a_list_pairs_files_of_unrelated_names(tmp_path, line):
    save(tmp_path, {"k/a one.jpg": RGB, "k/b.png": MM, "l.csv": f"# list\n{line}\n"})
    source = open_source(tmp_path)
    assert [(i.name, i.scene) for i in source.infos] == [("k/a one.jpg", "k")]
    np.testing.assert_array_equal(source.frame(0).filled, np.float32(2.5))
    assert any("l.csv" in note for note in source.notes)
    source.fingerprint()


@pytest.mark.parametrize(
    ("second", "part"),
    [("a.jpg gone.png", "line 2"), ("a.jpg b.png", "listed twice")],
)
def test_a_wrong_list_is_rejected(tmp_path, second, part):
    listed = f"a.jpg b.png\n{second}\n"
    save(tmp_path, {"a.jpg": RGB, "b.png": MM, "list.txt": listed})
    text = error_of(lambda: open_source(tmp_path))
    assert part in text and "list.txt" in text


def test_a_text_without_file_names_is_not_a_list(tmp_path):
    save(tmp_path, {"a.jpg": RGB, "b.png": MM, "readme.txt": "two words\n"})
    assert "no pair" in error_of(lambda: open_source(tmp_path))


def marigold_line(index, scene=None):
    scene = scene or splits.official()["scenes"][index - 1]
    return " ".join(
        f"test/{scene}/{kind}_{index:04d}.png" for kind in ("rgb", "depth", "filled")
    )


def marigold(root, lines):
    """Write frames of three files: image, depth of 2.5 m with holes and without."""
    holed = MM.copy()
    holed[:3] = 0
    for line in lines:
        images = (RGB, holed, MM)
        save(root, dict(zip(line.split(), images, strict=True)))
    return save(root, {"filename_list_test.txt": "\n".join(lines)})


def test_three_columns_are_raw_and_filled_depth_of_official_frames(tmp_path):
    indices = [splits.official()["test"][0], splits.official()["train"][0]]
    lines = [marigold_line(index) for index in indices]
    source = open_source(marigold(tmp_path, lines))
    assert source.format == "folder" and source.truths == ("filled", "raw")
    assert [info.official_index for info in source.infos] == indices
    assert [info.scene for info in source.infos] == [
        splits.official()["scenes"][index - 1] for index in indices
    ]
    for row in range(2):
        frame = source.frame(row)
        assert frame.filled is not None and frame.raw is not None
        np.testing.assert_array_equal(frame.filled, np.float32(2.5))
        np.testing.assert_array_equal(frame.raw[:3], 0)
        np.testing.assert_array_equal(frame.raw[3:], np.float32(2.5))
    assert source.splits()["official"] == {"train": [1], "eval": [0]}
    assert source.splits()["all"]["train"] == [0, 1]
    made.same_elsewhere(source)


def test_three_columns_of_other_scenes_have_no_official_index(tmp_path):
    index = splits.official()["test"][0]
    lines = [marigold_line(index), marigold_line(index + 1, "my_room")]
    source = open_source(marigold(tmp_path, lines))
    assert source.truths == ("filled", "raw")
    assert [info.official_index for info in source.infos] == [None, None]
    assert source.splits()["own"] == {"train": [], "eval": [0, 1]}


def test_three_columns_with_a_wrong_line_are_rejected(tmp_path):
    marigold(tmp_path, [marigold_line(1)])
    listed = tmp_path / "filename_list_test.txt"
    listed.write_text(f"{marigold_line(1)}\n{marigold_line(2)}\n")
    text = error_of(lambda: open_source(tmp_path))
    assert "line 2" in text and "is not a file" in text


def test_an_unreadable_frame_does_not_affect_the_others(tmp_path):
    files_of = {f"rgb/{k}.png": RGB for k in range(4)}
    save(tmp_path, files_of | {f"depth/{k}.png": MM for k in range(4)})
    (tmp_path / "depth/0.png").write_bytes(b"")
    (tmp_path / "rgb/2.png").write_text("words")
    broken = made.broken_rows(open_source(tmp_path))
    assert broken.keys() == {0, 2}
    assert "depth/0.png" in broken[0] and "rgb/2.png" in broken[2]


def test_errors_of_the_whole_data_set_are_not_broken_frames(tmp_path):
    eight = np.full((12, 16), 50, np.uint8)
    images = {"rgb/0.png": RGB, "rgb/1.png": RGB}
    for second in (MM[:5], eight):
        save(tmp_path, images | {"depth/0.png": MM, "depth/1.png": second})
        source = open_source(tmp_path, options=ReadOptions(depth_scale=1000.0))
        with pytest.raises(UserError) as error:
            for row in range(2):
                source.frame(row)
        assert not isinstance(error.value, BrokenFrame)


def test_floating_point_images_hold_metres(tmp_path):
    metres = np.full((12, 16), 2.5, np.float32)
    metres[0, :3] = [np.nan, np.inf, -1]
    save(tmp_path, {"rgb/1.jpg": RGB, "depth/1.tiff": metres})
    (depth,) = open_source(tmp_path).frame(0).depths.values()
    assert depth.max() == 2.5 and (depth[0, :3] == 0).all()


def test_names_are_case_sensitive(tmp_path):
    files = {"rgb/A.png": RGB, "rgb/a.png": RGB, "depth/A.png": MM, "depth/a.png": MM}
    save(tmp_path, files)
    if len(list((tmp_path / "rgb").iterdir())) < 2:
        pytest.skip("this file system is not case-sensitive")
    assert len(open_source(tmp_path).infos) == 2


def test_mixed_8_and_16_bit_depth_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SAMPLE", 1)
    eight = np.full((12, 16), 50, np.uint8)
    images = {f"rgb/{k}.jpg": RGB for k in range(2)}
    save(tmp_path, images | {"depth/0.png": MM, "depth/1.png": eight})
    source = open_source(tmp_path, options=ReadOptions(depth_scale=1000.0))
    assert "1.png" in error_of(lambda: source.frame(1))


def small_mat(path):
    with h5py.File(path, "w") as file:
        file["images"] = np.arange(2 * 3 * 8 * 6, dtype=np.uint8).reshape(2, 3, 8, 6)
        file["depths"] = np.full((2, 8, 6), 2, np.float32)
    return path


def test_sources_can_be_pickled(tmp_path):
    source = open_source(small_mat(tmp_path / "x.mat"))
    before = source.frame(1)
    after = pickle.loads(pickle.dumps(source)).frame(1)
    np.testing.assert_array_equal(after.rgb, before.rgb)
    assert source.infos == pickle.loads(pickle.dumps(source)).infos


def test_intrinsics_are_known_only_at_nyu_s_size(tmp_path):
    assert open_source(small_mat(tmp_path / "x.mat")).frame(0).intrinsics is None
    np.testing.assert_allclose(
        labeled.INTRINSICS, (518.858, 519.470, 325.582, 253.736), 1e-5
    )
