"""The configuration: defaults, recipes, what `auto` becomes, what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth import config as config_lib
from jaxdepth import losses, recipes
from jaxdepth.config import Config, EvaluateConfig
from jaxdepth.data.sources import SOURCES
from jaxdepth.evaluation.protocols import PROTOCOLS
from jaxdepth.models import ARCHS, LAYOUTS
from jaxdepth.ops.upconv import FORMS, UNPOOLS
from jaxdepth.recipes import RECIPES
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flags_of
from jaxdepth.training import optimizer as optimizer_lib
from jaxdepth.training.augment import POLICIES
from jaxdepth.training.optimizer import make_optimizer


@pytest.mark.parametrize(
    ("flag", "table"),
    [
        ("arch", ARCHS),
        ("layout", LAYOUTS),
        ("loss", losses.LOSSES),
        ("augment", POLICIES),
        ("unpool", UNPOOLS),
        ("upconv", ("auto", *FORMS)),
        ("protocol", ("auto", *PROTOCOLS, "all")),
        ("data_format", ("auto", *SOURCES)),
    ],
)
def test_choices_are_those_of_the_tables(flag, table):
    assert set(config_lib.choices(flag) or ()) == set(table)


@pytest.mark.parametrize("flag", ["data_format", "split", "protocol"])
def test_evaluation_offers_what_training_does(flag):
    offered = flags_of(EvaluateConfig)[flag].choices
    assert offered == config_lib.choices(flag) and offered


@pytest.mark.parametrize("name", config_lib.choices("optimizer") or ())
def test_every_optimizer_exists(name):
    make_optimizer(optimizer=name)


@pytest.mark.parametrize(
    ("size", "frame"),
    [((228, 304), (240, 320)), ((114, 152), (120, 160)), ((48, 64), (51, 67))],
)
def test_training_frame(size, frame):
    assert config_lib.training_frame(size) == frame


@given(st.integers(1, 99999), st.integers(1, 99999))
def test_sizes_are_read_as_written(height, width):
    assert config_lib.parse_size(f"{height}x{width}") == (height, width)


@pytest.mark.parametrize("text", ["228", "228x", "0x3", "228X304", "1.5x2", "-2x4", ""])
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        config_lib.parse_size(text)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "a finite number"),
        ({"seed": 2**32}, "must be below 4294967296"),
        ({"batch_size": 0}, "at least 1"),
        ({"si_lambda": 1.5}, "at most 1"),
        ({"dropout": 1.0}, "below 1"),
        ({"max_depth": 256.0}, "at most 255.99"),
        ({"ema": 1.0}, "below 1"),
        ({"ema": -0.1}, "at least 0"),
        ({"lr_batch": 0}, "at least 1"),
        ({"steps": 3, "epochs": 1.0}, "one of the two"),
        ({"warmup_steps": 3, "warmup_epochs": 1.0}, "one of the two"),
        ({"init": "imagenet"}, "needs --weights"),
        ({"weights": "x.npz"}, "without --init"),
        ({"arch": "cnn", "layout": "fcrn"}, "layout of upproj"),
        ({"arch": "cnn", "unpool": "average"}, "no unpooling"),
        ({"split": "all"}, "leave --split out"),
        ({"arch": "cnn", "stage_lr_decay": 0.8}, "=0.8: cnn has no encoder stages"),
        ({"stage_lr_decay": 0.0}, "must be above 0"),
        ({"stage_lr_decay": 1.1}, "must be at most 1"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, words):
    with pytest.raises(UserError, match=words):
        Config.of(**flags)


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("arch", "upprj", r"did you mean upproj\?"),
        ("loss", "ssim", "one of mse, si, berhu"),
    ],
)
def test_unknown_choices_are_refused(flag, value, words):
    with pytest.raises(UserError, match=words):
        Config.of(**{flag: value})


def test_demo_is_the_choice_for_rooms_on_cpu_alone():
    demo = RECIPES["demo"].flags
    here = config_lib.resolve(Config(), platform="cpu")
    assert (here.model.size, here.train.batch_size) == (
        demo["size"],
        demo["batch_size"],
    )
    assert (here.train.steps, here.data.rooms) == (demo["steps"], demo["rooms"])
    assert here.model.precision == "f32"
    there = config_lib.resolve(Config(), platform="gpu")
    assert (there.model.size, there.train.batch_size, there.train.steps) == (
        "228x304",
        32,
        "auto",
    )
    assert there.model.precision == "bf16"
    nyu = config_lib.resolve(Config.of(data="nyu.mat"), platform="cpu")
    assert (nyu.model.size, nyu.train.batch_size, nyu.train.steps) == (
        "228x304",
        32,
        "auto",
    )


def test_flags_win_over_auto():
    given_ = Config.of(size="64x96", batch_size=2, rooms=5, epochs=3.0, dropout=0.25)
    here = config_lib.resolve(given_, platform="cpu")
    assert (here.model.size, here.train.batch_size, here.data.rooms) == ("64x96", 2, 5)
    assert (here.train.steps, here.model.dropout) == ("auto", 0.25)


@pytest.mark.parametrize(("arch", "dropout"), [("cnn_fc", 0.5), ("upproj", 0.0)])
def test_dropout_follows_the_arch(arch, dropout):
    assert (
        config_lib.resolve(Config.of(arch=arch), platform="tpu").model.dropout
        == dropout
    )


@pytest.mark.parametrize(
    ("flags", "steps"), [({}, 25), ({"epochs": 0.5}, 1), ({"steps": 7}, 7)]
)
def test_steps_follow_from_epochs(flags, steps):
    settled = config_lib.resolve_steps(
        Config.of(batch_size=8, **flags), train_images=10
    )
    assert settled.train.steps == steps and settled.train.epochs is None
    assert isinstance(settled.output.log_every, int) and isinstance(
        settled.output.save_every, int
    )
    assert settled.eval.eval_every == max(1, -(-steps // 5))


def test_warmup_follows_from_epochs():
    given = Config.of(batch_size=8, steps=30, warmup_epochs=2.5)
    settled = config_lib.resolve_steps(given, train_images=10)
    assert (
        settled.optimizer.warmup_steps == 4 and settled.optimizer.warmup_epochs is None
    )
    again = config_lib.resolve_steps(settled, train_images=10)
    assert again == settled


def test_the_rate_grows_with_the_batch_where_it_is_for_another():
    assert Config.of(lr=0.01, batch_size=256).peak_lr == 0.01
    large = Config.of(lr=0.01, batch_size=256, lr_batch=16)
    assert large.peak_lr == pytest.approx(0.16)
    schedule = optimizer_lib.schedule_of(large.replace(steps=9))
    np.testing.assert_allclose(schedule(3), 0.16, rtol=1e-6)


def test_calls_of_several_steps_end_where_something_happens():
    several = Config.of(batch_size=8, steps_per_call=4)
    settled = config_lib.resolve_steps(several, train_images=10)
    names = ("steps", "log_every", "eval_every", "save_every")
    assert [settled.flat()[name] for name in names] == [28, 4, 8, 8]
    given = several.replace(log_every=3, eval_every=9, save_every=0)
    settled = config_lib.resolve_steps(given, train_images=10)
    assert [settled.flat()[name] for name in names] == [28, 4, 12, 0]
    wrong = several.replace(steps=7)
    with pytest.raises(UserError, match=r"--steps=7 is not a multiple.*--steps=8"):
        config_lib.resolve_steps(wrong, train_images=10)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_are_valid_and_say_what_they_are(name):
    flags = dict(RECIPES[name].flags)
    if "init" in flags:
        with pytest.raises(UserError, match="needs --weights"):
            Config.of(**flags)
        flags["weights"] = "x.npz"
    Config.of(**flags)
    assert len(RECIPES[name].doc) > 30


def test_rows_of_the_paper_that_are_one_run_are_one_recipe():
    assert RECIPES["table1_cnn"] is RECIPES["table2_si"]
    assert RECIPES["table1_upproj"] is RECIPES["table4_imagenet"]


def test_rows_of_networks_train_with_the_losses_of_the_paper():
    rows = {name: RECIPES[f"table1_{name}"].flags["loss"] for name in ("cnn_fc", "cnn")}
    assert rows == {"cnn_fc": "mse", "cnn": "si"}


def test_unknown_recipes_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean table1_cnn"):
        recipes.recipe_named("table1_cn")


def test_json_and_back():
    config = config_lib.resolve(Config.of(arch="cnn", lr=0.01), platform="cpu")
    text = json.dumps(config_lib.to_json(config))
    assert config_lib.from_json(config_lib.loads(text, where="here")) == config


def test_batch_statistics_of_groups():
    sizes = {"global": None, "local": 1, "group:1": 1, "group:16": 16}
    for bn, size in sizes.items():
        assert config_lib.devices_per_statistics(Config.of(bn=bn).model.bn) == size
    for bn in ("group", "group:", "group:0", "group:-2", "group:2.5", "Local", ""):
        with pytest.raises(UserError, match=f"--bn={bn}: expected global, local or gr"):
            Config.of(bn=bn)


def test_json_of_another_version_is_refused():
    with pytest.raises(UserError, match=r"unknown flags \('speed'\)"):
        config_lib.from_json(config_lib.to_json(Config()) | {"speed": 1})
    for text in ("{", "[]"):
        with pytest.raises(UserError, match=r"run/config\.json"):
            config_lib.loads(text, where="run/config.json")


def test_every_flag_is_explained():
    for name, flag in flags_of(Config).items():
        assert len(flag.help) > 10, name


@pytest.mark.parametrize("form", ["packed", "rows", "dilated"])
def test_a_removed_form_of_the_up_convolution_is_read_as_auto(form):
    values = config_lib.to_json(Config()) | {"upconv": form}
    assert config_lib.from_json(values).model.upconv == "auto"
