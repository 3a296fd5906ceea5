"""Lines of text about evaluations and trained networks."""

import numpy as np
import pytest

from jaxdepth.camera import Camera
from jaxdepth.config import Config
from jaxdepth.evaluation import describe


def entry(step, rmse, **more):
    return {
        "step": step, "protocol": "laina", "averaging": "pooled", "truth": "filled",
        "data": "nyu", "split": "tune", "size": "228x304",
        "metrics": {"delta1": 0.75, "abs_rel": None, "rmse": rmse}, **more,
    }  # fmt: skip


def test_the_score_is_the_last_one_of_the_step():
    evaluations = [entry(10, 0.9), entry(10, 0.625), entry(20, 0.5)]
    assert describe.score(evaluations, 10) == (
        "score: delta1 0.750, abs_rel undefined, rmse 0.625 (laina, pooled, filled "
        "truth, nyu, split tune)"
    )


@pytest.mark.parametrize(
    "evaluations",
    [[], [entry(30, 0.5)], [{}], [None], [{"step": 10}], [entry(10, "low")],
     [entry(10, 0.5) | {"metrics": []}]],
)  # fmt: skip
def test_absent_and_damaged_scores_are_unknown(evaluations):
    assert describe.score(evaluations, 10) == "score: unknown"


def test_networks_in_lines():
    config = Config.of(arch="cnn", size="228x304")
    params = {"a": np.zeros((1000, 20)), "b": {"c": np.zeros(5000)}}
    assert describe.network(config, params, 7) == (
        "network: cnn, 0.03 M parameters, step 7"
    )
    assert describe.network(config, params, None).endswith("step unknown")
    assert describe.input_size(config) == (
        "size: 228x304; photos are scaled to cover 240x320"
    )
    stretched = describe.input_size(Config.of(arch="cnn_fc", size="228x304"))
    assert stretched == "size: 228x304; photos are stretched to it"
    # 2 atan(160 / 160) is a right angle.
    camera = Camera(160.0, 160.0, 159.5, 119.5)
    assert describe.camera(camera, (240, 320)) == (
        "camera: fx 160 pixels at 240x320, 90 degrees"
    )
    assert "not corrected" in describe.camera(None, (240, 320))


def test_training_data_in_a_line():
    data = {"name": "x", "train_name": "nyu\x1b", "split": "tune", "train_images": 714}
    assert describe.training_data(data) == (
        r"training data: nyu\x1b, split tune, 714 images"
    )
    assert describe.training_data({"train_name": "rooms"}) == (
        "training data: rooms, split unknown"
    )
    assert describe.training_data({}) == "training data: unknown"
