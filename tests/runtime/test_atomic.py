"""Atomic file writes."""

import pytest

from jaxdepth.runtime import atomic


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_completely_or_not_at_all(tmp_path, durable):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail():
        with atomic.atomic_write(path, durable=durable) as file:
            file.write(b"half")
            assert path.read_bytes() == b"old"
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    with atomic.atomic_write(path, durable=durable) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_the_user_s_files_beside_it_are_kept(tmp_path):
    beside = [tmp_path / name for name in ("a.part", ".a.part")]
    for path in beside:
        path.write_bytes(b"mine")
    with atomic.atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert all(path.read_bytes() == b"mine" for path in beside)


def test_a_name_of_the_greatest_length_is_written(tmp_path):
    path = tmp_path / ("ü" * 127)
    with atomic.atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1
