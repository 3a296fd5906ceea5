"""The training state as a GPU holds it: the same values, the same steps."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny

from jaxdepth.training import device_state
from jaxdepth.training.optimizer import make_optimizer
from jaxdepth.training.step import global_norm, train_step

OPTIMIZERS = {
    "adam": {"optimizer": "adam", "weight_decay": 0.1, "decay": "kernels"},
    "sgd, all decayed": {"optimizer": "sgd", "weight_decay": 0.1, "decay": "all"},
    "clipped": {"optimizer": "adamw", "clip_norm": 0.1},
    "slow encoder": {"optimizer": "adam", "encoder_lr_factor": 0.1},
    "frozen encoder": {"optimizer": "adam", "freeze": "encoder", "clip_norm": 0.1},
}


def spec_of(optimizer="adam", **flags):
    rule = make_optimizer(rate=0.01, **OPTIMIZERS[optimizer])
    return tiny.spec("upproj", optimizer=rule, **flags)


def random_state(spec, *, ema=False):
    """A state in which all arrays are different."""
    state = tiny.state(spec)
    if ema:
        state = state.start_ema()
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.uniform(0.1, 1, np.shape(x)).astype(x.dtype), state
    )


def assert_equal(got, expected, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **tolerance), got, expected
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("ema", [False, True])
def test_restore_is_the_inverse_of_arrange(optimizer, ema):
    state = random_state(spec_of(optimizer), ema=ema)
    arranged = device_state.arrange(state)
    assert device_state.is_arranged(arranged.params)
    assert not device_state.is_arranged(state.params)
    assert_equal(device_state.restore(arranged), state, rtol=0)
    assert_equal(device_state.by_name(arranged.params), state.params, rtol=0)
    # Also of arrays on devices, and of shapes.
    traced = jax.jit(device_state.restore)(jax.jit(device_state.arrange)(state))
    assert_equal(traced, state, rtol=0)
    shapes = jax.eval_shape(device_state.arrange, state)
    assert jax.tree.map(np.shape, arranged) == jax.tree.map(np.shape, shapes)


def test_all_parameters_but_kernels_of_a_module_are_one_array():
    state = random_state(spec_of("adam"), ema=True)
    arranged = device_state.arrange(state)
    moments = arranged.opt_state[1]
    average = arranged.average
    assert average is not None
    trees = arranged.params, moments.mu, moments.nu, average["params"]
    for tree in trees:
        for name, module in tree.items():
            rest = [
                x.size
                for path, x in jax.tree.leaves_with_path(state.params[name])
                if path[-1].key != "kernel"
            ]
            assert module.vectors.shape == (sum(rest),)


def test_kernels_have_the_order_in_which_the_step_uses_them():
    state = random_state(spec_of())
    decoder = device_state.arrange(state).params["decoder"].kernels
    block = state.params["decoder"]["up1"]
    (h, w, cin, cout), kernel = block["conv"]["kernel"].shape, block["conv"]["kernel"]
    for o, y, x, i in np.ndindex(cout, h, w, cin):
        assert decoder["up1"]["conv"]["kernel"][o, y, x, i] == kernel[y, x, i, o]
    kernel = block["up_main"]["kernel"]
    h, w, cin, cout = kernel.shape
    for i, y, x, o in np.ndindex(cin, h, w, cout):
        stored = decoder["up1"]["up_main"]["kernel"][i, y, x, o]
        assert stored == kernel[h - 1 - y, w - 1 - x, i, o]


@pytest.mark.parametrize(
    "optimizer, flags",
    [
        *((name, {}) for name in OPTIMIZERS),
        ("adam", {"ema": 0.9, "accumulate": 2}),
        ("adam", {"ema": 0.9, "on_nan": "skip"}),
    ],
)
def test_steps_on_an_arranged_state_are_the_same(optimizer, flags):
    spec = spec_of(optimizer, **flags)
    state = tiny.state(spec)
    if "ema" in flags:
        state = state.start_ema()
    step = jax.jit(functools.partial(train_step, spec))
    expected, got = state, device_state.arrange(state)
    for seed in range(2):
        batch = tiny.batch(4, seed=seed)
        expected, logs = step(expected, batch)
        got, got_logs = step(got, batch)
        assert_equal(got_logs, logs, rtol=1e-5)
    # Adam's first steps amplify rounding where gradients are close to zero.
    assert_equal(device_state.restore(got), expected, rtol=1e-3, atol=2e-5)


def test_a_skipped_step_leaves_an_arranged_state():
    spec = spec_of(on_nan="skip")
    state = device_state.arrange(tiny.state(spec))
    kernels = state.params["head"].kernels["conv"] | {
        "kernel": state.params["head"].kernels["conv"]["kernel"] * np.nan
    }
    head = dataclasses.replace(state.params["head"], kernels={"conv": kernels})
    state = dataclasses.replace(state, params=state.params | {"head": head})
    new, logs = jax.jit(functools.partial(train_step, spec))(state, tiny.batch(4))
    assert logs["skipped"] == 1
    assert_equal(new.params, state.params, rtol=0)


def test_the_norm_is_that_of_all_entries():
    state = random_state(spec_of())
    leaves = jax.tree.leaves(state.params)
    expected = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in leaves))
    arranged = device_state.arrange(state)
    for params in (state.params, arranged.params):
        np.testing.assert_allclose(global_norm(params), expected, rtol=1e-6)
