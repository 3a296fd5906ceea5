"""The training state as a GPU holds it: the same values, the same steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn

from jaxdepth.training import device_state
from jaxdepth.training.optimizer import OPTIMIZERS as RULES
from jaxdepth.training.optimizer import make_optimizer
from jaxdepth.training.state import TrainState
from jaxdepth.training.step import global_norm, train_step

OPTIMIZERS = {
    "adam": {"optimizer": "adam", "weight_decay": 0.1, "decay": "kernels"},
    "sgd, all decayed": {"optimizer": "sgd", "weight_decay": 0.1, "decay": "all"},
    "clipped": {"optimizer": "adamw", "clip_norm": 0.1},
    "slow encoder": {"optimizer": "adam", "encoder_lr_factor": 0.1},
    "slow encoder and stem": {
        "optimizer": "adamw",
        "encoder_lr_factor": 0.5,
        "stage_lr_decay": 0.1,
        "clip_norm": 0.1,
    },
    "frozen encoder": {"optimizer": "adam", "freeze": "encoder", "clip_norm": 0.1},
}


# Optimizers that do not update each entry by itself, as a plugin registers them.
PER_PARAMETER = {
    "lamb": lambda l2, descend: optax.chain(
        optax.scale_by_adam(), l2, optax.scale_by_trust_ratio(), descend
    ),
    "lars": lambda l2, descend: optax.chain(
        l2, optax.scale_by_trust_ratio(), descend, optax.trace(decay=0.9)
    ),
    "adafactor": lambda l2, descend: optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=2), l2, descend
    ),
}


class OwnParameters(nn.Module):
    """A network with parameters at the top level and modules of many kinds."""

    @nn.compact
    def __call__(self, image, train=False, keys=None):
        scale = self.param("scale", nn.initializers.ones, (3,), jnp.float32)
        self.param("kernel", nn.initializers.ones, (1, 1, 1, 3), jnp.float32)
        x = nn.Conv(4, (3, 3), name="encoder")(image * scale[None, None, None])
        rows = nn.Conv(4, (3,), name="rows")(x)
        volumes = nn.Conv(4, (3, 3, 3), name="rest")(x[:, None])[:, 0]
        x = nn.ConvTranspose(4, (2, 2), name="up_main")(rows + volumes)
        x = nn.MultiHeadDotProductAttention(2, name="attention")(x[:, ::8, ::8])
        return 2 + nn.Dense(1, name="head")(nn.LayerNorm(name="norm")(x))[..., 0]


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
def test_by_name_is_the_inverse_of_arrange(optimizer, ema):
    state = random_state(spec_of(optimizer), ema=ema)
    arranged = device_state.arrange(state)
    assert device_state.is_arranged(arranged.params)
    assert not device_state.is_arranged(state.params)
    assert_equal(device_state.by_name(arranged), state, rtol=0)
    assert_equal(device_state.by_name(arranged.params), state.params, rtol=0)
    # Also of arrays on devices, and of shapes.
    traced = jax.jit(device_state.by_name)(jax.jit(device_state.arrange)(state))
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
    decoder = device_state.arrange(state).params["decoder"].arrays
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
    assert_equal(device_state.by_name(got), expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    "optimizer", [k for k, v in OPTIMIZERS.items() if "stage_lr_decay" not in v]
)
def test_a_network_may_have_parameters_of_its_own_at_the_top_level(optimizer):
    spec = dataclasses.replace(spec_of(optimizer), model=OwnParameters())
    state = tiny.state(spec)
    arranged = device_state.arrange(state)
    assert device_state.is_arranged(arranged.params)
    for name in ("scale", "kernel"):
        assert arranged.params[name] is state.params[name]
    assert_equal(device_state.by_name(arranged), state, rtol=0)
    step = jax.jit(functools.partial(train_step, spec))
    expected, logs = step(state, tiny.batch(4))
    got, got_logs = step(arranged, tiny.batch(4))
    assert_equal(got_logs, logs, rtol=1e-5)
    assert_equal(device_state.by_name(got), expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("modules", [("encoder", "rest"), ("encoder", "head")])
def test_modules_may_have_the_names_of_groups_of_parameters(modules):
    """Optax keeps the states of the groups "encoder" and "rest" in a dict, too."""
    params = {k: {"bias": np.arange(3, dtype=np.float32)} for k in modules}
    rule = make_optimizer(freeze="encoder")
    state = TrainState(0, params, {}, rule.init(params))
    arranged = device_state.arrange(state)
    trees = arranged.params, arranged.opt_state.inner_states["rest"].inner_state[1].mu
    for tree in trees:
        assert set(map(type, tree.values())) == {device_state.Arranged}
    assert_equal(device_state.by_name(arranged), state, rtol=0)


def test_factors_of_parameters_are_those_of_their_paths():
    params = tiny.state(spec_of()).params
    state = TrainState(0, params, {}, optax.EmptyState())

    def factor(path):
        return 3.0 if path[-1] == "scale" else 1.0 / len("/".join(path))

    expected = jax.tree_util.tree_map_with_path(
        lambda path, x: x * np.float32(factor(tuple(p.key for p in path))), params
    )
    got = device_state.scale_by_path(params, factor)
    assert_equal(got, expected, rtol=1e-6)
    arranged = device_state.scale_by_path(device_state.arrange(state).params, factor)
    assert device_state.is_arranged(arranged)
    assert_equal(device_state.by_name(arranged), expected, rtol=1e-6)
    for module in ("encoder", "decoder"):
        names = device_state.children(device_state.arrange(state).params[module])
        assert names == device_state.children(params[module]) == set(params[module])


def test_dtypes_shapes_and_empty_modules_are_kept():
    rng = np.random.default_rng(0)
    params = {
        "mixed": {
            "half": rng.normal(size=3).astype(jnp.bfloat16),
            "count": np.arange(4, dtype=np.int32),
            "kernel": {"scale": rng.normal(size=(2, 3)).astype(np.float32)},
            "nested": {"deep": {"bias": np.array(rng.normal(), np.float32)}},
        },
        "empty": {},
        "empty inside": {"a": {}, "bias": np.ones(2, np.float32)},
        "scalar": np.array(3, np.float32),
    }
    state = TrainState(0, params, {}, optax.EmptyState(), {"params": params})
    arranged = device_state.arrange(state)
    mixed = arranged.params["mixed"]
    assert mixed.vectors.shape == (7,)
    assert mixed.vectors.dtype == np.float32
    got = device_state.by_name(arranged)
    assert_equal(got, state, rtol=0)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(state), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.shape(x) == np.shape(y)


@pytest.mark.parametrize("name", PER_PARAMETER)
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"encoder_lr_factor": 0.1, "stage_lr_decay": 0.5},
        {"clip_norm": 0.1},
    ],
)
def test_an_optimizer_that_is_not_per_entry_receives_parameters_by_name(name, flags):
    RULES.register(name, PER_PARAMETER[name])
    try:
        rule = make_optimizer(optimizer=name, rate=0.01, weight_decay=0.1, **flags)
    finally:
        RULES.unregister(name)
    spec = tiny.spec("upproj", optimizer=rule)
    # Not from the initial state, whose vectors are all 0 or all 1.
    state = random_state(spec)
    step = jax.jit(functools.partial(train_step, spec))
    arranged = device_state.arrange(state)
    assert_equal(device_state.by_name(arranged), state, rtol=0)
    expected, _ = step(state, tiny.batch(4))
    got, _ = step(arranged, tiny.batch(4))
    assert device_state.is_arranged(got.params)
    got = device_state.by_name(got)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    # The updates, which are small beside the parameters.
    changes = [
        jax.tree.map(lambda a, b: a - b, new.params, state.params)
        for new in (got, expected)
    ]
    assert_equal(*changes, rtol=1e-3, atol=1e-6)


def test_a_skipped_step_leaves_an_arranged_state():
    spec = spec_of(on_nan="skip")
    state = device_state.arrange(tiny.state(spec))
    kernels = state.params["head"].arrays["conv"] | {
        "kernel": state.params["head"].arrays["conv"]["kernel"] * np.nan
    }
    head = dataclasses.replace(state.params["head"], arrays={"conv": kernels})
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
