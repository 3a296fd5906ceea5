"""Data sets of the flags: units of stores, and flags that a store can't follow."""

import dataclasses

import numpy as np
import pytest

from jaxdepth.config import Config
from jaxdepth.data import dataset, pipeline
from jaxdepth.data.doctor import measurements
from jaxdepth.data.sources import ReadOptions
from jaxdepth.data.store.writer import Job, Packing
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import device_cache
from tests.data.memory import Memory, frame, one_line
from tests.data.sources import made

SIZE = (60, 80)


def store_at(folder, *, options=None, scale=None, **packing):
    """Write a store of ten frames as prepare-data does, and return its path."""
    source = Memory([frame(k, SIZE) for k in range(10)])
    if scale is not None:
        source.scale = scale  # pyright: ignore
    packed = Packing(**{"size": SIZE, **packing})
    Job(source, packed, options or ReadOptions()).write(folder)
    return str(folder)


def config(path, cache, **flags):
    return Config.of(data=path, size="57x76", cache_dir=str(cache), **flags)


FLAGS = {
    "depth_scale": 5000.0, "depth_code": "swapped", "depth_kind": "ray",
    "depth_fx": 500.0, "baseline": 0.1, "doffs": 3.0, "data_format": "bts",
    "eval_fraction": 0.3, "test_scenes": "keep",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), FLAGS.items())
def test_flags_that_a_store_can_not_follow_are_errors(tmp_path, name, value):
    path = store_at(tmp_path / "s")
    with pytest.raises(UserError, match=f"--{name}={value}: .* is a store") as error:
        dataset.open_data(config(path, tmp_path, **{name: value}))
    assert "prepare the store again" in one_line(error)
    dataset.open_data(config(path, tmp_path, allow_outside=True))


@pytest.mark.parametrize(("name", "value"), FLAGS.items())
def test_flags_with_the_recorded_value_are_accepted(tmp_path, name, value):
    fields = {field.name for field in dataclasses.fields(ReadOptions)}
    reading = {name: value} if name in fields else {}
    packing = {name: value} if name in ("eval_fraction", "test_scenes") else {}
    path = store_at(tmp_path / "s", options=ReadOptions(**reading), **packing)
    flags = {"data_format": "folder"} if name == "data_format" else {name: value}
    dataset.open_data(config(path, tmp_path, **flags))
    if reading:
        measurements.open_data(path, options=ReadOptions(**reading))
        with pytest.raises(UserError, match="is a store"):
            measurements.open_data(path, options=ReadOptions(depth_scale=9.0))


def test_flags_for_files_are_errors_for_rooms(tmp_path):
    for name, value in FLAGS.items():
        with pytest.raises(UserError, match=f"--{name}={value}: rooms are rendered"):
            dataset.open_data(config("rooms", tmp_path, **{name: value}))


def test_flags_may_apply_to_the_files_to_evaluate_on(tmp_path):
    path = store_at(tmp_path / "s")
    for k in range(2):
        made.image(tmp_path, f"e/rgb/{k}.png", k, SIZE)
        made.depth(tmp_path, f"e/depth/{k}.png", np.full(SIZE, 10_000), SIZE)
    flags = config(path, tmp_path, eval_data=str(tmp_path / "e"), depth_scale=5000.0)
    frames = dataset.open_data(flags).frames()
    assert [frame["depth"]["filled"].max() for frame in frames] == [2, 2]
    with pytest.raises(UserError, match=r"--eval_fraction=0\.2: .* is a store"):
        dataset.open_data(flags.replace(eval_fraction=0.2))


def test_the_default_scale_of_the_format_is_recorded(tmp_path):
    path = store_at(tmp_path / "s", scale=1000.0)
    dataset.open_data(config(path, tmp_path, depth_scale=1000.0))
    with pytest.raises(UserError, match=r"\(--depth_scale=1000\.0\)"):
        dataset.open_data(config(path, tmp_path, depth_scale=256.0))


def test_flags_of_training_data_do_not_apply_to_a_store_to_evaluate_on(tmp_path):
    path = store_at(tmp_path / "s")
    given = config("elsewhere", tmp_path, depth_scale=5000.0, eval_fraction=0.5)
    assert len(dataset.open_other(given, path)) == 10


@pytest.mark.parametrize(("max_depth", "unit"), [(10.0, 1000), (80.0, 256)])
def test_a_run_uses_all_depth_that_its_store_kept(tmp_path, max_depth, unit):
    path = store_at(tmp_path / "s", max_depth=max_depth)
    data = dataset.open_data(config(path, tmp_path, max_depth=max_depth))
    assert data.train.depth_unit == data.evaluation.depth_unit == unit
    metres = next(data.evaluation.full_frames([0]))["depth"]["filled"]
    exact = frame(0, SIZE).depths["filled"]
    assert 0 < np.abs(metres - exact).max() + 1e-9 <= 0.5 / unit + 1e-6
    with pytest.raises(UserError, match=f"holds depth up to {max_depth:g} m"):
        dataset.open_data(config(path, tmp_path, max_depth=max_depth + 1))
    (note,) = dataset.open_data(config(path, tmp_path)).notes or [""]
    assert ("give --max_depth=80 to use it" in note) == (max_depth == 80)


def test_ground_truth_beyond_the_unit_of_a_store_can_not_be_evaluated(tmp_path):
    path = store_at(tmp_path / "s")
    with pytest.raises(UserError, match=r"--max_depth=80: .* up to 65.535 m"):
        dataset.open_other(config("elsewhere", tmp_path, max_depth=80.0), path)


def test_a_store_of_other_extremes_is_noted(tmp_path):
    path = store_at(tmp_path / "s")
    for asked, noted in (("off", False), ("on", True)):
        notes = dataset.open_data(config(path, tmp_path, mask_extremes=asked)).notes
        assert any("--mask_extremes=on does not change" in n for n in notes) == noted


def test_rooms_to_train_on_are_not_rendered_to_evaluate(tmp_path):
    """Evaluation frames are the same, from a store of their own or of all rooms."""
    flags = config("rooms", tmp_path / "a", rooms=3, train_images=2)
    alone = dataset.open_data(flags, training=False)
    assert len(alone.evaluation) == len(alone.eval_rows) == 32
    whole = dataset.open_data(config("rooms", tmp_path / "b", rooms=3))
    assert len(whole.evaluation) == 35
    for got, expected in zip(alone.frames(), whole.frames(), strict=True):
        assert got["name"] == expected["name"]
        assert got["camera"] == expected["camera"]
        np.testing.assert_array_equal(got["rgb"], expected["rgb"])
        np.testing.assert_array_equal(got["depth"]["raw"], expected["depth"]["raw"])
    assert (alone.name, alone.eval_split) == (whole.name, whole.eval_split)
    again = dataset.open_data(config("rooms", tmp_path / "b", rooms=3), training=False)
    assert len(again.evaluation) == 35
    # Training needs the others: a store without them is not used for it.
    assert len(dataset.open_data(flags).train_rows) == 2


def test_a_larger_size_trains_from_the_full_size_copies(tmp_path):
    small = store_at(tmp_path / "s", size=(30, 40), keep_full="all")
    large = store_at(tmp_path / "l", keep_full="all")
    opened, expected = (dataset.open_data(config(p, tmp_path)) for p in (small, large))
    assert opened.train.size == expected.train.size == SIZE
    rows = opened.train_rows
    np.testing.assert_array_equal(rows, expected.train_rows)
    options = {"depth": "filled", "seed": 1, "batch_size": 2}
    for cache in ("none", "host"):
        batches = []
        for data in (opened, expected):
            with pipeline.batches(
                data.train, rows, **options, start_step=0, stop_step=6, cache=cache
            ) as some:
                batches.append(list(some))
        for got, wanted in zip(*batches, strict=True):
            for name in ("rgb", "depth_codes", "position"):
                np.testing.assert_array_equal(got[name], wanted[name])
    parts = [
        device_cache.reader(data.train, rows, depth="filled", devices=2)(1)
        for data in (opened, expected)
    ]
    for name in ("rgb", "depth_codes"):
        np.testing.assert_array_equal(parts[0][name], parts[1][name])
    # At a smaller size, the training frames are used.
    flags = config(small, tmp_path).replace(size="28x38")
    assert dataset.open_data(flags).train.size == (30, 40)


def test_a_larger_size_without_full_size_copies_is_an_error(tmp_path):
    path = store_at(tmp_path / "s", size=(30, 40), keep_full="none")
    with pytest.raises(UserError, match="smaller than the 60x80") as error:
        dataset.open_data(config(path, tmp_path))
    assert "--size=28x38" in one_line(error)
    assert "--keep_full=all (jaxdepth prepare-data)" in one_line(error)
    path = store_at(tmp_path / "all", size=(30, 40), keep_full="all")
    with pytest.raises(UserError, match="smaller than the 120x160") as error:
        dataset.open_data(config(path, tmp_path).replace(size="114x152"))
    assert "keep_full" not in one_line(error)
