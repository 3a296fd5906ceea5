"""EXIF orientation of training images: paired as stored, noted, or refused by name."""

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.sources import files, open_source
from jaxdepth.runtime.errors import UserError

ORIENTATION = 0x0112
SIZE = (24, 32)


def write(folder, orientation, *, depth_size=SIZE, image_size=SIZE, count=3, rgb="png"):
    """Pairs whose images have bright left halves, and depth that is near there."""
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    for k in range(count):
        pixels = np.full((*image_size, 3), 50, np.uint8)
        pixels[:, : image_size[1] // 2] = 200
        depth = np.full(depth_size, 4000 + k, np.uint16)
        depth[:, : depth_size[1] // 2] = 1500
        exif = Image.Exif()
        if orientation is not None:
            exif[ORIENTATION] = orientation
        Image.fromarray(pixels).save(folder / "rgb" / f"{k}.{rgb}", exif=exif)
        Image.fromarray(depth).save(folder / "depth" / f"{k}.png")
    return folder


def turn_notes(source):
    return [note for note in source.notes if "EXIF" in note]


@pytest.mark.parametrize("rgb", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_images_are_paired_as_stored(orientation, rgb, tmp_path):
    source = open_source(write(tmp_path, orientation, rgb=rgb))
    frame = source.frame(0)
    assert frame.rgb.shape == (*SIZE, 3)
    left, right = frame.rgb[:, :12].mean(), frame.rgb[:, -12:].mean()
    assert left > 180 and right < 70
    (note,) = turn_notes(source)
    assert note.startswith("3 of 3 images have an EXIF orientation, first ")
    assert "0." + rgb in note and "jaxdepth inspect-data" in note


@pytest.mark.parametrize("orientation", [None, 1, 0, 9, 65535])
def test_upright_images_have_no_note(orientation, tmp_path):
    assert not turn_notes(open_source(write(tmp_path, orientation)))


def test_only_images_with_an_orientation_are_counted(tmp_path):
    write(tmp_path / "a" / "s1", 3, count=2)
    write(tmp_path / "a" / "s2", None, count=3)
    (note,) = turn_notes(open_source(tmp_path / "a"))
    assert note.startswith("2 of 5 images") and "s1" in note


@pytest.mark.parametrize(
    ("orientation", "image_size", "depth_size"),
    [
        (6, (32, 24), (24, 32)),  # fits only upright
        (8, (24, 32), (32, 24)),
        (5, (48, 36), (24, 32)),  # depth at a fraction of the image's size
        (7, (24, 24), (24, 24)),  # fits both ways
    ],
)
def test_quarter_turns_that_sizes_do_not_explain_are_refused(
    orientation, image_size, depth_size, tmp_path
):
    write(tmp_path, orientation, image_size=image_size, depth_size=depth_size)
    refused = rf"rgb/0\.png has EXIF orientation {orientation}, .*depth/0\.png"
    with pytest.raises(UserError, match=refused):
        open_source(tmp_path).frame(0)


@pytest.mark.parametrize("orientation", [None, 2, 3, 4])
def test_squares_without_a_quarter_turn_are_read(orientation, tmp_path):
    write(tmp_path, orientation, image_size=(24, 24), depth_size=(24, 24))
    assert open_source(tmp_path).frame(0).rgb.shape == (24, 24, 3)


def test_damaged_exif_is_ignored(tmp_path):
    write(tmp_path, 3, rgb="jpg")
    file = tmp_path / "rgb" / "0.jpg"
    content = file.read_bytes()
    assert b"II*\0" in content or b"MM\0*" in content
    file.write_bytes(content.replace(b"II*\0", b"XX*\0").replace(b"MM\0*", b"XX\0*"))
    assert files.orientation(file) == files.UPRIGHT
    assert files.read_rgb(file).shape == (*SIZE, 3)


def test_arrays_have_no_orientation(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 6, 3), np.uint8))
    assert files.orientation(tmp_path / "x.npy") == files.UPRIGHT
