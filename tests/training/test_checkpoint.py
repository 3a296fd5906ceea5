"""Checkpoints: restoring, preservation, damaged files, storage errors."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.training import optimizer as optimizer_lib
from jaxdepth.training.checkpoint import Checkpoints, NullCheckpoints, checksums
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


# The optimizer state, apart from the network


def with_optimizer(folder) -> list[int]:
    opened = Checkpoints(str(folder), read_only=True)
    return [step for step in opened.steps() if opened.has_optimizer(step)]


def assert_starts_anew(folder, fresh, step: int) -> None:
    """The network of `step` is restored, with the optimizer state of `fresh`."""
    opened = Checkpoints(str(folder), read_only=True)
    restored = opened.restore_state(fresh)
    assert restored is not None and opened.starts_anew and not opened.damaged
    assert_is(dataclasses.replace(restored, opt_state=()), step)
    assert jax.tree.structure(restored) == jax.tree.structure(fresh)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, fresh.opt_state)


def test_only_the_last_two_keep_their_optimizer_state(tmp_path, fresh):
    save(tmp_path, (1, 1.0), (2, 5.0), (3, 4.0), (4, 3.0))
    assert Checkpoints(str(tmp_path), read_only=True).steps() == [1, 3, 4]
    assert with_optimizer(tmp_path) == [3, 4]
    opened = Checkpoints(str(tmp_path), read_only=True)
    assert_is(opened.restore_state(fresh), 4)
    assert not opened.starts_anew and opened.best_step() == 1


def test_the_optimizer_state_is_deleted_only_after_a_save_is_complete(
    tmp_path, monkeypatch
):
    save(tmp_path, (1, 1.0), (2, None))
    checkpoints = Checkpoints(str(tmp_path))

    def fail(step):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "_finalize_checkpoint", fail)
    checkpoints.save(3, numbered(3))
    with pytest.raises(MachineError, match="step 3"):
        checkpoints.save(4, numbered(4))
    assert with_optimizer(tmp_path)[:2] == [1, 2]


def test_a_finished_run_keeps_the_optimizer_state_of_its_last_step(tmp_path, fresh):
    save(tmp_path, (1, 1.0), (2, None), (3, None))
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.finish(keep_optimizer=True)
    assert checkpoints.steps() == [1, 2, 3] and with_optimizer(tmp_path) == [3]
    assert_is(Checkpoints(str(tmp_path)).restore_state(fresh), 3)
    largest_file(tmp_path / "3").unlink()
    opened = Checkpoints(str(tmp_path), read_only=True)
    restored = opened.restore_state(fresh)
    assert restored is not None and int(restored.step) == 2
    assert opened.damaged == [3] and opened.starts_anew


def test_a_finished_run_without_optimizer_state_keeps_two_networks(tmp_path, fresh):
    save(tmp_path, (1, 1.0), (2, None))
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(3, numbered(3), rmse=2.0, optimizer=False)
    checkpoints.finish(keep_optimizer=False)
    checkpoints.close()
    opened = Checkpoints(str(tmp_path), read_only=True)
    assert opened.steps() == [1, 3] and opened.best_step() == 1
    assert not list(tmp_path.glob("*/optimizer"))
    assert_starts_anew(tmp_path, fresh, 3)
    for step in (1, 3):
        model = opened.restore_model(lambda: fresh.network, step=step)
        assert all(np.all(np.asarray(x) == step) for x in jax.tree.leaves(model))
    # A longer run continues to save.
    save(tmp_path, (4, None), (5, None))
    assert with_optimizer(tmp_path) == [4, 5]
    assert_is(Checkpoints(str(tmp_path), read_only=True).restore_state(fresh), 5)


def test_the_network_alone_is_read_for_prediction(tmp_path, fresh):
    save(tmp_path, (1, None))
    for path in (tmp_path / "1" / "optimizer").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    opened = Checkpoints(str(tmp_path), read_only=True)
    model = opened.restore_model(lambda: fresh.network, step=1)
    assert all(np.all(np.asarray(x) == 1) for x in jax.tree.leaves(model))


def size(folder) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_the_optimizer_state_can_be_deleted(tmp_path, fresh):
    save(tmp_path, (1, 1.0), (2, None))
    expected = sum(size(folder) for folder in tmp_path.glob("*/optimizer"))
    before = size(tmp_path)
    checkpoints = Checkpoints(str(tmp_path), read_only=True)
    assert checkpoints.remove_optimizer(checkpoints.steps()) == expected > 0
    assert checkpoints.remove_optimizer(checkpoints.steps()) == 0
    assert size(tmp_path) == before - expected
    assert checkpoints.steps() == [1, 2] and checkpoints.best_step() == 1
    assert_starts_anew(tmp_path, fresh, 2)


def test_a_folder_that_the_user_deleted_is_no_damage(tmp_path, fresh):
    save(tmp_path, (1, None))
    (optimizer,) = tmp_path.glob("*/optimizer")
    optimizer.rename(tmp_path.parent / "elsewhere")
    assert_starts_anew(tmp_path, fresh, 1)


def test_an_interrupted_deletion_is_no_damage(tmp_path, fresh, monkeypatch):
    save(tmp_path, (1, None))
    checkpoints = Checkpoints(str(tmp_path))
    whole = size(tmp_path / "1" / "optimizer")

    def interrupted(self, *_, **__):
        largest_file(tmp_path / "1" / "optimizer").unlink()
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(type(epath.Path(tmp_path)), "rmtree", interrupted)
        with pytest.raises(MachineError, match="optimizer could not be deleted"):
            checkpoints.remove_optimizer([1])
    assert_starts_anew(tmp_path, fresh, 1)
    assert 0 < checkpoints.remove_optimizer([1]) < whole
    assert not (tmp_path / "1" / "optimizer").exists()
    assert_starts_anew(tmp_path, fresh, 1)


_KILLED = """
import os, sys, threading
import jax, numpy as np
from etils import epath
from jaxdepth.training import checkpoint
from tests import tiny

folder, where = sys.argv[1:]
fresh = tiny.state(tiny.spec())
numbered = lambda step: jax.tree.map(lambda x: np.full_like(x, step), fresh)
checkpoints = checkpoint.Checkpoints(folder)
for step in (1, 2):
    checkpoints.save(step, numbered(step), rmse=step)
checkpoints.wait()
kill = lambda *_, **__: os._exit(9)
Manager, Path = type(checkpoints._manager), type(epath.Path(folder))
if where == "writing":
    checkpoint.ocp.StandardCheckpointHandler.finalize = kill
    checkpoint.ocp.PyTreeCheckpointHandler.finalize = kill
elif where == "renaming":
    os.rename = os.replace = Path.rename = Path.replace = kill
elif where == "renamed":
    Manager._finalize_checkpoint = kill
elif where == "deleting":
    Path.rmtree = kill
checkpoints.save(3, numbered(3))
checkpoints.wait()
checkpoints.save(4, numbered(4))
checkpoints.close()
os._exit(0)
"""


@pytest.mark.parametrize(
    ("where", "newest"),
    [("writing", 2), ("renaming", 2), ("renamed", 3), ("deleting", 3)],
)
def test_a_killed_process_leaves_a_complete_checkpoint(tmp_path, fresh, where, newest):
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "run"), where]
    done = subprocess.run(command, capture_output=True, env=tiny.environment())
    assert done.returncode == 9, done.stderr.decode()
    opened = Checkpoints(str(tmp_path / "run"))
    assert_is(opened.restore_state(fresh), newest)
    assert not opened.damaged and not opened.starts_anew and opened.best_step() == 1
    # The next run cleans up and goes on.
    for step in (5, 6, 7):
        opened.save(step, numbered(step))
    opened.close()
    assert with_optimizer(tmp_path / "run") == [6, 7]
    assert not list((tmp_path / "run" / "1").glob("optimizer"))


def test_checkpoints_of_earlier_versions_are_restored(tmp_path, fresh):
    """Written as version 0.1.0.dev did: three items, in all checkpoints."""
    state = numbered(3)
    model = {"params": state.params, "batch_stats": state.batch_stats}
    optimizer = {"opt_state": jax.tree.leaves(state.opt_state), "step": state.step}
    checks = {
        "rmse": 0.5, "model": checksums(model), "optimizer": checksums(optimizer)
    }  # fmt: skip
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(
            3,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(model),
                optimizer=ocp.args.StandardSave(optimizer),
                checks=ocp.args.JsonSave(checks),
            ),
        )
    opened = Checkpoints(str(tmp_path))
    assert opened.best_step() == 3
    assert_is(opened.restore_state(fresh), 3)
    opened.remove_optimizer([3])
    assert_starts_anew(tmp_path, fresh, 3)


def adam_spec(**options):
    optimizer = optimizer_lib.make_optimizer(
        rate=optimizer_lib.learning_rate(lr=1e-2, schedule="cosine", steps=6),
    )
    return tiny.spec(optimizer=optimizer, **options)


def taken(spec, state, start: int, stop: int) -> TrainState:
    step = jax.jit(train_step, static_argnums=0)
    for k in range(start, stop):
        state, _ = step(spec, state, tiny.batch(2, seed=k))
    return state


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resuming_from_the_last_checkpoint_is_exact(tmp_path, ema):
    spec = adam_spec(ema=ema)
    start = tiny.state(spec)
    start = start.start_ema() if ema else start
    checkpoints = Checkpoints(str(tmp_path))
    for step in (1, 2, 3):
        checkpoints.save(step, taken(spec, start, 0, step), rmse=float(step))
    checkpoints.finish(keep_optimizer=True)
    checkpoints.close()
    target = tiny.state(spec, seed=1)
    target = target.start_ema() if ema else target
    restored = Checkpoints(str(tmp_path)).restore_state(target)
    expected = taken(spec, start, 0, 6)
    actual = taken(spec, restored, 3, 6)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_without_optimizer_state_the_schedule_goes_on_and_adam_starts_anew(
    tmp_path, ema
):
    spec = adam_spec(ema=ema)
    start = tiny.state(spec)
    start = start.start_ema() if ema else start
    trained = taken(spec, start, 0, 3)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(3, trained)
    checkpoints.finish(keep_optimizer=False)
    checkpoints.close()
    restored = Checkpoints(str(tmp_path)).restore_state(start)
    assert restored is not None and int(restored.step) == 3
    jax.tree.map(
        np.testing.assert_array_equal, restored.network, dict(trained.variables)
    )
    if ema:
        jax.tree.map(np.testing.assert_array_equal, restored.average, trained.average)
    kinds = (optax.ScaleByAdamState, optax.ScaleByScheduleState)
    states = jax.tree.leaves(restored.opt_state, is_leaf=lambda x: isinstance(x, kinds))
    counts = {type(x): int(np.asarray(x.count)) for x in states if isinstance(x, kinds)}
    assert counts == {optax.ScaleByAdamState: 0, optax.ScaleByScheduleState: 3}
    assert int(taken(spec, restored, 3, 4).step) == 4


def test_hosts_that_save_nothing_delete_nothing(tmp_path):
    save(tmp_path, (1, None), (2, None))
    checkpoints = NullCheckpoints(str(tmp_path))
    checkpoints.save(3, numbered(3), optimizer=False)
    checkpoints.finish(keep_optimizer=False)
    assert checkpoints.remove_optimizer([1, 2]) == 0
    assert with_optimizer(tmp_path) == [1, 2]
