"""FIFOs and devices are found without opening them; checksums."""

import hashlib
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


def test_the_checksum_of_several_files_covers_all_of_them(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    expected = hashlib.sha256(b"onetwo").hexdigest()
    assert regular.sha256(tmp_path / "a", tmp_path / "b") == expected
