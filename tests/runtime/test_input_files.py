"""Files that are checked before they are opened."""

import os

import pytest

from jaxdepth.runtime import input_files
from jaxdepth.runtime.errors import UserError


def test_only_files_are_regular(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    input_files.check_regular(tmp_path / "file")
    input_files.check_regular(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo\x1b")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name, words in {
        "": "is a folder, not a file",
        "fifo\x1b": r"fifo\x1b is a FIFO, not a file",
        "device": "is a device, not a file",
        "none": "there is no such file",
        "x" * 300: "File name too long",
        "\0": "null",
    }.items():
        with pytest.raises(UserError) as error:
            input_files.check_regular(tmp_path / name)
        assert words in str(error.value)


def test_folders_can_be_allowed(tmp_path):
    input_files.check_no_fifo(tmp_path)
    input_files.check_no_fifo(tmp_path / "none")  # reported by the caller
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="is a FIFO"):
        input_files.check_no_fifo(tmp_path / "fifo")
