"""Names of photos, and what ends a batch."""

import logging
import os
import sys

import numpy as np
import pytest
from PIL import Image

from jaxdepth import images, plots
from jaxdepth import predictor as predictor_lib
from jaxdepth.commands import cli, predict


class Constant(predictor_lib.Predictor):
    """A network that predicts 2 m everywhere."""

    def __init__(self):
        pass

    def predict_many(self, images, *, batch_size=8):
        for rgb in images:
            yield np.full(rgb.shape[:2], 2, np.float32)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command in a folder of photos; returns exit code and printed text."""
    monkeypatch.setattr(predictor_lib, "load", lambda *_, **__: Constant())
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

    yield run
    package.level, package.propagate, package.handlers[:] = before


def photo(path):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path, "PNG")
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


def test_the_focal_length_is_that_of_the_whole_photo(call, tmp_path, monkeypatch):
    photo(tmp_path / "a.png")
    clouds = []

    def write(path, depth, rgb, **camera):
        clouds.append((depth.shape, camera))

    monkeypatch.setattr(plots, "write_ply", write)
    assert call("--out=out", "--ply", "--fx=12", "a.png")[0] == cli.OK
    monkeypatch.setattr(images, "LARGEST", 12)
    code, text = call("--out=out", "--ply", "--fx=12", "a.png")
    assert code == cli.OK and "a.png is 6x8, which is too large: its depth" in text
    assert clouds == [
        ((6, 8), {"fx": 12, "fy": 12, "cx": 3.5, "cy": 2.5}),
        ((3, 4), {"fx": 6, "fy": 6, "cx": 1.5, "cy": 1}),
    ]
