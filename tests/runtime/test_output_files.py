"""Files that commands write for the user."""

import pytest

from jaxdepth.runtime import output_files
from jaxdepth.runtime.errors import MachineError


def test_text_is_written_whole_at_home_and_with_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    output_files.write_text("~/a.txt", "caf\udce9 \u00e9")
    assert (tmp_path / "a.txt").read_bytes() == b"caf\\udce9 \xc3\xa9"
    with pytest.raises(MachineError, match="can't be written"):
        output_files.write_text(tmp_path / "none" / "a.txt", "")
