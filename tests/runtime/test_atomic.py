"""Nothing half written, nothing of the user's replaced."""

import pytest

from jaxdepth.runtime import atomic


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail():
        with atomic.replacing(path) as file:
            file.write(b"half")
            assert path.read_bytes() == b"old"
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    with atomic.replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_what_the_user_has_beside_it_stays(tmp_path):
    beside = [tmp_path / name for name in ("a.part", ".a.part")]
    for path in beside:
        path.write_bytes(b"mine")
    with atomic.replacing(tmp_path / "a") as file:
        file.write(b"new")
    assert all(path.read_bytes() == b"mine" for path in beside)
