"""The optimizer against PyTorch's, schedules against numbers written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdepth.runtime.errors import UserError
from jaxdepth.training.optimizer import OPTIMIZERS, learning_rate, make_optimizer

STEPS = 10


def params(seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "encoder": {"conv": {"kernel": draw(3, 3, 2, 4)}, "bn": {"scale": draw(4)}},
        "decoder": {"up": {"kernel": draw(5, 5, 4, 2), "bias": draw(2, 2, 2)}},
        "head": {"conv": {"kernel": draw(3, 3, 2, 1), "bias": draw(1)}},
    }


def gradients(step: int):
    """Gradients of any size, other ones each step."""
    return jax.tree.map(lambda x: 0.3 * x, params(100 + step))


def run(tree, rule, steps=STEPS, gradients=gradients):
    state = rule.init(tree)
    for step in range(steps):
        updates, state = rule.update(gradients(step), state, tree)
        tree = optax.apply_updates(tree, updates)
    return tree, state


def names(tree):
    """Flat, by name."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in flat}


def staged(seed=0):
    """Parameters of a network with an encoder of a stem and three stages."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    blocks = ("stage1_block1", "stage1_block2", "stage2_block1", "stage3_block1")
    return {
        "encoder": {
            "conv_init": {"kernel": draw(3, 3, 2, 2)},
            "bn_init": {"scale": draw(2), "bias": draw(2)},
            **{b: {"conv1": {"kernel": draw(1, 1, 2, 2)}} for b in blocks},
        },
        "decoder": {"conv_in": {"kernel": draw(1, 1, 2, 2), "bias": draw(2)}},
        "head": {"bias": draw(1)},
    }


def by_torch(
    make, *, groups=None, clip=None, rate=None, params=params, gradients=gradients
):
    """Ten steps of a PyTorch optimizer on the same parameters and gradients."""
    torch = pytest.importorskip("torch", reason="needs the extra torch")
    parameters = {
        name: torch.nn.Parameter(torch.tensor(value))
        for name, value in names(params()).items()
    }
    rule = make(
        torch.optim, groups(parameters) if groups else list(parameters.values())
    )
    for step in range(STEPS):
        for name, gradient in names(gradients(step)).items():
            parameters[name].grad = torch.tensor(gradient)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        for group in rule.param_groups:
            if rate is not None:
                group["lr"] = rate(step)
        rule.step()
    return {name: p.detach().numpy() for name, p in parameters.items()}


def close(actual, expected):
    actual = names(actual)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], value, rtol=2e-5, atol=2e-6, err_msg=name
        )


RULES = {
    "adam": lambda o, p, **k: o.Adam(p, lr=0.01, **k),
    "adamw": lambda o, p, **k: o.AdamW(p, lr=0.01, **k),
    "sgd": lambda o, p, **k: o.SGD(p, lr=0.01, momentum=0.9, **k),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_equal_torch(name):
    rule = make_optimizer(optimizer=name, rate=0.01, weight_decay=0.1, decay="all")
    expected = by_torch(lambda o, p: RULES[name](o, p, weight_decay=0.1))
    close(run(params(), rule)[0], expected)


@pytest.mark.parametrize("name", RULES)
def test_decay_of_kernels_alone_equals_two_groups(name):
    # The (2,2,C) bias of an up-convolution is a bias in spite of its three axes.
    rule = make_optimizer(optimizer=name, rate=0.01, weight_decay=0.1, decay="kernels")

    def groups(held):
        kernels = [p for n, p in held.items() if "kernel" in n]
        others = [p for n, p in held.items() if "kernel" not in n]
        assert (len(kernels), len(others)) == (3, 3)
        return [
            {"params": kernels, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]

    close(run(params(), rule)[0], by_torch(RULES[name], groups=groups))


def test_clipping_comes_before_the_decay():
    rule = make_optimizer(
        optimizer="sgd", rate=0.01, weight_decay=0.1, decay="all",
        clip_norm=0.5,
    )  # fmt: skip
    expected = by_torch(lambda o, p: RULES["sgd"](o, p, weight_decay=0.1), clip=0.5)
    close(run(params(), rule)[0], expected)


def test_a_small_gradient_is_not_clipped():
    options = {"optimizer": "sgd", "rate": 0.01}
    clipped = make_optimizer(**options, clip_norm=1e6)
    close(
        run(params(), clipped)[0],
        names(run(params(), make_optimizer(**options))[0]),
    )


def test_the_rate_follows_the_schedule():
    rule = make_optimizer(
        optimizer="sgd", rate=learning_rate(
            lr=0.01, schedule="cosine", steps=STEPS, warmup_steps=2
        ),
    )  # fmt: skip

    def rate(step):
        if step < 2:
            return 0.01 * (step + 1) / 2
        return 0.005 * (1 + np.cos(np.pi * (step - 2) / (STEPS - 2)))

    close(run(params(), rule)[0], by_torch(RULES["sgd"], rate=rate))


def rates(count, **more):
    schedule = learning_rate(**{"lr": 2.0, **more})
    return [float(np.asarray(schedule(step))) for step in range(count)]


def test_constant():
    assert rates(5, schedule="constant", steps=5) == [2.0] * 5


def test_step_falls_at_half_and_at_three_quarters():
    np.testing.assert_allclose(
        rates(8, schedule="step", steps=8),
        [2, 2, 2, 2, 0.2, 0.2, 0.02, 0.02],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        rates(5, schedule="step", steps=5), [2, 2, 2, 0.2, 0.02], rtol=1e-6
    )


def test_thirds():
    np.testing.assert_allclose(
        rates(6, schedule="thirds", steps=6), [2, 2, 1, 1, 0.2, 0.2], rtol=1e-6
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_first_of_few_steps_has_the_whole_rate(steps):
    assert rates(1, schedule="step", steps=steps) == [2.0]


def test_cosine():
    np.testing.assert_allclose(
        rates(5, schedule="cosine", steps=4), [2, 1 + 0.5**0.5, 1, 1 - 0.5**0.5, 0],
        rtol=1e-6, atol=1e-7,
    )  # fmt: skip


def test_poly():
    expected = [2 * (1 - step / 5) ** 0.9 for step in range(6)]
    np.testing.assert_allclose(
        rates(6, schedule="poly", steps=5), expected, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("schedule", ["constant", "step", "thirds", "cosine", "poly"])
def test_warmup_rises_in_equal_parts_and_then_the_rest_begins(schedule):
    actual = rates(12, schedule=schedule, steps=12, warmup_steps=4)
    np.testing.assert_allclose(actual[:4], [0.5, 1.0, 1.5, 2.0])
    np.testing.assert_allclose(actual[4:], rates(8, schedule=schedule, steps=8))


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="schedule 'linear'"):
        learning_rate(lr=1.0, schedule="linear", steps=1)
    with pytest.raises(KeyError, match="optimizer 'lion'"):
        make_optimizer(optimizer="lion")


@pytest.mark.parametrize("name", RULES)
def test_a_frozen_encoder_stays_bit_for_bit_and_has_no_moments(name):
    options = {"optimizer": name, "rate": 0.01, "weight_decay": 0.1, "decay": "all"}
    rule = make_optimizer(freeze="encoder", **options)
    moved, state = run(params(), rule)
    before, after = names(params()), names(moved)
    free = names(run(params(), make_optimizer(**options))[0])
    for path, value in before.items():
        if "encoder" in path:
            assert after[path].tobytes() == value.tobytes()
        else:
            np.testing.assert_allclose(after[path], free[path], rtol=1e-6)
    shapes = {np.shape(x) for x in jax.tree.leaves(state)}
    assert (5, 5, 4, 2) in shapes
    assert (3, 3, 2, 4) not in shapes and (4,) not in shapes


def test_what_is_frozen_does_not_count_in_the_norm():
    rule = make_optimizer(optimizer="sgd", rate=1.0, clip_norm=0.5, freeze="encoder")
    gradient = gradients(0)
    gradient["encoder"] = jax.tree.map(lambda x: 1e6 * x, gradient["encoder"])
    updates, _ = rule.update(gradient, rule.init(params()), params())
    np.testing.assert_allclose(float(optax.tree.norm(updates)), 0.5, rtol=1e-5)


def test_the_encoder_moves_at_its_own_rate():
    options = {
        "optimizer": "sgd",
        "rate": 0.01,
        "weight_decay": 0.1,
    }
    rule = make_optimizer(**options, encoder_lr_factor=0.25)
    updates, _ = rule.update(gradients(0), rule.init(params()), params())
    plain = make_optimizer(**options)
    whole, _ = plain.update(gradients(0), plain.init(params()), params())
    whole = {
        name: (0.25 if "encoder" in name else 1.0) * x
        for name, x in names(whole).items()
    }
    close(updates, whole)


def test_a_factor_clips_the_gradient_as_a_whole():
    rule = make_optimizer(
        optimizer="sgd", rate=1.0, clip_norm=0.5, encoder_lr_factor=2.0
    )
    updates, _ = rule.update(gradients(0), rule.init(params()), params())
    norm = np.sqrt(sum(np.sum(g**2) for g in names(gradients(0)).values()))
    expected = {
        name: -0.5 / norm * g * (2.0 if "encoder" in name else 1.0)
        for name, g in names(gradients(0)).items()
    }
    close(updates, expected)


def staged_gradients(step: int):
    return jax.tree.map(lambda x: 0.3 * x, staged(100 + step))


# Of a decay of 0.5 and three stages.
FACTORS = {"_init": 0.125, "stage1": 0.25, "stage2": 0.5, "stage3": 1.0}


def factor_of(name, encoder=1.0):
    if "encoder" not in name:
        return 1.0
    return encoder * next(f for part, f in FACTORS.items() if part in name)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("encoder", [1.0, 0.3])
def test_stages_have_their_own_rates_as_groups_of_torch(name, encoder):
    rule = make_optimizer(
        optimizer=name,
        rate=0.01,
        weight_decay=0.1,
        decay="all",
        clip_norm=0.5,
        encoder_lr_factor=encoder,
        stage_lr_decay=0.5,
    )

    def groups(held):
        return [
            {"params": [p], "lr": 0.01 * factor_of(n, encoder)} for n, p in held.items()
        ]

    expected = by_torch(
        lambda o, p: RULES[name](o, p, weight_decay=0.1),
        groups=groups,
        clip=0.5,
        params=staged,
        gradients=staged_gradients,
    )
    close(run(staged(), rule, gradients=staged_gradients)[0], expected)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("freeze", ["none", "encoder"])
def test_a_decay_per_stage_keeps_the_optimizer_state(name, freeze):
    options = {"optimizer": name, "freeze": freeze, "clip_norm": 0.5}
    plain, decayed = (
        make_optimizer(**options, stage_lr_decay=d).init(staged()) for d in (1.0, 0.5)
    )
    assert jax.tree.structure(decayed) == jax.tree.structure(plain)
    assert jax.tree.map(jnp.shape, decayed) == jax.tree.map(jnp.shape, plain)


def test_a_frozen_encoder_stays_with_a_decay_per_stage():
    options = {"optimizer": "sgd", "rate": 0.01, "freeze": "encoder"}
    trees = [
        run(
            staged(),
            make_optimizer(**options, stage_lr_decay=d),
            gradients=staged_gradients,
        )[0]
        for d in (0.5, 1.0)
    ]
    close(trees[0], names(trees[1]))
    before, after = names(staged()), names(trees[0])
    for name in before:
        moved = (after[name] != before[name]).any()
        assert moved == ("encoder" not in name)


def test_a_rate_inside_of_an_optimizer_is_decayed_there():
    # As in LARS, momentum follows the learning rate.
    OPTIMIZERS.register(
        "inner",
        lambda l2, descend: optax.chain(l2, descend, optax.trace(decay=0.9)),
    )
    try:
        got = run(
            staged(),
            make_optimizer(optimizer="inner", rate=0.01, stage_lr_decay=0.5),
            gradients=staged_gradients,
        )[0]
    finally:
        OPTIMIZERS.unregister("inner")
    expected = by_torch(
        RULES["sgd"],
        groups=lambda held: [
            {"params": [p], "lr": 0.01 * factor_of(n)} for n, p in held.items()
        ],
        params=staged,
        gradients=staged_gradients,
    )
    close(got, expected)


def test_a_decay_needs_stages():
    with pytest.raises(UserError, match="--stage_lr_decay: the network has no enc"):
        make_optimizer(stage_lr_decay=0.5).init(params())
