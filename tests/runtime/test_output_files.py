"""Files that commands write for the user."""

import pytest

from jaxdepth.runtime import output_files
from jaxdepth.runtime.errors import MachineError


def test_write_text_expands_home_and_escapes_names_that_are_not_utf_8(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    output_files.write_text("~/a.txt", "caf\udce9 \u00e9")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\\udce9 \xc3\xa9"
    with pytest.raises(MachineError, match="could not be written"):
        output_files.write_text(tmp_path / "none" / "a.txt", "")
