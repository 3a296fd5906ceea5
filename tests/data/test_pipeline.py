"""Batches compared with the rows of the store, for both backends."""

import itertools
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from jaxdepth.data import order, pipeline
from jaxdepth.data.sources import Frame, FrameInfo
from jaxdepth.data.store import writer as store_writer
from jaxdepth.runtime.errors import UserError

N, ROWS = 23, np.array([22, 3, 5, 7, 11, 13, 17, 19, 2])
BACKENDS = ["threads", "tf"]


class Numbers:
    """A source: frame k has colour k and k + 1 metres of filled depth, half as raw."""

    name, format, truths, eight_bit = "numbers", "folder", ("filled", "raw"), False
    notes: list[str] = []  # noqa: RUF012
    infos = [FrameInfo(str(k)) for k in range(N)]  # noqa: RUF012

    def frame(self, row):
        depth = np.full((4, 6), row + 1, np.float32)
        return Frame(np.full((4, 6, 3), row, np.uint8), depth, depth / 2)

    def fingerprint(self):
        return {}

    def splits(self):
        return {}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    out = tmp_path_factory.mktemp("pipeline") / "store"
    return store_writer.write(
        Numbers(), out, size=(4, 6), mask_extremes="off", max_depth=30.0
    )


def collect(opened, start, stop, *, batch_size=4, **more):
    if more.get("backend") == "tf":
        pytest.importorskip("tensorflow", reason="tf.data needs TensorFlow")
    options = {"depth": "filled", "seed": 9, **more}
    with pipeline.batches(
        opened, ROWS, batch_size=batch_size, start_step=start, stop_step=stop, **options
    ) as batches:
        return list(batches)


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys() == {"rgb", "depth_codes", "position"}
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_hold_the_rows_of_their_step(opened, backend):
    batches = collect(opened, 0, 7, backend=backend)
    assert len(batches) == 7
    for step, batch in enumerate(batches):
        rows = ROWS[order.rows_of_step(9, step, 4, len(ROWS))]
        assert batch["rgb"].shape == (4, 4, 6, 3) and batch["rgb"].dtype == np.uint8
        assert batch["depth_codes"].dtype == np.uint16
        assert batch["position"].dtype == np.int32
        np.testing.assert_array_equal(batch["rgb"][:, 0, 0, 0], rows)
        np.testing.assert_array_equal(batch["depth_codes"][:, 3, 5], 1000 * (rows + 1))
        np.testing.assert_array_equal(batch["position"], range(4))


def test_with_a_device_cache_batches_hold_indices(opened):
    indices = collect(opened, 3, 9, cache="device", host=1, hosts=2)
    frames = collect(opened, 3, 9, backend="threads", host=1, hosts=2)
    for a, b in zip(indices, frames, strict=True):
        assert a.keys() == {"rows", "position"} and a["rows"].dtype == np.int32
        rgb, depth_codes = opened.gather(ROWS[a["rows"]], depth="filled")
        np.testing.assert_array_equal(rgb, b["rgb"])
        np.testing.assert_array_equal(depth_codes, b["depth_codes"])
        np.testing.assert_array_equal(a["position"], b["position"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_depth_selects_filled_or_raw(opened, backend):
    filled, raw = (
        collect(opened, 0, 2, backend=backend, depth=kind) for kind in ("filled", "raw")
    )
    for a, b in zip(filled, raw, strict=True):
        np.testing.assert_array_equal(a["depth_codes"], 2 * b["depth_codes"])


def test_backends_give_equal_batches(opened):
    by_tf, by_threads = (collect(opened, 3, 30, backend=name) for name in BACKENDS)
    assert_equal(by_tf, by_threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("start", [1, 5, 9])
def test_batches_do_not_depend_on_the_first_step(opened, backend, start):
    expected = collect(opened, 0, 10, backend="threads")
    assert_equal(collect(opened, start, 10, backend=backend), expected[start:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_batches_of_hosts_are_slices_of_the_global_batch(opened, backend):
    expected = collect(opened, 0, 5, batch_size=6)
    parts = [
        collect(opened, 0, 5, batch_size=6, backend=backend, host=h, hosts=3)
        for h in range(3)
    ]
    joined = [
        {
            key: np.concatenate([part[step][key] for part in parts])
            for key in expected[0]
        }
        for step in range(5)
    ]
    assert_equal(joined, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_host_cache_gives_the_same_batches(opened, backend):
    cached = collect(opened, 2, 9, backend=backend, cache="host")
    assert_equal(cached, collect(opened, 2, 9, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_steps_there_are_no_batches(opened, backend):
    assert collect(opened, 4, 4, backend=backend) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_shard_is_an_error_of_one_line(tmp_path, backend):
    damaged = store_writer.write(Numbers(), tmp_path / "s", size=(4, 6), max_depth=30.0)
    file = damaged.path / "train-00000.rgb.npy"
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(UserError, match="missing or damaged") as error:
        collect(damaged, 0, 3, backend=backend)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_early_does_not_hang(opened, backend):
    if backend == "tf":
        pytest.importorskip("tensorflow", reason="tf.data needs TensorFlow")
    code = f"""
        import itertools, time
        import numpy as np
        from jaxdepth.data import pipeline
        from jaxdepth.data.store.reader import Store
        opened = Store.open({str(opened.path)!r})

        def slow_gather(*args, **options):  # so that some calls run at the end
            time.sleep(0.1)
            return Store.gather(opened, *args, **options)

        opened.gather = slow_gather
        with pipeline.batches(
            opened, np.arange({N}), depth="filled", seed=0, batch_size=4,
            start_step=0, stop_step=10**9, backend={backend!r},
        ) as batches:
            print(len(list(itertools.islice(batches, 3))))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr[-2000:]


def test_the_number_of_batches_in_advance_is_bounded(opened, monkeypatch):
    calls = []
    gather = opened.gather
    monkeypatch.setattr(
        opened, "gather", lambda *a, **k: calls.append(1) or gather(*a, **k)
    )
    with pipeline.batches(
        opened, ROWS, depth="filled", seed=0, batch_size=4, start_step=0,
        stop_step=10**6, backend="threads",
    ) as batches:  # fmt: skip
        list(itertools.islice(batches, 3))
    assert 3 <= len(calls) <= 3 + pipeline.AHEAD + 1


def test_without_tensorflow_threads_are_used(opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert_equal(
        collect(opened, 0, 3, backend="auto"), collect(opened, 0, 3, backend="threads")
    )
