"""Checkpoints: restoring, preservation, damaged files, storage errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.training.checkpoint import Checkpoints, checksums
from jaxdepth.training.state import TrainState
from jaxdepth.training.step import train_step
from tests import tiny


def numbered(step: int) -> TrainState:
    """A state in which every number is `step`."""
    return jax.tree.map(lambda x: np.full_like(x, step), tiny.state(tiny.spec()))


@pytest.fixture(scope="module")
def fresh():
    return tiny.state(tiny.spec())


def save(folder, *pairs) -> None:
    checkpoints = Checkpoints(str(folder))
    for step, rmse in pairs:
        checkpoints.save(step, numbered(step), rmse=rmse)
    checkpoints.close()


def assert_is(state, step: int) -> None:
    assert state is not None and int(state.step) == step
    for leaf in jax.tree.leaves(state):
        assert np.all(np.asarray(leaf) == step)


def test_the_newest_state_is_restored(tmp_path, fresh):
    save(tmp_path, (1, 3.0), (2, 1.0), (3, 2.0))
    opened = Checkpoints(str(tmp_path), read_only=True)
    restored = opened.restore_state(fresh)
    assert_is(restored, 3)
    assert jax.tree.structure(restored) == jax.tree.structure(fresh)
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype, restored, fresh)
    assert all(jax.tree.leaves(same))


def test_with_an_ema_the_averaged_and_the_trained_network_are_saved(tmp_path, fresh):
    state = numbered(3).start_ema()
    average = jax.tree.map(lambda x: np.full_like(x, 7), state.average)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(3, dataclasses.replace(state, average=average))
    checkpoints.close()
    opened = Checkpoints(str(tmp_path), read_only=True)
    restored = opened.restore_state(fresh.start_ema())
    assert restored is not None
    assert_is(dataclasses.replace(restored, average=None), 3)
    model = opened.restore_model(lambda: fresh.network, step=3)
    for tree in (restored.average, restored.variables, model):
        assert jax.tree.structure(tree) == jax.tree.structure(fresh.network)
        assert all(np.all(np.asarray(x) == 7) for x in jax.tree.leaves(tree))


def test_the_best_and_the_last_two_are_preserved(tmp_path, fresh):
    save(tmp_path, (1, 5.0), (2, 1.0), (3, 4.0), (4, 3.0), (5, None))
    opened = Checkpoints(str(tmp_path), read_only=True)
    assert opened.steps() == [2, 4, 5]
    assert opened.best_step() == 2
    model = {"params": fresh.params, "batch_stats": fresh.batch_stats}
    restored = opened.restore_model(lambda: model, step=2)
    assert all(np.all(np.asarray(x) == 2) for x in jax.tree.leaves(restored))


def test_the_best_of_an_earlier_run_is_preserved(tmp_path):
    save(tmp_path, (1, 1.0), (2, 2.0), (3, 2.5))
    save(tmp_path, (4, 3.0), (5, 2.0))
    assert Checkpoints(str(tmp_path), read_only=True).steps() == [1, 4, 5]


def test_a_checkpoint_is_deleted_only_after_the_next_is_complete(tmp_path, monkeypatch):
    save(tmp_path, (1, None), (2, None))
    checkpoints = Checkpoints(str(tmp_path))

    def fail(step):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "_finalize_checkpoint", fail)
    checkpoints.save(3, numbered(3))
    with pytest.raises(MachineError, match=r"step 3 .*No space left.*step 2 in"):
        checkpoints.wait()
    assert {"1", "2"} <= {path.name for path in tmp_path.iterdir()}


def test_an_empty_folder_has_no_checkpoints(tmp_path, fresh):
    opened = Checkpoints(str(tmp_path / "new"))
    assert opened.restore_state(fresh) is None
    assert opened.steps() == [] and opened.best_step() is None


def test_saving_a_step_twice_keeps_the_first(tmp_path, fresh):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, numbered(1))
    checkpoints.wait()
    checkpoints.save(1, numbered(9))
    assert_is(checkpoints.restore_state(fresh), 1)


def largest_file(folder):
    return max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_is_skipped(tmp_path, fresh, how, caplog):
    save(tmp_path, (1, None), (2, None))
    target = largest_file(tmp_path / "2")
    content = bytearray(target.read_bytes())
    if how == "cut":
        target.write_bytes(content[: len(content) // 2])
    elif how == "changed":
        content[len(content) // 2] ^= 0xFF
        target.write_bytes(content)
    else:
        target.unlink()
    opened = Checkpoints(str(tmp_path), read_only=True)
    assert_is(opened.restore_state(fresh), 1)
    assert "step 2 is damaged" in caplog.text


def damage_json(folder, name, **values):
    """Change values in the file `name` of a checkpoint, wherever Orbax keeps it."""
    (file,) = folder.rglob(name)
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("values", [{"init_timestamp_nsecs": []}, {"metrics": 3}])
def test_damaged_times_and_metrics_of_orbax_do_not_matter(tmp_path, fresh, values):
    save(tmp_path, (1, 2.0), (2, 1.0))
    damage_json(tmp_path / "2", "_CHECKPOINT_METADATA", **values)
    opened = Checkpoints(str(tmp_path), read_only=True)
    assert opened.best_step() == 2
    assert_is(opened.restore_state(fresh), 2)


@pytest.mark.parametrize("values", [{"model": None}, {"optimizer": [1]}, {"model": {}}])
def test_a_checkpoint_without_checksums_is_damaged(tmp_path, fresh, values, caplog):
    save(tmp_path, (1, None), (2, None))
    damage_json(tmp_path / "2" / "checks", "metadata", **values)
    opened = Checkpoints(str(tmp_path), read_only=True)
    assert_is(opened.restore_state(fresh), 1)
    assert "step 2 is damaged" in caplog.text


@pytest.mark.parametrize("rmse", ["0.5", [0.5], float("nan"), None])
def test_a_damaged_rmse_is_never_the_best(tmp_path, rmse):
    save(tmp_path, (1, 2.0), (2, 1.0))
    damage_json(tmp_path / "2" / "checks", "metadata", rmse=rmse)
    assert Checkpoints(str(tmp_path), read_only=True).best_step() == 1


def test_steps_are_saved_again_after_damage(tmp_path, fresh):
    save(tmp_path, (1, None), (3, None))
    largest_file(tmp_path / "3").unlink()
    checkpoints = Checkpoints(str(tmp_path))
    with pytest.raises(MachineError, match=r"step 2 was not written .* a later one"):
        checkpoints.save(2, numbered(2))
    assert_is(checkpoints.restore_state(fresh), 1)
    checkpoints.drop(checkpoints.damaged)
    assert checkpoints.steps() == [1]
    for step in (2, 3):
        checkpoints.save(step, numbered(step))
    checkpoints.close()
    opened = Checkpoints(str(tmp_path), read_only=True)
    assert_is(opened.restore_state(fresh), 3)


def test_only_damaged_checkpoints_are_an_error(tmp_path, fresh):
    save(tmp_path, (1, None))
    largest_file(tmp_path / "1").unlink()
    opened = Checkpoints(str(tmp_path), read_only=True)
    with pytest.raises(UserError, match="every checkpoint"):
        opened.restore_state(fresh)


def test_checksums_detect_a_single_bit():
    before = checksums({"a": np.zeros(3, np.float32)})
    assert before != checksums({"a": np.array([0, 0, 1e-45], np.float32)})
    assert before != checksums({"b": np.zeros(3, np.float32)})


def test_another_network_is_an_error(tmp_path):
    save(tmp_path, (1, None))
    other = tiny.state(tiny.spec("upproj"))
    opened = Checkpoints(str(tmp_path), read_only=True)
    with pytest.raises(UserError, match="of another network"):
        opened.restore_state(other)


def test_full_storage_names_the_last_good_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, numbered(1))
    checkpoints.wait()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(MachineError, match=r"No space left.*step 1 in"):
        checkpoints.save(2, numbered(2))


def test_later_steps_do_not_change_a_saved_state(tmp_path, fresh):
    # On CPU the step may write its result into the donated buffers.
    spec = tiny.spec()
    step = jax.jit(train_step, static_argnums=0, donate_argnums=1)
    state = jax.tree.map(jax.numpy.asarray, tiny.state(spec))
    expected = jax.tree.map(np.array, state)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(0, state)
    for _ in range(3):
        state, _ = step(spec, state, tiny.batch(2))
    checkpoints.close()
    restored = Checkpoints(str(tmp_path), read_only=True).restore_state(fresh)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
