"""Names of photos, what ends a batch, and focal lengths."""

import logging
import os
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdepth import camera as camera_lib
from jaxdepth import images, plots
from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import cli, predict
from jaxdepth.config import Config


class Constant(predictor_lib.Predictor):
    """A network that predicts 2 m everywhere, trained on frames of 20x40."""

    def __init__(self, fx=None):
        self.config = Config.of(size="19x38")
        self._output_size = lambda size: size
        self._full_batches = set()
        self.camera = fx and camera_lib.centred(fx, fx, (20, 40))

    def network(self, rgb):
        return jnp.full(rgb.shape[:3], 2.0)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command in a folder of photos; returns exit code and printed text."""
    loaded = Constant()
    monkeypatch.setattr(predictor_lib, "load", lambda *_, **__: loaded)
    monkeypatch.chdir(tmp_path)
    package = logging.getLogger("jaxdepth")
    before = package.level, package.propagate, list(package.handlers)

    def run(*words: str) -> tuple[int, str]:
        argv = ["jaxdepth", "--checkpoint=run", f"--cache_dir={tmp_path}/cache", *words]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            cli.main(predict.command)
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out + printed.err

    run.network = loaded
    yield run
    package.level, package.propagate, package.handlers[:] = before


def photo(path, *, film=None):
    """Write a photo; `film` is its focal length in terms of 35 mm film."""
    path.parent.mkdir(exist_ok=True)
    exif = Image.Exif()
    if film is not None:
        exif[0x0112] = 1  # Pillow drops EXIF without a tag of the image itself
        exif.get_ifd(0x8769)[0xA405] = film
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path, "PNG", exif=exif)
    return path


NAMES = (
    "n" * 240 + ".png",
    "m" * 251 + ".png",
    "ü" * 125 + ".png",
    "line\nand \x1b[2Jescape.png",
    "back\\nslash.png",
    "-dash.png",
    "--out=x.png",
    "\udce9.png",  # the bytes of a name in Latin-1
)


def test_no_name_ends_a_batch(call, tmp_path):
    for name in NAMES:
        photo(tmp_path / "photos" / name)
    os.mkfifo(tmp_path / "fifo.png")
    flags = ("--out=out", "--batch_size=1", "photos", "fifo.png")
    for _ in range(2):  # outputs of this command are replaced
        code, text = call(*flags)
        assert (
            code == cli.USER and "fifo.png can't be read as an image: a FIFO or" in text
        )
        assert f"{len(NAMES)} of {len(NAMES) + 1} photos" in text
        assert all(line.isprintable() for line in text.split("\n"))
        assert r"line\nand \x1b[2Jescape.png  6x8" in text
        made = [p.name for p in (tmp_path / "out").iterdir() if p.name != ".predicted"]
        assert len(made) == 3 * len(NAMES)
        assert "n" * 240 + "_color.png" in made and "-dash.npy" in made
        assert len([name for name in made if name.startswith("m" * 230)]) == 3


def test_a_leading_dash_on_the_command_line(call, tmp_path):
    for name in ("-one.png", "--two.png"):
        photo(tmp_path / name)
    assert call("--out=out", "-one.png")[0] == cli.OK
    assert call("--out=out", "--", "-one.png", "--two.png")[0] == cli.OK
    assert (tmp_path / "out" / "-one.npy").exists()
    assert (tmp_path / "out" / "--two.npy").exists()


def test_line_breaks_in_names_do_not_release_other_files(call, tmp_path):
    photo(tmp_path / "photos" / "a\nb.png")
    assert call("--out=out", "photos")[0] == cli.OK
    photo(tmp_path / "photos" / "b.png")
    np.save(tmp_path / "out" / "b.npy", np.zeros(3))  # the user's
    code, text = call("--out=out", "photos/b.png")
    assert code == cli.USER and "out: b.npy would replace" in text
    assert np.load(tmp_path / "out" / "b.npy").shape == (3,)


def test_a_file_system_with_shorter_names(call, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "LONGEST", 4096)
    photo(tmp_path / "photos" / ("m" * 250 + ".png"))
    photo(tmp_path / "photos" / "z.png")
    code, text = call("--out=out", "photos")
    assert code == cli.USER and "its name is too long for the outputs" in text
    assert (tmp_path / "out" / "z_color.png").exists()


def test_what_is_left_out_of_a_folder_is_named(call, tmp_path):
    photo(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b\x1b[2J.raw").write_text("")
    note = r"note: skipped in photos (hidden or no image): b\x1b[2J.raw"
    assert note in call("--out=out", "photos")[1]


@pytest.fixture
def clouds(monkeypatch):
    """The shapes and cameras of the point clouds that are written."""
    written = []

    def write(path, depth, rgb, **camera):
        assert rgb.shape[:2] == depth.shape
        written.append((depth.shape, pytest.approx(camera)))

    monkeypatch.setattr(plots, "write_ply", write)
    return written


def test_cameras_are_given_for_the_whole_photo(call, tmp_path, monkeypatch, clouds):
    photo(tmp_path / "a.png")
    assert call("--out=out", "--ply", "--fx=12", "a.png")[0] == cli.OK
    monkeypatch.setattr(images, "LARGEST", 12)
    code, text = call("--out=out", "--ply", "--fx=12", "a.png")
    assert code == cli.OK and "a.png is 6x8, which is too large: its depth" in text
    own = ("--fx=12", "--fy=10", "--cx=2.5", "--cy=0.5")
    assert call("--out=out", "--ply", *own, "a.png")[0] == cli.OK
    assert clouds == [
        ((6, 8), {"fx": 12, "fy": 12, "cx": 3.5, "cy": 2.5}),
        ((3, 4), {"fx": 6, "fy": 6, "cx": 1.5, "cy": 1}),
        ((3, 4), {"fx": 6, "fy": 5, "cx": 1, "cy": 0}),
    ]


def depth_of(name):
    return float(np.load(f"out/{name}.npy").mean())


def test_metres_are_corrected_for_the_focal_length(call, tmp_path):
    # Photos of 6x8 become 30x40: five times the focal length.
    photo(tmp_path / "a.png", film=43)
    photo(tmp_path / "b.png")
    call.network.camera = camera_lib.centred(25.0, 25.0, (20, 40))
    of_film = 43 * 10 / 43.27  # the diagonal of 6x8 is 10
    for flag, metres in (
        ("--fx=auto", [2 * 5 * of_film / 25, 2]),
        ("--fx=10", [4, 4]),
        ("--fx=none", [2, 2]),
    ):
        code, text = call("--out=out", flag, "a.png", "b.png")
        assert code == cli.OK
        assert [depth_of("a"), depth_of("b")] == pytest.approx(metres)
        note = "the focal length of 1 of 2 photos is unknown, first b.png: their metres"
        assert (note in text) == (flag == "--fx=auto")
    assert call("--out=out", "--fx=0", "a.png")[0] == cli.USER


def test_large_photos_are_corrected_alike(call, tmp_path, monkeypatch):
    photo(tmp_path / "a.png", film=43)
    call.network.camera = camera_lib.centred(25.0, 25.0, (20, 40))
    call("--out=out", "a.png")
    whole = depth_of("a")
    monkeypatch.setattr(images, "LARGEST", 12)
    call("--out=out", "a.png")
    assert depth_of("a") == pytest.approx(whole)


def test_an_unknown_training_camera_is_said(call, tmp_path):
    photo(tmp_path / "a.png", film=43)
    text = call("--out=out", "a.png")[1]
    assert "note: metres are not corrected for the focal lengths" in text
    assert depth_of("a") == 2


def test_clouds_of_photos_without_focal_length(call, tmp_path, clouds):
    photo(tmp_path / "a.png", film=43)
    photo(tmp_path / "b.png")
    code, text = call("--out=out", "--ply", "a.png", "b.png")
    assert code == cli.USER
    assert "b.png: the focal length is unknown; --ply needs --fx=PIXELS" in text
    code, text = call("--out=out", "--ply", "--fx=none", "a.png", "b.png")
    assert code == cli.USER and "--ply needs --fx=PIXELS" in text
    assert len(clouds) == 1
    # The assumption behind the metres: as the training camera would see the photo.
    call.network.camera = camera_lib.centred(25.0, 25.0, (20, 40))
    assert call("--out=out", "--ply", "b.png")[0] == cli.OK
    assert clouds[1] == ((6, 8), {"fx": 5, "fy": 5, "cx": 3.5, "cy": 2.5})
