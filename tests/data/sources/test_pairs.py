"""Lists of pairs, unusual depth files, and sources in other processes."""

import pickle

import h5py
import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.sources import ReadOptions, files, labeled, open_source
from jaxdepth.errors import UserError

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
def test_a_list_pairs_what_names_do_not(tmp_path, line):
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
def test_a_wrong_list_is_told(tmp_path, second, part):
    listed = f"a.jpg b.png\n{second}\n"
    save(tmp_path, {"a.jpg": RGB, "b.png": MM, "list.txt": listed})
    told = error_of(lambda: open_source(tmp_path))
    assert part in told and "list.txt" in told


def test_text_that_lists_nothing_is_no_list(tmp_path):
    save(tmp_path, {"a.jpg": RGB, "b.png": MM, "readme.txt": "two words\n"})
    assert "no pair" in error_of(lambda: open_source(tmp_path))


def test_floating_point_pictures_hold_metres(tmp_path):
    metres = np.full((12, 16), 2.5, np.float32)
    metres[0, :3] = [np.nan, np.inf, -1]
    save(tmp_path, {"rgb/1.jpg": RGB, "depth/1.tiff": metres})
    found = open_source(tmp_path).frame(0)
    (depth,) = found.depths.values()
    assert depth.max() == 2.5 and (depth[0, :3] == 0).all()


def test_names_may_differ_in_case_alone(tmp_path):
    files = {"rgb/A.png": RGB, "rgb/a.png": RGB, "depth/A.png": MM, "depth/a.png": MM}
    save(tmp_path, files)
    if len(list((tmp_path / "rgb").iterdir())) < 2:
        pytest.skip("this file system does not tell upper from lower case")
    assert len(open_source(tmp_path).infos) == 2


def test_depth_of_8_and_16_bits_is_not_mixed(tmp_path, monkeypatch):
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


def test_sources_travel_to_other_processes(tmp_path):
    source = open_source(small_mat(tmp_path / "x.mat"))
    before = source.frame(1)
    after = pickle.loads(pickle.dumps(source)).frame(1)
    np.testing.assert_array_equal(after.rgb, before.rgb)
    assert source.infos == pickle.loads(pickle.dumps(source)).infos


def test_the_camera_is_known_at_nyus_own_size_alone(tmp_path):
    assert open_source(small_mat(tmp_path / "x.mat")).frame(0).intrinsics is None
    np.testing.assert_allclose(
        labeled.INTRINSICS, (518.858, 519.470, 325.582, 253.736), 1e-5
    )
