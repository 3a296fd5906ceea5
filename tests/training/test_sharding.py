"""One step on one device and on eight, under jit and under pmap: the same numbers."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
import tiny

from jaxdepth.data.store.reader import Store
from jaxdepth.ops import platform
from jaxdepth.runtime.errors import UserError
from jaxdepth.training import device_cache, device_state
from jaxdepth.training import step as step_lib
from jaxdepth.training.optimizer import make_optimizer
from jaxdepth.training.sharding import AXIS, Placement, batch_spec
from jaxdepth.training.step import train_step, train_step_on_table

BATCH = 16
# Two images on each of eight devices: the first two devices see no truth at all, the
# sixth sees it on one of its images.
EMPTY = (0, 1, 2, 3, 11)
CASES = {
    "upproj": {"arch": "upproj", "loss": "si"},
    "upproj with skips": {"arch": "upproj", "loss": "l1", "skips": True},
    "cnn": {
        "arch": "cnn",
        "loss": "berhu",
        "berhu_scope": "batch",
        "augment": "full",
        "dropout": 0.3,
    },
}


def relative(got, expected):
    """The largest relative error of any array, in the norm of that array."""
    return max(
        jax.tree.leaves(
            jax.tree.map(
                lambda a, b: float(
                    np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b))
                    / (np.linalg.norm(np.asarray(b, np.float64)) + 1e-30)
                ),
                got,
                expected,
            )
        )
    )


def host(tree):
    return jax.tree.map(np.asarray, tree)


def batches():
    return [tiny.batch(BATCH, seed=k, empty=EMPTY) for k in range(10)]


def walk(step, placement, state, data):
    """(logs, gradient, statistics) of each step, and the last state."""
    placed, seen = placement.place_state(state), []
    for batch in data:
        placed, logs = step(placed, placement.place_batch(batch))
        seen.append(step_values(placement.one(placed), placement.one(logs)))
    return seen, placement.one(placed)


def step_values(state, logs):
    return host((logs, state.opt_state[0], state.batch_stats))


@pytest.fixture(scope="module", params=CASES)
def alone(request):
    """(options, fresh state, ten steps on one device without any axis)."""
    options = CASES[request.param]
    spec = tiny.spec(**options)
    state = tiny.state(spec)
    step = jax.jit(functools.partial(train_step, spec))
    after, seen = state, []
    for batch in batches():
        after, logs = step(after, batch)
        seen.append(step_values(after, logs))
    return options, state, seen


@pytest.fixture(scope="module", params=["jit", "pmap"])
def together(request, alone):
    """Ten steps on eight devices."""
    options, state, _ = alone
    spec = tiny.spec(**options, bn_axis=AXIS, axis_name=AXIS)
    placement = Placement.over(request.param)
    assert len(placement.devices) == 8
    step = placement.compile(train_step, spec)
    return walk(step, placement, state, batches())


def test_one_step_is_the_same_on_eight_devices(alone, together):
    (expected, *trees), (got, *others) = alone[2][0], together[0][0]
    assert expected["images"] == got["images"] == BATCH - len(EMPTY)
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=5e-5)
    for actual, expected in zip(others, trees, strict=True):
        assert relative(actual, expected) < 5e-5


def test_ten_steps_are_the_same_on_eight_devices(alone, together):
    expected = [logs["loss"] for logs, *_ in alone[2]]
    got = [logs["loss"] for logs, *_ in together[0]]
    np.testing.assert_allclose(got, expected, rtol=5e-5)
    assert np.ptp(expected) > 0.01


def test_the_state_comes_back_in_one_copy(alone, together):
    state, last = alone[1], together[1]
    assert int(last.step) == 10
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, last)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_the_average_is_that_of_a_loop_on_eight_devices(kind):
    spec = tiny.spec(ema=0.3, bn_axis=AXIS, axis_name=AXIS)
    placement = Placement.over(kind)
    state = tiny.state(spec).start_ema()
    step = placement.compile(train_step, spec)
    placed = placement.place_state(state)
    expected = jax.tree.map(np.float64, state.network)
    for k, batch in enumerate(batches()[:5]):
        placed, _ = step(placed, placement.place_batch(batch))
        now = host(placement.one(placed))
        decay = [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3][k]
        expected = jax.tree.map(
            lambda a, x, d=decay: d * a + (1 - d) * x, expected, now.network
        )
    assert relative(now.average, expected) < 1e-6
    assert relative(now.average, now.network) > 1e-4


class Frames(Store):
    """A store of 21 frames in memory."""

    size = tiny.FRAME

    def __init__(self):
        self.all = tiny.batch(21, seed=5, empty=(4, 9))

    def gather(self, rows, *, depth):
        assert depth == "filled"
        return self.all["rgb"][rows], self.all["depth_codes"][rows]


@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize("devices", [1, 8])
def test_frames_on_the_devices_are_the_same_batches(kind, devices):
    placement = Placement.over(kind, jax.devices()[:devices])
    frames, rows = Frames(), np.array([*range(20, 3, -1), 2, 0])
    part = device_cache.reader(frames, rows, depth="filled", devices=devices)
    placed = placement.place_table(part)
    assert len(placed["rgb"].sharding.device_set) == devices
    places = np.array([18, 0, 0, 7, 3, 11, 12, 5], np.int32)  # on any device, twice

    def look(axis_name, state, batch, frames):
        actual = device_cache.gather(
            frames, batch["rows"], frame=tiny.FRAME, axis_name=axis_name
        )
        return state, jax.tree.map(
            lambda x: jax.lax.all_gather(x, axis_name, tiled=True), actual
        )

    step = placement.compile(look, AXIS, table=placed)
    state = placement.place_state({"n": np.zeros(())})
    actual = placement.one(step(state, placement.place_batch({"rows": places}))[1])
    for name, values in frames.all.items():
        if name != "position":
            np.testing.assert_array_equal(actual[name], values[rows[places]])
            assert actual[name].dtype == values.dtype


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_step_on_a_table_is_the_step_on_its_frames(kind):
    spec = tiny.spec(augment="full", bn_axis=AXIS, axis_name=AXIS)
    placement = Placement.over(kind)
    frames, rows = Frames(), np.arange(16, dtype=np.int32)[::-1].copy()
    rgb, depth_codes = frames.gather(rows, depth="filled")
    position = np.arange(16, dtype=np.int32)
    state = tiny.state(spec)
    expected, _ = walk(
        placement.compile(train_step, spec),
        placement,
        state,
        [{"rgb": rgb, "depth_codes": depth_codes, "position": position}],
    )
    part = device_cache.reader(frames, np.arange(21), depth="filled", devices=8)
    placed = placement.place_table(part)
    step = placement.compile(train_step_on_table, spec, tiny.FRAME, table=placed)
    got, _ = walk(step, placement, state, [{"rows": rows, "position": position}])
    np.testing.assert_allclose(got[0][0]["loss"], expected[0][0]["loss"], rtol=1e-6)
    assert relative(got[0][1], expected[0][1]) < 5e-5


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_a_state_arranged_for_a_gpu_gives_the_same_step(alone, kind, monkeypatch):
    options, state, seen = alone
    monkeypatch.setattr(Placement, "arranges", True)
    placement = Placement.over(kind)
    placed = placement.place_state(state)
    assert device_state.is_arranged(placed.params)
    spec = tiny.spec(**options, bn_axis=AXIS, axis_name=AXIS)
    step = placement.compile(train_step, spec)
    (got,), last = walk(step, placement, state, batches()[:1])
    assert relative(got, seen[0]) < 5e-5
    assert jax.tree.structure(last) == jax.tree.structure(state)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize("arranged", [False, True])
def test_stages_have_their_own_rates_on_eight_devices(kind, arranged, monkeypatch):
    monkeypatch.setattr(Placement, "arranges", arranged)
    rule = make_optimizer(optimizer="sgd", rate=0.1, stage_lr_decay=0.25)
    spec = tiny.spec(
        "upproj",
        optimizer=optax.chain(tiny.keep_gradient(), rule),
        bn_axis=AXIS,
        axis_name=AXIS,
    )
    # Gradients of residual branches are not 0.
    state = jax.tree.map(
        lambda x: x + np.float32(0.1) if x.dtype == np.float32 else x, tiny.state(spec)
    )
    placement = Placement.over(kind)
    step = placement.compile(train_step, spec)
    _, last = walk(step, placement, state, batches()[:1])
    gradient = host(last.opt_state[0])
    assert np.abs(gradient["encoder"]["conv_init"]["kernel"]).max() > 1e-6

    def expected(path, before, g):
        names = [key.key for key in path]
        # The encoder has one stage.
        stem = names[0] == "encoder" and names[1] in ("conv_init", "bn_init")
        # The momentum starts at 0.1, as all other arrays.
        return before - 0.1 * (0.25 if stem else 1.0) * (g + 0.9 * np.float32(0.1))

    wanted = jax.tree_util.tree_map_with_path(expected, state.params, gradient)
    assert relative(last.params, wanted) < 1e-6


@pytest.fixture(scope="module")
def local():
    """One step with batch statistics per device."""
    spec = tiny.spec(loss="berhu", axis_name=AXIS, bn_axis=None)
    state, batch = tiny.state(spec), tiny.batch(BATCH, empty=EMPTY)
    placement = Placement.over("jit")
    step = placement.compile(train_step, spec)
    return state, batch, walk(step, placement, state, [batch])[0][0]


def test_local_statistics_are_those_of_each_device(local):
    state, batch, (logs, grads, stats) = local
    alone = jax.jit(functools.partial(step_lib.gradients, tiny.spec(loss="berhu")))
    parts = []
    for k in range(8):
        part = {name: x[2 * k : 2 * k + 2] for name, x in batch.items()}
        parts.append(host(alone(state, part)))
    images = np.array([n for _, _, n, _ in parts], np.float64)
    share = images / images.sum()
    assert images.tolist() == [0, 0, 2, 2, 2, 1, 2, 2]

    def mean(weights, trees):
        return jax.tree.map(
            lambda *xs: sum(w * x for w, x in zip(weights, xs, strict=True)), *trees
        )

    assert relative(grads, mean(share, [g for g, *_ in parts])) < 5e-5
    np.testing.assert_allclose(
        logs["loss"], sum(share * [loss for _, loss, *_ in parts]), rtol=5e-5
    )
    assert relative(stats, mean([1 / 8] * 8, [s for *_, s in parts])) < 5e-5


def test_local_statistics_are_not_the_global_ones(local):
    state, batch, (_, got, _) = local
    together = jax.jit(functools.partial(step_lib.gradients, tiny.spec(loss="berhu")))
    grads, *_ = host(together(state, batch))
    assert relative(got, grads) > 1e-2


def in_groups(batch, group, *, accumulate):
    """Each group's part of a batch on eight devices, microbatch after microbatch."""

    def split(x):  # (groups, devices, microbatches, images)
        parts = x.reshape(8 // group, group, accumulate, -1, *x.shape[1:])
        return parts.swapaxes(1, 2).reshape(8 // group, -1, *x.shape[1:])

    parts = {name: split(x) for name, x in batch.items()}
    return [{k: v[n] for k, v in parts.items()} for n in range(8 // group)]


def literal_groups(spec, state, batch, group):
    """(loss, gradient, statistics): each group is a global batch on one device."""
    accumulate = spec.config.train.accumulate
    alone = jax.jit(functools.partial(step_lib.gradients, spec))
    parts = in_groups(batch, group, accumulate=accumulate)
    grads, losses, images, stats = zip(
        *(host(alone(state, part)) for part in parts), strict=True
    )
    share = np.array(images, np.float64) / sum(images)

    def mean(weights, trees):
        return jax.tree.map(
            lambda *xs: sum(w * x for w, x in zip(weights, xs, strict=True)), *trees
        )

    equal = [1 / len(parts)] * len(parts)
    return sum(share * losses), mean(share, grads), mean(equal, stats)


GROUPED = [
    (kind, group, accumulate)
    for kind in ("jit", "pmap")
    for group, accumulate in ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2))
]


def grouped_step(kind, bn, state, batch, **options):
    """Loss, gradient and statistics of a step on eight devices."""
    placement = Placement.over(kind)
    axis, groups = placement.statistics(bn)
    spec = tiny.spec(bn_axis=axis, bn_groups=groups, axis_name=AXIS, **options)
    step = placement.compile(train_step, spec)
    ((logs, grads, stats),), _ = walk(step, placement, state, [batch])
    return logs["loss"], grads, stats


@pytest.mark.parametrize(("kind", "group", "accumulate"), GROUPED)
def test_each_group_of_devices_is_a_global_batch(kind, group, accumulate):
    options = {"accumulate": accumulate}
    spec = tiny.spec(**options)
    state, batch = tiny.state(spec), tiny.batch(BATCH * accumulate, empty=EMPTY)
    loss, *expected = literal_groups(spec, state, batch, group)
    got_loss, *got = grouped_step(kind, f"group:{group}", state, batch, **options)
    np.testing.assert_allclose(got_loss, loss, rtol=5e-5)
    for actual, trees in zip(got, expected, strict=True):
        assert relative(actual, trees) < 5e-5
    # The next larger groups give other gradients.
    _, others, _ = literal_groups(spec, state, batch, 2 * group if group < 8 else 1)
    assert relative(got[0], others) > 1e-3


@pytest.mark.parametrize("kind", ["jit", "pmap"])
@pytest.mark.parametrize(("bn", "same"), [("group:1", "local"), ("group:8", "global")])
def test_extreme_groups_are_local_and_global(kind, bn, same):
    spec = tiny.spec()
    state, batch = tiny.state(spec), tiny.batch(BATCH, empty=EMPTY)
    got, expected = (grouped_step(kind, name, state, batch) for name in (bn, same))
    for actual, value in zip(got, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, actual, value)


def test_folded_normalisations_have_groups():
    # On TPU, a widening 1x1 convolution and its normalisation are one operation.
    options = {"arch": "upproj", "loss": "mse"}
    spec = tiny.spec(**options)
    state, batch = tiny.state(spec), tiny.batch(BATCH, empty=EMPTY)
    # The last scale of a block starts at zero, which would hide its statistics.
    state = dataclasses.replace(
        state, params=jax.tree.map(lambda x: x + np.float32(0.1), state.params)
    )
    loss, *expected = literal_groups(spec, state, batch, 4)
    with platform.compiling_for("tpu"):
        got_loss, *got = grouped_step("jit", "group:4", state, batch, **options)
    np.testing.assert_allclose(got_loss, loss, rtol=5e-5)
    for actual, trees in zip(got, expected, strict=True):
        assert relative(actual, trees) < 1e-3
    _, others, _ = literal_groups(spec, state, batch, 8)
    assert relative(got[0], others) > 1e-2


def test_groups_are_consecutive_devices():
    placement = Placement.over("jit")
    pairs = ((0, 1), (2, 3), (4, 5), (6, 7))
    assert placement.statistics("group:2") == (AXIS, pairs)
    assert placement.statistics("group:4") == (AXIS, ((0, 1, 2, 3), (4, 5, 6, 7)))
    for bn in ("group:8", "global"):
        assert placement.statistics(bn) == (AXIS, None)
    for bn in ("group:1", "local"):
        assert placement.statistics(bn) == (None, None)
    alone = Placement.over("jit", jax.devices()[:1])
    for bn in ("group:4", "local"):
        assert alone.statistics(bn) == (None, None)
    with pytest.raises(UserError, match=r"--bn=group:3: 8 devices .* use a divisor of"):
        placement.statistics("group:3")
    with pytest.raises(UserError, match="--bn=group:16: 8 devices are not divisible"):
        placement.statistics("group:16")


def test_one_device_through_a_mesh():
    spec = tiny.spec(dropout=0.3, bn_axis=AXIS, axis_name=AXIS)
    placement = Placement.over("jit", jax.devices()[:1])
    state, batch = tiny.state(spec), tiny.batch(4, empty=(0, 1))
    step = placement.compile(train_step, spec)
    ((logs, grads, _),), _ = walk(step, placement, state, [batch])
    alone = dataclasses.replace(spec, model=tiny.model(dropout=0.3), axis_name=None)
    after, expected = jax.jit(functools.partial(train_step, alone))(state, batch)
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=5e-5)
    assert relative(grads, host(after.opt_state[0])) < 5e-5


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_what_is_placed_comes_back(kind):
    placement = Placement.over(kind)
    state = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3), "n": np.int32(7)}
    placed = placement.place_state(state)
    for leaf in jax.tree.leaves(placed):
        assert len(leaf.sharding.device_set) == 8
    back = placement.one(placed)
    np.testing.assert_array_equal(back["a"], state["a"])
    assert back["n"] == 7 and back["n"].shape == ()
    batch = tiny.batch(BATCH)
    placed_batch = placement.place_batch(batch)
    for name, values in batch.items():
        shards = sorted(
            placed_batch[name].addressable_shards, key=lambda s: s.device.id
        )
        parts = [np.asarray(s.data).reshape(2, *values.shape[1:]) for s in shards]
        np.testing.assert_array_equal(np.concatenate(parts), values)
        assert placed_batch[name].dtype == values.dtype


def test_batches_divide_evenly_or_are_refused():
    placement = Placement.over("jit")
    placement.check_batch(16, 2)
    with pytest.raises(UserError, match="multiple of 16") as raised:
        placement.check_batch(24, 2)
    assert "--batch_size=24" in str(raised.value) and "\n" not in str(raised.value)


def test_all_devices_unless_some_are_named():
    assert Placement.over("pmap").devices == tuple(jax.devices())
    assert Placement.over("jit", jax.devices()[:3]).mesh.devices.shape == (3,)
    assert Placement.over("jit").local == jax.local_devices()


def test_the_step_is_compiled_with_the_options_of_its_devices(monkeypatch):
    refused = {"no_such_option": "1"}
    monkeypatch.setattr(platform, "compiler_options", lambda device: refused)
    run = Placement.over("jit").compile(lambda state, batch: (state, batch))
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        run(np.zeros(8, np.float32), np.zeros(8, np.float32))
    assert Placement.over("pmap").compiler_options() == {}


def test_a_step_that_compiled_ahead_compiles_once(caplog):
    spec = tiny.spec()
    placement = Placement.over("jit")
    state, batch = tiny.state(spec), tiny.batch(8)
    ahead, at_call = (placement.compile(train_step, spec) for _ in range(2))
    placed = placement.place_state(state), placement.place_batch(batch)
    jax.config.update("jax_log_compiles", True)  # `jax.log_compiles` is of one thread
    try:
        ahead.compile_ahead(
            placement.state_shapes(state), placement.shapes(batch, batch_spec(False))
        )
        assert ahead._ahead is not None
        ahead._ahead.join()
        assert "Finished XLA compilation of jit(train_step)" in caplog.text
        caplog.clear()
        result = ahead(*placed)
        assert "jit(train_step)" not in caplog.text
    finally:
        jax.config.update("jax_log_compiles", False)
    placed = placement.place_state(state), placement.place_batch(batch)
    jax.tree.map(np.testing.assert_array_equal, result, at_call(*placed))


def test_a_step_that_does_not_compile_ahead_raises_at_its_call():
    def broken(state, batch):
        raise ValueError("broken")

    placement = Placement.over("jit")
    step, one = placement.compile(broken), np.zeros(8, np.float32)
    step.compile_ahead(
        placement.state_shapes(one), placement.shapes(one, batch_spec(False))
    )
    with pytest.raises(ValueError, match="broken"):
        step(one, one)
    # Other shapes than those that were expected.
    step = placement.compile(lambda state, batch: (state, batch))
    step.compile_ahead(
        placement.state_shapes(one), placement.shapes(one, batch_spec(False))
    )
    assert step(np.ones(3, np.float32), one)[0].shape == (3,)
