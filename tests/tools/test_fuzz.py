"""The fuzzer: outcomes of readers with known faults, replay, cases of each reader."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.tools import bad_readers
from tools import fuzz, fuzz_damages, fuzz_readers

BAD = ["--readers=tests.tools.bad_readers", "--memory=200"]


def rows(printed: str) -> dict[str, dict[str, int]]:
    """The table that was printed: reader -> outcome -> count."""
    head, *lines = printed[printed.index("reader  ") :].splitlines()
    outcomes = head.split()[1:]
    return {
        line[: -11 * len(outcomes)].strip(): dict(
            zip(outcomes, map(int, line.split()[-len(outcomes) :]), strict=True)
        )
        for line in lines
    }


@pytest.mark.parametrize("reader", bad_readers.READERS)
def test_each_fault_has_its_outcome(reader, capsys, tmp_path):
    outcome = reader.split()[0]
    limit = "--limit=1" if outcome == "hang" else "--limit=60"
    arguments = [*BAD, limit, f"--reader={reader}", "--cases=2", f"--keep={tmp_path}"]
    failed = outcome in fuzz.FAILURES
    assert fuzz.main(arguments) == failed
    printed = capsys.readouterr().out
    counts = rows(printed)[reader]
    # Damage may leave a file as it was.
    assert counts.pop("identical") <= 1 or outcome == "identical"
    assert {k for k, n in counts.items() if n} <= {outcome}
    assert sum(rows(printed)["all"].values()) == 2
    kept = list(tmp_path.iterdir())
    assert len(kept) == printed.count("again: ") == (counts[outcome] if failed else 0)
    for folder in kept:
        assert (folder / "a.bin").read_bytes() != bad_readers.CONTENT


def test_a_failure_is_replayed_by_its_number(capsys, tmp_path):
    arguments = [*BAD, "--reader=traceback", "--seed=3"]
    fuzz.main([*arguments, "--cases=4", f"--keep={tmp_path / 'all'}"])
    number = re.findall(r"--seed=3 .*--only=(\d+)", capsys.readouterr().out)[-1]
    assert fuzz.main([*arguments, f"--only={number}", f"--keep={tmp_path}"]) == 1
    assert "IndexError" in capsys.readouterr().out
    one, again = (
        (folder / f"traceback-{number}" / "a.bin").read_bytes()
        for folder in (tmp_path, tmp_path / "all")
    )
    assert one == again


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'{"a": [1, {"b": 2.5}], "c": "x"}'),
        ("a.txt", b"1 a.png 2.5\n"),
        ("a.npy", b"\x93NUMPY\1\0v\0{'descr': '<f4', 'shape': (3, 2)}" + bytes(99)),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(60)),
        ("empty", b""),
        ("one", b"x"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_depends_on_the_seed_only(tmp_path, name, content):
    path, seen = tmp_path / name, set()
    for seed in range(150):
        results = []
        for _ in range(2):
            path.write_bytes(content)
            damage = fuzz_damages.damaged(path, np.random.default_rng(seed))
            results.append((damage, path.read_bytes()))
        assert results[0] == results[1]
        seen.add(results[0])
    special = fuzz_damages.OF_SUFFIX.get(path.suffix)
    kinds = {damage.__name__ for damage in (*fuzz_damages.DAMAGES, special) if damage}
    assert {damage for damage, _ in seen} == kinds
    assert len(content) < 2 or len({data for _, data in seen}) > 30


@pytest.mark.slow
def test_every_reader_reads_its_input_and_survives_some_damage(capsys):
    pytest.importorskip("tensorflow_datasets")
    assert fuzz.main(["--cases=3", "--seconds=200"]) == 0, capsys.readouterr().out
    counts = rows(capsys.readouterr().out)
    assert counts.keys() == {*fuzz_readers.READERS, "all"}
    assert sum(counts["all"].values()) == 3 * len(fuzz_readers.READERS)


def test_inputs_are_the_same_each_time(tmp_path):
    skipped = {"tfds", "checkpoints", "tensorflow"}  # slow, or with random names
    for name in fuzz_readers.READERS.keys() - skipped:
        contents = []
        for folder in (tmp_path / name / "a", tmp_path / name / "b"):
            folder.mkdir(parents=True)
            fuzz_readers.READERS[name].write(folder)
            contents.append(files(folder))
        assert contents[0] == contents[1], name


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
