"""FIFOs and devices are found without opening them."""

import os
import socket

import pytest

from jaxdepth.runtime import regular


def test_only_files_and_folders_pass(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path, tmp_path / "file", str(tmp_path / "link")):
        regular.check(path)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "linked").symlink_to(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        for path in ("fifo", "linked", "socket", "/dev/zero", "/dev/null"):
            with pytest.raises(OSError, match="a FIFO or a device"):
                regular.check(tmp_path / path)
    with pytest.raises(FileNotFoundError):
        regular.check(tmp_path / "none")
