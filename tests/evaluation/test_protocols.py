"""Protocols on real frames against float64 NumPy implementations."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.store import resample
from jaxdepth.evaluation import breakdown, protocols
from jaxdepth.evaluation.metrics import METRICS, Sums
from jaxdepth.evaluation.protocols import PROTOCOLS
from jaxdepth.runtime.errors import UserError

NYU_CODE = 9.99547 / 255  # metres per code of the 8-bit depth


@pytest.fixture(scope="module")
def filled(shared_data):
    """(rgb, depth) of two labelled frames with filled depth, float32 metres."""
    rgb, depth = [], []
    for number in ("0003", "0411"):
        folder = shared_data / "nyu_train"
        names = [p.stem for p in sorted((folder / "rgb").iterdir())]
        stem = min(names, key=lambda s, n=number: abs(int(s) - int(n)))
        rgb.append(np.asarray(Image.open(folder / "rgb" / f"{stem}.jpg")))
        code = np.asarray(Image.open(folder / "depth8" / f"{stem}.png"))
        depth.append(((code + 0.5) * NYU_CODE).astype(np.float32))
    return np.stack(rgb), np.stack(depth)


@pytest.fixture(scope="module")
def raw(shared_data):
    """(rgb, depth) of two frames with holes, float32 metres."""
    folder = shared_data / "sync_png16" / "basement_0001a"
    rgb, depth = [], []
    for number in ("00000", "00050"):
        rgb.append(np.asarray(Image.open(folder / f"rgb_{number}.jpg")))
        mm = np.asarray(Image.open(folder / f"sync_depth_{number}.png"))
        depth.append((mm / 1000).astype(np.float32))
    return np.stack(rgb), np.stack(depth)


def bilinear(x, size):
    """Bilinear resize with half-pixel centres and repeated edges."""
    x = np.asarray(x, np.float64)
    for axis, n_out in ((1, size[0]), (2, size[1])):
        n_in = x.shape[axis]
        at = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if k == axis else 1 for k in range(x.ndim)])
        first = np.take(x, np.clip(low, 0, n_in - 1), axis)
        second = np.take(x, np.clip(low + 1, 0, n_in - 1), axis)
        x = first * (1 - share) + second * share
    return x


def reference_metrics(p, t, rel):
    """The metrics of flat float64 arrays."""
    ratio, e = np.maximum(p / t, t / p), np.log(p / t)
    return {
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
        "abs_rel": np.mean(abs(p - t) / (p if rel == "pred" else t)),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": np.mean((p - t) ** 2) ** 0.5,
        "rmse_log": np.mean(e**2) ** 0.5,
        "log10": np.mean(abs(np.log10(p / t))),
        "silog": 100 * (np.mean(e**2) - np.mean(e) ** 2) ** 0.5,
    }


def laina(pred, t):
    return bilinear(pred, (480, 640)), t, t > 0


def eigen(pred, t):
    p = bilinear(pred, (480, 640))
    p[p < 1e-3], p[p > 10] = 1e-3, 10
    mask = np.zeros(t.shape, bool)
    mask[:, 45:471, 41:601] = True
    return p, t, mask & (t > np.float32(1e-3)) & (t < 10)


def densedepth(pred, t):
    p = bilinear(np.clip(np.float64(pred), 0.1, 10), (480, 640))
    return p[:, 20:460, 24:616], t[:, 20:460, 24:616], t[:, 20:460, 24:616] > 0


def plain(pred, t):
    return bilinear(pred, t.shape[1:]), t, (t > 0) & (t <= 10)


LITERAL = {"laina": laina, "eigen": eigen, "densedepth": densedepth, "plain": plain}


def literal_metrics(name, pred, target, averaging, rel):
    p, t, valid = LITERAL[name](pred, target.astype(np.float64))
    if averaging == "pooled":
        return reference_metrics(p[valid], t[valid], rel)
    each = [
        reference_metrics(p[b][valid[b]], t[b][valid[b]], rel) for b in range(len(t))
    ]
    return {k: np.mean([r[k] for r in each]) for k in METRICS}


def simulated_prediction(depth, size=(128, 160), seed=0):
    """A prediction with noise and some outliers, metres."""
    rng = np.random.default_rng(seed)
    rows = np.linspace(0, depth.shape[1] - 1, size[0]).astype(int)
    columns = np.linspace(0, depth.shape[2] - 1, size[1]).astype(int)
    small = np.where(depth > 0, depth, 2.5)[:, rows][:, :, columns]
    pred = small * np.exp(rng.normal(0.05, 0.2, small.shape))
    far = rng.random(small.shape)
    pred[far < 0.01] *= 5  # beyond the clamp at 10 m
    pred[far > 0.99] = 0.02  # below the clamp of densedepth
    return pred.astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def run(protocol, pred, target):
    return protocols.score(protocol, protocols.network_output(protocol, pred), target)


@pytest.mark.parametrize(
    ("name", "rel"), [*((name, "truth") for name in PROTOCOLS), ("densedepth", "pred")]
)
@pytest.mark.parametrize("kind", ["filled", "raw"])
def test_scores_of_real_frames_equal_numpy(name, kind, rel, request):
    _, target = request.getfixturevalue(kind)
    (protocol,) = protocols.choose(name, densedepth_rel=rel)
    pred = simulated_prediction(target)
    sums = Sums()
    sums.update(run(protocol, pred, target))
    for averaging in ("pooled", "per_image"):
        expected = literal_metrics(name, pred, target, averaging, rel)
        actual: dict[str, Any] = dict(sums.compute(averaging))
        for k in METRICS:
            # Rounding may move pixels over a threshold of delta.
            atol = 6 / sums.counts["pixels"] if k.startswith("delta") else 0
            np.testing.assert_allclose(
                actual[k],
                expected[k],
                rtol=1e-5,
                atol=atol,
                err_msg=f"{k} {averaging}",
            )
    _, t, valid = LITERAL[name](pred, target)
    assert sums.counts["pixels"] == valid.sum()
    assert sums.counts["unscored"] == _region(name, t).sum() - valid.sum()


def _region(name, t):
    """Mask of a protocol's region in an array that may be cropped to it."""
    region = np.ones(t.shape, bool)
    if name == "eigen":
        region[:] = False
        region[:, 45:471, 41:601] = True
    return region


def test_protocols_give_different_numbers(filled):
    _, target = filled
    pred = simulated_prediction(target)
    actual = set()
    for protocol in PROTOCOLS.values():
        sums = Sums()
        sums.update(run(protocol, pred, target))
        actual.add(sums.compute("pooled")["rmse"])
    # laina and plain differ in the network's input only.
    assert len(actual) == 3


def test_densedepth_clips_before_flip_averaging():
    (protocol,) = protocols.choose("densedepth")
    first, second = jnp.full((1, 2, 2), 40.0), jnp.full((1, 2, 2), 4.0)
    outs = [protocols.network_output(protocol, p) for p in (first, second)]
    np.testing.assert_allclose(0.5 * (outs[0] + outs[1]), 7.0)
    (eigen_,) = protocols.choose("eigen", flip_average="on")
    outs = [protocols.network_output(eigen_, p) for p in (first, second)]
    mean = 0.5 * (outs[0] + outs[1])
    full = protocols.full_prediction(eigen_, mean, (4, 4))
    np.testing.assert_allclose(full, 10.0)


def test_laina_input_is_every_second_pixel_cropped(filled):
    rgb, _ = filled
    protocol = PROTOCOLS["laina"]
    x = protocols.network_input(protocol, jnp.asarray(rgb), (228, 304))
    assert x.dtype == jnp.float32
    # Row 6 + i of the half-size frame is row 2 (6 + i) + 1 of the frame.
    rows, columns = 13 + 2 * np.arange(228), 17 + 2 * np.arange(304)
    np.testing.assert_array_equal(x, rgb[:, rows][:, :, columns])
    assert protocol.title((228, 304)) == "laina"


def test_laina_at_another_size_is_the_area_mean_of_the_crop(filled):
    rgb, _ = filled
    protocol = PROTOCOLS["laina"]
    x = protocols.network_input(protocol, jnp.asarray(rgb), (114, 152))
    crop = rgb[:, 13:468:2, 17:624:2].astype(np.float64)
    assert crop.shape[1:3] == (228, 304)
    blocks = crop.reshape(2, 114, 2, 152, 2, 3).mean((2, 4))
    np.testing.assert_allclose(x, blocks, atol=1e-3)
    assert protocol.title((114, 152)) == "laina@114x152"
    assert PROTOCOLS["plain"].title((114, 152)) == "plain"


@pytest.mark.parametrize("name", ["eigen", "densedepth", "plain"])
def test_whole_frames_enter_at_the_training_scale(name, filled):
    rgb, _ = filled
    x = protocols.network_input(PROTOCOLS[name], jnp.asarray(rgb), (228, 304))
    blocks = rgb.reshape(2, 240, 2, 320, 2, 3).astype(np.float64).mean((2, 4))
    np.testing.assert_allclose(x, blocks, atol=1e-3)
    fixed = protocols.network_input(
        PROTOCOLS[name], jnp.asarray(rgb), (120, 160), arch_fixed=True
    )
    blocks = rgb.reshape(2, 120, 4, 160, 4, 3).astype(np.float64).mean((2, 4))
    np.testing.assert_allclose(fixed, blocks, atol=1e-3)


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        ((480, 640), (240, 320)),
        ((240, 320), (240, 320)),
        ((100, 101), (317, 320)),  # 316.8
        ((128, 257), (240, 482)),  # 481.9
        ((480, 480), (320, 320)),
        ((640, 480), (427, 320)),
        ((540, 960), (240, 427)),
        ((375, 1242), (240, 795)),
        ((5000, 4), (400000, 320)),
    ],
)
def test_whole_frames_cover_the_training_frame(frame, size):
    assert protocols.whole_frame_size(frame, (228, 304)) == size


@pytest.mark.parametrize(
    "frame", [(640, 480), (480, 480), (480, 640), (540, 960), (375, 1242)]
)
def test_training_and_whole_frames_have_one_scale(frame):
    # Waves of 40 pixels: at another scale they would be out of phase.
    rows, columns = np.indices(frame)
    waves = np.sin(2 * np.pi * (rows - frame[0] / 2 + 0.5) / 40)
    waves = waves + np.cos(2 * np.pi * (columns - frame[1] / 2 + 0.5) / 40)
    rgb = np.repeat((128 + 60 * waves).astype(np.uint8)[..., None], 3, axis=-1)
    trained = resample.to_size(rgb, (240, 320)).astype(float)
    whole = np.asarray(
        protocols.network_input(PROTOCOLS["plain"], jnp.asarray(rgb[None]), (228, 304))
    )[0]
    top, left = ((n - m) // 2 for n, m in zip(whole.shape, (240, 320), strict=False))
    centre = whole[top : top + 240, left : left + 320]
    assert (
        np.abs(trained - centre).mean() < 8
    )  # half a pixel; 50 at 1.1 times the scale


def test_small_frames_are_enlarged_bilinearly():
    rgb = np.random.default_rng(0).integers(0, 256, (1, 10, 15, 3), np.uint8)
    x = protocols.network_input(PROTOCOLS["plain"], jnp.asarray(rgb), (38, 38))
    np.testing.assert_allclose(x, bilinear(rgb, (40, 60)), atol=1e-3)
    # A frame of the training frame's size is not resized.
    x = protocols.network_input(PROTOCOLS["plain"], jnp.asarray(rgb), (10, 14))
    assert x.shape == (1, 11, 17, 3)
    rgb = np.random.default_rng(0).integers(0, 256, (1, 20, 40, 3), np.uint8)
    x = protocols.network_input(PROTOCOLS["plain"], jnp.asarray(rgb), (19, 38))
    np.testing.assert_array_equal(x, rgb)


@pytest.mark.parametrize("name", ["laina", "eigen", "densedepth"])
def test_protocols_of_nyu_refuse_other_frame_sizes(name):
    protocol = PROTOCOLS[name]
    message = "240x320: use --protocol=plain"
    with pytest.raises(UserError, match=message):
        rgb = jnp.zeros((1, 240, 320, 3), jnp.uint8)
        protocols.network_input(protocol, rgb, (228, 304))
    with pytest.raises(UserError, match=message):
        run(protocol, jnp.ones((1, 8, 8)), jnp.ones((1, 240, 320)))
    run(PROTOCOLS["plain"], jnp.ones((1, 8, 8)), jnp.ones((1, 24, 32)))


def score(protocol, pred, target):
    sums = Sums()
    sums.update(run(protocol, jnp.asarray(pred), jnp.asarray(target)))
    return sums


def test_valid_ranges():
    target = np.zeros((1, 480, 640), np.float32)
    box = target[:, 100:101, 100:108]
    box[:] = [[[0, 1e-3, 2e-3, 9.999, 10, 10.001, np.nan, -1]]]
    pred = np.ones((1, 8, 8), np.float32)
    pixels = {
        name: score(PROTOCOLS[name], pred, target).counts["pixels"]
        for name in PROTOCOLS
    }
    # laina and densedepth have no bound, eigen excludes both, plain includes 10 m.
    assert pixels == {"laina": 5, "densedepth": 5, "eigen": 2, "plain": 4}
    (near,) = protocols.choose("plain", max_depth=5.0)
    assert score(near, pred, target).counts["pixels"] == 2


def test_nonfinite_predictions_do_not_spread():
    pred = np.full((2, 24, 32), 2.0, np.float32)
    pred[0, 3, 4], pred[0, 12, 20], pred[0, 20, 20] = np.nan, np.inf, -np.inf
    target = np.full((2, 480, 640), 2.0, np.float32)
    for name in ("laina", "plain"):
        sums = score(PROTOCOLS[name], pred, target)
        # Each affects the pixels that it is interpolated to: 40x40.
        assert sums.counts["nonfinite"] == 3 * 40 * 40
        assert sums.compute("pooled")["rmse"] is None
        assert sums.per_image()[1]["rmse"] == 0
    full = protocols.full_prediction(PROTOCOLS["eigen"], jnp.asarray(pred), (480, 640))
    values, counts = np.unique(np.asarray(full[0]), return_counts=True)
    np.testing.assert_allclose(values, [1e-3, 2, 10])
    np.testing.assert_array_equal(counts, [3200, 480 * 640 - 4800, 1600])
    assert np.asarray(full[1] == 2).all()


def test_choose_applies_the_flags():
    assert [p.name for p in protocols.choose("all")] == list(PROTOCOLS)
    first, second = protocols.choose(["plain", "eigen"], flip_average="on")
    assert (first.name, second.name) == ("plain", "eigen")
    assert first.flip_average
    assert second.flip_average
    (off,) = protocols.choose("densedepth", flip_average="off")
    assert not off.flip_average
    assert [p.flip_average for p in PROTOCOLS.values()] == [False, False, True, False]
    with pytest.raises(UserError, match="eigan: expected one of laina"):
        protocols.choose("eigan")


def test_edges_outside_the_region_count_as_near():
    target = np.full((1, 480, 640), 2.0, np.float32)
    target[:, :45] = 4.0  # the region of eigen begins with row 45
    pred = jnp.ones((1, 8, 8))
    rows = protocols.score_parts(PROTOCOLS["eigen"], pred, jnp.asarray(target))
    near = Sums()
    near.update(rows[breakdown.NEAR])
    assert near.counts["pixels"] == 9 * 560  # rows 45 to 53, columns 41 to 600
