"""500 random damages to real files: each causes a one-line error or a valid frame.

JPEG files, raw dumps and lists of names have no checksums, so their damaged frames may
be read; those of PNG files must not be.
"""

import collections
import concurrent.futures
import json
import multiprocessing
import shutil
import subprocess
import sys

import pytest

from tests.data.sources import corrupted
from tests.data.sources.corrupted import Subject

CASES = 500
SHARES = {  # of the cases, by format
    "nyu_raw": 6, "nyu_labeled": 12, "fastdepth": 12, "tum": 16, "folder": 12,
    "bts": 12, "densedepth": 12,
}  # fmt: skip
SCENE = "basement_0001a"
FOCAL = "518.8579"


def synchronised(shared_data, root):
    shutil.copytree(
        shared_data / "sync_png16" / SCENE, root / SCENE, copy_function=shutil.copy
    )
    return [f"{SCENE}/rgb_{n}.jpg" for n in ("00000", "00050")], [
        f"{SCENE}/sync_depth_{n}.png" for n in ("00000", "00050")
    ]


def raw_dump(shared_data, root):
    shutil.copytree(shared_data / "raw_kinect", root, copy_function=shutil.copy)
    files = [f"{SCENE}/{f.name}" for f in (root / SCENE).iterdir()]
    return Subject("nyu_raw", root, "", tuple(sorted(files)))


def labeled(shared_data, root):
    root.mkdir()
    tool = shared_data.parent / "tools" / "build_labeled_mat.py"
    if not tool.exists():
        pytest.skip("no build_labeled_mat.py beside the sample data")
    command = [sys.executable, tool, "--out", root / "a.mat", "--limit", "2"]
    subprocess.run(command, check=True, capture_output=True)
    return Subject("nyu_labeled", root, "a.mat", ("a.mat", "a.mat", "a.mat.json"))


def fastdepth(shared_data, root):
    shutil.copytree(shared_data / "h5_fastdepth", root, copy_function=shutil.copy)
    return Subject("fastdepth", root, "", ("val/00001.h5", "val/00002.h5"))


def tum(shared_data, root):
    shutil.copytree(shared_data / "tum_rgbd", root, copy_function=shutil.copy)
    (root / "associations.txt").unlink()
    for name in ("rgb.txt", "depth.txt"):  # two of the four pairs
        lines = (root / name).read_text().splitlines()
        (root / name).write_text("\n".join(lines[:5]) + "\n")
    files = [f"{kind}/{f.name}" for kind in ("rgb", "depth")
             for f in sorted((root / kind).iterdir())[:2]]  # fmt: skip
    return Subject("tum", root, "", (*files, "rgb.txt", "depth.txt"))


def folder(shared_data, root):
    images, depths = synchronised(shared_data, root)
    return Subject("folder", root, "", (*images, *depths))


def bts(shared_data, root):
    images, depths = synchronised(shared_data, root)
    lines = [f"/{a} /{b} {FOCAL}\n" for a, b in zip(images, depths, strict=True)]
    (root / "train.txt").write_text("".join(lines))
    return Subject("bts", root, "train.txt", (*images, *depths, "train.txt"))


def densedepth(shared_data, root):
    images, depths = synchronised(shared_data, root)
    lines = [f"{a},{b}\n" for a, b in zip(images, depths, strict=True)]
    (root / "nyu2_train.csv").write_text("".join(lines))
    return Subject("densedepth", root, "", (*images, *depths, "nyu2_train.csv"))


@pytest.mark.slow
def test_random_damage_causes_a_one_line_error_or_a_valid_frame(
    shared_data, tmp_path, capsys, record_property
):
    makers = [raw_dump, labeled, fastdepth, tum, folder, bts, densedepth]
    subjects = [make(shared_data, tmp_path / make.__name__) for make in makers]
    swaps = [f.root / name for f in subjects for name in f.files[:2]]
    swaps.append(shared_data / "nyu_splits" / "splits.mat")
    total, begin = sum(SHARES.values()), 0
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        waiting = []
        for k, subject in enumerate(subjects):
            end = begin + CASES * SHARES[subject.data_format] // total
            if k == len(subjects) - 1:
                end = CASES
            job = (subject, tmp_path / "scratch", range(begin, end), swaps)
            waiting.append((subject, pool.submit(corrupted.outcomes, *job)))
            begin = end
        # A process that crashes raises BrokenProcessPool, one that hangs TimeoutError.
        results = [(s, job.result(timeout=300)) for s, job in waiting]
    table = collections.Counter()
    for subject, cases in results:
        for kind, how, outcome in cases:
            assert not outcome.startswith("FAILED"), (subject.data_format, kind, how,
                                                      outcome)  # fmt: skip
            table[subject.data_format, kind, outcome] += 1
            # A file with checksums is never read as another frame, unless it was
            # replaced by an intact file of another format.
            if how != "another format":
                assert (kind, outcome) != (".png", "changed"), how
    assert table.total() == CASES
    record_property("outcomes", json.dumps({" ".join(k): n for k, n in table.items()}))
    with capsys.disabled():
        print("\n" + as_text(table))


def as_text(table):
    """Format the table: a row per format and suffix, a column per outcome."""
    columns = ("rejected", "broken", "refused", "changed", "unharmed")
    rows = sorted({key[:2] for key in table})
    lines = [f"{'format':12}{'file':8}" + "".join(f"{c:>10}" for c in columns)]
    for row in rows:
        counts = "".join(f"{table[*row, column]:10d}" for column in columns)
        lines.append(f"{row[0]:12}{row[1]:8}{counts}")
    sums = [sum(n for k, n in table.items() if k[2] == column) for column in columns]
    return "\n".join([*lines, f"{'all':20}" + "".join(f"{n:10d}" for n in sums)])
