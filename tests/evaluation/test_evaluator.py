"""The evaluator against single frames: batches, sizes, devices, depth maps."""

import functools
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdepth.camera import centred
from jaxdepth.evaluation import bootstrap, metrics, protocols
from jaxdepth.evaluation.evaluator import Evaluator, map_variables, predict_map
from jaxdepth.evaluation.metrics import METRICS, Sums
from jaxdepth.evaluation.scores import Scores
from jaxdepth.runtime.errors import UserError

SIZE = (38, 57)  # training frame 40x60


def toy_network(variables, rgb):
    """Depth from colours at half the size, not symmetric under a flip."""
    across = jnp.linspace(0.0, 1.0, rgb.shape[2])[None, None, :]
    depth = variables["scale"] * (rgb.mean(axis=3) / 64 + 1 + across)
    return depth[:, ::2, ::2]


VARIABLES = {"scale": np.float32(1.1)}


def make_frames(count, size=(60, 90), seed=0, holes=True):
    rng = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        rgb = rng.integers(0, 256, (*size, 3), np.uint8)
        depth = rng.uniform(0.7, 9, size).astype(np.float32)
        raw = np.where(rng.random(size) < 0.3, 0, depth).astype(np.float32)
        frames.append(
            {
                "rgb": rgb,
                "depth": {"filled": depth, "raw": raw if holes else None},
                "name": f"{size[0]}-{k}",
            }
        )
    return frames


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def rows_alone(protocol, rgb, target, image_size, network, variables):
    """Row sums of one frame: the protocol's functions, one after another."""
    x = protocols.network_input(protocol, rgb, image_size)
    outs = [network(variables, x)]
    if protocol.flip_average:
        outs.append(network(variables, x[:, :, ::-1])[:, :, ::-1])
    outs = [protocols.network_output(protocol, out) for out in outs]
    pred = jnp.mean(jnp.stack(outs), axis=0)
    return protocols.score(protocol, pred, target)


def alone(
    protocol, frame, truth, variables=VARIABLES, *, image_size=SIZE, network=toy_network
):
    """Score one frame with the protocol's functions, without batching."""
    rgb, target = frame["rgb"][None], frame["depth"][truth][None]
    sums = Sums()
    sums.update(rows_alone(protocol, rgb, target, image_size, network, variables))
    return sums


def assert_same(actual, expected):
    assert actual.counts["pixels"] == expected.counts["pixels"]
    for averaging in ("pooled", "per_image"):
        a, b = actual.compute(averaging), expected.compute(averaging)
        for k in METRICS:
            # Rounding may move pixels over a threshold of delta.
            atol = 2 / expected.counts["pixels"] if "delta" in k else 0.0
            np.testing.assert_allclose(a[k], b[k], rtol=1e-5, atol=atol, err_msg=k)


@pytest.mark.parametrize("devices", [None, 1, 3])
@pytest.mark.parametrize("flip", ["auto", "on"])
def test_batches_of_several_sizes_equal_single_frames(devices, flip):
    chosen = protocols.choose("plain", flip_average=flip)
    a, b = make_frames(5), make_frames(4, (80, 100), seed=1)
    mixed = [a[0], b[0], a[1], a[2], b[1], b[2], b[3], a[3], a[4]]
    traced = []

    def network(variables, rgb):
        traced.append(rgb.shape)
        return toy_network(variables, rgb)

    evaluator = Evaluator(
        network,
        chosen,
        image_size=SIZE,
        batch_size=2,
        devices=None if devices is None else jax.devices()[:devices],
    )
    done = []
    for _ in range(2):
        scores = evaluator(VARIABLES, mixed, progress=done.append)["plain"]
    # The network is traced once per frame size (and flip), also over two calls.
    batch = {None: 2, 1: 2, 3: 3}[devices]
    passes = 2 if flip == "on" else 1
    assert sorted(traced) == sorted([(batch, 40, 60, 3), (batch, 48, 60, 3)] * passes)
    assert done[-1] == 9
    assert len(done) == 2 * {2: 5, 3: 4}[batch]
    assert scores.names == [f["name"] for f in mixed]
    expected = Sums()
    for frame in mixed:
        expected.merge(alone(chosen[0], frame, "filled"))
    assert_same(scores.sums, expected)
    for row, single in zip(scores.table(), expected.per_image(), strict=True):
        assert row["pixels"] == single["pixels"]
        assert row["rmse"] == pytest.approx(single["rmse"], rel=1e-5)


def test_predictions_are_corrected_for_the_focal_length(caplog):
    # Frames of 60x90 become 40x60: the scale is 2/3.
    frames, plain = make_frames(4), protocols.choose("plain")
    focals = [120.0, 90.0, 45.0, None]
    for frame, fx in zip(frames, focals, strict=True):
        frame["camera"] = fx and centred(fx, fx, (60, 90))
    evaluator = Evaluator(
        toy_network,
        plain,
        image_size=SIZE,
        camera=centred(60.0, 60.0, (40, 60)),
        batch_size=3,
    )
    with caplog.at_level(logging.WARNING):
        scores = evaluator(VARIABLES, frames)["plain"]
        entry = evaluator.entries({"plain": scores}, data="", split="")[-1]
    assert scores.factors == pytest.approx([120 / 90, 1.0, 0.5, None])
    assert entry["camera_factor"] == {
        "min": 0.5, "max": pytest.approx(4 / 3), "unknown": 1
    }  # fmt: skip
    assert "multiplied by 0.5 to 1.33, the focal length of" in caplog.text
    expected = Sums()
    for frame, factor in zip(frames, (4 / 3, 1.0, 0.5, 1.0), strict=True):
        variables = {"scale": VARIABLES["scale"] * np.float32(factor)}
        expected.merge(alone(plain[0], frame, "filled", variables))
    assert_same(scores.sums, expected)
    again = Scores.from_json(json.loads(json.dumps(scores.to_json())))
    assert again.factors == scores.factors
    assert again.select([3, 0]).factors == pytest.approx([None, 120 / 90])
    unknown = Evaluator(toy_network, plain, image_size=SIZE, batch_size=3)
    scores = unknown(VARIABLES, frames)["plain"]
    assert scores.factors == [None] * 4
    assert unknown.entries({"plain": scores}, data="", split="")[-1]["notes"] == []


def test_stacks_of_frames_equal_single_frames():
    frames = make_frames(3)
    stack = {
        "rgb": np.stack([f["rgb"] for f in frames]),
        "depth": {"filled": np.stack([f["depth"]["filled"] for f in frames])},
        "name": [f["name"] for f in frames],
    }
    evaluator = Evaluator(
        toy_network, protocols.choose("plain"), image_size=SIZE, batch_size=2
    )
    one, other = (evaluator(VARIABLES, x)["plain"] for x in (frames, [stack]))
    assert one.table() == other.table()


@pytest.fixture(scope="module")
def nyu_like():
    return make_frames(3, (480, 640))


def test_all_protocols_share_forward_passes(nyu_like):
    chosen = protocols.choose("all")
    calls = []

    def network(variables, rgb):
        calls.append(rgb.shape[1:3])
        return toy_network(variables, rgb)

    evaluator = Evaluator(
        network, chosen, image_size=(114, 152), batch_size=2, given_truth="raw"
    )
    scores = evaluator(VARIABLES, nyu_like)
    # The crop; the whole frame; the flipped whole frame.
    assert sorted(calls) == [(114, 152), (120, 160), (120, 160)]
    truths = {
        "laina": "filled",
        "eigen": "raw",
        "densedepth": "filled",
        "plain": "raw",
    }
    for protocol in chosen:
        expected = Sums()
        for frame in nyu_like:
            expected.merge(
                alone(protocol, frame, truths[protocol.name], image_size=(114, 152))
            )
        assert_same(scores[protocol.name].sums, expected)
        assert scores[protocol.name].truths == {truths[protocol.name]}

    entries = evaluator.entries(scores, data="rooms", split="tune")
    assert [(e["protocol"], e["averaging"]) for e in entries] == [
        ("plain", "per_image"),
        ("plain", "pooled"),
        ("densedepth", "per_image"),
        ("densedepth", "pooled"),
        ("eigen", "pooled"),
        ("eigen", "per_image"),
        ("laina@114x152", "per_image"),
        ("laina@114x152", "pooled"),
    ]
    for entry in entries:
        name = entry["protocol"].split("@")[0]
        assert entry["metrics"] == scores[name].sums.compute(entry["averaging"])
        assert entry["truth"] == truths[name]
        assert entry["flip_average"] == (name == "densedepth")
        assert entry["notes"] == []
        fixed = {
            "data": "rooms",
            "split": "tune",
            "size": "114x152",
            "frame_size": "480x640",
            "images": 3,
            "abs_rel_over": "truth",
        }
        assert fixed.items() <= entry.items()


def test_network_with_a_fixed_input_size(nyu_like):
    sizes = []

    def network(variables, rgb):
        sizes.append(rgb.shape[1:3])
        return toy_network(variables, rgb)

    evaluator = Evaluator(
        network,
        protocols.choose(["laina", "plain"]),
        image_size=(57, 76),
        arch_fixed=True,
        batch_size=3,
    )
    evaluator(VARIABLES, nyu_like)
    assert sizes == [(57, 76)] * 2


def test_other_ground_truth_is_used_with_a_note(nyu_like, caplog):
    frames = nyu_like[:2]
    only_filled = [f | {"depth": {"filled": f["depth"]["filled"]}} for f in frames]
    only_raw = [f | {"depth": {"raw": f["depth"]["raw"]}} for f in frames]
    chosen = protocols.choose(["laina", "eigen", "plain"])
    evaluator = Evaluator(toy_network, chosen, image_size=SIZE, batch_size=2)

    def notes(frames):
        scores = evaluator(VARIABLES, frames)
        entries = evaluator.entries(scores, data="d", split="s")
        return {
            e["protocol"].split("@")[0]: (e["truth"], "; ".join(e["notes"]))
            for e in entries
        }

    with caplog.at_level(logging.WARNING):
        actual = notes(only_filled)
        notes(only_filled)
    assert actual["laina"] == ("filled", "")
    assert actual["eigen"] == (
        "filled",
        "uses raw depth, but all frames have only filled depth",
    )
    # Logged once per run.
    assert caplog.text.count("protocol eigen: uses raw depth") == 1

    actual = notes(only_raw)
    holes = sum(int((f["depth"]["raw"] == 0).sum()) for f in frames)
    truth, note = actual["laina"]
    assert truth == "raw"
    assert "uses filled depth" in note
    assert f"missing pixels, not scored: {holes}" in note
    assert actual["eigen"] == ("raw", "")

    truth, note = notes([*only_raw[:1], *only_filled[1:]])["eigen"]
    assert truth == "filled+raw"
    assert "some frames have only filled depth" in note


def test_frames_without_truth_are_counted():
    frames = make_frames(3, holes=False)
    frames[1] = frames[1] | {"depth": {"filled": None}}
    evaluator = Evaluator(
        toy_network, protocols.choose("plain"), image_size=SIZE, batch_size=2
    )
    scores = evaluator(VARIABLES, frames)
    full = evaluator.entries(scores, data="d", split="s")
    entry = full[-1]
    assert entry["images"] == 2
    assert entry["counts"]["images_without_truth"] == 1
    assert entry["notes"] == ["frames without ground truth: 1"]
    assert scores["plain"].table()[1] == {
        "name": "60-1",
        "scene": None,
        "pixels": 0,
        **dict.fromkeys(METRICS),
        "nonpositive": 0,
        "nonfinite": 0,
    }
    both = [frames[0], frames[2]]
    expected = Sums()
    for frame in both:
        expected.merge(alone(protocols.PROTOCOLS["plain"], frame, "filled"))
    assert entry["metrics"]["rmse"] == pytest.approx(
        expected.compute("pooled")["rmse"], rel=1e-5
    )


def test_unusable_evaluation_sets_are_refused():
    evaluator = Evaluator(toy_network, protocols.choose("plain"), image_size=SIZE)
    with pytest.raises(UserError, match="it is empty"):
        evaluator(VARIABLES, [])
    frames = [f | {"depth": {}} for f in make_frames(2)]
    with pytest.raises(UserError, match="none of its 2 frames has depth"):
        evaluator(VARIABLES, frames)
    laina = Evaluator(toy_network, protocols.choose("laina"), image_size=SIZE)
    with pytest.raises(UserError, match="these are 60x90"):
        laina(VARIABLES, make_frames(1))


def test_predictions_that_are_not_finite_are_counted(nyu_like):
    def broken(variables, rgb):
        depth = toy_network(variables, rgb)
        return depth.at[0, 0, 0].set(jnp.nan).at[0, 12, 12].set(-1.0)

    evaluator = Evaluator(
        broken, protocols.choose(["plain", "eigen"]), image_size=SIZE, batch_size=1
    )
    scores = evaluator(VARIABLES, nyu_like[:1])
    actual = evaluator.entries(scores, data="d", split="s")
    eigen, plain = actual[1], actual[3]
    assert plain["protocol"] == "plain"
    assert plain["metrics"]["rmse"] is None
    assert plain["metrics"]["delta1"] is not None
    assert plain["counts"]["nonfinite"] > 0
    assert plain["counts"]["nonpositive"] > 0
    # The clamp of eigen affects the metrics, not the counts.
    assert None not in eigen["metrics"].values()
    assert eigen["counts"]["nonfinite_outputs"] == 1
    assert "outputs of the network that are not finite: 1" in eigen["notes"]


@pytest.mark.parametrize("name", ["plain", "laina", "densedepth"])
def test_depth_maps_are_scored_like_networks(name, nyu_like):
    rng = np.random.default_rng(5)
    frame_map = rng.uniform(1, 5, (120, 160)).astype(np.float32)
    evaluator = Evaluator(
        predict_map,
        protocols.choose(name),
        image_size=(114, 152),
        batch_size=2,
    )
    maps = map_variables(frame_map, (114, 152))
    actual = evaluator(maps, nyu_like)[name]
    shown = {
        "plain": frame_map,
        "laina": frame_map[3:117, 4:156],
        "densedepth": (frame_map + frame_map[:, ::-1]) / 2,
    }[name]
    protocol = protocols.PROTOCOLS[name]
    score = jax.jit(protocols.score, static_argnums=0)
    expected = Sums()
    for frame in nyu_like:
        target = frame["depth"]["filled"][None]
        expected.update(score(protocol, shown[None], target))
    assert_same(actual.sums, expected)

    constant = evaluator(map_variables(2.5, (114, 152)), nyu_like)[name]
    depth = np.stack([f["depth"]["filled"] for f in nyu_like]).astype(np.float64)
    if name == "densedepth":
        depth = depth[:, 20:460, 24:616]
    rmse = np.sqrt(np.mean((2.5 - depth) ** 2))
    assert constant.sums.compute("pooled")["rmse"] == pytest.approx(rmse, rel=1e-5)


def test_map_of_a_wrong_size_is_refused():
    with pytest.raises(ValueError, match=r"\(120, 160\)"):
        map_variables(np.ones((114, 152), np.float32), (114, 152))


def test_scores_of_two_subsets_merge():
    frames = make_frames(5)
    evaluator = Evaluator(
        toy_network, protocols.choose("plain"), image_size=SIZE, batch_size=2
    )
    whole = evaluator(VARIABLES, frames)["plain"]
    first = evaluator(VARIABLES, frames[:2])["plain"]
    first.merge(evaluator(VARIABLES, frames[2:])["plain"])
    assert first.table() == whole.table()
    assert first.sums.compute("pooled") == whole.sums.compute("pooled")


def test_error_breakdown_equals_numpy_and_merges():
    frames = [
        frame | {"scene": scene}
        for frame, scene in zip(make_frames(4), ("k", "k", "b", None), strict=True)
    ]
    evaluator = Evaluator(
        toy_network, protocols.choose("plain"), image_size=SIZE, batch_size=3
    )
    whole = evaluator(VARIABLES, frames)
    assert whole["plain"].scenes == ["k", "k", "b", None]
    merged = evaluator(VARIABLES, frames[:1])["plain"]
    merged.merge(evaluator(VARIABLES, frames[1:])["plain"])
    entry = evaluator.entries(whole, data="d", split="s")[-1]
    parted = evaluator.entries({"plain": merged}, data="d", split="s")[-1]
    assert entry["parts"] == parted["parts"] and merged.scenes[1:] == ["k", "b", None]
    # Ground truth is noise, so that edges are everywhere. Distances equal NumPy.
    assert entry["parts"]["near edges"]["pixels"] == entry["counts"]["pixels"]
    assert entry["parts"]["away from edges"]["metrics"]["rmse"] is None
    truth = np.stack([f["depth"]["filled"] for f in frames]).astype(np.float64)
    pred = []
    for frame in frames:
        x = protocols.network_input(
            protocols.PROTOCOLS["plain"], jnp.asarray(frame["rgb"])[None], SIZE
        )
        out = toy_network(VARIABLES, x)
        pred.append(
            protocols.full_prediction(protocols.PROTOCOLS["plain"], out, (60, 90))
        )
    error = np.concatenate(pred).astype(np.float64) - truth
    for low, high in ((0, 2), (2, 4), (4, 6), (6, 10)):
        inside = (truth > low) & (truth <= high)
        actual = entry["parts"][f"{low}-{high} m"]
        assert actual["pixels"] == inside.sum() and actual["images"] == 4
        rmse = np.sqrt(np.mean(error[inside] ** 2))
        assert actual["metrics"]["rmse"] == pytest.approx(rmse, rel=1e-5)


def test_registered_metric_and_protocol_appear_in_all_results():
    metrics.register_metric("mae", lambda pred, target: jnp.abs(pred - target))
    protocols.register_protocol(
        protocols.Protocol(
            "near",
            truth="given",
            input_rule="whole_frame",
            averaging="per_image",
            valid_range=(0.0, 3.0),
        )
    )
    try:
        frames = make_frames(3)
        evaluator = Evaluator(toy_network, protocols.choose("near"), image_size=SIZE)
        scores = evaluator(VARIABLES, frames)
        entry = evaluator.entries(scores, data="d", split="s")[-1]
        resamples = bootstrap.over_images(scores["near"].sums, count=20)
        interval = bootstrap.of_one(scores["near"].sums, "per_image", resamples)
        table = scores["near"].table()
    finally:
        METRICS.unregister("mae")
        protocols.PROTOCOLS.unregister("near")
    assert (entry["protocol"], entry["averaging"]) == ("near", "per_image")
    expected = []
    for frame, row in zip(frames, table, strict=True):
        target = frame["depth"]["filled"]
        x = protocols.resize_input(frame["rgb"][None].astype(np.float32), (40, 60))
        small = toy_network(VARIABLES, x)
        pred = protocols.full_prediction(protocols.PROTOCOLS["plain"], small, (60, 90))
        error = np.abs(np.asarray(pred[0], np.float64) - target)
        expected.append(error[target < 3].mean())
        assert row["mae"] == pytest.approx(expected[-1], rel=1e-5)
    assert entry["metrics"]["mae"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert entry["parts"]["0-2 m"]["metrics"]["mae"] > 0
    low, high = interval["metrics"]["mae"]
    assert low <= entry["metrics"]["mae"] <= high
