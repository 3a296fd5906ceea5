"""The training step against a loss written out, and what it leaves alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from jaxdepth import models
from jaxdepth.training import augment
from jaxdepth.training import step as step_lib
from jaxdepth.training.optimizer import make_optimizer
from jaxdepth.training.step import (
    init_state,
    to_training_frame,
    train_step,
    valid_depth,
    validation_sums,
)

MEAN = np.array([123.675, 116.28, 103.53])
DEVIATION = np.array([58.395, 57.12, 57.375])


def gradients(spec, state, batch):
    return jax.jit(functools.partial(step_lib.gradients, spec))(state, batch)


def take_step(spec, state, batch):
    return jax.jit(functools.partial(train_step, spec))(state, batch)


def same(a, b) -> bool:
    """Whether two trees hold the same bits."""
    equal = jax.tree.map(
        lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b
    )
    return all(jax.tree.leaves(equal))


def close(got, expected, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) + 1e-12


def overlaps(n_in: int, n_out: int) -> np.ndarray:
    """How much of each input cell (columns) lies in each output cell (rows)."""
    weights = np.zeros((n_out, n_in))
    for i in range(n_out):
        for j in range(n_in):
            low, high = i * n_in / n_out, (i + 1) * n_in / n_out
            weights[i, j] = max(0.0, min(high, j + 1) - max(low, j))
    return weights


def targets(depth_codes, shape):
    """Truth at the network's output: the mean over the valid part of each cell."""
    metres = depth_codes.astype(np.float64) / 1000
    valid = (metres > 0) & (metres <= 10)
    rows, columns = (
        overlaps(metres.shape[1], shape[0]),
        overlaps(metres.shape[2], shape[1]),
    )
    area = np.einsum("ih,bhw,jw->bij", rows, valid, columns)
    total = np.einsum("ih,bhw,jw->bij", rows, np.where(valid, metres, 0), columns)
    return total / np.maximum(area, 1e-12), area > 1e-9


def plain_loss(model, params, batch_stats, batch, train=True):
    """Mean over images with truth of the mean squared error, the way one writes it."""
    crop = batch["rgb"][:, 0:19, 1:39]  # the centre of 20x40: (1, 2) // 2 cut off
    image = jnp.asarray((crop - MEAN) / DEVIATION, jnp.float32)
    pred, _ = model.apply(
        {"params": params, "batch_stats": batch_stats},
        image,
        train=train,
        mutable=["batch_stats"],
    )
    truth, valid = targets(batch["depth_codes"][:, 0:19, 1:39], pred.shape[1:])
    losses = []
    for k in range(len(truth)):
        if valid[k].any():
            squares = (pred[k] - truth[k].astype(np.float32)) ** 2
            losses.append((squares * valid[k]).sum() / valid[k].sum())
    return sum(losses) / len(losses)


def test_gradients_are_those_of_the_loss_written_out():
    spec = tiny.spec()
    state, batch = tiny.state(spec), tiny.batch(4, empty=(2,))
    loss = functools.partial(
        plain_loss, spec.model, batch_stats=state.batch_stats, batch=batch
    )
    expected, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    got, loss, images, _ = gradients(spec, state, batch)
    assert images == 3
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    close(got, grads)


def test_validation_takes_the_same_loss_with_running_statistics():
    spec = tiny.spec(augment="full")
    state, batch = tiny.state(spec), tiny.batch(4, empty=(2,))
    state = jax.tree.map(jnp.asarray, state)
    expected, training = (
        jax.jit(functools.partial(plain_loss, spec.model, batch=batch, train=train))(
            state.params, state.batch_stats
        )
        for train in (False, True)
    )
    total, images = jax.jit(functools.partial(validation_sums, spec))(
        state.variables, batch
    )
    assert images == 3
    np.testing.assert_allclose(total / images, expected, rtol=1e-5)
    assert abs(total / images - training) > 1e-4  # tells the two apart


def test_truth_beyond_max_depth_is_no_truth():
    spec = tiny.spec()
    state, batch = tiny.state(spec), tiny.batch(4)
    beyond = batch["depth_codes"] > 10_000
    assert beyond.any()
    cut = batch | {
        "depth_codes": np.where(beyond, 0, batch["depth_codes"]).astype(np.uint16)
    }
    assert same(gradients(spec, state, batch), gradients(spec, state, cut))
    farther = gradients(tiny.changed(spec, max_depth=30.0), state, batch)
    assert farther[1] > 2 * gradients(spec, state, batch)[1]


def test_valid_depth_at_its_edges():
    depth = jnp.array([[[0.0, 1e-3, 10.0, 10.001, np.nan, np.inf, -1.0]]])
    valid = valid_depth(depth, max_depth=10.0)
    assert valid[0, 0].tolist() == [False, True, True, False, False, False, False]


def test_frames_of_the_store_are_shrunk_to_the_training_frame():
    batch = tiny.batch(3, frame=(30, 50), empty=(1,))
    rgb, depth = to_training_frame(batch["rgb"], batch["depth_codes"], (20, 40))
    rows, columns = overlaps(30, 20) / 1.5, overlaps(50, 40) / 1.25
    colours = np.einsum("ih,bhwc,jw->bijc", rows, batch["rgb"].astype(float), columns)
    assert rgb.dtype == np.uint8 and np.abs(rgb - colours).max() <= 0.501
    area = np.einsum("ih,bhw,jw->bij", rows, batch["depth_codes"] > 0, columns)
    total = np.einsum(
        "ih,bhw,jw->bij", rows, batch["depth_codes"].astype(float), columns
    )
    expected = total / np.maximum(area, 1e-12)
    assert depth.dtype == np.uint16 and np.abs(depth - expected).max() <= 0.51
    assert not np.asarray(depth)[area == 0].any()
    again = to_training_frame(rgb, depth, (20, 40))
    assert again[0] is rgb and again[1] is depth


def test_depth_beyond_the_limit_is_removed_before_frames_are_shrunk():
    batch = tiny.batch(2, frame=(30, 50))
    depth = batch["depth_codes"] // 2 + 500
    far = np.where(depth > 4000, 0, depth).astype(np.uint16)
    limited = to_training_frame(batch["rgb"], depth, (20, 40), max_depth=4.0)[1]
    np.testing.assert_array_equal(
        limited, to_training_frame(batch["rgb"], far, (20, 40))[1]
    )
    unlimited = to_training_frame(batch["rgb"], depth, (20, 40))[1]
    assert np.asarray(limited != unlimited).any()


def in_units(batch, unit):
    """The batch with depth in steps of 1/8 m, which both units hold exactly."""
    eighths = np.minimum(batch["depth_codes"] // 125, 8191)
    codes = eighths.astype(np.uint32) * (unit // 8)
    return batch | {"depth_codes": codes.astype(np.uint16)}


@pytest.mark.parametrize("augment", ["none", "flip", "full"])
def test_the_step_does_not_depend_on_the_unit_of_the_store(augment):
    batch = tiny.batch(4)
    mm = tiny.spec(augment=augment)
    state = tiny.state(mm)
    other = dataclasses.replace(mm, depth_unit=256)
    expected = gradients(mm, state, in_units(batch, 1000))[0]
    close(gradients(other, state, in_units(batch, 256))[0], expected, 1e-4)
    wrong = gradients(mm, state, in_units(batch, 256))[0]
    with pytest.raises(AssertionError):
        close(wrong, expected, 1e-2)
    variables = jax.tree.map(jnp.asarray, state).variables
    loss, far = (
        jax.jit(functools.partial(validation_sums, spec))(
            variables, in_units(batch, spec.depth_unit)
        )
        for spec in (mm, other)
    )
    np.testing.assert_allclose(loss, far, rtol=1e-5)


def test_depth_beyond_65_metres_is_ground_truth():
    spec = dataclasses.replace(tiny.spec(max_depth=80.0), depth_unit=256)
    state, batch = tiny.state(spec), tiny.batch(2)
    at = [
        gradients(
            spec, state, batch | {"depth_codes": np.full_like(batch["depth_codes"], k)}
        )
        for k in (80 * 256, 80 * 256 + 1)
    ]
    assert at[0][1] > 70**2 and at[0][2] == 2  # mean squared error of 80 m
    assert at[1][2] == 0


@pytest.mark.parametrize(("unit", "last"), [(1000, 4000), (256, 1024)])
def test_the_limit_of_shrunk_frames_is_in_codes(unit, last):
    depth = np.full((1, 40, 80), last, np.uint16)
    depth[:, ::2] += 1
    rgb = np.zeros((*depth.shape, 3), np.uint8)
    small = to_training_frame(rgb, depth, (20, 40), max_depth=4.0, depth_unit=unit)[1]
    assert (np.asarray(small) == last).all()


def test_a_batch_without_any_truth_moves_nothing():
    spec = tiny.spec(loss="si")
    state, batch = tiny.state(spec), tiny.batch(2, empty=(0, 1))
    new, logs = take_step(spec, state, batch)
    assert (logs["loss"], logs["grad_norm"], logs["images"]) == (0, 0, 0)
    assert logs["skipped"] == 0 and new.step == 1
    assert same(new.params, state.params)


def test_an_image_without_truth_adds_nothing_to_the_gradient():
    # Without batch statistics, images do not see each other at all.
    spec = tiny.spec(loss="berhu", freeze="bn_stats")
    state, batch = tiny.state(spec), tiny.batch(4, empty=(3,))
    first = {name: x[:3] for name, x in batch.items()}
    got, expected = gradients(spec, state, batch), gradients(spec, state, first)
    close(got, expected)


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_one_after_another_add_up(parts):
    # One part has no truth at all, another one image of two.
    spec = tiny.spec(loss="si", freeze="bn_stats", augment="none", dropout=0.5)
    state, batch = tiny.state(spec), tiny.batch(8, empty=(0, 1, 2))
    split = tiny.changed(spec, accumulate=parts)
    close(gradients(split, state, batch), gradients(spec, state, batch))


def test_parts_have_batch_statistics_of_their_own():
    spec = tiny.spec(loss="mse")
    state, batch = tiny.state(spec), tiny.batch(8, empty=(0, 1, 2))
    halves = [
        {k: x[:4] for k, x in batch.items()},
        {k: x[4:] for k, x in batch.items()},
    ]
    first = gradients(spec, state, halves[0])
    # The running statistics go from one part to the next.
    second = gradients(spec, state.replace(batch_stats=first[3]), halves[1])
    got = gradients(tiny.changed(spec, accumulate=2), state, batch)
    mean = jax.tree.map(lambda a, b: (1 * a + 4 * b) / 5, first[:2], second[:2])
    close(got[:2], mean)
    assert got[2] == 5
    close(got[3], second[3])


def test_dropout_and_augmentation_follow_seed_step_and_place():
    spec = tiny.spec(augment="full", dropout=0.5, freeze="bn_stats")
    state, batch = tiny.state(spec), tiny.batch(2)
    step = jax.jit(functools.partial(step_lib.gradients, spec))
    loss = step(state, batch)[1]
    assert loss == step(state, batch)[1]
    others = [
        step(state.replace(step=np.int32(1)), batch)[1],
        step(state, batch | {"position": np.array([0, 2], np.int32)})[1],
    ]
    assert len({float(x) for x in [loss, *others]}) == 3
    # The images swapped together with their places: the same sum.
    swapped = {name: x[::-1] for name, x in batch.items()}
    np.testing.assert_allclose(step(state, swapped)[1], loss, rtol=1e-5)


def test_keys_are_those_written_down():
    keys = augment.example_keys(3, 5, jnp.arange(4))
    for place in range(4):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 5), place)
        assert (jax.random.key_data(keys[place]) == jax.random.key_data(key)).all()


def broken(state):
    """The state with one weight that is not a number."""
    bias = np.full_like(state.params["head"]["bias"], np.nan)
    head = state.params["head"] | {"bias": bias}
    return state.replace(params=state.params | {"head": head})


def test_a_step_that_is_not_finite_can_be_skipped():
    spec = tiny.spec(on_nan="skip")
    state, batch = broken(tiny.state(spec)), tiny.batch(2)
    new, logs = take_step(spec, state, batch)
    assert logs["skipped"] == 1 and np.isnan(logs["loss"])
    assert new.step == 1
    assert same(new.replace(step=state.step), state)


def test_a_skipped_step_moves_on_in_the_schedule_and_nowhere_else():
    rate = optax.scale_by_learning_rate(lambda step: 1.0 / (1 + step))
    spec = dataclasses.replace(
        tiny.spec(on_nan="skip"),
        optimizer=optax.chain(optax.scale_by_adam(), rate),
    )
    state = broken(tiny.state(spec))
    new, _ = take_step(spec, state, tiny.batch(2))
    adam, schedule = new.opt_state
    assert same(adam, state.opt_state[0]) and adam.count == 0
    assert schedule.count == 1


def test_a_step_that_is_not_finite_is_told():
    spec = tiny.spec()
    state, batch = broken(tiny.state(spec)), tiny.batch(2)
    new, logs = take_step(spec, state, batch)
    assert logs["skipped"] == 1
    assert not same(new.params, state.params)


def test_finite_steps_are_not_skipped():
    spec = tiny.spec(on_nan="skip")
    state, batch = tiny.state(spec), tiny.batch(2)
    new, logs = take_step(spec, state, batch)
    usual, _ = take_step(tiny.spec(), state, batch)
    assert logs["skipped"] == 0
    close(new, usual, 1e-6)


def test_a_skipped_step_leaves_the_average():
    spec = tiny.spec(on_nan="skip", ema=0.5)
    state, batch = broken(tiny.state(spec)).start_ema(), tiny.batch(2)
    new, logs = take_step(spec, state, batch)
    assert logs["skipped"] == 1 and same(new.average, state.average)


def test_an_average_changes_nothing_of_the_training():
    spec = tiny.spec(ema=0.5)
    state, batch = tiny.state(spec), tiny.batch(2)
    new, _ = take_step(spec, state.start_ema(), batch)
    usual, _ = take_step(tiny.spec(), state, batch)
    assert usual.average is None and usual.variables == usual.network
    assert same(new.replace(average=None), usual)


@pytest.mark.parametrize("freeze", ["encoder", "bn_stats"])
def test_what_is_frozen_stays(freeze):
    optimizer = make_optimizer(
        optimizer="adam", rate=0.1, weight_decay=0.1, freeze=freeze
    )
    spec = tiny.spec("upproj", freeze=freeze, optimizer=optimizer)
    state = init_state(spec.model, optimizer, image_size=tiny.SIZE, seed=0)
    new, _ = take_step(spec, state, tiny.batch(4))

    def moved(name):
        before, after = getattr(state, name), getattr(new, name)
        return {k: not same(before[k], after[k]) for k in before}

    if freeze == "encoder":
        assert moved("params") == {"encoder": False, "decoder": True, "head": True}
        assert moved("batch_stats") == {"encoder": False, "decoder": True}
    else:
        assert moved("params") == {"encoder": True, "decoder": True, "head": True}
        assert moved("batch_stats") == {"encoder": False, "decoder": False}


def test_the_optimizer_gets_the_gradient():
    spec = tiny.spec(optimizer=optax.sgd(0.5))
    state, batch = tiny.state(spec), tiny.batch(4)
    grads, loss, _, stats = gradients(spec, state, batch)
    new, logs = take_step(spec, state, batch)
    close(new.params, jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads), 1e-6)
    close(new.batch_stats, stats, 1e-6)
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-6)
    norm = np.sqrt(
        sum((np.asarray(g, float) ** 2).sum() for g in jax.tree.leaves(grads))
    )
    np.testing.assert_allclose(logs["grad_norm"], norm, rtol=1e-5)


def test_statistics_move_by_a_tenth():
    spec = tiny.spec()
    state, batch = tiny.state(spec), tiny.batch(4)
    _, _, _, stats = gradients(spec, state, batch)
    image = jnp.asarray((batch["rgb"][:, 0:19, 1:39] - MEAN) / DEVIATION, jnp.float32)
    kernel = state.params["encoder"]["block1"]["conv"]["kernel"]
    features = jax.lax.conv_general_dilated(
        image,
        kernel,
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    features = np.asarray(features, np.float64)
    actual = stats["encoder"]["block1"]["bn"]
    np.testing.assert_allclose(
        actual["mean"], 0.1 * features.mean((0, 1, 2)), rtol=1e-4
    )
    variance = 0.9 + 0.1 * features.var((0, 1, 2))
    np.testing.assert_allclose(actual["var"], variance, rtol=1e-4)


def test_a_fresh_state_predicts_the_depth_it_was_given():
    model = tiny.model("upproj", init_depth=1.8)
    state = init_state(model, optax.sgd(0.1), image_size=tiny.SIZE, seed=4)
    rgb = tiny.batch(2)["rgb"].astype(np.float32)
    predict = functools.partial(models.predict, model, layout="torchvision")
    depth = jax.jit(predict)(state.variables, rgb)
    assert depth.dtype == jnp.float32
    np.testing.assert_allclose(depth, 1.8, atol=0.1)
    assert state.step == 0
