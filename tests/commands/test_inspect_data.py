"""The command inspect-data: output, files, wrong flags."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdepth.commands import cli, inspect_data
from jaxdepth.data.sources import open_source
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import MachineError, UserError
from tests.data import painted

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pairs(tmp_path):
    """A folder of eight pairs; the third has no depth."""
    root = tmp_path / "my pairs"
    for folder in ("rgb", "depth"):
        (root / folder).mkdir(parents=True)
    for k, frame in enumerate(painted.frames(8)):
        metres = frame.depths["filled"] * (k != 2)
        Image.fromarray(frame.rgb).save(root / f"rgb/{k}.png")
        millimetres = np.round(metres * 1000).astype(np.uint16)
        Image.fromarray(millimetres).save(root / f"depth/{k}.png")
    return root


@pytest.fixture
def output(monkeypatch):
    """The printed lines, tables included."""
    lines = []
    monkeypatch.setattr(
        inspect_data.logger, "info", lambda text, *a: lines.append(text % a)
    )
    monkeypatch.setattr(
        inspect_data.terminal, "print_table",
        lambda title, columns, rows: lines.extend([title, *map(str, rows)]),
    )  # fmt: skip
    return lines


def inspect(*flags):
    assert inspect_data.command([str(flag) for flag in flags]) == cli.OK


def test_findings_are_printed_drawn_and_written(pairs, tmp_path, output):
    inspect(pairs, f"--out={tmp_path / 'o'}", f"--json={tmp_path / 'f.json'}")
    assert {p.name for p in (tmp_path / "o").iterdir()} == {
        "contact_sheet.png",
        "statistics.png",
    }
    report = json.loads((tmp_path / "f.json").read_text())
    first = report["findings"][0]
    assert (
        first["level"] == "problem" and first["what"] == "frames without ground truth"
    )
    assert report["no_truth"] == ["rgb/2.png"] and report["frames"] == 8
    assert report["depth"]["stored_units_per_metre"] == 1000
    assert report["alignment"]["verdict"] == "aligned"
    assert sum(report["depth"]["histogram"]["shares"]) == pytest.approx(1, abs=0.01)
    text = "\n".join(output)
    assert "problem  frames without ground truth: 1 of 8: rgb/2.png" in text
    assert "['frames', '8, inspected 8']" in text and "96x128" in text
    assert all("\n" not in line.strip("\n") for line in output)


def test_images_are_written_to_inspections_by_default(
    pairs, tmp_path, output, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    inspect(pairs, "--frames=3")
    assert (tmp_path / "inspections" / "my_pairs" / "statistics.png").is_file()
    assert any("inspected 3" in line for line in output)


def test_a_wrong_unit_is_a_finding_and_not_an_error(pairs, tmp_path, output):
    out = f"--out={tmp_path / 'o'}"
    inspect(pairs, out, "--depth_scale=10")
    line = next(line for line in output if line.startswith("problem  unit"))
    assert "10 (as read)" in line and re.search(r"[ ,]1000: \d\.\d+ m \*", line)
    shown = r"\n(filled|raw) depth: [\d.]+% valid, .* \(8 of 8 frames\)"
    assert any(re.fullmatch(shown, line) for line in output)


def test_frames_are_exported(pairs, tmp_path, output):
    inspect(pairs, f"--out={tmp_path / 'o'}", f"--export={tmp_path / 'e'}")
    assert output[-1] == f"exported to {tmp_path / 'e'}: 8 frames, 8 of 96x128"
    before, after = open_source(pairs), open_source(tmp_path / "e")
    for row in range(8):
        original, exported = before.frame(row), after.frame(row)
        np.testing.assert_array_equal(original.rgb, exported.rgb)
        for first, second in zip(
            original.depths.values(), exported.depths.values(), strict=True
        ):
            np.testing.assert_array_equal(first, second)
    with pytest.raises(UserError, match="not empty"):
        inspect(pairs, f"--out={tmp_path / 'o'}", f"--export={tmp_path / 'e'}")


def no_work(*args, **kwargs):
    pytest.fail("the inspection started")


def test_mistakes_are_reported_before_the_inspection(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_data.measurements, "inspect", no_work)
    with pytest.raises(UserError, match="no such file"):
        inspect(tmp_path / "gone")
    with pytest.raises(UserError, match="--frames=-1"):
        inspect(pairs, "--frames=-1")
    with pytest.raises(UserError, match="give both"):
        inspect(pairs, "--depth=raw")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match="not empty"):
        inspect(pairs, f"--export={tmp_path / 'full'}")
    with pytest.raises(UserError, match=r"--depth=raw: .* has only filled depth"):
        inspect(pairs, f"--export={tmp_path / 'e'}", "--depth=raw")
    for scale in ("0", "-5", "nan"):
        with pytest.raises(UserError, match="--depth_scale"):
            inspect(pairs, f"--depth_scale={scale}")
    monkeypatch.chdir(tmp_path / "full")
    (tmp_path / "full" / "mine").unlink()
    with pytest.raises(UserError, match="the current folder"):
        inspect(pairs, "--export=.")


def test_existing_files_are_not_overwritten(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_data.measurements, "inspect", no_work)
    file, folder = tmp_path / "file", tmp_path / "folder"
    folder.mkdir()
    existing = [file, folder / "statistics.png"]
    for path in existing:
        path.write_text("content")
    with pytest.raises(UserError, match="is a file"):
        inspect(pairs, f"--out={file}")
    with pytest.raises(UserError, match="file is not a folder"):
        inspect(pairs, f"--out={file / 'o'}")
    with pytest.raises(UserError, match="file is not a folder"):
        inspect(pairs, f"--export={file / 'o' / 'p'}")
    with pytest.raises(UserError, match="was not written by this command"):
        inspect(pairs, f"--out={folder}")
    with pytest.raises(UserError, match="both name"):
        inspect(pairs, f"--out={tmp_path / 'x'}", f"--json={tmp_path / 'x'}")
    with pytest.raises(UserError, match="there is no folder"):
        inspect(pairs, f"--json={tmp_path / 'no' / 'x'}")
    with pytest.raises(UserError, match="exists"):
        inspect(pairs, f"--json={file}")
    assert [path.read_text() for path in existing] == ["content"] * 2


def test_images_of_an_earlier_call_are_replaced(pairs, tmp_path, output, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    inspect(pairs, "--out=~/o", "--frames=3")
    inspect(pairs, "--out=~/o", "--frames=4")
    assert (tmp_path / "o" / "statistics.png").is_file()


def test_images_that_cannot_be_written_are_an_error(
    pairs, tmp_path, output, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(inspect_data.plots, "statistics", full)
    with pytest.raises(MachineError, match="could not be written: No space left"):
        inspect(pairs, f"--out={tmp_path / 'o'}")


def test_damaged_shards_of_a_store_are_a_problem(pairs, tmp_path, output):
    opened = store_writer.write(open_source(pairs), tmp_path / "s")
    file = tmp_path / "s" / "train-00000.rgb.npy"
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    inspect(opened.path, f"--out={tmp_path / 'o'}")
    assert any(
        line.startswith("problem  shards: 1 do not match") and file.name in line
        for line in output
    )


def test_the_script_runs(pairs, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools/inspect_data.py", pairs, "--frames=4"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nfindings\n" in done.stdout and "\nok       alignment: " in done.stdout
    assert "inspecting my pairs: 4 of 4" in done.stdout
